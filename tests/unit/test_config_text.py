"""Reading, including, changing and writing configurations: reference sections 2.1, 2.4, 2.5, with dummy sections."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config import owners, text
from atoll.config.keys import (
    REFUSED,
    Section,
    choice,
    flag,
    indexed,
    key,
    many,
    number,
    pairs,
    path,
    words,
)
from atoll.config.keys import text as string
from atoll.config.text import Config
from atoll.errors import ConfigError, Origin

HERE: Any = "a host where keys of a later part matter"
ELSEWHERE: Any = "another host"


def _not_with(other):
    def check(values, _new):
        if values.get(other):
            raise ValueError("one excludes the other")

    return check


class Uts(Section):
    name: str | None = key("lxc.uts.name", string)


class Mounts(Section):
    entries: tuple[str, ...] = key("lxc.mount.entry", many(string))
    fstab: str | None = key("lxc.mount.fstab", path, empty=REFUSED)
    autodev: bool = key("lxc.autodev", flag, default=True, empty=False)


class Terminals(Section):
    count: int = key("lxc.tty.max", number, default=0)
    path: str | None = key(
        "lxc.console.path", path, later="terminals", later_on=lambda host: host is HERE
    )


class Rootfs(Section):
    path: str | None = key("lxc.rootfs.path", string, show=lambda value: value.rpartition(":")[2])


class Capabilities(Section):
    drop: tuple[str, ...] = key("lxc.cap.drop", words, clears=("keep",), check=_not_with("keep"))
    keep: tuple[str, ...] = key("lxc.cap.keep", words, clears=("drop",), check=_not_with("drop"))


class Limits(Section):
    sysctls: tuple[tuple[str, str], ...] = key("lxc.sysctl.*", pairs(string, unique=True))
    cgroup: tuple[tuple[str, str], ...] = key("lxc.cgroup.*", pairs(string))
    cgroup_directory: str | None = key("lxc.cgroup.dir", path)
    limits: tuple[tuple[str, int], ...] = key(
        "lxc.prlimit.*", pairs(number, unique=True, subkey=choice("core", "nofile"))
    )


class Hooks(Section, group="lxc.hook"):
    start: tuple[str, ...] = key("lxc.hook.start", many(string))
    stop: tuple[str, ...] = key("lxc.hook.stop", many(string))


class Nic(Section):
    type: str | None = key("lxc.net.N.type", choice("veth", "macvlan", "empty"), resets=True)
    link: str | None = key("lxc.net.N.link", string)
    hwaddr: str | None = key("lxc.net.N.hwaddr", string)
    addresses: tuple[str, ...] = key("lxc.net.N.ipv4.address", many(string, end=""))
    mode: str = key(
        "lxc.net.N.veth.mode",
        choice("bridge", "router"),
        default="bridge",
        needs=("type", ("veth",)),
    )


class Network(Section):
    nics: tuple[Nic, ...] = indexed(
        "lxc.net", Nic, show=lambda nics: "".join(f"{nic.type}\n" for nic in nics)
    )


HEADS = "uts mount autodev tty console rootfs cap sysctl cgroup prlimit hook net".split()


@pytest.fixture(autouse=True)
def dummies(monkeypatch):
    """These sections own their prefixes here; nothing else is loaded."""
    monkeypatch.setattr(owners, "OWNERS", {f"lxc.{head}": __name__ for head in HEADS})
    monkeypatch.setattr(owners, "_loaded", {})


def parse(*lines, **options):
    return Config.parse("\n".join(lines) + "\n", **options)


def refused(*lines):
    with pytest.raises(ConfigError) as caught:
        parse(*lines)
    return caught.value


# ------------------------------------------------------------------------------------ grammar
def test_defaults_without_a_line():
    config = Config.empty()
    assert config[Uts] == Uts()
    assert config[Uts] is config[Uts]
    assert (config.file, config.text(), config.warnings) == (None, "", ())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("lxc.uts.name=c1", "c1"),
        ("  \tlxc.uts.name \t=  c1 \t", "c1"),
        ("lxc.uts.name = c1 # not a comment", "c1 # not a comment"),
        ("lxc.uts.name = a=b", "a=b"),
        ("lxc.uts.name = 'c 1'", "c 1"),
        ('lxc.uts.name = "c 1"', "c 1"),
        ("lxc.uts.name = ''c1''", "'c1'"),
        ("lxc.uts.name = 'c1\"", "'c1\""),
        ("lxc.uts.name = '", "'"),
        ("lxc.uts.name = ''", None),
        ("lxc.uts.name =", None),
        ("# lxc.uts.name = c1", None),
        ("   # lxc.uts.name = c1", None),
        ("foo = bar", None),
        ("lxcx", None),
    ],
)
def test_line(line, name):
    assert parse(line)[Uts].name == name


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r"])
def test_line_ends(separator):
    config = Config.parse(separator.join(["", "lxc.uts.name = c1", "lxc.tty.max = 2"]), file="f")
    assert config[Uts].name == "c1"
    assert config.origin("lxc.tty.max") == Origin(file="f", line=3, text="lxc.tty.max = 2")


def test_other_unicode_line_ends_are_text():
    assert parse("lxc.uts.name = a\u2028b\x1cc")[Uts].name == "a\u2028b\x1cc"


def test_last_assignment_wins_and_knows_its_line():
    config = parse("lxc.uts.name = a", "lxc.uts.name = b", file="f")
    assert config[Uts].name == "b"
    assert str(config.origin("lxc.uts.name")) == "f:2"
    assert config.origin("lxc.tty.max") is None
    assert config.origins("lxc.tty.max") == ()


def test_line_without_equals():
    error = refused("", "lxc.novalue")
    assert (error.message, str(error.origin)) == (
        "cannot use the line lxc.novalue: it has no =",
        "config:2",
    )


def test_unknown_key_names_its_neighbours():
    error = refused("lxc.utsname.x = 1", "lxc.uts.nmae = c1")
    assert error.message == "unknown key lxc.utsname.x"
    error = refused("lxc.uts.nmae = c1")
    assert (error.message, error.key) == ("unknown key lxc.uts.nmae", "lxc.uts.nmae")
    assert error.fix == "the nearest known key is lxc.uts.name"
    assert (
        refused("lxc.net.3.ipv4.adress = 1").fix
        == "the nearest known key is lxc.net.3.ipv4.address"
    )
    assert refused("lxc.totally.different.thing = 1").fix is None
    assert refused(f"lxc.{'x' * 100_000} = 1").fix is None


@pytest.mark.parametrize(
    "line",
    ["lxc.uts.namefoo = 1", "lxc.rootfsfoo = x", "lxc.hook.bogus = x", "lxc.net.x.type = veth", "lxc.net.0.bogus = 1",
     "lxc.net.-1.type = veth", "lxc.net.².type = veth", "lxc. = x", "lxc.uts = x", "lxc.uts name = x", "lxc.netx = 1"],
)  # fmt: skip
def test_unknown_keys(line):
    assert refused(line).message.startswith("unknown key lxc.")


def test_value_error_has_key_value_reason_and_line():
    error = refused("", "lxc.tty.max = -1")
    assert error.message == "cannot set lxc.tty.max = -1: not within 0 to 4294967295"
    assert (error.key, str(error.origin), error.origin.text) == (
        "lxc.tty.max",
        "config:2",
        "lxc.tty.max = -1",
    )


def test_nul_byte():
    assert "NUL" in refused("lxc.uts.name = a\0b").message
    assert parse("# a\0b").text() == "# a\0b\n"


def test_problems_are_collected():
    problems: list[ConfigError] = []
    config = parse("lxc.tty.max = x", "lxc.uts.name = c1", "lxc.nope = 1", problems=problems)
    assert [str(problem.origin) for problem in problems] == ["config:1", "config:3"]
    assert config[Uts].name == "c1"
    with pytest.raises(ConfigError):
        parse(*["lxc.tty.max = x"] * (text.PROBLEM_LIMIT + 1), problems=[])


# ------------------------------------------------------------------------- empty values, lists
def test_empty_value_clears():
    config = parse(
        "lxc.mount.entry = a",
        "lxc.mount.entry =",
        "lxc.mount.entry = b",
        "lxc.tty.max = 3",
        "lxc.tty.max =",
    )
    assert config[Mounts].entries == ("b",)
    assert [origin.line for origin in config.origins("lxc.mount.entry")] == [3]
    assert config[Terminals].count == 0


def test_empty_value_that_sets_or_is_refused():
    assert parse("lxc.autodev =")[Mounts].autodev is False
    assert parse("lxc.autodev =").get("lxc.autodev") == "0"
    assert Config.empty().get("lxc.autodev") == "1"
    assert (
        refused("lxc.mount.fstab =").message
        == "cannot set lxc.mount.fstab to nothing: a value is missing"
    )


def test_list_origins_are_parallel_to_the_items():
    config = parse("lxc.cap.drop = a b", "", "lxc.cap.drop = c")
    assert config[Capabilities].drop == ("a", "b", "c")
    assert [origin.line for origin in config.origins("lxc.cap.drop")] == [1, 1, 3]
    assert config.get("lxc.cap.drop") == "a\nb\nc\n"


def test_keys_that_exclude_each_other():
    assert (
        refused("lxc.cap.keep = a", "lxc.cap.drop = b").message
        == "cannot set lxc.cap.drop = b: one excludes the other"
    )
    assert parse("lxc.cap.keep = a", "lxc.cap.drop =", "lxc.cap.drop = b")[
        Capabilities
    ] == Capabilities(drop=("b",))


def test_pairs():
    config = parse("lxc.sysctl.a.b = 1", "lxc.sysctl.c = 2", "lxc.sysctl.a.b = 3")
    assert config[Limits].sysctls == (("a.b", "3"), ("c", "2"))
    assert [origin.line for origin in config.origins("lxc.sysctl.*")] == [3, 2]
    assert config.origin("lxc.sysctl.c").line == 2
    assert (config.get("lxc.sysctl.a.b"), config.get("lxc.sysctl")) == (
        "3",
        "lxc.sysctl.a.b = 3\nlxc.sysctl.c = 2\n",
    )
    assert parse("lxc.sysctl.a = 1", "lxc.sysctl.c = 2", "lxc.sysctl.a =")[Limits].sysctls == (
        ("c", "2"),
    )
    assert parse("lxc.sysctl.a = 1", "lxc.sysctl =")[Limits].sysctls == ()
    assert (
        refused("lxc.sysctl = 1").message
        == "cannot set lxc.sysctl = 1: a name is missing: lxc.sysctl.NAME = VALUE"
    )
    assert refused("lxc.sysctl. = 1").message == "unknown key lxc.sysctl."


def test_repeated_pairs_keep_their_order():
    lines = ["lxc.cgroup.devices.deny = a", "lxc.cgroup.cpu.shares = 1", "lxc.cgroup.devices.allow = c 1:3 rwm",
             "lxc.cgroup.devices.allow = c 1:5 rwm", "lxc.cgroup.dir = x"]  # fmt: skip
    config = parse(*lines)
    assert config.get("lxc.cgroup.devices.allow") == "c 1:3 rwm\nc 1:5 rwm\n"
    assert config.get("lxc.cgroup") == "".join(f"{line}\n" for line in lines[:-1])
    assert config.get("lxc.cgroup.dir") == "x"
    assert len(config.origins("lxc.cgroup.*")) == len(config[Limits].cgroup) == 4
    cleared = parse(*lines, "lxc.cgroup.devices.allow =")
    assert [name for name, _value in cleared[Limits].cgroup] == ["devices.deny", "cpu.shares"]


def test_subkey_is_checked():
    assert (
        refused("lxc.prlimit.bogus = 1").message
        == "cannot set lxc.prlimit.bogus = 1: not one of core nofile"
    )


def test_group():
    config = parse("lxc.hook.start = a", "lxc.hook.stop = b", "lxc.hook =", "lxc.hook.stop = c")
    assert config[Hooks] == Hooks(stop=("c",))
    assert "no value" in refused("lxc.hook = x").message
    with pytest.raises(ConfigError):
        config.get("lxc.hook")


# ------------------------------------------------------------------------------ numbered sections
def test_nics_are_in_the_order_of_their_numbers():
    config = parse(
        "lxc.net.7.type = veth",
        "lxc.net.7.link = br0",
        "lxc.net.2.type = empty",
        "lxc.net.7.ipv4.address = 1",
    )
    assert config[Network].nics == (
        Nic(index=2, type="empty"),
        Nic(index=7, type="veth", link="br0", addresses=("1",)),
    )
    assert config.get("lxc.net") == "empty\nveth\n"
    assert (config.get("lxc.net.7.link"), config.get("lxc.net.7.ipv4.address")) == ("br0", "1")
    assert config.origin("lxc.net.7.link").line == 2
    assert [origin.line for origin in config.origins("lxc.net.7")] == [1, 2, 4]
    assert [origin.line for origin in config.origins("lxc.net")] == [1, 2, 4, 3]
    assert config.origins("lxc.net.9") == ()


def test_type_wipes_what_was_set_before():
    assert parse("lxc.net.0.type = veth", "lxc.net.0.link = a", "lxc.net.0.type = veth")[
        Network
    ].nics == (Nic(index=0, type="veth"),)


def test_keys_of_a_type_need_it_before():
    error = refused("lxc.net.0.link = a", "lxc.net.0.veth.mode = router")
    assert (
        error.message
        == "cannot set lxc.net.0.veth.mode = router: it needs type = veth on a line before it"
    )
    config = parse("lxc.net.0.type = macvlan")
    with pytest.raises(ConfigError, match="means nothing for this type"):
        config.get("lxc.net.0.veth.mode")
    with pytest.raises(ConfigError, match=r"there is no lxc\.net\.1"):
        config.get("lxc.net.1.link")
    with pytest.raises(ConfigError, match="no value of its own"):
        config.get("lxc.net.0")


def test_a_random_hardware_address_is_never_a_multicast_one(monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)
    config = parse("lxc.net.0.type = veth", "lxc.net.0.hwaddr = xx:xx")
    assert config[Network].nics[0].hwaddr == "fe:ff"


def test_clearing_nics():
    assert parse("lxc.net.0.type = veth", "lxc.net.1.type = empty", "lxc.net.0 =")[
        Network
    ].nics == (Nic(index=1, type="empty"),)
    assert parse("lxc.net.0.type = veth", "lxc.net =")[Network].nics == ()
    assert refused("lxc.net.0 = v").key == "lxc.net.0"
    assert refused("lxc.net = v").key == "lxc.net"


def test_clearing_a_key_of_no_network_makes_none():
    assert parse("lxc.net.0.link =")[Network].nics == ()


def test_hardware_address_is_completed_once_and_saved():
    config = parse("lxc.net.0.type = veth", "  lxc.net.0.hwaddr =  xX:16:3e:xx:XX:xx ")
    address = config[Network].nics[0].hwaddr
    assert re.fullmatch(r"[0-9a-f][02468ace]:16:3e(:[0-9a-f]{2}){3}", address)
    assert config.text().splitlines()[1] == f"  lxc.net.0.hwaddr =  {address} "
    assert config.origin("lxc.net.0.hwaddr").text.endswith(address)
    assert Config.parse(config.text())[Network] == config[Network]
    assert config.define("lxc.tty.max=1")[Network] == config[Network]
    other = (
        parse("lxc.net.0.type = veth", "lxc.net.0.hwaddr = xx:xx:xx:xx:xx:xx")[Network]
        .nics[0]
        .hwaddr
    )
    assert other != address


# --------------------------------------------------------------------------------------- includes
def write(directory, **files):
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


def test_include_keeps_only_its_line(tmp_path):
    write(tmp_path, common="# c\nlxc.tty.max = 4\nlxc.uts.name = c\n")
    top = f"# top\n\nlxc.include = {tmp_path}/common\nlxc.uts.name = c1\n"
    write(tmp_path, config=top)
    config = Config.read(f"{tmp_path}/config")
    assert (config[Terminals].count, config[Uts].name, config.text()) == (4, "c1", top)
    assert str(config.origin("lxc.tty.max")) == f"{tmp_path}/common:2"
    assert config.file == f"{tmp_path}/config"


def test_include_of_a_directory_is_sorted_and_picky(tmp_path):
    (tmp_path / "sub.conf").mkdir()
    directory = tmp_path / "d"
    directory.mkdir()
    write(
        directory,
        bb__conf="lxc.mount.entry = b\n",
        aa__conf="lxc.mount.entry = a\n",
        _conf="lxc.nope",
        x__txt="lxc.nope",
    )
    (directory / ".conf").write_text("lxc.nope")
    assert parse(f"lxc.include = {directory}")[Mounts].entries == ("a", "b")
    assert parse(f"lxc.include = {directory}/")[Mounts].entries == ("a", "b")


def test_include_that_is_missing(tmp_path):
    assert parse(f"lxc.include = {tmp_path}/none/", "lxc.include =")[Mounts] == Mounts()
    error = refused("", f"lxc.include = {tmp_path}/none")
    assert (
        error.message == f"cannot read the configuration {tmp_path}/none: no such file or directory"
    )
    assert str(error.origin) == "config:2"


def test_include_cycle_names_its_chain(tmp_path):
    write(tmp_path, a=f"lxc.include = {tmp_path}/b\n", b=f"lxc.include = {tmp_path}/a\n")
    with pytest.raises(ConfigError) as caught:
        Config.read(f"{tmp_path}/a")
    a, b = f"{tmp_path}/a", f"{tmp_path}/b"
    assert (
        caught.value.message
        == f"cannot include {a}: it includes itself ({a} includes {b} includes {a})"
    )
    assert str(caught.value.origin) == f"{b}:1"


def test_the_same_file_twice_is_no_cycle(tmp_path):
    write(tmp_path, a="lxc.mount.entry = x\n")
    assert parse(*[f"lxc.include = {tmp_path}/a"] * 2)[Mounts].entries == ("x", "x")


def test_includes_are_bounded(tmp_path):
    for number_ in range(20):
        write(tmp_path, **{f"f{number_}": f"lxc.include = {tmp_path}/f{number_ + 1}\n" * 2})
    write(tmp_path, f20="")
    with pytest.raises(ConfigError, match="more than 1000 files"):
        Config.read(f"{tmp_path}/f0")


def test_an_error_inside_an_include_does_not_break_the_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PROBLEM_LIMIT", 1)
    write(tmp_path, bad="lxc.tty.max = x\nlxc.tty.max = y\n")
    problems: list[ConfigError] = []
    with pytest.raises(ConfigError):
        parse(f"lxc.include = {tmp_path}/bad", f"lxc.include = {tmp_path}/bad", problems=problems)
    assert "includes itself" not in problems[0].message


@pytest.mark.parametrize(
    ("make", "why"),
    [("missing", "no such file"), ("directory", "is a directory"), ("unreadable", "")],
)
def test_top_level_file_that_cannot_be_read(tmp_path, make, why):
    target = tmp_path / "config"
    if make == "directory":
        target.mkdir()
    if make == "unreadable":
        target.symlink_to(target)
        why = "too many levels of symbolic links"
    with pytest.raises(ConfigError, match=why) as caught:
        Config.read(str(target))
    assert caught.value.message.startswith(f"cannot read the configuration {target}: ")


def test_a_device_is_not_read_for_ever():
    with pytest.raises(ConfigError, match="more than 16 MiB"):
        Config.read("/dev/zero")


def test_a_pipe_is_a_file():
    reader, writer = os.pipe()
    os.write(writer, b"lxc.uts.name = piped\n")
    os.close(writer)
    try:
        assert Config.read(f"/proc/self/fd/{reader}")[Uts].name == "piped"
    finally:
        os.close(reader)


# ------------------------------------------------------------------------- changing, writing back
def test_define_is_used_and_not_saved():
    config = parse("lxc.uts.name = a").define(" lxc.uts.name=b ")
    assert (config[Uts].name, config.text()) == ("b", "lxc.uts.name = a\n")
    assert config.origin("lxc.uts.name") == Origin(file="-s", line=0, text="lxc.uts.name=b")
    assert str(config.origin("lxc.uts.name")) == "-s"


@pytest.mark.parametrize(
    "line", ["uts.name=b", "", "# x", "lxc.uts.name", "lxc.nope=1", "lxc.uts.name=a\nlxc.tty.max=2"]
)
def test_define_refuses(line):
    with pytest.raises(ConfigError) as caught:
        Config.empty().define(line)
    assert caught.value.origin == Origin(file="-s", line=0, text=line.strip())


TEXT = """# head

