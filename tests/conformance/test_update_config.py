"""lxc-update-config and lxc-config: what Debian's make of a file or answer, and ours.

Differences are rows of docs/differences.md, section "Configuration", in its second table; a test sees that both agree.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import NamedTuple

import pytest

from abilities import needs
from conformance import tools
from isolation import kernel

pytestmark = needs("lxc")

ALL_NAMES = """\
# head

lxc.utsname = c1
lxc.rootfs = /r
lxc.rootfs.mount = /m
lxc.mount = /fstab
lxc.mount.entry = a
lxc.mount.auto = proc
lxc.pts=1024
lxc.tty\t= 4
lxc.devttydir = lxc
lxc.aa_profile = unconfined
lxc.aa_allow_incomplete = 1
lxc.se_context = x
lxc.seccomp = /s
lxc.console = none
lxc.console.logfile = /l
lxc.haltsignal = SIGPWR
lxc.rebootsignal = SIGINT
lxc.stopsignal = SIGKILL
lxc.syslog = daemon
lxc.loglevel = 1
lxc.logfile = /log
lxc.init_cmd = /i
lxc.init_uid = 0
lxc.init_gid = 0
lxc.id_map = u 0 1 2
lxc.kmsg = 0
lxc.pivotdir = x
lxc.cap.drop = a
lxc.cgroup.devices.deny = a
  lxc.hook.start = /h
alien = lxc
"""
NETWORKS = """\
lxc.network.type = veth
lxc.network.flags = up
lxc.network.link = br0
lxc.network.ipv4 = 1.2.3.4/24
lxc.network.ipv4.gateway = auto
lxc.network.ipv6 = fe80::1
lxc.network.script.up = /x
# lxc.network.mtu = 1400

lxc.network.type = macvlan
lxc.network.macvlan.mode = bridge
"""


class Same(NamedTuple):
    """A file of which both make the same."""

    name: str
    old: str


class Quirk(NamedTuple):
    """A file of which they make different things: the name in docs/differences.md, and ours."""

    name: str
    old: str
    ours: str


SAME = [
    Same("all names", ALL_NAMES),
    Same("commented out", "".join(f"#{line}\n" for line in ALL_NAMES.splitlines() if line.startswith("lxc."))),
    Same("networks", NETWORKS),
    Same("a network that is commented out", "#lxc.network.type = veth\n#lxc.network.link = x\nlxc.network.type = empty\nlxc.network.flags = up\n"),
    Same("numbered networks", "lxc.network.0.type = veth\nlxc.network.0.link = br0\nlxc.network.12.type = empty\n"),
    Same("no networks", "lxc.network =\n"),
    Same("backend at the end", "lxc.rootfs = /r\nlxc.rootfs.backend = btrfs\n"),
    Same("present", "lxc.uts.name = c1\nlxc.rootfs.path = dir:/r\nlxc.net.0.type = veth\nlxc.prlimit.nofile = 1\n"),
    Same("empty", ""),
]  # fmt: skip
QUIRKS = [
    Quirk("limits", "lxc.limit.nofile = 1024\n", "lxc.prlimit.nofile = 1024\n"),
    Quirk(
        "addresses of numbered networks",
        "lxc.network.1.type = veth\nlxc.network.1.ipv4 = 1.2.3.4\n",
        "lxc.net.1.type = veth\nlxc.net.1.ipv4.address = 1.2.3.4\n",
    ),
    Quirk(
        "backend before other lines",
        "lxc.rootfs.backend = btrfs\nlxc.rootfs = /r\nlxc.uts.name = c1\n",
        "lxc.rootfs.path = btrfs:/r\nlxc.uts.name = c1\n",
    ),
    Quirk("type in the path", "lxc.rootfs = overlayfs:/a:/b\n", "lxc.rootfs.path = overlayfs:/a:/b\n"),
    Quirk("block device as root", "lxc.rootfs = /dev/vg/c1\n", "lxc.rootfs.path = /dev/vg/c1\n"),
    Quirk("quoted root", 'lxc.rootfs = "/a b"\n', 'lxc.rootfs.path = "dir:/a b"\n'),
    Quirk("root set to nothing", "lxc.rootfs =\n", "lxc.rootfs.path =\n"),
    Quirk("blanks before the sign", "lxc.rootfs   = /r\n", "lxc.rootfs.path   = dir:/r\n"),
    Quirk(
        "key below a type that is commented out",
        "lxc.network.type = veth\n#lxc.network.type = phys\nlxc.network.link = br0\n",
        "lxc.net.0.type = veth\n#lxc.net.1.type = phys\nlxc.net.0.link = br0\n",
    ),
    Quirk("network key before any type", "lxc.network.link = br0\n", "lxc.network.link = br0\n"),
    Quirk("last line without an end", "lxc.network.type = veth", "lxc.net.0.type = veth"),
    Quirk("names in values and prose", "# see lxc.tty = and lxc.console for more\nlxc.hook.start = x lxc.tty = 4\n",
          "# see lxc.tty = and lxc.console for more\nlxc.hook.start = x lxc.tty = 4\n"),
]  # fmt: skip


def update(
    maker: str, directory: str, text: str | None, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run the maker's lxc-update-config on a file of that text in the directory."""
    if text is not None:
        tools.write(f"{directory}/config", text, 0o640)
    head = (
        ["lxc-update-config"] if maker == tools.DEBIAN else [*tools.launcher(), "lxc-update-config"]
    )
    return subprocess.run(
        [*head, *(words or ("-c", f"{directory}/config"))], cwd=directory, capture_output=True, text=True,
        check=False, env=tools.environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def read(path: str) -> str:
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


@pytest.fixture
def made(maker: str, tmp_path):
    """Update a text, insist on silence and success, and return the file and the backup."""

    def make(text: str) -> tuple[str, str]:
        done = update(maker, str(tmp_path), text)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return read(f"{tmp_path}/config"), read(f"{tmp_path}/config.backup")

    return make


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_same(case: Same, tmp_path):
    found = []
    for maker in tools.makers():
        directory = f"{tmp_path}/{maker}"
        os.mkdir(directory)
        done = update(maker, directory, case.old)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        found.append((read(f"{directory}/config"), read(f"{directory}/config.backup")))
        assert found[0][1] == case.old
        assert sorted(os.listdir(directory)) == ["config", "config.backup"]
        for name in ("config", "config.backup"):
            assert os.stat(f"{directory}/{name}").st_mode & 0o777 == 0o640
    assert found.count(found[0]) == len(found)


@pytest.mark.parametrize("case", QUIRKS, ids=lambda case: case.name)
def test_quirk(case: Quirk, maker: str, tmp_path):
    done = update(maker, str(tmp_path), case.old)
    assert (done.returncode, done.stdout) == (0, "")
    new = read(f"{tmp_path}/config")
    assert (new != case.ours) if maker == tools.DEBIAN else (new == case.ours)


def test_twice_is_harmless(made):
    once, _backup = made(ALL_NAMES + NETWORKS)
    assert made(once)[0] == once


def test_the_first_backup_stays(maker: str, tmp_path):
    """Quirk: the second backup."""
    update(maker, str(tmp_path), "lxc.tty = 1\n")
    update(maker, str(tmp_path), None)
    assert read(f"{tmp_path}/config.backup") == (
        "lxc.tty.max = 1\n" if maker == tools.DEBIAN else "lxc.tty = 1\n"
    )


def test_a_link_stays(maker: str, tmp_path):
    """Quirk: a symbolic link."""
    tools.write(f"{tmp_path}/real", "lxc.tty = 1\n")
    os.symlink("real", f"{tmp_path}/config")
    assert update(maker, str(tmp_path), None).returncode == 0
    assert os.path.islink(f"{tmp_path}/config") == (maker == tools.ATOLL)
    assert read(f"{tmp_path}/config") == "lxc.tty.max = 1\n"


def test_missing_file(maker: str, tmp_path):
    done = update(maker, str(tmp_path), None)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"config'?: no such file or directory", done.stderr, re.IGNORECASE)
    assert os.listdir(tmp_path) == []


