"""Creating and destroying containers: plans whose journal is dropped on success, so that they are all-or-nothing.

Templates: our own `busybox`; others are LXC's scripts (/usr/share/lxc/templates/lxc-NAME or a path).
Source: reference of LXC sections 10.5 (files), 11.7 (lxc-create, header, template arguments), 12.1 (destroy).
"""

from __future__ import annotations

import os

from atoll import executor, script
from atoll.config.text import Config
from atoll.errors import AtollError, HostError, StateError, StorageError, reason
from atoll.executor import Journal
from atoll.linux import files
from atoll.log import get_logger
from atoll.plan import Handler, HostStep, Phase, Plan, Slot, flatten
from atoll.records import Record
from atoll.resources import hooks
from atoll.resources.storage import Rootfs, parse_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Start

log = get_logger(__name__)

TEMPLATE_DIRECTORY = "/usr/share/lxc/templates"
BUSYBOX_PLACES = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/bin/busybox")
PARTIAL: Slot[OwnedFd] = Slot("partial")
DIRECTORIES = (
    "bin",
    "dev",
    "etc",
    "etc/init.d",
    "etc/udhcpc",
    "home",
    "lib",
    "lib64",
    "mnt",
    "proc",
    "root",
    "sbin",
    "selinux",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "var",
    "var/log",
    "var/run",
)
FILES = {
    "etc/passwd": ("root:x:0:0:root:/root:/bin/sh\n", 0o644),
    "etc/group": ("root:x:0:root\ntty:x:5:\n", 0o644),
    "etc/shadow": ("root:*:::::::\n", 0o640),
    "etc/fstab": ("", 0o644),
    "etc/inittab": (
        (
            "::sysinit:/etc/init.d/rcS\n"
            "tty1::respawn:/bin/getty -L tty1 115200 vt100\n"
            "console::askfirst:/bin/sh\n"
        ),
        0o644,
    ),
    "etc/init.d/rcS": (
        (
            "#!/bin/sh\n"
            "# runs once, at the start of the container\n"
            "/bin/syslogd\n"
            "/bin/mount -a\n"
            "if [ -d /sys/class/net/eth0 ]; then /bin/udhcpc -b -s /etc/udhcpc/default.script; fi\n"
        ),
        0o755,
    ),
    "etc/udhcpc/default.script": (
        (
            "#!/bin/sh\n"
            'case "$1" in\n'
            "deconfig) ip addr flush dev $interface; ip link set $interface up ;;\n"
            "bound|renew)\n"
            "  ip addr replace $ip/${mask:-24} dev $interface\n"
            "  for gateway in $router; do ip route replace default via $gateway dev $interface; done\n"
            "  : > /etc/resolv.conf\n"
            '  for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done ;;\n'
            "esac\n"
        ),
        0o755,
    ),
}
BUSYBOX_CONFIG = """\
lxc.signal.halt = SIGUSR1
lxc.signal.reboot = SIGTERM
lxc.uts.name = "{name}"
lxc.autodev = 1
lxc.tty.max = 5
lxc.pty.max = 1
lxc.cap.drop = sys_module mac_admin mac_override sys_time
lxc.mount.auto = cgroup:mixed proc:mixed sys:ro
lxc.mount.entry = shm dev/shm tmpfs defaults,create=dir 0 0
lxc.mount.entry = mqueue dev/mqueue mqueue defaults,optional,create=dir 0 0
"""
HEADER = """\
# Template used to create this container: {template}
# Parameters passed to the template:{arguments}
# For additional config options, please look at lxc.container.conf(5)

# Uncomment the following line to support nesting containers:
#lxc.include = /usr/share/lxc/config/nesting.conf
# (Be aware this has security implications)

"""


class Creation(Record):
    """What is to be created. `template` is "busybox", another template's name, an absolute path, or "none"."""

    name: str
    lxcpath: str
    template: str
    config: Config
    rootfs: str | None = None
    """lxc-create --dir; None: LXCPATH/NAME/rootfs."""
    arguments: tuple[str, ...] = ()

    @property
    def directory(self) -> str:
        """LXCPATH/NAME."""
        return f"{self.lxcpath}/{self.name}"


