"""What others ask about cgroups: the command server's paths and descriptors, attach, statistics.

Sources of truth: reference of LXC 5.10, 10.3 (commands 6 17 19 20 23 24 25) and 11.6; cgroups(7).
"""

from __future__ import annotations

import errno
import os

from atoll.errors import reason
from atoll.linux import files, proc
from atoll.log import get_logger
from atoll.records import Record
from atoll.resources.cgroup.driver import PAYLOAD, driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from atoll.host import Hierarchy, Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler

log = get_logger(__name__)

LEGACY: Final = 0
HYBRID: Final = 1
UNIFIED: Final = 2
NO_LAYOUT: Final = -1
V1_MAGIC: Final = 0x27E0EB
V2_MAGIC: Final = 0x63677270
_LAYOUTS: Final = {
    frozenset({1}): LEGACY,
    frozenset({1, 2}): HYBRID,
    frozenset({2}): UNIFIED,
}


class Statistics(Record):
    """What a container used: processor time in nanoseconds, the rest in bytes; None where it cannot be read."""

    cpu_ns: int | None = None
    blkio: int | None = None
    memory: int | None = None
    kernel_memory: int | None = None


def statistics(host: Host, paths: Mapping[str, str]) -> Statistics:
    """Read the counters of a container whose cgroups are `paths`: hierarchy's mount -> path in it."""
    found: dict[str, int] = {}
    for hierarchy in host.hierarchies:
        path = paths.get(hierarchy.mount)
        if path is not None:
            directory = f"{hierarchy.mount}/{path.strip('/')}"
            counted = driver(hierarchy.version).statistics(directory, hierarchy.controllers)
            found = {**counted, **found}  # v1 comes first: cgroup2 counts only what v1 leaves it
    return Statistics(
        cpu_ns=found.get("cpu"),
        blkio=found.get("blkio"),
        memory=found.get("memory"),
        kernel_memory=found.get("kernel"),
    )


def payload_paths(host: Host, pid: int) -> dict[str, str]:
    """Where a process is: hierarchy's mount -> path in it. Raises OSError when the process is gone."""
    lines = proc.parse_cgroups(files.read_text(f"/proc/{pid}/cgroup"))
    found = {}
    for hierarchy in host.hierarchies:
        wanted = set(hierarchy.controllers) if hierarchy.version == 1 else set()
        for line in lines:
            if set(line.controllers) == wanted:
                found[hierarchy.mount] = line.path
    return found


def attach(host: Host, paths: Mapping[str, str], pid: int) -> None:
    """Move a process into the payload cgroups `paths`: hierarchy's mount -> path in it (reference of LXC 5.10).

    A hierarchy that we may not write to, or whose cgroup is gone, is left out, as LXC does. Raises OSError for anything else,
    with the process moved in the hierarchies before.
    """
    for hierarchy in host.hierarchies:
        path = paths.get(hierarchy.mount)
        if path is None:
            continue
        try:
            driver(hierarchy.version).attach(f"{hierarchy.mount}/{path.strip('/')}", pid)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                raise


def layout_number(h: Handler) -> int:
    """LXC's number of this container's layout: LEGACY 0, HYBRID 1, UNIFIED 2; NO_LAYOUT -1 without cgroups."""
    return _LAYOUTS.get(frozenset(each.version for each in _hierarchies(h)), NO_LAYOUT)


def get_cgroup(h: Handler, controller: str, *, limits: bool = False) -> str | None:
    """Commands 6 and 19: the payload's (or with `limits` the limits') path in the hierarchy of `controller`, or None.

    lxc: "/lxc.payload.c1" on legacy and hybrid layouts, "lxc.payload.c1" on unified ones.
    """
    hierarchy = _find(h, controller)
    if hierarchy is None:
        return None
    path = h[PAYLOAD].directory(hierarchy, limits=limits)[len(hierarchy.mount) :]
    return path.lstrip("/") if layout_number(h) == UNIFIED else path


def payload_fds(h: Handler) -> tuple[OwnedFd, ...]:
    """Command 23: all payload directories, in the order of the hierarchies. The caller closes them."""
    return tuple([_open(h, hierarchy) for hierarchy in _hierarchies(h)])


def cgroup2_fd(h: Handler, *, limits: bool = False) -> OwnedFd | None:
    """Commands 17 and 20: the payload's cgroup2 directory; None unless the layout is unified."""
    if layout_number(h) != UNIFIED:
        return None
    return _open(h, _hierarchies(h)[0], limits=limits)


def controller_fd(
    h: Handler, controller: str, *, limits: bool = False
) -> tuple[int, OwnedFd] | None:
    """Commands 24 and 25: the file system's magic number and the directory for a controller; None if unknown.

    LXC 5.0.2 answers each with the other's directory; a client can tell only with an inner directory.
    """
    hierarchy = _find(h, controller)
    if hierarchy is None:
        return None
    magic = V1_MAGIC if hierarchy.version == 1 else V2_MAGIC
    return magic, _open(h, hierarchy, limits=limits)


def thaw(h: Handler) -> None:
    """Wake a container that is to be killed: a process in a frozen v1 cgroup cannot die before (freezer-subsystem.rst)."""
    for hierarchy in _hierarchies(h):
        directory = h[PAYLOAD].directory(hierarchy)
        try:
            if hierarchy.version == 2:
                files.write_text(f"{directory}/cgroup.freeze", "0")
            elif "freezer" in hierarchy.controllers:
                files.write_text(f"{directory}/freezer.state", "THAWED")
        except OSError as error:
            log.debug("cannot thaw %s: %s", directory, reason(error))


def _hierarchies(h: Handler) -> tuple[Hierarchy, ...]:
    payload = h.get(PAYLOAD)
    return payload.hierarchies if payload is not None else ()


def _find(h: Handler, controller: str) -> Hierarchy | None:
    for hierarchy in _hierarchies(h):
        if controller in hierarchy.controllers:
            return hierarchy
    return None


def _open(h: Handler, hierarchy: Hierarchy, *, limits: bool = False) -> OwnedFd:
    directory = h[PAYLOAD].directory(hierarchy, limits=limits)
    return files.open_fd(directory, os.O_PATH | os.O_DIRECTORY)
