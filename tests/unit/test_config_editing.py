"""config/editing.py and listing.py: keys set where they stand, nothing saved that is worse, files replaced whole."""

from __future__ import annotations

import glob
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config import document, editing, listing
from atoll.config.editing import ConfigFile, effective, is_list, present_name
from atoll.config.text import Config
from atoll.errors import ConfigError, HostError

TEXT = """\
# head
lxc.uts.name = one

lxc.tty = 4
# mounts
lxc.mount.entry = a a none bind 0 0
# between
lxc.mount.entry = b b none bind 0 0
lxc.net.0.type = veth
lxc.net.0.link = br0
lxc.net.0.veth.pair = p0
alien
lxc.uts.name = two
"""


@pytest.fixture
def config(tmp_path):
    """Write a configuration; change it with a function; get its text back."""
    path = tmp_path / "config"

    def change(what=lambda _file: None, text=TEXT):
        path.write_text(text)
        with ConfigFile(str(path)) as file:
            what(file)
            file.save()
        return path.read_text()

    change.path = str(path)  # type: ignore[attr-defined]  # for the tests that want it
    return change


def changed(old, new):
    """TEXT with some lines exchanged; "" takes one away."""
    assert f"{old}\n" in TEXT
    return TEXT.replace(f"{old}\n", f"{new}\n" if new else "")


# ------------------------------------------------------------------------------------------- set
def test_set_replaces_the_last_line_and_drops_the_others(config):
    expected = changed("lxc.uts.name = one", "").replace("name = two", "name = three")
    assert config(lambda file: file.set("lxc.uts.name", ["three"])) == expected


def test_set_of_what_an_old_name_sets(config):
    expected = changed("lxc.tty = 4", "lxc.tty.max = 6")
    assert config(lambda file: file.set("lxc.tty.max", ["6"])) == expected
    assert config(lambda file: file.set("lxc.tty", ["6"])) == expected


def test_set_of_what_is_not_there_goes_to_the_end(config):
    assert config(lambda file: file.set("lxc.arch", [" i386 "])) == f"{TEXT}lxc.arch = i386\n"
    assert config(lambda file: file.set("lxc.arch", ["i386"]), "") == "lxc.arch = i386\n"
    assert (
        config(lambda file: file.set("lxc.arch", ["i386"]), "# no end")
        == "# no end\nlxc.arch = i386\n"
    )


def test_set_of_a_list_keeps_the_places(config):
    entries = ["x x none bind 0 0", "y y none bind 0 0", "z z none bind 0 0"]
    lines = [f"lxc.mount.entry = {entry}" for entry in entries]
    first, second = "lxc.mount.entry = a a none bind 0 0", "lxc.mount.entry = b b none bind 0 0"
    assert config(lambda file: file.set("lxc.mount.entry", entries)) == (
        TEXT.replace(first, lines[0]).replace(second, "\n".join(lines[1:]))
    )
    assert config(lambda file: file.set("lxc.mount.entry", entries[:1])) == (
        TEXT.replace(f"{first}\n", "").replace(second, lines[0])
    )


def test_set_to_nothing(config):
    assert config(lambda file: file.set("lxc.tty.max", [""])) == changed(
        "lxc.tty = 4", "lxc.tty.max ="
    )


def test_set_again_changes_nothing(config):
    text = config(lambda file: file.set("lxc.tty.max", ["4"]))
    assert config(lambda file: file.set("lxc.tty.max", ["4"]), text) == text


