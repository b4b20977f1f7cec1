"""Cgroups of the isolation's own: one new directory in every hierarchy, and a mount layout made of them.

Nothing here writes into a cgroup that it did not make; the caller's own cgroups stay as they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from typing import NamedTuple

from isolation import kernel

ROOT = "/sys/fs/cgroup"
LAYOUTS = ("auto", "hybrid", "v1", "v2", "host")
# A new v1 cpu cgroup has no real-time budget: SCHED_FIFO gives EPERM there.  The first share that the
# kernel grants is taken (µs of each second; isolations run side by side and nest).
REALTIME_SHARES = (200_000, 100_000, 50_000, 10_000)


class Hierarchy(NamedTuple):
    """A mounted hierarchy; `options` as mount(2) wants them for v1 ("cpu,cpuacct", "none,name=systemd")."""

    mount: str
    fstype: str
    options: str

    @property
    def unified(self) -> bool:
        return self.fstype == "cgroup2"


def hierarchies() -> list[Hierarchy]:
    """What is mounted and visible here, each hierarchy once."""
    found: dict[str, Hierarchy] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, right = line.rstrip("\n").split(" - ", 1)
            device, _root, point = left.split()[2:5]
            fstype, _source, options = right.split(" ", 2)
            if fstype not in ("cgroup", "cgroup2") or not os.path.exists(f"{point}/cgroup.procs"):
                continue
            found.setdefault(device, Hierarchy(point, fstype, _v1_options(options)))
    return list(found.values())


def _v1_options(options: str) -> str:
    kept = [o for o in options.split(",") if o not in ("rw", "ro") and not o.startswith("release")]
    kept = [o for o in kept if o not in ("xattr", "clone_children", "noprefix")]
    named = [o for o in kept if o.startswith("name=")]
    return ",".join(["none", *named]) if named and kept == named else ",".join(kept)


def resolve_layout(layout: str) -> str:
    """What `auto` means on this machine; `hybrid` and `v1` mean v2 where there is no v1."""
    present = hierarchies()
    v1 = any(not h.unified for h in present)
    v2 = any(h.unified for h in present)
    if layout == "host" or not present:
        return "host"
    if not v1:
        return "v2"
    if layout in ("auto", "hybrid"):
        return "hybrid" if v2 else "v1"
    return layout if layout == "v1" or v2 else "v1"


class Subtree:
    """The directory `name` at the root of each hierarchy, to be entered, and removed with all below it."""

    def __init__(self, name: str, *, parents: list[Hierarchy] | None = None) -> None:
        self.name = name
        self.hierarchies = hierarchies() if parents is None else parents
        self.made: list[Hierarchy] = []

    def path(self, hierarchy: Hierarchy) -> str:
        return f"{hierarchy.mount}/{self.name}"

    def make(self) -> None:
        for hierarchy in self.hierarchies:
            try:
                os.mkdir(self.path(hierarchy), 0o755)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                continue  # a hierarchy that is read-only for us: stay where we are
            self.made.append(hierarchy)
            self._make_usable(hierarchy)

    def _make_usable(self, hierarchy: Hierarchy) -> None:
        controllers = hierarchy.options.split(",")
        if "cpuset" in controllers:  # empty at first, and then no process may enter
            for name in ("cpuset.cpus", "cpuset.mems"):
                with open(f"{hierarchy.mount}/{name}", encoding="ascii") as parent:
                    _write(f"{self.path(hierarchy)}/{name}", parent.read())
        if "cpu" in controllers:
            budget = f"{self.path(hierarchy)}/cpu.rt_runtime_us"
            if os.path.exists(budget):
                for share in REALTIME_SHARES:
                    with contextlib.suppress(OSError):
                        _write(budget, str(share))
                        break

    def enter(self) -> None:
        """Move the calling process in."""
        for hierarchy in self.made:
            _write(f"{self.path(hierarchy)}/cgroup.procs", "0")

    def thaw(self) -> None:
        """Wake what is frozen: in v1 a frozen process cannot even be killed."""
        for hierarchy in self.made:
            for directory in _directories(self.path(hierarchy)):
                file = "cgroup.freeze" if hierarchy.unified else "freezer.state"
                with contextlib.suppress(OSError):
                    _write(f"{directory}/{file}", "0" if hierarchy.unified else "THAWED")

    def kill(self) -> None:
        """SIGKILL everything in our own cgroups, and nothing else."""
        for hierarchy in self.made:
            for directory in _directories(self.path(hierarchy)):
                for pid in _pids(directory):
                    if pid not in (0, os.getpid()):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

    def remove(self, *, patience: float = 10.0) -> list[str]:
        """Thaw, kill and remove; the directories that are still there after `patience` seconds."""
        deadline = time.monotonic() + patience
        pause = 0.001
        while left := self._remove_once():
            if time.monotonic() > deadline:
                return left
            self.thaw()
            self.kill()
            time.sleep(pause)
            pause = min(pause * 2, 0.2)
        return []

    def _remove_once(self) -> list[str]:
        left = []
        for hierarchy in self.made:
            for directory in _directories(self.path(hierarchy)):
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    continue
                except OSError:
                    left.append(directory)
        return left


def mount_layout(layout: str, own: list[Hierarchy], *, own_leaf: bool = False) -> None:
    """Mount `own` anew from the present cgroup namespace's roots onto an empty /sys/fs/cgroup."""
    unified = [h for h in own if h.unified]
    if layout == "v2":
        kernel.mount("cgroup2", ROOT, "cgroup2")
        if own_leaf:  # only a cgroup without processes can hand controllers down
            os.mkdir(f"{ROOT}/tests")
            _write(f"{ROOT}/tests/cgroup.procs", "0")
        return
    kernel.mount("tmpfs", ROOT, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    for hierarchy in own:
        if hierarchy.unified:
            continue
        name = hierarchy.options.split("name=")[-1]
        target = f"{ROOT}/{name}"
        os.mkdir(target)
        kernel.mount("cgroup", target, "cgroup", 0, hierarchy.options)
        if "," in name:  # cpu,cpuacct: the single names are symbolic links, as systemd makes them
            for single in name.split(","):
                os.symlink(name, f"{ROOT}/{single}")
    if layout == "hybrid" and unified:
        os.mkdir(f"{ROOT}/unified")
        kernel.mount("cgroup2", f"{ROOT}/unified", "cgroup2")


def thaw_all(top: str = ROOT) -> None:
    """Thaw whatever is frozen below `top` but not the roots themselves. For a mount layout of our own only."""
    for directory in _directories(top):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            file = f"{directory}/{name}"
            if os.path.exists(file):
                with contextlib.suppress(OSError):
                    _write(file, value)


def _directories(top: str) -> list[str]:
    """`top` and what is beneath it, deepest first."""
    return [directory for directory, _names, _files in os.walk(top, topdown=False)]


def _pids(directory: str) -> list[int]:
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:
        return []


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
