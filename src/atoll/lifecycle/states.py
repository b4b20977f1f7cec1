"""Steps by which a start tells the world: the command socket, the state, inherited descriptors.

The states themselves are in commands.py, who hears of them in server.py; the one who keeps them is monitor.py.
"""

from __future__ import annotations

import os
from fcntl import F_GETFD, FD_CLOEXEC, fcntl

from atoll.lifecycle import commands
from atoll.linux import mount, process
from atoll.log import get_logger
from atoll.plan import HostStep, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from atoll.errors import Origin
    from atoll.plan import Handler, Start

    class Owner(Protocol):
        """The monitor's side of one container."""

        def listen(self) -> None:
            """Open the command socket; StateError when the name is taken."""

        def set_state(self, state: int) -> None:
            """Enter a state and tell those who wait for it."""


log = get_logger(__name__)

OWNER: Slot[Owner] = Slot("owner")


def inherited(start: Start, *, close: bool, listen_fds: int) -> tuple[HostStep, ...]:
    """Look at descriptors that were inherited without close-on-exec; LISTEN_FDS ones stay."""
    keep = tuple(range(3, 3 + listen_fds)) + tuple(fd for fd in start.stdio or () if fd > 2)
    return (CheckInherited(close=close or start.daemon, keep=keep),)


def unshare(start: Start, *, wanted: bool, origin: Origin | None) -> tuple[HostStep, ...]:
    """lxc.monitor.unshare: only where the monitor is a process of its own, never in a library's caller."""
    return (UnshareMonitor(origin=origin),) if wanted and start.monitor_cgroup else ()


def listen(start: Start) -> tuple[HostStep, ...]:
    """Open the command socket, which is also what makes the name ours."""
    return (ListenCommandSocket(lxcpath=start.lxcpath, name=start.name),)


def enter(state: str) -> tuple[HostStep, ...]:
    """Enter a state."""
    return (EnterState(state=state),)


class CheckInherited(HostStep):
    """Close inherited descriptors, or report them: one that leaks into a container leads to the host (CVE-2024-21626).

    Inherited are those without close-on-exec; every descriptor of ours has it.
    """

    close: bool = False
    keep: tuple[int, ...] = ()

    def explain(self) -> str:
        """Say what happens to them."""
        kept = f", keeping {len(self.keep)} of LISTEN_FDS" if self.keep else ""
        return f"{'close' if self.close else 'report'} inherited descriptors{kept}"

    def apply(self, h: Handler) -> None:
        """Look at /proc/self/fd."""
        del h
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            if fd <= 2 or fd in self.keep or not _inheritable(fd):
                continue
            if self.close:
                log.info("closing inherited descriptor %d", fd)
                os.close(fd)
            else:
                log.info(
                    "inherited descriptor %d stays open in the monitor, not in the container", fd
                )


def _inheritable(fd: int) -> bool:
    try:
        return not fcntl(fd, F_GETFD) & FD_CLOEXEC
    except OSError:
        return False  # the listing's own descriptor, closed since


class UnshareMonitor(HostStep):
    """Give the monitor a mount namespace of its own, a slave of the host's: mounts of its hooks stay in it."""

    def explain(self) -> str:
        """Say it."""
        return "give the monitor a mount namespace of its own"

    def apply(self, h: Handler) -> None:
        """It goes with the monitor."""
        del h
        process.unshare(process.CLONE_NEWNS)
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)


class ListenCommandSocket(HostStep):
    """Listen on the abstract socket by which every tool reaches the monitor; only one can have the name."""

    lxcpath: str
    name: str
    needs = (OWNER,)

    def explain(self) -> str:
        """Show the address."""
        address = commands.address(self.lxcpath, self.name).decode("utf-8", "replace")
        return f"listen on the command socket {address.replace(chr(0), '@')}"

    def apply(self, h: Handler) -> None:
        """Bind and listen; the monitor's loop answers from now on."""
        h[OWNER].listen()


class EnterState(HostStep):
    """Enter a state of LXC's life cycle."""

    state: str
    needs = (OWNER,)

    def explain(self) -> str:
        """Name it."""
        return f"enter state {self.state}"

    def apply(self, h: Handler) -> None:
        """Set it and tell the waiters."""
        h[OWNER].set_state(commands.STATES.index(self.state))
