"""rtnetlink: the codec, and one function for each thing that we ask of the kernel's network.

Not a library of everything: links (veth, macvlan and generic), addresses, routes, proxy neighbours and namespace ids, as
the start of a container needs them. No names are made up here and nothing is tried twice.
Source of truth: rtnetlink(7), netlink(7), linux/if_link.h, linux/if_addr.h, linux/netlink.h, linux/net_namespace.h.

Two facts of the kernel shape it (measured, Linux 6.18). A peer that is born in its namespace costs 0.5 ms, one that is moved
there 15 to 37. Deleting a link takes it off every list within 2 ms; the request then waits 15 ms more for an RCU barrier:
`delete_link_quickly` leaves that wait to a child.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
from errno import EIO, ENOBUFS, ENODEV

from atoll.linux import process
from atoll.linux.libc import entering, errno_error, note
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final, Self

    from atoll.linux.process import Child

AF_INET: Final = 2
AF_INET6: Final = 10
AF_NETLINK: Final = 16
SOL_NETLINK: Final = 270
NETLINK_ROUTE: Final = 0
NETLINK_ADD_MEMBERSHIP: Final = 1
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12
RTNLGRP_LINK: Final = 1

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_EXCL: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
NLMSGERR_ATTR_MSG: Final = 1
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_NEWNEIGH: Final = 28
RTM_NEWNSID: Final = 88
RTM_GETNSID: Final = 90

IFF_UP: Final = 0x1
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_NET_NS_PID: Final = 19
IFLA_IFALIAS: Final = 20
IFLA_STATS64: Final = 23
IFLA_NET_NS_FD: Final = 28
IFLA_NUM_TX_QUEUES: Final = 31
IFLA_NUM_RX_QUEUES: Final = 32
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
VETH_INFO_PEER: Final = 1
IFLA_MACVLAN_MODE: Final = 1

IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_BROADCAST: Final = 4
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RT_TABLE_MAIN: Final = 254
RTPROT_BOOT: Final = 3
RT_SCOPE_UNIVERSE: Final = 0
RT_SCOPE_LINK: Final = 253
RTN_UNICAST: Final = 1
NDA_DST: Final = 1
NTF_PROXY: Final = 0x8
NETNSA_NSID: Final = 1
NETNSA_FD: Final = 3

IFNAMSIZ: Final = 16
MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_IFINFO: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_IFADDR: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_RTMSG: Final = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, destination and source length, tos, table, …
_NDMSG: Final = struct.Struct("=B3xiHBB")  # ndmsg: family, index, state, flags, type
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length with this header, type
_NAMES: Final = {
    16: "RTM_NEWLINK",
    17: "RTM_DELLINK",
    18: "RTM_GETLINK",
    20: "RTM_NEWADDR",
    22: "RTM_GETADDR",
    24: "RTM_NEWROUTE",
    28: "RTM_NEWNEIGH",
    88: "RTM_NEWNSID",
    90: "RTM_GETNSID",
}


class Link(Record):
    """A link as the kernel lists it. `peer` is the index of the other end or of the lower link (0: none)."""

    index: int
    name: str
    kind: str
    """"veth", "bridge", … or "" for hardware and loopback."""
    mac: str
    mtu: int
    up: bool
    master: int
    peer: int
    alias: str
    rx_bytes: int
    tx_bytes: int


class Address(Record):
    """An address of a link, as text; `broadcast` is "" where there is none."""

    index: int
    family: int
    address: str
    prefix: int
    broadcast: str
    scope: int


class Netlink:
    """A conversation with the kernel about one network namespace: the caller's, or that of `netns_fd`.

    Failures are OSErrors with the request, and the kernel's own words about it (extack), in a note. Raises RuntimeError
    for `netns_fd` in a process with threads: setns changes the calling thread only, and the others would be surprised.
    """

    def __init__(self, netns_fd: int | None = None) -> None:
        self._sequence = 0
        self._socket = _open() if netns_fd is None else _open_in(netns_fd)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ links

    def link(self, which: int | str) -> Link:
        """A link by index or name. Raises OSError(ENODEV) when there is none."""
        for body in self._ask(RTM_GETLINK, 0, *_which(which), f"link={which}"):
            return parse_link(body)
        raise errno_error(ENODEV)  # the kernel answers with a link or with an error

    def link_index(self, name: str) -> int:
        """The index of a link. Raises OSError(ENODEV) when there is none."""
        return self.link(name).index

    def links(self) -> tuple[Link, ...]:
        """All links of the namespace, by index."""
        return tuple(
            parse_link(body) for body in self._ask(RTM_GETLINK, NLM_F_DUMP, _ifinfo(), (), "all")
        )

    def create_veth(
        self,
        name: str,
        *,
        peer: str,
        netns_fd: int | None = None,
        mac: str = "",
        peer_mac: str = "",
        mtu: int = 0,
        rx_queues: int = 0,
        tx_queues: int = 0,
    ) -> None:
        """Create both ends of a pair, the peer directly in the namespace of `netns_fd` (None: here), both down.

        `mtu` is for both; queue counts (0: the kernel's) are the peer's, and swapped for this end. Raises FileExistsError
        when either name is taken.
        """
        there = [
            _text(IFLA_IFNAME, peer),
            *_link_options(mac=peer_mac, mtu=mtu, rx_queues=rx_queues, tx_queues=tx_queues),
        ]
        if netns_fd is not None:
            there.append(_number(IFLA_NET_NS_FD, netns_fd))
        data = attribute(VETH_INFO_PEER | NLA_F_NESTED, _ifinfo() + b"".join(there))
        here = _link_options(mac=mac, mtu=mtu, rx_queues=tx_queues, tx_queues=rx_queues)
        self._create(
            name, "veth", data, here, f"veth {name} peer={peer} netns={netns_fd} mtu={mtu}"
        )

    def create_link(
        self,
        name: str,
        kind: str,
        *,
        data: bytes = b"",
        lower: int = 0,
        netns_fd: int | None = None,
        mac: str = "",
        mtu: int = 0,
    ) -> None:
        """Create a link of any kind; `data` are the attributes of its kind, `lower` the link that it sits on.

        With `netns_fd` it is born there while `lower` is looked up here. Raises FileExistsError when the name is taken,
        OSError(EOPNOTSUPP) when the kernel does not know the kind.
        """
        options = _link_options(mac=mac, mtu=mtu)
        if lower:
            options.append(_number(IFLA_LINK, lower))
        if netns_fd is not None:
            options.append(_number(IFLA_NET_NS_FD, netns_fd))
        self._create(
            name, kind, data, options, f"{kind} {name} lower={lower} netns={netns_fd} mtu={mtu}"
        )

    def _create(self, name: str, kind: str, data: bytes, options: list[bytes], what: str) -> None:
        info = _text(IFLA_INFO_KIND, kind)
        if data:
            info += attribute(IFLA_INFO_DATA | NLA_F_NESTED, data)
        parts = [_text(IFLA_IFNAME, name), *options, attribute(IFLA_LINKINFO | NLA_F_NESTED, info)]
        self._change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _ifinfo(), parts, what)

    def set_link(
        self,
        index: int,
        *,
        name: str | None = None,
        up: bool | None = None,
        mtu: int | None = None,
        master: int | None = None,
        mac: str | None = None,
        alias: str | None = None,
        netns_fd: int | None = None,
    ) -> None:
        """Change what is given; `master` 0 detaches. In one request the kernel attaches first and brings up last.

        A request that fails half-way is not taken back by the kernel.
        """
        wanted = {"name": name, "up": up, "mtu": mtu, "master": master, "mac": mac, "alias": alias}
        parts = [] if mac is None else [attribute(IFLA_ADDRESS, pack_mac(mac))]
        for kind, number in ((IFLA_MTU, mtu), (IFLA_MASTER, master), (IFLA_NET_NS_FD, netns_fd)):
            if number is not None:
                parts.append(_number(kind, number))
        for kind, text in ((IFLA_IFNAME, name), (IFLA_IFALIAS, alias)):
            if text is not None:
                parts.append(_text(kind, text))
        flags, change = (IFF_UP if up else 0), (0 if up is None else IFF_UP)
        shown = " ".join(f"{key}={value}" for key, value in wanted.items() if value is not None)
        self._change(RTM_NEWLINK, 0, _ifinfo(index, flags, change), parts, f"index={index} {shown}")

    def delete_link(self, which: int | str) -> None:
        """Delete a link and wait for the kernel to forget it (16 to 26 ms). OSError(ENODEV) when there is none."""
        self._change(RTM_DELLINK, 0, *_which(which), f"link={which}")

    # ---------------------------------------------------------------- addresses, routes, neighbours

    def add_address(
        self, index: int, family: int, address: str, prefix: int, broadcast: str | None = None
    ) -> None:
        """Give a link an address. Raises FileExistsError when it has it already."""
        packed = pack_address(family, address)
        parts = [attribute(IFA_LOCAL, packed), attribute(IFA_ADDRESS, packed)]
        if broadcast:
            parts.append(attribute(IFA_BROADCAST, pack_address(family, broadcast)))
        head = _IFADDR.pack(family, prefix, 0, 0, index)
        what = f"{address}/{prefix} broadcast={broadcast} index={index}"
        self._change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, head, parts, what)

    def addresses(self, index: int | None = None) -> tuple[Address, ...]:
        """The addresses of a link, or of all; the kernel lists those with wider scope first."""
        head = _IFADDR.pack(0, 0, 0, 0, index or 0)
        return tuple(
            parse_address(body)
            for body in self._ask(RTM_GETADDR, NLM_F_DUMP, head, (), f"index={index}")
        )

    def add_route(
        self,
        family: int,
        destination: str | None,
        *,
        index: int,
        prefix: int = 0,
        gateway: str | None = None,
        scope: int = RT_SCOPE_UNIVERSE,
    ) -> None:
        """Route `destination`/`prefix` (None: everything) through a link, in table main, protocol boot.

        Raises FileExistsError when the table has that route, OSError(ENETUNREACH, for IPv6 EHOSTUNREACH) when the
        gateway is on no link's network.
        """
        head = _RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
        parts = [_number(RTA_OIF, index)]
        if destination is not None:
            parts.append(attribute(RTA_DST, pack_address(family, destination)))
        if gateway is not None:
            parts.append(attribute(RTA_GATEWAY, pack_address(family, gateway)))
        what = f"{destination or 'default'}/{prefix} via={gateway} index={index} scope={scope}"
        self._change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, head, parts, what)

    def add_proxy_neighbour(self, index: int, family: int, address: str) -> None:
        """Answer for `address` on a link (proxy ARP or NDP for one address)."""
        head = _NDMSG.pack(family, index, 0, NTF_PROXY, 0)
        parts = (attribute(NDA_DST, pack_address(family, address)),)
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._change(RTM_NEWNEIGH, flags, head, parts, f"proxy {address} index={index}")

    # --------------------------------------------------------------------------- namespace ids

    def nsid(self, netns_fd: int) -> int | None:
        """The id by which this namespace knows another, or None when it has none."""
        parts = (_number(NETNSA_FD, netns_fd),)
        for body in self._ask(RTM_GETNSID, 0, b"\0" * 4, parts, f"netns={netns_fd}"):
            number: int = struct.unpack("=i", parse_attributes(body, 4)[NETNSA_NSID])[0]
            return None if number < 0 else number
        return None

    def set_nsid(self, netns_fd: int, nsid: int = -1) -> None:
        """Give another namespace an id here; -1 lets the kernel choose. FileExistsError when it has one."""
        parts = (_number(NETNSA_FD, netns_fd), attribute(NETNSA_NSID, struct.pack("=i", nsid)))
        self._change(RTM_NEWNSID, 0, b"\0" * 4, parts, f"netns={netns_fd} nsid={nsid}")

    # --------------------------------------------------------------------------------- messages

    def _change(
        self, kind: int, flags: int, head: bytes, parts: Iterable[bytes], what: str
    ) -> None:
        """A request that changes something: the seam of fault injection, then the kernel's acknowledgement."""
        try:
            entering("netlink", f"{_NAMES[kind]} {what}")
            self._send(kind, flags | NLM_F_ACK, head + b"".join(parts))
            for _reply in self._replies():
                pass
        except OSError as error:
            _blame(error, kind, what)
            raise

    def _ask(
        self, kind: int, flags: int, head: bytes, parts: Iterable[bytes], what: str
    ) -> list[bytes]:
        """A request that only reads: the bodies of the answers. A list that changed meanwhile is asked for again."""
        try:
            while True:
                self._send(kind, flags if flags & NLM_F_DUMP else NLM_F_ACK, head + b"".join(parts))
                replies = list(self._replies())
                if not any(reply_flags & NLM_F_DUMP_INTR for reply_flags, _body in replies):
                    return [body for _flags, body in replies]
        except OSError as error:
            _blame(error, kind, what)
            raise

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        head = _HEADER.pack(
            _HEADER.size + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0
        )
        self._socket.send(head + body)

    def _replies(self) -> Iterator[tuple[int, bytes]]:
        """Flags and body of each answer to the last request, until its acknowledgement or the end of the list."""
        while True:
            for kind, flags, sequence, body in parse_messages(self._socket.recv(1 << 16)):
                if sequence != self._sequence:
                    continue  # the rest of a list that was given up
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_error(flags, body)
                    return
                yield flags, body


# ------------------------------------------------------------------------------- quick deletion


class Deletion:
    """A link that is off every list, and the child that still waits for the kernel's RCU barrier."""

    def __init__(self, child: Child) -> None:
        self.pid = child.pid
        self._child: Child | None = child

    def close(self) -> None:
        """Wait for the child (at most some 20 ms) and reap it; once."""
        child, self._child = self._child, None
        if child is not None:
            with child.pidfd:
                process.wait_pidfd(child.pidfd.fileno())


def delete_link_quickly(index: int) -> Deletion | None:
    """Delete a link of this namespace; return as soon as nobody can see it any more (2 ms instead of 16 to 26).

    A child makes the request and stays in the kernel for the rest: whoever gets the Deletion closes it. None: the deletion
    is complete. Raises OSError as delete_link.
    """
    events = _open()
    try:
        events.bind((0, 0))  # an unbound socket is told nothing
        events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
        try:
            child = process.clone(lambda: _delete_and_exit(index))
        except (OSError, RuntimeError):  # no process to be had, or threads: the slow way is as good
            _delete_slowly(index)
            return None
        if _gone_before_exit(events, index, child.pidfd.fileno()):
            return Deletion(child)
    finally:
        events.close()
    with child.pidfd:
        status = process.wait_pidfd(child.pidfd.fileno())
    if status is None or not status.exited:
        _delete_slowly(index)  # a signal to our whole process group (Ctrl-C) hit the child
        return None
    if status.value:
        error = errno_error(status.value)
        _blame(error, RTM_DELLINK, f"link={index}")
        raise error
    return None


def _delete_slowly(index: int) -> None:
    with Netlink() as kernel:
        kernel.delete_link(index)


def _delete_and_exit(index: int) -> None:
    """The child: its exit status is the errno. It outlives much of the clean-up, so it holds nothing of ours open."""
    try:
        process.close_range(0, 0x7FFFFFFF)
        os.chdir("/")
        _delete_slowly(index)
    except OSError as error:
        os._exit(error.errno or EIO)
    os._exit(0)


def _gone_before_exit(events: _socket.socket, index: int, pidfd: int) -> bool:
    """Wait until the kernel announces the end of the link (True) or the child ends (False)."""
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        ready = [fd for fd, _event in poll.poll()]
        if events.fileno() in ready and _announces_end(events, index):
            return True
        if pidfd in ready:
            return False


def _announces_end(events: _socket.socket, index: int) -> bool:
    try:
        data = events.recv(1 << 16)
    except OSError as error:
        if error.errno != ENOBUFS:  # announcements were lost; the child's end will tell
            raise
        return False
    return any(
        kind == RTM_DELLINK
        and _IFINFO.unpack_from(body)[0] == 0
        and _IFINFO.unpack_from(body)[2] == index
        for kind, _flags, _sequence, body in parse_messages(data)
    )


# ---------------------------------------------------------------------------------------- codec


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def parse_attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from `offset` on, the last of a kind winning. Raises ValueError for broken lengths."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise ValueError(f"netlink attribute of length {length} at {offset} of {len(data)}")
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + -length % 4
    return found


def parse_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and body of each message of a datagram. Raises ValueError for broken lengths."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError(f"netlink message of length {length} at {offset} of {len(data)}")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + -length % 4


def parse_link(body: bytes) -> Link:
    """An ifinfomsg with its attributes."""
    _family, _type, index, flags, _change = _IFINFO.unpack_from(body)
    found = parse_attributes(body, _IFINFO.size)
    info = parse_attributes(found.get(IFLA_LINKINFO, b""))
    # rtnl_link_stats64 begins with packets received and sent, then bytes received and sent
    statistics = struct.unpack_from("=4Q", found.get(IFLA_STATS64, b"").ljust(32, b"\0"))
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_unpack_number(found.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        master=_unpack_number(found.get(IFLA_MASTER)),
        peer=_unpack_number(found.get(IFLA_LINK)),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        rx_bytes=statistics[2],
        tx_bytes=statistics[3],
    )


def parse_address(body: bytes) -> Address:
    """An ifaddrmsg with its attributes: the link's own address (of a point-to-point link not the other end's)."""
    family, prefix, _flags, scope, index = _IFADDR.unpack_from(body)
    found = parse_attributes(body, _IFADDR.size)
    own = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or b""
    broadcast = found.get(IFA_BROADCAST)
    return Address(
        index=index,
        family=family,
        address=_socket.inet_ntop(family, own),
        prefix=prefix,
        broadcast=_socket.inet_ntop(family, broadcast) if broadcast else "",
        scope=scope,
    )


def pack_address(family: int, address: str) -> bytes:
    """An address from its text. Raises ValueError for what is not one of that family."""
    try:
        return _socket.inet_pton(family, address)
    except OSError:
        raise ValueError(
            f"{address!r} is not an IPv{4 if family == AF_INET else 6} address"
        ) from None


def pack_mac(mac: str) -> bytes:
    """Six bytes from "00:16:3e:00:00:01". Raises ValueError."""
    parts = mac.split(":")
    if len(parts) != 6 or any(len(part) != 2 for part in parts):
        raise ValueError(f"{mac!r} is not a MAC address")
    return bytes(int(part, 16) for part in parts)


def _open() -> _socket.socket:
    """A socket in this namespace that answers with words (extack) and without repeating the request."""
    made = _socket.socket(AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
        made.setsockopt(SOL_NETLINK, option, 1)
    return made


def _open_in(netns_fd: int) -> _socket.socket:
    threads = process.thread_count()
    if threads != 1:
        raise RuntimeError(f"cannot visit a network namespace: this process has {threads} threads")
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.setns(netns_fd, process.CLONE_NEWNET)
        try:
            return _open()
        finally:
            process.setns(home, process.CLONE_NEWNET)
    finally:
        os.close(home)


def _raise_error(flags: int, body: bytes) -> None:
    """The error of an acknowledgement, or nothing; the kernel's words become its first note."""
    code: int = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if code == 0:
        return
    error = errno_error(-code)
    if flags & NLM_F_ACK_TLVS:
        skipped = 4 + (_HEADER.size if flags & NLM_F_CAPPED else 0)
        words = parse_attributes(body, skipped).get(NLMSGERR_ATTR_MSG)
        if words:
            error.add_note(_string(words))
    raise error


def _blame(error: OSError, kind: int, what: str) -> None:
    """One note: the request, and after a colon what the kernel said about it."""
    said: list[str] = list(getattr(error, "__notes__", ()))
    error.__notes__ = []
    note(error, ": ".join((f"rtnetlink(7): {_NAMES[kind]} {what}", *said)))


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, index, flags, change)


def _which(which: int | str) -> tuple[bytes, tuple[bytes, ...]]:
    if isinstance(which, int):
        return _ifinfo(which), ()
    return _ifinfo(), (_text(IFLA_IFNAME, which),)


def _link_options(
    *, mac: str = "", mtu: int = 0, rx_queues: int = 0, tx_queues: int = 0
) -> list[bytes]:
    options = [attribute(IFLA_ADDRESS, pack_mac(mac))] if mac else []
    numbers = ((IFLA_MTU, mtu), (IFLA_NUM_RX_QUEUES, rx_queues), (IFLA_NUM_TX_QUEUES, tx_queues))
    options.extend(_number(kind, value) for kind, value in numbers if value)
    return options


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, os.fsencode(value) + b"\0")


def _string(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))


def _unpack_number(value: bytes | None) -> int:
    number: int = struct.unpack("=I", value)[0] if value is not None else 0
    return number
