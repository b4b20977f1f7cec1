"""Devpts, console and ttys in real namespaces."""

from __future__ import annotations

import os

import pytest

from abilities import needs
from atoll.config.text import Config
from atoll.host import probe
from atoll.linux import files
from atoll.linux.proc import IdMapping
from atoll.plan import Handler
from atoll.resources import terminal
from privileged import test_mounts as driver

pytestmark = needs("root")


def steps_of(text, start):
    config = Config.parse(text, file="config")
    c = (config, probe(), start)
    return (
        *driver.steps_of(config, start),
        *terminal.devpts(*c),
        *terminal.console(*c),
        *terminal.ttys(*c),
    )


def run(directory, text, *, id_map=(), then=None, **fields):
    """Apply in a clone, as lifecycle would; `then(h)` adds to the answer."""
    rootfs = driver.make_rootfs(directory / "rootfs", id_map[0].outside if id_map else 0)
    start = driver.make_start(fields.pop("rootfs", rootfs), id_map=id_map, **fields)
    config = Config.parse(text, file="config")
    steps = steps_of(text, start)
    h = Handler()
    for step in terminal.host_console(config, probe(), start):
        step.apply(h)

    def body():
        answer = driver.apply_all(rootfs, steps, h)
        answer["then"] = then(h) if then else None
        return answer

    answer = driver.in_child(body, id_map=id_map)
    h.close()
    return answer


public = driver.public
PTS = "rw,nosuid,noexec,relatime"
AUTO = "lxc.mount.auto = proc:mixed sys:mixed\n"


def terminals(answer):
    """/dev's mounts without the tmpfs and the nodes of a user namespace."""
    table = driver.value(answer)["table"]
    return {
        name: row[0][:3]
        for name, row in table.items()
        if row[0][2] == "devpts" and name.startswith("/dev/")
    }


def test_distributions_container(tmp_path):
    answer = run(tmp_path, f"{AUTO}lxc.pty.max = 1024\nlxc.tty.max = 2\nlxc.tty.dir = lxc\n")
    assert terminals(answer) == {
        "/dev/pts": ["/", PTS, "devpts"],
        "/dev/ptmx": ["/ptmx", PTS, "devpts"],
        "/dev/lxc/console": ["/0", PTS, "devpts"],
        "/dev/console": ["/0", PTS, "devpts"],
        "/dev/lxc/tty1": ["/1", PTS, "devpts"],
        "/dev/lxc/tty2": ["/2", PTS, "devpts"],
    }
    dev = answer["value"]["dev"]
    assert dev["console"] == ["0o20620", "136:0", ""]
    assert dev["ptmx"] == ["0o20666", "5:2", ""]
    assert dev["tty1"] == ["0o120777", "0:0", "lxc/tty1"]
    assert answer["value"]["table"]["/dev/pts"][0][3] == "rw,gid=5,mode=620,ptmxmode=666,max=1026"


def test_ttys_without_a_directory(tmp_path):
    answer = run(tmp_path, "lxc.pty.max = 9\nlxc.tty.max = 1\n")
    assert answer["value"]["dev"]["tty1"] == ["0o20620", "136:1", ""]


def test_names_are_those_of_the_ttys(tmp_path):
    text = "lxc.pty.max = 9\nlxc.tty.max = 3\n"
    answer = run(tmp_path, text, then=lambda h: [pty.name for pty in h[terminal.TTYS]])
    start = driver.make_start("/")
    assert tuple(answer["value"]["then"]) == terminal.names(Config.parse(text, file="c"), start)


@pytest.mark.parametrize("pty_max", [0, 9])
def test_what_is_written_to_the_console_reaches_the_relays_end(tmp_path, pty_max):
    def talk(h):
        fd = os.open(f"{tmp_path}/rootfs/dev/console", os.O_RDWR | os.O_NOCTTY)
        os.write(fd, b"hello\n")
        got = os.read(h[terminal.CONSOLE].ptmx.fileno(), 100).decode()
        same = os.fstat(fd).st_rdev == os.fstat(h[terminal.CONSOLE_PEER].fileno()).st_rdev
        return [got, same]

    answer = run(tmp_path, f"{AUTO}lxc.pty.max = {pty_max}\n", then=talk)
    assert driver.value(answer)["then"] == ["hello\r\n", True]


