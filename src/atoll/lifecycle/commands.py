"""liblxc's command socket, byte for byte: the monitor's server and the tools' client.

Not the states themselves (lifecycle/monitor.py decides them) and not lxc-monitord's sockets.
An abstract AF_UNIX stream socket named LXCPATH/NAME/command answers one request a connection;
frames are native-endian C structures.
Source of truth: reference of LXC, section 10 (observed on 5.0.2), and unix(7).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from atoll.errors import AtollError, CommandError, HostError, StateError, reason
from atoll.log import ERROR, get_logger
from atoll.loop import READ, WRITE
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Final, Protocol, Self

    from atoll.linux.files import OwnedFd
    from atoll.loop import Loop

    class Container(Protocol):
        """What the server asks of a container. None of the methods may block.

        Descriptors stay the container's: they are sent, never closed here. An OSError is answered
        with its negative errno.
        """

        @property
        def name(self) -> str:
            """The container's name."""

        @property
        def lxcpath(self) -> str:
            """The directory of its directory, verbatim as it was given."""

        @property
        def state(self) -> int:
            """An index of STATES."""

        @property
        def init_pid(self) -> int:
            """Init's process id in the monitor's pid namespace; 0 before it is cloned."""

        @property
        def clone_flags(self) -> int:
            """The CLONE_NEW* bits of the namespaces that are its own."""

        def init_pidfd(self) -> int | None:
            """A pidfd of init, or None before it is cloned."""

        def config_item(self, key: str) -> str | None:
            """The running configuration's text of a key; None or "" when not set or not known."""

        def stop(self) -> None:
            """Send the stop signal to init and thaw the container; do not wait. Raises OSError."""

        def set_state(self, state: int) -> None:
            """Enter a state that a client decided and `notify`; THAWED is kept as RUNNING."""

        def console(self, ttynum: int) -> tuple[int, int] | None:
            """Lease a terminal (-1 any, 0 console, else that tty): its number and master, or None."""

        def release_console(self, tty: int) -> None:
            """The client that leased this terminal has gone."""

        def console_log(
            self, *, clear: bool, read: bool, limit: int, write_file: bool
        ) -> bytes | None:
            """The ring buffer's oldest bytes (`limit` 0: all), or None when there is no buffer."""

        def cgroup_path(self, controller: str, *, limit: bool) -> str | None:
            """The cgroup's path below the hierarchy's root, or None: no such controller."""

        def cgroup_context(self) -> CgroupContext:
            """Layout, and the payload's directories of all hierarchies in their order."""

        def cgroup_fd(self, controller: str, kind: int, *, limit: bool) -> int | None:
            """Directory of one hierarchy (`kind`: ANY, CGROUP_V1, CGROUP_V2), None if not there."""

        def cgroup2_fd(self, *, limit: bool) -> int | None:
            """Directory in a pure unified layout; None when the layout is another one."""

        def devpts_fd(self) -> int | None:
            """The root of the container's devpts, or None when it has none."""


log = get_logger(__name__)

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


# ------------------------------------------------------------------------------------------ server


class Reply(Record):
    """One answer. `keep`: open until the client closes it; `silent`: nothing is sent."""

    ret: int = 0
    value: int = 0
    data: bytes = b""
    fds: tuple[int, ...] = ()
    keep: bool = False
    silent: bool = False


class _Connection:
    """One accepted connection, from its first byte to its end. Mutable by design."""

    __slots__ = ("allowed", "kept", "outgoing", "received", "sock", "tty", "wanted")

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.outgoing = b""
        self.allowed: bool | None = None  # once a sender is known, whether all were permitted
        self.kept = False
        self.wanted: tuple[int, ...] | None = None
        self.tty: int | None = None


class Ask:
    """One whole request as the answers see it: who asks whom, and what."""

    __slots__ = ("connection", "container", "data", "number", "value")

    def __init__(self, container: Container, connection: _Connection, request: bytes) -> None:
        self.container = container
        self.connection = connection
        self.number, _length, value = FRAME.unpack_from(request)
        self.value = _small(value)
        self.data = request[FRAME.size :]

    def text(self) -> str | None:
        """The data as a C string, or None when it is not exactly one."""
        if not self.data or self.data.find(b"\0") != len(self.data) - 1:
            return None
        return os.fsdecode(self.data[:-1])


