"""Every key of LXC is declared, typed, documented, and works: parse, get, clear, list; docs/keys.md is current.

The lists are the tables of the reference of LXC, sections 2.2, 2.3 and 2.4, written down here so that a declaration that goes
missing is noticed.
"""

from __future__ import annotations

import pytest

from atoll.config import document, owners
from atoll.config.keys import Indexed, Key, Many, Pairs
from atoll.config.system import KEYS
from atoll.config.text import INCLUDE, Config
from atoll.errors import ConfigError
from contract import sources

PRESENT = """
lxc.arch lxc.apparmor.profile lxc.apparmor.allow_incomplete lxc.apparmor.allow_nesting lxc.apparmor.raw lxc.autodev
lxc.autodev.tmpfs.size lxc.cap.drop lxc.cap.keep lxc.cgroup.* lxc.cgroup2.* lxc.cgroup.dir lxc.cgroup.dir.monitor
lxc.cgroup.dir.container lxc.cgroup.dir.container.inner lxc.cgroup.dir.monitor.pivot lxc.cgroup.relative
lxc.console.buffer.size lxc.console.size lxc.console.logfile lxc.console.rotate lxc.console.path lxc.environment
lxc.environment.runtime lxc.environment.hooks lxc.ephemeral lxc.execute.cmd lxc.group lxc.hook.pre-start lxc.hook.pre-mount
lxc.hook.mount lxc.hook.autodev lxc.hook.start-host lxc.hook.start lxc.hook.stop lxc.hook.post-stop lxc.hook.clone
lxc.hook.destroy lxc.hook.version lxc.idmap lxc.include lxc.init.cmd lxc.init.cwd lxc.init.uid lxc.init.gid lxc.init.groups
lxc.keyring.session lxc.log.file lxc.log.level lxc.log.syslog lxc.monitor.unshare lxc.monitor.signal.pdeath lxc.mount.auto
lxc.mount.entry lxc.mount.fstab lxc.namespace.clone lxc.namespace.keep lxc.namespace.share.* lxc.net.N.type lxc.net.N.flags
lxc.net.N.link lxc.net.N.l2proxy lxc.net.N.mtu lxc.net.N.name lxc.net.N.hwaddr lxc.net.N.ipv4.address
lxc.net.N.ipv4.gateway lxc.net.N.ipv6.address lxc.net.N.ipv6.gateway lxc.net.N.script.up lxc.net.N.script.down
lxc.net.N.veth.mode lxc.net.N.veth.pair lxc.net.N.veth.n_rxqueues lxc.net.N.veth.n_txqueues lxc.net.N.veth.ipv4.route
lxc.net.N.veth.ipv6.route lxc.net.N.veth.vlan.id lxc.net.N.veth.vlan.tagged.id lxc.net.N.vlan.id lxc.net.N.macvlan.mode
lxc.net.N.ipvlan.mode lxc.net.N.ipvlan.isolation lxc.no_new_privs lxc.prlimit.* lxc.proc.* lxc.pty.max lxc.rootfs.path
lxc.rootfs.mount lxc.rootfs.options lxc.rootfs.managed lxc.sched.core lxc.seccomp.profile lxc.seccomp.allow_nesting
lxc.seccomp.notify.cookie lxc.seccomp.notify.proxy lxc.selinux.context lxc.selinux.context.keyring lxc.signal.halt
lxc.signal.reboot lxc.signal.stop lxc.start.auto lxc.start.delay lxc.start.order lxc.sysctl.* lxc.time.offset.boot
lxc.time.offset.monotonic lxc.tty.dir lxc.tty.max lxc.uts.name
""".split()
BARE = ["lxc.hook", "lxc.net"]
SYSTEM = """
lxc.lxcpath lxc.default_config lxc.bdev.lvm.vg lxc.bdev.lvm.thin_pool lxc.bdev.zfs.root lxc.bdev.rbd.rbdpool lxc.cgroup.use
lxc.cgroup.pattern
""".split()
LEGACY = """
lxc.rootfs lxc.rootfs.backend lxc.pivotdir lxc.kmsg lxc.utsname lxc.id_map lxc.pts lxc.tty lxc.devttydir lxc.aa_profile
lxc.aa_allow_incomplete lxc.se_context lxc.mount lxc.seccomp lxc.console lxc.haltsignal lxc.rebootsignal lxc.stopsignal
lxc.syslog lxc.loglevel lxc.logfile lxc.init_cmd lxc.init_uid lxc.init_gid lxc.limit.* lxc.network.type lxc.network.ipv4
lxc.network.ipv6 lxc.network.flags lxc.network.link lxc.network.name lxc.network.hwaddr lxc.network.mtu lxc.network.veth.pair
lxc.network.macvlan.mode lxc.network.vlan.id lxc.network.script.up lxc.network.script.down lxc.network.ipv4.gateway
lxc.network.ipv6.gateway
""".split()
GENERATIONS = ("1.x", "2.x", "5.0.2", "HEAD")
PARTS = ("commands", "limits", "network", "security", "storage")
"""The open parts of the project that a key may name."""


