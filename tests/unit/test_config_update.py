"""config/update.py: old names rewritten, all else byte for byte; the meaning stays the same (reference, section 2.4)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config import owners
from atoll.config.text import Config
from atoll.config.update import difference, modernise
from atoll.errors import ConfigError


def updated(*lines):
    text, problems = modernise("\n".join(lines))
    assert problems == ()
    return text.split("\n")


@pytest.mark.parametrize(("old", "new"), [pair for pair in owners.LEGACY.items() if pair[1]])
def test_every_old_name(old, new):
    if old.startswith("lxc.rootfs"):
        return  # a value of its own: below
    assert updated(f"{old} = x", f" #{old}=x") == [f"{new} = x", f" #{new}=x"]


@pytest.mark.parametrize("old", ["lxc.kmsg", "lxc.pivotdir", "lxc.rootfs.backend"])
def test_names_without_a_successor_go(old):
    assert updated("a", f"{old} = 1", f"# {old}=1", "b") == ["a", "b"]


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (["lxc.rootfs = /r"], "dir:/r"),
        (["lxc.rootfs   =/r"], "dir:/r"),
        (["lxc.rootfs = /dev/vg/c1"], "/dev/vg/c1"),
        (["lxc.rootfs = overlayfs:/a:/b"], "overlayfs:/a:/b"),
        (["lxc.rootfs = '/a b'"], "'dir:/a b'"),
        (["lxc.rootfs ="], ""),
        (["lxc.rootfs = /r", "lxc.rootfs.backend = btrfs"], "btrfs:/r"),
        (["lxc.rootfs.backend = btrfs", "lxc.rootfs = /r", "lxc.uts.name = c1"], "btrfs:/r"),
        (["lxc.rootfs = /r", "#lxc.rootfs.backend = btrfs"], "dir:/r"),
        (["#lxc.rootfs = /r"], "dir:/r"),
    ],
)
def test_root_file_system(lines, value):
    (line,) = [line for line in updated(*lines) if "rootfs" in line]
    assert line.partition("=")[2].strip() == value
    assert line.lstrip("#").startswith("lxc.rootfs.path")


def test_sequential_networks():
    assert updated(
        "lxc.network.type = veth", "lxc.network.ipv4 = 1.2.3.4", "lxc.network.ipv4.gateway = auto",
        "#lxc.network.type = macvlan", "#lxc.network.link = x", "lxc.network.link = br0",
        "lxc.network.type = empty", "lxc.network.flags = up", "# lxc.network.name = eth9", "lxc.network =",
    ) == [
        "lxc.net.0.type = veth", "lxc.net.0.ipv4.address = 1.2.3.4", "lxc.net.0.ipv4.gateway = auto",
        "#lxc.net.1.type = macvlan", "#lxc.net.1.link = x", "lxc.net.0.link = br0",
        "lxc.net.2.type = empty", "lxc.net.2.flags = up", "# lxc.net.2.name = eth9", "lxc.net =",
    ]  # fmt: skip


def test_numbered_networks_and_limits():
    assert updated(
        "lxc.network.10.type = veth", "lxc.network.1.ipv4 = 1.2.3.4", "lxc.network.1.ipv6 = ::1",
        "lxc.network.1 =", "lxc.limit.nofile = 5",
    ) == [
        "lxc.net.10.type = veth", "lxc.net.1.ipv4.address = 1.2.3.4", "lxc.net.1.ipv6.address = ::1",
        "lxc.net.1 =", "lxc.prlimit.nofile = 5",
    ]  # fmt: skip


def test_a_network_key_before_any_type_is_left_and_told():
    text, problems = modernise("lxc.network.link = br0\n#lxc.network.link = br0\n")
    assert text == "lxc.network.link = br0\n#lxc.network.link = br0\n"
    assert problems == ((1, "lxc.network.link: no lxc.network.type comes before it"),)


@pytest.mark.parametrize(
    "line",
    [
        "# see lxc.tty for the ttys", "lxc.tty", "xlxc.tty = 4", "lxc.ttyx = 4", "LXC.TTY = 4",
        "lxc.hook.start = echo lxc.tty = 4", "lxc.tty.max = 4", "lxc.rootfs.mount = /m", "lxc.network.type",
        "lxc.tty max = 4", "", "  ", "\x0b", "lxc.console.path = lxc.tty = x",
    ],
)  # fmt: skip
def test_what_is_no_old_setting_stays(line):
    assert updated(line) == [line]


def test_line_ends_and_bytes_stay():
    text = b"lxc.tty = 4 \r\n\xff lxc\r\n\tlxc.pts\t=\t5\x0c".decode("utf-8", "surrogateescape")
    new = modernise(text)[0].encode("utf-8", "surrogateescape")
    assert new == b"lxc.tty.max = 4 \r\n\xff lxc\r\n\tlxc.pty.max\t=\t5\x0c"


def test_difference():
    old = "a\nlxc.tty = 1\nb"
    assert difference("f", old, modernise(old)[0]) == (
        "--- f\n+++ f\n@@ -1,3 +1,3 @@\n a\n-lxc.tty = 1\n+lxc.tty.max = 1\n b\n\\ No newline at end of file\n"
    )
    assert difference("f", old, old) == ""
    assert "\u2028" in difference("f", "x\u2028y\n", "z\n").split("\n")[3]


# ------------------------------------------------------------------------------------- any text
SETTINGS = st.sampled_from(
    [
        "lxc.utsname = a", "lxc.tty = 1", "lxc.tty = 2", "lxc.pts=3", "lxc.mount = /f", "lxc.mount.entry = a b none bind 0 0",
        "lxc.rootfs = /r", "lxc.rootfs = 'x y'", "lxc.rootfs.path = zfs:/z", "lxc.kmsg = 0", "lxc.console = none",
        "lxc.id_map = u 0 100000 10", "lxc.limit.core = 1", "lxc.haltsignal = SIGTERM", "lxc.loglevel = 1", "lxc.network.type = veth",
        "lxc.network.type = empty", "lxc.network.flags = up", "lxc.network.ipv4 = 10.0.0.5/24", "lxc.network.0.type = veth",
        "lxc.network.7.ipv6 = fe80::5/64", "lxc.network =", "lxc.aa_profile = x", "# lxc.network.link = x", "# lxc.tty = 9", "",
    ]
)  # fmt: skip


@settings(deadline=None)
@given(
    lines=st.lists(SETTINGS), backend=st.sampled_from(["", "btrfs", "overlay"]), place=st.integers(0, 30)
)  # fmt: skip
def test_the_meaning_stays(lines, backend, place):
    if backend:
        lines.insert(place, f"lxc.rootfs.backend = {backend}")
    old = "\n".join([*lines, ""])
    new, problems = modernise(old)
    try:
        before = Config.parse(old)
    except ConfigError:
        assert problems
        return
    after = Config.parse(new)
    assert after.warnings == ()
    assert problems == ()
    names = {assignment.key for assignment in before.assignments}
    assert {assignment.key for assignment in after.assignments} == names

    def answers(config):
        return {
            name: config.get(name) for name in names if name != "lxc.net" and config.origins(name)
        }

    assert answers(after) == answers(before)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_updated_once_and_for_all(text):
    new, _problems = modernise(text)
    assert modernise(new)[0] == new
    if "lxc." not in text:
        assert new == text


@given(st.lists(SETTINGS))
def test_a_second_time_changes_nothing(lines):
    new = modernise("\n".join(lines))[0]
    assert modernise(new)[0] == new
