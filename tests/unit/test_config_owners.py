"""The index of keys: every key of reference section 2.2 has an owner that declares it; old names; failure modes."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from atoll.config import owners
from atoll.config.keys import Section, key, many, text
from atoll.config.text import Config
from atoll.errors import ConfigError

# Reference of LXC, section 2.2, in its order; N and the sub-keys of prefixes filled in.
KEYS = """
lxc.arch lxc.apparmor.profile lxc.apparmor.allow_incomplete lxc.apparmor.allow_nesting lxc.apparmor.raw
lxc.autodev lxc.autodev.tmpfs.size lxc.cap.drop lxc.cap.keep lxc.cgroup.devices.allow lxc.cgroup lxc.cgroup2.memory.max
lxc.cgroup2 lxc.cgroup.dir lxc.cgroup.dir.monitor lxc.cgroup.dir.container lxc.cgroup.dir.container.inner
lxc.cgroup.dir.monitor.pivot lxc.cgroup.relative lxc.console.buffer.size lxc.console.size lxc.console.logfile
lxc.console.rotate lxc.console.path lxc.environment lxc.environment.runtime lxc.environment.hooks lxc.ephemeral
lxc.execute.cmd lxc.group lxc.hook.pre-start lxc.hook.pre-mount lxc.hook.mount lxc.hook.autodev lxc.hook.start-host
lxc.hook.start lxc.hook.stop lxc.hook.post-stop lxc.hook.clone lxc.hook.destroy lxc.hook.version lxc.hook lxc.idmap
lxc.init.cmd lxc.init.cwd lxc.init.uid lxc.init.gid lxc.init.groups lxc.keyring.session lxc.log.file lxc.log.level
lxc.log.syslog lxc.monitor.unshare lxc.monitor.signal.pdeath lxc.mount.auto lxc.mount.entry lxc.mount.fstab
lxc.namespace.clone lxc.namespace.keep lxc.namespace.share.net lxc.net lxc.net.0 lxc.net.0.type lxc.net.0.flags
lxc.net.0.link lxc.net.0.l2proxy lxc.net.0.mtu lxc.net.0.name lxc.net.0.hwaddr lxc.net.0.ipv4.address
lxc.net.0.ipv4.gateway lxc.net.0.ipv6.address lxc.net.0.ipv6.gateway lxc.net.0.script.up lxc.net.0.script.down
lxc.net.0.veth.mode lxc.net.0.veth.pair lxc.net.0.veth.n_rxqueues lxc.net.0.veth.n_txqueues lxc.net.0.veth.ipv4.route
lxc.net.0.veth.ipv6.route lxc.net.0.veth.vlan.id lxc.net.0.veth.vlan.tagged.id lxc.net.0.vlan.id lxc.net.0.macvlan.mode
lxc.net.0.ipvlan.mode lxc.net.0.ipvlan.isolation lxc.no_new_privs lxc.prlimit.nofile lxc.prlimit lxc.proc.oom_score_adj
lxc.proc lxc.pty.max lxc.rootfs.path lxc.rootfs.mount lxc.rootfs.options lxc.rootfs.managed lxc.sched.core
lxc.seccomp.profile lxc.seccomp.allow_nesting lxc.seccomp.notify.cookie lxc.seccomp.notify.proxy lxc.selinux.context
lxc.selinux.context.keyring lxc.signal.halt lxc.signal.reboot lxc.signal.stop lxc.start.auto lxc.start.delay
lxc.start.order lxc.sysctl.net.ipv4.ip_forward lxc.sysctl lxc.time.offset.boot lxc.time.offset.monotonic lxc.tty.dir
lxc.tty.max lxc.uts.name
""".split()


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_an_owner_that_declares_it(name):
    assert owners.find(name) is not None


@pytest.mark.parametrize("module", sorted(set(owners.OWNERS.values())))
def test_a_module_declares_only_keys_that_it_owns_and_documents_them(module):
    declared = owners.declarations(module)
    for name in declared.names:
        assert owners.OWNERS[".".join(name.split(".")[:2])] == module
    for target in declared.exact.values():
        assert target.key is None or target.key.doc, target.key


@pytest.mark.parametrize(("old", "new"), sorted(owners.LEGACY.items(), key=str))
def test_old_names_lead_to_keys(old, new):
    assert old not in KEYS
    assert new is None or owners.find(new) is not None


def test_unknown_heads_import_nothing(monkeypatch):
    monkeypatch.setattr(owners, "_load", lambda name: pytest.fail(f"imported {name}"))
    assert owners.find("lxc.nope.x") is None


def test_a_module_is_imported_when_its_prefix_appears_first():
    script = (
        "import sys; from atoll.config.text import Config; seen = lambda: 'atoll.resources.lsm' in sys.modules\n"
        "Config.parse('# lxc.apparmor.raw = x\\n'); assert not seen(); Config.parse('lxc.apparmor.raw = x\\n'); assert seen()"
    )
    import subprocess

    subprocess.run(
        [sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )


def test_an_owner_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setitem(owners.OWNERS, "lxc.uts", "atoll.resources.nowhere")
    with pytest.raises(
        RuntimeError,
        match=r"internal error: atoll\.resources\.nowhere owns keys but cannot be imported",
    ):
        Config.parse("lxc.uts.name = x\n")


def test_an_owner_that_declares_nothing_below_its_prefix_is_named(monkeypatch):
    class Other(Section):
        names: tuple[str, ...] = key("lxc.other", many(text))

    module = ModuleType("atoll_empty_owner")
    Other.__module__ = module.__name__
    vars(module)["Other"] = Other
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(owners.OWNERS, "lxc.uts", module.__name__)
    monkeypatch.setattr(owners, "_loaded", dict(owners._loaded))
    with pytest.raises(
        RuntimeError,
        match=r"internal error: atoll_empty_owner owns lxc\.uts but declares no key of it",
    ):
        Config.parse("lxc.uts.name = x\n")


def test_a_section_that_is_only_imported_is_not_the_modules(monkeypatch):
    module = ModuleType("atoll_borrower")

    class Borrowed(Section):
        name: str | None = key("lxc.other.name", text)

    vars(module).update(Section=Section, Borrowed=Borrowed)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(owners, "_loaded", {})
    assert owners.declarations(module.__name__).names == []


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("abc", "abc", 0),
        ("abc", "acb", 1),
        ("abc", "ab", 1),
        ("abc", "xbc", 1),
        ("abc", "abcd", 1),
        ("abc", "xyz", 3),
        ("abcd", "wxyz", 4),
        ("", "abcd", 4),
    ],
)
def test_distance_stops_at_its_limit(one, other, distance):
    assert owners._distance(one, other, 3) == distance


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("lxc.signal.hlat", "lxc.signal.halt"), ("lxc.start.ordr", "lxc.start.order"), ("lxc.utsnam", "lxc.uts.name"),
     ("lxc.log.levle", "lxc.log.level"), ("lxc.seccomp.profil", "lxc.seccomp.profile")],
)  # fmt: skip
def test_nearest(name, suggestion):
    assert owners.nearest(name)[0] == suggestion
    with pytest.raises(ConfigError) as caught:
        Config.parse(f"{name} = 1\n")
    assert suggestion in (caught.value.fix or "")
