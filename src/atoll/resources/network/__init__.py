"""The container's network: the keys lxc.net.N.*, who makes which link, and what is told about a running one.

Effective now: no list at all, none, empty, veth on a bridge or on nothing, macvlan. The other keys are known, typed and
answered; a start that wishes them is refused when it is planned, never quietly done without.
Not here: the steps (veth.py: host ends and scripts; links.py: what happens inside) and lxc-net's bridge.
Source of truth: reference of LXC, section 6; lxc.container.conf(5); observed against lxc-start 5.0.2.
"""

from __future__ import annotations

import _socket
import os
from _socket import AF_INET, AF_INET6

from atoll import errors
from atoll.config import keys
from atoll.config.keys import Section, choice, flag, indexed, key, many, text, within
from atoll.linux import netdevice
from atoll.linux.process import CLONE_NEWNET
from atoll.log import get_logger
from atoll.plan import InitStep, Slot
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.linux.netlink import Deletion
    from atoll.plan import Handler, HostStep, Start

log = get_logger(__name__)

GATEWAYS: Slot[dict[str, str]] = Slot("gateways")
"""Addresses found for `gateway = auto`, by nic and family: {"0.ipv4": "10.0.3.1"}. Both sides."""
LINK_DELETIONS: Slot[list[Deletion]] = Slot("link deletions")
"""Children that wait for the kernel to forget deleted links; Handler.close() reaps them (20 ms at most)."""

FAMILIES: Final = {"ipv4": AF_INET, "ipv6": AF_INET6}
LATER: Final = "a later part of the project"
PART: Final = "network"
"""The part of the project that makes the rest of the keys effective."""
_HEX: Final = "0123456789abcdef"


class Address(Record):
    """An address with its prefix length as configured; `broadcast` is "" where there is none."""

    family: str
    address: str
    prefix: int
    broadcast: str = ""

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


# ------------------------------------------------------------------------------------------ values


def _parse_name(value: str) -> str:
    encoded = os.fsencode(value)
    if len(encoded) >= netdevice.IFNAMSIZ:
        log.error('Network device name "%s" is too long (>= %d)', value, netdevice.IFNAMSIZ)
        value = os.fsdecode(encoded[: netdevice.IFNAMSIZ - 1])  # lxc: accepted, cut
    if value in (".", "..") or any(c in "/:" or c.isspace() for c in value):
        raise ValueError("not a name for a network device")
    return value


def _parse_mac(value: str) -> str:
    """A MAC address; each x becomes a random digit, and the second digit even then (lxc: no multicast)."""
    parts = value.lower().split(":")
    if len(parts) != 6 or any(len(part) != 2 or part.strip(f"{_HEX}x") for part in parts):
        raise ValueError(
            "not a MAC address: six pairs of hexadecimal digits (or x) with colons between"
        )
    if "x" not in value.lower():
        return value
    mac = "".join(_HEX[os.urandom(1)[0] & 15] if c == "x" else c for c in ":".join(parts))
    return f"{mac[0]}{_HEX[int(mac[1], 16) & 0xE]}{mac[2:]}"


def _check_address(family: int, value: str) -> str:
    try:
        _socket.inet_pton(family, value)
    except (OSError, ValueError):
        raise ValueError(f"not an IPv{4 if family == AF_INET else 6} address") from None
    return value


def _prefix(value: str, longest: int) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > 3 or int(value) > longest:
        raise ValueError(f"the prefix length is not within 0 to {longest}")
    return int(value)


def _parse_ipv4(value: str) -> Address:
    """`A.B.C.D[/P] [BROADCAST]`; without P by class, without BROADCAST the network's last address."""
    written, _space, broadcast = value.partition(" ")
    address, slash, length = written.partition("/")
    number = int.from_bytes(_socket.inet_pton(AF_INET, _check_address(AF_INET, address)), "big")
    prefix = _prefix(length, 32) if slash else _class_prefix(number)
    if broadcast:
        _check_address(AF_INET, broadcast)
    elif prefix < 31:
        last = number | ((1 << (32 - prefix)) - 1)
        broadcast = _socket.inet_ntop(AF_INET, last.to_bytes(4, "big"))
    return Address(family="ipv4", address=address, prefix=prefix, broadcast=broadcast)


def _class_prefix(number: int) -> int:
    """Classes A, B, C; the rest has none (RFC 791)."""
    first = number >> 24
    return 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 0


def _parse_ipv6(value: str) -> Address:
    address, slash, length = value.partition("/")
    _check_address(AF_INET6, address)
    return Address(family="ipv6", address=address, prefix=_prefix(length, 128) if slash else 64)


