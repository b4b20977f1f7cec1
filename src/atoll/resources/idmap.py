"""Id maps: lxc.idmap, writing them for a new user namespace, and becoming root in it.

Not idmapped mounts (rootfs.py, mounts.py). Sources: user_namespaces(7) "User and group ID mappings", newuidmap(1),
subuid(5); reference of LXC, sections 2.6 and 4.
"""

from __future__ import annotations

import errno
import itertools

from atoll import script
from atoll.config.keys import Kind, Section, key, many, parse_integer
from atoll.errors import ConfigError, HostError
from atoll.linux import files, process
from atoll.linux.proc import IdMapping
from atoll.linux.process import CLONE_NEWUSER, SIGKILL
from atoll.log import DEBUG
from atoll.plan import CHILD, HostStep, InitStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, ClassVar

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host, SubIds
    from atoll.plan import Handler, Slot, Start

LINES_MAX = 340
"""Lines of one map; user_namespaces(7), Linux 4.15."""
_ID_MAX = 0xFFFFFFFF  # (uid_t) -1 is no id
KINDS = {"u": "uid", "g": "gid"}
Range = tuple[int, int, int]


def _parse_mapping(value: str) -> IdMapping:
    fields = value.split()
    if len(fields) != 4:
        raise ValueError(
            "failed to parse id mappings: it needs u or g, first id inside, first id outside, count"
        )
    if fields[0] not in KINDS:
        raise ValueError(f"invalid id mapping type: {fields[0]}")
    inside, outside = (parse_integer(field, 0, _ID_MAX - 1) for field in fields[1:3])
    count = parse_integer(fields[3], 1, _ID_MAX)
    if max(inside, outside) + count > _ID_MAX:
        raise ValueError(f"the range goes beyond the last id, {_ID_MAX - 1}")
    return IdMapping(kind=fields[0], inside=inside, outside=outside, count=count)


def _show_mapping(mapping: IdMapping) -> str:
    return f"{mapping.kind} {mapping.inside} {mapping.outside} {mapping.count}"


class IdMaps(Section):
    """lxc.idmap: which ids of the host the container's ids are. Any line makes a user namespace."""

    entries: tuple[IdMapping, ...] = key(
        "lxc.idmap",
        many(Kind(_parse_mapping, _show_mapping, name="range of ids"), end=""),
        doc="A range of user (u) or group (g) ids: first id in the container, first id of the"
        " host, count, with blanks between. Any line makes a user namespace.",
        example="u 0 100000 65536",
        since="2.x",
    )


def mappings(config: Config) -> tuple[IdMapping, ...]:
    """The configured id map, checked as a whole; () without one.

    Raises ConfigError when the kernel would refuse it (ranges that overlap, more than 340 lines of a kind), or when
    users or groups have none, so that init could not become root.
    """
    entries = config[IdMaps].entries
    if not entries:
        return ()
    origins = config.origins("lxc.idmap")
    for kind, name in KINDS.items():
        of_kind = [(e, o) for e, o in zip(entries, origins, strict=True) if e.kind == kind]
        if not of_kind:
            raise ConfigError(
                f"cannot use lxc.idmap: it maps no {name}s",
                key="lxc.idmap",
                origin=origins[0],
                fix=f"add a line lxc.idmap = {kind} 0 FIRST COUNT",
            )
        if len(of_kind) > LINES_MAX:
            raise ConfigError(
                f"cannot use lxc.idmap: {len(of_kind)} lines of {name}s, the kernel takes {LINES_MAX}",
                key="lxc.idmap",
                origin=of_kind[LINES_MAX][1],
            )
        _check_overlap(of_kind)
    return entries


def container_root(mappings: Iterable[IdMapping], *, uid: int = 0, gid: int = 0) -> tuple[int, int]:
    """The host's ids of the container's root; (0, 0) without a map.

    Where id 0 is not mapped, those of `uid` and `gid` of the container, as which it is set up then (lxc.init.uid, .gid).
    Raises ConfigError when that one is not mapped either.
    """
    entries = tuple(mappings)
    if not entries:
        return 0, 0
    return _outside(entries, "u", uid), _outside(entries, "g", gid)


def rootless_mapping(host: Host) -> tuple[IdMapping, ...]:
    """The only map that a user without subordinate ids can have: root inside is the caller, and nobody else exists."""
    return (
        IdMapping(kind="u", inside=0, outside=host.uid, count=1),
        IdMapping(kind="g", inside=0, outside=host.gid, count=1),
    )


