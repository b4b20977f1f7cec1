"""The tools' side of the command socket: ask the monitor of a container, ours or liblxc's, and wait for states.

Not the protocol itself (commands.py) and not the monitor's side (server.py).
Source of truth: reference of LXC, section 10 (observed on 5.0.2), and unix(7).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from atoll.errors import AtollError, CommandError, StateError, reason
from atoll.lifecycle.commands import (
    ADD_STATE_CLIENT,
    ANY,
    CONSOLE,
    CONSOLE_LOG,
    CONTEXT,
    CREDENTIALS,
    DATA_LIMIT,
    DEFAULT_TIMEOUT,
    FDS_LIMIT,
    FRAME,
    GET_CGROUP,
    GET_CGROUP2_FD,
    GET_CGROUP_CTX,
    GET_CGROUP_FD,
    GET_CLONE_FLAGS,
    GET_CONFIG_ITEM,
    GET_DEVPTS_FD,
    GET_INIT_PID,
    GET_INIT_PIDFD,
    GET_LIMIT_CGROUP,
    GET_LIMIT_CGROUP2_FD,
    GET_LIMIT_CGROUP_FD,
    GET_LXCPATH,
    GET_NAME,
    GET_STATE,
    GET_TTY_FD,
    HIERARCHY,
    LOG_LIMIT,
    MESSAGE,
    POLL_INTERVAL,
    SERVE_STATE_CLIENTS,
    STATES,
    STOP,
    STOPPED,
    UNANSWERED_LIMIT,
    WANTED,
    address,
    c_string,
    small,
)
from atoll.log import get_logger
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from atoll.linux.files import OwnedFd

log = get_logger(__name__)


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
        response = self._call(number, data=c_string(controller))
        if response is None:
            return None
        self._accept(number, response)
        return _text(response)

    def get_config_item(self, key: str) -> str | None:
        """The running configuration's text of a key; None when it is unset, empty or unknown."""
        response = self._call(GET_CONFIG_ITEM, data=c_string(key))
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
        try:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        except OSError as error:  # no descriptor is left
            raise _broken(self.name, number, error) from error
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
    return Response(ret=ret, value=small(value), data=data, fds=tuple(fds))


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


def _own(fd: int) -> OwnedFd:
    from atoll.linux.files import OwnedFd

    return OwnedFd(fd)


def _text(response: Response) -> str:
    return os.fsdecode(response.data.partition(b"\0")[0])
