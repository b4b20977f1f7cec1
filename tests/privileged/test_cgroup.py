"""Cgroups on the real kernel: the driver contract, a whole life, what goes wrong, what others ask. Any layout: --cgroup."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from abilities import needs
from atoll import host as host_module
from atoll.config.text import Config
from atoll.errors import HostError, StepError
from atoll.executor import Journal, run
from atoll.linux import files, libc, process
from atoll.plan import CHILD, ROOTFS, Handler, Phase, Plan, Start
from atoll.resources import cgroup
from atoll.resources.cgroup import driver as drivers
from atoll.resources.cgroup import steps
from contract.cgroup_driver import World, check_driver

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator

    from atoll.host import Hierarchy, Host

LXCPATH = "/var/lib/lxc"


class Life:
    """A sleeping child."""

    def __init__(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            signal.pause()
            os._exit(0)
        self.ended = False

    def alive(self) -> bool:
        if not self.ended:
            self.ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return not self.ended

    def end(self) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True


@pytest.fixture
def host() -> Host:
    found = host_module.probe()
    assert found.hierarchies, "the isolation has cgroups"
    assert all(each.writable for each in found.hierarchies)
    return found


@pytest.fixture
def life() -> Iterator[Life]:
    made = Life()
    yield made
    made.end()


def start(**changes: Any) -> Start:
    values: dict[str, Any] = {
        "name": "t1",
        "lxcpath": "/l",
        "start_id": "abcdefgh",
        "began": time.time(),
        "argv": ("x",),
    }
    return Start(**{**values, **changes})


def config(*lines: str) -> Config:
    return Config.parse("".join(f"{line}\n" for line in lines), file="config")


class World2:
    """A started container as far as cgroups go: init sleeps in its payload."""

    def __init__(self, host: Host, *lines: str, into: bool = True, **changes: Any) -> None:
        self.host, self.config, self.start = host, config(*lines), start(**changes)
        self.said: list[str] = []
        self.h = Handler(report=lambda _level, text: self.said.append(text))
        self.journal = Journal()
        self.into = into

    def prepare(self) -> World2:
        self._run(cgroup.prepare(self.config, self.host, self.start))
        return self

    def spawn(self, entry: Callable[[], object] = signal.pause) -> World2:
        joins = cgroup.join(self.config, self.host, self.start)
        ready, go = os.pipe()

        def init() -> None:
            for step in joins:
                step.apply(self.h)
            os.write(go, b"x")
            entry()

        fd = cgroup.clone_fd(self.h) if self.into else None
        self.h[CHILD] = process.clone(init, cgroup_fd=fd)
        if fd is not None:
            self.h[cgroup.CLONED_INTO] = True
        os.close(go)
        assert os.read(ready, 1) == b"x"
        os.close(ready)
        self._run(cgroup.enter(self.config, self.host, self.start))
        self._run(cgroup.finish(self.config, self.host, self.start))
        return self

    def _run(self, made: tuple) -> None:
        plan = Plan(name="t", phases=(Phase(name="p", monitor=made),))
        places = plan.placed()
        base = max((entry.number for entry in self.journal.entries), default=0)
        run(
            [p.replace(number=p.number + base) for p in places],
            self.h,
            total=len(places),
            journal=self.journal,
        )

    def where(self, pid: int) -> set[str]:
        return {cgroup.payload_paths(self.host, pid)[each.mount] for each in self.host.hierarchies}

    def stop(self) -> None:
        restored = self.journal.unwind(self.h)
        assert not restored.problems
        assert restored.undone == restored.total
        child = self.h.take(CHILD)
        if child is not None:
            process.wait_pidfd(child.pidfd.fileno())
            child.pidfd.close()
        self.h.close()


def paths(host: Host, path: str) -> list[str]:
    return [f"{each.mount}{each.base}/{path}" for each in host.hierarchies]


def children(host: Host) -> list[str]:
    return [
        f"{h.mount}/{n}"
        for h in host.hierarchies
        for n in os.listdir(h.mount + h.base)
        if n.startswith(("lxc", "t1"))
    ]


# --------------------------------------------------------------------------------------- contract
def test_driver_of_every_hierarchy(host: Host) -> None:
    for each in host.hierarchies:
        base = f"{each.mount}{each.base}/contract"
        generation = drivers.driver(each.version)
        if (
            each.version == 1
            and "freezer" not in each.controllers
            and "cpuset" not in each.controllers
        ):
            continue

        def make(each: Hierarchy = each, base: str = base, generation: Any = generation) -> World:
            if not os.path.isdir(base):
                files.mkdir(base, 0o755)
                generation.adopt(each.mount + each.base, base, each.controllers)
            return World(generation, base, each.controllers, Life)

        check_driver(make)
        files.rmdir(base)


# ------------------------------------------------------------------------------------ a whole life
@pytest.mark.parametrize("into", [True, False])
def test_whole_life(host: Host, into: bool) -> None:
    before = cgroup.payload_paths(host, os.getpid())
    handed_down = [files.read_text(f"{each.mount}{each.base}/cgroup.subtree_control") for each in host.hierarchies if each.version == 2]  # fmt: skip
    world = World2(host, into=into).prepare().spawn()
    if host.layout == "unified":
        base = host.hierarchies[0].mount + host.hierarchies[0].base
        found = files.read_text(f"{base}/cgroup.subtree_control").split()
        assert found == list(host.hierarchies[0].controllers)
    assert world.where(os.getpid()) == {each.base + "/lxc.monitor.t1" for each in host.hierarchies}
    assert world.where(world.h[CHILD].pid) == {
        each.base + "/lxc.payload.t1" for each in host.hierarchies
    }
    world.stop()
    assert cgroup.payload_paths(host, os.getpid()) == before
    assert children(host) == []
    assert handed_down == [files.read_text(f"{each.mount}{each.base}/cgroup.subtree_control") for each in host.hierarchies if each.version == 2]  # fmt: skip


def test_second_start_of_the_same_name_gets_a_suffix(host: Host) -> None:
    world = World2(host).prepare()
    assert cgroup.free_suffix(config(), host, "t1") == "-1"
    with pytest.raises(StepError, match=r"cannot create cgroup .*lxc\.payload\.t1: it exists"):
        World2(host, monitor_cgroup=False).prepare()
    world.stop()


def test_stays_where_it_is_without_a_monitor_cgroup(host: Host) -> None:
    before = cgroup.payload_paths(host, os.getpid())
    world = World2(host, monitor_cgroup=False).prepare().spawn()
    assert cgroup.payload_paths(host, os.getpid()) == before
    world.stop()


def test_directory_goes_with_its_last_user(host: Host) -> None:
    one = World2(host, "lxc.cgroup.dir = t1/deep", monitor_cgroup=False).prepare().spawn()
    two = World2(host, "lxc.cgroup.dir = t1/deep", monitor_cgroup=False, name="t2").prepare()
    assert one.where(one.h[CHILD].pid) == {
        each.base + "/t1/deep/lxc.payload.t1" for each in host.hierarchies
    }
    one.stop()
    assert all(os.path.isdir(path) for path in paths(host, "t1/deep/lxc.payload.t2"))
    two.stop()
    assert children(host) == []


def test_directory_of_the_administrator_stays(host: Host) -> None:
    for path in paths(host, "t1"):
        os.mkdir(path)
        if "cpuset" in path:
            drivers.driver(1).adopt(os.path.dirname(path), path, ("cpuset",))
    World2(host, "lxc.cgroup.dir = t1/deep").prepare().stop()
    for path in paths(host, "t1"):
        assert [e.name for e in os.scandir(path) if e.is_dir()] == []
        os.rmdir(path)


def test_inner_directory(host: Host) -> None:
    lines = (
        "lxc.cgroup.dir.monitor = t1m",
        "lxc.cgroup.dir.container = t1c",
        "lxc.cgroup.dir.container.inner = in",
    )
    world = World2(host, *lines).prepare().spawn()
    assert world.where(world.h[CHILD].pid) == {each.base + "/t1c/in" for each in host.hierarchies}
    assert world.where(os.getpid()) == {each.base + "/t1m" for each in host.hierarchies}
    for controller in [c for each in host.hierarchies for c in each.controllers]:
        slash = "" if host.layout == "unified" else "/"
        own = host.hierarchies[0].base.strip("/")
        base = f"{slash}{own}/" if own else slash
        assert cgroup.get_cgroup(world.h, controller) == f"{base}t1c/in"
        assert cgroup.get_cgroup(world.h, controller, limits=True) == f"{base}t1c"
    world.stop()
    assert children(host) == []


@needs("cgroup-v1")
def test_v1_limits(host: Host) -> None:
    world = World2(
        host, "lxc.cgroup.devices.deny = a", "lxc.cgroup.devices.allow = c 1:3 rwm",
        "lxc.cgroup.devices.allow = /dev/full r", "lxc.cgroup.pids.max = 77", "lxc.cgroup.cpuset.cpus = 0",
    ).prepare().spawn()  # fmt: skip
    top = "/sys/fs/cgroup"
    assert files.read_text(f"{top}/pids/lxc.payload.t1/pids.max") == "77\n"
    assert files.read_text(f"{top}/cpuset/lxc.payload.t1/cpuset.cpus") == "0\n"
    assert files.read_text(f"{top}/devices/lxc.payload.t1/devices.list") == "c 1:3 rwm\nc 1:7 r\n"
    world.stop()


def test_unknown_file_is_named_with_its_line(host: Host) -> None:
    line = (
        "lxc.cgroup2.cgroup.nosuch = 1"
        if host.layout == "unified"
        else "lxc.cgroup.pids.nosuch = 1"
    )
    world = World2(host, line)
    with pytest.raises(StepError) as caught:
        world.prepare().spawn()
    assert caught.value.message.startswith(f"cannot set {line}: the cgroup has no file ")
    assert caught.value.origin is not None
    assert caught.value.origin.line == 1
    world.stop()
    assert children(host) == []


@needs("cgroup-v2")
def test_v2_limit(host: Host) -> None:
    world = World2(host, "lxc.cgroup2.cgroup.max.depth = 7").prepare().spawn()
    place = next(each.mount + each.base for each in host.hierarchies if each.version == 2)
    value = files.read_text(f"{place}/lxc.payload.t1/cgroup.max.depth")
    world.stop()
    assert value == "7\n"


def test_ownership_for_a_mapped_root(host: Host) -> None:
    from atoll.linux.proc import IdMapping

    maps = (IdMapping(kind="u", inside=0, outside=100000, count=65536),)
    world = World2(host, id_map=maps, root_uid=100000, root_gid=100001).prepare().spawn()
    for path in paths(host, "lxc.payload.t1"):
        for name, mode in (("", 0o775), ("/cgroup.procs", 0o664)):
            status = os.stat(path + name)
            assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (100000, 100001, mode)
        assert (
            os.stat(
                f"{path}/notify_on_release"
                if "unified" not in path and host.layout != "unified"
                else f"{path}/cgroup.events"
            ).st_uid
            == 0
        )
    world.stop()


# -------------------------------------------------------------------------------- what goes wrong
def test_live_processes_and_nested_cgroups_go_with_the_payload(host: Host) -> None:
    def forks() -> None:
        for _ in range(3):
            if os.fork() == 0:
                signal.pause()
        signal.pause()

    world = World2(host).prepare().spawn(forks)
    for path in paths(host, "lxc.payload.t1"):
        os.makedirs(f"{path}/system.slice/a.service")
        if "cpuset" in path:
            continue
    lives = [Life() for _ in host.hierarchies]
    for each, nested in zip(host.hierarchies, lives, strict=True):
        if "cpuset" not in each.controllers:
            drivers.driver(each.version).move(
                f"{each.mount}{each.base}/lxc.payload.t1/system.slice", nested.pid
            )
    world.stop()
    assert children(host) == []
    assert [life.alive() for life in lives] == [
        "cpuset" in each.controllers for each in host.hierarchies
    ]
    for nested in lives:
        nested.end()


@needs("cgroup-v1")
def test_frozen_container_is_removed(host: Host) -> None:
    world = World2(host).prepare().spawn()
    files.write_text("/sys/fs/cgroup/freezer/lxc.payload.t1/freezer.state", "FROZEN")
    world.stop()


def test_others_in_the_monitor_cgroup_do_not_block(host: Host, life: Life) -> None:
    before = cgroup.payload_paths(host, life.pid)
    world = World2(host).prepare()
    for each in host.hierarchies:
        drivers.driver(each.version).move(f"{each.mount}{each.base}/lxc.monitor.t1", life.pid)
    world.stop()
    assert children(host) == []
    assert life.alive()
    assert cgroup.payload_paths(host, life.pid) == before


@pytest.mark.parametrize("call", ["mkdir", "open", "write"])
def test_failure_at_every_call_leaves_nothing(
    host: Host, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOMEM at call k of preparing, for every k until it works."""
    before = cgroup.payload_paths(host, os.getpid())
    for k in range(1, 300):
        counted = 0

        def observer(name: str, _args: tuple, k: int = k) -> None:
            nonlocal counted
            counted += name == call
            if name == call and counted == k:
                raise OSError(12, "injected")

        world = World2(host)
        monkeypatch.setattr(libc, "observer", observer)
        try:
            world.prepare()
        except StepError:
            monkeypatch.setattr(libc, "observer", None)
            world.stop()
        else:
            monkeypatch.setattr(libc, "observer", None)
            world.stop()
            if counted < k:
                break
        assert children(host) == []
        assert cgroup.payload_paths(host, os.getpid()) == before
    else:
        pytest.fail("never came to the end")
    assert k >= 2


