"""Namespaces: which are made, kept from the caller or joined; their descriptors; the host name; clock offsets.

Not the clone itself nor entering shared namespaces around it (lifecycle/spawn.py), and not the id map (idmap.py).
Sources: namespaces(7), time_namespaces(7), ioctl_ns(2); reference of LXC, sections 1.6 "Clone flag resolution", 2.2, 4.
"""

from __future__ import annotations

import errno
import fcntl
import os

from atoll.config import keys
from atoll.config.keys import Kind, Section, key, many, pairs
from atoll.errors import ConfigError, HostError
from atoll.linux import files, process
from atoll.linux.files import OwnedFd
from atoll.linux.process import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from atoll.log import DEBUG
from atoll.plan import CHILD, NAMESPACES, HostStep, InitStep, Slot
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, ClassVar

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.plan import Handler, Start

NAMES = {
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "net": CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}
"""Clone flags by the names below /proc/PID/ns, in LXC's order, which is also the order to join them in."""
OPTIONAL = ("user", "cgroup", "time")
"""Made by default only where they have a use and the kernel has them."""
SHARED_FDS: Slot[tuple[SharedFd, ...]] = Slot("shared namespaces")
"""Namespaces of others to be joined by init, in the order of NAMES. Monitor side, and init's copy."""

HOST_NAME_MAX = 64
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
CLOCKS = {"monotonic": 1, "boot": 7}
"""Clock numbers as /proc/PID/timens_offsets takes them."""
_INT64 = 1 << 63
_SECONDS = {"h": 3600, "m": 60, "s": 1}
_NANOSECONDS = {"ms": 1_000_000, "us": 1_000, "ns": 1}


class TimeOffset(Record):
    """Seconds, or nanoseconds, by which a clock of the container is ahead of the host's."""

    seconds: int = 0
    nanoseconds: int = 0

    def __bool__(self) -> bool:
        return bool(self.seconds or self.nanoseconds)

    @property
    def timespec(self) -> tuple[int, int]:
        """Seconds and nanoseconds as the kernel wants them: nanoseconds from 0 to 999,999,999."""
        more, nanoseconds = divmod(self.nanoseconds, 1_000_000_000)
        return self.seconds + more, nanoseconds


def parse_offset(value: str) -> TimeOffset:
    """`-5s`, `2 h`, `500ms`: decimal, signed for h, m and s; a unit is mandatory. Raises ValueError."""
    unit = value[-2:] if value[-2:] in _NANOSECONDS else value[-1:]
    digits = value[: -len(unit)] if unit else ""
    if unit in _SECONDS:
        digits = digits.removesuffix(" ")  # one space, as LXC: `5 s` but not `5 ms`
    sign = -1 if digits.startswith("-") else 1
    digits = digits[1:] if digits[:1] in ("-", "+") else digits
    factor = _SECONDS.get(unit) or _NANOSECONDS.get(unit)
    if factor is None or not (digits.isascii() and digits.isdigit()):
        raise ValueError("not a time offset: use a number and one of h m s ms us ns")
    amount = sign * int(digits) * factor
    if not -_INT64 <= amount < _INT64:
        raise ValueError("the time offset is too large")
    if unit in _SECONDS:
        return TimeOffset(seconds=amount)
    if amount < 0:
        raise ValueError("only offsets in h, m and s can be negative")
    return TimeOffset(nanoseconds=amount)


def show_offset(offset: TimeOffset) -> str:
    """`5s` or `5ns`."""
    return f"{offset.seconds}s" if offset.seconds else f"{offset.nanoseconds}ns"


def _show_boot(offset: TimeOffset) -> str:
    """LXC 5.0.2 separates number and unit of this one, and ends both with a newline."""
    text = show_offset(offset)
    unit = "ns" if text.endswith("ns") else "s"
    return f"{text.removesuffix(unit)} {unit}\n"


def _parse_name(value: str) -> str:
    name = value.lower()
    if name not in NAMES:
        raise ValueError(f'invalid namespace name "{value}"')
    return name


def _parse_exact_name(value: str) -> str:
    if value not in NAMES:
        raise ValueError(f'invalid namespace name "{value}"')
    return value


