"""Sections without steps: lifetime, seccomp, lsm. Rows of reference sections 2.2, 2.5 and 2.6."""

from __future__ import annotations

import pytest

from atoll.config.text import Config
from atoll.errors import ConfigError
from atoll.resources.lifetime import Autostart, Lifetime, Log, Monitor, Signals
from atoll.resources.lsm import AppArmor, SELinux
from atoll.resources.seccomp import Seccomp


def parse(*lines):
    return Config.parse("\n".join(lines))


def test_defaults():
    config = Config.empty()
    assert config[Signals] == Signals(halt=30, reboot=2, stop=9)
    assert config[Autostart] == Autostart(auto=False, delay=0, order=0, groups=())
    assert config[Lifetime] == Lifetime(ephemeral=False, execute_command=None)
    assert config[Monitor] == Monitor(unshare=0, death_signal=9)
    assert config[Log] == Log(file=None, level=None, syslog=None)
    assert config[Seccomp] == Seccomp(
        profile=None, allow_nesting=False, notify_cookie=None, notify_proxy=None
    )
    assert config[AppArmor] == AppArmor(
        profile=None, allow_incomplete=False, allow_nesting=False, raw=()
    )
    assert config[SELinux] == SELinux(context=None, keyring_context=None)


@pytest.mark.parametrize(
    ("lines", "name", "shown"),
    [
        (["lxc.group = a b", "lxc.group = c"], "lxc.group", "a\nb\nc\n"),
        (['lxc.execute.cmd = "/bin/echo hi"'], "lxc.execute.cmd", "/bin/echo hi"),
        (["lxc.log.level = debug"], "lxc.log.level", "DEBUG"),
        (["lxc.log.level = 3"], "lxc.log.level", "NOTICE"),
        ([], "lxc.log.level", "NOTSET"),
        (["lxc.log.file = /srv//x/./log/"], "lxc.log.file", "/srv/x/log"),
        (["lxc.log.syslog = local3"], "lxc.log.syslog", "local3"),
        (["lxc.monitor.signal.pdeath = SIGTERM"], "lxc.monitor.signal.pdeath", "15"),
        (["lxc.monitor.signal.pdeath = SIGTERM", "lxc.monitor.signal.pdeath ="], "lxc.monitor.signal.pdeath", "0"),
        ([], "lxc.monitor.signal.pdeath", "9"),
        (["lxc.monitor.unshare = 1"], "lxc.monitor.unshare", "1"),
        (["lxc.signal.halt = SIGRTMIN+3"], "lxc.signal.halt", "37"),
        (["lxc.signal.reboot = SIGTERM"], "lxc.signal.reboot", "15"),
        (["lxc.signal.stop = 999"], "lxc.signal.stop", "999"),
        ([], "lxc.signal.stop", "0"),
        (["lxc.start.order = -3"], "lxc.start.order", "-3"),
        (["lxc.start.delay = 0x10"], "lxc.start.delay", "16"),
        (["lxc.start.auto = 1"], "lxc.start.auto", "1"),
        ([], "lxc.ephemeral", "0"),
        (["lxc.seccomp.notify.proxy = unix:/run/px"], "lxc.seccomp.notify.proxy", "/run/px"),
        (["lxc.seccomp.profile = /a//b/"], "lxc.seccomp.profile", "/a/b"),
        (["lxc.apparmor.raw = a b,", "lxc.apparmor.raw = c,"], "lxc.apparmor.raw", "a b,\nc,\n"),
        (["lxc.selinux.context.keyring = k"], "lxc.selinux.context.keyring", "k"),
        ([], "lxc.selinux.context", ""),
    ],
)  # fmt: skip
def test_get(lines, name, shown):
    assert parse(*lines).get(name) == shown


@pytest.mark.parametrize(
    "line",
    [
        "lxc.start.auto = 2", "lxc.start.auto = yes", "lxc.start.order = 1x", "lxc.start.delay = -1", "lxc.ephemeral = 2",
        "lxc.signal.halt = PWR", "lxc.signal.stop = SIGFOO", "lxc.signal.reboot = SIGRTMIN", "lxc.log.level = bogus",
        "lxc.log.level = 9", "lxc.log.syslog = local8", "lxc.seccomp.notify.proxy = /run/px", "lxc.seccomp.notify.proxy = unix:",
        "lxc.apparmor.allow_nesting = 2", "lxc.seccomp.allow_nesting = yes", "lxc.monitor.unshare = -1",
    ],
)  # fmt: skip
def test_refused(line):
    with pytest.raises(ConfigError) as caught:
        parse("", line)
    assert caught.value.message.startswith(f"cannot set {line}: ")
    assert str(caught.value.origin) == "config:2"


class Facts:
    """The two facts of a Host that these keys ask for."""

    def __init__(self, lsm, seccomp):
        self.lsm = lsm
        self.seccomp = seccomp


def test_later_depends_on_the_host():
    config = parse(
        "lxc.apparmor.profile = generated",
        "lxc.selinux.context = x",
        "lxc.seccomp.profile = /p",
        "lxc.start.auto = 1",
    )

    def keys(host):
        return [(name, part) for name, part, _origin in config.later(host)]

    assert keys(Facts("none", False)) == [("lxc.start.auto", "commands")]
    assert keys(Facts("apparmor", True)) == [
        ("lxc.apparmor.profile", "security"), ("lxc.seccomp.profile", "security"), ("lxc.start.auto", "commands"),
    ]  # fmt: skip
    assert keys(Facts("selinux", False))[0] == ("lxc.selinux.context", "security")
    assert len(config.later()) == 4


def test_old_names():
    config = parse(
        "lxc.haltsignal = SIGTERM",
        "lxc.aa_profile = unconfined",
        "lxc.seccomp = /p",
        "lxc.loglevel = 1",
        "lxc.se_context = c",
    )
    assert config[Signals].halt == 15
    assert (config[AppArmor].profile, config[Seccomp].profile, config[Log].level) == (
        "unconfined",
        "/p",
        1,
    )
    assert config[SELinux].context == "c"
    assert len(config.warnings) == 5
