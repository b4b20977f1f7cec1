"""The relay: it carries bytes between a container's pty and a user, a log file and a ring buffer; and the leases of ttys.

Ordinary code of the monitor and of lxc-attach, no steps. Nothing here blocks.
Source of truth: reference of LXC, section 7; pty(7), termios(3).
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from errno import EBADF, EIO

from atoll.errors import CommandError, HostError, reason
from atoll.linux import files
from atoll.log import get_logger
from atoll.loop import READ, WRITE
from atoll.resources.terminal import CONSOLE, CONSOLE_LOG, CONSOLE_USER, TTYS, Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from atoll.config.text import Config
    from atoll.linux.files import OwnedFd
    from atoll.loop import Loop
    from atoll.plan import Handler

log = get_logger(__name__)


def relay(
    config: Config, h: Handler, loop: Loop, stdio: tuple[int, int, int] | None
) -> Relay | None:
    """The relay of a container that runs; None when it has no console.

    Shown on the terminal of lxc.console.path, else on the controlling terminal of this process, unless init got `stdio`.
    """
    pty = h.get(CONSOLE)
    if pty is None:
        return None
    section = config[Console]
    ring = Ring(section.buffer_size) if section.buffer_size else None
    made = Relay(loop, pty.ptmx.fileno(), log_file=h.take(CONSOLE_LOG), ring=ring)
    user = h.take(CONSOLE_USER)
    if user is None and stdio is None:
        user = _controlling_terminal()
    if user is not None:
        with user:
            try:
                made.attach(user.fileno(), user.fileno())
            except OSError as error:
                log.warn("cannot show the console on the terminal: %s", reason(error))
    return made


def save_relay(made: Relay) -> dict[str, Any] | None:
    """What a relay keeps, for the same process after an exec: texts, numbers and `fds`; None while somebody uses it."""
    if not made.idle:
        return None
    ring, log_file = made.ring, made.log_file
    saved: dict[str, Any] = {"ptmx": made.ptmx, "fds": [made.ptmx]}
    if ring is not None:
        saved["ring"] = (ring.capacity, ring.peek(0))
    if log_file is not None and log_file.fileno() >= 0:
        saved["log"] = (log_file.name, log_file.limit, log_file.rotate, log_file.fileno())
        saved["fds"].append(log_file.fileno())
    return saved


def restore_relay(saved: dict[str, Any], loop: Loop) -> Relay:
    """The relay of save_relay()."""
    ring = log_file = None
    if "ring" in saved:
        ring = Ring(saved["ring"][0] + 1)
        ring.write(saved["ring"][1])
    if "log" in saved:
        name, limit, rotate, fd = saved["log"]
        log_file = ConsoleLog(name, limit=limit, rotate=rotate, file=files.OwnedFd(fd))
    return Relay(loop, saved["ptmx"], log_file=log_file, ring=ring)


def _controlling_terminal() -> OwnedFd | None:
    try:
        return files.open_fd("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        log.debug("the console is shown nowhere: no controlling terminal: %s", reason(error))
        return None


class Ring:
    """The newest console output: a buffer of `size` bytes, of which size - 1 are usable, as in LXC."""

    def __init__(self, capacity: int) -> None:
        self.capacity = max(capacity - 1, 0)
        self._data = bytearray()

    def __len__(self) -> int:
        """Bytes that are kept."""
        return len(self._data)

    def write(self, data: bytes) -> None:
        """Add; the oldest bytes make room."""
        self._data += data
        del self._data[: max(len(self._data) - self.capacity, 0)]

    def read(self, limit: int = 0) -> bytes:
        """Take out the oldest `limit` bytes, 0: all."""
        data = bytes(self._data[: limit or None])
        del self._data[: len(data)]
        return data

    def peek(self, limit: int) -> bytes:
        """The oldest `limit` bytes, 0: all; they stay."""
        return bytes(self._data[: limit or None])

    def clear(self) -> None:
        """Forget everything."""
        self._data.clear()


class ConsoleLog:
    """The log file of the console: added to, with a cap of `limit` bytes (0: none), 0600.

    Full: with `rotate` it becomes NAME.1, else it is emptied; output goes on in the middle of a line, as in LXC.
    Failing to write never disturbs the container: it is said once, and the log ends there.
    """

    def __init__(
        self, name: str, *, limit: int = 0, rotate: bool = False, file: OwnedFd | None = None
    ) -> None:
        """Open it, unless it is given open. Raises OSError, or HostError for a limit on what is not a regular file."""
        self.name = name
        self.limit = limit
        self.rotate = rotate
        self._file: OwnedFd | None = file or self._open()
        status = os.fstat(self._file.fileno())
        self._used = status.st_size
        if limit and not stat.S_ISREG(status.st_mode):
            self.close()
            raise HostError(
                f"cannot cap the console's log file {name}: it is not a regular file",
                fix="remove lxc.console.size, or name another lxc.console.logfile",
            )

    def fileno(self) -> int:
        """The file's descriptor; -1 when the log has ended."""
        return self._file.fileno() if self._file is not None else -1

    def _open(self) -> OwnedFd:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY
        return files.open_fd(self.name, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Add, within the cap."""
        try:
            while data and self._file is not None:
                room = self.limit - self._used if self.limit else len(data)
                if room <= 0:
                    self._turn(self._file)
                    continue
                written = os.write(self._file.fileno(), data[:room])
                self._used += written
                data = data[written:]
        except OSError as error:
            log.warn("cannot write the console's log file %s, it ends here: %s", self.name, error)
            self.close()

    def _turn(self, full: OwnedFd) -> None:
        if self.rotate:
            files.rename(self.name, f"{self.name}.1")
            self._file = self._open()
            full.close()
        else:
            os.ftruncate(full.fileno(), 0)
        self._used = 0

    def replace(self, ring: Ring) -> None:
        """At the end: the oldest bytes of the ring buffer, as many as the cap allows, take the log's place.

        Without a cap the log has everything and stays. (LXC 5.0.2 empties it then, which helps nobody.)
        """
        if self._file is None or not self.limit or not len(ring):
            return
        try:
            os.ftruncate(self._file.fileno(), 0)
            self._used = os.write(self._file.fileno(), ring.peek(self.limit))
        except OSError as error:
            log.warn("cannot write the console's log file %s: %s", self.name, error)

    def close(self) -> None:
        """Close the file; writes go nowhere after that."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _End:
    """One descriptor of a user: opened anew where that works, because O_NONBLOCK would hit everybody who shares it.

    A shell's standard input is the same open file as ours: non-blocking for us would be non-blocking for the shell.
    """

    def __init__(self, fd: int, flags: int) -> None:
        status = os.fstat(fd)
        self.polled = not stat.S_ISREG(status.st_mode)
        self.may_block = False
        character = stat.S_ISCHR(status.st_mode) and status.st_rdev != os.makedev(5, 2)
        if character or stat.S_ISFIFO(status.st_mode):
            try:
                again = flags | os.O_NONBLOCK | os.O_NOCTTY
                self.own = files.open_fd(f"/proc/self/fd/{fd}", again)
            except OSError as error:  # somebody else's terminal (su), no /proc
                log.debug("cannot open descriptor %d anew: %s", fd, reason(error))
            else:
                return
        self.may_block = self.polled
        self.own = files.OwnedFd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))

    def fileno(self) -> int:
        return self.own.fileno()

    def write(self, data: bytes) -> int:
        """Write what goes now, perhaps nothing. OSError: nobody is there any more."""
        try:
            return os.write(self.fileno(), data[:SMALL] if self.may_block else data)
        except BlockingIOError:
            return 0

    def watch(self, loop: Loop, callback: Callable[[int], None], events: int) -> bool:
        """False for what cannot be watched, because it is always ready."""
        if self.polled:
            try:
                loop.watch(self.fileno(), callback, events=events)
            except PermissionError:
                self.polled = False
        return self.polled

    def close(self, loop: Loop) -> None:
        loop.forget(self.fileno())
        self.own.close()


