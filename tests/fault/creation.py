"""Sweeps over lxc-create: it makes a whole container or nothing, whatever fails, and on a full disk.

And over lxc-destroy: one that failed can be repeated.
"""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from atoll import api, errors, executor
from atoll import host as host_module
from atoll.cli import options
from fault import world
from fault.faults import Call, Calls, FaultAt, fail_with, in_child, judged
from isolation import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from atoll.executor import Observer

NAME = "created"
RUNS_OF = ("symlink", "unlink")  # one for each of 300 applets
HOST = host_module.probe()
run_steps = executor.run


def _made() -> api.Container:
    return api.Container(NAME, lxcpath=world.LXCPATH, host=HOST)


def create(observers: Sequence[Observer] = ()) -> None:
    """lxc-create -t busybox, with observers of its steps."""
    executor.run = partial(run_steps, observers=observers)
    try:
        _made().create("busybox")
    finally:
        executor.run = run_steps


def _destroy() -> None:
    _made().destroy()


def _warm() -> world.Look:
    world.make()
    look = world.Look()
    create()
    _destroy()
    found = look.differences()
    assert not found, found
    return look


# ----------------------------------------------------------------------------------------- creation
def steps() -> list[str]:
    """Each step of a creation fails, before and after it was applied."""
    look = _warm()
    problems = []
    numbers: list[int] = []
    create([_Count(numbers)])
    _destroy()
    for number in numbers:
        for when in ("before", "after"):
            found = judged(partial(_fails, lambda n=number, w=when: create([FaultAt(n, w)])))  # type: ignore[misc]  # the defaults bind
            problems += [f"{when} step {number}: {line}" for line in found or look.differences()]
    return problems


class _Count:
    """Observer that notes the numbers of the steps."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def before(self, place: Any) -> None:
        self.numbers.append(place.number)

    def after(self, place: Any) -> None:
        pass


def _fails(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except errors.AtollError as error:
        restored = getattr(error, "restored", None)
        if restored is not None and restored.undone != restored.total:
            return [f"host {restored}"]
        return []
    return ["it succeeded"]


def calls(code: str) -> list[str]:
    """Each kernel call of a creation fails: a whole container, or an error and nothing."""
    look = _warm()
    observer = Calls()
    recorded = observer.record(create, runs_of=RUNS_OF)
    whole = world.Look()
    _destroy()
    problems = []
    for call in recorded:
        found = judged(partial(_creation_fails, observer, call, getattr(errno, code)))
        if os.path.exists(f"{world.LXCPATH}/{NAME}/config"):
            found += whole.differences()
            _destroy()
        problems += [
            f"{code} from {' '.join(map(str, call))}: {line}"
            for line in found or look.differences()
        ]
    return problems


def _creation_fails(observer: Calls, call: Call, code: int) -> list[str]:
    observer.begin(call, fail_with(code))
    try:
        create()
    except errors.AtollError:
        return [] if observer.struck[0] else ["it failed without the fault"]
    finally:
        observer.end()
    return [] if observer.struck[0] else ["the call was not made"]


def full_disk() -> list[str]:
    """lxc-create on file systems that are too small, in bytes or in files."""
    world.make()
    problems = []
    sizes = [f"size={pages * 4}k" for pages in (*range(3, 40, 4), 100, 200, 300, 400)]
    sizes += [f"size=10m,nr_inodes={files}" for files in (*range(3, 60, 5), 100, 200, 300)]
    for size in sizes:
        kernel.mount("tmpfs", "/media", "tmpfs", 0, size)
        try:
            os.mkdir("/media/lxc")
            made = api.Container(NAME, lxcpath="/media/lxc")
            found = judged(partial(_fails, partial(made.create, "busybox")))
            left = [f"{top} {names} {files}" for top, names, files in os.walk("/media/lxc")][1:]
            problems += [f"{size}: {line}" for line in (*found, *left, *os.listdir("/media/lxc"))]
        finally:
            kernel.umount("/media")
    return problems


def interrupts() -> list[str]:
    """Ctrl-C of lxc-create at each kernel call: 130 and nothing left, or 0 and a whole container."""
    look = _warm()
    observer = Calls()
    recorded = observer.record(create, runs_of=RUNS_OF)
    whole = world.Look()
    _destroy()
    problems = []
    for call in [call for call in recorded if call.process == "monitor"]:
        found = judged(partial(_interrupted, observer, call))
        if os.path.exists(f"{world.LXCPATH}/{NAME}/config"):
            found += whole.differences()
            _destroy()
        problems += [
            f"at {' '.join(map(str, call))}: {line}" for line in found or look.differences()
        ]
    return problems


def _interrupted(observer: Calls, call: Call) -> list[str]:
    errors_fd = os.memfd_create("stderr")

    def tool() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        observer.begin(call, lambda: os.kill(os.getpid(), signal.SIGINT))
        words = ("-P", world.LXCPATH, "-n", NAME, "-t", "busybox", "-f", "/dev/null")
        return options.run("lxc-create", words, stdin=-1, stdout=errors_fd, stderr=errors_fd)

    try:
        status = in_child(tool)
        text = os.pread(errors_fd, 10000, 0).decode()
    finally:
        os.close(errors_fd)
    if status == 0 and observer.struck[0]:
        return (
            []
            if os.path.exists(f"{world.LXCPATH}/{NAME}/config")
            else ["status 0, and no container"]
        )
    return [] if status == 130 and "Traceback" not in text else [f"exit status {status}: {text}"]


# ------------------------------------------------------------------------------------------ destroy
def destroy() -> list[str]:
    """Each kernel call of lxc-destroy fails; a second lxc-destroy does the rest."""
    look = _warm()
    observer = Calls()
    create()
    recorded = observer.record(_destroy, runs_of=RUNS_OF)
    problems = []
    for call in recorded:
        create()
        observer.begin(call, fail_with(errno.EIO))
        found = judged(partial(_tried, _destroy))
        observer.end()
        if os.path.exists(f"{world.LXCPATH}/{NAME}/config"):
            found += judged(partial(_again, _destroy))
        elif call.name == "rmdir" and os.path.isdir(f"{world.LXCPATH}/{NAME}"):
            os.rmdir(
                f"{world.LXCPATH}/{NAME}"
            )  # the very last call: the error named this empty directory
        problems += [
            f"after {' '.join(map(str, call))}: {line}" for line in found or look.differences()
        ]
    return problems


def _tried(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except errors.AtollError:
        return []
    return []


def _again(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except errors.AtollError as error:
        return [f"the second try: {error.message}"]
    return []