def subordinate_mapping(host: Host) -> tuple[IdMapping, ...]:
    """The first ranges that /etc/subuid and /etc/subgid give the caller, from id 0; () if there is no way to use them."""
    if not host.subuids or not host.subgids:
        return ()
    if not host.can("setuid") and (host.newuidmap is None or host.newgidmap is None):
        return ()
    users, groups = host.subuids[0], host.subgids[0]
    return (
        IdMapping(kind="u", inside=0, outside=users.first, count=users.count),
        IdMapping(kind="g", inside=0, outside=groups.first, count=groups.count),
    )


def groups_denied(host: Host, id_map: Iterable[IdMapping]) -> bool:
    """Must setgroups(2) be given up for this map? So it is for who has neither CAP_SETGID nor newgidmap's help."""
    entries = tuple(id_map)
    return bool(entries) and not host.can("setgid") and _is_own(_ranges(entries, "g"), host.gid)


def write(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Right after the clone: write init's maps.

    Written directly with CAP_SETUID and CAP_SETGID, or when only the caller is mapped; else by newuidmap and newgidmap.
    LXC asks the helpers even of root, who then needs lines in /etc/subuid; the kernel does not, so neither do we.
    Raises HostError when a helper that is needed is missing.
    """
    if not start.id_map or not start.namespaces & CLONE_NEWUSER:
        return ()
    origins = config.origins("lxc.idmap")
    origin = origins[0] if origins else None
    users, groups = _ranges(start.id_map, "u"), _ranges(start.id_map, "g")
    deny = groups_denied(host, start.id_map)
    users_direct = host.can("setuid") or _is_own(users, host.uid)
    groups_direct = host.can("setgid") or deny
    return (
        _write_one("u", users, host, direct=users_direct, origin=origin),
        *((DenySetgroups(origin=origin),) if deny else ()),
        _write_one("g", groups, host, direct=groups_direct, origin=origin),
    )


def become_root(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, when the maps are written: become the container's root (or lxc.init.uid and .gid where 0 is not mapped)."""
    if not start.id_map:
        return ()
    uid = 0 if _maps_zero(start.id_map, "u") else int(config.get("lxc.init.uid") or 0)
    gid = 0 if _maps_zero(start.id_map, "g") else int(config.get("lxc.init.gid") or 0)
    lenient = not host.can("setgid") or host.in_user_namespace
    return (BecomeRoot(uid=uid, gid=gid, may_keep_groups=lenient),)


class WriteIdMap(HostStep):
    """Write one map of init ourselves. `kind` is uid or gid; `ranges` has (first inside, first outside, count)."""

    kind: str
    ranges: tuple[tuple[int, int, int], ...]
    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)

    def apply(self, h: Handler) -> None:
        """In one write(2), which is all that the kernel allows."""
        lines = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in self.ranges)
        path = f"/proc/{h[CHILD].pid}/{self.kind}_map"
        try:
            files.write_text(path, lines)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            raise HostError(
                f"cannot {self.explain()}: the kernel does not permit it; are all these ids of the host mapped in the"
                " user namespace that we are in?",
                errno=error.errno,
            ) from error

    def explain(self) -> str:
        """The ranges, as in lxc.idmap."""
        return f"write the {self.kind} map {_show_ranges(self.ranges)}"


class DenySetgroups(HostStep):
    """Give up setgroups(2) in the container, which the kernel demands before an unprivileged gid map (CVE-2014-8989)."""

    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)

    def apply(self, h: Handler) -> None:
        """Write `deny`."""
        files.write_text(f"/proc/{h[CHILD].pid}/setgroups", "deny")

    def explain(self) -> str:
        """In words."""
        return "deny setgroups in the container, as the kernel demands of an unprivileged gid map"


class RunIdHelper(HostStep):
    """Have newuidmap or newgidmap write one map. `allowed` are the caller's ranges (first, count) in /etc/subuid or subgid."""

    kind: str
    helper: str
    ranges: tuple[tuple[int, int, int], ...]
    user: str
    own_id: int
    allowed: tuple[tuple[int, int], ...]
    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)

    def apply(self, h: Handler) -> None:
        """Run it. Raises HostError when it refuses, with what /etc/subuid permits."""
        numbers = [str(number) for entry in self.ranges for number in entry]
        argv = (self.helper, str(h[CHILD].pid), *numbers)
        output = script.run(h, argv, environment={})
        if not output.success:
            error = self._refused(" ".join(output.text.split()) or output.failure())
            error.add_note(f"execve(2): {' '.join(argv)}")
            raise error

    def explain(self) -> str:
        """The ranges, as in lxc.idmap."""
        return f"write the {self.kind} map {_show_ranges(self.ranges)} with {self._name}"

    @property
    def _name(self) -> str:
        return self.helper.rpartition("/")[2]

    def _refused(self, output: str) -> HostError:
        file = f"/etc/sub{self.kind}"
        told = output.removeprefix(f"{self._name}: ")
        allowed = ", ".join(f"{first}-{first + count - 1}" for first, count in self.allowed)
        return HostError(
            f"cannot {self.explain()}: it refuses ({told}); {file} allows user {self.user}"
            f" {allowed or 'no ids'}",
            missing="subordinate ids",
            fix=self._fix(),
        )

    def _fix(self) -> str | None:
        """The usermod command for the ranges that nothing allows."""
        lacking = [
            (outside, count)
            for _inside, outside, count in self.ranges
            if (outside, count) != (self.own_id, 1)
            and not any(f <= outside and outside + count <= f + c for f, c in self.allowed)
        ]
        if not lacking:
            return None
        option = f"--add-sub{self.kind}s"
        words = " ".join(f"{option} {first}-{first + count - 1}" for first, count in lacking)
        return f"as root: usermod {words} {self.user}"