def test_without_arguments(maker: str, tmp_path):
    head = (
        ["lxc-update-config"] if maker == tools.DEBIAN else [*tools.launcher(), "lxc-update-config"]
    )
    done = subprocess.run(
        head, capture_output=True, text=True, check=False, cwd=tmp_path, env=tools.environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith("lxc-update-config -h|--help [-c|--config]")


def test_the_quirks_are_documented():
    with open(tools.DIFFERENCES, encoding="utf-8") as file:
        section = file.read().partition("\n### lxc-update-config\n")[2]
    rows = re.findall(
        r"^\| ([^|]+?) +\|", re.split(r"^##", section, flags=re.MULTILINE)[0], re.MULTILINE
    )
    expected = [*(case.name for case in QUIRKS), "second backup", "symbolic link"]
    assert [row for row in rows if row != "difference" and row.strip("-")] == expected


# ------------------------------------------------------------------------------------- lxc-config
CONF = "# lxc.lxcpath = /no\n  lxc.lxcpath = /srv/lxc//\nlxc.lxcpath = /second\nlxc.bdev.lvm.vg=vg0\nlxc.cgroup.use = a,b # c\nlxc.nope = x\n"
ASKED = [
    [], [""], ["-l"], ["-l", "lxc.lxcpath"], ["lxc.lxcpath"], ["lxc.lxcpath", "lxc.bdev.lvm.vg"], ["l"], ["lxc.b"], ["lxc.cgroup"],
    ["lxc.cgroup.pattern"], ["lxc.bdev.lvm.vg"], ["lxc.bdev.lvm.thin"], ["lxc.bdev.zfs.root"], ["lxc.default_config"],
    ["lxc.nope"], ["lxc.lxcpathx"], ["x"],
]  # fmt: skip


def ask(maker: str, words: list[str]) -> tuple[int, str, str]:
    """Status and output of the maker's lxc-config."""
    head = ["lxc-config"] if maker == tools.DEBIAN else [*tools.launcher(), "lxc-config"]
    done = subprocess.run(
        [*head, *words],
        capture_output=True,
        text=True,
        check=False,
        env=tools.environment(),
        cwd="/",
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.isolated
@pytest.mark.parametrize("conf", [None, CONF, ""], ids=["none", "some", "empty"])
def test_lxc_config(conf: str | None):
    kernel.mount("tmpfs", "/etc/lxc", "tmpfs")
    if conf is not None:
        tools.write("/etc/lxc/lxc.conf", conf)
    for words in ASKED:
        found = [ask(maker, words) for maker in tools.makers()]
        assert found.count(found[0]) == len(found), (words, found)


@pytest.mark.isolated
def test_lxc_config_of_an_empty_value():
    """Difference: LXC takes it for the value; here it is none, and the default holds."""
    kernel.mount("tmpfs", "/etc/lxc", "tmpfs")
    tools.write("/etc/lxc/lxc.conf", "lxc.lxcpath =\n")
    expected = {tools.DEBIAN: "\n", tools.ATOLL: "/var/lib/lxc\n"}
    for maker in tools.makers():
        assert ask(maker, ["lxc.lxcpath"])[1] == expected[maker]