def _route(family: str) -> keys.Kind[Address]:
    def parse(value: str) -> Address:
        if "/" not in value:
            raise ValueError("a route needs a prefix length: ADDRESS/LENGTH")
        address, _slash, length = value.partition("/")
        _check_address(FAMILIES[family], address)
        prefix = _prefix(length, 32 if family == "ipv4" else 128)
        return Address(family=family, address=address, prefix=prefix)

    return keys.Kind(parse, name="network")


def _gateway(family: str) -> keys.Kind[str]:
    def parse(value: str) -> str:
        return value if value in ("auto", "dev") else _check_address(FAMILIES[family], value)

    return keys.Kind(parse, name="address, `auto` or `dev`")


def _vlan(value: str) -> int:
    return -1 if value == "none" else keys.parse_integer(value, 0, 4094)


def _check_own_name(values: dict[str, Any], name: str) -> None:
    if values.get("type") == "empty" and name != "lo":
        raise ValueError("the device of an empty network is lo and cannot be called otherwise")


_name = keys.Kind(_parse_name, name="link name")
_mac = keys.Kind(_parse_mac, name="MAC address")
_up = keys.Kind(lambda _value: True, lambda value: "up" if value else "", name="`up`")
_positive = within(1, keys.INT_MAX)
_VETH: Final = ("type", ("veth",))
_MACVLAN: Final = ("type", ("macvlan",))
_IPVLAN: Final = ("type", ("ipvlan",))