def _show_names(values: Iterable[str]) -> str:
    """Each once, in the order of the table, as LXC keeps them: a mask."""
    chosen = set(values)
    return "".join(f"{name}\n" for name in NAMES if name in chosen)


def _parse_host_name(value: str) -> str:
    if len(os.fsencode(value)) > HOST_NAME_MAX:
        raise ValueError(f"longer than {HOST_NAME_MAX} bytes")
    return value


def _exclude(other: str) -> Callable[[dict[str, object], object], None]:
    def check(values: dict[str, object], _new: object) -> None:
        if values.get(other):
            raise ValueError('cannot set both "lxc.namespace.clone" and "lxc.namespace.keep"')

    return check


class Namespaces(Section):
    """lxc.namespace.*, lxc.uts.name, lxc.time.offset.*."""

    clone: tuple[str, ...] = key(
        "lxc.namespace.clone",
        many(Kind(_parse_name, name="namespace", values=tuple(NAMES)), split=str.split),
        show=_show_names,
        check=_exclude("keep"),
        doc="Namespaces to make, and no others: of user mnt pid uts ipc net cgroup time, with"
        " blanks between. Not together with lxc.namespace.keep.",
        example="mnt pid net",
        since="5.0.2",
    )
    keep: tuple[str, ...] = key(
        "lxc.namespace.keep",
        many(Kind(_parse_name, name="namespace", values=tuple(NAMES)), split=str.split),
        show=_show_names,
        check=_exclude("clone"),
        doc="Namespaces of the caller in which the container stays; all others are made.",
        example="net ipc",
        since="5.0.2",
    )
    share: tuple[tuple[str, str], ...] = key(
        "lxc.namespace.share.*",
        pairs(
            keys.text,
            unique=True,
            subkey=Kind(_parse_exact_name, name="namespace", values=tuple(NAMES)),
        ),
        doc="Namespace to join instead of making one: of a container's name, of a pid, or an"
        " absolute path (/proc/PID/ns/net, /run/netns/x).",
        example="net = /run/netns/blue",
        since="5.0.2",
    )
    host_name: str | None = key(
        "lxc.uts.name",
        Kind(_parse_host_name, name="host name"),
        doc="Host name of the container, at most 64 bytes; not applied where it has the uts"
        " namespace of somebody else.",
        example="web1",
        since="2.x",
    )
    boot_offset: TimeOffset = key(
        "lxc.time.offset.boot",
        Kind(parse_offset, _show_boot, name="time"),
        default=TimeOffset(),
        doc="What CLOCK_BOOTTIME is ahead of the host's: a number and h, m, s, ms, us or ns; only"
        " h, m and s may be negative.",
        example="30m",
        since="5.0.2",
    )
    monotonic_offset: TimeOffset = key(
        "lxc.time.offset.monotonic",
        Kind(parse_offset, lambda offset: f"{show_offset(offset)}\n", name="time"),
        default=TimeOffset(),
        doc="The same for CLOCK_MONOTONIC.",
        example="30m",
        since="5.0.2",
    )


class Decision(Record):
    """What becomes of each namespace: masks of those made by the clone, those that init makes later, and those joined.

    `shared` has (name, value as configured, origin) in the order of NAMES. What is in neither is the caller's own.
    """

    clone: int
    later: int
    shared: tuple[tuple[str, str, Origin | None], ...] = ()

    @property
    def shared_flags(self) -> int:
        """The joined ones as a mask."""
        flags = 0
        for name, _value, _origin in self.shared:
            flags |= NAMES[name]
        return flags


class SharedNamespace(Record):
    """A namespace of somebody else to join, by a path that can be opened."""

    name: str
    path: str
    origin: Origin | None = None


class SharedFd(Record):
    """An open namespace to join."""

    name: str
    flag: int
    fd: OwnedFd

    def close(self) -> None:
        """Close the descriptor."""
        self.fd.close()


