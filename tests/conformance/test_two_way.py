"""Containers of one maker under the tools of the other, side by side in one lxcpath: docs/compatibility.md's table.

Every test names who started the container and whose tool looks at it; all four pairs must do the same.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from abilities import needs
from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = needs("lxc")

MAKERS = tools.makers()
PAIRS = [(starter, user) for starter in MAKERS for user in MAKERS]
NETWORK = (
    "lxc.net.0.type = veth",
    "lxc.net.0.link = lxcbr0",
    "lxc.net.0.flags = up",
    "lxc.net.0.name = eth0",
)


class World:
    """The two kinds of tools on one directory of containers."""

    def __init__(self, lxcpath: str, rootfs: str) -> None:
        self.lxcpath = lxcpath
        self.rootfs = rootfs
        self.by = {maker: tools.Tools(maker, lxcpath, tools.launcher()) for maker in MAKERS}

    def define(self, name: str, *lines: str) -> str:
        return tools.define(self.lxcpath, name, self.rootfs, *lines)

    def stop(self, name: str) -> None:
        self.by[tools.DEBIAN].kill(name)


@pytest.fixture(scope="module")
def world(lxcpath: str, rootfs: str) -> World:
    return World(lxcpath, rootfs)


@pytest.fixture(scope="module")
def running(world: World, bridge: str) -> Generator[World, None, None]:
    """A container of each maker, `debian` and `atoll`, with an address, a group and limits; and one that is stopped."""
    for number, maker in enumerate(MAKERS, start=1):
        world.define(
            maker, *NETWORK, f"lxc.net.0.ipv4.address = 10.77.0.{number}/24", f"lxc.net.0.ipv6.address = fd77::{number}/64",
            "lxc.group = web", "lxc.start.auto = 1", "lxc.environment = COLOUR=red", "lxc.cap.drop = sys_time sys_module",
        )  # fmt: skip
        world.by[maker].run(["lxc-start", "-n", maker])
        world.by[maker].inside(maker, "true")
    world.define("stopped", "lxc.group = db")
    yield world
    for maker in MAKERS:
        world.stop(maker)


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}'s-under-{pair[1]}'s")
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(who started the container, whose tools are used)"""
    starter, user = request.param
    return starter, user


@pytest.fixture
def fresh(
    world: World, pair: tuple[str, str]
) -> Generator[tuple[World, tools.Tools, tools.Tools], None, None]:
    """A container `one` that a test may stop: the world, its starter's tools and the user's."""
    world.define("one")
    yield world, world.by[pair[0]], world.by[pair[1]]
    world.stop("one")


def masked(text: str) -> str:
    """Without the numbers that are other numbers a moment later."""
    return re.sub(r"(?m)^((?:CPU use|\w+ use| .. bytes| Total bytes): +).*", r"\1…", text)


INFO = (
    "", "-s", "-p", "-i", "-S", "-H", "-sH", "-pH", "-iH", "-SH", "-spi", "-spiH", "-c lxc.uts.name", "-c lxc.group -c lxc.arch",
    "-c lxc.net.0.type -c lxc.net.0.link -c lxc.cap.drop", "-c lxc.environment -H", "-c lxc.net", "-c lxc.mount.auto", "-s -c lxc.tty.max",
)  # fmt: skip


@pytest.mark.parametrize("name", [*MAKERS, "stopped"])
@pytest.mark.parametrize("options", INFO)
def test_info(running: World, name: str, options: str) -> None:
    shown = {maker: running.by[maker].run(f"lxc-info -n {name} {options}") for maker in MAKERS}
    for maker, done in shown.items():
        assert done.code == 0, (maker, done)
        assert masked(done.out) == masked(shown[tools.DEBIAN].out), (maker, done)
    if options == "" and name in MAKERS:
        number = MAKERS.index(name) + 1
        expected = rf"Name: +{name}\nState: +RUNNING\nPID: +\d+\nIP: +10.77.0.{number}\nIP: +fd77::{number}\nCPU use: "
        assert re.match(expected, shown[tools.DEBIAN].out)
        assert re.search(r"Link: +veth\w+\n TX bytes: ", shown[tools.DEBIAN].out)


LS = (
    "", "-1", "-f", "-f --running", "-f --stopped", "-f --active", "--frozen", "-f -g web", "-f --defined '^d'",
    "-f -F NAME,STATE,PID,INTERFACE,IPV4,IPV6,GROUPS,AUTOSTART,UNPRIVILEGED",
)  # fmt: skip