# -------------------------------------------------------------------------------------------- keys
class Nic(Section):
    """lxc.net.N.*: one network device."""

    type: str = key(
        "lxc.net.N.type",
        choice("none", "empty", "veth", "macvlan", "ipvlan", "vlan", "phys"),
        default="empty",
        resets=True,
        later=PART,
        later_for=lambda kind: kind in ("ipvlan", "vlan", "phys"),
        doc="Kind of network: veth, macvlan, ipvlan, vlan, phys (a link of the host), empty"
        " (loopback alone), none (the host's own). It forgets all other keys of this N, so it"
        " comes first.",
        example="veth",
        since="2.x",
    )
    flags: bool = key(
        "lxc.net.N.flags",
        _up,
        default=False,
        doc="`up`, or anything else: bring the device up.",
        example="up",
        since="2.x",
    )
    link: str | None = key(
        "lxc.net.N.link",
        _name,
        doc="The host's bridge (veth) or link (macvlan, ipvlan, vlan, phys) to connect to, at most"
        " 15 bytes.",
        example="lxcbr0",
        since="2.x",
    )
    l2proxy: bool = key(
        "lxc.net.N.l2proxy",
        flag,
        default=False,
        later=PART,
        later_for=bool,
        doc="1: the host answers ARP and NDP on the link for the container's addresses.",
        example="1",
        since="5.0.2",
    )
    mtu: int | None = key(
        "lxc.net.N.mtu",
        within(0, keys.INT_MAX),
        doc="Largest packet in bytes. Unset: the link's.",
        example="1400",
        since="2.x",
    )
    name: str | None = key(
        "lxc.net.N.name",
        _name,
        check=_check_own_name,
        doc="Name of the device in the container, at most 15 bytes; %d in it is the first free"
        " number. Unset: eth%d.",
        example="eth0",
        since="2.x",
    )
    hwaddr: str | None = key(
        "lxc.net.N.hwaddr",
        _mac,
        doc="MAC address; each x is a random digit, which is written down when the configuration"
        " is saved.",
        example="00:16:3e:xx:xx:xx",
        since="2.x",
    )
    ipv4_address: tuple[Address, ...] = key(
        "lxc.net.N.ipv4.address",
        many(keys.Kind(_parse_ipv4, name="IPv4 address"), end=""),
        doc="ADDRESS[/LENGTH] [BROADCAST]; without a length that of its class, without a broadcast"
        " address the last one.",
        example="10.0.3.5/24",
        since="2.x",
    )
    ipv4_gateway: str | None = key(
        "lxc.net.N.ipv4.gateway",
        _gateway("ipv4"),
        doc="Address of the default route; `auto`, the link's own; or `dev`, none but the device.",
        example="10.0.3.1",
        since="2.x",
    )
    ipv6_address: tuple[Address, ...] = key(
        "lxc.net.N.ipv6.address",
        many(keys.Kind(_parse_ipv6, name="IPv6 address"), end=""),
        doc="ADDRESS[/LENGTH]; without a length 64.",
        example="fd00::5/64",
        since="2.x",
    )
    ipv6_gateway: str | None = key(
        "lxc.net.N.ipv6.gateway",
        _gateway("ipv6"),
        doc="Address of the default route; `auto`, the link's own; or `dev`, none but the device.",
        example="fe80::1",
        since="2.x",
    )
    script_up: str | None = key(
        "lxc.net.N.script.up",
        text,
        doc="Command run on the host when the device was made.",
        example="/usr/local/bin/net-up",
        since="2.x",
    )
    script_down: str | None = key(
        "lxc.net.N.script.down",
        text,
        doc="Command run on the host before the device goes.",
        example="/usr/local/bin/net-down",
        since="2.x",
    )
    veth_mode: str = key(
        "lxc.net.N.veth.mode",
        choice("bridge", "router"),
        default="bridge",
        needs=_VETH,
        later=PART,
        later_for=lambda mode: mode == "router",
        doc="bridge: attach the host's end to the link; router: the host routes to the container's"
        " addresses.",
        example="router",
        since="5.0.2",
    )
    veth_pair: str | None = key(
        "lxc.net.N.veth.pair",
        _name,
        needs=_VETH,
        doc="Name of the host's end, at most 15 bytes. Unset: a new one for each start.",
        example="vethweb",
        since="2.x",
    )
    veth_rx_queues: int | None = key(
        "lxc.net.N.veth.n_rxqueues",
        _positive,
        needs=_VETH,
        doc="Number of receive queues. Unset: the kernel's choice.",
        example="2",
        since="5.0.2",
    )
    veth_tx_queues: int | None = key(
        "lxc.net.N.veth.n_txqueues",
        _positive,
        needs=_VETH,
        doc="Number of transmit queues. Unset: the kernel's choice.",
        example="2",
        since="5.0.2",
    )
    veth_ipv4_route: tuple[Address, ...] = key(
        "lxc.net.N.veth.ipv4.route",
        many(_route("ipv4"), end=""),
        needs=_VETH,
        doc="ADDRESS/LENGTH that the host routes to the container.",
        example="192.0.2.0/24",
        since="5.0.2",
    )
    veth_ipv6_route: tuple[Address, ...] = key(
        "lxc.net.N.veth.ipv6.route",
        many(_route("ipv6"), end=""),
        needs=_VETH,
        doc="ADDRESS/LENGTH that the host routes to the container.",
        example="2001:db8::/64",
        since="5.0.2",
    )
    veth_vlan: int | None = key(
        "lxc.net.N.veth.vlan.id",
        keys.Kind(_vlan, name="number 0 to 4094 or `none`"),
        needs=_VETH,
        later=PART,
        doc="VLAN, 0 to 4094, that untagged packets of the bridge's port belong to, or `none`."
        " Unset: the bridge's.",
        example="100",
        since="5.0.2",
    )
    veth_tagged_vlans: tuple[int, ...] = key(
        "lxc.net.N.veth.vlan.tagged.id",
        many(within(0, 4094), end=""),
        needs=_VETH,
        later=PART,
        doc="A VLAN, 0 to 4094, whose tagged packets the bridge's port takes.",
        example="200",
        since="5.0.2",
    )
    vlan: int | None = key(
        "lxc.net.N.vlan.id",
        within(0, 0xFFFF),
        needs=("type", ("vlan",)),
        doc="The VLAN of a vlan network, 0 to 65535.",
        example="100",
        since="2.x",
    )
    macvlan_mode: str = key(
        "lxc.net.N.macvlan.mode",
        choice("private", "vepa", "bridge", "passthru"),
        default="private",
        needs=_MACVLAN,
        doc="How the macvlan devices on one link see each other: private, vepa, bridge, passthru.",
        example="bridge",
        since="2.x",
    )
    ipvlan_mode: str = key(
        "lxc.net.N.ipvlan.mode",
        choice("l2", "l3", "l3s"),
        default="l3",
        needs=_IPVLAN,
        doc="Layer at which packets are handed on: l2, l3, or l3s (with the host's connection"
        " tracking).",
        example="l2",
        since="5.0.2",
    )
    ipvlan_isolation: str = key(
        "lxc.net.N.ipvlan.isolation",
        choice("bridge", "private", "vepa"),
        default="bridge",
        needs=_IPVLAN,
        doc="How the ipvlan devices on one link see each other: bridge, private, vepa.",
        example="private",
        since="5.0.2",
    )

    def gateway(self, family: str) -> str | None:
        """The gateway of "ipv4" or "ipv6"."""
        return self.ipv4_gateway if family == "ipv4" else self.ipv6_gateway

    def addresses(self, family: str) -> tuple[Address, ...]:
        """The addresses of "ipv4" or "ipv6"."""
        return self.ipv4_address if family == "ipv4" else self.ipv6_address


