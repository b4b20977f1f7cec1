"""Links of each kind, netfilter, and the interfaces that list sockets, in a network namespace that goes at once.

Sources: rtnetlink(7), sock_diag(7), nft(8), iptables-extensions(8).
"""

from __future__ import annotations

import _socket
import os
import struct

from atoll.lifecycle.trials import (
    ENABLED,
    MISSING,
    Trial,
    attempt,
    in_child,
    own_namespaces,
    program,
    run,
)
from atoll.linux import files, libc, mount, netlink, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from atoll.host import Host

IFLA_VLAN_ID: Final = 1
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
LINKS: Final = ("Veth pair device", "Bridges", "Macvlan", "Vlan", "Ipvlan")
FILTERS: Final = (
    ("Advanced netfilter", "add rule ip t c counter"),
    ("CONFIG_IP_NF_TARGET_MASQUERADE", "add rule ip t c masquerade"),
    ("CONFIG_IP6_NF_TARGET_MASQUERADE", "add rule ip6 t c masquerade"),
)
XTABLES: Final = (
    ("CONFIG_NETFILTER_XT_TARGET_CHECKSUM", "-t mangle -A POSTROUTING -p udp -j CHECKSUM --checksum-fill"),
    ("CONFIG_NETFILTER_XT_MATCH_COMMENT", "-A INPUT -m comment --comment x"),
)  # fmt: skip
DIAGNOSTICS: Final = (
    ("CONFIG_UNIX_DIAG", _socket.AF_UNIX, 0),
    ("CONFIG_INET_DIAG", _socket.AF_INET, _socket.IPPROTO_TCP),
    ("CONFIG_PACKET_DIAG", _socket.AF_PACKET, 0),
    ("CONFIG_NETLINK_DIAG", netlink.AF_NETLINK, 0),
)


def links(host: Host) -> tuple[Trial, ...]:
    """Each kind of link, made in a network namespace that goes at once."""
    return in_child(lambda: _links(host), LINKS)


def _links(host: Host) -> list[Trial]:
    own_namespaces(host, process.CLONE_NEWNET)
    with netlink.Netlink() as kernel:
        found = [
            attempt(LINKS[0], lambda: kernel.create_veth("a", peer="b")),
            attempt(LINKS[1], lambda: kernel.create_link("bridge", "bridge")),
        ]
        lower = 0
        for name in ("a", "bridge", "lo"):
            try:
                lower = kernel.link_index(name)
                break
            except OSError:
                continue
        vlan = netlink.attribute(IFLA_VLAN_ID, struct.pack("=H", 5))
        for item, kind, data in ((LINKS[2], "macvlan", b""), (LINKS[3], "vlan", vlan)):
            make = lambda k=kind, d=data: kernel.create_link(k, k, data=d, lower=lower)  # noqa: E731 - named for the line's length
            found.append(attempt(item, make))
        own = lambda: kernel.create_link("ipvlan", "ipvlan", lower=kernel.link_index("b"))  # noqa: E731 - a device has macvlans or ipvlans
        found.append(attempt(LINKS[4], own))
    return found


def netfilter(host: Host, environ: Mapping[str, str]) -> tuple[Trial, ...]:
    """What a bridge with NAT needs, asked of nft and iptables in a network namespace of their own."""
    nft, iptables = program("nft", environ), program("iptables", environ)
    names = [item for item, _rule in (*FILTERS, *XTABLES)]

    def work() -> list[Trial]:
        own_namespaces(host, process.CLONE_NEWNET | process.CLONE_NEWNS)
        mount.mount("tmpfs", "/run", "tmpfs")  # iptables keeps a lock there
        found = [_nft(item, nft, rule) for item, rule in FILTERS]
        return found + [_xtables(item, iptables, rule) for item, rule in XTABLES]

    return in_child(work, names)


def _nft(item: str, nft: str | None, rule: str) -> Trial:
    if nft is None:
        return Trial(item=item, state=MISSING, reason="nft is not installed")
    family = rule.split()[2]
    rules = f"add table {family} t; add chain {family} t c {{ type nat hook postrouting priority 100; }}; {rule}"
    return _refused(item, run(nft, rules), "nft")


def _xtables(item: str, iptables: str | None, rule: str) -> Trial:
    if iptables is None:
        return Trial(item=item, state=MISSING, reason="iptables is not installed")
    return _refused(item, run(iptables, *rule.split()), "iptables")


def _refused(item: str, status: int, tool: str) -> Trial:
    if status:
        return Trial(item=item, state=MISSING, reason=f"{tool} refuses it")
    return Trial(item=item, state=ENABLED, reason=f"by {tool}")


def diagnostics(host: Host) -> tuple[Trial, ...]:
    """The interfaces that CRIU lists sockets with."""

    def work() -> list[Trial]:
        own_namespaces(host, process.CLONE_NEWNET)
        return [attempt(item, lambda f=f, p=p: _diagnose(f, p)) for item, f, p in DIAGNOSTICS]  # type: ignore[misc]  # the defaults bind the loop's variables

    return in_child(work, [item for item, _family, _protocol in DIAGNOSTICS])


def _diagnose(family: int, protocol: int) -> None:
    """List the sockets of a family. Raises OSError(ENOENT) when nothing in the kernel can; sock_diag(7)."""
    body = struct.pack("=BB", family, protocol).ljust(56, b"\0")
    head = struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, 0x301, 1, 0)
    with _socket_of(NETLINK_SOCK_DIAG) as fd:
        os.write(fd.fileno(), head + body)
        for kind, _flags, _number, answer in netlink.parse_messages(os.read(fd.fileno(), 1 << 16)):
            if kind == netlink.NLMSG_ERROR:
                code: int = struct.unpack_from("=i", answer)[0]
                raise libc.errno_error(-code)


def _socket_of(protocol: int) -> files.OwnedFd:
    made = _socket.socket(netlink.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    made.connect((0, 0))  # to the kernel: a plain write needs it
    return files.OwnedFd(made.detach())
