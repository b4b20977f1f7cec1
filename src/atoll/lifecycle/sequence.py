"""THE start sequence: which step comes when, both sides next to each other; and the stop.

A reader finds the order here and nowhere else; each line names a resource, whose module has the steps. In every phase
after `prepare` init's part runs first, then the monitor's, then the next phase. The facts behind the order, with LXC's own
barriers, are in docs/design.md.
"""

from __future__ import annotations

import os
import time

from atoll.errors import ConfigError, HostError
from atoll.lifecycle import init, spawn, states
from atoll.linux import process
from atoll.plan import Phase, Plan, Start, flatten
from atoll.records import Record
from atoll.resources import (
    cgroup,
    credentials,
    mounts,
    namespaces,
    network,
    rootfs,
    storage,
    terminal,
)
from atoll.resources.storage import Rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.linux.proc import IdMapping
    from atoll.resources import hooks, idmap, limits

    Context = tuple[Config, Host, Start]


class _Optional:
    """A resource that has nothing to do unless some keys are set: until then it is not even imported."""

    def __init__(self, name: str, wanted: Callable[[Config], bool]) -> None:
        self._name, self._wanted = name, wanted

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def plan(config: Config, *rest: object, **more: object) -> Any:
            if not self._wanted(config):
                return ()
            module = __import__(f"atoll.resources.{self._name}", fromlist=("",))
            return getattr(module, function)(config, *rest, **more)

        return plan


def _mentions(*keys: str) -> Callable[[Config], bool]:
    return lambda config: any(config.mentions(key) for key in keys)


def _has_programs(config: Config) -> bool:
    """Are there hooks or network scripts, which need an environment?"""
    return config.mentions("lxc.hook") or network.has_scripts(config)


if not TYPE_CHECKING:
    hooks = _Optional("hooks", _has_programs)
    idmap = _Optional("idmap", _mentions("lxc.idmap"))
    limits = _Optional(
        "limits", _mentions("lxc.arch", "lxc.prlimit", "lxc.proc", "lxc.sched", "lxc.sysctl")
    )

ID_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Wish(Record):
    """What the caller of a start wants besides the configuration."""

    name: str
    lxcpath: str
    argv: tuple[str, ...] = ()
    """Empty: lxc.init.cmd, or lxc.execute.cmd with `init_loop`; else /sbin/init."""
    init_loop: bool = False
    linger: bool = False
    daemon: bool = False
    stdio: tuple[int, int, int] | None = None
    console: bool | None = None
    """None: as lxc.console.path says."""
    monitor_cgroup: bool = True
    close_inherited: bool = False
    environment: tuple[str, ...] = ()
    start_id: str | None = None


class Facts(Record):
    """What was looked up for one start before planning: read only, so that explain can do it too."""

    cgroup_suffix: str = ""
    cgroup_system: cgroup.CgroupSystem = cgroup.NO_SYSTEM
    shared: tuple[namespaces.SharedNamespace, ...] = ()
    fstab: str | None = None
    root_on_device: bool = False
    decision: namespaces.Decision | None = None
    environ: tuple[tuple[str, str], ...] = ()
    """The caller's environment, which hooks and network scripts inherit; empty when there are none."""
    listen_fds: int = 0


def gather(
    config: Config,
    host: Host,
    wish: Wish,
    *,
    environ: Mapping[str, str],
    system: cgroup.CgroupSystem,
    pid_of: Callable[[str], int | None],
) -> Facts:
    """Look up what the plan depends on. `pid_of` answers the init pid of a running container by name."""
    listen = environ.get("LISTEN_FDS", "0")
    decision = _decision(config, host)
    suffix = cgroup.free_suffix(config, host, wish.name, system=system, monitor=wish.monitor_cgroup)
    return Facts(
        cgroup_suffix=suffix,
        cgroup_system=system,
        decision=decision,
        shared=namespaces.resolve_shared(decision, pid_of),
        fstab=mounts.load_fstab(config),
        root_on_device=storage.on_device(config),
        environ=tuple(environ.items()) if _has_programs(config) else (),
        listen_fds=int(listen) if listen.isdigit() else 0,
    )