@pytest.mark.parametrize("options", LS)
def test_ls(running: World, options: str) -> None:
    shown = [running.by[maker].run(f"lxc-ls {options}") for maker in MAKERS]
    assert len(set(shown)) == 1, shown
    if options == "-f":
        rows = {line.split()[0]: line.split()[1:] for line in shown[0].out.splitlines()}
        for number, maker in enumerate(MAKERS, start=1):
            assert rows[maker] == [
                "RUNNING",
                "1",
                "web",
                f"10.77.0.{number}",
                f"fd77::{number}",
                "false",
            ]


def test_memory_in_ls(running: World, pair: tuple[str, str]) -> None:
    shown = running.by[pair[1]].must(f"lxc-ls -f -F NAME,RAM,SWAP '^{pair[0]}$'")
    assert re.fullmatch(
        rf"NAME +RAM +SWAP +\n{pair[0]} +0\.[0-9]*[1-9][0-9]*MB 0.00MB \n", shown
    ), shown


def test_attach(running: World, pair: tuple[str, str]) -> None:
    starter, user = pair
    look = "hostname; echo $COLOUR $container; id; pwd; cat /proc/self/cgroup; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
    look += "; ip -4 -o address show dev eth0; readlink -f /proc/self/ns/mnt | wc -l; ulimit -n"
    expected = running.by[starter].inside(starter, "sh", "-c", look)
    assert running.by[user].inside(starter, "sh", "-c", look) == expected
    assert expected.startswith(f"{starter}\nred lxc\nuid=0(root) gid=0(root)\n/\n")
    pid = running.by[user].pid(starter)
    inner = (
        running.by[user]
        .inside(starter, "sh", "-c", "for n in /proc/self/ns/*; do readlink $n; done")
        .split()
    )
    outer = {os.readlink(f"/proc/{pid}/ns/{name}") for name in os.listdir(f"/proc/{pid}/ns")}
    assert set(inner) <= outer
    assert len(set(inner)) == len(outer)
    assert running.by[user].run(["lxc-attach", "-n", starter, "--", "sh", "-c", "exit 9"]).code == 9


def test_the_attached_are_in_the_containers_cgroups(running: World, pair: tuple[str, str]) -> None:
    starter, user = pair
    attached = running.by[user].spawn(
        ["lxc-attach", "-n", starter, "--", "sh", "-c", "echo; read never"], stdin=subprocess.PIPE
    )
    assert attached.stdout is not None
    attached.stdout.readline()
    children = [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and _argv(pid) == ["sh", "-c", "echo; read never"]
    ]
    init = running.by[user].pid(starter)
    (pid,) = children
    assert _cgroups(pid) == {key: path for key, path in _cgroups(init).items()}
    attached.communicate("\n", timeout=10)
    assert attached.returncode == 0