def decide(
    config: Config, host: Host, *, id_mapped: bool, net_wanted: bool, layout: str
) -> Decision:
    """Which namespaces are made when. Pure; before planning.

    `id_mapped`: there is an id map, so a user namespace has a use. `net_wanted`: False when all of the configuration's
    links are of type none. `layout` is Host.layout: on pure cgroup2 the clone itself makes the cgroup namespace.
    Raises ConfigError for wishes that contradict each other, HostError for namespaces that this kernel lacks.
    """
    section = config[Namespaces]
    shares = tuple(zip(section.share, config.origins("lxc.namespace.share.*"), strict=True))
    shared = tuple(
        (name, value, origin)
        for wanted in NAMES
        for (name, value), origin in shares
        if name == wanted
    )
    joined = {name for name, _value, _origin in shared}
    chosen = _chosen(section, host, id_mapped=id_mapped, net_wanted=net_wanted) - joined
    _check(config, chosen | joined, id_mapped=id_mapped)
    for name in NAMES:
        if name in chosen | joined and name not in host.namespaces:
            raise HostError(
                f"cannot make a {name} namespace: this kernel has none",
                missing=f"{name} namespace",
                fix=f"add {name} to lxc.namespace.keep",
            )
    flags = sum(NAMES[name] for name in chosen)
    later = flags & CLONE_NEWTIME
    if layout != "unified":
        later |= flags & CLONE_NEWCGROUP
    if flags & CLONE_NEWUSER:
        later |= flags & CLONE_NEWNET
    return Decision(clone=flags & ~later, later=later, shared=shared)


def resolve_shared(
    decision: Decision, init_pid: Callable[[str], int | None]
) -> tuple[SharedNamespace, ...]:
    """The paths of the namespaces to join. `init_pid(name)` asks a running container for its init's pid; None: not running.

    Raises ConfigError when such a container does not run.
    """
    resolved: list[SharedNamespace] = []
    for name, value, origin in decision.shared:
        if value.startswith("/"):
            path = value
        else:
            pid = int(value) if value.isascii() and value.isdigit() else init_pid(value)
            if pid is None:
                raise ConfigError(
                    f"cannot share the {name} namespace of container {value}: it is not running",
                    key=f"lxc.namespace.share.{name}",
                    origin=origin,
                    fix=f"start {value} first",
                )
            path = f"/proc/{pid}/ns/{name}"
        resolved.append(SharedNamespace(name=name, path=path, origin=origin))
    return tuple(resolved)


def open_shared(
    config: Config, host: Host, start: Start, shared: tuple[SharedNamespace, ...]
) -> tuple[HostStep, ...]:
    """Before the clone: open what init will join, into SHARED_FDS."""
    del config, host, start
    if not shared:
        return ()
    entries = tuple((namespace.name, namespace.path) for namespace in shared)
    origins = tuple(namespace.origin for namespace in shared)
    return (OpenSharedNamespaces(namespaces=entries, origins=origins, origin=origins[0]),)


