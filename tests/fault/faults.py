"""Ways to make things fail: at a step, at a kernel call, in time."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.linux import libc, process

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.plan import Placed

PATIENCE = 15
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


def fail_with(code: int) -> Callable[[], object]:
    """A strike: the call fails with this errno."""

    def strike() -> None:
        raise OSError(code, os.strerror(code))

    return strike


cases = 0


def judged(work: Callable[[], list[str]]) -> list[str]:
    """One case: what `work` found wrong, or what it should not have raised; a hang, too."""
    global cases
    cases += 1
    try:
        found: list[str] = within(PATIENCE, work)
    except (Exception, Hang) as unexpected:
        return [brief(unexpected)]
    return found


def in_child(work: Callable[[], object]) -> int:
    """Fork, work, and return the exit status as subprocess has it: -N for signal N."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            result = work()
            code = result if isinstance(result, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        status = os.waitpid(pid, 0)[1]
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def brief(error: BaseException) -> str:
    """An exception that nobody expected, with the way that it took through our code."""
    frames = traceback.extract_tb(error.__traceback__)
    way = [f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in frames if "/atoll/" in f.filename]
    return f"{type(error).__name__}: {error} (from {' '.join(way)})"


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


class Call(NamedTuple):
    """The `number`th call, from 1, of one process of a start."""

    process: str
    number: int
    name: str
    detail: str


class Calls:
    """libc.observer that knows which process it is in: "monitor", "init", or a child such as "monitor.1".

    It writes down every call, or strikes at one: that call fails, or whatever `strike` does.
    """

    def __init__(self) -> None:
        self.log = -1
        self.target: Call | None = None
        self.strike: Callable[[], object] = str
        self.struck = mmap.mmap(-1, 1)  # shared with the processes that are forked
        self.begin()
        libc.observer = None
        os.register_at_fork(after_in_child=self._forked)

    def begin(self, target: Call | None = None, strike: Callable[[], object] = str) -> None:
        """From now on this process is the monitor, and its calls count from 1."""
        self.restart()
        self.target, self.strike = target, strike
        self.struck[0] = 0
        libc.observer = self

    def restart(self) -> None:
        self.process, self.number, self.children, self.flags = "monitor", 0, 0, 0

    def end(self) -> None:
        libc.observer = None

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
            self.strike()

    def record(
        self, work: Callable[[], object], runs_of: tuple[str, ...] = ("signal",)
    ) -> list[Call]:
        """The calls of all processes; of a run of like calls (signal(2) for each signal) the first and the last."""
        self.log = os.memfd_create("calls")
        self.begin()
        try:
            work()
            os.lseek(self.log, 0, os.SEEK_SET)
            with open(self.log, encoding="utf-8", closefd=False) as file:
                fields = [line.split("\t", 3) for line in file.read().splitlines()]
        finally:
            self.end()
            os.close(self.log)
            self.log = -1
        found = sorted(Call(f[0], int(f[1]), f[2], f[3]) for f in fields)
        return [
            call
            for last, call, following in zip(
                [None, *found[:-1]], found, [*found[1:], None], strict=True
            )
            if call.name not in runs_of or not (_alike(last, call) and _alike(call, following))
        ]


def _alike(one: Call | None, other: Call | None) -> bool:
    return one is not None and other is not None and one[::2] == other[::2]
