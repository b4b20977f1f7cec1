"""What every type of network needs: found gateways, scripts, and the set-up inside; and macvlan.

Not the host's end of a veth (veth.py). Source of truth: reference of LXC, sections 6.1, 6.2, 6.4 and 6.5.
"""

from __future__ import annotations

import errno
import os
import struct

from atoll import errors, log, script
from atoll.linux import netlink
from atoll.linux.netlink import MACVLAN_MODES, RT_SCOPE_LINK, Netlink
from atoll.plan import CHILD, HOOK_ENVIRONMENT, NAMESPACES, HostStep, InitStep
from atoll.resources.network import FAMILIES, GATEWAYS, host_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.config.text import Config
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Start
    from atoll.resources.network import Nic


# ---------------------------------------------------------------------------------- plan functions
def create_macvlan(config: Config, start: Start, nic: Nic, name: str) -> tuple[HostStep, ...]:
    """A macvlan link, born in the container."""
    del start
    step = CreateMacvlan(
        name=name,
        lower=nic.link or "",
        mode=nic.macvlan_mode,
        mac=nic.hwaddr or "",
        mtu=nic.mtu or 0,
        origin=config.origin(f"lxc.net.{nic.index}.link"),
    )
    return (step,)


def run_script(config: Config, start: Start, nic: Nic) -> RunNetworkScript:
    """The scripts of a device: up now, down when the network is taken back."""
    sub = "script.up" if nic.script_up else "script.down"
    return RunNetworkScript(
        up=nic.script_up or "",
        down=nic.script_down or "",
        name=start.name,
        type=nic.type,
        link=nic.link or "",
        host_end=host_end(nic, start) if nic.type == "veth" else "",
        version=int(config.get("lxc.hook.version") or 0),
        origin=config.origin(f"lxc.net.{nic.index}.{sub}"),
    )


def configure(config: Config, nic: Nic, name: str) -> tuple[InitStep, ...]:
    """Inside: addresses, then up, then default routes, which need both."""
    steps: list[InitStep] = []
    prefix = f"lxc.net.{nic.index}"
    for family in FAMILIES:
        origins = config.origins(f"{prefix}.{family}.address")
        for address, origin in zip(nic.addresses(family), origins, strict=True):
            steps.append(
                AddAddress(
                    link=name,
                    family=family,
                    address=address.address,
                    prefix=address.prefix,
                    broadcast=address.broadcast,
                    origin=origin,
                )
            )
    if nic.flags and name != "lo":
        steps.append(BringUpLink(link=name, origin=config.origin(f"{prefix}.flags")))
    for family in FAMILIES:
        gateway = nic.gateway(family)
        line = config.origin(f"{prefix}.{family}.gateway")
        if gateway == "auto":
            steps.append(AddFoundRoute(link=name, nic=nic.index, family=family, origin=line))
        elif gateway is not None:
            via = "" if gateway == "dev" else gateway
            steps.append(AddDefaultRoute(link=name, family=family, gateway=via, origin=line))
    return tuple(steps)


# ----------------------------------------------------------------------------- steps of the monitor
class FindGateways(HostStep):
    """Find the addresses of host links that containers route through: (nic, family, link) each."""

    wanted: tuple[tuple[int, str, str], ...]
    fills = (GATEWAYS,)

    def apply(self, h: Handler) -> None:
        """Take the first address of the family, as LXC does; the kernel lists wider scopes first."""
        with Netlink() as kernel:
            h[GATEWAYS] = {
                f"{nic}.{family}": _first_address(kernel, link, family)
                for nic, family, link in self.wanted
            }

    def explain(self) -> str:
        """Family and link of each."""
        return "find the gateways: " + ", ".join(
            f"{family} of {link}" for _n, family, link in self.wanted
        )


def _first_address(kernel: Netlink, link: str, family: str) -> str:
    try:
        index = kernel.link_index(link)
    except OSError as error:
        message = f"cannot find the {family} gateway: {link}: {errors.reason(error)}"
        raise errors.HostError(message, errno=error.errno) from error
    for address in kernel.addresses(index):
        if address.family == FAMILIES[family]:
            return address.address
    raise errors.HostError(f"cannot find the {family} gateway: {link} has no {family} address")


class CreateMacvlan(HostStep):
    """Create a macvlan link on a host's link, directly in the container's namespace. It ends with that namespace."""

    name: str
    lower: str
    mode: str
    mac: str
    mtu: int
    needs = (NAMESPACES,)

    def apply(self, h: Handler) -> None:
        """One request. The lower link is looked up here, the new one is born there."""
        data = netlink.attribute(
            netlink.IFLA_MACVLAN_MODE, struct.pack("=I", MACVLAN_MODES[self.mode])
        )
        with Netlink() as kernel:
            kernel.create_link(
                self.name,
                "macvlan",
                data=data,
                lower=kernel.link_index(self.lower),
                netns_fd=h[NAMESPACES]["net"].fileno(),
                mac=self.mac,
                mtu=self.mtu,
            )

    def explain(self) -> str:
        """Name, lower link and mode."""
        return f"create macvlan {self.name} on {self.lower} in the container, mode {self.mode}"


