"""What every cgroup driver has to do, on a directory that acts as a cgroup file system and on the kernel's own.

`check_driver(make)`: `make()` gives a World: the driver, an existing cgroup in its hierarchy to work in, and a way to start a
process and to look where it is.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from atoll.linux import files

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.resources.cgroup.driver import Driver

    class Life(Protocol):
        pid: int

        def alive(self) -> bool: ...
        def end(self) -> None: ...


class World(NamedTuple):
    driver: Driver
    base: str
    controllers: tuple[str, ...]
    spawn: Callable[[], Life]


def check_driver(make: Callable[[], World]) -> None:
    """Every promise of the Driver protocol, one after the other."""
    for check in (_moves, _kills_below, _spares_the_caller, _attaches, _enables, _counts):
        world = make()
        check(world)
        for top, _names, _files in os.walk(world.base, topdown=False):
            if top != world.base:
                files.rmdir(top)


def _new(world: World, name: str) -> str:
    directory = f"{world.base}/{name}"
    files.mkdir(directory, 0o755)
    world.driver.adopt(directory.rpartition("/")[0], directory, world.controllers)
    return directory


def _procs(directory: str) -> list[int]:
    return [int(word) for word in files.read_text(f"{directory}/cgroup.procs").split()]


def _moves(world: World) -> None:
    one, two = _new(world, "one"), _new(world, "two")
    life = world.spawn()
    world.driver.move(one, life.pid)
    assert _procs(one) == [life.pid]
    world.driver.move(two, life.pid)
    assert (_procs(one), _procs(two)) == ([], [life.pid])
    life.end()


def _kills_below(world: World) -> None:
    top, below = _new(world, "top"), _new(world, "top/below")
    spared = _new(world, "spared")
    lives = [world.spawn() for _ in range(3)]
    for life, directory in zip(lives, (top, below, spared), strict=True):
        world.driver.move(directory, life.pid)
    world.driver.kill([top])
    for _attempt in range(1000):
        if not (lives[0].alive() or lives[1].alive()):
            break
        world.driver.pause(below, 0.05)
    assert [life.alive() for life in lives] == [False, False, True]
    world.driver.kill([top, f"{world.base}/nowhere"])  # nobody, and nothing: no error
    for life in lives:
        life.end()


def _spares_the_caller(world: World) -> None:
    top = _new(world, "top")
    child = os.fork()
    if child == 0:
        try:
            world.driver.move(top, os.getpid())
            world.driver.kill([top])
            os._exit(7)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    _forget(top, child)


def _attaches(world: World) -> None:
    top = _new(world, "top")
    life = world.spawn()
    world.driver.attach(top, life.pid)
    where = f"{top}/.lxc" if world.driver.VERSION == 2 else top
    assert _procs(where) == [life.pid]
    again = world.spawn()
    world.driver.attach(top, again.pid)
    assert sorted(_procs(where)) == sorted([life.pid, again.pid])
    life.end()
    again.end()


def _enables(world: World) -> None:
    enabled, refused = world.driver.enable(world.base, ())
    assert (enabled, refused) == ((), ())
    enabled, refused = world.driver.enable(world.base, ("nosuch",))
    assert enabled == ()
    assert refused == (("nosuch",) if world.driver.VERSION == 2 else ())


def _counts(world: World) -> None:
    top = _new(world, "top")
    counted = world.driver.statistics(top, world.controllers)
    assert all(value >= 0 for value in counted.values())
    assert world.driver.statistics(f"{top}/nowhere", world.controllers) == {}
    assert "cgroup.procs" in world.driver.delegated()


def _forget(directory: str, pid: int) -> None:
    """A fake does not notice that a process ended."""
    try:
        text = files.read_text(f"{directory}/cgroup.procs")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return
    if str(pid) in text.split():
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write("")


# ------------------------------------------------------------------------ a directory as cgroupfs
class FakeCgroups:
    """A directory that behaves like a hierarchy as far as drivers can tell: files appear, processes are in one cgroup."""

    def __init__(self, top: str, version: int) -> None:
        self.top = top
        self.version = version
        self.killed: set[int] = set()
        self._mkdir, self._rmdir, self._write = files.mkdir, files.rmdir, files.write_text
        self.names = ["cgroup.procs"] + (
            ["cgroup.kill", "cgroup.subtree_control", "cgroup.events", "cgroup.controllers"]
            if version == 2
            else ["tasks", "cgroup.clone_children", "cpuset.cpus", "cpuset.mems", "freezer.state"]
        )
        self.fill(top)

    def fill(self, directory: str) -> None:
        for name in self.names:
            with open(f"{directory}/{name}", "w") as file:
                file.write({"cgroup.clone_children": "0", "cpuset.cpus": "0-3"}.get(name, ""))

    def mkdir(self, path: str, mode: int, *, dir_fd: int | None = None) -> None:
        self._mkdir(path, mode, dir_fd=dir_fd)
        if path.startswith(self.top):
            self.fill(path)

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        if path.startswith(self.top) and os.path.isdir(path):
            below = [entry.name for entry in os.scandir(path) if entry.is_dir()]
            if below or files.read_text(f"{path}/cgroup.procs").split():
                raise OSError(errno.EBUSY, "busy")
            for name in self.names:
                os.unlink(f"{path}/{name}")
        self._rmdir(path, dir_fd=dir_fd)

    def write(self, path: str, text: str, *, dir_fd: int | None = None) -> None:
        directory, _, name = path.rpartition("/")
        if not path.startswith(self.top):
            self._write(path, text, dir_fd=dir_fd)
        elif name in ("cgroup.procs", "tasks"):
            self._drop(int(text) or os.getpid())
            with open(f"{directory}/cgroup.procs", "a") as file:
                file.write(f"{int(text) or os.getpid()}\n")
        elif name == "cgroup.kill":
            for top, _names, _files in os.walk(directory):
                for pid in files.read_text(f"{top}/cgroup.procs").split():
                    self.signal(int(pid))
        elif name == "cgroup.subtree_control" and "nosuch" in text:
            raise OSError(errno.EINVAL, "no such controller")
        else:
            with open(path, "r+") as file:
                file.truncate()
                file.write(text)

    def signal(self, pid: int) -> None:
        if pid not in (0, os.getpid()):
            self.killed.add(pid)
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        for top, _names, _files in os.walk(self.top):
            left = [p for p in files.read_text(f"{top}/cgroup.procs").split() if int(p) != pid]
            with open(f"{top}/cgroup.procs", "w") as file:
                file.write("".join(f"{p}\n" for p in left))
