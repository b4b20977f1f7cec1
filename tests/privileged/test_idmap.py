"""Id maps on the real kernel: written by us, by newuidmap, and refused; becoming root in them."""

from __future__ import annotations

import os
import subprocess

import pytest

from abilities import needs
from atoll import errors, host
from atoll.config.text import Config
from atoll.linux import process
from atoll.linux.process import CLONE_NEWUSER
from atoll.plan import Handler, Start
from atoll.resources import idmap
from isolation import kernel
from privileged.stepping import in_child

LINES = "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 200000 1000\nlxc.idmap = u 65536 300000 5\n"
JOE = 4321


def look(_h: Handler) -> str:
    with (
        open("/proc/self/uid_map") as u,
        open("/proc/self/gid_map") as g,
        open("/proc/self/setgroups") as s,
    ):
        maps = ";".join(" ".join(line.split()) for line in [*u, "-", *g, s.read()])
    dumpable = os.stat("/proc/self/mem").st_uid == os.getuid()
    return f"{maps} uid={os.getresuid()} gid={os.getresgid()} groups={os.getgroups()} dumpable={dumpable}"


def start_with(config: Config, on: host.Host, rootless: bool = False) -> Start:
    mapping = idmap.rootless_mapping(on) if rootless else idmap.mappings(config)
    return Start(
        name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",), id_map=mapping,
        clone_namespaces=CLONE_NEWUSER,
    )  # fmt: skip


def run(text: str, on: host.Host, *, rootless: bool = False) -> str:
    config = Config.parse(text)
    start = start_with(config, on, rootless)
    return in_child(
        idmap.become_root(config, on, start),
        look,
        flags=CLONE_NEWUSER,
        monitor=idmap.write(config, on, start),
    )


def as_joe(text: str, subuid: str = "", *, rootless: bool = False) -> str:
    """Run as a user of the machine, whose lines in /etc/subuid and subgid are `subuid`."""
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    with open("/etc/passwd") as file:
        passwd = file.read()
    for name, content in (
        ("passwd", f"{passwd}joe:x:{JOE}:{JOE}::/tmp:/bin/sh\n"), ("subuid", subuid), ("subgid", subuid),
    ):  # fmt: skip
        with open(f"/mnt/{name}", "w") as file:
            file.write(content)
        os.chmod(f"/mnt/{name}", 0o644)
        kernel.mount(f"/mnt/{name}", f"/etc/{name}", None, kernel.MS_BIND)
    os.setgroups([])
    os.setresgid(JOE, JOE, JOE)
    os.setresuid(JOE, JOE, JOE)
    process.set_dumpable(True)  # who was root is not after that, and its /proc files are root's
    try:
        return run(text, host.probe(), rootless=rootless)
    except errors.AtollError as error:
        return f"{error.message} | {error.fix}"


@pytest.mark.isolated
@needs("userns")
def test_root_writes_several_ranges_and_becomes_root() -> None:
    os.setgroups([5, 6])
    assert run(LINES, host.probe()) == (
        "0 100000 65536;65536 300000 5;-;0 200000 1000;allow uid=(0, 0, 0) gid=(0, 0, 0) groups=[] dumpable=True"
    )


@pytest.mark.isolated
@needs("userns")
def test_without_id_0_the_set_up_runs_as_inits_ids() -> None:
    text = "lxc.idmap = u 5 100000 10\nlxc.idmap = g 0 200000 10\nlxc.init.uid = 7\n"
    assert " uid=(7, 7, 7) gid=(0, 0, 0) " in run(text, host.probe())


@pytest.mark.isolated
@needs("userns")
def test_a_user_maps_only_himself_without_any_helper() -> None:
    assert as_joe("", rootless=True) == (
        f"0 {JOE} 1;-;0 {JOE} 1;deny uid=(0, 0, 0) gid=(0, 0, 0) groups=[] dumpable=True"
    )


@pytest.mark.isolated
@needs("userns", "newuidmap")
def test_a_user_with_subordinate_ids() -> None:
    answer = as_joe("lxc.idmap = u 0 700000 100\nlxc.idmap = g 0 700000 100\n", "joe:700000:1000\n")
    assert (
        answer
        == "0 700000 100;-;0 700000 100;allow uid=(0, 0, 0) gid=(0, 0, 0) groups=[] dumpable=True"
    )


@pytest.mark.isolated
@needs("userns", "newuidmap")
def test_no_subordinate_ids() -> None:
    answer = as_joe("lxc.idmap = u 0 700000 100\nlxc.idmap = g 0 700000 100\n")
    assert answer == (
        "cannot write the uid map 0 700000 100 with newuidmap: it refuses (uid range [0-100) -> [700000-700100) not allowed);"
        " /etc/subuid allows user joe no ids | as root: usermod --add-subuids 700000-700099 joe"
    )


@pytest.mark.isolated
@needs("userns", "newuidmap")
def test_newuidmap_refuses() -> None:
    answer = as_joe("lxc.idmap = u 0 600000 100\nlxc.idmap = g 0 700000 100\n", "joe:700000:1000\n")
    assert answer == (
        "cannot write the uid map 0 600000 100 with newuidmap: it refuses (uid range [0-100) -> [600000-600100) not allowed);"
        " /etc/subuid allows user joe 700000-700999 | as root: usermod --add-subuids 600000-600099 joe"
    )


@pytest.mark.isolated
@needs("userns", "newuidmap")
def test_the_fix_is_one() -> None:
    """What the message says to do makes usermod write the line that newuidmap wants."""
    helper = idmap.RunIdHelper(
        kind="uid", helper="/usr/bin/newuidmap", ranges=((0, 500000, 10),), user="joe", own_id=JOE, allowed=()
    )  # fmt: skip
    fix = helper._refused("").fix
    assert fix is not None
    usermod, *words = fix.removeprefix("as root: ").split()
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    os.mkdir("/mnt/etc")
    for name in ("group", "shadow", "subuid"):
        open(f"/mnt/etc/{name}", "w").close()
    with open("/mnt/etc/passwd", "w") as file:
        file.write(f"joe:x:{JOE}:{JOE}::/tmp:/bin/sh\n")
    subprocess.run([f"/usr/sbin/{usermod}", "-P", "/mnt", *words], check=True)
    with open("/mnt/etc/subuid") as file:
        assert file.read() == "joe:500000:10\n"


@pytest.mark.isolated
@needs("userns")
def test_an_id_that_is_not_mapped_around_us() -> None:
    """In a user namespace that maps 10 ids, the kernel refuses others."""

    def nested(_h: Handler) -> str:
        inner = Config.parse("lxc.idmap = u 0 50 1\nlxc.idmap = g 0 0 1\n")
        on = host.probe()
        start = start_with(inner, on)
        try:
            return in_child((), look, flags=CLONE_NEWUSER, monitor=idmap.write(inner, on, start))
        except errors.AtollError as error:
            return error.message

    config = Config.parse("lxc.idmap = u 0 100000 10\nlxc.idmap = g 0 100000 10\n")
    on = host.probe()
    start = start_with(config, on)
    answer = in_child(
        idmap.become_root(config, on, start),
        nested,
        flags=CLONE_NEWUSER,
        monitor=idmap.write(config, on, start),
    )
    assert answer.startswith("cannot write the uid map 0 50 1: the kernel does not permit it")