def decide(config: Config, host: Host, wish: Wish, facts: Facts) -> Start:
    """The choices that several resources share. Raises ConfigError or HostError when the wish cannot be met."""
    _refuse_contradictions(config)
    id_map = idmap.mappings(config)
    decision = facts.decision or _decision(config, host)
    if not host.privileged and not id_map and not decision.shared_flags & process.CLONE_NEWUSER:
        raise _needs_id_map(host)
    root_uid, root_gid = _container_root(id_map) if id_map else (0, 0)
    section = config[Rootfs]
    console = terminal.wanted(config) if wish.console is None else wish.console
    return Start(
        name=wish.name,
        lxcpath=wish.lxcpath,
        start_id=wish.start_id or new_start_id(),
        began=time.time(),
        argv=_argv(config, wish),
        init_loop=wish.init_loop,
        daemon=wish.daemon,
        stdio=wish.stdio,
        console=console,
        clone_namespaces=decision.clone,
        later_namespaces=decision.later,
        shared_namespaces=decision.shared_flags,
        id_map=id_map,
        root_uid=root_uid,
        root_gid=root_gid,
        rootfs=(section.mount or host.rootfs_mount) if section.path else None,
        kept_capabilities=credentials.kept_mask(config, host),
        cgroup_suffix=facts.cgroup_suffix,
        monitor_cgroup=wish.monitor_cgroup,
        privileged=host.privileged,
        extra_environment=wish.environment,
    )


def _refuse_contradictions(config: Config) -> None:
    """What rules.py knows, which most configurations have no use for."""
    if _mentions("lxc.idmap", "lxc.prlimit", "lxc.net.1", "lxc.cgroup.dir")(config):
        from atoll.lifecycle import rules

        rules.refuse(config)


def _container_root(id_map: tuple[IdMapping, ...]) -> tuple[int, int]:
    from atoll.resources.idmap import container_root

    return container_root(id_map)


def _decision(config: Config, host: Host) -> namespaces.Decision:
    return namespaces.decide(
        config,
        host,
        id_mapped=bool(idmap.mappings(config)),
        net_wanted=network.wants_namespace(config),
        layout=host.layout,
    )


def new_start_id() -> str:
    """Eight random characters of [0-9a-z]."""
    return "".join(ID_DIGITS[byte % 36] for byte in os.urandom(8))


def _execute_command(config: Config) -> str | None:
    from atoll.resources.lifetime import Lifetime

    return config[Lifetime].execute_command


def _argv(config: Config, wish: Wish) -> tuple[str, ...]:
    if wish.argv:
        return wish.argv
    section = config[credentials.Init]
    command = _execute_command(config) if wish.init_loop else section.cmd
    if command:
        return tuple(word for word in command.split(" ") if word)
    if wish.init_loop:
        raise ConfigError(
            "there is no command to execute",
            key="lxc.execute.cmd",
            fix="give one after the options, or set lxc.execute.cmd",
        )
    return ("/sbin/init",)


def _refuse_host_init(config: Config, wish: Wish) -> None:
    """LXC refuses this without a configuration file; an empty one is no better."""
    if not (wish.argv or wish.init_loop or config[Rootfs].path or config[credentials.Init].cmd):
        raise ConfigError(
            "this would execute the host's own /sbin/init: there is neither a root file system nor a command",
            key="lxc.rootfs.path",
            fix="set lxc.rootfs.path or lxc.init.cmd, or give a command after the options",
        )


def _argv_origin(config: Config, wish: Wish) -> Origin | None:
    """The line that says what is executed; None for the command line and for /sbin/init."""
    key = "lxc.execute.cmd" if wish.init_loop else "lxc.init.cmd"
    return None if wish.argv else config.origin(key)


def _needs_id_map(host: Host) -> HostError:
    from atoll.resources.idmap import subordinate_mapping

    suggestion = subordinate_mapping(host)
    if not suggestion:
        return _no_subordinate_ids(host)
    lines = " and ".join(
        f"lxc.idmap = {m.kind} {m.inside} {m.outside} {m.count}" for m in suggestion
    )
    return HostError(
        "an ordinary user's container needs an id map, and lxc.idmap is not set",
        missing="lxc.idmap",
        fix=f"add {lines}, or run as root",
    )


