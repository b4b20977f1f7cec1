"""Sweeps in which taking back fails too: an inverse, or everything that wants a descriptor.

What could not be taken back is reported and stays in the journal; recovery, or the next start, finishes the job.
"""

from __future__ import annotations

import errno
import os
import resource
from functools import partial
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.executor import Journal, Leftover
from atoll.lifecycle import monitor, recover
from fault import world
from fault.faults import FaultAt, judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll import api
    from atoll.plan import HostStep


class Sabotage:
    """Makes the inverse of one kind and number of its kind fail, `times` times."""

    def __init__(self, inverse: HostStep) -> None:
        self.cls: Any = type(inverse)
        self.fields = inverse.as_dict()
        self.left = 0
        self.apply = self.cls.apply

    def __call__(self, step: HostStep, h: Any) -> None:
        if self.left and _same(step.as_dict(), self.fields):
            self.left -= 1
            raise OSError(errno.EIO, "a fault for the test")
        self.apply(step, h)

    def install(self, times: int) -> None:
        self.left = times
        self.cls.apply = lambda step, h: self(step, h)  # noqa: PLW0108 - a function binds to the step, an object does not

    def remove(self) -> None:
        self.cls.apply = self.apply


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same object of the host; a link's address and the name that is made for it are new for each start."""

    def lasting(fields: dict[str, Any]) -> dict[str, Any]:
        made = str(fields.get("name", "")).startswith("veth")
        new = ("mac", "host_end", "origin", *(("name",) if made else ()))
        return {key: value for key, value in fields.items() if key not in new}

    return lasting(one) == lasting(other)


def recorded_inverses(made: api.Container) -> list[HostStep]:
    found: list[HostStep] = []
    intend = Journal.intend

    def noting(journal: Journal, number: int, inverse: HostStep) -> None:
        found.append(inverse)
        intend(journal, number, inverse)

    Journal.intend = noting  # type: ignore[method-assign, assignment]
    try:
        world.start_here(made)
    finally:
        Journal.intend = intend  # type: ignore[method-assign]
    return found


def inverses(kind: str) -> list[str]:
    """Each inverse fails: at the stop, at the stop and in recovery, at the stop and before the next start, at a failure."""
    world.make()
    made = world.container(kind)
    inverses_of_start = recorded_inverses(made)
    look = world.Look()
    problems = []
    for inverse in inverses_of_start:
        sabotage = Sabotage(inverse)
        for case in (_once, _twice, _carried, _failing_start):
            found = judged(partial(case, made, sabotage, len(inverses_of_start)))
            sabotage.remove()
            name = f"{type(inverse).__name__} {case.__name__}"
            problems += [f"{name}: {line}" for line in found or look.differences()]
    return problems


def _once(made: api.Container, sabotage: Sabotage, total: int) -> list[str]:
    sabotage.install(1)
    outcome = world.start_here(made)
    return (
        _reported(outcome.restored, sabotage, total) or _kept(made, sabotage) or _recovered(made, 1)
    )


def _twice(made: api.Container, sabotage: Sabotage, total: int) -> list[str]:
    sabotage.install(2)
    outcome = world.start_here(made)
    (again,) = recover.all_dead(made.host)
    found = _reported(outcome.restored, sabotage, total) or _reported(again.restored, sabotage, 1)
    return found or _kept(made, sabotage) or _recovered(made, 1)


def _carried(made: api.Container, sabotage: Sabotage, total: int) -> list[str]:
    """Recovery before the next start fails too: what is left is carried over, and taken back when that one stops."""
    sabotage.install(2)
    world.start_here(made)
    try:
        restored = world.start_here(made).restored
    except errors.StepError as error:
        if sabotage.cls.__name__ != "DeleteLink":
            raise
        # A link that is still there has the name that it wants; both go now.
        return [] if error.restored and not error.restored.problems else [f"host {error.restored}"]
    wanted = errors.Restored(total=total + 1, undone=total + 1)
    return [] if restored == wanted else [f"the next start: host {restored}"]


def _failing_start(made: api.Container, sabotage: Sabotage, total: int) -> list[str]:
    sabotage.install(1)
    last = made.plan(made.wish()).placed()[-1]
    try:
        world.start_here(made, [FaultAt(last.number, "before")])
    except errors.StepError as error:
        if error.restored is None:
            return ["the error does not say what was taken back"]
        if sabotage.cls.__name__ == "KillInit":  # tried at once, and again with the rest
            return (
                []
                if error.restored == errors.Restored(total=total, undone=total)
                else [f"host {error.restored}"]
            )
        return (
            _reported(error.restored, sabotage, total)
            or _kept(made, sabotage)
            or _recovered(made, 1)
        )
    return ["the start succeeded"]


def _reported(restored: errors.Restored, sabotage: Sabotage, total: int) -> list[str]:
    good = (restored.total, restored.undone, len(restored.problems)) == (total, total - 1, 1)
    return [] if good else [f"host {restored}, expected {total - 1} of {total}"]


def _kept(made: api.Container, sabotage: Sabotage) -> list[str]:
    """The journal holds the one thing that is left."""
    path = monitor.journal_path(made.host, made.lxcpath, made.name)
    with open(path, encoding="utf-8") as file:
        entries = Leftover(path, file.read()).entries
    left = [(type(entry.inverse).__name__, entry.state) for entry in entries]
    return [] if left == [(sabotage.cls.__name__, "done")] else [f"the journal has {left}"]


def _recovered(made: api.Container, total: int) -> list[str]:
    found = [one.restored for one in recover.all_dead(made.host)]
    return [] if found == [errors.Restored(total=total, undone=total)] else [f"recovery: {found}"]


# ------------------------------------------------------------------------------------- descriptors
def descriptors(kind: str) -> list[str]:
    """The process may have N descriptors and no more, for each N until a start needs no more."""
    world.make()
    made = world.container(kind)
    world.start_here(made)
    start = world.prepared(made)
    look = world.Look()
    problems = []
    in_use = max(map(int, os.listdir("/proc/self/fd")))
    succeeded = 0
    for most in range(in_use, in_use + 200):
        found = judged(partial(_with_at_most, most, start, made))
        succeeded = succeeded + 1 if found == ["succeeded"] else 0
        if succeeded == 3:
            break
        found = [line for line in found if line != "succeeded"]
        problems += [f"with {most} descriptors: {line}" for line in found or look.differences()]
    else:
        problems.append("it never succeeded")
    return problems


def _with_at_most(most: int, start: Callable[[], Any], made: api.Container) -> list[str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    restored = None
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        restored = start().restored
        found = ["succeeded"]
    except errors.AtollError as error:
        restored = getattr(error, "restored", None)
        found = []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left = recover.all_dead(made.host)
    found += [f"recovery: {one.restored}" for one in left if one.restored.problems]
    if left and (restored is None or not restored.problems):
        found.append(f"host {restored}, but {left} was left to recovery")
    return found
