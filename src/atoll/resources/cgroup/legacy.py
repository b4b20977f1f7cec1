"""Cgroup v1 hierarchies: entering, inheriting cpusets, killing, delegating, statistics. Satisfies the package's Driver.

Each function works on the directory of one cgroup. Not about cgroup2, which a hybrid host has besides: that is unified.py.
Sources of truth: cgroups(7), the kernel's admin-guide/cgroup-v1, reference of LXC 5.2 to 5.10.
"""

from __future__ import annotations

import errno
import os
import time

from atoll.linux import files, process
from atoll.resources.cgroup.driver import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

VERSION: Final = 1
SELF_FILE: Final = "tasks"
"""Where a process with one thread writes "0" to enter: unlike cgroup.procs this takes no lock of all forks, for which the
kernel waits about half a millisecond (an RCU grace period)."""
PAUSE: Final = 0.001
"""Seconds between two looks: v1 has no event for a cgroup that becomes empty."""


def adopt(parent: str, directory: str, controllers: Sequence[str]) -> None:
    """Make the new cgroup `directory` usable: a cpuset begins without processors and memory nodes, and nobody may enter.

    lxc: processors isolated on the kernel command line are left out; the children of ours inherit by themselves.
    """
    if "cpuset" not in controllers:
        return
    if files.read_text(f"{parent}/cgroup.clone_children").strip() != "1":
        for file in ("cpuset.cpus", "cpuset.mems"):
            text = files.read_text(f"{parent}/{file}").strip()
            if file == "cpuset.cpus":
                text = without(text, _isolated())
            files.write_text(f"{directory}/{file}", text)
    files.write_text(f"{directory}/cgroup.clone_children", "1")


def without(processors: str, taken: str) -> str:
    """`processors` (a list such as 0-3,7) less those of `taken`; all of them when nothing would be left."""
    if not taken:
        return processors
    gone = set(_numbers(taken))
    left = [number for number in _numbers(processors) if number not in gone]
    return ",".join(map(str, left)) or processors


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first:
            yield from range(int(first), int(last or first) + 1)


def _isolated() -> str:
    """Processors taken from the scheduler with isolcpus= at boot."""
    if not _boot:
        try:
            _boot.append(files.read_text("/sys/devices/system/cpu/isolated").strip())
        except FileNotFoundError:
            _boot.append("")
    return _boot[0]


_boot: list[str] = []  # what holds until the next boot is read once a process


def enable(directory: str, controllers: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Nothing: every cgroup of a v1 hierarchy has its controllers. Nothing is new, nothing refused."""
    del directory, controllers
    return (), ()


def move(directory: str, pid: int) -> None:
    """Move a process with all its threads; 0 is the caller, who must have a single thread."""
    files.write_text(f"{directory}/{SELF_FILE if pid == 0 else 'cgroup.procs'}", str(pid))


def kill(directories: Sequence[str]) -> None:
    """End every process in these cgroups and below, but not ourselves. Where one has a freezer nobody forks meanwhile."""
    inside = {pid for directory in directories for pid in processes(directory)}
    if not inside:
        return
    frozen: list[str] = []
    if os.getpid() not in inside:  # we would freeze too
        frozen = [directory for directory in directories if _freeze(directory, "FROZEN")]
    try:
        for pid in {pid for directory in directories for pid in processes(directory)}:
            signal(pid)
    finally:
        for directory in frozen:
            _freeze(directory, "THAWED")


def _freeze(directory: str, state: str) -> bool:
    try:
        files.write_text(f"{directory}/freezer.state", state)
    except FileNotFoundError:
        return False
    return True


def signal(pid: int) -> None:
    """SIGKILL for one process that was listed in a cgroup; one that ended in the meantime is no error."""
    if pid in (0, os.getpid()):  # 0: a process that our pid namespace does not show
        return
    try:
        with process.pidfd_open(pid) as pidfd:
            process.pidfd_send_signal(pidfd.fileno(), process.SIGKILL)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL):
            raise


def pause(directory: str, seconds: float) -> None:
    """Wait a little for a cgroup to become empty."""
    del directory
    time.sleep(min(seconds, PAUSE))


def delegated() -> tuple[str, ...]:
    """The files that the owner of a delegated cgroup writes."""
    return ("cgroup.procs", "tasks")


def attach(directory: str, pid: int) -> None:
    """Move a process into a payload cgroup."""
    files.write_text(f"{directory}/cgroup.procs", str(pid))


def statistics(directory: str, controllers: Sequence[str]) -> dict[str, int]:
    """What these controllers count: cpu (nanoseconds), blkio, memory, kernel (bytes); unreadable ones are left out."""
    found: dict[str, int] = {}
    for controller, name, file in (
        ("cpuacct", "cpu", "cpuacct.usage"),
        ("memory", "memory", "memory.usage_in_bytes"),
        ("memory", "kernel", "memory.kmem.usage_in_bytes"),
        ("blkio", "blkio", "blkio.throttle.io_service_bytes"),
    ):
        if controller not in controllers:
            continue
        try:
            words = files.read_text(f"{directory}/{file}").split()
            found[name] = int(words[-1])  # blkio: the last line is "Total BYTES"
        except (OSError, ValueError, IndexError):
            continue
    return found
