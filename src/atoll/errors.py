"""The exceptions of Atoll and the exit statuses of its tools.

    AtollError                    message, fix
    ├── ConfigError               a configuration that cannot be used: key, origin
    ├── HostError                 this machine, or its user, cannot do what was asked: missing
    ├── StateError                not possible in the present state: now, wanted
    ├── StepError                 a step of a plan failed: step, phase, side, number, total, origin, call, restored
    ├── CommandError              the command socket: refused, broken or foreign answer
    └── StorageError              a storage back end

`linux` raises the built-in OSError family; `executor.blame` turns what a step raised into a StepError; the tool prints.
Messages are one lower-case sentence: what could not be done, to what, why.
"""

from __future__ import annotations

from os import strerror

from atoll.records import Record

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_NOT_RUNNING = 2  # lxc-stop
EXIT_RUNTIME = 125
"""atoll run: the container could not be started; any other status is the command's (docker-run(1), podman-run(1))."""
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL = 128  # 128 + signal number


class Origin(Record):
    """Where a configuration value was written: file, line (from 1) and the line's text."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class AtollError(Exception):
    """Base of all. `fix` says what to do about it, when the fact behind it was checked."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class ConfigError(AtollError):
    """A configuration line or key that cannot be used."""

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        origin: Origin | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.key = key
        self.origin = origin


class HostError(AtollError):
    """The machine or the user lacks what was asked for; `errno` is the kernel's answer where it gave one."""

    def __init__(
        self,
        message: str,
        *,
        missing: str | None = None,
        fix: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.missing = missing
        self.errno = errno
        self.origin: Origin | None = None


class StateError(AtollError):
    """The container is in state `now`; the call needs `wanted`."""

    def __init__(self, message: str, *, now: str, wanted: str, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.now = now
        self.wanted = wanted


class Restored(Record):
    """What taking back did: changes made by the plan, how many were taken back, and what was not."""

    total: int
    undone: int
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.total == 0:
            return "unchanged, nothing to take back"
        done = f"{self.undone} of {self.total} changes taken back"
        if self.undone == self.total:
            return f"restored, {done}"
        return f"not fully restored, {done}: {'; '.join(self.problems)}"


class StepError(AtollError):
    """A step of a plan failed. `side` is 'monitor' or 'init'; `call` is the system call as made, where known."""

    def __init__(
        self,
        message: str,
        *,
        step: str,
        phase: str,
        side: str,
        number: int,
        total: int,
        origin: Origin | None = None,
        call: str | None = None,
        fix: str | None = None,
        errno: int | None = None,
        restored: Restored | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.step = step
        self.phase = phase
        self.side = side
        self.number = number
        self.total = total
        self.origin = origin
        self.call = call
        self.errno = errno
        self.restored = restored


class CommandError(AtollError):
    """The command socket answered with an error, broke off, or sent what cannot be understood."""

    def __init__(self, message: str, *, errno: int | None = None, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.errno = errno


class StorageError(AtollError):
    """A storage back end could not create, mount, copy or destroy a root file system."""


class Interrupted(AtollError):
    """A signal ended what was under way; `signal` is its number."""

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def reason(error: BaseException) -> str:
    """The cause alone, in lower case: the text of an OSError's errno, or an AtollError's message."""
    if isinstance(error, OSError) and error.errno is not None:
        text = strerror(error.errno)
        return text[:1].lower() + text[1:]
    if isinstance(error, AtollError):
        return error.message
    return f"{type(error).__name__}: {error}"


def describe(error: BaseException, *, tool: str, name: str | None = None) -> str:
    """The lines that a user sees: what and why, then from, step, call, host and fix where they are known."""
    head = f"{tool}: {name}: " if name else f"{tool}: "
    if isinstance(error, OSError) and not isinstance(error, AtollError):
        target = f"{error.filename}: " if error.filename else ""
        lines = [f"{head}{target}{reason(error)}"]
    else:
        lines = [head + (error.message if isinstance(error, AtollError) else reason(error))]
    origin = getattr(error, "origin", None)
    if origin is not None:
        lines.append(f"  from   {origin.text:<40} {origin}")
    if isinstance(error, StepError):
        where = (
            f"{error.number} of {error.total}, {error.step}, {error.side} side, phase {error.phase}"
        )
        lines.append(f"  step   {where}")
        if error.call:
            lines.append(f"  call   {error.call}")
        if error.restored is not None:
            lines.append(f"  host   {error.restored}")
    fix = getattr(error, "fix", None)
    if fix:
        lines.append(f"  fix    {fix}")
    return "\n".join(lines)


def dump(error: BaseException) -> str:
    """An error as a Python literal, for the process that waits for a daemonized start."""
    fields = {
        name: getattr(error, name, None)
        for name in (
            "fix",
            "errno",
            "step",
            "phase",
            "side",
            "number",
            "total",
            "call",
            "key",
            "now",
            "wanted",
        )
    }
    fields["message"] = error.message if isinstance(error, AtollError) else reason(error)
    origin = getattr(error, "origin", None)
    fields["origin"] = origin.as_dict() if origin is not None else None
    restored = getattr(error, "restored", None)
    fields["restored"] = restored.as_dict() if restored is not None else None
    return repr((type(error).__name__, fields))


def load(text: str) -> AtollError:
    """The error that `dump` wrote; other exceptions than ours come back as HostError. Raises ValueError."""
    from ast import literal_eval

    kind, fields = literal_eval(text)
    message, fix = fields["message"], fields["fix"]
    origin = Origin(**fields["origin"]) if fields["origin"] else None
    if kind == "StepError":
        names = ("step", "phase", "side", "number", "total", "call", "errno")
        return StepError(
            message,
            fix=fix,
            origin=origin,
            restored=Restored(**fields["restored"]) if fields["restored"] else None,
            **{name: fields[name] for name in names},
        )
    if kind == "ConfigError":
        return ConfigError(message, key=fields["key"], origin=origin, fix=fix)
    if kind == "StateError":
        return StateError(message, now=fields["now"], wanted=fields["wanted"], fix=fix)
    error = HostError(message, fix=fix, errno=fields["errno"])
    error.origin = origin
    return error