def test_inverses_are_idempotent(host: Host) -> None:
    world = World2(host).prepare()
    inverses = [entry.inverse for entry in world.journal.entries]
    world.stop()
    for inverse in reversed(inverses):
        inverse.apply(Handler())
    assert children(host) == []


def test_recovery_by_another_process(host: Host) -> None:
    """The monitor was killed: its journal's inverses run elsewhere, which must not be moved itself."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        World2(host).prepare().spawn()
        os.write(writer, b"x")
        signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    # Somewhere else than the dead monitor came from, in a cgroup of its own.
    elsewhere = World2(host, name="t1r").prepare()
    before = cgroup.payload_paths(host, os.getpid())
    for step in reversed(cgroup.prepare(config(), host, start())):
        inverse = step.inverse()
        if inverse is not None:
            inverse.apply(Handler())
    after = cgroup.payload_paths(host, os.getpid())
    elsewhere.stop()
    assert after == before
    assert children(host) == []


def test_process_without_a_number_here_is_not_ourselves(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cgroup.procs shows 0 for what our pid namespace lacks, and writing 0 means the writer."""
    moved: list[int] = []
    for each in host.hierarchies:
        generation = drivers.driver(each.version)
        monkeypatch.setattr(generation, "move", lambda _directory, pid: moved.append(pid))
        steps._evict(generation, each.mount + each.base, 0)
        steps._evict(generation, each.mount + each.base, 7)
    assert set(moved) == {7}


