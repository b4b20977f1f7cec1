"""The last steps of init: standard descriptors, session, and the exec; or the small init that runs one command.

Init steps only: nothing here may import, log or look up users. Sources: execve(2), setsid(2), tty_ioctl(4), reference of
LXC sections 1.6 (end of the child's column) and 11.4 (the init of lxc-execute).
"""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, ENOEXEC, ENOTDIR

from atoll.errors import HostError, reason
from atoll.lifecycle.spawn import FAILURE
from atoll.linux import files, process
from atoll.log import DEBUG
from atoll.plan import SYNC, InitStep
from atoll.resources.credentials import INIT_ENVIRONMENT
from atoll.resources.terminal import CONSOLE_PEER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.errors import Origin
    from atoll.plan import Handler, Start

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ELF_MACHINES = {
    3: "i386",
    8: "mips",
    20: "powerpc",
    21: "powerpc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}
LOOP_SIGNAL_MASK = (1 << 64) - 1


def stdio(start: Start, *, owner: int = 0) -> tuple[InitStep, ...]:
    """0, 1 and 2 of init: given descriptors, the console, or /dev/null; and a session of its own.

    `owner` is the uid that init runs as: the console is its own, or it could not open /dev/console.
    """
    given = start.stdio
    if given is None and not start.console and not start.daemon:
        given = (0, 1, 2)
    return (TakeStdio(given=given, console=start.console, owner=owner), NewSession())


def execute(
    start: Start, *, listen_fds: int = 0, linger: bool = False, origin: Origin | None = None
) -> tuple[InitStep, ...]:
    """The step that ends the plan on init's side; `origin` is the line that names the program."""
    if start.init_loop:
        return (RunCommand(argv=start.argv, linger=linger, origin=origin),)
    return (ExecInit(argv=start.argv, listen_fds=listen_fds, origin=origin),)


class TakeStdio(InitStep):
    """Put the console, or what the caller gave, on descriptors 0 to 2.

    Of given descriptors only those that are terminals are replaced by the console, so that a pipe beside a terminal stays
    a pipe and output comes back unmixed.
    """

    given: tuple[int, int, int] | None = None
    console: bool = False
    owner: int = 0

    def explain(self) -> str:
        """Say what they become."""
        if self.given is not None:
            return "give init the caller's standard descriptors" + (
                ", the console in place of terminals" if self.console else ""
            )
        return f"give init {'the console' if self.console else '/dev/null'} as standard descriptors"

    def apply(self, h: Handler) -> None:
        """Duplicate."""
        peer = h.get(CONSOLE_PEER)
        if peer is not None and self.owner:
            try:
                files.chown(peer.fileno(), self.owner, -1)
            except (
                OSError
            ) as error:  # an id without a mapping: becoming it fails later, with better words
                h.report(DEBUG, f"cannot give the console to uid {self.owner}: {reason(error)}")
        if self.given is None:
            self._take_one(peer)
            return
        sources = list(self.given)
        if peer is not None:
            sources = [peer.fileno() if fd < 0 or os.isatty(fd) else fd for fd in sources]
        held = [os.dup(fd) for fd in sources]
        for number, fd in enumerate(held):
            os.dup2(fd, number)
            os.close(fd)

    def _take_one(self, peer: files.OwnedFd | None) -> None:
        if peer is not None:
            for number in range(3):
                os.dup2(peer.fileno(), number)
            return
        with files.open_fd("/dev/null", os.O_RDWR) as null:
            for number in range(3):
                os.dup2(null.fileno(), number)


class NewSession(InitStep):
    """Become leader of a session without a controlling terminal."""

    def explain(self) -> str:
        """Say it."""
        return "start a session"

    def apply(self, h: Handler) -> None:
        """One setsid(2)."""
        del h
        os.setsid()


class ExecInit(InitStep):
    """Execute the container's init. On success this process is the container's own."""

    argv: tuple[str, ...]
    listen_fds: int = 0
    needs = (INIT_ENVIRONMENT,)

    def explain(self) -> str:
        """Show the command."""
        return f"execute {' '.join(self.argv)}"

    def apply(self, h: Handler) -> None:
        """Mark all other descriptors close-on-exec, reset signals, execute. Raises HostError with the cause."""
        environment = h[INIT_ENVIRONMENT]
        process.close_range(3, ~0 & 0xFFFFFFFF, cloexec=True)
        for fd in range(3, 3 + self.listen_fds):
            os.set_inheritable(fd, True)
        process.reset_signals()
        execute_program(self.argv, environment)


class RunCommand(InitStep):
    """Be a small init: run one command in a session of its own, forward signals, reap, exit with its status.

    Without it a command would be process 1 itself, for which the kernel ignores every signal that it has no handler for:
    ctrl-C would do nothing. `linger` waits for the command's orphans too, as lxc-execute does.
    """

    argv: tuple[str, ...]
    linger: bool = False
    needs = (INIT_ENVIRONMENT, SYNC)

    def explain(self) -> str:
        """Show the command."""
        return f"be init, and run {' '.join(self.argv)}"

    def apply(self, h: Handler) -> None:
        """Never returns."""
        process.set_name("init")
        process.set_process_title("init")
        process.set_signal_mask(LOOP_SIGNAL_MASK)
        signals = process.signalfd(LOOP_SIGNAL_MASK)
        # A session leader gets a controlling terminal by a call of its own, which posix_spawn(3) has no word for.
        command = self._clone(h) if os.isatty(0) else self._spawn(h)
        keep = signals.fileno()
        _close_all_but(keep)
        _loop(command, keep, linger=self.linger)

    def _spawn(self, h: Handler) -> int:
        process.close_range(3, ~0 & 0xFFFFFFFF, cloexec=True)
        environment = h[INIT_ENVIRONMENT]
        return _first_that_works(
            self.argv[0], environment, lambda path: process.spawn(path, self.argv, environment)
        )

    def _clone(self, h: Handler) -> int:
        return process.clone(lambda: self._become(h)).pid

    def _become(self, h: Handler) -> None:
        os.setsid()
        process.set_controlling_terminal(0)
        process.close_range(3, ~0 & 0xFFFFFFFF, cloexec=True)
        process.set_signal_mask(0)
        try:
            execute_program(self.argv, h[INIT_ENVIRONMENT])
        except BaseException as error:  # noqa: BLE001 - the monitor must hear whatever it was
            h[FAILURE](error)
        os._exit(127)


def _close_all_but(keep: int) -> None:
    if keep > 3:
        process.close_range(3, keep - 1)
    process.close_range(keep + 1, ~0 & 0xFFFFFFFF)


def _loop(command: int, signals: int, *, linger: bool) -> None:
    """Reap and forward until the command has ended (with `linger`: until no child is left). Never returns."""
    result = -1
    os.set_blocking(signals, True)
    while True:
        info = process.read_signal(signals)
        if info is None:
            continue
        if info.signal != process.SIGCHLD:
            _forward(info.signal, command, ended=result >= 0)
            continue
        alive = True
        while alive:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os._exit(max(result, 0))
            alive = pid != 0
            if pid == command:
                result = (
                    os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                )
                if not linger:
                    os._exit(result)


def _forward(number: int, command: int, *, ended: bool) -> None:
    if (number in (process.SIGTERM, process.SIGPWR) and ended) or number == process.SIGPWR:
        _kill(-1, process.SIGTERM)
    elif not ended:
        _kill(command, number)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended in this moment


def execute_program(argv: tuple[str, ...], environment: dict[str, str]) -> None:
    """execve with a search of PATH inside the container. Raises HostError that says why; never returns otherwise."""
    words = list(argv)
    _first_that_works(argv[0], environment, lambda path: os.execve(path, words, environment))


def _first_that_works(
    program: str, environment: dict[str, str], start: Callable[[str], int]
) -> int:
    """What `start` returns for the first place of PATH where there is something to execute. Raises HostError."""
    last: OSError | None = None
    for path in _candidates(program, environment):
        try:
            return start(path)
        except OSError as error:
            if last is None or error.errno not in (ENOENT, ENOTDIR):
                last = error
                failed = path
            if error.errno not in (ENOENT, ENOTDIR, EACCES):
                break
    if last is None:
        raise HostError("there is no command to execute", errno=ENOENT)
    raise _explained(program, failed, last)


def _candidates(program: str, environment: dict[str, str]) -> tuple[str, ...]:
    if "/" in program:
        return (program,)
    path = environment.get("PATH", DEFAULT_PATH)
    return tuple(f"{directory or '.'}/{program}" for directory in path.split(":"))


def _explained(program: str, path: str, error: OSError) -> HostError:
    number = ENOENT if error.errno == ENOTDIR else error.errno
    if number == ENOENT:
        why, fix = _why_missing(program, path)
    elif number == EACCES:
        why, fix = _why_denied(path)
    elif number == ENOEXEC:
        why, fix = _why_no_format(path)
    else:
        why, fix = reason(error), None
    return HostError(f"cannot execute {program}: {why}", errno=number, fix=fix)


def _head(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _why_missing(program: str, path: str) -> tuple[str, str | None]:
    """The program, or what its first line or its ELF header asks for."""
    if not os.path.lexists(path):
        where = "it does not exist in the container"
        if "/" not in program:
            where = "the container has no such program in PATH"
        other = "set lxc.init.cmd" if program == "/sbin/init" else "name another program"
        return where, f"install it in the root file system, or {other}"
    head = _head(path)
    if head.startswith(b"#!"):
        line = head[2:].split(b"\n")[0].strip().decode("utf-8", "replace")
        interpreter = line.split(" ")[0]
        return (
            f"its interpreter {interpreter} does not exist in the container",
            f"install {interpreter} in the root file system, or correct the first line of {path}",
        )
    if head.startswith(b"\x7fELF"):
        fix = "install its libraries in the root file system, or use a static program"
        return "its dynamic loader does not exist in the container", fix
    return "something that it needs does not exist in the container", None


def _why_denied(path: str) -> tuple[str, str | None]:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return reason(error), None
    if mode & 0o170000 == 0o040000:
        return "it is a directory", "name a program"
    if not mode & 0o111:
        fix = f"chmod +x {path} in the root file system"
        return f"it is not executable (mode {mode & 0o7777:04o})", fix
    return "permission denied (mode, file system mounted noexec, or security module)", None


def _why_no_format(path: str) -> tuple[str, str | None]:
    head = _head(path)
    if head.startswith(b"\x7fELF") and len(head) > 20:
        order = "little" if head[5] == 1 else "big"
        machine = int.from_bytes(head[18:20], order)  # type: ignore[arg-type]  # one of the two literals
        name = ELF_MACHINES.get(machine, f"ELF machine {machine}")
        own = os.uname().machine
        if name != own:
            return (
                f"it is built for {name} and this machine is {own}",
                f"use a root file system for {own}, or install an emulator on the host (qemu-user-static)",
            )
        return "the kernel cannot run this ELF file", None
    if not head:
        return "it is empty", None
    fix = "let its first line be #! and the program that reads it"
    return "it is neither an ELF file nor a script that begins with #!", fix