SMALL = 256  # what a pipe and a terminal take whole when poll says that they can be written
READ_SIZE = 4096
READS_A_TURN = 16
HIGH_WATER = 65536
LOW_WATER = HIGH_WATER // 2


class Relay:
    """Carries bytes between a pty's controlling end and a user; nothing blocks, memory is bounded.

    What the container writes goes to the user (`attach`), the log file and the ring buffer. A user who reads slowly slows the
    container down and loses nothing; without a user the output is taken and dropped, so the container never blocks. What the
    user types waits for the container likewise.

    The pty is watched edge-triggered: when its last terminal end closes, the kernel reports a hang-up until one is opened
    again, which for a console is the everyday life of a getty (`lasting`), and the end for one command's terminal.
    """

    def __init__(
        self,
        loop: Loop,
        ptmx: int,
        *,
        log_file: ConsoleLog | None = None,
        ring: Ring | None = None,
        lasting: bool = True,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """`ptmx` stays the caller's to close, after close(). `on_end`: the pty ended and the user has everything."""
        self.loop = loop
        self.ptmx = ptmx
        self.log_file = log_file
        self.ring = ring
        self.ended = False
        self._lasting = lasting
        self._on_end = on_end
        self._input: _End | None = None
        self._output: _End | None = None
        self._saved: list[object] | None = None
        self._behind = -1  # a terminal that is not ours to read until our job is in the foreground
        self._to_user = bytearray()
        self._to_container = bytearray()
        self._paused = False
        self._writing = False
        self._feeding = False
        os.set_blocking(ptmx, False)
        self._watch_ptmx()

    def attach(self, stdin: int, stdout: int) -> None:
        """Show it to a user: `stdin` may be -1; a terminal is put into raw mode and gives the pty its size.

        The descriptors stay the caller's. Raises OSError; then nothing is attached and the terminal is as before.
        """
        self.detach()
        try:
            self._output = _End(stdout, os.O_WRONLY)
            if stdin >= 0 and _in_background(stdin):
                self._behind = stdin
                edge = (
                    READ | select.EPOLLET
                )  # once a line, whoever reads it: not every shell sends SIGCONT
                self.loop.watch(stdin, lambda _events: self.come_forward(), events=edge)
            elif stdin >= 0:
                self._take_input(stdin)
        except BaseException:
            self.detach()
            raise
        self.resize()

    def _take_input(self, stdin: int) -> None:
        self._input = _End(stdin, os.O_RDONLY)
        if os.isatty(stdin):
            self._saved = files.make_raw(self._input.fileno())
        self._pace_input()

    def come_forward(self) -> None:
        """Where we were started in the background (`&`), the terminal may be ours now: SIGCONT says so, or a typed line."""
        stdin = self._behind
        if stdin >= 0 and not _in_background(stdin):
            self._stop_waiting()
            self._take_input(stdin)
            self.resize()

    def _stop_waiting(self) -> None:
        if self._behind >= 0:
            self.loop.forget(self._behind)
            self._behind = -1

    def detach(self) -> None:
        """The user goes: the terminal is as before, output that is not written yet is dropped. Harmless when repeated."""
        self._drop_input()
        if self._output is not None:
            self._output.close(self.loop)
            self._output = None
        self._writing = False
        self._to_user.clear()
        self._resume()

    def _drop_input(self) -> None:
        self._stop_waiting()
        if self._input is None:
            return
        if self._saved is not None:
            try:
                files.restore_terminal(self._input.fileno(), self._saved)
            except OSError as error:
                log.debug("cannot restore the terminal, it is gone: %s", reason(error))
            self._saved = None
        self._input.close(self.loop)
        self._input = None

    def resize(self) -> None:
        """Give the pty the size of the user's terminal (SIGWINCH)."""
        for end in (self._input, self._output):
            size = _size_of(end.fileno()) if end is not None else None
            if size is None:
                continue
            try:
                files.set_window_size(self.ptmx, *size)
            except OSError as error:
                log.debug("cannot copy the window size: %s", reason(error))
            return

    @property
    def idle(self) -> bool:
        """Nobody looks at it and nothing is under way: all there is to it is the pty, the log and the ring buffer."""
        used = self._input is not None or self._output is not None or self._behind >= 0
        return not (used or self.ended or self._paused or self._to_user or self._to_container)

    @property
    def pending(self) -> bool:
        """Output waits for the user."""
        return bool(self._to_user)

    def drain(self) -> None:
        """Take what the pty has, whatever waits for the user then: at the end of the container."""
        while not self.ended and self._read_once():
            pass
        self._flush()

    def finish(self) -> None:
        """The container ended: drain(), serve the loop until the user has everything or is gone, and close()."""
        self.drain()
        while self.pending:
            self.loop.run_once()
        self.close()

    def close(self) -> None:
        """Restore the terminal, stop watching, complete and close the log file. Harmless when repeated."""
        self.ended = True
        self.detach()
        self.loop.forget(self.ptmx)
        if self.log_file is not None:
            if self.ring is not None:
                self.log_file.replace(self.ring)
            self.log_file.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # -- from the container to the user

    def _watch_ptmx(self) -> None:
        """Watching anew reports what is ready now, edge or not."""
        waits = WRITE if self._to_container else 0
        self.loop.watch(self.ptmx, self._ptmx_ready, events=READ | waits | select.EPOLLET)

    def _ptmx_ready(self, events: int) -> None:
        if events & WRITE:
            self._feed()
            self._pace_input()
        if events & ~WRITE:
            self._pump()

    def _pump(self) -> None:
        """Some reads, so that one busy container does not starve the others; then ask to be called again."""
        for _ in range(READS_A_TURN):
            if self._paused or self.ended or not self._read_once():
                return
        self._watch_ptmx()

    def _read_once(self) -> bool:
        """One read; False when there is nothing (more)."""
        try:
            data = os.read(self.ptmx, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != EIO:
                raise
            data = b""
        if not data:
            if not self._lasting:
                self.ended = True
                self.loop.forget(self.ptmx)
                self._settle()
            return False
        if self.log_file is not None:
            self.log_file.write(data)
        if self.ring is not None:
            self.ring.write(data)
        if self._output is not None:
            self._to_user += data
            if self._output.may_block:  # only when it says that it can be written
                self._settle()
            else:
                self._flush()
        return True

    def _flush(self, _events: int = 0) -> None:
        """Write to the user what goes."""
        output = self._output
        while self._to_user and output is not None:
            try:
                written = output.write(bytes(self._to_user[:READ_SIZE]))
            except OSError as error:
                log.debug("the user of the console is gone: %s", reason(error))
                self.detach()
                break
            del self._to_user[:written]
            if not written or output.may_block:
                break
        self._settle()

    def _settle(self) -> None:
        """Choose between going on and waiting, and tell when all is over."""
        output, waiting = self._output, len(self._to_user)
        if output is not None and bool(waiting) != self._writing:
            self._writing = bool(waiting)
            if not waiting:
                self.loop.forget(output.fileno())
            elif not output.watch(self.loop, self._flush, WRITE):
                self._writing = False
        if waiting >= HIGH_WATER:
            self._paused = True
        elif waiting <= LOW_WATER:
            self._resume()
        if self.ended and not waiting and self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end()

    def _resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if not self.ended:
            self._watch_ptmx()

    # -- from the user to the container

    def _input_ready(self, _events: int) -> None:
        self._read_input()
        self._pace_input()

    def _pace_input(self) -> None:
        """Take what the user types as long as there is room for it; a regular file is always ready."""
        while self._input is not None and len(self._to_container) < LOW_WATER:
            if self._input.watch(self.loop, self._input_ready, READ):
                return
            self._read_input()
        if self._input is not None:
            self.loop.forget(self._input.fileno())

    def _read_input(self) -> None:
        if self._input is None:
            return
        try:
            data = os.read(self._input.fileno(), READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("the user of the console is gone: %s", reason(error))
            data = b""
        if data:
            self._to_container += data
            self._feed()
        else:
            self._drop_input()

    def _feed(self) -> None:
        """Write to the container what it takes."""
        while self._to_container:
            try:
                written = os.write(self.ptmx, bytes(self._to_container[:READ_SIZE]))
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("nobody in the container reads the console: %s", reason(error))
                written = len(self._to_container)
            del self._to_container[:written]
        if bool(self._to_container) != self._feeding and not self.ended:
            self._feeding = not self._feeding
            self._watch_ptmx()


def _in_background(fd: int) -> bool:
    """Is it our controlling terminal, and another job's turn to use it? To set it raw would take it from the shell."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # no terminal, or not our controlling one
        return False


def _size_of(fd: int) -> tuple[int, int] | None:
    try:
        return files.window_size(fd)
    except OSError:  # hung up
        return None


class TtyLeases:
    """Which ttys are lent to lxc-console: one client each, for as long as its connection to the command socket lives."""

    def __init__(self, h: Handler, lent: Iterable[int] = ()) -> None:
        """`lent`: those that are lent already (by the same monitor before an exec)."""
        self._ttys = h.get(TTYS) or ()
        self._lent = {tty: self._held(tty) for tty in lent}

    def _held(self, tty: int) -> OwnedFd:
        """The tty's other end, open as long as it is lent: a tty that nobody in the container has open yet reads as hung up."""
        return files.open_peer(self._ttys[tty - 1].ptmx.fileno())

    def acquire(self, wanted_tty: int) -> tuple[int, int]:
        """Lend a tty, 1 to lxc.tty.max or -1 for the first free one: its number and its controlling end's descriptor.

        Raises CommandError with errno EBADF, which is what liblxc answers, when there is no such tty or it is lent.
        """
        count = len(self._ttys)
        if wanted_tty == -1:
            free = (n for n in range(1, count + 1) if n not in self._lent)
            wanted_tty = next(free, 0)
            if not wanted_tty:
                why = "all ttys are in use" if count else "the container has no ttys"
                raise CommandError(f"cannot open a tty: {why}", errno=EBADF)
        elif not 1 <= wanted_tty <= count:
            raise CommandError(
                f"cannot open tty {wanted_tty}: the container has {count or 'no'} ttys", errno=EBADF
            )
        elif wanted_tty in self._lent:
            raise CommandError(f"cannot open tty {wanted_tty}: it is in use", errno=EBADF)
        self._lent[wanted_tty] = self._held(wanted_tty)
        return wanted_tty, self._ttys[wanted_tty - 1].ptmx.fileno()

    def release(self, tty: int) -> None:
        """The client is gone."""
        held = self._lent.pop(tty, None)
        if held is not None:
            held.close()
