"""Namespace keys, and which namespaces are made, kept and joined: LXC's resolution of clone flags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import host
from atoll.config.text import Config
from atoll.errors import ConfigError, HostError
from atoll.linux import process as p
from atoll.plan import Start
from atoll.resources import namespaces as ns

HOST = host.probe().replace(namespaces=frozenset(ns.NAMES))
ALWAYS = p.CLONE_NEWNS | p.CLONE_NEWPID | p.CLONE_NEWUTS | p.CLONE_NEWIPC
START = Start(name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",))


def decide(
    text: str = "",
    *,
    id_mapped: bool = False,
    net: bool = True,
    layout: str = "hybrid",
    **facts: object,
) -> ns.Decision:
    return ns.decide(
        Config.parse(text),
        HOST.replace(**facts),
        id_mapped=id_mapped,
        net_wanted=net,
        layout=layout,
    )


# ------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize(
    ("value", "shown"),
    # Observed with lxc-info -c of 5.0.2.
    [("5 s", "5 s\n"), ("-5s", "-5 s\n"), ("+5s", "5 s\n"), ("5ms", "5000000 ns\n"), ("010s", "10 s\n"),
     ("5000ms", "5000000000 ns\n"), ("1h", "3600 s\n"), ("2m", "120 s\n"), ("5 h", "18000 s\n")],
)  # fmt: skip
def test_boot_offset_is_given_back_as_lxc_does(value: str, shown: str) -> None:
    assert Config.parse(f"lxc.time.offset.boot = {value}\n").get("lxc.time.offset.boot") == shown


def test_monotonic_offset_has_no_space() -> None:
    assert (
        Config.parse("lxc.time.offset.monotonic = 5s\n").get("lxc.time.offset.monotonic") == "5s\n"
    )
    assert Config.empty().get("lxc.time.offset.monotonic") == "0ns\n"
    assert Config.empty().get("lxc.time.offset.boot") == "0 ns\n"


@pytest.mark.parametrize(
    "value",
    [
        "5  s",
        "5S",
        "0x5s",
        "5 ms",
        "s",
        "5",
        "9999999999999999999s",
        "9223372036854775807h",
        "-5ms",
        "5x",
        "²s",
    ],
)
def test_offset_is_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        Config.parse(f"lxc.time.offset.boot = {value}\n")


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_offset_round_trip(seconds: int) -> None:
    offset = ns.TimeOffset(seconds=seconds)
    assert ns.parse_offset(ns.show_offset(offset)) == offset


@given(st.text())
def test_offset_parser_fails_only_with_value_error(value: str) -> None:
    try:
        ns.parse_offset(value)
    except ValueError as error:
        assert str(error).islower()  # noqa: PT017 - either end is right


@given(st.integers(0, (1 << 62)))
def test_timespec_is_what_the_kernel_takes(nanoseconds: int) -> None:
    seconds, rest = ns.TimeOffset(nanoseconds=nanoseconds).timespec
    assert 0 <= rest < 1_000_000_000
    assert seconds * 1_000_000_000 + rest == nanoseconds


def test_names_are_given_back_in_table_order() -> None:
    config = Config.parse("lxc.namespace.keep = net\tIPC net\nlxc.namespace.keep = pid\n")
    assert config.get("lxc.namespace.keep") == "pid\nipc\nnet\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lxc.namespace.keep = foo", 'invalid namespace name "foo"'),
        ("lxc.namespace.keep = net,ipc", 'invalid namespace name "net,ipc"'),
        ("lxc.namespace.share.foo = 1", 'invalid namespace name "foo"'),
        ("lxc.namespace.share.NET = 1", 'invalid namespace name "NET"'),
        ("lxc.namespace.keep = net\nlxc.namespace.clone = pid", "cannot set both"),
        ("lxc.namespace.clone = net\nlxc.namespace.keep = pid", "cannot set both"),
        (f"lxc.uts.name = {'x' * 65}", "longer than 64"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(text + "\n")


# --------------------------------------------------------------------------------------- decision
def test_default() -> None:
    assert decide() == ns.Decision(clone=ALWAYS | p.CLONE_NEWNET, later=p.CLONE_NEWCGROUP)


def test_pure_cgroup2_clones_the_cgroup_namespace() -> None:
    made = decide(layout="unified")
    assert made == ns.Decision(clone=ALWAYS | p.CLONE_NEWNET | p.CLONE_NEWCGROUP, later=0)


def test_id_map_makes_net_later() -> None:
    made = decide(id_mapped=True, layout="unified")
    assert made.clone == ALWAYS | p.CLONE_NEWUSER | p.CLONE_NEWCGROUP
    assert made.later == p.CLONE_NEWNET


def test_only_none_links_keep_the_network() -> None:
    assert not (decide(net=False).clone | decide(net=False).later) & p.CLONE_NEWNET


def test_offset_makes_a_time_namespace_later() -> None:
    assert decide("lxc.time.offset.boot = 5s\n").later == p.CLONE_NEWCGROUP | p.CLONE_NEWTIME


def test_keep_makes_all_others_but_user_without_a_map() -> None:
    made = decide("lxc.namespace.keep = net\n")
    assert made.clone == ALWAYS
    assert made.later == p.CLONE_NEWCGROUP | p.CLONE_NEWTIME
    assert decide("lxc.namespace.keep = net\n", id_mapped=True).clone & p.CLONE_NEWUSER


def test_clone_makes_exactly_those() -> None:
    assert decide("lxc.namespace.clone = pid mnt\n") == ns.Decision(
        clone=p.CLONE_NEWPID | p.CLONE_NEWNS, later=0
    )


def test_share_is_joined_and_not_made() -> None:
    made = decide("lxc.namespace.share.net = other\nlxc.namespace.share.uts = /proc/1/ns/uts\n")
    assert made.clone == ALWAYS & ~p.CLONE_NEWUTS
    assert [(name, value) for name, value, _ in made.shared] == [
        ("uts", "/proc/1/ns/uts"), ("net", "other"),
    ]  # fmt: skip
    assert made.shared_flags == p.CLONE_NEWUTS | p.CLONE_NEWNET
    assert [origin.line for _, _, origin in made.shared if origin] == [2, 1]


@pytest.mark.parametrize(
    ("text", "id_mapped", "message"),
    [
        (
            "lxc.namespace.keep = time\nlxc.time.offset.boot = 5s",
            False,
            "keeps the caller's time namespace",
        ),
        (
            "lxc.namespace.keep = user",
            True,
            "cannot use lxc.idmap: the container has no user namespace",
        ),
        (
            "lxc.namespace.clone = pid mnt",
            True,
            "cannot use lxc.idmap: the container has no user namespace",
        ),
        ("lxc.namespace.clone = user pid", False, "there is no lxc.idmap"),
    ],
)
def test_contradictions(text: str, id_mapped: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        decide(text + "\n", id_mapped=id_mapped)
    assert caught.value.fix


def test_kernel_without_a_namespace() -> None:
    without = HOST.namespaces - {"cgroup", "time"}
    assert decide(namespaces=without).later == 0
    assert decide("lxc.namespace.keep = net\n", namespaces=without).later == 0
    with pytest.raises(HostError, match="cannot make a time namespace: this kernel has none"):
        decide("lxc.time.offset.boot = 5s\n", namespaces=without)
    with pytest.raises(HostError, match="cannot make a cgroup namespace"):
        decide("lxc.namespace.clone = cgroup\n", namespaces=without)


def test_shared_names_become_paths() -> None:
    decision = decide(
        "lxc.namespace.share.net = c2\nlxc.namespace.share.ipc = 77\nlxc.namespace.share.uts = /run/x\n"
    )
    found = ns.resolve_shared(decision, {"c2": 42}.get)
    assert [(n.name, n.path) for n in found] == [
        ("uts", "/run/x"), ("ipc", "/proc/77/ns/ipc"), ("net", "/proc/42/ns/net"),
    ]  # fmt: skip


def test_shared_container_must_run() -> None:
    decision = decide("lxc.namespace.share.net = nosuch\n")
    with pytest.raises(ConfigError, match="of container nosuch: it is not running") as caught:
        ns.resolve_shared(decision, lambda _name: None)
    assert str(caught.value.origin) == "config:1"


# ------------------------------------------------------------------------------------------ plans
def test_host_name_only_in_an_own_uts_namespace() -> None:
    config = Config.parse("lxc.uts.name = box\n")
    own = START.replace(clone_namespaces=p.CLONE_NEWUTS)
    assert [s.explain() for s in ns.hostname(config, HOST, own)] == ["set the host name to box"]
    assert ns.hostname(config, HOST, START) == ()
    assert ns.hostname(Config.empty(), HOST, own) == ()


def test_later_namespaces_in_order() -> None:
    config = Config.parse("lxc.time.offset.boot = -5s\nlxc.time.offset.monotonic = 1500ms\n")
    start = START.replace(later_namespaces=p.CLONE_NEWTIME | p.CLONE_NEWCGROUP | p.CLONE_NEWNET)
    steps = [*ns.unshare_net(config, HOST, start), *ns.unshare_later(config, HOST, start)]
    assert [step.explain() for step in steps] == [
        "make a network namespace",
        "make a cgroup namespace",
        "make a time namespace with offsets boot -5 s, monotonic 1.500000000 s",
    ]


def test_descriptors_are_kept_when_their_namespace_exists() -> None:
    start = START.replace(
        clone_namespaces=p.CLONE_NEWPID | p.CLONE_NEWUSER,
        later_namespaces=p.CLONE_NEWNET | p.CLONE_NEWCGROUP,
    )
    kept = [f(Config.empty(), HOST, start) for f in (ns.keep, ns.keep_net, ns.keep_later)]
    assert [step.explain() for steps in kept for step in steps] == [
        "keep descriptors of init's namespaces: user pid",
        "keep descriptors of init's later namespaces: net",
        "keep descriptors of init's later namespaces: cgroup",
    ]