def _no_subordinate_ids(host: Host) -> HostError:
    if host.subuids and host.subgids:
        return HostError(
            "an ordinary user's container needs newuidmap and newgidmap, and they are not installed set-uid",
            missing="newuidmap",
            fix="apt-get install uidmap, or run as root",
        )
    files = " and ".join(
        f
        for f, ranges in (("/etc/subuid", host.subuids), ("/etc/subgid", host.subgids))
        if not ranges
    )
    return HostError(
        f"an ordinary user's container needs an id map, and user {host.user} has no subordinate ids in {files}",
        missing="subordinate ids",
        fix=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {host.user} (as root), then set lxc.idmap",
    )


def start(config: Config, host: Host, s: Start, facts: Facts, wish: Wish) -> Plan:
    """The plan of a start. Pure: nothing is looked at, nothing is done."""
    _refuse_host_init(config, wish)
    c = (config, host, s)
    plan = Plan(
        name=s.name,
        phases=(
            _prepare(c, facts, wish),
            _clone(c, facts),
            _network(c),
            _rootfs(c, facts),
            _mounts(c),
            _limits(c, facts),
            _fds(c),
            _ready(c, facts, wish),
        ),
    )
    plan.check(given=(states.OWNER, spawn.PROGRAM, spawn.MONITOR_FDS))
    return plan


def _monitor(config: Config, field: str, default: int) -> int:
    """A number of lxc.monitor.*."""
    if not config.mentions("lxc.monitor"):
        return default
    from atoll.resources.lifetime import Monitor

    return int(getattr(config[Monitor], field))


def _prepare(c: Context, facts: Facts, wish: Wish) -> Phase:
    """One process, before the clone: all that init inherits."""
    config, host, s = c
    return Phase(
        name="prepare",
        monitor=flatten(
            states.inherited(s, close=wish.close_inherited, listen_fds=facts.listen_fds),
            states.listen(s),
            states.unshare(
                s,
                wanted=bool(_monitor(config, "unshare", 0)),
                origin=config.origin("lxc.monitor.unshare"),
            ),
            states.enter("STARTING"),
            hooks.environment(*c, environ=dict(facts.environ)),
            hooks.run(*c, "pre-start"),
            terminal.host_console(*c),
            cgroup.prepare(*c, system=facts.cgroup_system),
            namespaces.open_shared(*c, facts.shared),
            rootfs.mount_point(host, s),
            rootfs.pin(s, storage.directory(config), config.origin("lxc.rootfs.path")),
            storage.attach(*c, device=facts.root_on_device),
            network.prepare(*c),
            credentials.reboot_support(host, user_namespace=bool(s.id_map)),
            credentials.path_owners(*c),
            credentials.monitor_pidfd(*c),
            spawn.CloneInit(flags=s.clone_namespaces, shared=bool(facts.shared)),
        ),
    )


def _clone(c: Context, facts: Facts) -> Phase:
    """Init cannot be lost any more; the monitor gives it its ids and its cgroups."""
    return Phase(
        name="clone",
        init=flatten(
            credentials.death_signal(*c),
            cgroup.join(*c, system=facts.cgroup_system),
            credentials.ambient_capabilities(*c),
            credentials.signal_mask(*c),
        ),
        monitor=flatten(
            hooks.child_environment(*c),
            limits.core_scheduling(*c),
            namespaces.keep(*c) if _keeps_namespaces(c) else None,
            idmap.write(*c),
            cgroup.enter(*c, system=facts.cgroup_system),
        ),
    )


def _network(c: Context) -> Phase:
    """Init becomes root of its namespaces; the monitor gives it links and limits."""
    return Phase(
        name="network",
        init=flatten(
            namespaces.unshare_net(*c),
            idmap.become_root(*c),
            credentials.check_traversable(*c),
            credentials.drop_reboot(*c),
        ),
        monitor=flatten(
            namespaces.keep_net(*c) if _keeps_namespaces(c) else None,
            network.create(*c),
            limits.proc_files(*c),
            limits.resource_limits(*c),
        ),
    )


