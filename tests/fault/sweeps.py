"""The sweeps themselves, in a process of their own: `python -m fault.sweeps NAME KEY=VALUE…` inside an isolation.

Each goes over all cases of a kind and returns what was wrong, a line each: nothing, when the promise holds. It promises
that whatever fails, and whoever is killed, leaves the host exactly as it was.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.lifecycle import recover
from fault import creation, faults, interrupts, kills, undoing, world
from fault.faults import Call, Calls, FaultAt, fail_with, judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.plan import Placed


# ----------------------------------------------------------------------------- A: every step fails
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
            work = partial(_fail_at, made, place, when)
            found = judged(work) or look.differences()
            problems += [
                f"{when} step {place.number}, {place.step.explain()}: {line}" for line in found
            ]
    return problems


def _fail_at(made: Any, place: Placed, when: str) -> list[str]:
    """What is wrong with the error of a start in which this step fails."""
    executes = type(place.step).__name__ in ("ExecInit", "RunCommand")
    try:
        outcome = world.start_here(made, [FaultAt(place.number, when)])
    except errors.StepError as error:
        told = (error.number, error.step, error.side, error.phase, error.errno)
        wanted = (place.number, type(place.step).__name__, place.side, place.phase, errno.EIO)
        if told != wanted:
            return [f"the error blames {told}: {error.message}"]
        if error.restored is None or error.restored.undone != error.restored.total:
            return [f"host {error.restored}"]
        return []
    if executes and when == "after":  # nothing comes after an exec
        return [] if outcome.exit_code == 0 else [f"exit code {outcome.exit_code}"]
    return ["the start succeeded"]


# ---------------------------------------------------------------------- B: every kernel call fails
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
        work = partial(_fail_call, made, observer, call, getattr(errno, code))
        found = judged(work) or look.differences()
        problems += [f"{code} from {' '.join(map(str, call))}: {line}" for line in found]
    return problems


def _fail_call(made: Any, observer: Calls, call: Call, code: int) -> list[str]:
    observer.begin(call, fail_with(code))
    error: errors.AtollError | None = None
    restored = None
    try:
        outcome = world.start_here(made)
        restored = outcome.restored
    except errors.AtollError as caught:
        error = caught
        restored = getattr(caught, "restored", None)
    finally:
        observer.end()
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
        print("failed", call, errors.describe(error, tool="x"), file=sys.stderr)
    return found


def clear(error: errors.AtollError) -> bool:
    """Words for people: a sentence, not the name of a Python exception."""
    return bool(error.message) and not re.search(r"\b[A-Z]\w+(Error|Exception)\b", error.message)


SWEEPS: dict[str, Callable[..., list[str]]] = {
    "steps": steps,
    "calls": calls,
    "kill-steps": kills.steps,
    "kill-calls": kills.calls,
    "kill-running": kills.running,
    "interrupt-steps": interrupts.steps,
    "interrupt-calls": interrupts.calls,
    "interrupt-hooks": interrupts.hooks,
    "inverses": undoing.inverses,
    "descriptors": undoing.descriptors,
    "create-steps": creation.steps,
    "create-calls": creation.calls,
    "create-full-disk": creation.full_disk,
    "create-interrupts": creation.interrupts,
    "destroy-calls": creation.destroy,
}


def main(argv: list[str]) -> int:
    name, *options = argv
    problems = SWEEPS[name](**dict(option.split("=", 1) for option in options))
    os.write(1, json.dumps({"cases": faults.cases, "problems": problems}).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
