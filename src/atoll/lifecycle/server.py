"""The monitor's side of the command socket: it answers every command of liblxc's protocol, and never waits for a client.

Not the protocol itself (commands.py), not the tools' side (client.py), not the states (monitor.py decides them).
Source of truth: reference of LXC, section 10 (observed on 5.0.2), and unix(7).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from atoll.errors import CommandError, HostError, StateError, reason
from atoll.lifecycle.commands import (
    BACKLOG,
    CREDENTIALS,
    DATA_LIMIT,
    FRAME,
    KEPT_LIMIT,
    MESSAGE,
    NOBODY,
    PENDING_LIMIT,
    RUNNING,
    SECCOMP_NOTIFY_ADD_LISTENER,
    address,
    small,
)
from atoll.log import ERROR, get_logger
from atoll.loop import READ, WRITE
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol, Self

    from atoll.lifecycle.commands import CgroupContext
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
        self.value = small(value)
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
        from atoll.lifecycle.answers import ANSWERS

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


def _refuse_squatter(lxcpath: str, name: str) -> None:
    """Say so when the address is taken by a user who has no business with this container."""
    from atoll.lifecycle.client import CommandClient

    try:
        CommandClient(lxcpath, name, timeout=1).get_state()
    except CommandError as error:
        if error.errno == errno.EPERM:
            raise HostError(
                f"cannot listen for commands: {error.message}", errno=errno.EADDRINUSE
            ) from error