def keep(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Right after the clone, where links are to be made or hooks want them: keep what the clone made, into NAMESPACES."""
    del config, host
    return (KeepNamespaces(names=_names(start.clone_namespaces)),)


def keep_net(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """When init has made its network namespace (with a user namespace it does so after the clone): keep it."""
    del config, host
    return _keep_more(start.later_namespaces & CLONE_NEWNET)


def keep_later(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """When init has made its cgroup and time namespaces after the clone: keep them."""
    del config, host
    return _keep_more(start.later_namespaces & ~CLONE_NEWNET)


def unshare_net(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: make the network namespace when the clone did not, so that the new user namespace owns it."""
    del config, host
    return (UnshareNet(),) if start.later_namespaces & CLONE_NEWNET else ()


def unshare_later(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, once it is in its cgroup: make the cgroup namespace, then the time namespace with its offsets."""
    del host
    steps: list[InitStep] = []
    if start.later_namespaces & CLONE_NEWCGROUP:
        steps.append(UnshareCgroup())
    if start.later_namespaces & CLONE_NEWTIME:
        section = config[Namespaces]
        offsets = (("boot", section.boot_offset), ("monotonic", section.monotonic_offset))
        given = [(clock, offset) for clock, offset in offsets if offset]
        entries = tuple((clock, *offset.timespec) for clock, offset in given)
        origin = config.origin(f"lxc.time.offset.{given[0][0]}") if given else None
        steps.append(UnshareTime(offsets=entries, origin=origin))
    return tuple(steps)


def hostname(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: lxc.uts.name, only in a uts namespace of its own."""
    del host
    name = config[Namespaces].host_name
    if not name or not start.namespaces & CLONE_NEWUTS:
        return ()
    return (SetHostname(name=name, origin=config.origin("lxc.uts.name")),)


class OpenSharedNamespaces(HostStep):
    """Open namespaces of others, and see that each is of the kind it is meant for (ioctl_ns(2))."""

    namespaces: tuple[tuple[str, str], ...]
    origins: tuple[Origin | None, ...]
    fills: ClassVar[tuple[Slot[Any], ...]] = (SHARED_FDS,)

    def apply(self, h: Handler) -> None:
        """Open them all, or none."""
        opened: list[SharedFd] = []
        try:
            for (name, path), origin in zip(self.namespaces, self.origins, strict=True):
                opened.append(SharedFd(name=name, flag=NAMES[name], fd=_open(name, path, origin)))
        except BaseException:
            for shared in opened:
                shared.close()
            raise
        h[SHARED_FDS] = tuple(opened)

    def explain(self) -> str:
        """Name and path of each."""
        return f"open shared namespaces: {', '.join(f'{n} {p}' for n, p in self.namespaces)}"


class KeepNamespaces(HostStep):
    """Hold descriptors of init's namespaces, which outlive init by them: for stop hooks and links that move back."""

    names: tuple[str, ...]
    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)
    fills: ClassVar[tuple[Slot[Any], ...]] = (NAMESPACES,)

    def apply(self, h: Handler) -> None:
        """Fill the slot."""
        h[NAMESPACES] = _open_all(h, self.names)

    def explain(self) -> str:
        """Their names."""
        return f"keep descriptors of init's namespaces: {' '.join(self.names) or 'none'}"


class KeepMoreNamespaces(HostStep):
    """The same for namespaces that init made after the clone."""

    names: tuple[str, ...]
    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD, NAMESPACES)

    def apply(self, h: Handler) -> None:
        """Extend what the slot holds."""
        h[NAMESPACES].update(_open_all(h, self.names))

    def explain(self) -> str:
        """Their names."""
        return f"keep descriptors of init's later namespaces: {' '.join(self.names)}"


class UnshareNet(InitStep):
    """A network namespace that the container's user namespace owns."""

    def apply(self, h: Handler) -> None:
        """unshare(2)."""
        del h
        process.unshare(CLONE_NEWNET)

    def explain(self) -> str:
        """In words."""
        return "make a network namespace"


class UnshareCgroup(InitStep):
    """A cgroup namespace whose root is the cgroup that init is in by now."""

    def apply(self, h: Handler) -> None:
        """unshare(2). EINVAL: a kernel without cgroup namespaces, which the container can do without (as LXC)."""
        try:
            process.unshare(CLONE_NEWCGROUP)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            h.report(DEBUG, "this kernel has no cgroup namespaces")

    def explain(self) -> str:
        """In words."""
        return "make a cgroup namespace"


class UnshareTime(InitStep):
    """A time namespace; `offsets` has (clock, seconds, nanoseconds). Only a process that enters it later is in it."""

    offsets: tuple[tuple[str, int, int], ...]

    def apply(self, h: Handler) -> None:
        """Make it for children, set the offsets while it is empty, and enter it: time_namespaces(7)."""
        del h
        process.unshare(CLONE_NEWTIME)
        for clock, seconds, nanoseconds in self.offsets:
            line = f"{CLOCKS[clock]} {seconds} {nanoseconds}\n"
            files.write_text("/proc/self/timens_offsets", line)
        with files.open_fd("/proc/self/ns/time_for_children", os.O_RDONLY) as fd:
            process.setns(fd.fileno(), CLONE_NEWTIME)

    def explain(self) -> str:
        """With the offsets."""
        shown = [
            f"{clock} {f'{seconds}.{rest:09d}' if rest else seconds} s"
            for clock, seconds, rest in self.offsets
        ]
        return f"make a time namespace{' with offsets ' if shown else ''}{', '.join(shown)}"


