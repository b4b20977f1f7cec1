from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.config.text import Config
from atoll.errors import ConfigError
from atoll.linux import mount
from atoll.linux.proc import IdMapping
from atoll.linux.process import CLONE_NEWNET
from atoll.plan import Start
from atoll.resources import mounts
from atoll.resources.mounts import Autodev, Entry, Mounts, parse_line


class FakeHost:
    proc_masked = False


HOST: Any = FakeHost()


def config_of(text):
    return Config.parse(text, file="config")


def start_of(**fields):
    values = {"name": "c1", "lxcpath": "/var/lib/lxc", "start_id": "abcd1234", "began": 0.0}
    return Start(**{**values, "argv": ("/bin/sh",), "rootfs": "/mnt/rootfs", **fields})


def explained(steps):
    return [step.explain() for step in steps]


# ------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("lines", "shown", "cgroup"),
    [
        (["proc sys:ro cgroup:rw:force"], "proc:mixed sys:ro", "cgroup:rw:force"),
        (
            ["cgroup:mixed proc:mixed sys:mixed"],
            "proc:mixed sys:mixed cgroup:mixed",
            "cgroup:mixed",
        ),
        (["proc", "sys:rw", "proc:rw"], "proc:rw sys:rw", None),
        (["cgroup2:ro:force"], "", "cgroup2:ro:force"),
        (["cgroup cgroup-full:ro"], "cgroup-full:ro", "cgroup-full:ro"),
        (["shmounts:/srv/m"], "", None),
        (["proc sys", ""], "", None),
        (["proc", "", "sys"], "sys:mixed", None),
    ],
)
def test_automatic_mounts(lines, shown, cgroup):
    config = config_of("".join(f"lxc.mount.auto = {line}\n" for line in lines))
    assert config.get("lxc.mount.auto") == shown
    assert mounts.cgroup_token(config) == cgroup


@pytest.mark.parametrize(
    "token", ["bogus", "proc:ro", "sys:", "cgroup:rw:forced", "shmounts:", "PROC"]
)
def test_unknown_automatic_mount(token):
    with pytest.raises(ConfigError, match=r"there is no automatic mount|names no directory"):
        config_of(f"lxc.mount.auto = {token}\n")


def test_shared_mounts_have_lxcs_directory():
    assert mounts.parse_automatic(("shmounts:/a",)).shared == ("/a", "/dev/.lxc-mounts")
    assert mounts.parse_automatic(("shmounts:/a:/b",)).shared == ("/a", "/b")


def test_autodev_keys():
    assert config_of("")[Autodev].enabled
    assert not config_of("lxc.autodev =\n")[Autodev].enabled
    assert config_of("lxc.autodev.tmpfs.size = abc\n").get("lxc.autodev.tmpfs.size") == "500000"
    assert config_of("").get("lxc.autodev.tmpfs.size") == "0"
    assert explained(mounts.device_tmpfs(config_of(""), HOST, start_of())) == [
        "mount a tmpfs of 500000 bytes on /dev"
    ]


def test_fstab_and_entry_keys():
    config = config_of(
        "lxc.mount.entry = a b none bind\nlxc.mount.entry = c d\nlxc.mount.fstab = //etc/./x/\n"
    )
    assert config.get("lxc.mount.entry") == "a b none bind\nc d\n"
    assert config[Mounts].fstab == "/etc/x"
    with pytest.raises(ConfigError):
        config_of("lxc.mount.fstab =\n")


def test_own_dev_without_root_only_when_asked():
    for text, rootfs, expected in (
        ("", "/r", True),
        ("", None, False),
        ("lxc.autodev = 1\n", None, True),
        ("lxc.autodev = 0\n", "/r", False),
    ):
        assert mounts.has_own_dev(config_of(text), start_of(rootfs=rootfs)) is expected


# ------------------------------------------------------------------------------------------- fstab