lxc.uts.name = one
  # indented
lxc.mount.entry = a
lxc.hook.start = /s
lxc.hook.stop = /t
lxc.sysctl.a = 1
lxc.net.0.type = veth
lxc.net.0.veth.mode = router
lxc.uts.name = two
alien
"""


def test_set_replaces_a_value_and_adds_to_a_list():
    config = Config.parse(TEXT).set("lxc.uts.name", " three ").set("lxc.mount.entry", "b")
    assert (config[Uts].name, config[Mounts].entries) == ("three", ("a", "b"))
    expected = TEXT.replace("lxc.uts.name = one\n", "").replace("lxc.uts.name = two\n", "")
    assert config.text() == expected + "lxc.uts.name = three\nlxc.mount.entry = b\n"
    assert Config.parse(config.text())[Mounts] == config[Mounts]


def test_the_original_is_not_changed():
    config = Config.parse(TEXT)
    config.set("lxc.mount.entry", "b").clear("lxc.hook").define("lxc.mount.entry=c")
    assert (config.text(), config[Mounts].entries) == (TEXT, ("a",))


@pytest.mark.parametrize(
    ("name", "gone"),
    [("lxc.hook", ["lxc.hook.start", "lxc.hook.stop"]), ("lxc.net", ["lxc.net.0.type", "lxc.net.0.veth.mode"]),
     ("lxc.net.0", ["lxc.net.0.type", "lxc.net.0.veth.mode"]), ("lxc.net.0.type", ["lxc.net.0.type", "lxc.net.0.veth.mode"]),
     ("lxc.sysctl", ["lxc.sysctl.a"]), ("lxc.sysctl.a", ["lxc.sysctl.a"]), ("lxc.uts.name", ["lxc.uts.name"]),
     ("lxc.tty.max", [])],
)  # fmt: skip
def test_clear_takes_lines_away(name, gone):
    config = Config.parse(TEXT).clear(name)
    kept = [line for line in TEXT.splitlines() if line.partition(" ")[0] not in gone]
    assert config.text().splitlines() == kept
    assert Config.parse(config.text()).assignments == config.assignments or gone


def test_set_of_a_type_wipes_the_nic():
    config = Config.parse(TEXT).set("lxc.net.0.type", "macvlan")
    assert config[Network].nics == (Nic(index=0, type="macvlan"),)
    assert "veth.mode" not in config.text()


def test_clearing_what_an_include_sets_survives_a_save(tmp_path):
    write(tmp_path, common="lxc.tty.max = 4\n")
    write(tmp_path, config=f"lxc.include = {tmp_path}/common\n")
    config = Config.read(f"{tmp_path}/config").clear("lxc.tty.max")
    assert config[Terminals].count == Config.parse(config.text())[Terminals].count == 0


def test_set_of_nothing_is_remembered():
    config = parse("lxc.autodev = 1").set("lxc.autodev", "")
    assert (config[Mounts].autodev, config.text()) == (False, "lxc.autodev =\n")


def test_set_of_an_include(tmp_path):
    write(tmp_path, common="lxc.tty.max = 4\n")
    config = Config.empty().set("lxc.include", f"{tmp_path}/common")
    assert (config[Terminals].count, config.text()) == (4, f"lxc.include = {tmp_path}/common\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lxc.nope", "1"),
        ("lxc.tty.max", "x"),
        ("lxc.uts.name", "a\nlxc.tty.max = 1"),
        ("lxc.uts.name", "a\0"),
    ],
)
def test_set_refuses(name, value):
    with pytest.raises(ConfigError):
        Config.empty().set(name, value)


def test_clear_and_get_of_unknown_keys():
    for call in (Config.empty().clear, Config.empty().get):
        with pytest.raises(ConfigError, match="unknown key"):
            call("lxc.uts.nam")
    assert Config.empty().origin("lxc.uts.nam") is None


def test_get():
    config = parse("lxc.rootfs.path = dir:/p", "lxc.console.path = //a/")
    assert (
        config.get("lxc.rootfs.path"),
        config.get("lxc.console.path"),
        config.get("lxc.uts.name"),
    ) == ("/p", "/a", "")


def test_keys():
    config = parse("lxc.net.0.type = macvlan")
    assert {"lxc.uts.name", "lxc.sysctl", "lxc.net", "lxc.hook.start"} <= set(config.keys())
    assert config.keys("lxc.mount") == ("entry", "fstab")
    assert config.keys("lxc.net.0") == ("type", "link", "hwaddr", "ipv4.address")
    assert config.keys("lxc.nope") == ()


def test_later():
    config = parse("lxc.uts.name = a", "lxc.console.path = x")
    origin = config.origin("lxc.console.path")
    assert config.later() == config.later(HERE) == (("lxc.console.path", "terminals", origin),)
    assert config.later(ELSEWHERE) == ()
    assert parse("lxc.console.path = x", "lxc.console.path =").later() == ()
    assert list(text.warnings_for(config, HERE)) == [
        "config:2: lxc.console.path is understood but not yet applied: it comes with terminals"
    ]


# ----------------------------------------------------------------------------------- old names
def test_old_names():
    config = parse(
        "lxc.utsname = c1", "lxc.tty = 4", "lxc.mount = /f", "lxc.kmsg = 1", "lxc.limit.core = 7"
    )
    assert (config[Uts].name, config[Terminals].count, config[Mounts].fstab) == ("c1", 4, "/f")
    assert config[Limits].limits == (("core", 7),)
    assert [str(warning) for warning in config.warnings][:1] == [
        "config:1: lxc.utsname is the old name of lxc.uts.name"
    ]
    assert str(config.warnings[3]) == "config:4: lxc.kmsg is an old key without effect"
    assert config.set("lxc.uts.name", "c2").text().splitlines()[0] == "lxc.tty = 4"
    assert config.set("lxc.uts.name", "c2").warnings == config.warnings


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (["lxc.rootfs = /r"], "/r"),
        (["lxc.rootfs.backend = btrfs", "lxc.rootfs = /r"], "btrfs:/r"),
        (["lxc.rootfs = /r", "lxc.rootfs.backend = btrfs"], "btrfs:/r"),
        (["lxc.rootfs = zfs:/r", "lxc.rootfs.backend = btrfs"], "zfs:/r"),
        (["lxc.rootfs.backend = btrfs"], None),
    ],
)
def test_old_rootfs(lines, value):
    assert parse(*lines)[Rootfs].path == value


def test_old_networks_are_numbered_by_their_type_lines():
    config = parse(
        "lxc.network.type = veth", "lxc.network.link = a", "lxc.network.ipv4 = 10.0.0.5", "lxc.network.veth.mode = router",
        "lxc.network.type = empty", "lxc.network.5.type = macvlan", "lxc.network.5.ipv4 = 1",
    )  # fmt: skip
    assert config[Network].nics == (
        Nic(index=0, type="veth", link="a", addresses=("10.0.0.5",), mode="router"),
        Nic(index=1, type="empty"),
        Nic(index=5, type="macvlan", addresses=("1",)),
    )
    assert [warning.new for warning in config.warnings][:3] == [
        "lxc.net.0.type",
        "lxc.net.0.link",
        "lxc.net.0.ipv4.address",
    ]
    assert parse("lxc.network.type = veth", "lxc.network =")[Network].nics == ()
    assert "no lxc.network.type" in refused("lxc.network.link = a").message
    assert refused("lxc.networks = a").message == "unknown key lxc.networks"


# ------------------------------------------------------------------------------------ any input
KEYS = st.sampled_from([
    "lxc.uts.name", "lxc.mount.entry", "lxc.mount.fstab", "lxc.autodev", "lxc.tty.max", "lxc.cap.drop", "lxc.cap.keep",
    "lxc.sysctl", "lxc.sysctl.a", "lxc.cgroup.b", "lxc.hook", "lxc.hook.start", "lxc.net", "lxc.net.0", "lxc.net.0.type",
    "lxc.net.0.hwaddr", "lxc.net.1.veth.mode", "lxc.network.type", "lxc.network.link", "lxc.network.", "lxc.network.0",
    "lxc.rootfs", "lxc.rootfs.backend", "lxc.include", "lxc.limit.core", "lxc.nope", "lxc.", "#", "x",
])  # fmt: skip
LINES = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(codec="utf-8")),
        st.tuples(
            KEYS,
            st.sampled_from(["=", " = ", "", " "]),
            st.sampled_from(["", "a", "1", "veth", "xx", "'q'", "/nope/"]),
        ).map("".join),
    )
)


@settings(deadline=None)
@given(lines=LINES)
def test_any_text_is_a_configuration_or_a_config_error(lines):
    try:
        config = parse(*lines)
    except ConfigError as error:
        if error.origin is None:
            raise
        return
    saved = config.text()
    again = Config.parse(saved)
    assert again.text() == saved
    assert [(a.key, a.value) for a in again.assignments] == [
        (a.key, a.value) for a in config.assignments
    ]
    replayed = config.define("lxc.autodev=1")
    assert replayed[Network] == config[Network]
    assert replayed[Limits] == config[Limits]


@settings(deadline=None)
@given(data=st.binary())
def test_any_bytes_survive_or_are_a_config_error(tmp_path_factory, data):
    target = tmp_path_factory.mktemp("any") / "config"
    target.write_bytes(data)
    try:
        config = Config.read(str(target))
    except ConfigError:
        return
    saved = config.text().encode("utf-8", "surrogateescape")
    assert saved.split() == data.replace(b"\r", b"\n").split()


@settings(deadline=None)
@given(lines=LINES, name=KEYS, value=st.text(max_size=5))
def test_any_set_and_clear_is_a_configuration_or_a_config_error(lines, name, value):
    config = parse(*lines, problems=[])
    for change in (
        lambda: config.set(name, value),
        lambda: config.clear(name),
        lambda: config.define(f"{name}={value}"),
    ):
        try:
            changed = change()
        except ConfigError:
            continue
        assert isinstance(changed.text(), str)
        changed.get("lxc.uts.name")
