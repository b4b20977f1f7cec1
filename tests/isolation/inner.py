"""The inner isolation: namespaces, and cgroups if asked for, around one function or command.

Some milliseconds, so that each privileged test can have its own.  What stays shared with the outer
isolation: /dev, /etc, /usr, and every file outside /proc and /sys.
"""

from __future__ import annotations

import itertools
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar, overload

from isolation import cgroups, kernel, outer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
_numbers = itertools.count(1)


class IsolationError(AssertionError):
    """What was run inside failed; the message is its traceback."""


@overload
def run_isolated(
    target: Callable[[], T], *, cgroup: bool = ..., network: bool = ..., timeout: float = ...
) -> T: ...
@overload
def run_isolated(
    target: Sequence[str], *, cgroup: bool = ..., network: bool = ..., timeout: float = ...
) -> subprocess.CompletedProcess[str]: ...
def run_isolated(
    target: Any, *, cgroup: bool = False, network: bool = True, timeout: float = 60.0
) -> Any:
    """Run a function (its result comes back pickled) or a command as a child of a new pid namespace's pid 1.

    New mount, pid, IPC, UTS and network namespaces with fresh /proc and /sys and lo up; with `cgroup` also a
    cgroup namespace on fresh cgroups, mounted in the present layout.  Everything in it is gone on return.
    Raises IsolationError when the function raised, TimeoutError after `timeout` seconds.
    """
    if not callable(target):
        argv = list(target)
        return run_isolated(
            lambda: subprocess.run(argv, capture_output=True, text=True, check=False),
            cgroup=cgroup, network=network, timeout=timeout,
        )  # fmt: skip
    subtree = cgroups.Subtree(f"test-{os.getpid()}-{next(_numbers)}")
    layout = present_layout(subtree.hierarchies) if cgroup else "host"
    reader, writer = os.pipe()
    try:
        if cgroup:
            subtree.make()
        door = os.fork()
        if door == 0:
            os.close(reader)
            outer._child(lambda: _door(target, subtree, layout, writer, network=network))
        os.close(writer)
        writer = -1
        answer = _read_all(reader, door, time.monotonic() + timeout, subtree)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        left = subtree.remove()
        if left:
            print(f"isolation: could not remove {left}", file=sys.stderr)
    return _result(answer)


def present_layout(present: list[cgroups.Hierarchy]) -> str:
    """The layout that is mounted here."""
    if all(h.unified for h in present):
        return "v2" if present else "host"
    return "hybrid" if any(h.unified for h in present) else "v1"


def _result(answer: bytes) -> Any:
    if not answer:
        raise IsolationError("the isolated process died without an answer")
    kind, value = pickle.loads(answer)
    if kind == "raised":
        raise IsolationError(value)
    if kind == "skipped":
        import pytest

        pytest.skip(value)
    return value


def _read_all(reader: int, door: int, deadline: float, subtree: cgroups.Subtree) -> bytes:
    """Read until end of file, then reap. Whatever interrupts it (a time-out, ctrl-C) ends the isolation first."""
    chunks: list[bytes] = []
    try:
        while True:
            if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the isolated process took too long")
            if not (chunk := os.read(reader, 1 << 16)):
                return b"".join(chunks)
            chunks.append(chunk)
    except BaseException:
        os.kill(door, signal.SIGKILL)
        raise
    finally:
        while os.waitpid(door, os.WNOHANG) == (0, 0):
            subtree.thaw()
            time.sleep(0.001)


def _door(
    target: Callable[[], object],
    subtree: cgroups.Subtree,
    layout: str,
    writer: int,
    *,
    network: bool,
) -> int:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if subtree.made:
        subtree.enter()
        flags |= kernel.CLONE_NEWCGROUP
    if network:
        flags |= kernel.CLONE_NEWNET
    kernel.unshare(flags)
    first = os.fork()
    if first == 0:
        outer._child(lambda: _first(target, subtree, layout, writer, network=network))
    os.close(writer)
    return outer._status(os.waitpid(first, 0)[1])


def _first(
    target: Callable[[], object],
    subtree: cgroups.Subtree,
    layout: str,
    writer: int,
    *,
    network: bool,
) -> int:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    if network or subtree.made:
        outer.fresh_sysfs(keep_cgroups=not subtree.made)
    if subtree.made:
        cgroups.mount_layout(layout, subtree.made, own_leaf=True)
    if network:
        kernel.loopback_up()
    # Pid 1 stays free of the test: it does not get the default actions of signals, and must reap.
    worker = os.fork()
    if worker == 0:
        outer._child(lambda: _work(target, writer))
    os.close(writer)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker:
            break
    if subtree.made:
        cgroups.thaw_all()
    return outer._status(status)


def _work(target: Callable[[], object], writer: int) -> int:
    import pytest

    try:
        answer = pickle.dumps(("returned", target()))
    except pytest.skip.Exception as skipped:
        answer = pickle.dumps(("skipped", str(skipped.msg)))
    except BaseException:
        answer = pickle.dumps(("raised", traceback.format_exc()))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(writer, "wb") as pipe:
        pipe.write(answer)
    return 0
