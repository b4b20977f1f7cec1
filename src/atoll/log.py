"""LXC's log: levels, line format and file. Not the standard library's logging, which costs 12 ms to import.

Line: `PROG NAME YYYYMMDDHHMMSS.MMM LEVEL    CATEGORY - FILE:FUNC:LINE - MSG` (reference of LXC, section 14); the category
is the module's last name. One process has one destination; `configure` sets it. Nothing is logged in init: it sends
frames to the monitor, which logs.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

TRACE: Final = 0
DEBUG: Final = 1
INFO: Final = 2
NOTICE: Final = 3
WARN: Final = 4
ERROR: Final = 5
CRIT: Final = 6
ALERT: Final = 7
FATAL: Final = 8
NOTSET: Final = 9
LEVELS: Final = ("TRACE", "DEBUG", "INFO", "NOTICE", "WARN", "ERROR", "CRIT", "ALERT", "FATAL")


class _Destination:
    """Where this process logs: mutable by design, set once at the start of a tool."""

    def __init__(self) -> None:
        self.fd = -1
        self.level: int = ERROR
        self.program = "atoll"
        self.name: str | None = None
        self.stderr_level: int = WARN
        self.stderr_fd = -1


_destination = _Destination()


def configure(
    *,
    program: str,
    name: str | None = None,
    file: str | None = None,
    level: int = ERROR,
    stderr_fd: int = -1,
    stderr_level: int = WARN,
) -> None:
    """Set the destination. `file` is appended to (0660, its directories made); "none" and None write no file.

    `stderr_fd` receives records of `stderr_level` and above as `PROG: NAME: MSG`; -1 turns that off (-q, daemons).
    Raises OSError when the file cannot be opened.
    """
    _destination.program = program
    _destination.name = name
    _destination.level = level
    _destination.stderr_fd = stderr_fd
    _destination.stderr_level = stderr_level
    if _destination.fd >= 0:
        os.close(_destination.fd)
        _destination.fd = -1
    if file and file != "none":
        directory = os.path.dirname(file)
        if directory:
            os.makedirs(directory, mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        _destination.fd = os.open(file, flags, 0o660)


def file_descriptor() -> int:
    """The fd of the log file, or -1: what must stay open when inherited fds are closed."""
    return _destination.fd


def save() -> tuple[str, str | None, int, int] | None:
    """The destination as plain values, for the same process after an exec; None while it includes standard error."""
    here = _destination
    if here.stderr_fd >= 0:
        return None
    return here.program, here.name, here.fd, here.level


def restore(saved: tuple[str, str | None, int, int]) -> None:
    """Take the destination of save()."""
    _destination.program, _destination.name, _destination.fd, _destination.level = saved


def silence_stderr() -> None:
    """Stop writing to standard error, as a daemon must."""
    _destination.stderr_fd = -1


def wanted(level: int) -> bool:
    """Would a record of this level be written anywhere? For what is dear to put into words."""
    to_file = _destination.fd >= 0 and level >= _destination.level
    return to_file or (_destination.stderr_fd >= 0 and level >= _destination.stderr_level)


def parse_level(text: str) -> int:
    """A level by name in any case or by number 0 to 8; ValueError otherwise (`lxc.log.level`, `-l`)."""
    upper = text.strip().upper()
    if upper in LEVELS:
        return LEVELS.index(upper)
    if upper == "WARNING":
        return WARN
    if upper.isdigit() and int(upper) < len(LEVELS):
        return int(upper)
    raise ValueError(f"not a log level: {text!r} (use one of {' '.join(LEVELS)} or 0 to 8)")


class Logger:
    """Writes the records of one module; arguments are formatted only when the record is written."""

    __slots__ = ("category",)

    def __init__(self, category: str) -> None:
        self.category = category

    def log(self, level: int, message: str, *arguments: object, depth: int = 1) -> None:
        """Write one record; `message` is %-formatted with `arguments`."""
        to_file = _destination.fd >= 0 and level >= _destination.level
        to_stderr = _destination.stderr_fd >= 0 and level >= _destination.stderr_level
        if not to_file and not to_stderr:
            return
        text = message % arguments if arguments else message
        if to_file:
            frame = sys._getframe(depth)  # noqa: SLF001 - the caller's place is part of LXC's line
            _write(_destination.fd, self._line(level, text, frame.f_code, frame.f_lineno))
        if to_stderr:
            head = f"{_destination.program}: "
            if _destination.name:
                head += f"{_destination.name}: "
            _write(_destination.stderr_fd, f"{head}{LEVELS[level].lower()}: {text}\n")

    def _line(self, level: int, text: str, code: object, line: int) -> str:
        now = time.time()
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}"
        name = f" {_destination.name}" if _destination.name else ""
        place = f"{os.path.basename(code.co_filename)}:{code.co_name}:{line}"  # type: ignore[attr-defined]  # a code object, named without importing types
        return f"{_destination.program}{name} {stamp} {LEVELS[level]:<8} {self.category} - {place} - {text}\n"

    def trace(self, message: str, *arguments: object) -> None:
        """TRACE: steps."""
        self.log(TRACE, message, *arguments, depth=2)

    def debug(self, message: str, *arguments: object) -> None:
        """DEBUG: a decision and its reason."""
        self.log(DEBUG, message, *arguments, depth=2)

    def info(self, message: str, *arguments: object) -> None:
        """INFO: a transition."""
        self.log(INFO, message, *arguments, depth=2)

    def notice(self, message: str, *arguments: object) -> None:
        """NOTICE: a transition that an operator wants to see."""
        self.log(NOTICE, message, *arguments, depth=2)

    def warn(self, message: str, *arguments: object) -> None:
        """WARN: it runs, but not as asked."""
        self.log(WARN, message, *arguments, depth=2)

    def error(self, message: str, *arguments: object) -> None:
        """ERROR: the container will not run."""
        self.log(ERROR, message, *arguments, depth=2)


def _write(fd: int, line: str) -> None:
    data = line.encode("utf-8", "surrogateescape")
    try:
        os.write(fd, data)
    except OSError:
        return  # a full disk or closed terminal must not end the container that is being reported on


def get_logger(module: str) -> Logger:
    """The logger of a module: `log = get_logger(__name__)`."""
    return Logger(module.rpartition(".")[2])