def _rootfs(c: Context, facts: Facts) -> Phase:
    """Init takes its root, its name, its links, and mounts."""
    config, _host, _s = c
    return Phase(
        name="rootfs",
        init=flatten(
            namespaces.unshare_later(*c),
            credentials.hook_environment(*c) if _has_programs(config) else None,
            rootfs.prepare(*c),
            hooks.run_inside(*c, "pre-mount"),
            storage.take(*c, device=facts.root_on_device),
            namespaces.hostname(*c),
            credentials.keyring(*c),
            network.configure(*c),
            mounts.device_tmpfs(*c),
            mounts.automatic(*c),
            mounts.fstab(*c, fstab_text=facts.fstab),
            mounts.entries(*c, nesting=_allows_nesting(config)),
        ),
    )


def _allows_nesting(config: Config) -> bool:
    if not config.mentions("lxc.apparmor"):
        return False
    from atoll.resources.lsm import AppArmor

    return config[AppArmor].allow_nesting


def _mounts(c: Context) -> Phase:
    """Init completes /dev, enters its root, and gives up what it may not keep."""
    config, _host, s = c
    return Phase(
        name="mounts",
        init=flatten(
            cgroup.mounts(*c, token=mounts.cgroup_token(config)),
            hooks.run_inside(*c, "mount"),
            hooks.run_inside(*c, "autodev"),
            mounts.populate_dev(*c),
            hooks.verify(*c),
            terminal.devpts(*c),
            terminal.console(*c),
            terminal.ttys(*c),
            mounts.boot_id(*c),
            storage.protect(*c),
            rootfs.pivot(*c),
            mounts.after_pivot(*c),
            limits.personality(*c),
            limits.sysctls(*c),
            credentials.drop_capabilities(*c),
            credentials.no_new_privileges(*c),
            hooks.run_inside(*c, "start"),
            init.stdio(s, owner=config[credentials.Init].uid),
            credentials.working_directory(*c),
        ),
    )


def _limits(c: Context, facts: Facts) -> Phase:
    """Device rules last: init needed to make its nodes."""
    return Phase(
        name="limits",
        monitor=flatten(
            cgroup.finish(*c, system=facts.cgroup_system),
            hooks.run(*c, "start-host"),
        ),
    )


def _fds(c: Context) -> Phase:
    """What the monitor keeps of init."""
    return Phase(
        name="fds",
        init=flatten(terminal.send(*c)),
        monitor=flatten(
            terminal.log_file(*c),
            namespaces.keep_later(*c) if _keeps_namespaces(c) else None,
        ),
    )


def _keeps_namespaces(c: Context) -> bool:
    """They outlive init for those who work on them: links as soon as they are there, hooks when init has ended.

    As soon as they are there, too, because the stop hooks also run for a start that failed.
    """
    return _has_programs(c[0]) or bool(network.create(*c))


def _ready(c: Context, facts: Facts, wish: Wish) -> Phase:
    """The point of no return."""
    config, _host, s = c
    return Phase(
        name="ready",
        init=flatten(
            credentials.final(*c, death_signal=_monitor(config, "death_signal", process.SIGKILL)),
            init.execute(
                s,
                listen_fds=facts.listen_fds,
                linger=wish.linger,
                origin=_argv_origin(config, wish),
            ),
        ),
        monitor=flatten(
            terminal.receive(*c),
            spawn.AwaitExec(),
            states.enter("RUNNING"),
        ),
    )


def stopping(config: Config, host: Host, s: Start, *, target: str) -> Plan:
    """What is done, after init ended, before the journal is taken back. `target` is stop or reboot."""
    c = (config, host, s)
    return Plan(
        name=s.name,
        phases=(
            Phase(
                name="stop",
                monitor=flatten(
                    states.enter("STOPPING"),
                    hooks.stop_environment(*c, target=target),
                    hooks.run(*c, "stop", target=target),
                ),
            ),
        ),
    )


def stopped(config: Config, host: Host, s: Start, *, target: str) -> Plan:
    """What is done when everything is taken back."""
    return Plan(
        name=s.name,
        phases=(
            Phase(
                name="stopped",
                monitor=flatten(hooks.run(config, host, s, "post-stop", target=target)),
            ),
        ),
    )
