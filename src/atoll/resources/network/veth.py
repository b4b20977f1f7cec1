"""veth: a pair of links, one end on the host, the other born in the container under its final name.

Source of truth: reference of LXC, section 6.2. Two differences from LXC, seen by nobody: the peer is never renamed or moved,
and the host's end gets its MAC address at birth. That address is made from the start's id, so that a link with a configured
name (veth.pair) can be told from somebody else's after a crash.
"""

from __future__ import annotations

import errno

from atoll import errors, log
from atoll.linux import files, netlink
from atoll.linux.netlink import RT_SCOPE_LINK, Netlink
from atoll.plan import NAMESPACES, HostStep
from atoll.resources.network import FAMILIES, LINK_DELETIONS, host_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.config.text import Config
    from atoll.linux.netlink import Link
    from atoll.plan import Handler, Start
    from atoll.resources.network import Nic


def create(config: Config, start: Start, nic: Nic, name: str) -> tuple[HostStep, ...]:
    """The pair, its place on the host, and the host's routes to it."""
    prefix = f"lxc.net.{nic.index}"
    mine = host_end(nic, start)
    pair = CreateVeth(
        host_end=mine,
        name=name,
        mac=nic.hwaddr or "",
        host_mac=mac_of_start(start.start_id, nic.index),
        mtu=nic.mtu or 0,
        mtu_of=nic.link or "",
        rx_queues=nic.veth_rx_queues or 0,
        tx_queues=nic.veth_tx_queues or 0,
        origin=config.origin(f"{prefix}.veth.pair") or config.origin(f"{prefix}.type"),
    )
    steps: list[HostStep] = [pair, BringUpHostEnd(host_end=mine)]
    if nic.link:
        origin = config.origin(f"{prefix}.link")
        steps[1] = AttachBridge(
            host_end=mine,
            bridge=nic.link,
            nic=nic.index,
            ipv6=bool(nic.veth_ipv6_route),
            origin=origin,
        )
    for family, routes in (("ipv4", nic.veth_ipv4_route), ("ipv6", nic.veth_ipv6_route)):
        origins = config.origins(f"{prefix}.veth.{family}.route")
        for route, origin in zip(routes, origins, strict=True):
            steps.append(
                AddHostRoute(
                    host_end=mine,
                    family=family,
                    destination=route.address,
                    prefix=route.prefix,
                    origin=origin,
                )
            )
    return tuple(steps)


def mac_of_start(start_id: str, index: int) -> str:
    """fe:… for the host's end of nic `index`: above every other address, so that no bridge takes it for its own."""
    number = 0
    for letter in f"{start_id}{index}":
        number = (number * 1099511628211 ^ ord(letter)) & 0xFFFFFFFFFF
    return f"fe:{number.to_bytes(5, 'big').hex(':')}"


class CreateVeth(HostStep):
    """Create both ends, down. `mtu` 0: that of the link `mtu_of` where there is one, else the kernel's 1500."""

    host_end: str
    name: str
    mac: str
    host_mac: str
    mtu: int
    mtu_of: str
    rx_queues: int
    tx_queues: int
    needs = (NAMESPACES,)

    def apply(self, h: Handler) -> None:
        """One request makes both. The kernel refuses a name that is taken."""
        with Netlink() as kernel:
            try:
                kernel.create_veth(
                    self.host_end,
                    peer=self.name,
                    netns_fd=h[NAMESPACES]["net"].fileno(),
                    mac=self.host_mac,
                    peer_mac=self.mac,
                    mtu=self.mtu or _mtu(kernel, self.mtu_of),
                    rx_queues=self.rx_queues,
                    tx_queues=self.tx_queues,
                )
            except FileExistsError as error:
                _explain_taken(kernel, self.host_end, error)
                raise

    def explain(self) -> str:
        """Both names."""
        return f"create link {self.host_end} with its other end {self.name} in the container"

    def inverse(self) -> HostStep:
        """Delete the pair: both ends go."""
        return DeleteLink(name=self.host_end, mac=self.host_mac)


def _mtu(kernel: Netlink, link: str) -> int:
    found = _find(kernel, link) if link else None
    if found is None or found.kind != "bridge":
        return 0  # AttachBridge says what is wrong with it
    return found.mtu


