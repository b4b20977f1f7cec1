"""Plans: what is going to be done, as data. Slots, the Handler, steps, phases, and their explanation.

A Plan is made by pure functions from configuration, Host and Start; nothing here touches the machine. Running a plan is
executor.py's and lifecycle/spawn.py's work. Source of truth: docs/design.md, sections "engine" and "start sequence".

Order inside a phase after the clone: init's steps first, then the monitor's, then the next phase. So the printed order is
the executed order, whole and without choice.
"""

from __future__ import annotations

import select

from atoll.errors import Origin
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, ClassVar, Generic, Protocol, TypeVar

    from atoll.linux.files import OwnedFd
    from atoll.linux.proc import IdMapping
    from atoll.linux.process import Child

    T = TypeVar("T")

    class _Typed(Generic[T]):
        pass
else:

    class _Typed:
        def __class_getitem__(cls, _item: object) -> type:
            return cls


MONITOR = "monitor"
INIT = "init"


class Slot(_Typed["T"]):
    """A typed key of the Handler: `ROOTFS = Slot[OwnedFd]("rootfs")`, declared in the module that fills it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Slot({self.name})"


class Handler:
    """The live values of one start (LXC's lxc_handler): file descriptors, pids, ptys. Mutable by design.

    After the clone both sides have a copy of their own. `report(level, text)` logs on this side; `wait(*fds)` blocks until
    one of them is readable and returns those, while the monitor goes on serving its command socket.
    """

    def __init__(
        self,
        *,
        report: Callable[[int, str], None] | None = None,
        wait: Callable[..., tuple[int, ...]] | None = None,
    ) -> None:
        self._values: dict[Slot[Any], Any] = {}
        self.report: Callable[[int, str], None] = report or _discard
        self.wait: Callable[..., tuple[int, ...]] = wait or wait_readable

    def __getitem__(self, slot: Slot[T]) -> T:
        try:
            value: T = self._values[slot]
        except KeyError:
            raise LookupError(f"slot {slot.name} is empty") from None
        return value

    def __setitem__(self, slot: Slot[T], value: T) -> None:
        if slot in self._values:
            raise LookupError(f"slot {slot.name} is filled already")
        self._values[slot] = value

    def __contains__(self, slot: Slot[Any]) -> bool:
        return slot in self._values

    def get(self, slot: Slot[T]) -> T | None:
        """The value, or None when the slot is empty."""
        value: T | None = self._values.get(slot)
        return value

    def take(self, slot: Slot[T]) -> T | None:
        """Empty the slot and return what it held, or None."""
        value: T | None = self._values.pop(slot, None)
        return value

    def close(self) -> None:
        """Close every value that can be closed, last filled first, and empty all slots."""
        while self._values:
            _slot, value = self._values.popitem()
            if isinstance(value, dict):
                value = tuple(value.values())
            for item in value if isinstance(value, (tuple, list)) else (value,):
                close = getattr(item, "close", None)
                if close is not None:
                    close()


if TYPE_CHECKING:

    class Sync(Protocol):
        """The socket between the two sides, as steps see it (lifecycle/spawn.py has the protocol)."""

        def send_fds(self, name: str, fds: Sequence[int], text: str = "") -> None:
            """Send descriptors, with a text for what belongs to them, under a name that the other side expects."""

        def receive_fds(self, name: str) -> tuple[str, list[OwnedFd]]:
            """Wait for what send_fds sent under `name`; an AtollError when anything else comes."""


# Slots that one resource fills for another; a slot that only lifecycle reads stands with its resource.
SYNC: Slot[Sync] = Slot("sync")
CHILD: Slot[Child] = Slot("child")
"""Container init as the monitor sees it: pid in the monitor's pid namespace, and pidfd. Monitor side only."""
ROOTFS: Slot[OwnedFd] = Slot("rootfs")
"""O_PATH descriptor of the container's root directory, mounted; of "/" when it has no root file system. Init side."""
NAMESPACES: Slot[dict[str, OwnedFd]] = Slot("namespaces")
"""Namespace descriptors of init that the monitor keeps, by name ("net"). Monitor side."""
HOOK_ENVIRONMENT: Slot[dict[str, str]] = Slot("hook environment")
"""The environment of hooks and network scripts on this side."""


def _discard(_level: int, _text: str) -> None:
    """Report to nobody."""


def readable(fd: int) -> bool:
    """Is it readable or hung up now?"""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def wait_readable(*fds: int) -> tuple[int, ...]:
    """Block until one of `fds` is readable or hung up; return those."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return tuple(fd for fd, _event in poll.poll())


class Step(Record):
    """One intention that a user recognises: immutable, printable, applied once.

    `origin` is the configuration line that it comes from. `needs` names slots that an earlier step must have filled, `fills`
    those that this one fills; `Plan.check` verifies the order when the plan is made.
    """

    origin: Origin | None = None
    needs: ClassVar[tuple[Slot[Any], ...]] = ()
    fills: ClassVar[tuple[Slot[Any], ...]] = ()

    def apply(self, h: Handler) -> None:
        """Do it. Raises OSError or an AtollError; leaves nothing behind if it fails."""
        raise NotImplementedError

    def explain(self) -> str:
        """An imperative phrase, lower case, no full stop: "mount proc on /proc". Errors say "cannot" + this."""
        words = _words(type(self).__name__)
        fields = self.as_dict()
        del fields["origin"]
        shown = ", ".join(f"{k} {v}" for k, v in fields.items() if v not in (None, (), "", False))
        return f"{words} ({shown})" if shown else words


class HostStep(Step):
    """Runs in the monitor. `apply` does all or nothing; `inverse` is pure and idempotent."""

    def inverse(self) -> HostStep | None:
        """The step that takes this one back, with primitive fields only (it is one line of the journal), or None."""
        return None

    def recognise(self, began: float) -> bool:
        """For an inverse met by crash recovery as intended but not done: is the object surely made by that start?

        `began` is the start's time (seconds since the epoch). Only if True is it taken back, else it is reported.
        """
        del began
        return False


class InitStep(Step):
    """Runs between clone and exec. No inverse: its effects die with the namespaces.

    May not import, log, look up users or load libraries; raises OSError or an AtollError.
    """


class Phase(Record):
    """A stretch between two barriers. After the clone init's part runs first, then the monitor's."""

    name: str
    init: tuple[InitStep, ...] = ()
    monitor: tuple[HostStep, ...] = ()


class Placed(Record):
    """A step at its place in the plan; `number` counts from 1 in the order of execution."""

    number: int
    phase: str
    side: str
    step: Step


class Plan(Record):
    """Named phases. The first one runs before the clone and has no init side."""

    name: str
    phases: tuple[Phase, ...]

    def placed(self) -> tuple[Placed, ...]:
        """All steps in the order of execution."""
        return tuple(
            Placed(number=number, phase=phase, side=side, step=step)
            for number, (phase, side, step) in enumerate(self._in_order(), start=1)
        )

    def _in_order(self) -> Iterator[tuple[str, str, Step]]:
        for phase in self.phases:
            for step in phase.init:
                yield phase.name, INIT, step
            for host_step in phase.monitor:
                yield phase.name, MONITOR, host_step

    def check(self, given: Sequence[Slot[Any]] = ()) -> None:
        """Verify that every step's needs are filled before it, on its own side. Raises ValueError.

        `given` are slots that the monitor fills before the plan runs.
        """
        filled: dict[str, set[Slot[Any]]] = {MONITOR: set(given), INIT: set()}
        cloned = False
        for number, (_phase, where, step) in enumerate(self._in_order(), start=1):
            side = filled[where]
            if where == INIT and not cloned:
                cloned = True
                side |= filled[MONITOR]  # init begins as a copy of the monitor
            if not side.issuperset(step.needs):
                missing = [slot.name for slot in step.needs if slot not in side]
                raise ValueError(f"step {number} {type(step).__name__} needs {missing} before it")
            side.update(step.fills)


class Start(Record):
    """What one start is, decided before planning: the wish of the caller and choices that several resources share.

    Namespaces are CLONE_NEW* masks. Ids in `root_uid`/`root_gid` are the host's ids of the container's root (0 when no
    id map). `rootfs` is the host path where the root file system gets mounted for the set-up (LXC_ROOTFS_MOUNT), None when
    the container has none. `kept_capabilities` is the bounding set that init will have, as a mask.
    """

    name: str
    lxcpath: str
    start_id: str
    """Eight characters of [0-9a-z], new for every start; names made for it carry it."""
    began: float
    argv: tuple[str, ...]
    init_loop: bool = False
    """A small init reaps, forwards signals and runs argv as its child (lxc-execute, atoll run)."""
    daemon: bool = False
    stdio: tuple[int, int, int] | None = None
    """File descriptors given to init as 0, 1, 2; None: the console, or /dev/null without one."""
    console: bool = True
    """A console pty is allocated; where stdio is None init gets it."""
    clone_namespaces: int = 0
    """Made by clone3."""
    later_namespaces: int = 0
    """Made by init with unshare after the clone (time; cgroup unless pure v2; net with a user namespace)."""
    shared_namespaces: int = 0
    """Joined, not made."""
    id_map: tuple[IdMapping, ...] = ()
    root_uid: int = 0
    root_gid: int = 0
    rootfs: str | None = None
    kept_capabilities: int = (1 << 41) - 1
    cgroup_suffix: str = ""
    """"" or "-1" to "-999": the first for which no hierarchy has a cgroup of ours yet."""
    monitor_cgroup: bool = True
    """The monitor is a process of its own and moves into a cgroup of its own; never done to a library's caller."""
    privileged: bool = True
    """The monitor has the host's CAP_SYS_ADMIN; else it works through user namespaces and set-uid helpers."""
    extra_environment: tuple[str, ...] = ()
    """NAME=value entries for init alone (atoll run --env)."""

    @property
    def directory(self) -> str:
        """LXCPATH/NAME."""
        return f"{self.lxcpath}/{self.name}"

    @property
    def namespaces(self) -> int:
        """All namespaces that are made new, now or later."""
        return self.clone_namespaces | self.later_namespaces

    def link_name(self, prefix: str, number: int) -> str:
        """A host link name of at most 15 characters that carries the start id: vethk3f9x2a0 + number."""
        return f"{prefix}{self.start_id}{number}"[:15]


def explain_text(plan: Plan) -> str:
    """The plan for reading: one line a step, under its phase, with its configuration line where it has one."""
    places = plan.placed()
    phases = len(plan.phases)
    lines = [
        f"{plan.name}: {len(places)} steps in {phases} phases, in this order; nothing is done now"
    ]
    phase = ""
    for place in places:
        if place.phase != phase:
            phase = place.phase
            lines.append(phase)
        origin = place.step.origin
        source = f"    <- {origin.text}  ({origin})" if origin else ""
        lines.append(f"  {place.number:3} {place.side:<7} {place.step.explain()}{source}")
    return "\n".join(lines)


def explain_data(plan: Plan) -> list[dict[str, object]]:
    """The plan as plain data for JSON: number, phase, side, step (class), text, origin {file, line, text} or None."""
    return [
        {
            "number": place.number,
            "phase": place.phase,
            "side": place.side,
            "step": type(place.step).__name__,
            "text": place.step.explain(),
            "origin": place.step.origin.as_dict() if place.step.origin else None,
        }
        for place in plan.placed()
    ]


def _words(name: str) -> str:
    """MountProc -> mount proc."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def flatten(*parts: Sequence[Any] | Step | None) -> tuple[Any, ...]:
    """One tuple of steps from steps, sequences of steps and None, so that a sequence can be written as a table."""
    steps: list[Step] = []
    for part in parts:
        if part is None:
            continue
        if isinstance(part, Step):
            steps.append(part)
        else:
            steps.extend(part)
    return tuple(steps)