def create(creation: Creation, *, environ: Mapping[str, str]) -> None:
    """Create a container, or leave nothing. Raises StateError, HostError or StepError."""
    _check_name(creation.name)
    if os.path.exists(f"{creation.directory}/config"):
        raise StateError(
            f"container {creation.name} already exists in {creation.lxcpath}",
            now="defined",
            wanted="not defined",
            fix=f"choose another name, or destroy it first: lxc-destroy -n {creation.name}",
        )
    plan = plan_creation(creation, environ=environ)
    handler = Handler(report=lambda level, text: log.log(level, "%s", text))
    journal = Journal()
    places = plan.placed()
    try:
        executor.run(places, handler, total=len(places), journal=journal)
    except AtollError as error:
        restored = journal.unwind(handler)
        if hasattr(error, "restored"):
            error.restored = restored
        raise
    except BaseException:
        journal.unwind(handler)
        raise
    finally:
        handler.close()


def _check_name(name: str) -> None:
    if not name or "/" in name or name.startswith(".") or len(name) > 255:
        raise HostError(
            f"{name!r} cannot be a container's name", fix="use letters, digits, '-' and '_'"
        )


def plan_creation(creation: Creation, *, environ: Mapping[str, str]) -> Plan:
    """The steps of a creation."""
    rootfs = creation.rootfs or f"{creation.directory}/rootfs"
    template = find_template(creation.template)
    head = HEADER.format(
        template=template, arguments="".join(f" {word}" for word in creation.arguments)
    )
    base = creation.config.text()
    filled = flatten(
        MakeDirectory(path=rootfs, mode=0o755) if template != "none" else None,
        WriteFile(
            path=f"{creation.directory}/config",
            text=base + ("" if template == "none" else f"lxc.rootfs.path = dir:{rootfs}\n"),
            mode=0o640,
        ),
        _template_step(creation, template, rootfs, environ),
        PrependHeader(path=f"{creation.directory}/config", text=head)
        if template != "none"
        else None,
    )
    return Plan(
        name=creation.name,
        phases=(
            Phase(
                name="create",
                monitor=flatten(
                    MakeDirectories(path=creation.lxcpath),
                    MakeDirectory(path=creation.directory, mode=0o770),
                    HoldPartial(path=f"{creation.directory}/partial"),
                    filled,
                    ReleasePartial(path=f"{creation.directory}/partial"),
                ),
            ),
        ),
    )


def find_template(name: str) -> str:
    """`busybox` is ours; else the path of LXC's script. Raises HostError naming what exists."""
    if name in ("busybox", "none"):
        return name
    path = name if name.startswith("/") else f"{TEMPLATE_DIRECTORY}/lxc-{name}"
    if os.access(path, os.X_OK):
        return path
    try:
        there = [n.removeprefix("lxc-") for n in os.listdir(TEMPLATE_DIRECTORY)]
    except FileNotFoundError:
        there = []
    known = ", ".join(sorted({"busybox", "none", *there}))
    raise HostError(f"there is no template {name}", missing=name, fix=f"templates here: {known}")


def _template_step(
    creation: Creation, template: str, rootfs: str, environ: Mapping[str, str]
) -> HostStep | None:
    if template == "none":
        return None
    if template == "busybox":
        return PopulateBusybox(
            rootfs=rootfs,
            config=f"{creation.directory}/config",
            name=creation.name,
            program=_busybox_argument(creation.arguments),
        )
    return RunTemplate(
        argv=(
            template,
            f"--path={creation.directory}",
            f"--name={creation.name}",
            f"--rootfs={rootfs}",
            *creation.arguments,
        ),
        environment=tuple(environ.items()),
    )


