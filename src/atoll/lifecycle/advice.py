"""What in a configuration is allowed and yet hardly meant: keys without effect, settings that change the host, odd names.

Never an error: LXC starts these containers, and so do we. Each function is about one resource and yields findings.
Sources: reference of LXC, sections 2.2, 3, 6 and 7; namespaces(7), sysctl(8).
"""

from __future__ import annotations

from atoll.errors import AtollError
from atoll.lifecycle import check
from atoll.lifecycle.check import Finding
from atoll.linux.process import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS
from atoll.resources import namespaces
from atoll.resources.cgroup import Cgroup
from atoll.resources.lifetime import Autostart, Signals
from atoll.resources.lsm import AppArmor
from atoll.resources.mounts import Autodev
from atoll.resources.namespaces import Namespaces
from atoll.resources.network import Network
from atoll.resources.seccomp import Seccomp
from atoll.resources.storage import Rootfs
from atoll.resources.terminal import Console, Terminals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.resources.network import Nic

WARNING = "warning"
NOTE = "note"
SIGNAL_MAX = 64
IPC_SYSCTLS = ("kernel.sem", "kernel.shm", "kernel.msg", "kernel.auto_msgmni", "fs.mqueue.")
UTS_SYSCTLS = ("kernel.hostname", "kernel.domainname")
OTHER_SYSCTLS = ("user.", "kernel.ns_last_pid", "kernel.pid_max")
"""Of a user namespace or a pid namespace; everything that is in no list is the whole machine's."""


def findings(config: Config, host: Host, *, whole: bool = True) -> Iterator[Finding]:
    """All of it. `host` is an able one. `whole`: the configuration is a container's, not a part that others include."""
    if whole:
        yield from _rootfs(config)
    made = _made(config, host)
    yield from _names(config, made)
    yield from _sysctls(config, made)
    yield from _terminals(config)
    yield from _dev(config)
    yield from _security(config)
    yield from _networks(config, made)
    yield from _cgroups(config)
    yield from _lifetime(config)
    yield from _skipped(config, host)


def _made(config: Config, host: Host) -> int:
    """The namespaces of its own that the container has, as a mask; joined ones are not its own."""
    try:
        decision = namespaces.decide(
            config,
            host,
            id_mapped=config.mentions("lxc.idmap"),
            net_wanted=not _only_host_network(config),
            layout="unified",
        )
    except AtollError:  # a contradiction, which is told elsewhere
        return 0x7FFFFFFF
    return decision.clone | decision.later


def _only_host_network(config: Config) -> bool:
    nics = config[Network].nics
    return bool(nics) and all(nic.type == "none" for nic in nics)


def _rootfs(config: Config) -> Iterator[Finding]:
    section = config[Rootfs]
    if section.path:
        return
    yield Finding(
        severity=WARNING,
        message="lxc.rootfs.path is not set: the container uses the host's own root file system",
        key="lxc.rootfs.path",
        fix="set lxc.rootfs.path",
    )
    for key in ("lxc.rootfs.mount", "lxc.rootfs.options"):
        yield from _useless(config, key, "there is no lxc.rootfs.path")


def _names(config: Config, made: int) -> Iterator[Finding]:
    if not made & CLONE_NEWUTS:
        yield from _useless(config, "lxc.uts.name", "the container has no uts namespace of its own")
    section = config[Namespaces]
    for name, _value in section.share:
        if name in section.keep:
            yield _finding(
                config,
                f"lxc.namespace.share.{name}",
                f"{name} is in lxc.namespace.keep too: it is shared, not kept",
                f"take {name} out of lxc.namespace.keep",
            )
    if section.clone and "time" not in section.clone:
        for clock in ("boot", "monotonic"):
            yield from _useless(
                config, f"lxc.time.offset.{clock}", "time is not in lxc.namespace.clone"
            )


def _sysctls(config: Config, made: int) -> Iterator[Finding]:
    """Settings of the whole machine: a container with the host's root user changes them for all."""
    for assignment in config.assignments:
        name = assignment.key.removeprefix("lxc.sysctl.")
        if name == assignment.key or not assignment.value:
            continue
        whose = (
            (("net.",), CLONE_NEWNET),
            (IPC_SYSCTLS, CLONE_NEWIPC),
            (UTS_SYSCTLS, CLONE_NEWUTS),
            (OTHER_SYSCTLS, -1),
        )
        flag = next((flag for prefixes, flag in whose if name.startswith(prefixes)), 0)
        if not flag & made:
            yield Finding(
                severity=WARNING,
                message=f"{name} is a setting of the whole machine here, not of the container",
                key=assignment.key,
                origin=assignment.origin,
                fix="set it on the host, or remove the line",
            )


def _terminals(config: Config) -> Iterator[Finding]:
    wanted, console = config[Terminals], config[Console]
    if wanted.tty_max and not wanted.pty_max:
        yield _finding(
            config,
            "lxc.tty.max",
            "ttys without lxc.pty.max: the container has no devpts of its own to open terminals in",
            "set lxc.pty.max, as distributions do: 1024",
        )
    if console.path == "none":
        for key in ("lxc.console.logfile", "lxc.console.buffer.size"):
            yield from _useless(config, key, "lxc.console.path = none: there is no console")
    elif console.logfile is None:
        for key in ("lxc.console.size", "lxc.console.rotate"):
            yield from _useless(config, key, "there is no lxc.console.logfile")
    elif console.rotate and not console.size:
        yield from _useless(config, "lxc.console.rotate", "lxc.console.size is not set")


