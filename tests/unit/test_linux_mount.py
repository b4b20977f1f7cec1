"""The words of mounting."""

from __future__ import annotations

import pytest

from atoll.linux import mount


def test_flag_names():
    assert mount.flag_names(0) == "0"
    assert mount.flag_names(mount.MS_NODEV | mount.MS_NOSUID) == "MS_NOSUID|MS_NODEV"
    assert mount.flag_names(mount.MS_RDONLY | 1 << 40) == "MS_RDONLY|0x10000000000"


@pytest.mark.parametrize(
    ("off", "on"),
    [("rw", "ro"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("async", "sync"),
     ("atime", "noatime"), ("diratime", "nodiratime"), ("norelatime", "relatime"),
     ("nostrictatime", "strictatime"), ("nomand", "mand")],
)  # fmt: skip
def test_options_come_in_pairs(off, on):
    flag = mount.OPTIONS[on][1]
    assert flag
    assert mount.OPTIONS[on] == (False, flag)
    assert mount.OPTIONS[off] == (True, flag)


def test_recursive_propagation_is_the_plain_one_and_rec():
    for name in ("private", "shared", "slave", "unbindable"):
        assert mount.PROPAGATION["r" + name] == mount.PROPAGATION[name] | mount.MS_REC