def test_opening_ptmx_in_the_container_gives_the_next_pty(tmp_path):
    def open_ptmx(h):
        root = f"{tmp_path}/rootfs"
        *_ends, name = files.openpty_in(os.open(f"{root}/dev/pts", os.O_RDONLY))
        return [name, os.path.exists(f"{root}/dev/{name}")]

    answer = run(tmp_path, "lxc.pty.max = 9\nlxc.tty.max = 1\n", then=open_ptmx)
    assert driver.value(answer)["then"] == ["pts/2", True]


def test_user_namespace(public):
    answer = run(
        public, f"{AUTO}lxc.pty.max = 9\nlxc.tty.max = 1\n", id_map=driver.MAPS, root_uid=100000
    )
    assert "gid=100005" in driver.value(answer)["table"]["/dev/pts"][0][3]
    assert terminals(answer)["/dev/tty1"] == ["/1", PTS, "devpts"]


def test_user_namespace_without_the_group_of_ttys(public):
    one = tuple(IdMapping(kind=kind, inside=0, outside=100000, count=1) for kind in "ug")
    answer = run(public, "lxc.pty.max = 9\n", id_map=one, root_uid=100000)
    assert "gid=" not in driver.value(answer)["table"]["/dev/pts"][0][3]


def test_group_that_only_an_outer_namespace_does_not_map(public):
    """The plan believes that group 5 is there; the kernel says EINVAL."""
    one = tuple(IdMapping(kind=kind, inside=0, outside=100000, count=1) for kind in "ug")
    rootfs = driver.make_rootfs(public / "rootfs", 100000)
    steps = steps_of("lxc.pty.max = 9\n", driver.make_start(rootfs))
    answer = driver.in_child(lambda: driver.apply_all(rootfs, steps), id_map=one)
    assert "gid=" not in driver.value(answer)["table"]["/dev/pts"][0][3]


def test_host_console_belongs_to_the_containers_root(public):
    def owner(h):
        return os.stat(f"{public}/rootfs/dev/console").st_uid

    answer = run(public, AUTO, id_map=driver.MAPS, root_uid=100000, then=owner)
    assert driver.value(answer)["then"] == 0


def test_console_twice_does_not_stack(tmp_path):
    """A file that is there already (lxc.autodev = 0): what was mounted on it is taken off first."""
    text = "lxc.autodev = 0\nlxc.pty.max = 9\n"

    def again(h):
        terminal.BindConsole(directory=None, inside=True).apply(h)
        with open("/proc/self/mountinfo") as file:
            return sum("/dev/console " in line for line in file)

    assert driver.value(run(tmp_path, text, then=again))["then"] == 1


def test_console_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "rootfs/dev").mkdir(parents=True)
    os.symlink("/etc/passwd", tmp_path / "rootfs/dev/console")
    rootfs = tmp_path / "rootfs"
    start = driver.make_start(str(rootfs))
    steps = terminal.devpts(Config.parse("lxc.pty.max = 9\n", file="c"), probe(), start)
    steps += terminal.console(Config.parse("lxc.pty.max = 9\n", file="c"), probe(), start)
    answer = driver.in_child(lambda: driver.apply_all(str(rootfs), steps))
    assert answer["error"] == (
        "cannot bind a terminal on /dev/console: it is a symbolic link in the container"
    )


def test_host_pty_below_the_containers_dev():
    """No root file system, a tmpfs on /dev, and a console of the host."""
    config = Config.parse("lxc.autodev = 1\n", file="config")
    start = driver.make_start(None)
    c = (config, probe(), start)
    h = Handler()
    for step in terminal.host_console(*c):
        step.apply(h)
    steps = (*driver.steps_of(config, start), *terminal.console(*c))
    answer = driver.in_child(lambda: driver.apply_all("/", steps, h))
    h.close()
    assert answer["error"].startswith("cannot bind the console on /dev/console: its pty /dev/pts/")
    assert (
        answer["fix"] == "set lxc.autodev = 0, lxc.console.path = none, or lxc.pty.max to 2 or more"
    )
