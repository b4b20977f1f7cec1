"""Running steps: the loop, the journal of what to take back, blame, and observers.

Not about processes: which side runs where is lifecycle/spawn.py. The journal is a small text file that survives the
monitor; its format is in docs/design.md. One reader and one writer: this module.
"""

from __future__ import annotations

import os
import time

from atoll import errors
from atoll.linux import files
from atoll.log import get_logger
from atoll.plan import HostStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Placed

    class Observer(Protocol):
        """Sees every step of either side; an exception raised by before() or after() counts as the step's own."""

        def before(self, place: Placed) -> None:
            """Called before the step is applied."""

        def after(self, place: Placed) -> None:
            """Called after the step was applied."""


log = get_logger(__name__)

MAGIC = "atoll-journal 1"


class Trace:
    """Observer that logs each step at TRACE."""

    def before(self, place: Placed) -> None:
        """Log the step."""
        log.trace("step %d %s %s: %s", place.number, place.phase, place.side, place.step.explain())

    def after(self, place: Placed) -> None:
        """Nothing to say."""


class Timing:
    """Observer that keeps begin and end of each step, in nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, int]] = []
        self.places: Sequence[Placed] = ()
        self._begin = 0

    def before(self, place: Placed) -> None:
        """Start the clock."""
        del place
        self._begin = time.monotonic_ns()

    def after(self, place: Placed) -> None:
        """Stop the clock."""
        self.spans.append((place.number, self._begin, time.monotonic_ns()))


def run(
    places: Iterable[Placed],
    handler: Handler,
    *,
    total: int,
    observers: Sequence[Observer] = (),
    journal: Journal | None = None,
) -> None:
    """Apply steps one after another. The first failure is raised as a StepError; the journal is left for unwinding."""
    for place in places:
        step = place.step
        try:
            for observer in observers:
                observer.before(place)
            if journal is not None and isinstance(step, HostStep):
                _apply_journalled(step, place.number, handler, journal)
            else:
                step.apply(handler)
            for observer in observers:
                observer.after(place)
        except errors.Interrupted:
            raise
        except Exception as error:
            raise blame(error, place, total=total) from error


def _apply_journalled(step: HostStep, number: int, handler: Handler, journal: Journal) -> None:
    inverse = step.inverse()
    if inverse is None:
        step.apply(handler)
        return
    journal.intend(number, inverse)
    try:
        step.apply(handler)
    except BaseException:
        journal.forget(number)  # a failed apply left nothing
        raise
    journal.done(number)


def blame(error: BaseException, place: Placed, *, total: int) -> errors.StepError:
    """A StepError that names step, phase, side and configuration line of `place` for what was raised there."""
    if isinstance(error, errors.StepError):
        return error
    step = place.step
    if isinstance(error, errors.AtollError):
        message = error.message
    else:
        message = f"cannot {step.explain()}: {errors.reason(error)}"
    notes = getattr(error, "__notes__", None)
    return errors.StepError(
        message,
        step=type(step).__name__,
        phase=place.phase,
        side=place.side,
        number=place.number,
        total=total,
        origin=getattr(error, "origin", None) or step.origin,
        call=notes[0] if notes else _call_of(error),
        fix=getattr(error, "fix", None),
        errno=getattr(error, "errno", None),
    )


def _call_of(error: BaseException) -> str | None:
    cause = error.__cause__
    notes = getattr(cause, "__notes__", None)
    return notes[0] if notes else None


class Entry:
    """One change: the inverse step, and how far it got ('intended', 'done')."""

    __slots__ = ("inverse", "number", "state")

    def __init__(self, number: int, inverse: HostStep, state: str) -> None:
        self.number = number
        self.inverse = inverse
        self.state = state


class Journal:
    """What has to be taken back, newest last; in a file too when `path` is given.

    The file is locked (a POSIX record lock, which a fork does not inherit) as long as its writer lives, so recovery can tell
    a dead start from a living one. `discard` removes it.
    """

    def __init__(self, path: str | None = None, *, header: dict[str, object] | None = None) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.header = header or {}
        self._file: OwnedFd | None = None
        if path is not None:
            self._file = files.open_fd(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
            )
            try:
                files.lock_file(self._file.fileno(), exclusive=True, block=False)
                os.ftruncate(self._file.fileno(), 0)
                self._write(f"{MAGIC}\t{self.header!r}\n")
            except BaseException:
                self._file.close()
                raise

    def fileno(self) -> int:
        """The journal file's descriptor, or -1."""
        return self._file.fileno() if self._file is not None else -1

    def intend(self, number: int, inverse: HostStep) -> None:
        """Note what will have to be taken back, before the step runs. Raises OSError when that cannot be written."""
        self._write(f"intend\t{number}\t{encode(inverse)}\n")
        self.entries.append(Entry(number, inverse, "intended"))

    def done(self, number: int) -> None:
        """Note that the step ran."""
        self.entries[-1].state = "done"
        self._write(f"done\t{number}\n")

    def forget(self, number: int) -> None:
        """Note that the step failed and left nothing, or was taken back."""
        self.entries = [entry for entry in self.entries if entry.number != number]
        try:
            self._write(f"undone\t{number}\n")
        except OSError as error:
            log.warn("cannot note in %s that step %d is undone: %s", self.path, number, error)

    def unwind(self, handler: Handler) -> errors.Restored:
        """Take back everything that is done, newest first. Never raises; what could not be undone is in the result."""
        total, undone = 0, 0
        problems: list[str] = []
        for entry in reversed(list(self.entries)):
            if entry.state != "done":
                continue
            total += 1
            try:
                log.trace("take back step %d: %s", entry.number, entry.inverse.explain())
                entry.inverse.apply(handler)
            except Exception as error:  # noqa: BLE001 - the rest must be taken back whatever this one raised
                problem = f"cannot {entry.inverse.explain()}: {errors.reason(error)}"
                log.warn("%s", problem)
                problems.append(problem)
                continue
            undone += 1
            self.forget(entry.number)
        return errors.Restored(total=total, undone=undone, problems=tuple(problems))

    def discard(self) -> None:
        """Remove the file: nothing is left to take back (or the changes are meant to stay)."""
        if self._file is not None and self.path is not None:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                log.debug("journal %s was removed by somebody else", self.path)
            self._file.close()
            self._file = None
        self.entries = []

    def close(self) -> None:
        """Close the file and leave it where it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is not None:
            os.write(self._file.fileno(), line.encode("utf-8", "surrogateescape"))


def encode(step: HostStep) -> str:
    """A step as `module:Class` TAB and its fields as a Python literal (primitives only), on one line."""
    fields = step.as_dict()
    fields.pop("origin", None)
    return f"{type(step).__module__}:{type(step).__name__}\t{fields!r}"


def decode(name: str, fields: str) -> HostStep:
    """The step of `encode`. Raises ValueError for what is not a step of this program."""
    from ast import literal_eval
    from importlib import import_module

    module, _, cls_name = name.partition(":")
    if not module.startswith("atoll."):
        raise ValueError(f"{name} is not a step of Atoll")
    try:
        cls = getattr(import_module(module), cls_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} is not known to this version") from error
    if not (isinstance(cls, type) and issubclass(cls, HostStep)):
        raise ValueError(f"{name} is not a step")
    values = literal_eval(fields)
    return cls(**values)


class Leftover:
    """A journal whose writer is dead: its header and entries, for recovery."""

    def __init__(self, path: str, text: str) -> None:
        from ast import literal_eval

        lines = [line for line in text.split("\n") if line]
        if not lines or not lines[0].startswith(MAGIC + "\t"):
            raise ValueError(f"{path} is not a journal")
        self.path = path
        self.header: dict[str, object] = literal_eval(lines[0].split("\t", 1)[1])
        self.entries: list[Entry] = []
        for line in lines[1:]:
            self._read_line(line.split("\t"))

    def _read_line(self, parts: Sequence[str]) -> None:
        if parts[0] == "intend" and len(parts) == 4:
            inverse = decode(parts[2], parts[3])
            self.entries.append(Entry(int(parts[1]), inverse, "intended"))
        elif parts[0] == "done" and len(parts) > 1 and parts[1].isdigit():
            for entry in self.entries:
                if entry.number == int(parts[1]):
                    entry.state = "done"
        elif parts[0] == "undone" and len(parts) > 1 and parts[1].isdigit():
            self.entries = [entry for entry in self.entries if entry.number != int(parts[1])]

    def take_back(self, handler: Handler) -> errors.Restored:
        """Undo what is done; what was only intended, if it is surely that start's. Never raises."""
        began = float(str(self.header.get("began", 0)))
        total, undone = 0, 0
        problems: list[str] = []
        for entry in reversed(self.entries):
            inverse = entry.inverse
            try:
                if entry.state == "intended" and not inverse.recognise(began):
                    continue
                total += 1
                inverse.apply(handler)
                undone += 1
            except Exception as error:  # noqa: BLE001 - the rest must be taken back whatever this one raised
                problems.append(f"cannot {inverse.explain()}: {errors.reason(error)}")
        return errors.Restored(total=total, undone=undone, problems=tuple(problems))