def _explain_taken(kernel: Netlink, name: str, error: OSError) -> None:
    taken = _find(kernel, name)
    if taken is not None:
        message = f"cannot create link {name}: the host has a {taken.kind or 'link'} of that name"
        fix = f"ip link delete {name}, if nobody needs it, or choose another name"
        raise errors.HostError(message, fix=fix, errno=error.errno) from error


class AttachBridge(HostStep):
    """Make the host's end a port of a bridge and bring it up. Deleting the link takes it back, so it has no inverse.

    Without `ipv6` the port gets no IPv6 address of its own (as in LXC 6); routes through it need that.
    """

    host_end: str
    bridge: str
    nic: int
    ipv6: bool

    def apply(self, h: Handler) -> None:
        """Attach and bring up in one request."""
        with Netlink() as kernel:
            try:
                bridge = kernel.link(self.bridge)
            except OSError as error:
                raise self._failure(kernel, errors.reason(error), error) from error
            if bridge.kind != "bridge":
                raise self._failure(kernel, f"{self.bridge} is no bridge", None)
            if not self.ipv6:
                _disable_ipv6(h, self.host_end)
            kernel.set_link(kernel.link_index(self.host_end), master=bridge.index, up=True)

    def explain(self) -> str:
        """Port and bridge."""
        return f"attach {self.host_end} to bridge {self.bridge}"

    def _failure(self, kernel: Netlink, why: str, error: OSError | None) -> errors.HostError:
        bridges = [link.name for link in kernel.links() if link.kind == "bridge"]
        some = f"bridges here: {', '.join(bridges)}" if bridges else "there is no bridge here"
        return errors.HostError(
            f"cannot {self.explain()}: {why}",
            fix=f"{some}; set lxc.net.{self.nic}.link to one, start lxc-net, "
            f"or set lxc.net.{self.nic}.type = empty",
            errno=error.errno if error is not None else errno.EOPNOTSUPP,
        )


def _disable_ipv6(h: Handler, link: str) -> None:
    """A bridge port wants no link-local address; a host that has no IPv6, or forbids the write, is no failure."""
    try:
        files.write_text(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6", "1")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES):
            raise
        h.report(log.DEBUG, f"cannot disable IPv6 on {link}: {errors.reason(error)}")


class BringUpHostEnd(HostStep):
    """Bring up a host's end that is on no bridge."""

    host_end: str

    def apply(self, h: Handler) -> None:
        """Set the flag."""
        del h
        with Netlink() as kernel:
            kernel.set_link(kernel.link_index(self.host_end), up=True)

    def explain(self) -> str:
        """The link."""
        return f"bring up {self.host_end}"


class AddHostRoute(HostStep):
    """Route a network of the container's through the host's end. It goes with the link, so it has no inverse."""

    host_end: str
    family: str
    destination: str
    prefix: int

    def apply(self, h: Handler) -> None:
        """One request, in table main."""
        del h
        with Netlink() as kernel:
            kernel.add_route(
                FAMILIES[self.family],
                self.destination,
                index=kernel.link_index(self.host_end),
                prefix=self.prefix,
                scope=RT_SCOPE_LINK if self.family == "ipv4" else 0,
            )

    def explain(self) -> str:
        """Network and link."""
        return f"route {self.destination}/{self.prefix} to {self.host_end}"


class DeleteLink(HostStep):
    """Delete a link that carries the MAC address of its start; anybody else's of that name stays."""

    name: str
    mac: str

    def apply(self, h: Handler) -> None:
        """Return as soon as it is off every list; a child waits for the rest and is reaped by Handler.close()."""
        with Netlink() as kernel:
            link = _find(kernel, self.name)
        if link is None:
            return
        if link.mac != self.mac:
            h.report(log.WARN, f"{self.name} is not the link of this start any more: it stays")
            return
        try:
            deletion = netlink.delete_link_quickly(link.index)
        except OSError as error:
            if (
                error.errno != errno.ENODEV
            ):  # it went by itself meanwhile, with the container's namespace
                raise
            return
        if deletion is not None:
            if LINK_DELETIONS not in h:
                h[LINK_DELETIONS] = []
            h[LINK_DELETIONS].append(deletion)

    def explain(self) -> str:
        """The link."""
        return f"delete link {self.name}"

    def recognise(self, began: float) -> bool:
        """The address is made from the start's id, which no other start has."""
        del began
        with Netlink() as kernel:
            link = _find(kernel, self.name)
        return link is not None and link.mac == self.mac


def _find(kernel: Netlink, name: str) -> Link | None:
    try:
        return kernel.link(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
