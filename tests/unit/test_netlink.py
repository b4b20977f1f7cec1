"""The rtnetlink codec: against literal bytes, and against itself."""

from __future__ import annotations

import _socket
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.linux import libc, netlink, process
from atoll.linux.netlink import (
    AF_INET,
    AF_INET6,
    Netlink,
    attribute,
    pack_address,
    pack_mac,
    parse_address,
    parse_attributes,
    parse_link,
    parse_messages,
)


def test_an_attribute_is_padded_but_its_length_is_not():
    assert attribute(3, b"lo\0") == bytes.fromhex("0700 0300 6c6f 00 00")
    assert attribute(4, b"\x01\0\0\0") == bytes.fromhex("0800 0400 01000000")
    assert attribute(1, b"") == bytes.fromhex("0400 0100")


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=70), max_size=8))
def test_attributes_come_back(found):
    assert (
        parse_attributes(b"".join(attribute(kind, data) for kind, data in found.items())) == found
    )


def test_flags_of_a_type_are_no_part_of_it():
    assert parse_attributes(attribute(18 | netlink.NLA_F_NESTED, b"abcd")) == {18: b"abcd"}


@given(st.binary(max_size=200))
def test_any_bytes_are_attributes_or_a_value_error(data):
    try:
        found = parse_attributes(data)
    except ValueError:
        return
    assert sum(map(len, found.values())) <= len(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_value_error(data):
    try:
        found = list(parse_messages(data))
    except ValueError:
        return
    assert sum(len(body) + 16 for _kind, _flags, _sequence, body in found) <= len(data) + 0


@pytest.mark.parametrize("length", [0, 3, 9])
def test_lengths_that_lie(length):
    with pytest.raises(ValueError, match="netlink attribute of length"):
        parse_attributes(struct.pack("=HH", length, 1) + b"1234")
    with pytest.raises(ValueError, match="netlink message of length"):
        list(parse_messages(struct.pack("=IHHII", length, 1, 0, 0, 0)))


def test_two_messages_of_a_datagram():
    one = struct.pack("=IHHII", 18, 16, 2, 7, 0) + b"ab\0\0"
    other = struct.pack("=IHHII", 16, 3, 0, 8, 0)
    assert list(parse_messages(one + other)) == [(16, 2, 7, b"ab"), (3, 0, 8, b"")]


def test_a_link():
    body = struct.pack("=BxHiII", 0, 1, 5, 0x1043, 0)
    body += attribute(3, b"va\0") + attribute(1, bytes(range(6))) + attribute(4, b"\xdc\5\0\0")
    body += attribute(10, b"\3\0\0\0") + attribute(5, b"\6\0\0\0")
    body += attribute(18, attribute(1, b"veth\0")) + attribute(20, b"ours\0")
    body += attribute(23, struct.pack("=25Q", *range(100, 125)))
    assert parse_link(body) == netlink.Link(
        index=5, name="va", kind="veth", mac="00:01:02:03:04:05", mtu=1500, up=True, master=3, peer=6,
        alias="ours", rx_bytes=102, tx_bytes=103,
    )  # fmt: skip


def test_a_link_with_nothing_but_an_index():
    link = parse_link(struct.pack("=BxHiII", 0, 0, 9, 0, 0))
    assert (link.index, link.name, link.kind, link.mac, link.up, link.tx_bytes) == (
        9,
        "",
        "",
        "",
        False,
        0,
    )


def test_an_address_of_a_point_to_point_link_is_its_own():
    body = struct.pack("=BBBBI", AF_INET, 24, 0, 0, 4)
    body += attribute(1, bytes([10, 0, 0, 2])) + attribute(2, bytes([10, 0, 0, 1]))
    assert parse_address(body) == netlink.Address(
        index=4, family=AF_INET, address="10.0.0.1", prefix=24, broadcast="", scope=0
    )


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_addresses_there_and_back(address):
    family = AF_INET if address.version == 4 else AF_INET6
    assert pack_address(family, str(address)) == address.packed
    body = struct.pack("=BBBBI", family, 9, 0, 253, 1) + attribute(1, address.packed)
    assert parse_address(body).address == _socket.inet_ntop(family, address.packed)


@pytest.mark.parametrize(
    ("family", "text"),
    [(AF_INET, "10.0.0"), (AF_INET, "::1"), (AF_INET6, "10.0.0.1"), (AF_INET6, "")],
)
def test_what_is_no_address(family, text):
    with pytest.raises(ValueError, match="is not an IPv"):
        pack_address(family, text)


@given(st.binary(min_size=6, max_size=6))
def test_macs_there_and_back(mac):
    assert pack_mac(mac.hex(":")) == mac


@pytest.mark.parametrize(
    "text", ["", "00:16:3e", "00:16:3e:0:0:1", "00:16:3e:00:00:0g", "00-16-3e-00-00-01"]
)
def test_what_is_no_mac(text):
    with pytest.raises(ValueError):
        pack_mac(text)


class Kernel:
    """A socket that answers with prepared datagrams."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv(self, _size: int) -> bytes:
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def talk(monkeypatch, *answers: bytes) -> tuple[Netlink, Kernel]:
    kernel = Kernel(*answers)
    monkeypatch.setattr(netlink, "_open", lambda: kernel)
    return Netlink(), kernel


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def acknowledgement(sequence: int, code: int = 0, words: str = "") -> bytes:
    flags = netlink.NLM_F_CAPPED | (netlink.NLM_F_ACK_TLVS if words else 0)
    body = struct.pack("=i", -code) + bytes(16)
    return message(
        2, sequence, body + (attribute(1, words.encode() + b"\0") if words else b""), flags
    )


def link_body(index: int, name: str) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, 0, 0) + attribute(3, name.encode() + b"\0")


def test_an_error_is_of_its_class_with_request_and_the_kernels_words(monkeypatch):
    rtnl, _kernel = talk(monkeypatch, acknowledgement(1, errno.EEXIST, "taken, sorry"))
    with pytest.raises(FileExistsError) as caught:
        rtnl.create_link("x0", "bridge")
    assert caught.value.__notes__ == [
        "rtnetlink(7): RTM_NEWLINK bridge x0 lower=0 netns=None mtu=0: taken, sorry"
    ]


def test_answers_to_an_older_request_are_passed_over(monkeypatch):
    stale = message(16, 77, link_body(9, "old"))
    answer = message(16, 1, link_body(3, "va"))
    rtnl, _kernel = talk(monkeypatch, stale, answer, acknowledgement(1))
    assert rtnl.link_index("va") == 3


def test_a_list_that_changed_meanwhile_is_asked_for_again(monkeypatch):
    first = message(16, 1, link_body(3, "va"), netlink.NLM_F_DUMP_INTR) + message(3, 1, bytes(4))
    again = message(16, 2, link_body(3, "va"), 2) + message(16, 2, link_body(4, "vb"), 2)
    rtnl, kernel = talk(monkeypatch, first, again, message(3, 2, bytes(4)))
    assert [link.name for link in rtnl.links()] == ["va", "vb"]
    assert len(kernel.sent) == 2


def test_a_veth_request_as_the_kernel_wants_it(monkeypatch):
    rtnl, kernel = talk(monkeypatch, acknowledgement(1))
    rtnl.create_veth(
        "va", peer="eth0", netns_fd=9, mac="fe:00:00:00:00:01", rx_queues=3, tx_queues=2
    )
    ((kind, flags, _sequence, body),) = parse_messages(kernel.sent[0])
    assert (kind, flags) == (16, 0x605)  # RTM_NEWLINK: create, exclusively, acknowledge, request
    here = parse_attributes(body, 16)
    assert here[3] == b"va\0"
    assert here[1] == bytes([0xFE, 0, 0, 0, 0, 1])
    assert (here[32], here[31]) == (b"\2\0\0\0", b"\3\0\0\0")
    info = parse_attributes(here[18])
    assert info[1] == b"veth\0"
    there = parse_attributes(parse_attributes(info[2])[1], 16)
    assert there == {3: b"eth0\0", 28: b"\x09\0\0\0", 31: b"\2\0\0\0", 32: b"\3\0\0\0"}


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (
            lambda rtnl: rtnl.create_veth("va", peer="vb"),
            "RTM_NEWLINK veth va peer=vb netns=None mtu=0",
        ),
        (lambda rtnl: rtnl.set_link(3, up=True, master=0), "RTM_NEWLINK index=3 up=True master=0"),
        (lambda rtnl: rtnl.delete_link("va"), "RTM_DELLINK link=va"),
        (
            lambda rtnl: rtnl.add_address(3, AF_INET, "10.0.0.1", 8),
            "RTM_NEWADDR 10.0.0.1/8 broadcast=None index=3",
        ),
        (
            lambda rtnl: rtnl.add_route(AF_INET, None, index=3),
            "RTM_NEWROUTE default/0 via=None index=3 scope=0",
        ),
        (
            lambda rtnl: rtnl.add_proxy_neighbour(3, AF_INET, "10.0.0.9"),
            "RTM_NEWNEIGH proxy 10.0.0.9 index=3",
        ),
        (lambda rtnl: rtnl.set_nsid(5, 7), "RTM_NEWNSID netns=5 nsid=7"),
    ],
)
def test_every_change_passes_the_seam_before_it_is_made(monkeypatch, change, seen):
    def observer(name, args):
        raise OSError(errno.ENOMEM, f"{name} {args[0]}")

    rtnl, kernel = talk(monkeypatch)
    monkeypatch.setattr(libc, "observer", observer)
    with pytest.raises(OSError) as caught:
        change(rtnl)
    assert caught.value.strerror == f"netlink {seen}"
    assert caught.value.__notes__ == [f"rtnetlink(7): {seen}"]
    assert kernel.sent == []


def test_threads_may_not_visit_another_namespace(monkeypatch):
    monkeypatch.setattr(process, "thread_count", lambda: 2)
    with pytest.raises(RuntimeError, match="2 threads"):
        Netlink(0)
