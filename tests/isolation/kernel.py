"""The system calls of the isolation that Python 3.11's `os` lacks, and file-system chores beside them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18

MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def _check(result: int, what: str) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def mount(
    source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str = ""
) -> None:
    def encoded(text: str | None) -> bytes | None:
        return os.fsencode(text) if text is not None else None

    result = _libc.mount(
        encoded(source), os.fsencode(target), encoded(fstype), flags, data.encode()
    )
    _check(result, f"mount {source} on {target} type {fstype} ({data})")


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def mounts_below(top: str) -> list[tuple[str, str]]:
    """(mount point, file system type) of what is mounted strictly beneath `top`, in order."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, right = line.split(" - ", 1)
            point = left.split()[4]
            if point.startswith(top.rstrip("/") + "/"):
                found.append((point, right.split()[0]))
    return found


def loopback_up() -> None:
    """What `ip link set lo up` does, without needing iproute2 (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def copy_nodes(source: str, target: str, *, skip: tuple[str, ...] = ()) -> None:
    """Copy directories, device nodes, symbolic links and FIFOs with owner and mode; leave out the rest."""
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.name in skip:
                continue
            status = entry.stat(follow_symlinks=False)
            path = f"{target}/{entry.name}"
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFLNK:
                os.symlink(os.readlink(entry.path), path)
            elif kind == stat.S_IFDIR:
                os.mkdir(path)
                copy_nodes(entry.path, path)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
                os.mknod(path, status.st_mode, status.st_rdev)
            else:
                continue
            os.lchown(path, status.st_uid, status.st_gid)
            if kind != stat.S_IFLNK:
                os.chmod(path, stat.S_IMODE(status.st_mode))