def _dev(config: Config) -> Iterator[Finding]:
    if not config[Autodev].enabled:
        for key in ("lxc.autodev.tmpfs.size", "lxc.hook.autodev"):
            yield from _useless(config, key, "lxc.autodev is 0")


def _security(config: Config) -> Iterator[Finding]:
    if config[AppArmor].profile != "generated":
        yield from _useless(config, "lxc.apparmor.raw", "lxc.apparmor.profile is not `generated`")
    seccomp = config[Seccomp]
    if seccomp.profile is None:
        for key in ("lxc.seccomp.allow_nesting", "lxc.seccomp.notify.proxy"):
            yield from _useless(config, key, "there is no lxc.seccomp.profile")
    if seccomp.notify_proxy is None:
        yield from _useless(
            config, "lxc.seccomp.notify.cookie", "there is no lxc.seccomp.notify.proxy"
        )


def _networks(config: Config, made: int) -> Iterator[Finding]:
    nics = config[Network].nics
    macs: dict[str, int] = {}
    for nic in nics:
        if nic.type != "none" and not made & CLONE_NEWNET:
            yield _finding(
                config,
                f"lxc.net.{nic.index}.type",
                "this network is ignored: the container has no network namespace of its own",
                "take net out of lxc.namespace.keep (or add it to clone), or remove the network",
            )
            continue
        yield from _network(config, nic)
        mac = (nic.hwaddr or "").lower()
        if mac and mac in macs:
            yield _finding(
                config,
                f"lxc.net.{nic.index}.hwaddr",
                f"lxc.net.{macs[mac]} has this address too",
                "use x for random digits: 00:16:3e:xx:xx:xx",
            )
        macs.setdefault(mac, nic.index)


def _network(config: Config, nic: Nic) -> Iterator[Finding]:
    prefix = f"lxc.net.{nic.index}"
    if nic.type in ("none", "empty"):
        subs = ("link", "hwaddr", "mtu", "l2proxy")
        for sub in subs if nic.type == "empty" else (*subs, "flags", "name", "ipv4.address"):
            yield from _useless(config, f"{prefix}.{sub}", f"a network of type {nic.type} has none")
        return
    if not nic.flags:
        for family in ("ipv4", "ipv6"):
            if nic.addresses(family):
                yield _finding(
                    config,
                    f"{prefix}.{family}.address",
                    "the device is not brought up",
                    f"add {prefix}.flags = up",
                )
    if nic.hwaddr and int(nic.hwaddr[1], 16) & 1:
        yield _finding(
            config,
            f"{prefix}.hwaddr",
            "a multicast address, which no device can have: its second digit is odd",
            "use an even second digit",
        )


def _cgroups(config: Config) -> Iterator[Finding]:
    if config[Cgroup].container_directory is None:
        for key in ("lxc.cgroup.dir.container.inner", "lxc.cgroup.dir.monitor.pivot"):
            yield from _useless(config, key, "there is no lxc.cgroup.dir.container")
    from atoll.resources.cgroup import translate

    for assignment in config.assignments:
        head, _dot, file = assignment.key.removeprefix("lxc.").partition(".")
        if head not in ("cgroup", "cgroup2") or not assignment.value or file.startswith("dir"):
            continue
        near = translate.misspelt(file, generation=2 if head == "cgroup2" else 1)
        if near is not None:
            yield Finding(
                severity=WARNING,
                message=f"{file} is no file that the kernel is known to have",
                key=assignment.key,
                origin=assignment.origin,
                fix=f"did you mean lxc.{head}.{near}?",
                token=assignment.key,
            )


def _lifetime(config: Config) -> Iterator[Finding]:
    section, signals = config[Autostart], config[Signals]
    if not section.auto:
        for key in ("lxc.start.delay", "lxc.start.order"):
            yield from _useless(config, key, "lxc.start.auto is 0", severity=NOTE)
    for name in ("halt", "reboot", "stop"):
        if not 0 < getattr(signals, name) <= SIGNAL_MAX:
            yield _finding(
                config,
                f"lxc.signal.{name}",
                "there is no such signal",
                f"use a number from 1 to {SIGNAL_MAX}, or a name",
            )


def _skipped(config: Config, host: Host) -> Iterator[Finding]:
    """Steps of the plan that do nothing but say so."""
    plan = check.plan(check.without_limits(config), host, name="checked", lxcpath=host.lxcpath)
    if isinstance(plan, AtollError):
        return
    for place in plan.placed():
        if type(place.step).__name__.startswith("Skip"):
            yield Finding(
                severity=WARNING,
                message=f"a start will {place.step.explain()}",
                origin=place.step.origin,
            )


def _useless(config: Config, key: str, why: str, *, severity: str = WARNING) -> Iterator[Finding]:
    origin = config.origin(key)
    if origin is not None:
        yield Finding(
            severity=severity, message=f"{key} has no effect: {why}", key=key, origin=origin
        )


def _finding(config: Config, key: str, message: str, fix: str) -> Finding:
    return Finding(
        severity=WARNING, message=f"{key}: {message}", key=key, origin=config.origin(key), fix=fix
    )