class RunNetworkScript(HostStep):
    """Run lxc.net.N.script.up, and see to it that script.down runs before the network goes."""

    up: str
    down: str
    name: str
    type: str
    link: str
    host_end: str
    version: int
    needs = (HOOK_ENVIRONMENT, CHILD)

    def apply(self, h: Handler) -> None:
        """A script that fails fails the start."""
        if not self.up:
            return
        output = _run(h, self, self.up, "up")
        if not output.success:
            raise errors.HostError(f"cannot run the network script {self.up}: {output.failure()}")

    def explain(self) -> str:
        """The command that runs, now or at the end."""
        if self.up:
            return f"run the network script {self.up}"
        return f"have the network script {self.down} run at the end"

    def inverse(self) -> HostStep | None:
        """The down script, where there is one."""
        if not self.down:
            return None
        return RunDownScript(
            down=self.down,
            name=self.name,
            type=self.type,
            link=self.link,
            host_end=self.host_end,
            version=self.version,
        )


class RunDownScript(HostStep):
    """Run lxc.net.N.script.down. Its failure is reported and hinders nothing (lxc)."""

    down: str
    name: str
    type: str
    link: str
    host_end: str
    version: int

    def apply(self, h: Handler) -> None:
        """Run it with the container's namespaces in the environment."""
        output = _run(h, self, self.down, "down")
        if not output.success:
            h.report(log.ERROR, f"cannot run the network script {self.down}: {output.failure()}")

    def explain(self) -> str:
        """The command."""
        return f"run the network script {self.down}"


def _run(
    h: Handler, step: RunNetworkScript | RunDownScript, command: str, when: str
) -> script.Output:
    """Run a script with LXC's arguments and environment of either hook version."""
    arguments = {"veth": (step.link, step.host_end), "macvlan": (step.link,)}.get(step.type, ())
    known = h.get(HOOK_ENVIRONMENT)
    environment = {**os.environ, "LXC_NAME": step.name} if known is None else dict(known)
    if CHILD in h:
        environment["LXC_PID"] = str(h[CHILD].pid)
    if when == "down":
        namespaces: dict[str, OwnedFd] = h.get(NAMESPACES) or {}
        for name, fd in namespaces.items():
            environment[f"LXC_{name.upper()}_NS"] = f"/proc/{os.getpid()}/fd/{fd.fileno()}"
    given: tuple[str, ...] = (step.name, "net", when, step.type, *arguments)
    if step.version == 1:
        given = (step.type, *arguments)
        environment |= {
            "LXC_HOOK_TYPE": when,
            "LXC_HOOK_SECTION": "net",
            "LXC_NET_TYPE": step.type,
        }
        if arguments:
            environment["LXC_NET_PARENT"] = step.link
        if step.type == "veth":
            environment["LXC_NET_PEER"] = step.host_end
    output = script.shell(h, command, environment=environment, arguments=given)
    if output.text:
        h.report(log.DEBUG, f"network script {command} produced output: {output.text}")
    return output


# ----------------------------------------------------------------------------------- steps of init
class BringUpLink(InitStep):
    """Bring up a link of the container."""

    link: str

    def apply(self, h: Handler) -> None:
        """Set the flag."""
        del h
        _bring_up(self.link)

    def explain(self) -> str:
        """The link."""
        return f"bring up {self.link}"


def _bring_up(link: str) -> None:
    with Netlink() as kernel:
        kernel.set_link(kernel.link_index(link), up=True)


class AddAddress(InitStep):
    """Give a link of the container an address; `broadcast` is "" where there is none."""

    link: str
    family: str
    address: str
    prefix: int
    broadcast: str

    def apply(self, h: Handler) -> None:
        """One request."""
        del h
        with Netlink() as kernel:
            kernel.add_address(
                kernel.link_index(self.link),
                FAMILIES[self.family],
                self.address,
                self.prefix,
                self.broadcast or None,
            )

    def explain(self) -> str:
        """Address and link."""
        return f"add address {self.address}/{self.prefix} to {self.link}"


class AddDefaultRoute(InitStep):
    """Route everything through a link: by `gateway`, or without one when it is ""."""

    link: str
    family: str
    gateway: str

    def apply(self, h: Handler) -> None:
        """Add the route."""
        del h
        _add_default_route(self.link, self.family, self.gateway)

    def explain(self) -> str:
        """Gateway and link."""
        by = f"by {self.gateway} on" if self.gateway else "through"
        return f"set the {self.family} default route {by} {self.link}"


class AddFoundRoute(InitStep):
    """Route everything by the gateway that was found before the clone."""

    link: str
    nic: int
    family: str
    needs = (GATEWAYS,)

    def apply(self, h: Handler) -> None:
        """Add the route."""
        _add_default_route(self.link, self.family, h[GATEWAYS][f"{self.nic}.{self.family}"])

    def explain(self) -> str:
        """The gateway is not known yet."""
        return f"set the {self.family} default route by the found gateway on {self.link}"


def _add_default_route(link: str, family: str, gateway: str) -> None:
    """Where the gateway is on no network of ours, a route to itself comes first (lxc)."""
    number = FAMILIES[family]
    with Netlink() as kernel:
        index = kernel.link_index(link)
        try:
            kernel.add_route(number, None, index=index, gateway=gateway or None)
        except OSError as error:
            if not gateway or error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise
            longest = 32 if family == "ipv4" else 128
            kernel.add_route(number, gateway, index=index, prefix=longest, scope=RT_SCOPE_LINK)
            kernel.add_route(number, None, index=index, gateway=gateway)