class MakeDirectories(HostStep):
    """Make sure that the lxcpath is there; it stays."""

    path: str

    def explain(self) -> str:
        """Name it."""
        return f"make sure that {self.path} exists"

    def apply(self, h: Handler) -> None:
        """mkdir -p."""
        del h
        files.make_directories(None, self.path, 0o755)


class MakeDirectory(HostStep):
    """Make one directory."""

    path: str
    mode: int

    def explain(self) -> str:
        """Name it."""
        return f"make the directory {self.path}"

    def inverse(self) -> HostStep:
        """Remove it with what has come into it."""
        return RemoveTree(path=self.path)

    def apply(self, h: Handler) -> None:
        """Exclusively."""
        del h
        files.mkdir(self.path, self.mode)
        os.chmod(self.path, self.mode)


class RemoveTree(HostStep):
    """Remove a directory and everything below it, without crossing mounts or following links."""

    path: str

    def explain(self) -> str:
        """Name it."""
        return f"remove {self.path}"

    def apply(self, h: Handler) -> None:
        """Idempotent."""
        del h
        if os.path.isdir(self.path):
            files.remove_tree(self.path)


class HoldPartial(HostStep):
    """Lock the file that tells others, LXC's tools too, that the creation is under way."""

    path: str
    fills = (PARTIAL,)

    def apply(self, h: Handler) -> None:
        """Create and lock it."""
        fd = files.open_fd(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o000)
        files.lock_file(fd.fileno(), exclusive=True, block=False)
        h[PARTIAL] = fd


class ReleasePartial(HostStep):
    """Creation is complete."""

    path: str
    needs = (PARTIAL,)

    def apply(self, h: Handler) -> None:
        """Unlink and unlock."""
        files.unlink(self.path)
        fd = h.take(PARTIAL)
        if fd is not None:
            fd.close()


class WriteFile(HostStep):
    """Write a file, atomically."""

    path: str
    text: str
    mode: int

    def explain(self) -> str:
        """Name it."""
        return f"write {self.path}"

    def apply(self, h: Handler) -> None:
        """Temporary file and rename."""
        del h
        files.write_atomic(self.path, self.text.encode("utf-8", "surrogateescape"), self.mode)


class PrependHeader(HostStep):
    """Put LXC's header above the configuration that the template has completed."""

    path: str
    text: str

    def explain(self) -> str:
        """Name the file."""
        return f"write the header of {self.path}"

    def apply(self, h: Handler) -> None:
        """Read, prepend, write."""
        del h
        body = files.read_text(self.path)
        files.write_atomic(self.path, (self.text + body).encode("utf-8", "surrogateescape"), 0o640)


class PopulateBusybox(HostStep):
    """Our busybox template: a root file system of one static program, and the keys that its init needs."""

    rootfs: str
    config: str
    name: str
    program: str | None = None
    """None: the first static one of BUSYBOX_PLACES."""

    def explain(self) -> str:
        """Say what comes where."""
        return f"fill {self.rootfs} with busybox"

    def apply(self, h: Handler) -> None:
        """Copy the program, link its applets, write etc, append to the configuration."""
        program = self.program or find_busybox()
        for directory in DIRECTORIES:
            files.mkdir(f"{self.rootfs}/{directory}", 0o755)
        for path, (text, mode) in FILES.items():
            files.write_atomic(f"{self.rootfs}/{path}", text.encode(), mode)
        os.chmod(f"{self.rootfs}/tmp", 0o1777)
        with open(program, "rb") as source:
            files.write_atomic(f"{self.rootfs}/bin/busybox", source.read(), 0o755)
        listing = script.run(h, (program, "--list"), environment={})
        if not listing.success:
            raise StorageError(f"cannot ask {program} for its applets: it {listing.failure()}")
        for applet in sorted(set(listing.text.split()) - {"busybox"}):
            files.symlink("busybox", f"{self.rootfs}/bin/{applet}")
        files.symlink("../bin/busybox", f"{self.rootfs}/sbin/init")
        text = files.read_text(self.config) + BUSYBOX_CONFIG.format(name=self.name)
        files.write_atomic(self.config, text.encode("utf-8", "surrogateescape"), 0o640)