class Network(Section):
    """lxc.net: the list of network devices."""

    nics: tuple[Nic, ...] = indexed(
        "lxc.net",
        Nic,
        show=lambda nics: "".join(f"{nic.type}\n" for nic in nics),
        doc="The network devices; an empty value removes all of them, or the one with that number.",
    )


# ---------------------------------------------------------------------------------- plan functions
def wants_namespace(config: Config) -> bool:
    """Whether a network namespace is made: always, but for a list of nothing else than `none`."""
    nics = config[Network].nics
    return not nics or any(nic.type != "none" for nic in nics)


def has_scripts(config: Config) -> bool:
    """Is a script run when a link is made or removed?"""
    return any(nic.script_up or nic.script_down for nic in config[Network].nics)


def prepare(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone: find the gateways that are `auto`. Raises ConfigError or HostError for what cannot be planned."""
    del host
    nics = _planned(config, start)
    _check(config, start, nics)
    wanted = [(nic, family) for nic in nics for family in FAMILIES if nic.gateway(family) == "auto"]
    if not wanted:
        return ()
    from atoll.resources.network import links

    nic, family = wanted[0]
    return (
        links.FindGateways(
            wanted=tuple((nic.index, family, nic.link or "") for nic, family in wanted),
            origin=config.origin(f"lxc.net.{nic.index}.{family}.gateway"),
        ),
    )


def create(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """While init waits in its new namespace: links in the order of the list, each with its script."""
    del host
    steps: list[HostStep] = []
    nics = _planned(config, start)
    names = _names(nics)
    for nic in nics:
        if nic.type == "veth":
            from atoll.resources.network import veth

            steps.extend(veth.create(config, start, nic, names[nic.index]))
        elif nic.type == "macvlan":
            from atoll.resources.network import links

            steps.extend(links.create_macvlan(config, start, nic, names[nic.index]))
        if nic.script_up or nic.script_down:
            from atoll.resources.network import links

            steps.append(links.run_script(config, start, nic))
    return tuple(steps)


def configure(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, inside the namespace: loopback and links up, with their addresses and default routes."""
    del host
    nics = _planned(config, start)
    names = _names(nics)
    steps: list[InitStep] = []
    if any(nic.flags for nic in nics):
        steps.append(BringUpLoopback())
    for nic in nics:
        if nic.type != "empty" or any(nic.addresses(f) or nic.gateway(f) for f in FAMILIES):
            from atoll.resources.network import links

            steps.extend(links.configure(config, nic, names[nic.index]))
    return tuple(steps)


class BringUpLoopback(InitStep):
    """Bring up lo, which gives it 127.0.0.1 and ::1."""

    def apply(self, h: Handler) -> None:
        """Set the flag."""
        del h
        netdevice.bring_up_loopback()

    def explain(self) -> str:
        """Always lo."""
        return "bring up lo"


# --------------------------------------------------------------------------- of running containers
def host_end(nic: Nic, start: Start) -> str:
    """The name of the host's end of a veth: as configured, or one that carries the start's id."""
    return nic.veth_pair or start.link_name("veth", nic.index)


def running_pair_name(config: Config, start: Start, index: int) -> str | None:
    """What `lxc.net.INDEX.veth.pair` is while the container runs; None when nic INDEX is no veth."""
    for nic in config[Network].nics:
        if nic.index == index and nic.type == "veth":
            return host_end(nic, start)
    return None


class Traffic(Record):
    """Bytes that went through a host's link, from the host's point of view (as lxc-info shows them)."""

    rx_bytes: int
    tx_bytes: int


def link_statistics(name: str) -> Traffic | None:
    """The traffic of a link of this namespace, or None when there is no such link."""
    from atoll.linux.netlink import Netlink

    try:
        with Netlink() as kernel:
            link = kernel.link(name)
    except OSError as error:
        if error.errno == 19:  # ENODEV
            return None
        raise
    return Traffic(rx_bytes=link.rx_bytes, tx_bytes=link.tx_bytes)


# -------------------------------------------------------------------------------------------------
def _planned(config: Config, start: Start) -> tuple[Nic, ...]:
    """The devices that are ours to make: none where no namespace is made (lxc: the list is ignored then)."""
    if not start.namespaces & CLONE_NEWNET:
        return ()
    return tuple(nic for nic in config[Network].nics if nic.type != "none")


def _names(nics: tuple[Nic, ...]) -> dict[int, str]:
    """The name of each device in the container: those with a name first, then ethN by lowest free number."""
    names = {nic.index: "lo" for nic in nics if nic.type == "empty"}
    taken = {"lo"}
    for nic in sorted(nics, key=lambda nic: not nic.name or "%d" in nic.name):
        if nic.index in names:
            continue
        pattern = nic.name or "eth%d"
        number = 0
        name = pattern
        while "%d" in pattern and (name := pattern.replace("%d", str(number), 1)) in taken:
            number += 1
        taken.add(name)
        names[nic.index] = name
    return names


def _check(config: Config, start: Start, nics: tuple[Nic, ...]) -> None:
    """Refuse what cannot work or is not made yet, naming its line."""
    names: dict[str, int] = {}
    for nic in nics:
        _check_made(config, nic)
        _check_gateways(config, nic)
        if nic.type == "empty":
            continue
        _check_privilege(start, nic)
        if nic.name in names:
            message = f"cannot call lxc.net.{nic.index} {nic.name}: lxc.net.{names[nic.name]} has that name"
            raise _refusal(config, nic, "name", message)
        if nic.name and "%d" not in nic.name:
            names[nic.name] = nic.index


def _check_made(config: Config, nic: Nic) -> None:
    if nic.type in ("ipvlan", "vlan", "phys"):
        raise _later(config, nic, "type", f"network type {nic.type}")
    if nic.veth_mode == "router":
        raise _later(config, nic, "veth.mode", "router mode")
    if nic.veth_vlan is not None:
        raise _later(config, nic, "veth.vlan.id", "a VLAN of a bridge port")
    if nic.veth_tagged_vlans:
        raise _later(config, nic, "veth.vlan.tagged.id", "a VLAN of a bridge port")
    if nic.l2proxy and nic.link:
        raise _later(config, nic, "l2proxy", "l2proxy")
    if nic.type == "macvlan" and not nic.link:
        message = f"cannot make the macvlan network lxc.net.{nic.index}: it has no link"
        raise _refusal(config, nic, "type", message, fix=f"set lxc.net.{nic.index}.link")


def _check_gateways(config: Config, nic: Nic) -> None:
    for family in FAMILIES:
        gateway = nic.gateway(family)
        if gateway is None:
            continue
        sub, what = f"{family}.gateway", f"cannot use lxc.net.{nic.index}.{family}.gateway"
        if gateway == "auto" and nic.type not in ("veth", "macvlan"):
            raise _refusal(
                config, nic, sub, f"{what} = auto: only veth and macvlan networks find it"
            )
        if gateway == "auto" and not nic.link:
            fix = f"set lxc.net.{nic.index}.link"
            raise _refusal(
                config,
                nic,
                sub,
                f"{what} = auto: it is the address of a link, and there is none",
                fix=fix,
            )
        if not nic.flags:
            fix = f"set lxc.net.{nic.index}.flags = up"
            raise _refusal(config, nic, sub, f"{what}: the device is not brought up", fix=fix)
        if not nic.addresses(family) and not gateway.lower().startswith("fe80:"):
            fix = f"set lxc.net.{nic.index}.{family}.address"
            raise _refusal(
                config, nic, sub, f"{what}: the device gets no {family} address", fix=fix
            )


def _check_privilege(start: Start, nic: Nic) -> None:
    if start.privileged:
        return
    if nic.type != "veth":
        message = f"cannot make the {nic.type} network lxc.net.{nic.index}: only root can, for others veth and empty exist"
        raise errors.HostError(
            message, missing="root", fix=f"lxc.net.{nic.index}.type = empty, or run as root"
        )
    raise errors.HostError(
        f"cannot make the veth network lxc.net.{nic.index} without being root: "
        f"lxc-user-nic, which does it for other users, belongs to {LATER}",
        missing="lxc-user-nic",
        fix=f"lxc.net.{nic.index}.type = empty, or run as root",
    )


def _later(config: Config, nic: Nic, sub: str, what: str) -> errors.ConfigError:
    message = f"cannot start with lxc.net.{nic.index}.{sub}: {what} belongs to {LATER}"
    return _refusal(config, nic, sub, message)


def _refusal(
    config: Config, nic: Nic, sub: str, message: str, *, fix: str | None = None
) -> errors.ConfigError:
    name = f"lxc.net.{nic.index}.{sub}"
    return errors.ConfigError(message, key=name, origin=config.origin(name), fix=fix)
