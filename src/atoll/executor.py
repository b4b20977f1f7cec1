"""Running steps: the loop, the journal of what to take back, blame, and observers.

Not about processes: which side runs where is lifecycle/spawn.py. The journal is a small text file that survives the
monitor; its format is in docs/design.md. One reader and one writer: this module.
"""

from __future__ import annotations

import errno
import os
import time

from atoll import errors
from atoll.linux import files
from atoll.log import TRACE, get_logger, wanted
from atoll.plan import INIT, HostStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
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

    def infer_exec(self) -> None:
        """Init's last step leaves nobody to tell of it: it lasts from the one before until the monitor's next has seen it."""
        last = max(place.number for place in self.places if place.side == INIT)
        ends = {number: end for number, _begin, end in self.spans}
        self.spans.append((last, ends.get(last - 1, ends[last + 1]), ends[last + 1]))


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
    a dead start from a living one. `discard` removes it. What an earlier journal of that path still has to take back is kept
    and comes last. Raises BlockingIOError when another writer lives, OSError when the file cannot be made.
    """

    def __init__(self, path: str | None = None, *, header: dict[str, object] | None = None) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.header = header or {}
        self._file: OwnedFd | None = None
        self._unread = False
        if path is not None:
            self._file = open_locked(path, create=True)
            try:
                self._begin(path, self._file)
            except BaseException:
                self.discard()
                raise

    @classmethod
    def resume(cls, path: str, file: OwnedFd) -> Journal:
        """The journal of this same process before an exec, by its descriptor; it is read when it is unwound."""
        journal = cls()
        journal.path, journal._file, journal._unread = path, file, True
        return journal

    def _read_back(self) -> str | None:
        """Why the entries cannot be known; None when they are."""
        if not self._unread or self._file is None or self.path is None:
            return None
        try:
            found = Leftover(self.path, read_all(self._file))
        except (
            OSError,
            ValueError,
            SyntaxError,
            TypeError,
        ) as error:  # TypeError: a step lost a field
            return f"cannot read back the journal {self.path}: {errors.reason(error)}"
        self.header, self.entries, self._unread = found.header, found.entries, False
        return None

    def _begin(self, path: str, file: OwnedFd) -> None:
        """The header, and what is left of an earlier start under numbers below the plan's own, which count from 1."""
        left = _left_over(path, file)
        self.entries = [
            Entry(n, one.inverse, "done") for n, one in enumerate(left, start=-len(left))
        ]
        lines = [f"{MAGIC}\t{self.header!r}\n"]
        lines += [
            f"intend\t{e.number}\t{encode(e.inverse)}\ndone\t{e.number}\n" for e in self.entries
        ]
        os.ftruncate(file.fileno(), 0)
        write_line(file, "".join(lines))

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
        unreadable = self._read_back()
        if unreadable is not None:
            log.error("%s", unreadable)
            return errors.Restored(total=1, undone=0, problems=(unreadable,))
        total, undone = 0, 0
        problems: list[str] = []
        for entry in reversed(list(self.entries)):
            if entry.state != "done":
                continue
            total += 1
            try:
                if wanted(TRACE):
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
            write_line(self._file, line)


def open_locked(path: str, *, create: bool) -> OwnedFd:
    """Open a journal and lock it, so that it is ours alone.

    Raises BlockingIOError when its writer lives, also when that is this very process: a second open would end its lock as
    soon as it is closed (fcntl_locking(2)). Other OSErrors as open(2) says; then nothing is left.
    """
    if _is_held_here(path):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        file = files.open_fd(path, flags, 0o600)
        try:
            files.lock_file(file.fileno(), exclusive=True, block=False)
            if _leads_to(path, file):
                return file
        except BlockingIOError:
            file.close()
            raise
        except BaseException:
            if create and not os.fstat(file.fileno()).st_size:
                os.unlink(path)
            file.close()
            raise
        file.close()  # its writer ended and removed it while we waited: take the one that is there now


def _is_held_here(path: str) -> bool:
    try:
        wanted = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:
            continue  # the listing's own
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


def _leads_to(path: str, file: OwnedFd) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(file.fileno())
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def read_all(file: OwnedFd) -> str:
    """The whole journal, by its descriptor: to open it again would end the lock."""
    data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    return data.decode("utf-8", "surrogateescape")


def write_line(file: OwnedFd, line: str) -> None:
    """Append a line. Raises OSError(ENOSPC) when only a part of it fits."""
    data = line.encode("utf-8", "surrogateescape")
    if os.write(file.fileno(), data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _left_over(path: str, file: OwnedFd) -> list[Entry]:
    """What the last user of this file could not take back."""
    text = read_all(file)
    if not text:
        return []
    try:
        entries = Leftover(path, text).entries
    except (ValueError, SyntaxError) as error:
        log.warn("%s", error)
        return []
    return [entry for entry in entries if entry.state == "done"]


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
        """Raises ValueError or SyntaxError for what is no journal, or one with steps that this version does not know."""
        from ast import literal_eval

        lines = text.split("\n")[
            :-1
        ]  # what follows the last newline was being written when the writer died
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
        elif parts[0] == "done" and len(parts) == 2:
            for entry in self.entries:
                if entry.number == int(parts[1]):
                    entry.state = "done"
        elif parts[0] == "undone" and len(parts) == 2:
            self.entries = [entry for entry in self.entries if entry.number != int(parts[1])]

    def take_back(
        self, handler: Handler, *, undone: Callable[[int], None] | None = None
    ) -> errors.Restored:
        """Undo what is done; what was only intended, if it is surely that start's. Never raises.

        `undone` hears the number of each step that is taken back, so that nothing is taken back twice.
        """
        began = float(str(self.header.get("began", 0)))
        total = 0
        problems: list[str] = []
        for entry in reversed(self.entries):
            inverse = entry.inverse
            try:
                if entry.state == "intended" and not inverse.recognise(began):
                    log.info("was under way, and left as it is: %s", inverse.explain())
                    continue
                total += 1
                inverse.apply(handler)
                if undone is not None:
                    undone(entry.number)
            except Exception as error:  # noqa: BLE001 - the rest must be taken back whatever this one raised
                problems.append(f"cannot {inverse.explain()}: {errors.reason(error)}")
        return errors.Restored(total=total, undone=total - len(problems), problems=tuple(problems))