def _busybox_argument(arguments: tuple[str, ...]) -> str | None:
    """The one argument that the busybox template takes: --busybox-path FILE. Raises HostError for any other."""
    words = [part for word in arguments for part in word.split("=", 1)]
    if not words:
        return None
    if words[0] != "--busybox-path" or len(words) != 2:
        raise HostError(
            f"the busybox template cannot use the argument {arguments[0]}",
            fix="it takes --busybox-path FILE and nothing else",
        )
    if not os.access(words[1], os.X_OK) or not _is_static(words[1]):
        raise HostError(f"{words[1]} is not a statically linked program", missing=words[1])
    return words[1]


def find_busybox() -> str:
    """A statically linked busybox of the host. Raises HostError with the package to install."""
    for place in BUSYBOX_PLACES:
        if os.access(place, os.X_OK) and _is_static(place):
            return place
    raise HostError(
        "the busybox template needs a statically linked busybox, and there is none",
        missing="busybox-static",
        fix="apt-get install busybox-static",
    )


def _is_static(path: str) -> bool:
    """No PT_INTERP among the program headers of a 64-bit little-endian ELF file (elf(5))."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:5] != b"\x7fELF\x02":
        return False
    offset = int.from_bytes(head[32:40], "little")
    size = int.from_bytes(head[54:56], "little")
    count = int.from_bytes(head[56:58], "little")
    kinds = (head[offset + n * size : offset + n * size + 4] for n in range(count))
    return b"\x03\x00\x00\x00" not in kinds


class RunTemplate(HostStep):
    """Run one of LXC's template scripts."""

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def explain(self) -> str:
        """Show the command."""
        return f"run {' '.join(self.argv)}"

    def apply(self, h: Handler) -> None:
        """Wait for it; its output is logged."""
        output = script.run(h, self.argv, environment=dict(self.environment))
        for line in output.text.splitlines():
            log.info("template: %s", line)
        if not output.success:
            raise StorageError(f"the template {self.argv[0]} {output.failure()}")


def destroy(
    config: Config,
    host: Host,
    start: Start,
    *,
    environ: Mapping[str, str],
    force_hooks: bool = True,
) -> None:
    """Remove a container that is not running: destroy hooks, storage, directory. Raises AtollError.

    With lxc.rootfs.managed = 0 nothing is removed after the hooks ran, as in LXC.
    """
    c = (config, host, start)
    handler = Handler(report=lambda level, text: log.log(level, "%s", text))
    steps = flatten(
        hooks.environment(*c, environ=environ) if force_hooks else None,
        hooks.run(*c, "destroy") if force_hooks else None,
        _removals(config, start),
    )
    places = Plan(name=start.name, phases=(Phase(name="destroy", monitor=steps),)).placed()
    try:
        executor.run(places, handler, total=len(places))
    finally:
        handler.close()


def _removals(config: Config, start: Start) -> tuple[HostStep, ...]:
    section = config[Rootfs]
    if not section.managed:
        return ()
    steps: list[HostStep] = []
    if section.path:
        source = parse_source(section.path, config.origin("lxc.rootfs.path"))
        path = source.text if source.backend == "dir" else source.text.rpartition(":")[2]
        if os.path.isabs(path) and path != "/":
            steps.append(RemoveTree(path=path))
    steps.append(RemoveTree(path=start.directory))
    return tuple(steps)


def dependents(directory: str) -> str | None:
    """Why a container may not be destroyed: it has snapshots or clones; None when it may."""
    try:
        if any(name.startswith("snap") for name in os.listdir(f"{directory}/snaps")):
            return "snapshots"
    except FileNotFoundError:
        log.debug("no snapshots below %s", directory)
    try:
        if files.read_text(f"{directory}/lxc_snapshots").strip():
            return "clones"
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warn("cannot read lxc_snapshots: %s", reason(error))
    return None
