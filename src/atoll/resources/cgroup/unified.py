"""Cgroup2: controllers of ancestors, entering, killing, delegating, attaching, statistics. Satisfies the package's Driver.

Each function works on the directory of one cgroup. Not about device programs (BPF). Sources of truth: the kernel's
admin-guide/cgroup-v2, cgroups(7), reference of LXC 5.3 to 5.10.
"""

from __future__ import annotations

import errno
import os
import select

from atoll.linux import files
from atoll.resources.cgroup import legacy
from atoll.resources.cgroup.driver import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

VERSION: Final = 2
SELF_FILE: Final = "cgroup.procs"
DELEGATED: Final = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group")
"""What a delegate owns where the kernel does not say it itself (/sys/kernel/cgroup/delegate, since 4.15)."""
LEAF: Final = ".lxc"
LEAVES: Final = 1000


def adopt(parent: str, directory: str, controllers: Sequence[str]) -> None:
    """Nothing: a cgroup2 works as it is made."""
    del parent, directory, controllers


def enable(directory: str, controllers: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hand controllers down to the children of `directory`; returns the newly handed down and the refused ones.

    The kernel refuses where the cgroup has processes of its own (EBUSY), and cpu to real-time processes (EINVAL). One that it
    refuses does not keep the others away.
    """
    file = f"{directory}/cgroup.subtree_control"
    had = files.read_text(file).split()
    wanted = tuple([controller for controller in controllers if controller not in had])
    if not wanted:
        return (), ()
    try:
        files.write_text(file, " ".join([f"+{controller}" for controller in wanted]))
    except OSError:
        enabled = tuple([controller for controller in wanted if _enable_one(file, controller)])
        return enabled, tuple([c for c in wanted if c not in enabled])
    return wanted, ()


def _enable_one(file: str, controller: str) -> bool:
    try:
        files.write_text(file, f"+{controller}")
    except OSError:
        return False
    return True


def disable(directory: str, controllers: Sequence[str]) -> None:
    """Take controllers back from the children of `directory`; what is gone or in use there stays as it is."""
    try:
        names = " ".join(f"-{controller}" for controller in controllers)
        files.write_text(f"{directory}/cgroup.subtree_control", names)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBUSY):
            raise


def children(directory: str) -> tuple[str, ...]:
    """The names of the cgroups directly below."""
    with os.scandir(directory) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)))


def move(directory: str, pid: int) -> None:
    """Move a process with all its threads; 0 is the caller."""
    files.write_text(f"{directory}/cgroup.procs", str(pid))


def kill(directories: Sequence[str]) -> None:
    """End every process in these cgroups and below, but not ourselves."""
    for directory in directories:
        inside = set(processes(directory))
        if not inside:
            continue
        if os.getpid() not in inside:
            try:
                files.write_text(f"{directory}/cgroup.kill", "1")  # since 5.14
            except FileNotFoundError:
                pass
            else:
                continue
        for pid in inside:
            legacy.signal(pid)


def pause(directory: str, seconds: float) -> None:
    """Wait until the kernel says that `directory` is populated or not, or for the time given."""
    try:
        events = files.open_fd(f"{directory}/cgroup.events", os.O_RDONLY)
    except OSError:
        legacy.pause(directory, seconds)
        return
    with events:
        if b"populated 0" in os.read(events.fileno(), 4096):  # and arms the notification
            legacy.pause(directory, seconds)  # EBUSY for another reason: a child is being removed
            return
        poll = select.poll()
        poll.register(events.fileno(), select.POLLPRI)
        poll.poll(min(seconds, 0.1) * 1000)


def delegated() -> tuple[str, ...]:
    """The files that the owner of a delegated cgroup writes, as the kernel lists them."""
    try:
        return tuple(files.read_text("/sys/kernel/cgroup/delegate").split())
    except FileNotFoundError:
        return DELEGATED


def attach(directory: str, pid: int) -> None:
    """Move a process into a leaf of a payload cgroup: only the leaves of a cgroup2 tree may have processes.

    lxc: `.lxc` first, then the payload cgroup itself, then `.lxc-1` to `.lxc-999` when that is busy (it hands down
    controllers). Raises OSError of the last attempt.
    """
    if _enter_leaf(f"{directory}/{LEAF}", pid) is None:
        return
    try:
        move(directory, pid)
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        last = error
    for number in range(1, LEAVES):
        problem = _enter_leaf(f"{directory}/{LEAF}-{number}", pid)
        if problem is None:
            return
        last = problem
    raise last


def _enter_leaf(directory: str, pid: int) -> OSError | None:
    made = False
    try:
        try:
            files.mkdir(directory, 0o755)
            made = True
        except FileExistsError:
            pass
        move(directory, pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            raise  # the process, not the place
        if made:
            files.rmdir(directory)
        return error
    return None


def statistics(directory: str, controllers: Sequence[str]) -> dict[str, int]:
    """What the cgroup counts: cpu (nanoseconds), blkio, memory (bytes); unreadable ones are left out."""
    del controllers  # cpu.stat is there without the controller
    found: dict[str, int] = {}
    cpu = _words(f"{directory}/cpu.stat")
    if "usage_usec" in cpu:
        found["cpu"] = int(cpu[cpu.index("usage_usec") + 1]) * 1000
    io = [word.partition("=") for word in _words(f"{directory}/io.stat")]
    if io or os.path.exists(f"{directory}/io.stat"):
        found["blkio"] = sum(int(n) for key, _, n in io if key in ("rbytes", "wbytes"))
    memory = _words(f"{directory}/memory.current")
    if memory:
        found["memory"] = int(memory[0])
    return found


def _words(path: str) -> list[str]:
    try:
        return files.read_text(path).split()
    except OSError:
        return []