class CommandServer:
    """A container's command socket. It is bound before the monitor is forked and lives across reboots.

    Nothing that a client does blocks or ends the monitor: reads and writes never wait, and when too
    many clients owe us the rest of a request the oldest is dropped.
    """

    def __init__(self, listener: _socket.socket, lxcpath: str, name: str) -> None:
        self.lxcpath = lxcpath
        self.name = name
        self._listener = listener
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._connections: dict[int, _Connection] = {}  # by fd, oldest first
        self._loop: Loop | None = None
        self._container: Container | None = None

    @classmethod
    def listen(cls, lxcpath: str, name: str) -> Self:
        """Bind and listen.

        Raises StateError when the container runs already, HostError when the address is held by
        another user, OSError otherwise.
        """
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            listener.bind(address(lxcpath, name))
            listener.listen(BACKLOG)
            listener.setblocking(False)
            return cls(listener, lxcpath, name)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
            _refuse_squatter(lxcpath, name)
            raise StateError(
                f"container {name} is already running", now="RUNNING", wanted="STOPPED"
            ) from error

    def save(self) -> tuple[int, list[tuple[int, bool, tuple[int, ...] | None, int | None]]] | None:
        """Listening descriptor and connections for the same process after an exec: (fd, kept, wanted, tty) of each.

        None while a request or an answer is under way.
        """
        there = self._connections.items()
        if any(connection.received or connection.outgoing for _fd, connection in there):
            return None
        return self.fileno(), [(fd, c.kept, c.wanted, c.tty) for fd, c in there]

    @classmethod
    def restore(
        cls,
        saved: tuple[int, list[tuple[int, bool, tuple[int, ...] | None, int | None]]],
        lxcpath: str,
        name: str,
    ) -> Self:
        """The server of save()."""
        listener = _socket.socket(fileno=saved[0])
        listener.setblocking(False)
        server = cls(listener, lxcpath, name)
        for fd, kept, wanted, tty in saved[1]:
            connection = server._connections[fd] = _Connection(_socket.socket(fileno=fd))
            connection.sock.setblocking(False)
            connection.kept, connection.wanted, connection.tty = kept, wanted, tty
        return server

    def fileno(self) -> int:
        """The listening descriptor: what must stay open when a daemon closes what it inherited."""
        return self._listener.fileno()

    def filenos(self) -> tuple[int, ...]:
        """Every descriptor of the server: the listening one, the reserve, and the connections."""
        return (self.fileno(), self._reserve, *self._connections)

    def leased(self) -> tuple[int, ...]:
        """The ttys whose clients are connected."""
        return tuple([c.tty for c in self._connections.values() if c.tty is not None])

    def serve(self, loop: Loop, container: Container) -> None:
        """Answer from `loop` for `container`; called again for its next life after a reboot."""
        for fd, connection in self._connections.items():
            if self._loop is not None:
                self._loop.forget(fd)
            self._watch(loop, connection)
        if self._loop is not None:
            self._loop.forget(self.fileno())
        self._loop, self._container = loop, container
        loop.watch(self.fileno(), self._accept)

    def notify(self, state: int) -> None:
        """Tell the state clients that wait for `state`; each is told once and then let go."""
        message = MESSAGE.pack(0, os.fsencode(self.name)[:255], state)
        for connection in tuple(self._connections.values()):
            wanted = connection.wanted
            if wanted is None or not 0 <= state < len(wanted) or not wanted[state]:
                continue
            connection.kept, connection.wanted = False, None
            connection.outgoing += message
            self._flush(connection)

    def reboot(self) -> None:
        """Let all go but the state clients that asked to be kept (RUNNING with the value 2)."""
        for connection in tuple(self._connections.values()):
            if connection.wanted is None or connection.wanted[RUNNING] != 2:
                self._drop(connection)

    def close(self) -> None:
        """Close everything. For state clients and callers of stop the end of file means STOPPED."""
        if self._listener.fileno() >= 0:
            if self._loop is not None:
                self._loop.forget(self.fileno())
            self._listener.close()  # first: who sees the end of file and asks again is refused then
        for connection in tuple(self._connections.values()):
            self._drop(connection)
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    # Accepting -------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        for _turn in range(16):  # other descriptors of the loop want their turn as well
            try:
                fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - C's name
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    self._shed()
                else:
                    log.debug("cannot accept a command client: %s", reason(error))
                return
            self._admit(_socket.socket(fileno=fd))

    def _admit(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        connection = _Connection(sock)
        self._connections[sock.fileno()] = connection
        if self._loop is not None:
            self._watch(self._loop, connection)
        self._receive(connection)  # most requests are here already
        self._limit(kept=False, most=PENDING_LIMIT)

    def _shed(self) -> None:
        """No descriptor is left: drop the oldest unfinished client, else refuse the new one."""
        if self._limit(kept=False, most=0, only_one=True):
            return
        # A connection left in the queue would wake the loop for ever: make room to refuse it.
        os.close(self._reserve)
        self._reserve = -1
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - C's name
            os.close(fd)
        except OSError as error:
            log.debug("cannot turn a command client away: %s", reason(error))
        finally:
            self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _limit(self, *, kept: bool, most: int, only_one: bool = False) -> bool:
        """Drop the oldest connections of a kind above `most`; was any dropped?"""
        of_kind = [item for item in self._connections.values() if item.kept == kept]
        surplus = of_kind[: max(len(of_kind) - most, 0)]
        for connection in surplus[:1] if only_one else surplus:
            log.debug("drop the oldest command client of %s: too many", self.name)
            self._drop(connection)
        return bool(surplus)

    # One connection --------------------------------------------------------------------------

    def _watch(self, loop: Loop, connection: _Connection) -> None:
        events = WRITE if connection.outgoing else READ
        loop.watch(connection.sock.fileno(), lambda _events: self._ready(connection), events=events)

    def _ready(self, connection: _Connection) -> None:
        if connection.outgoing:
            self._flush(connection)
        elif connection.kept:
            self._drop(connection)  # its client closed it, or said more than its one request
        else:
            self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        """Take what has come; answer when the request is whole."""
        missing = _missing(connection.received)
        while missing > 0:
            try:
                data, control, _flags, _peer = connection.sock.recvmsg(
                    missing, _socket.CMSG_SPACE(CREDENTIALS.size), _socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, control = b"", []
            if not data:
                self._drop(connection)
                return
            permitted = _permitted(control)
            if permitted is not None:
                connection.allowed = permitted and connection.allowed is not False
            connection.received += data
            missing = _missing(connection.received)
        if missing < 0:
            log.debug("drop a command client of %s: its request is malformed", self.name)
            self._drop(connection)
            return
        self._answer(connection)

    def _answer(self, connection: _Connection) -> None:
        request, connection.received = connection.received, b""
        reply = self._decide(connection, request)
        if connection.sock.fileno() not in self._connections:
            return  # what was asked for ended the server
        if reply is None:
            self._drop(connection)
            return
        connection.kept = reply.keep
        if not reply.silent:
            self._send(connection, reply)
        if reply.keep:
            self._limit(kept=True, most=KEPT_LIMIT)

    def _decide(self, connection: _Connection, request: bytes) -> Reply | None:
        if self._container is None:
            return None
        ask = Ask(self._container, connection, request)
        if not connection.allowed:
            log.info("refused command %d from another user", ask.number)
            return Reply(ret=-errno.EPERM)
        if not 0 <= ask.number < len(ANSWERS):
            return Reply(ret=-errno.ENOSYS)
        try:
            answer: Callable[[Ask], Reply | None] = ANSWERS[ask.number]
            return answer(ask)
        except OSError as error:
            log.debug("command %d failed: %s", ask.number, reason(error))
            return Reply(ret=-(error.errno or errno.EIO))
        except Exception as error:  # noqa: BLE001 - a defect in one answer must not end a container
            log.log(ERROR, "command %d failed: %s", ask.number, reason(error))
            return None

    def _send(self, connection: _Connection, reply: Reply) -> None:
        # liblxc reads data only when the pointer field is not zero; its value means nothing to it.
        value = 1 if reply.data else reply.value & 0xFFFFFFFFFFFFFFFF
        frame = FRAME.pack(reply.ret, len(reply.data), value)
        rights = struct.pack(f"={len(reply.fds)}i", *reply.fds)
        control = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if reply.fds else []
        try:
            sent = connection.sock.sendmsg([frame], control, _socket.MSG_NOSIGNAL)
        except OSError as error:
            log.debug("cannot answer a command client: %s", reason(error))
            self._drop(connection)
            return
        connection.outgoing = frame[sent:] + reply.data
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        """Send what the socket takes now, the rest later; then close, unless it is kept."""
        while connection.outgoing:
            try:
                sent = connection.sock.send(connection.outgoing, _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self._drop(connection)
                return
            connection.outgoing = connection.outgoing[sent:]
        if not connection.outgoing and not connection.kept:
            self._drop(connection)
        elif self._loop is not None:
            self._watch(self._loop, connection)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.sock.fileno()
        if self._connections.pop(fd, None) is None:
            return
        if self._loop is not None:
            self._loop.forget(fd)
        connection.sock.close()
        if connection.tty is not None and self._container is not None:
            tty, connection.tty = connection.tty, None
            self._container.release_console(tty)


def _missing(received: bytes) -> int:
    """How many bytes the request still lacks; -1 when it can never become one."""
    if len(received) < FRAME.size:
        return FRAME.size - len(received)
    number, length, _value = FRAME.unpack_from(received)
    if number == SECCOMP_NOTIFY_ADD_LISTENER and length == 0:
        length = 1  # the byte that carries the listener's descriptor
    if not 0 <= length <= DATA_LIMIT:
        return -1
    return FRAME.size + int(length) - len(received)


def _permitted(control: Iterable[tuple[int, int, bytes]]) -> bool | None:
    """Is the sender root, or the monitor's user *and* group? The kernel vouches for it.

    None when it does not say: data without credentials of its own, sent between accept and
    SO_PASSCRED. So a request's header, which clients send with theirs, decides.
    """
    for level, kind, data in control:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS):
            pid, uid, gid = CREDENTIALS.unpack(data[: CREDENTIALS.size])
            if (pid, uid, gid) != NOBODY:
                return uid == 0 or (uid, gid) == (os.getuid(), os.getgid())
    return None


def _small(value: int) -> int:
    """The int that a C program stored in the pointer field."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low


# ----------------------------------------------------------------------------------------- answers
# One function a command: (ask) -> Reply, or None to close without a word.


def _get_tty(ask: Ask) -> Reply:
    leased = ask.container.console(ask.value)
    if leased is None:
        return Reply(ret=-errno.EBADF)
    ask.connection.tty, master = leased
    return Reply(value=ask.connection.tty, fds=(master,), keep=True)


def _close(_ask: Ask) -> None:
    return None


def _stop(ask: Ask) -> Reply:
    ask.container.stop()
    return Reply(keep=True, silent=True)  # success is the end of file when the monitor exits


def _get_state(ask: Ask) -> Reply:
    return Reply(value=ask.container.state)


def _get_init_pid(ask: Ask) -> Reply:
    return Reply(value=ask.container.init_pid)


def _get_clone_flags(ask: Ask) -> Reply:
    return Reply(value=ask.container.clone_flags)


def _get_cgroup(ask: Ask) -> Reply | None:
    if not ask.data:
        return None
    controller = ask.text()
    if controller is None:
        return Reply(ret=-errno.EINVAL)
    path = ask.container.cgroup_path(controller, limit=ask.number == GET_LIMIT_CGROUP)
    return None if path is None else Reply(data=_c_string(path))


def _get_config_item(ask: Ask) -> Reply:
    key = ask.text()
    if key is None:
        return Reply(ret=-errno.EINVAL)
    value = ask.container.config_item(key)
    return Reply(data=_c_string(value)) if value else Reply(ret=-1)


def _get_name(ask: Ask) -> Reply:
    return Reply(data=_c_string(ask.container.name))


def _get_lxcpath(ask: Ask) -> Reply:
    return Reply(data=_c_string(ask.container.lxcpath))


def _add_state_client(ask: Ask) -> Reply | None:
    if len(ask.data) != WANTED.size:
        return None
    wanted = WANTED.unpack(ask.data)
    state = ask.container.state
    if 0 <= state < len(wanted) and wanted[state] == 1:
        return Reply(ret=state, value=state)
    ask.connection.wanted = wanted
    return Reply(ret=len(STATES), value=len(STATES), keep=True)


def _console_log(ask: Ask) -> Reply:
    if len(ask.data) != CONSOLE.size:
        return Reply(ret=-errno.EINVAL)
    clear, read, limit, write_file = CONSOLE.unpack(ask.data)
    data = ask.container.console_log(
        clear=bool(clear), read=bool(read), limit=limit, write_file=bool(write_file)
    )
    if data is None:
        return Reply(ret=-errno.EFAULT)
    if read and not data:
        return Reply(ret=-errno.ENODATA)
    return Reply(data=data)


def _serve_state_clients(ask: Ask) -> Reply:
    if not 0 <= ask.value < len(STATES):
        return Reply(ret=-errno.EINVAL)  # liblxc stores any number, and reads past its table then
    ask.container.set_state(ask.value)
    return Reply()


def _add_device(ask: Ask) -> Reply:
    return Reply(ret=-errno.EINVAL if len(ask.data) != DEVICE.size else -errno.EPERM)


def _get_cgroup2_fd(ask: Ask) -> Reply:
    fd = ask.container.cgroup2_fd(limit=ask.number == GET_LIMIT_CGROUP2_FD)
    return Reply(ret=-errno.EINVAL) if fd is None else Reply(fds=(fd,))


def _get_init_pidfd(ask: Ask) -> Reply:
    return _one_fd(ask.container.init_pidfd())


def _get_devpts_fd(ask: Ask) -> Reply:
    return _one_fd(ask.container.devpts_fd())


def _get_cgroup_ctx(ask: Ask) -> Reply:
    if not ask.data:
        return Reply(ret=-errno.EINVAL)
    context = ask.container.cgroup_context()
    fds = context.fds[:FDS_LIMIT]
    numbers = fds + (-errno.EBADF,) * (FDS_LIMIT - len(fds))
    data = CONTEXT.pack(context.layout, context.utilities, len(fds), *numbers)
    return Reply(ret=0 if fds else -errno.ENOENT, data=data[: len(ask.data)], fds=fds)


def _get_cgroup_fd(ask: Ask) -> Reply:
    if len(ask.data) != HIERARCHY.size:
        return Reply(ret=-errno.EINVAL)
    layout, utilities, kind, _fd, name = HIERARCHY.unpack(ask.data)
    controller = os.fsdecode(name.partition(b"\0")[0])
    limit = ask.number == GET_LIMIT_CGROUP_FD
    fd = ask.container.cgroup_fd(controller, kind, limit=limit)
    if fd is None:
        return Reply(ret=-errno.ENOENT)
    return Reply(data=HIERARCHY.pack(layout, utilities, kind, fd, name), fds=(fd,))


def _unavailable(number: int) -> Callable[[Ask], Reply]:
    """The answer of a command whose subject this monitor does not have."""
    return lambda _ask: Reply(ret=-number)


def _one_fd(fd: int | None) -> Reply:
    return Reply(ret=-errno.EBADF) if fd is None else Reply(fds=(fd,))


def _c_string(text: str) -> bytes:
    return os.fsencode(text) + b"\0"


ANSWERS: Final[tuple[Callable[[Ask], Reply | None], ...]] = (
    _get_tty,
    _close,  # terminal_winch: obsolete
    _stop,
    _get_state,
    _get_init_pid,
    _get_clone_flags,
    _get_cgroup,
    _get_config_item,
    _get_name,
    _get_lxcpath,
    _add_state_client,
    _console_log,
    _serve_state_clients,
    _unavailable(errno.EINVAL),  # seccomp_notify_add_listener: no proxy is configured
    _add_device,
    _unavailable(errno.ENOENT),  # freeze, unfreeze: the tools do it directly
    _unavailable(errno.ENOENT),
    _get_cgroup2_fd,
    _get_init_pidfd,
    _get_cgroup,
    _get_cgroup2_fd,
    _get_devpts_fd,
    _unavailable(errno.EBADF),  # get_seccomp_notify_fd
    _get_cgroup_ctx,
    _get_cgroup_fd,
    _get_cgroup_fd,
    _unavailable(errno.EINVAL),  # get_systemd_scope
)


# ------------------------------------------------------------------------------------------ client


class Response(Record):
    """What the server answered; the caller owns `fds`."""

    ret: int
    value: int
    data: bytes
    fds: tuple[int, ...]


class Terminal:
    """A leased terminal: its number and master. Closing it ends the lease."""

    def __init__(self, tty: int, master: OwnedFd, lease: _socket.socket) -> None:
        self.tty = tty
        self.master = master
        self._lease = lease

    def close(self) -> None:
        """Give the terminal back."""
        self.master.close()
        self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class StateClient:
    """A registration for states. `state` is set when the container is in one of them already."""

    def __init__(self, sock: _socket.socket | None, name: str, state: int | None) -> None:
        self._sock = sock
        self._name = name
        self.state = state

    def fileno(self) -> int:
        """A descriptor that is readable when the state is known; -1 when it is known already."""
        return self._sock.fileno() if self._sock is not None else -1

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait `timeout` seconds (None: for ever) for one of the states; None when time is up.

        The monitor's end counts as STOPPED, whether STOPPED was asked for or not.
        """
        if self.state is not None or self._sock is None:
            return self.state
        try:
            data = _receive_exactly(self._sock, MESSAGE.size, _deadline(timeout))
        except TimeoutError:
            return None
        except OSError as error:
            raise _broken(self._name, ADD_STATE_CLIENT, error) from error
        self.state = MESSAGE.unpack(data)[2] if len(data) == MESSAGE.size else STOPPED
        self.close()
        return self.state

    def close(self) -> None:
        """Take the registration back."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class CommandClient:
    """Asks a running container's monitor, ours or liblxc's.

    Every call connects anew and ends within `timeout` seconds. Calls raise StateError when the
    container does not run (only `get_state` answers STOPPED then) and CommandError when the answer
    is late, broken, foreign or an error.
    """

    def __init__(self, lxcpath: str, name: str, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        self.lxcpath = lxcpath
        self.name = name
        self.timeout = timeout
        self._address = address(lxcpath, name)

    @classmethod
    def at(cls, where: bytes, *, timeout: float | None = DEFAULT_TIMEOUT) -> Self:
        """A client of an address whose container is not known (hashed ones)."""
        client = cls("", os.fsdecode(where[1:]), timeout=timeout)
        client._address = where
        return client

    def get_state(self) -> int:
        """The state as an index of STATES; STOPPED when nobody listens."""
        try:
            return self._number(GET_STATE)
        except StateError:
            return STOPPED

    def get_init_pid(self) -> int:
        """Init's process id in the monitor's pid namespace; 0 before it is cloned."""
        return self._number(GET_INIT_PID)

    def get_init_pidfd(self) -> OwnedFd:
        """A pidfd of init. Older monitors know only its pid: it is opened, then asked for again."""
        try:
            return self._descriptor(GET_INIT_PIDFD)
        except CommandError as error:
            if error.errno not in {errno.EBADF, errno.ENOSYS}:
                raise
        return self._open_init(self.get_init_pid())

    def _open_init(self, pid: int) -> OwnedFd:
        from atoll.linux import process

        if pid <= 0:
            raise self._not_running()
        try:
            pidfd = process.pidfd_open(pid)
        except ProcessLookupError as error:
            raise self._not_running() from error
        try:
            if self.get_init_pid() != pid:  # it died, and the number may be somebody else's now
                raise self._not_running()
        except BaseException:
            pidfd.close()
            raise
        return pidfd

    def get_clone_flags(self) -> int:
        """The CLONE_NEW* bits of the container's own namespaces."""
        return self._number(GET_CLONE_FLAGS) & 0xFFFFFFFF

    def get_cgroup(self, controller: str, *, limit: bool = False) -> str | None:
        """The cgroup's path below the hierarchy's root, as the monitor spells it (with or without `/`).

        None for an unknown controller.
        """
        number = GET_LIMIT_CGROUP if limit else GET_CGROUP
        response = self._call(number, data=_c_string(controller))
        if response is None:
            return None
        self._accept(number, response)
        return _text(response)

    def get_config_item(self, key: str) -> str | None:
        """The running configuration's text of a key; None when it is unset, empty or unknown."""
        response = self._call(GET_CONFIG_ITEM, data=_c_string(key))
        if response is None or response.ret < 0:
            return None
        return _text(response)

    def get_name(self) -> str:
        """The container's name (for hashed addresses)."""
        return _text(self._answered(GET_NAME))

    def get_lxcpath(self) -> str:
        """The container's lxcpath (for hashed addresses)."""
        return _text(self._answered(GET_LXCPATH))

    def stop(self, *, timeout: float | None = None) -> None:
        """Kill the container, wait `timeout` seconds (None: for ever) for its monitor's end."""
        response = self._call(STOP, timeout=timeout)
        if response is not None:
            self._accept(STOP, response)

    def set_state(self, state: int) -> None:
        """Make the monitor take a state (freeze, thaw) and notify the state clients."""
        self._answered(SERVE_STATE_CLIENTS, value=state)

    def add_state_client(self, wanted: Sequence[int]) -> StateClient:
        """Register for states: eight numbers by state; 1 interested, RUNNING 2: after a reboot."""
        sock, response = self._exchange(ADD_STATE_CLIENT, data=WANTED.pack(*wanted))
        if response is None or not 0 <= response.ret <= len(STATES):
            sock.close()
            raise self._refused(ADD_STATE_CLIENT, response)
        if response.ret < len(STATES):
            sock.close()
            return StateClient(None, self.name, response.ret)
        return StateClient(sock, self.name, None)

    def get_tty_fd(self, ttynum: int = -1) -> Terminal:
        """Lease a terminal: -1 any free one, 0 the console. CommandError(EBADF): busy, not there."""
        sock, response = self._exchange(GET_TTY_FD, value=ttynum)
        if response is None or response.ret < 0 or len(response.fds) != 1:
            sock.close()
            raise self._refused(GET_TTY_FD, response)
        return Terminal(response.value, _own(response.fds[0]), sock)

    def get_devpts_fd(self) -> OwnedFd:
        """The root of the container's devpts (O_PATH)."""
        return self._descriptor(GET_DEVPTS_FD)

    def get_cgroup2_fd(self, *, limit: bool = False) -> OwnedFd:
        """The cgroup's directory in a pure unified layout."""
        return self._descriptor(GET_LIMIT_CGROUP2_FD if limit else GET_CGROUP2_FD)

    def get_cgroup_context(self) -> tuple[int, tuple[OwnedFd, ...]]:
        """liblxc's layout number, and the payload's directories of all hierarchies."""
        response = self._answered(GET_CGROUP_CTX, data=bytes(CONTEXT.size))
        fds = tuple(_own(fd) for fd in response.fds)
        if len(response.data) < CONTEXT.size or not fds:
            for fd in fds:
                fd.close()
            raise self._refused(GET_CGROUP_CTX, response)
        return CONTEXT.unpack(response.data)[0], fds

    def get_cgroup_fd(
        self, controller: str, *, kind: int = ANY, limit: bool = False
    ) -> OwnedFd | None:
        """The directory of one controller's hierarchy, or None when there is no such controller."""
        request = HIERARCHY.pack(0, 0, kind, -errno.EBADF, os.fsencode(controller)[:63])
        try:
            return self._descriptor(GET_LIMIT_CGROUP_FD if limit else GET_CGROUP_FD, data=request)
        except CommandError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def console_log(
        self, *, clear: bool = False, read: bool = True, limit: int = 0, write_file: bool = False
    ) -> bytes:
        """Read the console's ring buffer (`limit` bytes, 0: all). CommandError(EFAULT): none."""
        response = self._call(CONSOLE_LOG, data=CONSOLE.pack(clear, read, limit, write_file))
        if response is not None and response.ret == -errno.ENODATA:
            return b""
        return self._accept(CONSOLE_LOG, response).data

    # The exchange ----------------------------------------------------------------------------

    def _number(self, number: int) -> int:
        return self._answered(number).value

    def _descriptor(self, number: int, *, data: bytes = b"") -> OwnedFd:
        response = self._answered(number, data=data)
        if len(response.fds) != 1:
            for fd in response.fds:
                os.close(fd)
            raise self._refused(number, response)
        return _own(response.fds[0])

    def _answered(self, number: int, *, value: int = 0, data: bytes = b"") -> Response:
        return self._accept(number, self._call(number, value=value, data=data))

    def _accept(self, number: int, response: Response | None) -> Response:
        if response is None or response.ret < 0:
            for fd in response.fds if response is not None else ():
                os.close(fd)
            raise self._refused(number, response)
        return response

    def _refused(self, number: int, response: Response | None) -> AtollError:
        head = f"container {self.name}: command {number}"
        if response is None:
            if not self._is_served():  # the monitor ended while we asked
                return self._not_running()
            return CommandError(f"{head} was not answered", errno=errno.ECONNRESET)
        if response.ret >= 0:
            return CommandError(f"{head} was answered without what was asked for")
        code = -response.ret
        foreign = code == errno.EPERM and os.geteuid() != 0
        return CommandError(
            f"{head} was refused: {reason(OSError(code, ''))}",
            errno=code,
            fix="ask as root, or as the user and group that started it" if foreign else None,
        )

    def _is_served(self) -> bool:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._connect(sock)
        except (StateError, OSError):
            return False
        else:
            return True
        finally:
            sock.close()

    def _not_running(self) -> StateError:
        return StateError(f"container {self.name} is not running", now="STOPPED", wanted="RUNNING")

    def _call(
        self, number: int, *, value: int = 0, data: bytes = b"", timeout: float | None = -1
    ) -> Response | None:
        sock, response = self._exchange(number, value=value, data=data, timeout=timeout)
        sock.close()
        return response

    def _exchange(
        self, number: int, *, value: int = 0, data: bytes = b"", timeout: float | None = -1
    ) -> tuple[_socket.socket, Response | None]:
        """Send one request, read its answer (None: closed without one). The caller closes."""
        deadline = _deadline(self.timeout if timeout == -1 else timeout)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            try:
                self._connect(sock)
                _send_request(sock, number, value, data, deadline)
                return sock, _receive_response(sock, number, deadline)
            except OSError as error:
                raise _broken(self.name, number, error) from error
        except BaseException:
            sock.close()
            raise

    def _connect(self, sock: _socket.socket) -> None:
        # A full backlog makes a non-blocking connect fail at once: let the kernel wait (unix(7)).
        whole = int(DEFAULT_TIMEOUT if self.timeout is None else max(self.timeout, 1))
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, struct.pack("@ll", whole, 0))
        try:
            sock.connect(self._address)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise self._not_running() from error
        _check_peer(sock, self.lxcpath, self.name)


def wait_states(
    lxcpath: str, name: str, states: Iterable[int], timeout: float | None = None
) -> int | None:
    """Wait as lxc-wait does for one of `states`, `timeout` seconds or for ever (None).

    A container that nobody monitors counts as STOPPED; when STOPPED is not wanted, it is waited
    for. Returns the state that ended the wait, which is STOPPED, wanted or not, when the monitor
    ended; None when time was up.
    """
    chosen = frozenset(states)
    deadline = _deadline(timeout)
    wanted = [int(state in chosen) for state in range(len(STATES))]
    client = CommandClient(lxcpath, name)
    patience = UNANSWERED_LIMIT
    while True:
        try:
            with client.add_state_client(wanted) as registration:
                return registration.wait(_left(deadline))
        except StateError:
            if STOPPED in chosen:
                return STOPPED
        except CommandError as error:
            patience -= 1
            if error.errno != errno.ECONNRESET or patience == 0:
                raise  # a monitor that is ending closes without an answer, but not for long
        left = _left(deadline)
        if left is not None and left <= 0:
            return None
        time.sleep(POLL_INTERVAL if left is None else min(POLL_INTERVAL, left))


def active_containers(lxcpath: str) -> tuple[str, ...]:
    """The sorted names of the containers of `lxcpath` that have a monitor (/proc/net/unix)."""
    names: set[str] = set()
    prefix = os.fsencode(lxcpath) + b"/"
    for path in _listening(b"/command"):
        if path.startswith(prefix):
            name = path[len(prefix) : -len(b"/command")]
            if name and b"/" not in name:
                names.add(os.fsdecode(name))
        elif path.startswith(b"lxc/") and len(path) == len(b"lxc//command") + 16:
            client = CommandClient.at(b"\0" + path, timeout=1)
            try:
                if client.get_lxcpath() == lxcpath:
                    names.add(client.get_name())
            except (CommandError, StateError) as error:
                log.debug("cannot ask %s: %s", path, reason(error))
    return tuple(sorted(names))


def _listening(suffix: bytes) -> set[bytes]:
    """Abstract names in use that end so, without the `@`."""
    with open("/proc/net/unix", "rb") as file:
        lines = file.read().split(b"\n")
    paths = (line.split(b" ", 7)[-1].lstrip() for line in lines if line.endswith(suffix))
    return {path.partition(b"@")[2] for path in paths if b"@" in path}


def _send_request(
    sock: _socket.socket, number: int, value: int, data: bytes, deadline: float | None
) -> None:
    frame = FRAME.pack(number, len(data), value & 0xFFFFFFFFFFFFFFFF)
    credentials = CREDENTIALS.pack(os.getpid(), os.getuid(), os.getgid())
    control = [(_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS, credentials)]
    _limit_wait(sock, deadline)
    sock.sendmsg([frame], control, _socket.MSG_NOSIGNAL)
    if data:
        try:
            sock.send(data, _socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            return  # refused before it was read: the answer says why


def _receive_response(sock: _socket.socket, number: int, deadline: float | None) -> Response | None:
    fds: list[int] = []
    try:
        frame = _receive_exactly(sock, FRAME.size, deadline, fds)
        if len(frame) < FRAME.size:
            if frame:
                raise CommandError(f"command {number}: the answer breaks off")
            return None
        ret, length, value = FRAME.unpack(frame)
        data = b""
        if length > (LOG_LIMIT if number == CONSOLE_LOG else DATA_LIMIT):
            raise CommandError(f"command {number}: an answer of {length} bytes is too long")
        if length > 0 and value:
            data = _receive_exactly(sock, length, deadline, fds)
            if len(data) < length:
                raise CommandError(f"command {number}: the answer breaks off")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Response(ret=ret, value=_small(value), data=data, fds=tuple(fds))


def _receive_exactly(
    sock: _socket.socket, size: int, deadline: float | None, fds: list[int] | None = None
) -> bytes:
    """Read `size` bytes, fewer at end of file; descriptors that come are appended to `fds`."""
    received = b""
    while len(received) < size:
        _limit_wait(sock, deadline)
        room = _socket.CMSG_SPACE(FDS_LIMIT * 4) if fds is not None else 0
        try:
            data, control, _flags, _peer = sock.recvmsg(
                size - len(received), room, _socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return received  # closed with our request unread: the same as closed
        for level, kind, rights in control:
            if fds is not None and (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                fds.extend(struct.unpack(f"={len(rights) // 4}i", rights))
        if not data:
            break
        received += data
    return received


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _limit_wait(sock: _socket.socket, deadline: float | None) -> None:
    left = _left(deadline)
    if left is not None and left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    sock.settimeout(left)


def _broken(name: str, number: int, error: OSError) -> CommandError:
    late = isinstance(error, (TimeoutError, BlockingIOError))
    why = "no answer in time" if late else reason(error)
    return CommandError(
        f"container {name}: command {number} failed: {why}",
        errno=errno.ETIMEDOUT if late else error.errno,
    )


def _check_peer(sock: _socket.socket, lxcpath: str, name: str) -> None:
    """Believe only root, ourselves and the lxcpath's owner.

    Any user can bind the abstract name of a container that does not run; the pid that it answered
    would then be signalled by root.
    """
    uid = _peer_uid(sock)
    if uid in {0, os.geteuid()} or (lxcpath and uid == _owner(lxcpath)):
        return
    raise CommandError(
        f"the command socket of container {name} is held by a process of user {uid}",
        errno=errno.EPERM,
    )


def _peer_uid(sock: _socket.socket) -> int:
    peer = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, CREDENTIALS.size)
    uid: int = CREDENTIALS.unpack(peer)[1]
    return uid


def _owner(directory: str) -> int | None:
    try:
        return os.stat(directory).st_uid
    except OSError:
        return None


def _refuse_squatter(lxcpath: str, name: str) -> None:
    """Say so when the address is taken by a user who has no business with this container."""
    try:
        CommandClient(lxcpath, name, timeout=1).get_state()
    except CommandError as error:
        if error.errno == errno.EPERM:
            raise HostError(
                f"cannot listen for commands: {error.message}", errno=errno.EADDRINUSE
            ) from error


def _own(fd: int) -> OwnedFd:
    from atoll.linux.files import OwnedFd

    return OwnedFd(fd)


def _text(response: Response) -> str:
    return os.fsdecode(response.data.partition(b"\0")[0])