def test_recognise(host: Host, life: Life) -> None:
    began = time.time()
    world = World2(host).prepare()
    found = {type(e.inverse): e.inverse for e in world.journal.entries}
    payload, monitor = found[steps.RemovePayloadCgroup], found[steps.RemoveMonitorCgroup]
    assert payload.recognise(began)
    assert not payload.recognise(began + 3600), "made before that start: somebody else's"
    assert not monitor.recognise(began), "somebody is in it"
    for each in host.hierarchies:
        drivers.driver(each.version).move(f"{each.mount}{each.base}/lxc.payload.t1", life.pid)
    assert not payload.recognise(began), "somebody is in it"
    world.stop()


def test_stuck_payload_is_told_and_bounded(
    host: Host, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PATIENCE", 0.0)
    world = World2(host, monitor_cgroup=False).prepare()
    inverse = world.journal.entries[-1].inverse
    for each in host.hierarchies:
        drivers.driver(each.version).move(f"{each.mount}{each.base}/lxc.payload.t1", life.pid)
        monkeypatch.setattr(drivers.driver(each.version), "kill", lambda _directories: None)
    with pytest.raises(
        HostError, match=f"cannot remove cgroup .*lxc.payload.t1: processes {life.pid} do not end"
    ) as caught:
        inverse.apply(Handler())
    assert caught.value.fix
    life.end()
    world.stop()


# ------------------------------------------------------------------------------------------ asked
def test_attach(host: Host, life: Life) -> None:
    world = World2(host).prepare().spawn()
    where = cgroup.payload_paths(host, world.h[CHILD].pid)
    cgroup.attach(host, where, life.pid)
    found = cgroup.payload_paths(host, life.pid)
    for each in host.hierarchies:
        assert found[each.mount] == where[each.mount] + ("/.lxc" if each.version == 2 else "")
    world.stop()


def test_what_the_command_server_asks(host: Host) -> None:
    world = World2(host).prepare().spawn()
    number = {"legacy": 0, "hybrid": 1, "unified": 2}[host.layout]
    assert cgroup.layout_number(world.h) == number
    inodes = [os.stat(path).st_ino for path in paths(host, "lxc.payload.t1")]
    fds = cgroup.payload_fds(world.h)
    assert [os.fstat(fd.fileno()).st_ino for fd in fds] == inodes
    for each, inode in zip(host.hierarchies, inodes, strict=True):
        for controller in each.controllers:
            path = cgroup.get_cgroup(world.h, controller)
            assert path == ("" if number == 2 else "/") + f"{each.base}/lxc.payload.t1".lstrip("/")
            answer = cgroup.controller_fd(world.h, controller)
            assert answer is not None
            magic, fd = answer
            assert magic == {1: 0x27E0EB, 2: 0x63677270}[each.version]
            assert os.fstat(fd.fileno()).st_ino == inode
            fd.close()
    assert cgroup.get_cgroup(world.h, "nosuch") is None
    assert cgroup.controller_fd(world.h, "nosuch") is None
    only = cgroup.cgroup2_fd(world.h)
    assert (only is not None) == (host.layout == "unified")
    for fd in (*fds, *([only] if only else [])):
        fd.close()
    world.stop()


def test_statistics(host: Host) -> None:
    world = World2(host).prepare().spawn()
    found = cgroup.statistics(host, cgroup.payload_paths(host, world.h[CHILD].pid))
    assert found.cpu_ns is not None
    assert found.cpu_ns > 0
    if host.layout != "unified":
        assert found.memory is not None
        assert found.memory > 0
    world.stop()


# ----------------------------------------------------------------------------------------- mounts
MOUNT_CASES = {
    "cgroup:mixed:force": True, "cgroup:ro:force": True, "cgroup2": True, "cgroup-full:rw:force": True,
    "cgroup:mixed": False, "cgroup:ro": False, "cgroup:rw": False, "cgroup-full:ro": False,
}  # fmt: skip


@pytest.mark.parametrize("token", MOUNT_CASES)
def test_mounts_as_lxc(host: Host, token: str, tmp_path: pathlib.Path) -> None:
    namespace = MOUNT_CASES[token]
    if host.layout == "unified" and not namespace:
        with pytest.raises(HostError):
            cgroup.mounts(config(), host, start(), token=token)
        return
    world = World2(host, later_namespaces=process.CLONE_NEWCGROUP if namespace else 0).prepare()
    planned = cgroup.mounts(world.config, host, world.start, token=token)
    root = tmp_path / "root"
    (root / "sys/fs/cgroup").mkdir(parents=True)
    out = tmp_path / "out"

    def init() -> None:
        process.unshare(process.CLONE_NEWNS | (process.CLONE_NEWCGROUP if namespace else 0))
        from atoll.linux import mount

        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        world.h[ROOTFS] = files.open_fd(str(root), os.O_PATH)
        try:
            for step in planned:
                step.apply(world.h)
            text = files.read_text("/proc/self/mountinfo")
            lines = [line.split() for line in text.splitlines() if str(root) in line]
            shown = [
                f"{f[4][len(str(root)) :]} {f[f.index('-') + 1]} {f[3]} {f[5].split(',')[0]}"
                for f in lines
            ]
            out.write_text("\n".join(shown))
        except BaseException as error:
            out.write_text(repr(error))
        os._exit(0)

    world.spawn(init)
    process.wait_pidfd(world.h[CHILD].pidfd.fileno(), reap=False)
    got = out.read_text().splitlines()
    world.stop()
    mode = "ro" if ":ro" in token else "rw"
    if token == "cgroup2" or host.layout == "unified":
        assert got == [f"/sys/fs/cgroup cgroup2 / {mode}"]
        return
    expected = ["/sys/fs/cgroup tmpfs / rw"]
    for each in host.hierarchies:
        name = os.path.basename(each.mount)
        kind = "cgroup2" if each.version == 2 else "cgroup"
        top = f"/sys/fs/cgroup/{name}"
        if namespace or "full" in token:
            expected.append(f"{top} {kind} / {mode}")
            continue
        if token != "cgroup:rw":
            expected.append(f"{top} tmpfs /{name} ro")
        expected.append(f"{top}/lxc.payload.t1 {kind} /lxc.payload.t1 {mode}")
    assert got == expected


# ---------------------------------------------------------------------------------- next to Debian
@needs("lxc")
def test_same_places_as_lxc(host: Host) -> None:
    directory = f"{LXCPATH}/t1"
    locks = not os.path.isdir("/run/lxc")
    os.makedirs(directory)
    try:
        with open(f"{directory}/config", "w") as file:
            file.write(
                "lxc.uts.name = t1\nlxc.net.0.type = empty\nlxc.console.path = none\nlxc.rootfs.path = dir:/\n"
            )
        subprocess.run(
            ["lxc-start", "-n", "t1", "-P", LXCPATH, "--", "/bin/sleep", "60"], check=True
        )
        try:
            answer = subprocess.run(
                ["lxc-info", "-n", "t1", "-P", LXCPATH, "-Hp"],
                check=True,
                capture_output=True,
                text=True,
            )
            theirs = cgroup.payload_paths(host, int(answer.stdout))
            assert cgroup.free_suffix(config(), host, "t1") == "-1"
        finally:
            subprocess.run(["lxc-stop", "-k", "-n", "t1", "-P", LXCPATH], check=True)
    finally:
        shutil.rmtree(directory)
        if locks:
            shutil.rmtree("/run/lxc")
    for path in paths(host, "lxc.pivot"):
        if os.path.isdir(path):
            os.rmdir(path)  # what LXC leaves behind
    world = World2(host).prepare().spawn()
    assert cgroup.payload_paths(host, world.h[CHILD].pid) == theirs
    world.stop()
