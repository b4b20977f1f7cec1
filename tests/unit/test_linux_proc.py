"""The parsers of /proc and account files: samples, and that nothing makes them raise anything but ValueError."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.linux import files, proc
from atoll.linux.proc import CgroupLine, Group, IdMapping, User

PARSERS = [
    proc.parse_mountinfo,
    proc.parse_places,
    proc.parse_cgroups,
    proc.parse_cgroup_paths,
    proc.parse_status,
    proc.parse_cap_mask,
    proc.parse_stat_starttime,
    proc.parse_id_map,
    lambda text: proc.parse_subids(text, ("root", "0")),
    proc.parse_passwd,
    proc.parse_group,
    proc.parse_unix_sockets,
    proc.parse_filesystems,
    proc.unescape,
]
# Text that gets further into the parsers than any text would: their own separators and words.
WORDS = st.sampled_from(
    ["0", "1", "65536", "-", ":", "::", "/", "/a", "\\040", "\\", "\\9", "@x", "root", "u", ")", "(",
     " ", "\t", "\n", ",", "rw", "ff", "٣", "²", "\udcff", "\x85", "\u2028", "9" * 5000]
)  # fmt: skip
TEXT = st.one_of(st.text(), st.lists(WORDS, max_size=60).map("".join))

MOUNTINFO = (
    "22 27 0:21 / /proc rw,relatime shared:7 master:2 - proc proc rw\n"
    "31 23 0:28 /a\\040b /mnt/with\\040blank\\011tab rw - tmpfs  rw,size=4k\n"
)


@pytest.mark.parametrize("parser", PARSERS)
@settings(database=None)  # writes nothing into the work tree
@given(text=TEXT)
@example(text="")
def test_a_parser_raises_nothing_but_value_error(parser, text):
    try:
        parser(text)
    except ValueError:
        pass


def test_mountinfo():
    first, second = proc.parse_mountinfo(MOUNTINFO)
    assert (first.id, first.parent, first.device, first.target) == (22, 27, "0:21", "/proc")
    assert first.optional == ("shared:7", "master:2")
    assert (second.root, second.target) == ("/a b", "/mnt/with blank\ttab")
    assert (second.fstype, second.source, second.super_options) == ("tmpfs", "", "rw,size=4k")
    assert second.optional == ()


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1), max_size=4)
)
def test_the_short_forms_say_the_same(names):
    def escaped(name):
        return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in name)

    text = MOUNTINFO + "".join(
        f"40 1 0:1 / /{escaped(name)} rw shared:1 - cgroup none rw,cpu\n" for name in names
    )
    assert proc.parse_places(text) == tuple(
        (one.target, one.fstype, one.super_options) for one in proc.parse_mountinfo(text)
    )
    text = "4:cpu,cpuacct:/a:b\n0::/init.scope\n1:name=systemd:/\n"
    assert proc.parse_cgroup_paths(text) == {
        one.controllers: one.path for one in proc.parse_cgroups(text)
    }


def test_mountinfo_keeps_characters_that_only_look_like_line_ends():
    line = "1 2 0:1 / /a\x85b\u2028c\x0cd rw - tmpfs x rw\n"
    assert [mount.target for mount in proc.parse_mountinfo(line)] == ["/a\x85b\u2028c\x0cd"]


@pytest.mark.parametrize("text", ["x", "1 2 3", "a 2 0:1 / / rw - t s o", "1 2 0:1 / / rw t s o"])
def test_mountinfo_refuses(text):
    with pytest.raises(ValueError):
        proc.parse_mountinfo(text)


@settings(database=None)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_unescape_undoes_the_kernels_escapes(name):
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in name)
    assert proc.unescape(escaped) == name


def test_unescape_leaves_what_is_no_escape():
    assert proc.unescape("a\\b\\08\\777\\04") == "a\\b\\08\\777\\04"


def test_cgroups():
    text = "12:cpu,cpuacct:/user\n1:name=systemd:/init.scope\n0::/a:b\n"
    assert proc.parse_cgroups(text) == (
        CgroupLine(id=12, controllers=("cpu", "cpuacct"), path="/user"),
        CgroupLine(id=1, controllers=("name=systemd",), path="/init.scope"),
        CgroupLine(id=0, controllers=(), path="/a:b"),
    )
    with pytest.raises(ValueError):
        proc.parse_cgroups("0:")


def test_status_and_masks():
    text = "Name:\tcat\nCapEff:\t000001ffffffffff\nGroups:\t \n"
    status = proc.parse_status(text)
    assert status == {"Name": "cat", "CapEff": "000001ffffffffff", "Groups": ""}
    assert proc.parse_cap_mask(status["CapEff"]) == (1 << 41) - 1
    for bad in ("", "0x1", "-1", "1_0", "g"):
        with pytest.raises(ValueError):
            proc.parse_cap_mask(bad)


def test_starttime_behind_a_name_with_parentheses():
    text = "7 (a) b (c)) S " + " ".join(str(number) for number in range(4, 53)) + "\n"
    assert proc.parse_stat_starttime(text) == 22
    with pytest.raises(ValueError):
        proc.parse_stat_starttime("7 (cat) S 1 2")


def test_id_map():
    text = "         0     100000      65536\n     65536          7          1\n"
    assert proc.parse_id_map(text, "g") == (
        IdMapping(inside=0, outside=100000, count=65536, kind="g"),
        IdMapping(inside=65536, outside=7, count=1, kind="g"),
    )


def test_subids_of_a_name_or_a_number():
    text = "root:100000:65536\n# no\nann:1:2:3\n0:5:6\nroot:x:1\nann:7:8"
    assert proc.parse_subids(text, ("root", "0")) == ((100000, 65536), (5, 6))
    assert proc.parse_subids(text, ("ann",)) == ((7, 8),)


def test_accounts():
    passwd = "root:x:0:0:root:/root:/bin/sh\n+::::::\nbad\nneg:x:-1:0::/:/\nbin:*:2:3:::\n"
    assert proc.parse_passwd(passwd) == (
        User(name="root", uid=0, gid=0, home="/root", shell="/bin/sh"),
        User(name="bin", uid=2, gid=3, home="", shell=""),
    )
    assert proc.parse_group("adm:x:4:ann,bob\n#\nx:y:z:\nnone:x:5:\n") == (
        Group(name="adm", gid=4, members=("ann", "bob")),
        Group(name="none", gid=5, members=()),
    )


def test_unix_sockets():
    text = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01    12 @/var/lib/lxc/c 1/command\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 12345 @/var/lib/lxc/c 1/command\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 123456 /run/x\n"
        "0000000000000000: 00000003 00000000 00000000 0002 01 77\n"
    )
    assert proc.parse_unix_sockets(text) == ("@/var/lib/lxc/c 1/command",)


def test_filesystems():
    assert proc.parse_filesystems("nodev\tsysfs\n\text4\n") == {"sysfs", "ext4"}


def test_the_machines_own_files_parse():
    for path, parser in (
        ("/proc/self/mountinfo", proc.parse_mountinfo),
        ("/proc/self/cgroup", proc.parse_cgroups),
        ("/proc/self/status", proc.parse_status),
        ("/proc/self/stat", proc.parse_stat_starttime),
        ("/proc/self/uid_map", proc.parse_id_map),
        ("/proc/filesystems", proc.parse_filesystems),
        ("/etc/passwd", proc.parse_passwd),
        ("/etc/group", proc.parse_group),
        ("/proc/net/unix", proc.parse_unix_sockets),
    ):
        if os.path.exists(path):
            parser(files.read_text(path))