def declarations() -> dict[str, Key]:
    return {
        declaration.name: declaration
        for section in document.sections()
        for declaration in document.declared(section)
        if isinstance(declaration, Key)
    }


def full_name(key: Key) -> str:
    """The name in the key's example: lxc.net.0.mtu, lxc.sysctl.net.ipv4.ip_forward."""
    return document.example_lines(key)[-1].partition(" = ")[0]


def declared(name: str) -> Key:
    return declarations()[name]


def test_the_tables_and_the_declarations_are_the_same() -> None:
    assert sorted(declarations()) == sorted(PRESENT)
    assert sorted(KEYS) == sorted(SYSTEM)
    for name in BARE:
        assert owners.find(name) is not None


@pytest.mark.parametrize("name", PRESENT)
def test_a_declaration_tells_all(name: str) -> None:
    key = declared(name)
    assert key.doc.endswith(".")
    assert key.doc[0] in "`[" or not key.doc[0].islower() or "=" in key.doc or ":" in key.doc[:8]
    assert key.example
    assert key.since in GENERATIONS
    assert key.later in (None, *PARTS)


@pytest.mark.parametrize("name", PRESENT)
def test_a_key_parses_gets_clears_and_is_listed(name: str) -> None:
    key = declared(name)
    lines = document.example_lines(key)
    full = full_name(key)
    if name == INCLUDE:
        with pytest.raises(ConfigError, match="no value of its own"):
            Config.empty().get(name)
        return
    config = Config.parse("".join(f"{line}\n" for line in lines))
    assert [each.key for each in config.assignments][-1] == full
    assert config.get(full)
    assert config.origin(full) is not None
    cleared = config.clear(full)
    assert cleared.text() == "".join(f"{line}\n" for line in lines[:-1])
    listed = config.keys("lxc.net.0") if ".N." in name else config.keys()
    assert name.removeprefix("lxc.net.N.").removesuffix(".*") in listed
    assert Config.parse(config.text()).get(full) == config.get(full)
    emptied = Config.parse(config.text() + f"{full} =\n", problems=[])
    if isinstance(key.kind, (Many, Pairs)) and ".N." not in name:
        assert emptied.get(full) == ""


@pytest.mark.parametrize("name", [name for name in PRESENT if name != INCLUDE])
def test_an_example_says_something_else_than_the_default(name: str) -> None:
    lines = document.example_lines(declared(name))
    base = ["lxc.net.0.type = macvlan"] if ".N." in name and len(lines) == 1 else []
    full = full_name(declared(name))
    before = Config.parse("\n".join([*base, *lines[:-1]]))
    assert before.get(full) != Config.parse("\n".join([*base, *lines])).get(full)


@pytest.mark.parametrize("name", [name for name in LEGACY if name != "lxc.rootfs.backend"])
def test_an_old_name_is_taken_and_leads_to_the_present_one(name: str) -> None:
    new = document._successor(name)[0].strip("`")
    lines = ["lxc.network.type = veth"] if name.startswith("lxc.network.") else []
    if name == "lxc.network.type":
        lines = []
    if new == "none":
        value = "1"
    else:
        key = declared(new)
        value = document.example_lines(key)[-1].partition(" = ")[2]
        if key.needs and name.startswith("lxc.network."):
            lines = [f"lxc.network.type = {key.needs[1][0]}"]
    config = Config.parse("\n".join([*lines, f"{name.replace('*', 'nofile')} = {value}"]) + "\n")
    warning = config.warnings[-1]
    assert warning.old == name.replace("*", "nofile")
    expected = new.replace(".N.", ".0.").replace("*", "nofile")
    assert warning.new == (None if new == "none" else expected)
    if warning.new is not None:
        assert config.get(warning.new)


def test_every_old_name_of_the_table_is_documented() -> None:
    assert set(LEGACY) <= set(document._old_names())


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_key_tells_all(name: str) -> None:
    key = KEYS[name]
    assert key.doc.endswith(".")
    assert key.example
    assert key.default
    assert key.later in (None, *PARTS)


def test_the_page_is_current() -> None:
    with open(f"{sources.REPOSITORY}/docs/keys.md", encoding="utf-8") as file:
        assert file.read() == document.page(), "run `make keys`"


def test_the_page_has_a_row_for_every_key() -> None:
    page = document.page()
    for name in (*PRESENT, *BARE, *SYSTEM):
        assert f"| `{name}` |" in page
    for name in LEGACY:
        assert f"| {name} |" in page
    assert all(
        isinstance(d, (Key, Indexed)) for s in document.sections() for d in document.declared(s)
    )