class BecomeRoot(InitStep):
    """Become root of the new user namespace: ids, and what the kernel takes away when they change."""

    uid: int
    gid: int
    may_keep_groups: bool = False
    """setgroups may be denied, here or in the user namespace around us."""

    def apply(self, h: Handler) -> None:
        """Drop the caller's groups, then change ids; be traceable and die with the monitor again."""
        try:
            process.set_ids(None, None, ())
        except OSError as error:
            if error.errno != errno.EPERM or not self.may_keep_groups:
                raise
            h.report(DEBUG, "the caller's supplementary groups stay: setgroups is denied")
        process.set_ids(self.uid, self.gid, None)
        process.set_dumpable(True)
        process.set_death_signal(SIGKILL)

    def explain(self) -> str:
        """With the ids in the container."""
        return f"become uid {self.uid} and gid {self.gid} of the container"


def _check_overlap(entries: Sequence[tuple[IdMapping, Origin | None]]) -> None:
    """Raise ConfigError when two ranges of a kind share an id, inside or outside."""
    for side, where in (("inside", "in the container"), ("outside", "on the host")):
        ordered = sorted(entries, key=lambda entry: getattr(entry[0], side))
        for (one, _), (other, origin) in itertools.pairwise(ordered):
            if getattr(one, side) + one.count > getattr(other, side):
                raise ConfigError(
                    f"cannot use lxc.idmap: {_show_mapping(one)} and {_show_mapping(other)} share ids {where}",
                    key="lxc.idmap",
                    origin=origin,
                )


def _outside(entries: Iterable[IdMapping], kind: str, fallback: int) -> int:
    for wanted in (0, fallback):
        for entry in entries:
            if entry.kind == kind and entry.inside <= wanted < entry.inside + entry.count:
                return entry.outside + wanted - entry.inside
    raise ConfigError(
        f"cannot use lxc.idmap: it maps neither {KINDS[kind]} 0 nor {fallback}, as which init would run",
        key="lxc.idmap",
        fix=f"map {KINDS[kind]} 0, or set lxc.init.{KINDS[kind]} to a mapped id",
    )


def _maps_zero(entries: Iterable[IdMapping], kind: str) -> bool:
    return any(entry.kind == kind and entry.inside == 0 for entry in entries)


def _ranges(entries: Iterable[IdMapping], kind: str) -> tuple[Range, ...]:
    return tuple((e.inside, e.outside, e.count) for e in entries if e.kind == kind)


def _is_own(ranges: tuple[Range, ...], own_id: int) -> bool:
    """Is it the one map that needs no privilege: a single id, the caller's?"""
    return len(ranges) == 1 and ranges[0][1:] == (own_id, 1)


def _show_ranges(ranges: tuple[Range, ...]) -> str:
    return ", ".join(f"{inside} {outside} {count}" for inside, outside, count in ranges)


def _write_one(
    kind: str, ranges: tuple[Range, ...], host: Host, *, direct: bool, origin: Origin | None
) -> HostStep:
    if direct:
        return WriteIdMap(kind=KINDS[kind], ranges=ranges, origin=origin)
    helper, subids, own_id = (
        (host.newuidmap, host.subuids, host.uid)
        if kind == "u"
        else (host.newgidmap, host.subgids, host.gid)
    )
    if helper is None:
        name = f"new{KINDS[kind]}map"
        raise HostError(
            f"cannot write the {KINDS[kind]} map {_show_ranges(ranges)}: no set-uid {name} in PATH, and user {host.user}"
            " may map only itself",
            missing=name,
            fix="install the package uidmap (Debian) or shadow-utils",
        )
    return RunIdHelper(
        kind=KINDS[kind],
        helper=helper,
        ranges=ranges,
        user=host.user,
        own_id=own_id,
        allowed=_pairs(subids),
        origin=origin,
    )


def _pairs(subids: Iterable[SubIds]) -> tuple[tuple[int, int], ...]:
    return tuple((entry.first, entry.count) for entry in subids)
