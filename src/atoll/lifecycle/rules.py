"""Contradictions between keys that would break a start half-way: refused before it begins (sequence.decide).

Only what no resource checks when it plans, because two resources have a part in it. Sources: user_namespaces(7), prlimit(2);
reference of LXC, sections 4 and 5.2.
"""

from __future__ import annotations

from atoll.errors import ConfigError
from atoll.linux.process import RLIM_INFINITY
from atoll.resources.cgroup import Cgroup
from atoll.resources.credentials import Init
from atoll.resources.network import Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.config.text import Config


def refuse(config: Config) -> None:
    """Raise ConfigError for the first contradiction."""
    for error in contradictions(config):
        raise error


def contradictions(config: Config) -> Iterator[ConfigError]:
    """All of them."""
    if config.mentions("lxc.idmap"):
        yield from _unmapped_ids(config)
    if config.mentions("lxc.prlimit"):
        yield from _inverted_limits(config)
    if len(config[Network].nics) > 1:
        yield from _equal_pairs(config)
    cgroup = config[Cgroup]
    if cgroup.container_directory and cgroup.container_directory == cgroup.monitor_directory:
        yield _error(
            config,
            "lxc.cgroup.dir.monitor",
            "it is the container's own cgroup, lxc.cgroup.dir.container",
            "give the monitor another directory",
        )


def _unmapped_ids(config: Config) -> Iterator[ConfigError]:
    """Init cannot become somebody whom its user namespace does not have."""
    from atoll.resources.idmap import IdMaps

    section = config[Init]
    wanted = [("u", "lxc.init.uid", section.uid), ("g", "lxc.init.gid", section.gid)]
    wanted += [("g", "lxc.init.groups", group) for group in section.groups]
    for kind, key, number in wanted:
        if config.origin(key) is None:
            continue
        entries = [entry for entry in config[IdMaps].entries if entry.kind == kind]
        if entries and not any(e.inside <= number < e.inside + e.count for e in entries):
            yield _error(
                config,
                key,
                f"lxc.idmap maps no id {number} of this kind",
                f"add a line lxc.idmap = {kind} {number} FIRST COUNT, or take another id",
            )


def _inverted_limits(config: Config) -> Iterator[ConfigError]:
    from atoll.resources.limits import Limits

    for name, limit in config[Limits].resources:
        soft, hard = limit.soft, limit.hard
        if hard != RLIM_INFINITY and (soft == RLIM_INFINITY or soft > hard):
            yield _error(
                config,
                f"lxc.prlimit.{name}",
                "the soft limit is above the hard one",
                "it is SOFT:HARD: exchange the two",
            )


def _equal_pairs(config: Config) -> Iterator[ConfigError]:
    """The host has one link of a name."""
    seen: dict[str, int] = {}
    for nic in config[Network].nics:
        if nic.veth_pair is None:
            continue
        if nic.veth_pair in seen:
            other = f"lxc.net.{seen[nic.veth_pair]}.veth.pair"
            yield _error(
                config,
                f"lxc.net.{nic.index}.veth.pair",
                f"{other} has that name on the host already",
                "give each its own name, or none",
            )
        seen.setdefault(nic.veth_pair, nic.index)


def _error(config: Config, key: str, why: str, fix: str) -> ConfigError:
    origin = config.origin(key)
    value = config.get(key).strip().replace("\n", " ")
    return ConfigError(f"cannot use {key} = {value}: {why}", key=key, origin=origin, fix=fix)
