"""lxc.net.*: values, what the getter answers, and plans."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.config.text import Config
from atoll.linux.process import CLONE_NEWNET
from atoll.plan import Start
from atoll.resources import network
from atoll.resources.network import veth

VETH = "lxc.net.0.type = veth\n"
NO_HOST: Any = None  # no plan of the network asks the host for anything


def start(**values) -> Start:
    given: dict[str, Any] = {
        "name": "c1", "lxcpath": "/x", "start_id": "k3f9x2a0", "began": 0.0, "argv": ("/init",),
        "clone_namespaces": CLONE_NEWNET, **values,
    }  # fmt: skip
    return Start(**given)


def nics(text: str):
    return Config.parse(text)[network.Network].nics


def phrases(text: str, **values) -> list[str]:
    """The whole plan in words; no part of it may look at the host."""
    c = (Config.parse(text), NO_HOST, start(**values))
    return [
        s.explain() for s in (*network.prepare(*c), *network.create(*c), *network.configure(*c))
    ]


def refusal(text: str, **values) -> errors.AtollError:
    with pytest.raises(errors.AtollError) as caught:
        phrases(text, **values)
    return caught.value


# ---------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("type", "veth", "veth"),
        ("flags", "anything", "up"),
        ("link", "lxcbr0", "lxcbr0"),
        ("link", "abcdefghijklmnopqrst", "abcdefghijklmno"),
        ("mtu", "1400", "1400"),
        ("l2proxy", "1", "1"),
        ("hwaddr", "00:16:3E:aa:bb:0c", "00:16:3E:aa:bb:0c"),
        ("ipv4.address", "10.0.0.5", "10.0.0.5/8"),
        ("ipv4.address", "127.255.255.255", "127.255.255.255/8"),
        ("ipv4.address", "128.0.0.1", "128.0.0.1/16"),
        ("ipv4.address", "192.168.1.1", "192.168.1.1/24"),
        ("ipv4.address", "224.0.0.1", "224.0.0.1/0"),
        ("ipv4.address", "10.1.0.5/24 10.1.0.255", "10.1.0.5/24"),
        ("ipv4.gateway", "auto", "auto"),
        ("ipv6.gateway", "dev", "dev"),
        ("ipv6.address", "fe80::1", "fe80::1/64"),
        ("ipv6.address", "fd00::1/128", "fd00::1/128"),
        ("veth.mode", "router", "router"),
        ("veth.pair", "vx0", "vx0"),
        ("veth.vlan.id", "none", "-1"),
        ("veth.vlan.id", "0x20", "32"),
        ("veth.vlan.tagged.id", "12", "12"),
        ("veth.ipv4.route", "10.9.0.0/24", "10.9.0.0/24"),
        ("veth.ipv6.route", "fd09::/64", "fd09::/64"),
        ("veth.n_rxqueues", "4", "4"),
    ],
)
def test_the_getter_answers_as_lxcs(key, value, shown):
    config = Config.parse(VETH).set(f"lxc.net.0.{key}", value)
    assert config.get(f"lxc.net.0.{key}") == shown


def test_the_getter_of_lists():
    text = (
        VETH
        + "lxc.net.0.ipv4.address = 10.0.0.5\nlxc.net.0.ipv4.address = 10.1.0.5/24 10.1.0.255\n"
    )
    assert Config.parse(text).get("lxc.net.0.ipv4.address") == "10.0.0.5/8\n10.1.0.5/24"
    assert Config.parse(text + "lxc.net.3.type = none\n").get("lxc.net") == "veth\nnone\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("type = bogus", "not one of none empty veth"),
        ("hwaddr = 00:16:3e", "not a MAC address"),
        ("hwaddr = 00:16:3e:00:00:zz", "not a MAC address"),
        ("ipv4.address = 10.0.0", "not an IPv4 address"),
        ("ipv4.address = 10.0.0.1/33", "not within 0 to 32"),
        ("ipv4.address = 10.0.0.1/", "not within 0 to 32"),
        ("ipv4.address = 10.0.0.1/8 10.0.0", "not an IPv4 address"),
        ("ipv4.address = 10.0.0.1/8  10.0.0.255", "not an IPv4 address"),
        ("ipv4.gateway = fe80::1", "not an IPv4 address"),
        ("ipv6.address = ::1/129", "not within 0 to 128"),
        ("ipv6.gateway = 10.0.0.1", "not an IPv6 address"),
        ("veth.ipv4.route = 10.0.0.0", "a route needs a prefix length"),
        ("veth.vlan.id = 4095", "not within 0 to 4094"),
        ("veth.mode = hub", "not one of bridge router"),
        ("veth.n_rxqueues = 0", "not within 1"),
        ("macvlan.mode = bridge", "it needs type = macvlan"),
        ("vlan.id = 3", "it needs type = vlan"),
        ("name = a/b", "not a name for a network device"),
        ("name = a b", "not a name for a network device"),
    ],
)
def test_refused_lines(line, reason):
    with pytest.raises(errors.ConfigError, match=reason) as caught:
        Config.parse(f"{VETH}lxc.net.0.{line}\n")
    assert caught.value.origin is not None
    assert caught.value.origin.line == 2


def test_loopback_cannot_be_renamed():
    with pytest.raises(errors.ConfigError, match="the device of an empty network is lo"):
        Config.parse("lxc.net.0.type = empty\nlxc.net.0.name = eth0\n")
    assert nics("lxc.net.0.type = empty\nlxc.net.0.name = lo\n")[0].name == "lo"


def test_a_type_wipes_what_was_said_of_the_device():
    (nic,) = nics(
        VETH + "lxc.net.0.veth.pair = vx0\nlxc.net.0.flags = up\nlxc.net.0.type = macvlan\n"
    )
    assert (nic.type, nic.veth_pair, nic.flags, nic.index) == ("macvlan", None, False, 0)


def test_random_digits_of_a_value_by_itself_are_never_multicast():
    for _ in range(50):
        mac = network._parse_mac("xX:16:3e:xx:XX:xx")
        assert int(mac[1], 16) % 2 == 0
        assert (mac[3:8], len(mac), "x" in mac) == ("16:3e", 17, False)


def test_random_digits_are_drawn_once_and_never_multicast():
    for _ in range(50):
        config = Config.parse(VETH + "lxc.net.0.hwaddr = xX:16:3e:xx:XX:xx\n")
        mac = config.get("lxc.net.0.hwaddr")
        assert config.get("lxc.net.0.hwaddr") == mac == config[network.Network].nics[0].hwaddr
        assert int(mac[1], 16) % 2 == 0
        assert (mac[3:8], len(mac), "x" in mac) == ("16:3e", 17, False)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_broadcasts_are_the_networks_last_address(address, prefix):
    (nic,) = nics(f"{VETH}lxc.net.0.ipv4.address = {address}/{prefix}\n")
    net = ipaddress.ip_interface(f"{address}/{prefix}").network
    expected = "" if prefix > 30 else str(net.broadcast_address)
    assert nic.ipv4_address[0].broadcast == expected


@given(
    st.sampled_from(
        ["ipv4.address", "ipv6.address", "hwaddr", "ipv4.gateway", "veth.ipv6.route", "name"]
    ),
    st.text(max_size=40),
)
def test_any_text_is_a_value_or_a_config_error(sub, value):
    config = Config.parse(VETH)
    try:
        changed = config.set(f"lxc.net.0.{sub}", value)
    except errors.ConfigError:
        return
    shown = changed.get(f"lxc.net.0.{sub}")
    if shown:
        assert config.set(f"lxc.net.0.{sub}", shown).get(f"lxc.net.0.{sub}") == shown


# ---------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", True),
        ("lxc.net.0.type = none\n", False),
        ("lxc.net.0.type = none\nlxc.net.1.type = none\n", False),
        ("lxc.net.0.type = none\nlxc.net.1.type = empty\n", True),
        (VETH, True),
    ],
)
def test_who_gets_a_namespace(text, wanted):
    assert network.wants_namespace(Config.parse(text)) is wanted


def test_the_plan_of_a_bridged_veth():
    text = """\
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.net.0.ipv4.address = 10.0.3.5/24
lxc.net.0.ipv4.gateway = auto
lxc.net.0.ipv6.address = fd00::5
lxc.net.0.ipv6.gateway = fd00::1
lxc.net.0.veth.ipv4.route = 10.9.0.0/24
lxc.net.0.script.up = /bin/up
lxc.net.1.type = veth
lxc.net.1.name = mgmt
lxc.net.1.script.down = /bin/down
lxc.net.2.type = macvlan
lxc.net.2.link = eno1
"""
    assert phrases(text) == [
        "find the gateways: ipv4 of lxcbr0",
        "create link vethk3f9x2a00 with its other end eth0 in the container",
        "attach vethk3f9x2a00 to bridge lxcbr0",
        "route 10.9.0.0/24 to vethk3f9x2a00",
        "run the network script /bin/up",
        "create link vethk3f9x2a01 with its other end mgmt in the container",
        "bring up vethk3f9x2a01",
        "have the network script /bin/down run at the end",
        "create macvlan eth1 on eno1 in the container, mode private",
        "bring up lo",
        "add address 10.0.3.5/24 to eth0",
        "add address fd00::5/64 to eth0",
        "bring up eth0",
        "set the ipv4 default route by the found gateway on eth0",
        "set the ipv6 default route by fd00::1 on eth0",
    ]


def test_each_step_knows_its_line():
    text = (
        VETH
        + "lxc.net.0.link = br0\nlxc.net.0.ipv4.address = 10.0.0.1\nlxc.net.0.ipv4.address = 10.0.0.2\n"
    )
    config = Config.parse(text)
    steps = (
        *network.create(config, NO_HOST, start()),
        *network.configure(config, NO_HOST, start()),
    )
    assert [s.origin.line if s.origin else None for s in steps] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("lxc.net.0.type = none\n", {}),
        ("lxc.net.0.type = empty\n", {}),
        (VETH + "lxc.net.0.link = br0\n", {"clone_namespaces": 0}),
    ],
)
def test_nothing_to_do(text, values):
    assert phrases(text, **values) == []


def test_a_namespace_that_init_makes_later_is_ours_too():
    assert phrases(VETH, clone_namespaces=0, later_namespaces=CLONE_NEWNET) != []


def test_empty_with_flags_and_a_device_without_type():
    assert phrases("lxc.net.0.type = empty\nlxc.net.0.flags = up\n") == ["bring up lo"]
    assert phrases("lxc.net.0.flags = up\n") == ["bring up lo"]


def test_names_inside():
    text = "".join(f"lxc.net.{n}.type = veth\n" for n in range(5))
    text += "lxc.net.1.name = eth0\nlxc.net.3.name = wan%d\nlxc.net.4.name = eth2\n"
    assert network._names(nics(text)) == {1: "eth0", 4: "eth2", 0: "eth1", 2: "eth3", 3: "wan0"}


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("lxc.net.0.type = ipvlan\n", "cannot start with lxc.net.0.type: network type ipvlan belongs to a later part of the project", 1),
        ("lxc.net.0.type = vlan\n", "cannot start with lxc.net.0.type: network type vlan belongs to a later part of the project", 1),
        ("lxc.net.0.type = phys\n", "cannot start with lxc.net.0.type: network type phys belongs to a later part of the project", 1),
        (VETH + "lxc.net.0.veth.mode = router\n", "cannot start with lxc.net.0.veth.mode: router mode belongs to a later part of the project", 2),
        (VETH + "lxc.net.0.veth.vlan.id = none\n", "cannot start with lxc.net.0.veth.vlan.id: a VLAN of a bridge port belongs to a later part of the project", 2),
        (VETH + "lxc.net.0.veth.vlan.tagged.id = 3\n", "cannot start with lxc.net.0.veth.vlan.tagged.id: a VLAN of a bridge port belongs to a later part of the project", 2),
        (VETH + "lxc.net.0.link = b\nlxc.net.0.l2proxy = 1\n", "cannot start with lxc.net.0.l2proxy: l2proxy belongs to a later part of the project", 3),
        ("lxc.net.0.type = macvlan\n", "cannot make the macvlan network lxc.net.0: it has no link", 1),
        (VETH + "lxc.net.0.ipv4.gateway = auto\n", "cannot use lxc.net.0.ipv4.gateway = auto: it is the address of a link, and there is none", 2),
        ("lxc.net.0.type = empty\nlxc.net.0.ipv4.gateway = auto\n", "cannot use lxc.net.0.ipv4.gateway = auto: only veth and macvlan networks find it", 2),
        (VETH + "lxc.net.0.ipv4.gateway = dev\n", "cannot use lxc.net.0.ipv4.gateway: the device is not brought up", 2),
        (VETH + "lxc.net.0.flags = up\nlxc.net.0.ipv4.gateway = 10.0.0.1\n", "cannot use lxc.net.0.ipv4.gateway: the device gets no ipv4 address", 3),
        (VETH + "lxc.net.0.name = a\nlxc.net.1.type = veth\nlxc.net.1.name = a\n", "cannot call lxc.net.1 a: lxc.net.0 has that name", 4),
    ],
)  # fmt: skip
def test_refused_plans(text, message, line):
    error = refusal(text)
    assert isinstance(error, errors.ConfigError)
    assert error.message == message
    assert error.origin is not None
    assert error.origin.line == line


def test_a_link_local_gateway_needs_no_address():
    plan = phrases(VETH + "lxc.net.0.flags = up\nlxc.net.0.ipv6.gateway = fe80::1\n")
    assert plan[-1] == "set the ipv6 default route by fe80::1 on eth0"


def test_others_than_root_are_told_what_they_can_do():
    error = refusal(VETH, privileged=False)
    assert isinstance(error, errors.HostError)
    assert "lxc-user-nic" in error.message
    assert (error.missing, error.fix) == ("lxc-user-nic", "lxc.net.0.type = empty, or run as root")
    assert (
        refusal("lxc.net.0.type = macvlan\nlxc.net.0.link = l\n", privileged=False).fix == error.fix
    )
    assert phrases("lxc.net.0.type = empty\nlxc.net.0.flags = up\n", privileged=False) == [
        "bring up lo"
    ]


def test_inverses():
    text = (
        VETH
        + "lxc.net.0.script.up = /u\nlxc.net.0.script.down = /d\nlxc.net.1.type = empty\nlxc.net.1.script.up = /u\n"
    )
    steps = network.create(Config.parse(text), NO_HOST, start())
    backwards = [inverse.explain() if (inverse := s.inverse()) else None for s in steps]
    assert backwards == ["delete link vethk3f9x2a00", None, "run the network script /d", None]


def test_the_hosts_mac_is_the_starts_own():
    macs = {
        veth.mac_of_start(start_id, n)
        for start_id in ("k3f9x2a0", "k3f9x2a1", "0a2x9f3k")
        for n in range(3)
    }
    assert len(macs) == 9
    assert all(mac.startswith("fe:") and len(mac) == 17 for mac in macs)
    assert veth.mac_of_start("k3f9x2a0", 0) == veth.mac_of_start("k3f9x2a0", 0)