def test_set_of_several_values_of_one(config):
    with pytest.raises(ConfigError, match="it has one value, not 2"):
        config(lambda file: file.set("lxc.uts.name", ["a", "b"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lxc.tty.max", "many", "cannot set lxc.tty.max = many: not a whole number"),
        ("lxc.nope", "1", "unknown key lxc.nope"),
        ("lxc.uts.name", "a\nlxc.tty.max = 1", "cannot set lxc.uts.name: a value is one line"),
        ("lxc.uts.name", "a\0", "cannot set lxc.uts.name: a value is one line"),
        ("lxc.net.0.type", "macvlan", "cannot change lxc.net.0.type: another line could not be used then"),
        ("lxc.net.0.macvlan.mode", "bridge", "it needs type = macvlan"),
        ("lxc.kmsg", "1", "an old key without effect"),
        ("lxc.rootfs.backend", "zfs", "is now a part of lxc.rootfs.path"),
        ("lxc.network.link", "br0", "lxc.network.link does not say which network"),
        ("lxc.net", "x", "it takes no value"),
    ],
)  # fmt: skip
def test_set_refuses_and_changes_nothing(config, key, value, message):
    with pytest.raises(ConfigError, match=message):
        config(lambda file: file.set(key, [value]))
    with open(config.path, encoding="utf-8") as file:
        assert file.read() == TEXT


def test_a_refused_value_has_no_line_in_the_file(config):
    with pytest.raises(ConfigError) as caught:
        config(lambda file: file.set("lxc.tty.max", ["many"]))
    assert caught.value.origin is None
    with pytest.raises(ConfigError) as caught:
        config(lambda file: file.set("lxc.net.0.type", ["macvlan"]))
    assert str(caught.value.origin) == f"{config.path}:11"


def test_a_broken_file_can_be_mended_and_made_no_worse(config):
    broken = "lxc.tty.max = many\nlxc.nope = 1\n"
    assert (
        config(lambda file: file.set("lxc.tty.max", ["4"]), broken)
        == "lxc.tty.max = 4\nlxc.nope = 1\n"
    )
    assert (
        config(lambda file: file.set("lxc.uts.name", ["a"]), broken)
        == f"{broken}lxc.uts.name = a\n"
    )
    assert config(lambda file: file.unset("lxc.tty.max"), broken) == "lxc.nope = 1\n"
    with pytest.raises(ConfigError):
        config(lambda file: file.set("lxc.pty.max", ["many"]), broken)


def test_problems_that_stay_are_kept(config, tmp_path):
    def check(file):
        assert [problem.message for problem in file.problems] == ["unknown key lxc.nope"]
        file.set("lxc.tty.max", ["4"])
        assert [problem.message for problem in file.problems] == ["unknown key lxc.nope"]

    config(check, "lxc.nope = 1\n")


# -------------------------------------------------------------------------------------- includes
@pytest.fixture
def included(tmp_path):
    path = tmp_path / "common"
    path.write_text(
        "lxc.tty.max = 9\nlxc.mount.entry = i i none bind 0 0\nlxc.autodev = 0\nlxc.net.0.type = veth\nlxc.net.0.link = br0\n"
    )
    return f"lxc.include = {path}\n"


def test_what_an_include_sets_below_is_set_behind_it(config, included):
    text = f"lxc.tty.max = 1\n{included}lxc.uts.name = a\n"
    assert (
        config(lambda file: file.set("lxc.tty.max", ["2"]), text)
        == f"{included}lxc.uts.name = a\nlxc.tty.max = 2\n"
    )


def test_a_list_that_an_include_fills_is_emptied_first(config, included):
    text = config(lambda file: file.set("lxc.mount.entry", ["x x none bind 0 0"]), included)
    assert text == f"{included}lxc.mount.entry =\nlxc.mount.entry = x x none bind 0 0\n"
    assert effective(Config.parse(text), "lxc.mount.entry") == ["x x none bind 0 0"]


def test_unset_of_what_an_include_sets(config, included):
    assert (
        config(lambda file: file.unset("lxc.tty.max"), f"{included}lxc.tty.max = 3\n")
        == f"{included}lxc.tty.max =\n"
    )
    with pytest.raises(
        ConfigError, match=r"cannot unset lxc\.autodev: .*/common:3, which is included, sets it"
    ):
        config(lambda file: file.unset("lxc.autodev"), included)


def test_a_type_that_an_include_sets_below_is_not_set_behind_it(config, included):
    """It would wipe what the include says about that network."""
    with pytest.raises(ConfigError, match="leaves the others alone"):
        config(
            lambda file: file.set("lxc.net.0.type", ["empty"]), f"lxc.net.0.type = veth\n{included}"
        )


def test_includes_are_a_list_themselves(config, included, tmp_path):
    (tmp_path / "more").write_text("lxc.pty.max = 5\n")
    more = f"lxc.include = {tmp_path}/more\n"
    assert is_list("lxc.include")
    assert (
        config(lambda file: file.add("lxc.include", [f"{tmp_path}/more"]), included)
        == included + more
    )
    assert config(lambda file: file.set("lxc.include", [f"{tmp_path}/more"]), included) == more
    assert config(lambda file: file.unset("lxc.include"), included + more) == ""
    with pytest.raises(ConfigError, match="no such file"):
        config(lambda file: file.add("lxc.include", [f"{tmp_path}/none"]), included)


# ------------------------------------------------------------------------------------ add, unset
def test_add_goes_behind_the_last(config):
    entry = "c c none bind 0 0"
    last = "lxc.mount.entry = b b none bind 0 0"
    assert config(lambda file: file.add("lxc.mount.entry", [entry])) == changed(
        last, f"{last}\nlxc.mount.entry = {entry}"
    )


def test_add_of_pairs(config):
    text = config(lambda file: file.add("lxc.cgroup2.devices.allow", ["c 1:3 rwm", "c 1:5 rwm"]))
    assert (
        text
        == f"{TEXT}lxc.cgroup2.devices.allow = c 1:3 rwm\nlxc.cgroup2.devices.allow = c 1:5 rwm\n"
    )


def test_add_behind_what_clears(config):
    text = "lxc.group = a\nlxc.group =\n"
    assert config(lambda file: file.add("lxc.group", ["b"]), text) == f"{text}lxc.group = b\n"


def test_add_refuses_a_single_value(config):
    for key in ("lxc.uts.name", "lxc.sysctl.kernel.msgmax", "lxc.net"):
        with pytest.raises(ConfigError, match="it has one value"):
            config(lambda file, key=key: file.add(key, ["x"]))
    with pytest.raises(ConfigError, match=r"unknown key lxc\.nope"):
        config(lambda file: file.add("lxc.nope", ["x"]))


@pytest.mark.parametrize(
    ("key", "gone"),
    [
        ("lxc.uts.name", ["lxc.uts.name"]), ("lxc.tty.max", ["lxc.tty"]), ("lxc.tty", ["lxc.tty"]), ("lxc.mount.entry", ["lxc.mount.entry"]),
        ("lxc.net.0", ["lxc.net.0"]), ("lxc.net", ["lxc.net.0"]), ("lxc.net.0.type", ["lxc.net.0"]), ("lxc.net.0.link", ["lxc.net.0.link"]),
        ("lxc.arch", []), ("lxc.hook", []),
    ],
)  # fmt: skip
def test_unset_takes_lines_away(config, key, gone):
    text = config(lambda file: file.unset(key))
    kept = [
        line
        for line in TEXT.splitlines()
        if not any(line.startswith(f"{name}{end}") for name in gone for end in " .")
    ]
    assert text.splitlines() == kept


def test_unset_of_an_unknown_key(config):
    with pytest.raises(ConfigError, match=r"unknown key lxc\.uts\.nmae"):
        config(lambda file: file.unset("lxc.uts.nmae"))


def test_present_names():
    assert present_name("lxc.utsname") == "lxc.uts.name"
    assert present_name("lxc.limit.core") == "lxc.prlimit.core"
    assert present_name("lxc.network.3.ipv4") == "lxc.net.3.ipv4.address"
    assert present_name("lxc.network") == "lxc.net"
    assert present_name("lxc.uts.name") == "lxc.uts.name"


# ------------------------------------------------------------------------------------ any change
KEYS = st.sampled_from(["lxc.uts.name", "lxc.tty.max", "lxc.mount.entry", "lxc.group", "lxc.sysctl.a", "lxc.cgroup.b", "lxc.net.0.type",
                        "lxc.net.0.link", "lxc.net.0.ipv4.address", "lxc.net.0", "lxc.hook", "lxc.cap.drop", "lxc.cap.keep", "lxc.nope"])  # fmt: skip
VALUES = st.sampled_from(["", "1", "x", "veth", "empty", "10.0.0.5/24", "a b", "'q'", " "])
LINES = st.lists(
    st.one_of(
        st.tuples(KEYS, VALUES).map(" = ".join),
        st.sampled_from(["", "# c", "alien", "lxc.tty = 3", "lxc.broken"]),
    )
)


def others(config, key):
    names = {a.key for a in config.assignments} - {key}
    return {name: effective(config, name) for name in names if effective(config, name)}


@settings(deadline=None)
@given(lines=LINES, key=KEYS, values=st.lists(VALUES, min_size=1, max_size=3), verb=st.sampled_from(["set", "add", "unset"]))  # fmt: skip
def test_any_change_does_what_was_asked_and_nothing_else(
    tmp_path_factory, lines, key, values, verb
):
    path = str(tmp_path_factory.getbasetemp() / "any")
    with open(path, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    before = Config.read(path, problems=[])
    with ConfigFile(path) as file:
        old = len(file.problems)
        try:
            file.unset(key) if verb == "unset" else getattr(file, verb)(key, values)
        except ConfigError:
            assert file.config.text() == "".join(f"{line}\n" for line in lines)
            return
        assert len(file.problems) <= old
        text = file.config.text()
    after = Config.parse(text, file=path, problems=[])
    comments = [line for line in lines if not line.startswith("lxc.")]
    assert [line for line in text.splitlines() if not line.startswith("lxc.")] == comments
    wanted = [value.strip() for value in values if value.strip()]
    if verb == "unset":
        assert after.origins(key) == ()
        return
    assert others(after, key) == others(before, key)
    found = [f"'{value}'" if value == "q" else value for value in effective(after, key)]
    if "" in [value.strip() for value in values]:
        return  # it resets what was before, and for some keys sets something
    assert found[-len(wanted) :] == wanted
    assert verb == "add" or found == wanted


# ---------------------------------------------------------------------------------------- saving
def test_a_save_keeps_the_mode_and_the_link(tmp_path):
    real, link = tmp_path / "real", tmp_path / "config"
    real.write_text("lxc.uts.name = a\n")
    real.chmod(0o640)
    link.symlink_to("real")
    with ConfigFile(str(link)) as file:
        file.set("lxc.uts.name", ["b"])
        file.save()
    assert os.readlink(link) == "real"
    assert real.read_text() == "lxc.uts.name = b\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["config", "real"]


def test_a_save_without_a_change_leaves_the_file_alone(config):
    config()
    before = os.stat(config.path)
    with ConfigFile(config.path) as file:
        file.set("lxc.arch", ["i386"])
        file.unset("lxc.arch")
        file.save()
    assert os.stat(config.path) == before


def test_a_save_keeps_carriage_returns_and_bytes(tmp_path):
    path = tmp_path / "config"
    path.write_bytes(b"# \xff\r\nlxc.uts.name = a\r\n")
    with ConfigFile(str(path)) as file:
        file.set("lxc.uts.name", ["b"])
        file.save()
    assert path.read_bytes() == b"# \xff\r\nlxc.uts.name = b\r\n"


def test_a_save_completes_a_random_address(config):
    text = config(
        lambda file: file.set("lxc.tty.max", ["1"]),
        "lxc.net.0.type = veth\nlxc.net.0.hwaddr = 00:16:3e:xx:xx:xx\n",
    )
    assert "xx" not in text
    assert config(lambda file: file.set("lxc.tty.max", ["2"]), text) == text.replace(
        "max = 1", "max = 2"
    )


@pytest.mark.parametrize("make", ["missing", "directory", "loop"])
def test_what_is_no_file_is_refused(tmp_path, make):
    path = tmp_path / "config"
    if make == "directory":
        path.mkdir()
    if make == "loop":
        path.symlink_to(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"), ConfigFile(str(path)):
        pass


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HostError, match="it is not a regular file"):
        editing.replace(str(tmp_path / "pipe"), b"")
    with pytest.raises(HostError, match="no such file"):
        editing.replace(str(tmp_path / "none" / "x"), b"")


def test_a_failed_save_leaves_nothing_behind(config, monkeypatch):
    config()

    def fail(*_arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("atoll.linux.files.rename", fail)
    with pytest.raises(HostError, match=r"cannot save .*: input/output error"):
        config(lambda file: file.set("lxc.arch", ["i386"]))
    with open(config.path, encoding="utf-8") as file:
        assert file.read() == TEXT
    assert os.listdir(os.path.dirname(config.path)) == ["config"]


def test_two_who_change_it_at_once_lose_nothing(tmp_path):
    path = tmp_path / "config"
    path.write_text("")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from atoll.config.editing import ConfigFile\n"
        "for number in range(25):\n"
        "    with ConfigFile(sys.argv[2]) as file:\n"
        "        file.add('lxc.group', [f'{sys.argv[3]}{number}'])\n"
        "        file.save()\n"
    )
    source = os.path.dirname(os.path.dirname(os.path.dirname(editing.__file__)))
    both = [
        subprocess.Popen([sys.executable, "-c", code, source, str(path), name]) for name in "ab"
    ]
    assert [process.wait() for process in both] == [0, 0]
    groups = Config.read(str(path)).get("lxc.group").split()
    assert sorted(groups) == sorted(f"{name}{number}" for name in "ab" for number in range(25))


# ---------------------------------------------------------------------------------------- listing
def test_own_rows_are_the_files(tmp_path):
    rows = listing.own(Config.parse(TEXT, file="f"))
    assert [(row.key, row.value, row.place) for row in rows][:3] == [
        ("lxc.uts.name", "one", "f:2"), ("lxc.tty.max", "4", "f:4"), ("lxc.mount.entry", "a a none bind 0 0", "f:6"),
    ]  # fmt: skip
    assert len(rows) == 8


def test_effective_rows_are_what_counts(included):
    text = f"lxc.uts.name = a\n{included}lxc.tty.max = '3'\nlxc.mount.entry =\nlxc.uts.name = b\n"
    rows = listing.effective(Config.parse(text, file="f"))
    own = [(row.key, row.value, row.line) for row in rows if row.place.startswith("f:")]
    assert own == [("lxc.tty.max", "3", 3), ("lxc.uts.name", "b", 5)]
    assert [row.key for row in rows if row.place.endswith("/common:5")] == ["lxc.net.0.link"]
    defaults = {row.key: row.value for row in rows if row.place == "default"}
    assert defaults["lxc.net.0.veth.mode"] == "bridge"
    assert defaults["lxc.signal.halt"] == "30"
    assert "lxc.net.0.macvlan.mode" not in defaults
    assert "lxc.autodev" not in defaults


def corpus():
    """The configurations that the parity test asks LXC about."""
    directory = f"{os.path.dirname(__file__)}/../conformance/corpus"
    for path in sorted(glob.glob(f"{directory}/*.txt")):
        with open(path, encoding="utf-8") as file:
            for section in file.read().split("\n=== ")[1:]:
                text = section.partition("\n")[2].partition("---\n")[0]
                yield text.replace("{CORPUS}", directory)


def test_effective_rows_can_be_read_again_and_mean_the_same():
    count = 0
    for text in corpus():
        try:
            before = Config.parse(text)
        except ConfigError:
            continue
        rows = listing.effective(before)
        after = Config.parse("".join(f"{row.text}\n" for row in rows))
        for section in document.sections():
            assert _unordered(after[section]) == _unordered(before[section]), text
        count += 1
    assert count > 150


def _unordered(section):
    """A section's values; what has one value a name may be in another order."""
    values = section.as_dict()
    for field, key in section.section_keys.items():
        if getattr(key.kind, "unique", False):
            values[field] = dict(values[field])
    return values