BIND, REC, RO = mount.MS_BIND, mount.MS_REC, mount.MS_RDONLY


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/s mnt/a none bind,create=dir 0 0", {"flags": BIND, "create": "dir", "fstype": "none"}),
        (
            "/s mnt/a none rbind,ro,optional,relative",
            {"flags": BIND | REC | RO, "optional": True, "relative": True},
        ),
        ("/s mnt/a none ro,rw", {"flags": 0}),
        ("/s mnt/a none bind,nodev,dev", {"flags": BIND, "dev": True}),
        ("/s mnt/a none bind,dev,nodev", {"flags": BIND | mount.MS_NODEV, "dev": False}),
        ("/s mnt/a none rslave,bind", {"propagation": mount.MS_SLAVE | REC}),
        (
            "t mnt/a tmpfs size=1m,mode=0700,nosuid,sync",
            {"data": "size=1m,mode=0700", "ignored": "sync"},
        ),
        (
            "o mnt/a overlay rootcontext=x,lowerdir=/a",
            {"flags": 0, "data": "rootcontext=x,lowerdir=/a"},
        ),
        ("/s mnt/a", {"fstype": "none", "flags": 0}),
        (
            r"/a/with\040space mnt/x\011y\134z none bind",
            {"source": "/a/with space", "target": "mnt/x\ty\\z"},
        ),
        (
            "\t /s\t\tmnt/a none bind 0 0 and more\r",
            {"source": "/s", "target": "mnt/a", "flags": BIND},
        ),
    ],
)
def test_lines(line, expected):
    entry = parse_line(line)
    assert {name: getattr(entry, name) for name in expected} == expected


@pytest.mark.parametrize("line", ["", "   \t", "# comment", "  #x y z"])
def test_lines_without_an_entry(line):
    assert parse_line(line) is None


@given(st.text())
def test_any_line_is_an_entry_nothing_or_a_reason(line):
    try:
        entry = parse_line(line)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - an entry or a reason, either is right
    else:
        assert entry is None or (entry.source and entry.target)


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1)


@given(FIELD, FIELD)
def test_escaped_names_come_back(source, target):
    def escape(name):
        for plain, code in (
            ("\\", "\\134"),
            (" ", "\\040"),
            ("\t", "\\011"),
            ("\n", "\\012"),
            ("#", "\\043"),
        ):
            name = name.replace(plain, code)
        return name

    entry = parse_line(f"{escape(source)} {escape(target)} none bind 0 0")
    assert entry == Entry(source=source, target=target, fstype="none", flags=BIND)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "garbage",
            'cannot use mount entry "garbage": it has no target: SOURCE TARGET FSTYPE OPTIONS 0 0',
        ),
        (
            "a b none bind,create=link",
            'cannot use mount entry "a b none bind,create=link": create=link is neither create=dir nor create=file',
        ),
        (
            "a b none bind,idmap=container",
            'cannot use mount entry "a b none bind,idmap=container": idmap=container: idmapped mounts belong to a later part of Atoll',
        ),
    ],
)
def test_lines_that_cannot_be_used(line, text):
    config = config_of(
        f"lxc.uts.name = x\nlxc.mount.entry = {line}\n".replace("lxc.uts.name = x", "# x")
    )
    with pytest.raises(ConfigError) as caught:
        mounts.entries(config, HOST, start_of(), nesting=False)
    assert caught.value.message == text
    assert str(caught.value.origin) == "config:2"


def test_plan_of_entries():
    config = config_of(
        "lxc.mount.entry = /srv mnt/a none bind,ro,create=dir 0 0\n"
        "lxc.mount.entry = tmpfs mnt/t tmpfs size=1m 0 0\n"
        "lxc.mount.entry = etc mnt/h none rbind,relative 0 0\n"
    )
    steps = mounts.entries(config, HOST, start_of(), nesting=False)
    assert explained(steps) == [
        "bind /srv on /mnt/a, read-only",
        "mount tmpfs on /mnt/t",
        "bind the container's /etc with what is mounted in it on /mnt/h",
    ]
    assert [str(step.origin) for step in steps] == ["config:1", "config:2", "config:3"]
    assert mounts.entries(config_of(""), HOST, start_of(), nesting=False) == ()


