"""The sweeps themselves, in a process of their own: `python -m fault.sweeps NAME KEY=VALUE…` inside an isolation.

Each goes over all cases of a kind and returns what was wrong, a line each: nothing, when the promise holds. It promises
that whatever fails, and whoever is killed, leaves the host exactly as it was.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll import errors
from atoll.lifecycle import recover
from atoll.linux import libc, process
from fault import world

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.plan import Placed

PATIENCE = 30
"""Seconds for one case; a case takes a tenth of one."""
AFTER_THE_START = ("stop", "stopped")


class Hang(BaseException):
    """A case took too long: not an Exception, so that nothing on the way takes it for its own."""


def within(seconds: int, work: Callable[[], Any]) -> Any:
    """Do it, or raise Hang."""

    def ring(_signal: int, _frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        return work()
    finally:
        signal.alarm(0)


def brief(error: BaseException) -> str:
    """An exception that nobody expected, with the way that it took through our code."""
    frames = traceback.extract_tb(error.__traceback__)
    way = [f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in frames if "/atoll/" in f.filename]
    return f"{type(error).__name__}: {error} (from {' '.join(way)})"


# ----------------------------------------------------------------------------- A: every step fails
class FaultAt:
    """Observer by which step `number` fails, before it is applied or when it was."""

    def __init__(self, number: int, when: str) -> None:
        self.number = number
        self.when = when

    def before(self, place: Placed) -> None:
        self._strike(place, "before")

    def after(self, place: Placed) -> None:
        self._strike(place, "after")

    def _strike(self, place: Placed, when: str) -> None:
        if (place.number, when) == (self.number, self.when) and place.phase not in AFTER_THE_START:
            raise OSError(errno.EIO, "a fault for the test")


def steps(kind: str) -> list[str]:
    """Each step fails, before and after it was applied: the error names it, and all is as before."""
    world.make()
    made = world.container(kind)
    plan = made.plan(made.wish(world.argv(kind), init_loop=kind == "run"))
    world.start_here(made)
    look = world.Look()
    problems = []
    for place in plan.placed():
        for when in ("before", "after"):
            found = _fail_at(made, place, when) or look.differences()
            problems += [f"{when} step {place.number}, {place.step.explain()}: {line}" for line in found]
    return problems


def _fail_at(made: Any, place: Placed, when: str) -> list[str]:
    """What is wrong with the error of a start in which this step fails."""
    executes = type(place.step).__name__ in ("ExecInit", "RunCommand")
    try:
        outcome = within(PATIENCE, lambda: world.start_here(made, [FaultAt(place.number, when)]))
    except errors.StepError as error:
        told = (error.number, error.step, error.side, error.phase, error.errno)
        wanted = (place.number, type(place.step).__name__, place.side, place.phase, errno.EIO)
        if told != wanted:
            return [f"the error blames {told}: {error.message}"]
        if error.restored is None or error.restored.undone != error.restored.total:
            return [f"host {error.restored}"]
        return []
    except (Exception, Hang) as unexpected:
        return [brief(unexpected)]
    if executes and when == "after":  # nothing comes after an exec
        return [] if outcome.exit_code == 0 else [f"exit code {outcome.exit_code}"]
    return ["the start succeeded"]


# ---------------------------------------------------------------------- B: every kernel call fails
class Call(NamedTuple):
    """The `number`th call, from 1, of one process of a start."""

    process: str
    number: int
    name: str
    detail: str


class Calls:
    """libc.observer that knows which process it is in: "monitor", "init", or a child such as "monitor.1".

    With `log` it writes down every call; with `target` that one call fails.
    """

    def __init__(self) -> None:
        self.process = "monitor"
        self.number = 0
        self.children = 0
        self.flags = 0
        self.log = -1
        self.target: Call | None = None
        self.code = 0
        self.struck = mmap.mmap(-1, 1)  # shared with the processes that are forked
        os.register_at_fork(after_in_child=self._forked)

    def begin(self, target: Call | None = None, code: int = 0) -> None:
        self.number, self.children = 0, 0
        self.target, self.code = target, code
        self.struck[0] = 0
        libc.observer = self

    def _forked(self) -> None:
        own = self.process == "monitor" and self.flags & process.CLONE_NEWPID
        self.process = "init" if own else f"{self.process}.{self.children}"
        self.number, self.children = 0, 0

    def __call__(self, name: str, args: tuple[object, ...]) -> None:
        self.number += 1
        if name == "clone3":
            self.flags = args[0] if isinstance(args[0], int) else 0
            self.children += not self.flags & process.CLONE_NEWPID
        if self.log >= 0:
            detail = " ".join(repr(arg)[:60] for arg in args)
            os.write(self.log, f"{self.process}\t{self.number}\t{name}\t{detail}\n".encode())
        target = self.target
        if target is not None and (self.process, self.number) == target[:2]:
            self.struck[0] = 1
            raise OSError(self.code, os.strerror(self.code))

    def record(self, work: Callable[[], object]) -> list[Call]:
        """The calls of all processes; of a run of like calls (signal(2) for all signals) the first and the last."""
        self.log = os.memfd_create("calls")
        self.begin()
        try:
            work()
            os.lseek(self.log, 0, os.SEEK_SET)
            with open(self.log, encoding="utf-8", closefd=False) as file:
                fields = [line.split("\t", 3) for line in file.read().splitlines()]
        finally:
            libc.observer = None
            os.close(self.log)
            self.log = -1
        found = sorted(Call(f[0], int(f[1]), f[2], f[3]) for f in fields)
        return [
            call
            for last, call, following in zip([None, *found], found, [*found[1:], None])
            if call.name != "signal" or not (_alike(last, call) and _alike(call, following))
        ]


def _alike(one: Call | None, other: Call | None) -> bool:
    return one is not None and other is not None and one[::2] == other[::2]


def calls(kind: str, code: str, part: str = "0/1") -> list[str]:
    """Each kernel call fails once with an errno: a clear error or none, and all is as before.

    `part` I/N takes each Nth call from the Ith on.
    """
    world.make()
    made = world.container(kind)
    world.start_here(made)
    look = world.Look()
    observer = Calls()
    first, step = map(int, part.split("/"))
    problems = []
    for call in observer.record(lambda: world.start_here(made))[first::step]:
        found = _fail_call(made, observer, call, getattr(errno, code)) or look.differences()
        problems += [f"{code} from {' '.join(map(str, call))}: {line}" for line in found]
    return problems


def _fail_call(made: Any, observer: Calls, call: Call, code: int) -> list[str]:
    observer.begin(call, code)
    error: errors.AtollError | None = None
    restored = None
    try:
        outcome = within(PATIENCE, lambda: world.start_here(made))
        restored = outcome.restored
    except errors.AtollError as caught:
        error = caught
        restored = getattr(caught, "restored", None)
    except (Exception, Hang) as unexpected:
        return [brief(unexpected)]
    finally:
        libc.observer = None
    if not observer.struck[0]:
        return ["the call was not made"]
    found = []
    if error is not None and not clear(error):
        found.append(f"not a clear error: {errors.describe(error, tool='sweep')}")
    if restored is not None and restored.undone != restored.total:
        again = recover.all_dead(made.host)
        found += [f"recovery says {one.restored}" for one in again if one.restored.problems]
        if not again or not restored.problems:
            found.append(f"host {restored}, and nothing to recover")
    if error is None:
        tolerated = f"{call.process} {call.number} {call.name} {call.detail}"
        print("tolerated", errno.errorcode[code], tolerated, restored, file=sys.stderr)
    else:
        print("failed", call, errors.describe(error, tool='x'), file=sys.stderr)
    return found


def clear(error: errors.AtollError) -> bool:
    """Words for people: a sentence, not the name of a Python exception."""
    return bool(error.message) and not re.search(r"\b[A-Z]\w+(Error|Exception)\b", error.message)


SWEEPS: dict[str, Callable[..., list[str]]] = {"steps": steps, "calls": calls}


def main(argv: list[str]) -> int:
    name, *options = argv
    answer = SWEEPS[name](**dict(option.split("=", 1) for option in options))
    os.write(1, json.dumps(answer).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