class SetHostname(InitStep):
    """sethostname(2) in the container's uts namespace."""

    name: str

    def apply(self, h: Handler) -> None:
        """Set it."""
        del h
        process.sethostname(self.name)

    def explain(self) -> str:
        """In words."""
        return f"set the host name to {self.name}"


def _chosen(section: Namespaces, host: Host, *, id_mapped: bool, net_wanted: bool) -> set[str]:
    """The names to make before sharing is taken into account."""
    if section.clone:
        return set(section.clone)
    useful = {name for name in NAMES if name not in OPTIONAL}
    if id_mapped:
        useful.add("user")
    if "cgroup" in host.namespaces:
        useful.add("cgroup")
    if section.boot_offset or section.monotonic_offset:
        useful.add("time")
    if section.keep:
        # LXC makes user as well: without an id map every such start fails (EOVERFLOW), so that is not imitated.
        if "time" in host.namespaces:
            useful.add("time")
        return useful - set(section.keep)
    if not net_wanted:
        useful.discard("net")
    return useful


def _check(config: Config, made: set[str], *, id_mapped: bool) -> None:
    """Wishes that contradict each other. `made`: made or joined."""
    section = config[Namespaces]
    which = "keep" if section.keep else "clone"
    for clock, offset in (("boot", section.boot_offset), ("monotonic", section.monotonic_offset)):
        # With lxc.namespace.clone and no time in it LXC ignores the offsets.
        if offset and "time" in section.keep and "time" not in made:
            raise ConfigError(
                f"cannot set lxc.time.offset.{clock}: the container keeps the caller's time namespace",
                key=f"lxc.time.offset.{clock}",
                origin=config.origin(f"lxc.time.offset.{clock}"),
                fix="take time out of lxc.namespace.keep",
            )
    if id_mapped and "user" not in made:
        raise ConfigError(
            "cannot use lxc.idmap: the container has no user namespace of its own",
            key="lxc.idmap",
            origin=config.origin("lxc.idmap"),
            fix=_fix(which, "user"),
        )
    if "user" in section.clone and not id_mapped:
        raise ConfigError(
            "cannot make a user namespace: there is no lxc.idmap, so no user would exist in it",
            key="lxc.namespace.clone",
            origin=config.origin("lxc.namespace.clone"),
            fix="add lxc.idmap lines, or take user out of lxc.namespace.clone",
        )


def _fix(which: str, name: str) -> str:
    return (
        f"take {name} out of lxc.namespace.keep"
        if which == "keep"
        else f"add {name} to lxc.namespace.clone"
    )


def _names(flags: int) -> tuple[str, ...]:
    return tuple(name for name, flag in NAMES.items() if flags & flag)


def _keep_more(flags: int) -> tuple[HostStep, ...]:
    return (KeepMoreNamespaces(names=_names(flags)),) if flags else ()


def _open_all(h: Handler, names: Iterable[str]) -> dict[str, OwnedFd]:
    directory = f"/proc/{h[CHILD].pid}/ns"
    return {name: files.open_fd(f"{directory}/{name}", os.O_RDONLY) for name in names}


def _open(name: str, path: str, origin: Origin | None) -> OwnedFd:
    """Open one namespace; ConfigError when it is not there or of another kind."""
    head = f"cannot share the {name} namespace {path}"
    try:
        fd = files.open_fd(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError) as error:
        why = "there is no such process" if path.startswith("/proc/") else "there is no such file"
        raise ConfigError(
            f"{head}: {why}", key=f"lxc.namespace.share.{name}", origin=origin
        ) from error
    try:
        kind = fcntl.ioctl(fd.fileno(), NS_GET_NSTYPE)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            fd.close()
            raise
        kind = 0
    if kind != NAMES[name]:
        fd.close()
        found = next(
            (f"a {other} namespace" for other, flag in NAMES.items() if flag == kind), "none"
        )
        raise ConfigError(
            f"{head}: it is {found}", key=f"lxc.namespace.share.{name}", origin=origin
        )
    return fd