def _argv(pid: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            return file.read().split("\0")[:-1]
    except OSError:
        return []


def _cgroups(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    return {key: path.removesuffix("/.lxc") for _number, key, path in lines}


def test_console(running: World) -> None:
    """Debian's lxc-console on a tty of either maker's container: what is typed arrives, and the other way round."""
    for maker in MAKERS:
        master, slave = pty.openpty()
        console = running.by[tools.DEBIAN].spawn(
            ["lxc-console", "-n", maker, "-t", "1"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        try:
            seen = _read_until(master, b"itself")
            assert b"Connected to tty 1" in seen, seen
            running.by[maker].inside(maker, "sh", "-c", "echo knock >/dev/tty1")
            assert b"knock" in _read_until(master, b"knock")
            os.write(master, b"typed\r")
            assert (
                running.by[maker].inside(maker, "sh", "-c", "read line </dev/tty1; echo $line")
                == "typed\n"
            )
            assert running.by[tools.DEBIAN].run(f"lxc-console -n {maker} -t 9").code == 1
            os.write(master, b"\x01q")
            assert console.wait(10) == 0
        finally:
            console.kill()
            console.wait()
            os.close(master)


def _read_until(fd: int, wanted: bytes, patience: float = 10.0) -> bytes:
    seen = b""
    while wanted not in seen:
        assert select.select([fd], [], [], patience)[0], seen
        seen += os.read(fd, 4096)
    return seen


def test_kill(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    _world, starter, user = fresh
    starter.start("one")
    waiting = [starter.beside(maker).spawn("lxc-wait -n one -s STOPPED") for maker in MAKERS]
    assert user.run("lxc-stop -k -n one") == tools.Done(0, "", "")
    assert [process.wait(10) for process in waiting] == [0] * len(MAKERS)
    assert [process.communicate() for process in waiting] == [("", "")] * len(MAKERS)
    assert starter.state("one") == user.state("one") == "STOPPED"


def test_stop(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    world, starter, user = fresh
    told = f"{world.rootfs}/tmp/told"
    tools.write(
        f"{world.rootfs}/bin/telling",
        tools.QUICK_INIT.replace("exit 0", "echo told >/tmp/told; exit 0"),
        0o755,
    )
    starter.start("one", "--", "/bin/telling")
    tools.await_ready(starter.pid("one"))
    assert user.run("lxc-stop -n one -t 10") == tools.Done(0, "", "")
    assert starter.state("one") == "STOPPED"
    os.unlink(told)  # the signal arrived: it was not killed


def test_stop_by_force_when_the_time_is_up(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    _world, starter, user = fresh
    starter.start(
        "one", "--", "/bin/sleep", "1000"
    )  # has no handler, and as process 1 ignores the signal
    assert user.run("lxc-stop -n one -t 1 --nokill").code == 1
    assert starter.state("one") == "RUNNING"
    assert user.run("lxc-stop -n one -W").code == 0
    assert starter.state("one") == "RUNNING"
    assert user.run("lxc-stop -n one -t 1").code == 0
    assert starter.state("one") == "STOPPED"


def test_reboot(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    """lxc-stop -r: the same monitor goes on with a new init; who waits for STOPPED hears of it."""
    _world, starter, user = fresh
    starter.start("one")
    tools.await_ready(starter.pid("one"))
    before = user.pid("one")
    monitor = _parent(before)
    assert user.run("lxc-stop -r -n one -t 10") == tools.Done(0, "", "")
    assert user.state("one") == "RUNNING"
    after = starter.pid("one")
    assert after != before
    assert _parent(after) == monitor


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return int(re.findall(r"PPid:\t(\d+)", file.read())[0])


def test_a_second_start_is_refused(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    """The name is taken for both as soon as one has it, also with another file for the configuration."""
    world, starter, user = fresh
    starter.start("one")
    pid = starter.pid("one")
    done = user.run("lxc-start -n one")
    assert (done.code, done.out) == (0, "")
    assert "already running" in done.err
    done = user.run(f"lxc-execute -n one -f {world.lxcpath}/one/config -- true")
    assert done.code == 1
    assert "already running" in done.err
    assert user.run("lxc-destroy -n one").code == 1
    assert starter.pid("one") == pid


def test_freeze(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    """Debian's lxc-freeze, for want of ours; the state is everybody's."""
    world, starter, user = fresh
    starter.start("one")
    freezer = world.by[tools.DEBIAN]
    assert freezer.run("lxc-freeze -n one").code == 0
    assert starter.state("one") == user.state("one") == "FROZEN"
    assert user.must("lxc-ls -1 --frozen") == "one\n"
    assert user.run("lxc-wait -n one -s FROZEN").code == 0
    assert freezer.run("lxc-unfreeze -n one").code == 0
    assert starter.state("one") == user.state("one") == "RUNNING"
    assert freezer.run("lxc-freeze -n one").code == 0
    assert user.run("lxc-stop -k -n one").code == 0
    assert starter.state("one") == "STOPPED"


def test_cgroup_values(fresh: tuple[World, tools.Tools, tools.Tools]) -> None:
    """Debian's lxc-cgroup reads and writes a value of either maker's container."""
    world, starter, _user = fresh
    starter.start("one")
    by = world.by[tools.DEBIAN]
    assert by.run("lxc-cgroup -n one pids.max 55").code == 0
    assert by.must("lxc-cgroup -n one pids.max").strip() == "55"
    pid = starter.pid("one")
    path = _cgroups(pid).get("pids", _cgroups(pid).get("", ""))
    found = [top for top in tools.hierarchies() if os.path.exists(f"{top}{path}/pids.max")]
    with open(f"{found[0]}{path}/pids.max", encoding="ascii") as file:
        assert file.read() == "55\n"


def test_destroy(world: World, pair: tuple[str, str]) -> None:
    """Made by one, started by one, stopped and removed by the other."""
    starter, user = world.by[pair[0]], world.by[pair[1]]
    config = tools.write(f"{world.lxcpath}/base.conf", "lxc.net.0.type = empty\n")
    starter.must(f"lxc-create -n made -t busybox -f {config}")
    starter.start("made")
    assert user.run("lxc-destroy -n made").code == 1
    assert user.run("lxc-destroy -f -n made").code == 0
    assert not os.path.exists(f"{world.lxcpath}/made")
    assert starter.must("lxc-ls nade") == ""


def test_a_template_of_either_starts_with_either(world: World, pair: tuple[str, str]) -> None:
    maker, starter = world.by[pair[0]], world.by[pair[1]]
    config = tools.write(f"{world.lxcpath}/base.conf", "lxc.net.0.type = empty\n")
    maker.must(f"lxc-create -n made -t busybox -f {config}")
    before = tools.read(f"{world.lxcpath}/made/config")
    try:
        assert starter.run("lxc-start -n made") == tools.Done(0, "", "")
        tools.until(
            lambda: "getty" in starter.inside("made", "ps", "-o", "args"),
            "busybox init has begun its children",
        )
        shown = starter.inside("made", "ps", "-o", "args")
        assert shown.splitlines()[:2] == ["COMMAND", "init"]
        for wanted in ("/bin/syslogd", "/bin/getty -L tty1 115200 vt100"):
            assert wanted in shown.splitlines()
        if maker is starter:  # it takes its time
            assert starter.run("lxc-stop -n made -t 10").code == 0  # SIGUSR1 is busybox's halt
        assert tools.read(f"{world.lxcpath}/made/config") == before
    finally:
        world.stop("made")
        maker.must("lxc-destroy -n made")


def test_the_states_of_a_start_and_a_stop(world: World, pair: tuple[str, str]) -> None:
    """STARTING, RUNNING, STOPPING, STOPPED, each held by a hook until somebody waited for it.

    Debian's monitor is deaf while a hook runs, so its STARTING and STOPPING can only be seen by who asked before.
    """
    starter, user = world.by[pair[0]], world.by[pair[1]]
    gates = {name: f"{world.lxcpath}/{'.'.join(pair)}.{name}" for name in ("pre-start", "stop")}
    for path in gates.values():
        os.mkfifo(path)
    world.define(
        "held",
        *(f"lxc.hook.{name} = /bin/sh -c 'read line <{path}' --" for name, path in gates.items()),
    )
    hears = starter.maker != tools.DEBIAN
    starting = starter.spawn("lxc-start -n held")
    if hears:
        assert user.run("lxc-wait -n held -s STARTING -t 10").code == 0
        assert user.state("held") == "STARTING"
        later = user.spawn("lxc-wait -n held -s RUNNING -t 10")
    tools.write(gates["pre-start"], "go\n")
    assert starting.wait(15) == 0
    if hears:
        assert later.wait(15) == 0
    ending = user.spawn("lxc-wait -n held -s STOPPING -t 10")
    tools.until(lambda: receives(ending.pid), "lxc-wait has registered")
    os.kill(user.pid("held"), signal.SIGKILL)
    assert ending.wait(15) == 0
    if hears:
        assert user.state("held") == "STOPPING"
    tools.write(gates["stop"], "go\n")
    assert user.run("lxc-wait -n held -s STOPPED -t 10").code == 0


def test_a_start_that_fails_is_aborting(world: World, pair: tuple[str, str]) -> None:
    starter, user = world.by[pair[0]], world.by[pair[1]]
    gate = f"{world.lxcpath}/{'.'.join(pair)}.gate"
    os.mkfifo(gate)
    world.define("failing", f"lxc.hook.pre-mount = /bin/sh -c 'read line <{gate}; exit 1' --")
    starting = starter.spawn("lxc-start -n failing")
    waiting = user.spawn("lxc-wait -n failing -s 'ABORTING|RUNNING' -t 10")
    if starter.maker != tools.DEBIAN:
        tools.until(lambda: receives(waiting.pid), "lxc-wait has registered")
        tools.write(gate, "go\n")
        assert waiting.wait(15) == 0
    else:  # deaf until init has failed, and then it has ended
        tools.write(gate, "go\n")
    assert starting.wait(15) == 1
    assert user.run("lxc-wait -n failing -s STOPPED -t 10").code == 0


def receives(pid: int) -> bool:
    """It sleeps in a system call that receives: on x86-64 recvmsg(2) is 47, recvfrom(2) 45, poll(2) 7, ppoll(2) 271."""
    return tools.read(f"/proc/{pid}/syscall").split()[0] in {"47", "45", "7", "271"}
