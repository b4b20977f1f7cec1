"""A small host for fault sweeps: lxcpath, root file systems, bridge, and a look at all that a start can leave behind.

Made inside an isolation of its own (namespaces and cgroups), by a process that has imported little: a fork of pytest
itself costs ten times as much, and a sweep forks tens of thousands of times.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import snapshot
from atoll import api
from atoll import host as host_module
from atoll.config.text import Config
from atoll.linux import netlink
from atoll.loop import Loop
from isolation import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from atoll.executor import Observer
    from atoll.lifecycle.monitor import Outcome

TOP = "/mnt"
LXCPATH = f"{TOP}/lxc"
MAPPED_ROOT = 100000
BRIDGE = "br0"
TRUE = f"{LXCPATH}/true"  # static: half the time of the machine's own
APPLETS = ("sh", "true", "sleep", "cat", "kill", "echo", "reboot", "poweroff", "halt", "mount")
HOOKS_OUTSIDE = ("pre-start", "start-host", "stop", "post-stop")
HOOKS_INSIDE = ("pre-mount", "mount", "autodev", "start")

COMMON = """\
lxc.rootfs.path = dir:{rootfs}
lxc.uts.name = {name}
lxc.net.0.type = veth
lxc.net.0.link = br0
lxc.net.0.flags = up
lxc.net.0.hwaddr = 00:16:3e:aa:bb:cc
lxc.net.0.ipv4.address = 10.0.3.77/24
lxc.net.0.ipv4.gateway = auto
lxc.net.0.script.up = {true}
lxc.net.0.script.down = {true}
lxc.net.1.type = veth
lxc.net.1.flags = up
lxc.net.1.veth.pair = fixed0
lxc.net.1.ipv4.address = 10.9.0.2/24
lxc.net.1.veth.ipv4.route = 10.9.1.0/24
lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed
lxc.mount.entry = tmpfs mnt tmpfs size=64k,create=dir 0 0
lxc.mount.entry = /bin opt none bind,ro,create=dir 0 0
lxc.mount.fstab = /mnt/lxc/fstab
lxc.tty.max = 2
lxc.pty.max = 8
lxc.cap.drop = sys_module sys_time
lxc.no_new_privs = 1
lxc.environment = SWEEP=1
lxc.prlimit.nofile = 512
lxc.sysctl.net.ipv4.ip_forward = 1
lxc.proc.oom_score_adj = 10
lxc.console.logfile = /mnt/lxc/console.log
lxc.init.cwd = /mnt
lxc.init.cmd = /bin/true
"""
MAPPED = """\
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
"""
PLAIN = """\
lxc.net.2.type = macvlan
lxc.net.2.link = br0
lxc.time.offset.boot = 5s
"""
FSTAB = """\
none var tmpfs size=64k,create=dir 0 0
/etc srv none bind,ro,create=dir 0 0
"""


def make() -> None:
    """Make the host: file systems that nobody else writes to, rootfs trees, a bridge, loopback."""
    kernel.mount("tmpfs", TOP, "tmpfs", 0, "mode=755")
    kernel.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    os.mkdir(LXCPATH)
    with open(f"{LXCPATH}/fstab", "w", encoding="ascii") as file:
        file.write(FSTAB)
    os.symlink("mapped/rootfs/bin/busybox", TRUE)
    for name, owner in (("mapped", MAPPED_ROOT), ("plain", 0)):
        make_rootfs(f"{LXCPATH}/{name}/rootfs", owner)
    with netlink.Netlink() as link:
        link.create_link(BRIDGE, "bridge")
        index = link.link_index(BRIDGE)
        link.add_address(index, netlink.AF_INET, "10.0.3.1", 24, "10.0.3.255")
        link.set_link(index, up=True)


def make_rootfs(rootfs: str, owner: int) -> None:
    """One static program under some names, and the directories that the configuration mounts on."""
    for directory in ("bin", "dev", "proc", "sys", "etc", "mnt", "opt", "var", "srv", "tmp"):
        os.makedirs(f"{rootfs}/{directory}")
    with open("/bin/busybox", "rb") as source, open(f"{rootfs}/bin/busybox", "wb") as target:
        target.write(source.read())
    os.chmod(f"{rootfs}/bin/busybox", 0o755)
    for applet in APPLETS:
        os.symlink("busybox", f"{rootfs}/bin/{applet}")
    for top, directories, files in os.walk(os.path.dirname(rootfs)):
        for name in (".", *directories, *files):
            os.lchown(f"{top}/{name}", owner, owner)


def config(kind: str, *, more: str = "") -> Config:
    """The configuration with everything: `kind` is "mapped" (a user namespace), "plain", or "run" (as atoll run's)."""
    return Config.parse(text(kind) + more, file="sweep")


def text(kind: str) -> str:
    if kind == "run":
        return api.RUN_CONFIG.format(name="run", rootfs=f"overlay:{LXCPATH}/plain/rootfs:tmpfs")
    text = COMMON.format(rootfs=f"{LXCPATH}/{kind}/rootfs", name=kind, true=TRUE)
    text += MAPPED if kind == "mapped" else PLAIN
    controllers = [h for h in host_module.probe().hierarchies if "pids" in h.controllers]
    for hierarchy in controllers:
        prefix = "lxc.cgroup" if hierarchy.version == 1 else "lxc.cgroup2"
        text += f"{prefix}.pids.max = 100\n"
    for point in (*HOOKS_OUTSIDE, *HOOKS_INSIDE):
        text += f"lxc.hook.{point} = {'/bin/true' if point == 'start' else TRUE}\n"
    return text


def container(kind: str, chosen: Config | None = None) -> api.Container:
    """The container of that configuration."""
    return api.Container(kind, lxcpath=LXCPATH, config=chosen or config(kind))


def argv(kind: str) -> tuple[str, ...]:
    """What is executed."""
    return ("/bin/true",) if kind == "run" else ()


def start_here(made: api.Container, observers: Sequence[Observer] = ()) -> Outcome:
    """Start it with this process as its monitor, which moves into a cgroup of its own; returns when it has stopped."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    loop = Loop()
    try:
        return _start(made, loop, null, observers)
    finally:
        loop.close()
        os.close(null)


def prepared(made: api.Container) -> Callable[[], Outcome]:
    """start_here with what the caller of the library brings made already; it stays open."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    loop = Loop()
    return lambda: _start(made, loop, null, ())


def _start(made: api.Container, loop: Loop, null: int, observers: Sequence[Observer]) -> Outcome:
    wish = made.wish(argv(made.name), stdio=(null, null, null), init_loop=made.name == "run")
    return made.start_here(wish, observers=observers, signals=False, loop=loop)


def start_as_daemon(made: api.Container, observers: Sequence[Observer] = ()) -> None:
    """Start it in a daemon of its own; returns when it is RUNNING."""
    init_loop = made.name == "run"
    made.start(made.wish(argv(made.name), daemon=True, init_loop=init_loop), observers=observers)


# ----------------------------------------------------------------------------------------- looking


class Look:
    """The host as it should be, taken once when everything is warm; then what differs from it."""

    def __init__(self) -> None:
        self.before = take()

    def differences(self, patience: float = float(os.environ.get("PATIENCE", "3"))) -> list[str]:
        """What remains different: the kernel needs some time for namespaces, process 1 for orphans."""
        deadline = time.monotonic() + patience
        pause = 0.001
        while found := snapshot.diff(self.before, take()):
            if time.monotonic() > deadline:
                return found
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return []


def take() -> snapshot.HostSnapshot:
    """As HostSnapshot.take, of this small host: no device nodes or overlays, which are the isolation's."""

    def files() -> Iterator[tuple[str, str]]:
        yield from snapshot._files(TOP, skip=("/mnt/lxc/console.log",))
        yield from snapshot._files("/run", skip=())

    sections = {
        "descriptor": snapshot._descriptors,
        "mount": snapshot._mounts,
        "link": snapshot._links,
        "address or route": snapshot._routes,
        "cgroup": snapshot._cgroups,
        "process": snapshot._processes,
        "abstract socket": snapshot._abstract_sockets,
        "file": files,
        "of the test process": snapshot._self,
    }
    return snapshot.HostSnapshot(
        {name: dict(snapshot._numbered(look())) for name, look in sections.items()}
    )


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