def test_absolute_targets_count_below_the_rootfs_only():
    config = config_of(
        "lxc.rootfs.path = dir:/data/c1\n"
        "lxc.mount.entry = /s /data/c1/mnt/g none bind\n"
        "lxc.mount.entry = /s /var/lib/lxc/c1/rootfs/mnt/h none bind\n"
        "lxc.mount.entry = /s /mnt/e none bind\n"
    )
    assert explained(mounts.entries(config, HOST, start_of(), nesting=False)) == [
        "bind /s on /mnt/g",
        "bind /s on /mnt/h",
        "ignore mount entry for /mnt/e, which is not in the container",
    ]
    assert (
        explained(mounts.entries(config, HOST, start_of(rootfs=None), nesting=False))[2]
        == "bind /s on /mnt/e"
    )


def test_fstab(tmp_path):
    assert mounts.load_fstab(config_of("")) is None
    file = tmp_path / "fstab"
    file.write_text("# comment\n\n/s mnt/a none bind\n/t mnt/b\n")
    config = config_of(f"lxc.mount.fstab = {file}\n")
    text = mounts.load_fstab(config)
    steps = mounts.fstab(config, HOST, start_of(), fstab_text=text)
    assert explained(steps) == ["bind /s on /mnt/a", "mount none /t on /mnt/b"]
    assert [str(step.origin) for step in steps] == [f"{file}:3", f"{file}:4"]
    config = config_of(f"lxc.mount.fstab = {tmp_path}/nothing\n")
    with pytest.raises(ConfigError) as caught:
        mounts.load_fstab(config)
    assert (
        caught.value.message
        == f"cannot read the mounts of {tmp_path}/nothing: no such file or directory"
    )
    assert str(caught.value.origin) == "config:1"


def test_plan_of_automatic_mounts():
    config = config_of("lxc.mount.auto = proc sys cgroup:rw\n# x\nlxc.mount.auto = shmounts:/srv\n")
    steps = mounts.automatic(config, HOST, start_of())
    assert explained(steps) == [
        "mount proc on /proc, /proc/sys read-only but for /proc/sys/net",
        "mount sysfs on /sys, read-only but for /sys/devices/virtual/net",
        "bind /srv on /dev/.lxc-mounts",
    ]
    assert [str(step.origin) for step in steps] == ["config:1", "config:1", "config:3"]
    (kept,) = mounts.automatic(
        config_of("lxc.mount.auto = proc\n"), HOST, start_of(kept_capabilities=~(1 << 12))
    )
    assert kept.explain() == "mount proc on /proc, /proc/sys read-only"
    assert explained(mounts.after_pivot(config, HOST, start_of())) == [
        "receive the host's later mounts in /dev/.lxc-mounts"
    ]


def test_sysfs_of_a_foreign_network_namespace():
    id_map = (IdMapping(inside=0, outside=1, count=1),)
    config = config_of("lxc.mount.auto = sys\n")
    for namespaces, foreign in ((0, True), (CLONE_NEWNET, False)):
        (step,) = mounts.automatic(
            config, HOST, start_of(id_map=id_map, clone_namespaces=namespaces)
        )
        assert step.as_dict()["foreign_net"] is foreign


def test_plan_of_dev():
    assert explained(mounts.populate_dev(config_of(""), HOST, start_of())) == [
        "make device nodes full null random tty urandom zero in /dev",
        "link /dev/fd, stdin, stdout and stderr to /proc/self/fd",
    ]
    assert mounts.populate_dev(config_of("lxc.autodev = 0\n"), HOST, start_of(rootfs=None)) == ()
    assert mounts.boot_id(config_of("lxc.autodev = 0\n"), HOST, start_of()) == ()


def test_uuid_is_of_version_4():
    assert mounts.random_uuid(bytes(16)) == "00000000-0000-4000-8000-000000000000"
    assert mounts.random_uuid(b"\xff" * 16) == "ffffffff-ffff-4fff-bfff-ffffffffffff"
