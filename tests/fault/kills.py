"""Sweeps with kill -9: of the monitor at every step of either side, at every kernel call of its own, and while it is idle.

After that either `atoll recover` or simply the next start makes the host as it was.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from atoll import errors
from atoll.lifecycle import recover
from atoll.linux import process
from fault import world
from fault.faults import AFTER_THE_START, Call, Calls, in_child, judged

if TYPE_CHECKING:
    from atoll import api
    from atoll.plan import Placed


MESSAGE = 64


# --------------------------------------------------------------------------- kill -9 at every step
class Killer:
    """A process that kills others on demand: a monitor for itself, and init, whose pid namespace hides the monitor."""

    def __init__(self) -> None:
        self.ask = os.pipe2(os.O_CLOEXEC)
        self.answer = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                process.set_death_signal(signal.SIGKILL)
                self._serve()
            finally:
                os._exit(0)

    def _serve(self) -> None:
        while True:
            pid, number, token = os.read(self.ask[0], MESSAGE).split()
            os.kill(int(pid), int(number))
            if token != b"0":
                os.write(self.answer[1], token.ljust(MESSAGE))

    def kill_self(self) -> None:
        """Killed while the step is under way, as from outside; never returns."""
        os.write(self.ask[1], f"{os.getpid()} {signal.SIGKILL:d} 0".encode().ljust(MESSAGE))
        while True:
            signal.pause()

    def kill(self, pid: int, token: int, number: int = signal.SIGKILL) -> None:
        """Returns when `pid` (as the killer sees it) has its signal; whoever died before it did left its answer here."""
        os.write(self.ask[1], f"{pid} {number:d} {token}".encode().ljust(MESSAGE))
        while int(os.read(self.answer[0], MESSAGE)) != token:
            pass

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class KillAt:
    """Observer: the monitor is killed before or after step `number`, whichever side has it."""

    def __init__(self, killer: Killer, number: int, when: str) -> None:
        self.killer = killer
        self.number = number
        self.when = when
        self.monitor = 0

    def before(self, place: Placed) -> None:
        if place.number == 1 and place.phase not in AFTER_THE_START:
            self.monitor = os.getpid()
        self._strike(place, "before")

    def after(self, place: Placed) -> None:
        self._strike(place, "after")

    def _strike(self, place: Placed, when: str) -> None:
        if (place.number, when) != (self.number, self.when) or place.phase in AFTER_THE_START:
            return
        if place.side == "monitor":
            self.killer.kill_self()
        self.killer.kill(self.monitor, 2 * self.number + (self.when == "after"))


def steps(kind: str) -> list[str]:
    """The monitor of a daemonized start is killed at each step; then `atoll recover`, or the next start, cleans up."""
    world.make()
    made = world.container(kind)
    killer = Killer()
    world.start_here(made)
    look = world.Look()
    problems = []
    for place in made.plan(made.wish(world.argv(kind), init_loop=kind == "run")).placed():
        for when in ("before", "after"):
            recovers = (when == "before") == (kind == "mapped")
            work = partial(_kill_at, made, KillAt(killer, place.number, when), recovers)
            found = judged(work) or look.differences()
            how = "recover" if recovers else "next start"
            problems += [
                f"{when} step {place.number}, {place.step.explain()}, {how}: {line}"
                for line in found
            ]
    killer.end()
    return problems


def _kill_at(made: api.Container, observer: KillAt, recovers: bool) -> list[str]:
    try:
        world.start_as_daemon(made, [observer])
    except errors.HostError as error:
        if "the monitor died" not in error.message:
            return [f"the caller hears {error.message}"]
    else:  # nothing comes after an exec
        made.wait(["STOPPED"])
        return []
    return _clean_up(made, recovers)


def _clean_up(made: api.Container, recovers: bool) -> list[str]:
    made.wait(["STOPPED"])
    if recovers:
        return [str(one) for one in recover.all_dead(made.host) if one.restored.problems]
    outcome = world.start_here(made)
    return [] if outcome.exit_code == 0 else [f"the next start ends with {outcome}"]


# --------------------------------------------------------------------- kill -9 at every kernel call
def calls(kind: str, part: str = "0/1") -> list[str]:
    """The monitor is killed at each of its kernel calls, from the first of the start to the last of the stop."""
    world.make()
    made = world.container(kind)
    world.start_here(made)
    look = world.Look()
    observer = Calls()
    recorded = observer.record(lambda: world.start_here(made))
    first, step = map(int, part.split("/"))
    problems = []
    for call in [call for call in recorded if call.process == "monitor"][first::step]:
        found = judged(partial(_kill_at_call, made, observer, call)) or look.differences()
        problems += [f"killed at {' '.join(map(str, call))}: {line}" for line in found]
    return problems


def _kill_at_call(made: api.Container, observer: Calls, call: Call) -> list[str]:
    def killed() -> None:
        observer.begin(call, lambda: os.kill(os.getpid(), signal.SIGKILL))
        world.start_here(made)

    status = in_child(killed)
    if status != -signal.SIGKILL:
        return [f"the monitor was not killed but ended with {status}"]
    return _clean_up(made, recovers=call.number % 2 == 0)


# ------------------------------------------------------------------------------------- kill, running
def running(kind: str) -> list[str]:
    """The monitor of a running container is killed: init dies with it, and recovery does the rest."""
    world.make()
    world.start_here(world.container(kind))
    look = world.Look()
    made = world.container(kind, world.config(kind, more="lxc.init.cmd = /bin/sleep 1000\n"))
    problems = []
    for recovers in (True, False):
        found = judged(partial(_kill_running, made, world.container(kind), recovers))
        problems += [
            f"killed while running, recovers {recovers}: {line}"
            for line in found or look.differences()
        ]
    return problems


def _kill_running(made: api.Container, following: api.Container, recovers: bool) -> list[str]:
    world.start_as_daemon(made)
    with made.client.get_init_pidfd() as pidfd:
        os.kill(monitor_pid(made), signal.SIGKILL)
        process_ended(pidfd.fileno())
    return _clean_up(following, recovers)


def monitor_pid(made: api.Container) -> int:
    """The parent of init."""
    with open(f"/proc/{made.client.get_init_pid()}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def process_ended(pidfd: int, patience: float = 10.0) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            process.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            return
        if time.monotonic() > deadline:
            raise AssertionError("init lives on without its monitor")
        time.sleep(0.001)
