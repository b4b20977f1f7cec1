"""lxc.conf, reference section 2.3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atoll.config.system import KEYS, read_system, system_file, system_value
from atoll.errors import ConfigError


def User(home, uid=1000) -> Any:
    """The facts of a Host that matter here."""
    return SimpleNamespace(home=str(home), uid=uid, lxcpath=f"{home}/.local/share/lxc")


@pytest.fixture
def user(tmp_path):
    return User(tmp_path)


def configure(user, content):
    from pathlib import Path

    directory = Path(user.home) / ".config" / "lxc"
    directory.mkdir(parents=True)
    (directory / "lxc.conf").write_bytes(content)


def test_defaults(user):
    assert system_value(user, "lxc.lxcpath") == f"{user.home}/.local/share/lxc"
    assert system_value(user, "lxc.default_config") == f"{user.home}/.config/lxc/default.conf"
    assert system_value(user, "lxc.bdev.zfs.root") == "lxc"
    assert system_value(user, "lxc.cgroup.use") is None
    assert system_value(user, "lxc.cgroup.pattern") is None


def test_paths_of_root_and_of_a_user_without_home():
    assert system_file(User("/root", uid=0)) == "/etc/lxc/lxc.conf"
    assert system_file(User("/")) == "/.config/lxc/lxc.conf"


def test_the_callers_environment_names_another_file(user, tmp_path):
    (tmp_path / "other").write_text("lxc.cgroup.use = cpu\n")
    environment = {"LXC_GLOBAL_CONF": f"{tmp_path}/other"}
    assert system_value(user, "lxc.cgroup.use", environment) == "cpu"
    assert system_value(user, "lxc.cgroup.use", {}) is None


def test_the_first_line_of_a_key_wins(user):
    configure(
        user,
        b"# lxc.lxcpath = /no\n  lxc.lxcpath=/srv/lxc//\nlxc.lxcpath = /x\nfoo = 1\nlxc.cgroup.pattern =\nlxc.cgroup.pattern = a/%n\n",
    )
    assert system_value(user, "lxc.lxcpath") == "/srv/lxc"
    assert system_value(user, "lxc.cgroup.pattern") == "a/%n"


def test_the_root_directory_stays_one(user):
    configure(user, b"lxc.lxcpath = //\n")
    assert system_value(user, "lxc.lxcpath") == "/"


def test_any_bytes(user):
    configure(user, bytes(range(256)))
    assert system_value(user, "lxc.lxcpath") == user.lxcpath


def test_unknown_key(user):
    with pytest.raises(ConfigError, match=r"unknown system key lxc\.nope") as caught:
        system_value(user, "lxc.nope")
    assert all(name in (caught.value.fix or "") for name in KEYS)


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="is a directory"):
        read_system(str(tmp_path))
    assert read_system(f"{tmp_path}/none") == {}
