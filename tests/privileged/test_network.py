"""Links on a real kernel, with `ip` (another implementation of rtnetlink) looking on."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from typing import Any

import pyroute2
import pytest

from abilities import needs
from atoll import errors
from atoll.config.text import Config
from atoll.executor import Journal, decode, encode, run
from atoll.host import probe
from atoll.linux import libc, netlink, process
from atoll.linux.files import OwnedFd
from atoll.linux.netlink import AF_INET, AF_INET6, Netlink
from atoll.plan import CHILD, HOOK_ENVIRONMENT, NAMESPACES, Handler, InitStep, Phase, Plan, Start
from atoll.resources import network
from atoll.resources.network import links, veth

pytestmark = [needs("veth", "bridge", "iproute2"), pytest.mark.isolated()]

START_ID = "k3f9x2a0"
VETH = """\
lxc.net.0.type = veth
lxc.net.0.link = br0
lxc.net.0.flags = up
lxc.net.0.hwaddr = 00:16:3e:aa:bb:cc
lxc.net.0.mtu = 1400
lxc.net.0.ipv4.address = 10.0.3.77/24
lxc.net.0.ipv4.gateway = auto
lxc.net.0.ipv6.address = fd00::2/64
lxc.net.0.ipv6.gateway = fd00::1
lxc.net.0.veth.ipv4.route = 10.9.0.0/24
"""


def ip(*arguments: str) -> list[dict]:
    done = subprocess.run(
        ["ip", "-j", "-d", *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout) if done.stdout.strip() else []


def names() -> list[str]:
    return sorted(entry["ifname"] for entry in ip("link"))


def add_bridge(name="br0", address="10.0.3.1/24", mtu="1500"):
    subprocess.run(["ip", "link", "add", name, "mtu", mtu, "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", address, "dev", name], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)


class Container:
    """A process in a network namespace of its own, and the handler of a monitor that started it."""

    def __init__(self, text: str, **start: Any) -> None:
        self.reports: list[tuple[int, str]] = []
        self.h = Handler(report=lambda level, text: self.reports.append((level, text)))
        self.child = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE
        )
        assert self.child.stdout is not None
        self.child.stdout.readline()
        self.pid = self.child.pid
        self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.h[NAMESPACES] = {"net": OwnedFd(self.fd)}
        self.h[CHILD] = process.Child(pid=self.pid, pidfd=process.pidfd_open(self.pid))
        self.h[HOOK_ENVIRONMENT] = {"PATH": os.environ["PATH"], "LXC_NAME": "c1"}
        self.config = Config.parse(text)
        given: dict[str, Any] = {
            "name": "c1", "lxcpath": "/x", "start_id": START_ID, "began": 0.0, "argv": ("/init",),
            "clone_namespaces": process.CLONE_NEWNET, **start,
        }  # fmt: skip
        self.start = Start(**given)
        self.journal = Journal()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        if self.child.stdout:
            self.child.stdout.close()
        self.h.close()

    def plan(self) -> Plan:
        c = (self.config, probe(), self.start)
        prepare, create, configure = network.prepare(*c), network.create(*c), network.configure(*c)
        return Plan(
            name="start c1",
            phases=(
                Phase(name="prepare", monitor=prepare),
                Phase(name="network", monitor=create),
                Phase(name="rootfs", init=configure),
            ),
        )

    def up(self):
        places = self.plan().placed()
        host = [p for p in places if not isinstance(p.step, InitStep)]
        inside = [p for p in places if isinstance(p.step, InitStep)]
        try:
            run(host, self.h, total=len(places), journal=self.journal)
            self.inside(lambda: run(inside, self.h, total=len(places)))
        except BaseException:
            self.restored = self.journal.unwind(self.h)
            raise

    def inside(self, work):
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            process.setns(self.fd, process.CLONE_NEWNET)
            try:
                return work()
            finally:
                process.setns(home, process.CLONE_NEWNET)
        finally:
            os.close(home)

    def down(self):
        return self.journal.unwind(self.h)


def test_veth_on_a_bridge_from_birth_to_death():
    add_bridge()
    with Container(VETH) as c:
        c.up()
        mine = f"veth{START_ID}0"
        (host,) = ip("link", "show", mine)
        assert host["master"] == "br0"
        assert host["address"].startswith("fe:")
        assert (host["mtu"], "UP" in host["flags"]) == (1400, True)
        with open(f"/proc/sys/net/ipv6/conf/{mine}/disable_ipv6") as file:
            assert file.read() == "1\n"
        assert [r["dst"] for r in ip("route", "show", "dev", mine)] == ["10.9.0.0/24"]

        inner = c.inside(lambda: {link["ifname"]: link for link in ip("addr")})
        assert sorted(inner) == ["eth0", "lo"]
        eth0 = inner["eth0"]
        assert (eth0["address"], eth0["mtu"], "UP" in eth0["flags"]) == (
            "00:16:3e:aa:bb:cc",
            1400,
            True,
        )
        assert "UP" in inner["lo"]["flags"]
        found = {
            (a["local"], a["prefixlen"], a.get("broadcast"))
            for a in eth0["addr_info"]
            if a["scope"] == "global"
        }
        assert found == {("10.0.3.77", 24, "10.0.3.255"), ("fd00::2", 64, None)}
        (route,) = c.inside(lambda: ip("route", "show", "default"))
        assert (route["gateway"], route["protocol"], route["scope"]) == (
            "10.0.3.1",
            "boot",
            "global",
        )
        (route,) = c.inside(lambda: ip("-6", "route", "show", "default"))
        assert route["gateway"] == "fd00::1"

        restored = c.down()
        assert (restored.total, restored.undone) == (1, 1)
        assert names() == ["br0", "lo"]


def test_a_bridge_port_with_ipv6_routes_keeps_ipv6():
    add_bridge()
    with Container(VETH + "lxc.net.0.veth.ipv6.route = fd09::/64\n") as c:
        c.up()
        dev = ("dev", f"veth{START_ID}0")
        assert "fd09::/64" in [r["dst"] for r in ip("-6", "route", "show", *dev)]


def test_the_configured_pair_name_and_what_a_running_container_answers():
    text = "lxc.net.0.type = veth\nlxc.net.0.veth.pair = mine0\nlxc.net.1.type = veth\nlxc.net.2.type = empty\n"
    with Container(text) as c:
        c.up()
        assert names() == ["lo", "mine0", f"veth{START_ID}1"]
        answers = [network.running_pair_name(c.config, c.start, number) for number in range(3)]
        assert answers == ["mine0", f"veth{START_ID}1", None]
        assert c.inside(names) == ["eth0", "eth1", "lo"]


def test_queues_of_the_container_are_swapped_on_the_host():
    text = "lxc.net.0.type = veth\nlxc.net.0.veth.n_rxqueues = 3\nlxc.net.0.veth.n_txqueues = 2\n"
    with Container(text) as c:
        c.up()
        (host,) = ip("link", "show", f"veth{START_ID}0")
        (inner,) = c.inside(lambda: ip("link", "show", "eth0"))
        assert (inner["num_rx_queues"], inner["num_tx_queues"]) == (3, 2)
        assert (host["num_rx_queues"], host["num_tx_queues"]) == (2, 3)


def test_the_mtu_is_the_bridges_where_none_is_given():
    add_bridge(mtu="1300")
    with Container("lxc.net.0.type = veth\nlxc.net.0.link = br0\n") as c:
        c.up()
        assert ip("link", "show", f"veth{START_ID}0")[0]["mtu"] == 1300
        assert c.inside(lambda: ip("link", "show", "eth0"))[0]["mtu"] == 1300


def test_a_missing_bridge_is_named_with_those_that_exist():
    add_bridge("br7")
    with Container("lxc.net.0.type = veth\nlxc.net.0.link = lxcbr0\n") as c:
        with pytest.raises(errors.StepError) as caught:
            c.up()
        error = caught.value
        assert str(error) == f"cannot attach veth{START_ID}0 to bridge lxcbr0: no such device"
        assert error.fix is not None
        assert "bridges here: br7" in error.fix
        assert "lxc.net.0.type = empty" in error.fix
        assert (error.step, error.errno) == ("AttachBridge", errno.ENODEV)
        assert str(error.origin) == "config:2"
        assert error.call == "rtnetlink(7): RTM_GETLINK link=lxcbr0"
        assert (c.restored.total, c.restored.undone) == (1, 1)
        assert names() == ["br7", "lo"]


def test_a_link_that_is_no_bridge():
    subprocess.run(["ip", "link", "add", "va", "type", "veth", "peer", "name", "vb"], check=True)
    with Container("lxc.net.0.type = veth\nlxc.net.0.link = va\n") as c:
        with pytest.raises(
            errors.StepError, match=f"^cannot attach veth{START_ID}0 to bridge va: va is no bridge$"
        ) as caught:
            c.up()
        assert caught.value.fix is not None
        assert "there is no bridge here" in caught.value.fix
        assert names() == ["lo", "va", "vb"]


def test_a_taken_pair_name_stays_what_it_was():
    add_bridge("mine0")
    with Container("lxc.net.0.type = veth\nlxc.net.0.veth.pair = mine0\n") as c:
        with pytest.raises(errors.StepError) as caught:
            c.up()
        assert str(caught.value) == "cannot create link mine0: the host has a bridge of that name"
        assert caught.value.fix is not None
        assert "ip link delete mine0" in caught.value.fix
        assert (c.restored.total, str(caught.value.origin)) == (0, "config:2")
        assert names() == ["lo", "mine0"]


def test_taking_back_spares_a_link_of_that_name_that_is_not_ours():
    add_bridge("mine0")
    with Container("lxc.net.0.type = veth\nlxc.net.0.veth.pair = mine0\n") as c:
        (create, _up) = network.create(c.config, probe(), c.start)
        made = create.inverse()
        assert made is not None
        inverse = decode(*encode(made).split("\t"))
        assert inverse == made
        assert not inverse.recognise(0.0)
        inverse.apply(c.h)
        assert names() == ["lo", "mine0"]
        assert [text for _level, text in c.reports] == [
            "mine0 is not the link of this start any more: it stays"
        ]
        subprocess.run(["ip", "link", "del", "mine0"], check=True)
        assert not inverse.recognise(0.0)
        create.apply(c.h)
        assert inverse.recognise(0.0)
        inverse.apply(c.h)
        inverse.apply(c.h)
        assert names() == ["lo"]


def test_deletion_is_seen_at_once_and_leaves_no_process():
    with Container("lxc.net.0.type = veth\n") as c:
        c.up()
        assert c.down().undone == 1
        assert names() == ["lo"]
        assert c.inside(names) == ["lo"]
        (deletion,) = c.h[network.LINK_DELETIONS]
        # What the child inherited it has closed: a listening socket or a pipe would live on in it.
        assert len(os.listdir(f"/proc/{deletion.pid}/fd")) <= 1
        deletion.close()
        deletion.close()
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            assert file.read().split() == [str(c.pid)]


def test_deletion_without_a_process_to_spare_is_complete(monkeypatch):
    def refuse(*_arguments, **_options):
        raise BlockingIOError(errno.EAGAIN, "no process")

    with Container("lxc.net.0.type = veth\n") as c:
        c.up()
        monkeypatch.setattr(process, "clone", refuse)
        assert c.down().undone == 1
        assert network.LINK_DELETIONS not in c.h
        assert names() == ["lo"]


@pytest.mark.parametrize("ending", [lambda: os.kill(os.getpid(), 9), lambda: os._exit(0)])
def test_a_deleting_child_that_is_killed_is_replaced(monkeypatch, ending):
    with Netlink() as kernel:
        kernel.create_veth("va", peer="vb")
        index = kernel.link_index("va")
        clone = process.clone
        killed = ending.__code__.co_names[0:2] == ("os", "kill")
        monkeypatch.setattr(process, "clone", lambda _entry: clone(ending))
        assert netlink.delete_link_quickly(index) is None
        # A child that says it did it is believed; one that was killed is not.
        assert ("va" in names()) is not killed


def test_deletion_of_what_is_gone_is_the_kernels_error():
    with pytest.raises(OSError) as caught:
        netlink.delete_link_quickly(4711)
    assert caught.value.errno == errno.ENODEV
    assert caught.value.__notes__ == ["rtnetlink(7): RTM_DELLINK link=4711"]


SCRIPT = """\
lxc.net.0.script.up = {0} up-word
lxc.net.0.script.down = {0} down-word
"""


def write_script(tmp_path, extra=""):
    path = tmp_path / "script"
    path.write_text(f'#!/bin/sh\n(echo "$*"; env | grep ^LXC | sort) >> {tmp_path}/log\n{extra}\n')
    path.chmod(0o755)
    return path


def test_scripts_get_lxcs_arguments_and_environment(tmp_path):
    add_bridge()
    script = write_script(tmp_path)
    with Container("lxc.net.0.type = veth\nlxc.net.0.link = br0\n" + SCRIPT.format(script)) as c:
        c.up()
        assert c.down().undone == 2
        mine, net = f"veth{START_ID}0", f"LXC_NET_NS=/proc/{os.getpid()}/fd/{c.fd}"
        assert (tmp_path / "log").read_text().splitlines() == [
            f"up-word c1 net up veth br0 {mine}", "LXC_NAME=c1", f"LXC_PID={c.pid}",
            f"down-word c1 net down veth br0 {mine}", "LXC_NAME=c1", net, f"LXC_PID={c.pid}",
        ]  # fmt: skip


def test_version_1_scripts_find_the_rest_in_the_environment(tmp_path):
    script = write_script(tmp_path)
    text = "lxc.hook.version = 1\nlxc.net.0.type = veth\n" + SCRIPT.format(script)
    with Container(text) as c:
        c.up()
        mine = f"veth{START_ID}0"
        assert (tmp_path / "log").read_text().splitlines() == [
            f"up-word veth {mine}", "LXC_HOOK_SECTION=net", "LXC_HOOK_TYPE=up", "LXC_NAME=c1",
            "LXC_NET_PARENT=", f"LXC_NET_PEER={mine}", "LXC_NET_TYPE=veth", f"LXC_PID={c.pid}",
        ]  # fmt: skip


def test_a_failing_up_script_fails_the_start_and_the_link_goes(tmp_path):
    script = write_script(tmp_path, "echo not today; exit 3")
    with Container("lxc.net.0.type = veth\n" + SCRIPT.format(script)) as c:
        with pytest.raises(errors.StepError) as caught:
            c.up()
        assert (
            str(caught.value)
            == f"cannot run the network script {script} up-word: exited with status 3: not today"
        )
        assert str(caught.value.origin) == "config:2"
        assert names() == ["lo"]
        assert "down-word" not in (tmp_path / "log").read_text()


def test_a_failing_down_script_hinders_nothing(tmp_path):
    script = write_script(tmp_path, '[ "$1" = up-word ] || exit 3')
    with Container("lxc.net.0.type = veth\n" + SCRIPT.format(script)) as c:
        c.up()
        assert c.down().problems == ()
        assert [text for level, text in c.reports if level == 5] == [
            f"cannot run the network script {script} down-word: exited with status 3"
        ]
        assert names() == ["lo"]


def test_empty_brings_up_loopback_and_nothing_else(tmp_path):
    script = write_script(tmp_path)
    with Container("lxc.net.0.type = empty\nlxc.net.0.flags = up\n" + SCRIPT.format(script)) as c:
        c.up()
        (lo,) = c.inside(lambda: ip("addr"))
        assert [a["local"] for a in lo["addr_info"]] == ["127.0.0.1", "::1"]
        assert (tmp_path / "log").read_text().splitlines()[0] == "up-word c1 net up empty"


def test_empty_without_flags_leaves_loopback_down():
    with Container("lxc.net.0.type = empty\n") as c:
        c.up()
        (lo,) = c.inside(lambda: ip("addr"))
        assert lo["addr_info"] == []


@needs("macvlan")
def test_macvlan_is_born_in_the_container():
    add_bridge("low")
    text = "lxc.net.0.type = macvlan\nlxc.net.0.link = low\nlxc.net.0.macvlan.mode = bridge\n"
    with Container(
        text
        + "lxc.net.0.flags = up\nlxc.net.0.ipv4.address = 10.0.3.9/24\nlxc.net.0.ipv4.gateway = auto\n"
    ) as c:
        c.up()
        assert names() == ["lo", "low"]
        (link,) = c.inside(lambda: ip("link", "show", "eth0"))
        assert (link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]) == (
            "macvlan",
            "bridge",
        )
        assert c.inside(lambda: ip("route", "show", "default"))[0]["gateway"] == "10.0.3.1"


def test_a_gateway_outside_every_network_is_reached_through_the_device():
    text = "lxc.net.0.type = veth\nlxc.net.0.flags = up\n"
    text += "lxc.net.0.ipv4.address = 10.7.0.2/32\nlxc.net.0.ipv4.gateway = 10.1.1.1\n"
    text += "lxc.net.0.ipv6.address = fd07::2/128\nlxc.net.0.ipv6.gateway = fd01::1\n"
    with Container(text) as c:
        c.up()
        routes = {r["dst"]: r.get("gateway") for r in c.inside(lambda: ip("route"))}
        assert routes == {"default": "10.1.1.1", "10.1.1.1": None}
        routes = {r["dst"]: r.get("gateway") for r in c.inside(lambda: ip("-6", "route"))}
        assert (routes["default"], routes["fd01::1"]) == ("fd01::1", None)


def test_a_gateway_that_is_a_device():
    text = "lxc.net.0.type = veth\nlxc.net.0.flags = up\n"
    text += "lxc.net.0.ipv4.address = 10.7.0.2/16\nlxc.net.0.ipv4.gateway = dev\n"
    with Container(text) as c:
        c.up()
        (route,) = c.inside(lambda: ip("route", "show", "default"))
        assert (route["dev"], route["scope"], "gateway" in route) == ("eth0", "global", False)


def test_a_second_default_route_is_refused_with_its_line():
    text = "".join(
        f"lxc.net.{n}.type = veth\nlxc.net.{n}.flags = up\nlxc.net.{n}.ipv4.address = 10.{n}.0.2/16\n"
        f"lxc.net.{n}.ipv4.gateway = 10.{n}.0.1\n"
        for n in range(2)
    )
    with Container(text) as c:
        with pytest.raises(
            errors.StepError,
            match=r"^cannot set the ipv4 default route by 10\.1\.0\.1 on eth1: file exists$",
        ) as caught:
            c.up()
        assert str(caught.value.origin) == "config:8"
        assert names() == ["lo"]


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("br0", "cannot find the ipv6 gateway: br0 has no ipv6 address"),
        ("nil0", "cannot find the ipv6 gateway: nil0: no such device"),
    ],
)
def test_gateways_that_cannot_be_found(link, message):
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    text = f"lxc.net.0.type = veth\nlxc.net.0.link = {link}\nlxc.net.0.flags = up\n"
    with Container(text + "lxc.net.0.ipv6.address = fd00::2\nlxc.net.0.ipv6.gateway = auto\n") as c:
        with pytest.raises(errors.StepError) as caught:
            c.up()
        assert (str(caught.value), str(caught.value.origin)) == (message, "config:5")


def test_a_peer_of_a_namespace_that_is_gone_leaves_nothing():
    with Container("lxc.net.0.type = veth\n") as c:
        (create, _up) = network.create(c.config, probe(), c.start)
        with open("/dev/null", "rb") as no_namespace:
            c.h.take(NAMESPACES)
            c.h[NAMESPACES] = {"net": OwnedFd(os.dup(no_namespace.fileno()))}
            with pytest.raises(OSError) as caught:
                create.apply(c.h)
        os.close(c.fd)
        assert caught.value.errno == errno.EINVAL
        assert names() == ["lo"]


def test_every_request_that_fails_leaves_nothing(monkeypatch):
    """Fail the first request, the second, … of a start with two networks, until none is left to fail."""
    add_bridge()
    text = VETH + "lxc.net.0.veth.ipv6.route = fd09::/64\n"
    text += "lxc.net.1.type = veth\nlxc.net.1.veth.pair = mine0\nlxc.net.1.flags = up\n"
    requests: list[str] = []

    def fail_after(spared: int):
        def observer(name, args):
            if name == "netlink":
                requests.append(args[0])
                if len(requests) == spared + 1:
                    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        return observer

    failures = 0
    while True:
        requests.clear()
        with Container(text) as c:
            monkeypatch.setattr(libc, "observer", fail_after(failures))
            try:
                c.up()
                break
            except errors.StepError as error:
                told = (error.errno, error.call)
            finally:
                monkeypatch.setattr(libc, "observer", None)
            assert told == (errno.ENOMEM, f"rtnetlink(7): {requests[failures]}")
            assert names() == ["br0", "lo"]
        failures += 1
    assert failures == 12


# ----------------------------------------------------------------------------------- linux/netlink


def test_the_kernels_own_words_are_in_the_note():
    with Netlink() as kernel, pytest.raises(OSError) as caught:
        kernel.create_link("x0", "nosuchkind")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert caught.value.__notes__ == [
        "rtnetlink(7): RTM_NEWLINK nosuchkind x0 lower=0 netns=None mtu=0: Unknown device type"
    ]


def test_errors_are_of_the_builtin_classes():
    with Netlink() as kernel:
        kernel.create_veth("va", peer="vb")
        with pytest.raises(FileExistsError):
            kernel.create_veth("va", peer="vc")
        with pytest.raises(FileExistsError):
            kernel.create_veth("vd", peer="vb")
        assert names() == ["lo", "va", "vb"]
        with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
            kernel.link_index("nil0")


def test_every_link_as_ip_lists_it():
    add_bridge()
    with Netlink() as kernel:
        kernel.create_veth("va", peer="vb", mac="fe:00:00:00:00:01", mtu=1400)
        index = kernel.link_index("va")
        kernel.set_link(index, master=kernel.link_index("br0"), up=True, alias="ours")
        seen = {link.name: link for link in kernel.links()}
        listed = {entry["ifname"]: entry for entry in ip("link")}
        assert sorted(seen) == sorted(listed)
        for name, entry in listed.items():
            link = seen[name]
            kind = entry.get("linkinfo", {}).get("info_kind", "")
            assert (link.index, link.kind, link.mac) == (entry["ifindex"], kind, entry["address"])
            assert (link.mtu, link.up) == (entry["mtu"], "UP" in entry["flags"])
        assert (seen["va"].master, seen["va"].alias) == (seen["br0"].index, "ours")
        assert seen["va"].peer == seen["vb"].index
        assert seen["lo"].master == 0
        kernel.set_link(index, name="vz", up=False, mtu=1200, master=0, mac="fe:00:00:00:00:02")
        changed = kernel.link(index)
        assert (changed.name, changed.up, changed.mtu, changed.master, changed.mac) == (
            "vz", False, 1200, 0, "fe:00:00:00:00:02",
        )  # fmt: skip
        assert ip("link", "show", "vz")[0]["address"] == "fe:00:00:00:00:02"


def test_addresses_routes_and_proxies_as_ip_lists_them():
    with Netlink() as kernel:
        kernel.create_veth("va", peer="vb")
        index = kernel.link_index("va")
        kernel.set_link(index, up=True)
        kernel.set_link(kernel.link_index("vb"), up=True)
        kernel.add_address(index, AF_INET, "10.0.3.7", 24, "10.0.3.255")
        kernel.add_address(index, AF_INET6, "fd00::7", 64)
        mine = {(a.address, a.prefix, a.broadcast) for a in kernel.addresses(index) if a.scope == 0}
        assert mine == {("10.0.3.7", 24, "10.0.3.255"), ("fd00::7", 64, "")}
        assert {a.index for a in kernel.addresses(index)} == {index}
        assert len(kernel.addresses()) > len(kernel.addresses(index))
        kernel.add_route(AF_INET, "10.9.0.0", index=index, prefix=16, gateway="10.0.3.1")
        (route,) = ip("route", "show", "10.9.0.0/16")
        assert (route["gateway"], route["dev"]) == ("10.0.3.1", "va")
        kernel.add_proxy_neighbour(index, AF_INET, "10.0.3.99")
        assert [n["dst"] for n in ip("neigh", "show", "proxy")] == ["10.0.3.99"]
        with pytest.raises(OSError) as caught:
            kernel.add_route(AF_INET, None, index=index, gateway="192.0.2.1")
        assert caught.value.__notes__[0].endswith(": Nexthop has invalid gateway")


def test_statistics_are_those_of_ip():
    with Netlink() as kernel:
        kernel.create_veth("va", peer="vb")
        for name in ("va", "vb"):
            kernel.set_link(kernel.link_index(name), up=True)
        kernel.add_address(kernel.link_index("va"), AF_INET, "10.0.3.7", 24, "10.0.3.255")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"x" * 100, ("10.0.3.255", 9))
    seen = network.link_statistics("va")
    assert seen is not None
    assert seen.tx_bytes >= 142  # payload, UDP, IP, Ethernet
    (vb,) = ip("-s", "link", "show", "vb")
    assert vb["stats64"]["rx"]["bytes"] >= seen.tx_bytes
    assert network.link_statistics("nil0") is None


def test_a_socket_in_another_namespace_and_its_id():
    with Container("lxc.net.0.type = empty\n") as c:
        with Netlink(c.fd) as there, Netlink() as here:
            there.create_link("brx", "bridge")
            assert names() == ["lo"]
            assert c.inside(names) == ["brx", "lo"]
            assert here.nsid(c.fd) is None
            here.set_nsid(c.fd, 7)
            assert here.nsid(c.fd) == 7
            with pytest.raises(FileExistsError):
                here.set_nsid(c.fd)
            index = there.link_index("brx")
        assert index > 0


def test_a_link_is_moved_by_descriptor():
    with Container("lxc.net.0.type = empty\n") as c, Netlink() as kernel:
        kernel.create_veth("va", peer="vb")
        kernel.set_link(kernel.link_index("va"), netns_fd=c.fd, name="moved0")
        assert names() == ["lo", "vb"]
        assert c.inside(names) == ["lo", "moved0"]


def test_pyroute2_sees_the_same():
    with Netlink() as kernel, pyroute2.IPRoute() as oracle:
        kernel.create_veth("va", peer="vb", peer_mac="02:00:00:00:00:09")
        (other,) = oracle.get_links(ifname="vb")
        assert other.get_attr("IFLA_ADDRESS") == kernel.link("vb").mac == "02:00:00:00:00:09"


def test_modules_are_those_of_the_package():
    assert veth.create.__module__ == "atoll.resources.network.veth"
    assert links.FindGateways.fills == (network.GATEWAYS,)
