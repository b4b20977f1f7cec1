"""Namespaces on the real kernel: kept, joined, made later, with a host name and clock offsets."""

from __future__ import annotations

import os
import time

import pytest

from abilities import needs
from atoll import host
from atoll.config.text import Config
from atoll.errors import ConfigError
from atoll.linux import process as p
from atoll.plan import NAMESPACES, Handler, Start
from atoll.resources import namespaces as ns
from privileged.stepping import in_child

HOST = host.probe()
START = Start(name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",))


def own(name: str) -> str:
    return os.readlink(f"/proc/self/ns/{name}")


def all_own(_h: Handler) -> str:
    return " ".join(own(name) for name in ns.NAMES)


@pytest.mark.isolated
def test_host_name_and_network_of_its_own() -> None:
    outside = os.uname().nodename, own("net")
    start = START.replace(clone_namespaces=p.CLONE_NEWUTS, later_namespaces=p.CLONE_NEWNET)
    config = Config.parse("lxc.uts.name = inside\n")
    steps = [*ns.unshare_net(config, HOST, start), *ns.hostname(config, HOST, start)]
    answer = in_child(steps, lambda _h: f"{os.uname().nodename} {own('net')}", flags=p.CLONE_NEWUTS)
    assert answer.startswith("inside net:")
    assert answer.split()[1] != outside[1]
    assert (os.uname().nodename, own("net")) == outside


@pytest.mark.isolated
@needs("timens")
def test_clock_offsets() -> None:
    config = Config.parse("lxc.time.offset.boot = 100000s\nlxc.time.offset.monotonic = 7000000ms\n")
    start = START.replace(later_namespaces=p.CLONE_NEWTIME | p.CLONE_NEWCGROUP)

    def look(_h: Handler) -> str:
        boot, monotonic = (
            time.clock_gettime(time.CLOCK_BOOTTIME),
            time.clock_gettime(time.CLOCK_MONOTONIC),
        )
        with open("/proc/self/timens_offsets") as file:
            lines = [" ".join(line.split()) for line in file]
        return f"{int(boot)} {int(monotonic)} {own('time')} {own('cgroup')} {lines}"

    before = time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC)
    boot, monotonic, time_ns, cgroup_ns, lines = in_child(
        ns.unshare_later(config, HOST, start), look
    ).split(" ", 4)
    after = time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC)
    assert int(before[0]) + 100000 <= int(boot) <= after[0] + 100000
    assert int(before[1]) + 7000 <= int(monotonic) <= after[1] + 7000
    assert time_ns != own("time")
    assert cgroup_ns != own("cgroup")
    assert lines == "['monotonic 7000 0', 'boottime 100000 0']"


@pytest.mark.isolated
def test_descriptors_are_those_of_init() -> None:
    start = START.replace(
        clone_namespaces=p.CLONE_NEWPID | p.CLONE_NEWUTS | p.CLONE_NEWIPC,
        later_namespaces=p.CLONE_NEWNET,
    )
    kept: dict[str, str] = {}
    config = Config.empty()

    def watch(h: Handler) -> None:
        for name, fd in h[NAMESPACES].items():
            kept[name] = os.readlink(fd.path)
            assert not os.get_inheritable(fd.fileno())

    # The child makes its network namespace only after this, so keep_net must come later in a start.
    monitor = [*ns.keep(config, HOST, start), *ns.keep_net(config, HOST, start)]
    answer = in_child(
        (), all_own, flags=start.clone_namespaces, monitor=monitor, watch=watch
    ).split()
    inside = dict(zip(ns.NAMES, answer, strict=True))
    assert kept == {name: inside[name] for name in ("pid", "uts", "ipc", "net")}
    assert kept["uts"] != own("uts")
    assert list(kept) == ["pid", "uts", "ipc", "net"]


def shared(text: str) -> list[ns.OpenSharedNamespaces]:
    config = Config.parse(text)
    decision = ns.decide(config, HOST, id_mapped=False, net_wanted=True, layout="hybrid")
    steps = ns.open_shared(config, HOST, START, ns.resolve_shared(decision, lambda _name: None))
    return [step for step in steps if isinstance(step, ns.OpenSharedNamespaces)]


@pytest.mark.isolated
def test_shared_namespaces_are_opened_in_the_order_to_join_them() -> None:
    handler = Handler()
    (step,) = shared("lxc.namespace.share.net = /proc/self/ns/net\nlxc.namespace.share.uts = 1\n")
    step.apply(handler)
    opened = handler[ns.SHARED_FDS]
    assert [(s.name, s.flag, os.readlink(s.fd.path)) for s in opened] == [
        ("uts", p.CLONE_NEWUTS, os.readlink("/proc/1/ns/uts")), ("net", p.CLONE_NEWNET, own("net")),
    ]  # fmt: skip
    handler.close()
    assert all(s.fd.closed for s in opened)


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/nonexistent", "cannot share the net namespace /nonexistent: there is no such file"),
        (
            "4194304",
            "cannot share the net namespace /proc/4194304/ns/net: there is no such process",
        ),
        (
            "/proc/self/ns/uts",
            "cannot share the net namespace /proc/self/ns/uts: it is a uts namespace",
        ),
        ("/etc/passwd", "cannot share the net namespace /etc/passwd: it is none"),
    ],
)
def test_what_cannot_be_shared(value: str, message: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (step,) = shared(
        f"lxc.namespace.share.uts = /proc/self/ns/uts\nlxc.namespace.share.net = {value}\n"
    )
    with pytest.raises(ConfigError) as caught:
        step.apply(Handler())
    assert caught.value.message == message
    assert str(caught.value.origin) == "config:2"
    caught.value.__traceback__ = None
    assert len(os.listdir("/proc/self/fd")) == before
