"""The protocol of liblxc's command socket, byte for byte: states, commands, frames, limits, addresses.

The two sides are server.py and client.py. Not lxc-monitord's sockets.
An abstract AF_UNIX stream socket named LXCPATH/NAME/command answers one request a connection;
frames are native-endian C structures.
Source of truth: reference of LXC, section 10 (observed on 5.0.2), and unix(7).
"""

from __future__ import annotations

import os
import struct

from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


STATES: Final = (
    "STOPPED",
    "STARTING",
    "RUNNING",
    "STOPPING",
    "ABORTING",
    "FREEZING",
    "FROZEN",
    "THAWED",
)
STOPPED: Final = 0
STARTING: Final = 1
RUNNING: Final = 2
STOPPING: Final = 3
ABORTING: Final = 4
FREEZING: Final = 5
FROZEN: Final = 6
THAWED: Final = 7

GET_TTY_FD: Final = 0
TERMINAL_WINCH: Final = 1
STOP: Final = 2
GET_STATE: Final = 3
GET_INIT_PID: Final = 4
GET_CLONE_FLAGS: Final = 5
GET_CGROUP: Final = 6
GET_CONFIG_ITEM: Final = 7
GET_NAME: Final = 8
GET_LXCPATH: Final = 9
ADD_STATE_CLIENT: Final = 10
CONSOLE_LOG: Final = 11
SERVE_STATE_CLIENTS: Final = 12
SECCOMP_NOTIFY_ADD_LISTENER: Final = 13
ADD_BPF_DEVICE_CGROUP: Final = 14
FREEZE: Final = 15
UNFREEZE: Final = 16
GET_CGROUP2_FD: Final = 17
GET_INIT_PIDFD: Final = 18
GET_LIMIT_CGROUP: Final = 19
GET_LIMIT_CGROUP2_FD: Final = 20
GET_DEVPTS_FD: Final = 21
GET_SECCOMP_NOTIFY_FD: Final = 22
GET_CGROUP_CTX: Final = 23
GET_CGROUP_FD: Final = 24
GET_LIMIT_CGROUP_FD: Final = 25
GET_SYSTEMD_SCOPE: Final = 26

# cgroup_fd's hierarchy types; the kernel's CGROUP_SUPER_MAGIC and CGROUP2_SUPER_MAGIC (magic.h).
ANY: Final = 0
CGROUP_V1: Final = 0x27E0EB
CGROUP_V2: Final = 0x63677270

FRAME: Final = struct.Struct("=iiQ")  # request: cmd, datalen, value; response: ret, datalen, value
CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
WANTED: Final = struct.Struct(
    "=8i"
)  # by state: 1 interested; RUNNING 2: and keep me across a reboot
MESSAGE: Final = struct.Struct("=i256si")  # struct lxc_msg: type (0 state), name, value
CONSOLE: Final = struct.Struct("=BB6xQB7x")  # clear, read, read_max, write_logfile
DEVICE: Final = struct.Struct("=c3xii4si4x16x")  # type, major, minor, access, allow, list pointers
CONTEXT: Final = struct.Struct(
    "=iII20i4x"
)  # layout, utilities, number of descriptors, their (void) numbers
HIERARCHY: Final = struct.Struct("=iIii64s")  # layout, utilities, type, (void) fd, controller

NOBODY: Final = (0, 65534, 65534)  # the kernel's credentials for data that has none (scm.h)
DATA_LIMIT: Final = 8192  # PATH_MAX * 2, on both sides
LOG_LIMIT: Final = 1 << 28  # the console log may be longer, but not without end
BACKLOG: Final = 100
FDS_LIMIT: Final = 20
PENDING_LIMIT: Final = (
    64  # connections that owe us the rest of a request, or have not read their answer
)
KEPT_LIMIT: Final = 1024  # state clients, terminal leases and callers of stop
NAME_LIMIT: Final = 106  # sun_path's 108 bytes without the leading NUL and liblxc's trailing one
DEFAULT_TIMEOUT: Final = 10.0  # seconds
UNANSWERED_LIMIT: Final = 40  # times that lxc-wait asks a monitor that closes without an answer
POLL_INTERVAL: Final = 0.05  # seconds between two looks for a container that is not there yet


class CgroupContext(Record):
    """Answer of command 23. `layout` is liblxc's: 0 none, 1 legacy, 2 hybrid, 3 unified."""

    layout: int
    utilities: int
    fds: tuple[int, ...]


def fnv1a(data: bytes) -> int:
    """The 64-bit FNV-1a hash, with which liblxc shortens long names."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def address(lxcpath: str, name: str) -> bytes:
    """The socket's abstract address, with the leading NUL and no trailing one.

    `lxcpath` is used verbatim: a trailing slash makes another address, as in liblxc.
    """
    directory = os.fsencode(f"{lxcpath}/{name}")
    path = directory + b"/command"
    if len(path) >= NAME_LIMIT:
        path = b"lxc/%016x/command" % fnv1a(directory)
    return b"\0" + path


def small(value: int) -> int:
    """The int that a C program stored in the pointer field of a frame."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low


def c_string(text: str) -> bytes:
    """A text as the protocol carries it: with the zero byte at its end."""
    return os.fsencode(text) + b"\0"
