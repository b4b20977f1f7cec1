"""What the two generations of cgroups have in common: the Driver protocol, the one choice between them, shared slots.

Not about any container's names or limits (the package itself) nor about steps (steps.py).
"""

from __future__ import annotations

import errno
import os

from atoll.linux import files
from atoll.plan import Slot
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from atoll.errors import Origin
    from atoll.host import Hierarchy
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler

    class Driver(Protocol):
        """One generation of cgroups: functions on the directory of a cgroup (the modules legacy and unified)."""

        @property
        def VERSION(self) -> int:  # noqa: N802 - a module's constant
            """1 or 2."""

        @property
        def SELF_FILE(self) -> str:  # noqa: N802 - a constant of the module
            """The file in which a process with one thread enters by writing 0."""

        def adopt(self, parent: str, directory: str, controllers: Sequence[str]) -> None:
            """Make a new cgroup usable."""

        def enable(
            self, directory: str, controllers: Sequence[str]
        ) -> tuple[tuple[str, ...], tuple[str, ...]]:
            """Hand controllers down to the children; returns the newly handed down and the refused ones."""

        def move(self, directory: str, pid: int) -> None:
            """Move a process in; 0 is the caller, with a single thread."""

        def kill(self, directories: Sequence[str]) -> None:
            """End what is inside and below, except the caller."""

        def pause(self, directory: str, seconds: float) -> None:
            """Wait for it to become empty, at most `seconds` and possibly less."""

        def delegated(self) -> tuple[str, ...]:
            """Files that a delegate owns besides the directory."""

        def attach(self, directory: str, pid: int) -> None:
            """Move a process into a payload cgroup."""

        def statistics(self, directory: str, controllers: Sequence[str]) -> dict[str, int]:
            """What is counted, by name: cpu blkio memory kernel."""


class Line(Record):
    """`lxc.cgroup.FILE = VALUE` (generation 1) or `lxc.cgroup2.FILE = VALUE` (2).

    `origin` is its line, also where it is a translation of what stands there.
    """

    generation: int
    file: str
    value: str
    origin: Origin | None = None

    def __str__(self) -> str:
        return (
            f"{'lxc.cgroup2' if self.generation == 2 else 'lxc.cgroup'}.{self.file} = {self.value}"
        )


class Payload(Record):
    """The container's cgroups: `path`, below the base of each hierarchy, has the limits, `path`/`inner` the processes."""

    hierarchies: tuple[Hierarchy, ...]
    path: str
    inner: str = ""

    def directory(self, hierarchy: Hierarchy, *, limits: bool = False) -> str:
        """The directory in one hierarchy, absolute."""
        tail = "" if limits or not self.inner else f"/{self.inner}"
        return f"{hierarchy.mount}{hierarchy.base}/{self.path}{tail}"


PAYLOAD: Slot[Payload] = Slot("payload cgroups")
"""Where the payload is; filled by prepare when there are cgroups at all."""
PAYLOAD_FD: Slot[OwnedFd] = Slot("payload cgroup2 descriptor")
"""O_PATH descriptor of the payload's cgroup2 directory; empty on a legacy layout."""
CLONED_INTO: Slot[bool] = Slot("cloned into cgroup")
"""Filled (True) by whoever cloned init straight into clone_fd(h); else it enters or is moved like the others."""
MONITOR: Slot[int] = Slot("process in the monitor cgroup")
"""The process that EnterMonitorCgroup moved: ourselves, unless recovery runs the inverse."""
ENABLED: Slot[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = Slot("enabled controllers")
"""Directory -> the controllers that we handed down there, and the children that it had at the time."""


def clone_fd(h: Handler) -> int | None:
    """The payload's cgroup2 directory, to clone init into (clone3, CLONE_INTO_CGROUP); None without cgroup2.

    Hybrid hosts too: being born in it spares the kernel the half millisecond of a move. Who uses it fills CLONED_INTO.
    """
    fd = h.get(PAYLOAD_FD)
    return None if fd is None else fd.fileno()


def driver(version: int) -> Driver:
    """The functions for one generation: the only choice between them."""
    found = _drivers.get(version)
    if found is None:
        found = _drivers[version] = _load(version)
    return found


def _load(version: int) -> Driver:
    if version == 2:
        from atoll.resources.cgroup import unified

        return unified
    from atoll.resources.cgroup import legacy

    return legacy


_drivers: dict[int, Driver] = {}


def processes(directory: str) -> Iterator[int]:
    """The processes of a cgroup and of those below it, 0 for one that our pid namespace lacks; none where it is gone."""
    for top, _names, _files in os.walk(directory):
        try:
            text = files.read_text(f"{top}/cgroup.procs")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise
            continue
        yield from map(int, text.split())
