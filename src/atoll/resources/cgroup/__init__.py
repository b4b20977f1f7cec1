"""Cgroups of a container and of its monitor: the keys, where the cgroups are, and which steps a start needs.

What differs between cgroup2 and v1 is in two drivers, unified.py and legacy.py, one for each mounted hierarchy: a hybrid host
has both kinds and needs no code of its own. The steps are in steps.py, mounting cgroups inside in mounting.py, what the command
server, attach and lxc-info ask in questions.py. Not about the freezer or device programs.
Sources of truth: cgroups(7), the kernel's admin-guide on cgroup-v1 and cgroup-v2, reference of LXC section 5.
"""

from __future__ import annotations

import os

from atoll.config.keys import Kind, Section, flag, key, pairs, simplify, text
from atoll.errors import ConfigError, HostError
from atoll.linux.process import CLONE_NEWNS
from atoll.records import Record
from atoll.resources.cgroup.driver import CLONED_INTO, PAYLOAD, PAYLOAD_FD, Line, Payload, clone_fd
from atoll.resources.cgroup.steps import (
    CreateMonitorCgroup,
    CreatePayloadCgroup,
    DelegateCgroup,
    EnableControllers,
    EnterMonitorCgroup,
    EnterPayloadCgroup,
    JoinPayloadCgroup,
    RunWithoutCgroups,
    SetLegacyLimit,
    SetLimit,
    SkipLimits,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Hierarchy, Host
    from atoll.plan import HostStep, InitStep, Start
    from atoll.resources.cgroup.questions import (
        HYBRID,
        LEGACY,
        NO_LAYOUT,
        UNIFIED,
        V1_MAGIC,
        V2_MAGIC,
        Statistics,
        attach,
        cgroup2_fd,
        controller_fd,
        get_cgroup,
        layout_number,
        payload_fds,
        payload_paths,
        statistics,
        thaw,
    )

__all__ = [
    "CLONED_INTO", "HYBRID", "LEGACY", "NO_LAYOUT", "PAYLOAD", "PAYLOAD_FD", "UNIFIED", "V1_MAGIC", "V2_MAGIC", "Cgroup",
    "CgroupSystem", "ControllerError", "Payload", "Statistics", "attach", "cgroup2_fd", "clone_fd", "controller_fd", "enter",
    "finish", "free_suffix", "get_cgroup", "join", "layout_number", "mounts", "payload_fds", "payload_paths", "prepare",
    "statistics", "thaw",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The questions, loaded when the first one is asked."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from atoll.resources.cgroup import questions

    return getattr(questions, name)


SUFFIXES: Final = 1000
V2_CONTROLLERS: Final = (
    "cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "perf_event", "pids", "rdma",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- keys
def _relative(value: str) -> str:
    if value.startswith("/"):
        raise ValueError("paths may not be absolute")
    path = simplify(value)
    if ".." in path.split("/"):
        raise ValueError('paths may not walk upwards via "../"')
    if path == ".":
        raise ValueError("names no directory")
    return path


def _single(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("must be a single directory name")
    return value


RELATIVE = Kind(_relative, name="relative path")
SINGLE = Kind(_single, name="directory name")


class Cgroup(Section):
    """lxc.cgroup.*, lxc.cgroup2.*: limits, written as they are to the payload's cgroup, and where the cgroups are made."""

    legacy: tuple[tuple[str, str], ...] = key(
        "lxc.cgroup.*",
        pairs(text),
        doc="File of a cgroup v1 controller in the container's cgroup, and what is written to it,"
        " as it stands; may come again. On a host with cgroup2 it is translated where that has"
        " an equal (docs/cgroups.md).",
        example="memory.limit_in_bytes = 512M",
        since="1.x",
    )
    unified: tuple[tuple[str, str], ...] = key(
        "lxc.cgroup2.*",
        pairs(text),
        doc="File of the container's cgroup2 and what is written to it, as it stands; may come"
        " again. On a host with cgroup v1 it is translated where that has an equal"
        " (docs/cgroups.md).",
        example="memory.max = 512M",
        since="5.0.2",
    )
    directory: str | None = key(
        "lxc.cgroup.dir",
        RELATIVE,
        doc="Directory, relative to where cgroups are made in every hierarchy, that the"
        " container's cgroups are made in.",
        example="lxc/web",
        since="5.0.2",
    )
    monitor_directory: str | None = key(
        "lxc.cgroup.dir.monitor",
        RELATIVE,
        doc="The monitor's cgroup, a relative path; only together with lxc.cgroup.dir.container.",
        example="lxc/web/monitor",
        since="5.0.2",
    )
    container_directory: str | None = key(
        "lxc.cgroup.dir.container",
        RELATIVE,
        doc="The container's cgroup, a relative path; only together with lxc.cgroup.dir.monitor.",
        example="lxc/web/payload",
        since="5.0.2",
    )
    inner: str | None = key(
        "lxc.cgroup.dir.container.inner",
        SINGLE,
        doc="Name of a cgroup in lxc.cgroup.dir.container for the processes, so that its limits"
        " are out of their reach.",
        example="inner",
        since="5.0.2",
    )
    pivot: str | None = key(
        "lxc.cgroup.dir.monitor.pivot",
        RELATIVE,
        doc="Relative path. Accepted, without effect: the monitor goes back to the cgroup that it"
        " came from.",
        example="lxc/pivot",
        since="5.0.2",
    )
    relative: bool = key(
        "lxc.cgroup.relative",
        flag,
        default=False,
        doc="1: make the cgroups below the caller's own cgroup instead of below that of process 1.",
        example="1",
        since="5.0.2",
    )


class CgroupSystem(Record):
    """lxc.cgroup.use and lxc.cgroup.pattern of the system configuration (lxc.conf).

    `use`: controllers; v1 hierarchies with any other are left alone. `pattern`: a directory, `%n` is the container's name.
    """

    use: tuple[str, ...] = ()
    pattern: str | None = None

    @classmethod
    def parse(cls, use: str | None, pattern: str | None) -> CgroupSystem:
        """From the two values as lxc.conf has them. Raises ValueError for a pattern that leaves the hierarchy."""
        names = tuple([_bare(word.strip()) for word in (use or "").split(",") if word.strip()])
        return cls(use=names, pattern=_relative(pattern.strip("/")) if pattern else None)


NO_SYSTEM: Final = CgroupSystem()


# ------------------------------------------------------------------------------------------ plans
def free_suffix(
    config: Config,
    host: Host,
    name: str,
    *,
    system: CgroupSystem = NO_SYSTEM,
    monitor: bool = True,
) -> str:
    """The first of "", "-1" … "-999" for which no hierarchy has a payload or monitor cgroup. Looks; changes nothing.

    `monitor`: Start.monitor_cgroup; without it only the payload's name matters. "" for explicit directories, which have no
    suffix. Raises HostError when all are taken; ConfigError and HostError for settings that cannot be followed.
    """
    bases = [each.mount + each.base for each in _hierarchies(config, host, system)]
    if _names(config, name, "", system).explicit:
        return ""
    for number in range(SUFFIXES):
        suffix = f"-{number}" if number else ""
        names = _names(config, name, suffix, system)
        wanted = (names.payload, names.monitor) if monitor else (names.payload,)
        if not any(os.access(f"{base}/{path}", os.F_OK) for base in bases for path in wanted):
            return suffix
    raise HostError(
        f"cannot choose a cgroup for {name}: {names.payload} and all names before it are taken",
        fix="remove cgroups that no container uses any more",
    )


def prepare(
    config: Config, host: Host, start: Start, *, system: CgroupSystem = NO_SYSTEM
) -> tuple[HostStep, ...]:
    """Monitor, before the clone: its own cgroup, the payload's, controllers, and v1 limits (not of devices)."""
    hierarchies = _hierarchies(config, host, system)
    if not hierarchies:
        _refuse_limits(config)
        return (RunWithoutCgroups(),)
    names = _names(config, start.name, start.cgroup_suffix, system)
    steps: list[HostStep] = []
    if start.monitor_cgroup:
        steps.append(CreateMonitorCgroup(hierarchies=hierarchies, path=names.monitor))
        steps.append(EnterMonitorCgroup(hierarchies=hierarchies, path=names.monitor))
    if host.layout == "unified" and hierarchies[0].controllers:
        each = hierarchies[0]
        directory = each.mount + each.base
        steps.append(EnableControllers(directory=directory, controllers=each.controllers))
    limits = _limits(config, host, hierarchies)
    if host.layout == "hybrid":
        steps += _controllers_wanted(limits, hierarchies[-1])
    payload = Payload(hierarchies=hierarchies, path=names.payload, inner=names.inner)
    steps.append(
        CreatePayloadCgroup(hierarchies=hierarchies, path=names.payload, inner=names.inner)
    )
    steps += limits.skipped
    steps += [limit for limit in _legacy_limits(limits, payload) if not limit.devices]
    return tuple(steps)


def join(
    config: Config, host: Host, start: Start, *, system: CgroupSystem = NO_SYSTEM
) -> tuple[InitStep, ...]:
    """Init, first thing after the clone: enter the payload's cgroups. In cgroup2 it was born, where the kernel can do that.

    Init moves itself because that is quick: the kernel stops all forks of the machine to move somebody else. Not in a shared
    mount namespace, where it does not see the host's hierarchies: there `enter` moves it.
    """
    if start.shared_namespaces & CLONE_NEWNS or not _hierarchies(config, host, system):
        return ()
    return (JoinPayloadCgroup(),)


def enter(
    config: Config, host: Host, start: Start, *, system: CgroupSystem = NO_SYSTEM
) -> tuple[HostStep, ...]:
    """Monitor, right after the clone: cgroup2 limits, ownership for a mapped root; init itself, if it could not `join`."""
    hierarchies = _hierarchies(config, host, system)
    if not hierarchies:
        return ()
    steps: list[HostStep] = []
    if start.shared_namespaces & CLONE_NEWNS:
        steps.append(EnterPayloadCgroup())
    if hierarchies[-1].version == 2:
        names = _names(config, start.name, start.cgroup_suffix, system)
        payload = Payload(hierarchies=hierarchies, path=names.payload, inner=names.inner)
        steps += _unified_limits(_limits(config, host, hierarchies), payload)
    if start.id_map:
        steps.append(DelegateCgroup(uid=_owner(host, start), gid=start.root_gid))
    return tuple(steps)


def finish(
    config: Config, host: Host, start: Start, *, system: CgroupSystem = NO_SYSTEM
) -> tuple[HostStep, ...]:
    """Monitor, phase limits: v1 device rules, which would keep init from making its nodes if they came earlier.

    lxc: none with an inner directory; there, where they are out of the container's reach, they are set too.
    """
    hierarchies = _hierarchies(config, host, system)
    if not hierarchies or hierarchies[0].version == 2:
        return ()
    names = _names(config, start.name, start.cgroup_suffix, system)
    payload = Payload(hierarchies=hierarchies, path=names.payload, inner=names.inner)
    limits = _limits(config, host, hierarchies)
    return tuple([limit for limit in _legacy_limits(limits, payload) if limit.devices])


def mounts(
    config: Config,
    host: Host,
    start: Start,
    *,
    token: str | None,
    system: CgroupSystem = NO_SYSTEM,
) -> tuple[InitStep, ...]:
    """Init, after the automatic mounts: the cgroup token of lxc.mount.auto ("cgroup:mixed:force"), None without one.

    Raises HostError for cgroup2 without a new cgroup namespace, ValueError for what is no cgroup token.
    """
    if token is None:
        return ()
    from atoll.resources.cgroup import mounting

    hierarchies = _hierarchies(config, host, system)
    names = _names(config, start.name, start.cgroup_suffix, system)
    payload = Payload(hierarchies=hierarchies, path=names.payload, inner=names.inner)
    return mounting.plan(config, host, start, token=token, payload=payload)


# ---------------------------------------------------------------------------------------- private
class _Names(Record):
    payload: str
    monitor: str
    inner: str = ""
    explicit: bool = False


def _names(config: Config, name: str, suffix: str, system: CgroupSystem) -> _Names:
    """The cgroups of a container, relative to the base of a hierarchy (reference of LXC 5.2)."""
    wish = config[Cgroup]
    explicit = wish.container_directory, wish.monitor_directory
    if explicit != (None, None):
        return _explicit(config, wish)
    if system.pattern is not None and wish.directory is None:
        top = system.pattern.replace("%n", name)
        return _Names(payload=f"{top}/payload{suffix}", monitor=f"{top}/monitor{suffix}")
    top = f"{wish.directory}/" if wish.directory else ""
    return _Names(
        payload=f"{top}lxc.payload.{name}{suffix}", monitor=f"{top}lxc.monitor.{name}{suffix}"
    )


def _explicit(config: Config, wish: Cgroup) -> _Names:
    container, monitor = wish.container_directory, wish.monitor_directory
    if container is None or monitor is None:
        given = "lxc.cgroup.dir.monitor" if container is None else "lxc.cgroup.dir.container"
        raise ConfigError(
            "lxc.cgroup.dir.container and lxc.cgroup.dir.monitor must both be set",
            key=given,
            origin=config.origin(given),
        )
    if wish.directory is not None:
        raise ConfigError(
            "lxc.cgroup.dir cannot be set together with lxc.cgroup.dir.container",
            key="lxc.cgroup.dir",
            origin=config.origin("lxc.cgroup.dir"),
        )
    return _Names(payload=container, monitor=monitor, inner=wish.inner or "", explicit=True)


def _hierarchies(config: Config, host: Host, system: CgroupSystem) -> tuple[Hierarchy, ...]:
    """Those in which we make cgroups: writable ones, of v1 only those whose controllers are all in lxc.cgroup.use.

    Their base is the caller's own cgroup with lxc.cgroup.relative.
    """
    found = [each for each in host.hierarchies if each.writable]
    if system.use:
        found = _chosen(found, system.use)
    if config[Cgroup].relative:
        found = [each.replace(base=each.own) for each in found]
    return tuple(found)


def _chosen(found: list[Hierarchy], use: tuple[str, ...]) -> list[Hierarchy]:
    kept = [
        each
        for each in found
        if each.version == 2 or all(_bare(controller) in use for controller in each.controllers)
    ]
    there = [_bare(controller) for each in kept for controller in each.controllers]
    missing = [name for name in use if name not in there]
    if missing:
        raise HostError(
            f"cannot use the controllers {', '.join(missing)} of lxc.cgroup.use: no writable hierarchy has them",
            missing=missing[0],
            fix=f"take them out of lxc.cgroup.use; there are {', '.join(there) or 'none'}",
        )
    return kept


def _bare(controller: str) -> str:
    return controller.removeprefix("name=")


def _owner(host: Host, start: Start) -> int:
    """lxc: the caller's own id if the container has it, else that of the container's root."""
    for entry in start.id_map:
        if entry.kind == "u" and entry.outside <= host.uid < entry.outside + entry.count:
            return host.uid
    return start.root_uid


class ControllerError(HostError):
    """A limit whose controller this machine does not offer; `origin` is its configuration line."""

    def __init__(
        self, line: str, why: str, *, origin: Origin | None, fix: str | None, missing: str
    ) -> None:
        super().__init__(f"cannot set {line}: {why}", fix=fix, missing=missing)
        self.origin = origin


class _Limits(Record):
    """What is written, each in the generation that this host has, and the steps that tell what needs no writing."""

    lines: tuple[Line, ...] = ()
    skipped: tuple[SkipLimits, ...] = ()


def _lines(config: Config) -> list[Line]:
    """Every limit, those of v1 first, in order."""
    section = config[Cgroup]
    both = ((1, section.legacy, "lxc.cgroup.*"), (2, section.unified, "lxc.cgroup2.*"))
    return [
        Line(generation=generation, file=file, value=value, origin=origin)
        for generation, limits, name in both
        for (file, value), origin in zip(
            limits, config.origins(name) if limits else (), strict=True
        )
    ]


def _limits(config: Config, host: Host, hierarchies: tuple[Hierarchy, ...]) -> _Limits:
    """What becomes of each limit: configurations are shared between machines, and Debian's common.conf says all of it twice.

    A line of the generation in which this host has not got the controller is left out where the other one sets the same, else
    translated (lxc: left out with a warning). Raises ControllerError where it has no equal.
    """
    lines = _lines(config)
    if not lines:
        return _Limits()
    version = _versions(host, hierarchies)
    native = [line for line in lines if version(line.file) == line.generation]
    here = {(line.file, line.value) for line in native}
    foreign = [line for line in lines if version(line.file) != line.generation]
    twice = [line for line in foreign if (line.file, line.value) in here]
    skipped = _skip([(line, "the other generation of the key says the same") for line in twice])
    if len(twice) == len(foreign):  # nothing to translate: the table need not be loaded
        return _Limits(lines=tuple(native), skipped=skipped)
    from atoll.resources.cgroup import translate

    rest = [line for line in foreign if (line.file, line.value) not in here]
    outcome = translate.resolve(rest, native)
    for refused in outcome.refused:
        raise ControllerError(
            str(refused.line),
            refused.why,
            origin=refused.line.origin,
            missing=refused.line.file,
            fix=refused.fix,
        )
    return _Limits(lines=(*native, *outcome.lines), skipped=(*skipped, *_skip(outcome.left_out)))


def _versions(host: Host, hierarchies: tuple[Hierarchy, ...]) -> Callable[[str], int]:
    """In which generation this host has the controller of a file; its main one where it has it nowhere."""
    found = {_bare(name): each.version for each in hierarchies for name in each.controllers}
    main = 2 if host.layout == "unified" else 1
    found["cgroup"] = hierarchies[-1].version  # files of the core, which v1 lacks
    found.setdefault(
        "devices", hierarchies[-1].version
    )  # in cgroup2 it is no controller but a program
    for one, other in (("io", "blkio"), ("cpuacct", "cpu")):
        either = found.get(one) or found.get(other) or main
        found[one] = found[other] = either

    return lambda file: found.get(file.partition(".")[0], main)


def _skip(left_out: Sequence[tuple[Line, str]]) -> tuple[SkipLimits, ...]:
    """One step for each reason."""
    by_reason: dict[str, list[Line]] = {}
    for line, why in left_out:
        by_reason.setdefault(why, []).append(line)
    return tuple(
        SkipLimits(
            limit=str(lines[0]).partition(" = ")[0],
            more=len(lines) - 1,
            why=why,
            loud=False,
            origin=lines[0].origin,
        )
        for why, lines in by_reason.items()
    )


def _controllers_wanted(limits: _Limits, hierarchy: Hierarchy) -> list[HostStep]:
    """Of a hybrid layout's cgroup2, the controllers that limits need; systemd leaves them disabled."""
    names = {line.file.partition(".")[0] for line in limits.lines if line.generation == 2}
    wanted = tuple([name for name in hierarchy.controllers if name in names])
    directory = hierarchy.mount + hierarchy.base
    return [EnableControllers(directory=directory, controllers=wanted)] if wanted else []


def _refuse_limits(config: Config) -> None:
    for line in _lines(config):
        raise ControllerError(
            str(line),
            "there is no cgroup hierarchy that we may write to",
            origin=line.origin,
            missing=line.file.partition(".")[0],
            fix="have a cgroup delegated to you, or remove the line",
        )


def _legacy_limits(limits: _Limits, payload: Payload) -> list[SetLegacyLimit]:
    """v1 limits in order, but that on memory and swap together last: it must not be below that on memory."""
    present = [each for each in payload.hierarchies if each.version == 1]
    steps: list[SetLegacyLimit] = []
    if not present:
        return steps
    for line in limits.lines:
        if line.generation == 2:
            continue
        file, controller = line.file, line.file.partition(".")[0]
        hierarchy = next((each for each in present if controller in each.controllers), None)
        if hierarchy is None:
            raise ControllerError(
                _as_written(line),
                f"no cgroup v1 hierarchy here has the controller {controller}",
                origin=line.origin,
                missing=controller,
                fix=f"remove the line; available are: {_offered(present)}",
            )
        directories = [payload.directory(hierarchy, limits=True)]
        if controller == "cpuset" and payload.inner:  # a cpuset is not inherited: outer first
            directories.append(payload.directory(hierarchy))
        steps.append(
            SetLegacyLimit(
                file=file,
                value=line.value,
                directories=tuple(directories),
                origin=line.origin,
            )
        )
    return sorted(steps, key=lambda step: step.file == "memory.memsw.limit_in_bytes")


def _as_written(line: Line) -> str:
    """The line of the configuration, which is another one where this is its translation."""
    return line.origin.text if line.origin is not None else str(line)


def _offered(hierarchies: Sequence[Hierarchy]) -> str:
    return " ".join(sorted({c for each in hierarchies for c in each.controllers})) or "none"


def _unified_limits(limits: _Limits, payload: Payload) -> list[HostStep]:
    hierarchy = payload.hierarchies[-1]
    steps: list[HostStep] = []
    devices: list[tuple[str, Origin | None]] = []
    for line in limits.lines:
        if line.generation == 1:
            continue
        file, value, origin = line.file, line.value, line.origin
        controller = file.partition(".")[0]
        if controller == "devices":
            devices.append((file, origin))
            continue
        if _is_missing(file, hierarchy):
            raise ControllerError(
                _as_written(line),
                f"the controller {controller} is not available in {hierarchy.mount}{hierarchy.base}",
                origin=origin,
                missing=controller,
                fix=f"remove the line; available are: {_offered([hierarchy])}",
            )
        directory = payload.directory(hierarchy, limits=True)
        steps.append(SetLimit(file=file, value=value, directory=directory, origin=origin))
    if devices:
        file, origin = devices[0]
        why = "device rules of cgroup2 are not applied yet"
        steps.append(
            SkipLimits(
                limit=f"lxc.cgroup2.{file}",
                more=len(devices) - 1,
                why=why,
                loud=True,
                origin=origin,
            )
        )
    return steps


def _is_missing(file: str, hierarchy: Hierarchy) -> bool:
    """A file of a known controller that is not there. Pressure files exist without their controllers."""
    controller = file.partition(".")[0]
    known = controller in V2_CONTROLLERS and not file.endswith(".pressure")
    return known and controller not in hierarchy.controllers
