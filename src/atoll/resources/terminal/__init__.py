"""Terminals of a container: its devpts, its console, its ttys. carrier.py is the monitor's relay between console and user.

Not the client of a tty (lxc-console is a tool) and not init's standard streams (lifecycle/spawn.py takes CONSOLE_PEER).
Source of truth: reference of LXC, sections 3.5 and 7; pty(7), devpts in the kernel's filesystems/devpts.rst.

Whose pty is the console: with lxc.pty.max above 1 the container's own devpts gives it (init allocates it and sends its ptmx to
the monitor), otherwise the host's devpts does, before the clone.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, ELOOP, ENOENT, EPERM

from atoll.config import keys
from atoll.config.keys import Kind, Section, flag, key, number, text
from atoll.errors import HostError
from atoll.linux import files, mount
from atoll.log import get_logger
from atoll.plan import HOOK_ENVIRONMENT, ROOTFS, SYNC, HostStep, InitStep, Slot
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.linux.proc import IdMapping
    from atoll.plan import Handler, Start
    from atoll.resources.terminal.carrier import ConsoleLog

log = get_logger(__name__)

AUTO_SIZE = 131072
TTY_GROUP = 5
FDS_A_FRAME = 60  # what the other side makes room for is 64


def _parse_rounded(value: str) -> int:
    """`auto` is 128 KiB; else at least a page, rounded up to a power of two, as LXC stores it."""
    if value == "auto":
        return AUTO_SIZE
    return 1 << (max(keys.size.parse(value), os.sysconf("SC_PAGE_SIZE")) - 1).bit_length()


rounded_size = Kind(_parse_rounded, name="size or `auto`")


class Console(Section):
    """lxc.console.*: the terminal of the container's init, as the host sees it."""

    path: str | None = key(
        "lxc.console.path",
        keys.path,
        doc="Terminal of the host that the console is shown on; `none`: the container has no"
        " console. Unset: the terminal of the caller, where it has one.",
        example="/dev/tty8",
        since="2.x",
    )
    logfile: str | None = key(
        "lxc.console.logfile",
        keys.path,
        doc="File of the host that all output of the console is added to.",
        example="/var/log/lxc/c1.console",
        since="1.x",
    )
    size: int = key(
        "lxc.console.size",
        rounded_size,
        default=0,
        doc="Cap of the console's log file in bytes (KB, MB, GB may follow), or `auto` for 128"
        " KiB; at least a page, rounded up to a power of two. 0: no cap.",
        example="10MB",
        since="5.0.2",
    )
    rotate: bool = key(
        "lxc.console.rotate",
        flag,
        default=False,
        doc="1: a log file that reached lxc.console.size is kept as FILE.1; 0: it is emptied.",
        example="1",
        since="5.0.2",
    )
    buffer_size: int = key(
        "lxc.console.buffer.size",
        rounded_size,
        default=0,
        doc="Size in bytes (KB, MB, GB may follow) of the ring buffer that keeps the newest"
        " console output, or `auto` for 128 KiB; at least a page, rounded up to a power of"
        " two. 0: none.",
        example="1MB",
        since="5.0.2",
    )


class Terminals(Section):
    """lxc.tty.* and lxc.pty.*: terminals that the container has besides its console."""

    tty_max: int = key(
        "lxc.tty.max",
        number,
        default=0,
        doc="Number of ttys that lxc-console can reach: /dev/tty1 and up.",
        example="4",
        since="2.x",
    )
    tty_dir: str | None = key(
        "lxc.tty.dir",
        text,
        doc="Directory below /dev, at most 255 bytes, that the device files of the console and of"
        " the ttys are made in; links lead there.",
        example="lxc",
        since="2.x",
    )
    pty_max: int = key(
        "lxc.pty.max",
        number,
        default=0,
        doc="Number of pseudo terminals of the container's own devpts. 0: it has none of its own.",
        example="1024",
        since="2.x",
    )


class Pty(Record):
    """The controlling end of a pseudo terminal, and its name below /dev ("pts/0")."""

    ptmx: OwnedFd
    name: str

    def close(self) -> None:
        """Close the controlling end; whoever holds the terminal gets a hang-up."""
        self.ptmx.close()


CONSOLE: Slot[Pty] = Slot("console")
"""Either side; on the monitor's for the relay."""
CONSOLE_PEER: Slot[OwnedFd] = Slot("console peer")
"""The terminal's end of the console: init's standard streams."""
TTYS: Slot[tuple[Pty, ...]] = Slot("ttys")
DEVPTS: Slot[OwnedFd] = Slot("devpts")
"""O_PATH descriptor of the root directory of the container's devpts."""
CONSOLE_USER: Slot[OwnedFd] = Slot("console user")
"""Monitor side: the terminal that lxc.console.path names."""
CONSOLE_LOG: Slot[ConsoleLog] = Slot("console log")
"""Monitor side: lxc.console.logfile, open."""


def wanted(config: Config) -> bool:
    """The container is to have a console."""
    return config[Console].path != "none"


def host_console(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone: the terminal that shows the console; its pty, when the container's own devpts is not to give it."""
    if not start.console:
        return ()
    steps: list[HostStep] = []
    shown_on = config[Console].path
    origin = config.origin("lxc.console.path")
    if shown_on not in (None, "none"):
        steps.append(OpenConsoleUser(path=shown_on, origin=origin))
    if not in_container(config):
        owner = start.root_uid if start.privileged and start.root_uid != host.uid else -1
        steps.append(AllocateHostConsole(owner=owner, origin=origin))
    return tuple(steps)


def devpts(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """A devpts of the container's own on /dev/pts, and /dev/ptmx, when lxc.pty.max or lxc.tty.max ask for terminals."""
    del host
    wanted = config[Terminals]
    count = wanted.pty_max + wanted.tty_max
    if not count:
        return ()
    group = TTY_GROUP if maps_group(start.id_map, TTY_GROUP) else -1
    origin = config.origin("lxc.pty.max") or config.origin("lxc.tty.max")
    return (MountDevpts(count=count, group=group, ptmx=wanted.pty_max > 0, origin=origin),)


def console(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """The console's pty, where init has to allocate it, and /dev/console."""
    del host
    if not start.console:
        return ()
    bind = BindConsole(
        directory=config[Terminals].tty_dir,
        inside=in_container(config),
        origin=config.origin("lxc.console.path"),
    )
    if not in_container(config):
        return (bind,)
    return AllocateConsole(origin=config.origin("lxc.pty.max")), bind


def ttys(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """lxc.tty.max ptys, and their device files unless a small init runs a command (lxc-execute) or there is no rootfs."""
    del host
    wanted = config[Terminals]
    if not wanted.tty_max:
        return ()
    origin = config.origin("lxc.tty.max")
    allocate = AllocateTtys(count=wanted.tty_max, origin=origin)
    if start.init_loop or start.rootfs is None:
        return (allocate,)
    return allocate, BindTtys(directory=wanted.tty_dir, origin=origin)


def send(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """Init's side of phase fds: what the monitor keeps of the terminals goes there."""
    del host
    parcel = _parcel(config, start)
    return (SendTerminals(**parcel),) if any(parcel.values()) else ()


def receive(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """The monitor's side of what init sent. It may come late: what was sent waits in the socket, also when init is gone."""
    del host
    parcel = _parcel(config, start)
    return (ReceiveTerminals(**parcel),) if any(parcel.values()) else ()


def log_file(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """On the monitor's side, before init is executed: the console's log file."""
    del host
    section = config[Console]
    if not start.console or not section.logfile:
        return ()
    return (
        OpenConsoleLog(
            path=section.logfile,
            limit=section.size,
            rotate=section.rotate,
            origin=config.origin("lxc.console.logfile"),
        ),
    )


def names(config: Config, start: Start) -> tuple[str, ...]:
    """The ttys as container_ttys in init's environment lists them: pts/1 pts/2 …"""
    first = 1 if start.console and in_container(config) else 0
    return tuple(f"pts/{first + number}" for number in range(config[Terminals].tty_max))


def in_container(config: Config) -> bool:
    """The console, if there is one, is a pty of the container's own devpts."""
    return config[Terminals].pty_max > 1


def maps_group(id_map: tuple[IdMapping, ...], group: int) -> bool:
    """A group id of the container exists on the host: without an id map every one does."""
    groups = [entry for entry in id_map if entry.kind == "g"]
    return not id_map or any(e.inside <= group < e.inside + e.count for e in groups)


def _parcel(config: Config, start: Start) -> dict[str, Any]:
    return {
        "devpts": config[Terminals].pty_max > 0,
        "console": start.console and in_container(config),
        "ttys": config[Terminals].tty_max,
    }


class AllocateHostConsole(HostStep):
    """Take a pty of the host; `owner` is the host's uid to give it to, -1 for nobody else.

    Nothing to take back: the pty goes with its descriptors.
    """

    owner: int
    fills = (CONSOLE, CONSOLE_PEER)

    def apply(self, h: Handler) -> None:
        """Allocate, and give to the container's root, who could not open it otherwise."""
        ptmx, pts, name = files.openpty()
        try:
            if self.owner >= 0:
                files.chown(pts.fileno(), self.owner, -1)
        except BaseException:
            ptmx.close()
            pts.close()
            raise
        h[CONSOLE] = Pty(ptmx=ptmx, name=name)
        h[CONSOLE_PEER] = pts

    def explain(self) -> str:
        """For whom, when not for the host's root."""
        owner = f" and give it to uid {self.owner}" if self.owner >= 0 else ""
        return f"allocate a pty of the host for the console{owner}"


class OpenConsoleUser(HostStep):
    """Open the terminal that the console is shown on."""

    path: str
    fills = (CONSOLE_USER,)

    def apply(self, h: Handler) -> None:
        """Raises HostError when it is no terminal."""
        terminal = files.open_fd(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        if not os.isatty(terminal.fileno()):
            terminal.close()
            raise HostError(
                f"cannot show the console on {self.path}: it is not a terminal",
                fix="name a terminal in lxc.console.path, or write to a file with lxc.console.logfile",
            )
        h[CONSOLE_USER] = terminal

    def explain(self) -> str:
        """Which."""
        return f"open {self.path} to show the console on"


class OpenConsoleLog(HostStep):
    """Open lxc.console.logfile. No inverse: a log outlives what it tells about."""

    path: str
    limit: int
    rotate: bool
    fills = (CONSOLE_LOG,)

    def apply(self, h: Handler) -> None:
        """Made, 0600, where it is missing."""
        from atoll.resources.terminal.carrier import ConsoleLog

        h[CONSOLE_LOG] = ConsoleLog(self.path, limit=self.limit, rotate=self.rotate)

    def explain(self) -> str:
        """With its cap."""
        cap = f", of at most {self.limit} bytes" if self.limit else ""
        return f"open the console's log file {self.path}{cap}"


class MountDevpts(InitStep):
    """A new devpts instance for `count` ptys; `group` owns them (-1: whoever opens them); `ptmx` makes /dev/ptmx."""

    count: int
    group: int
    ptmx: bool
    needs = (ROOTFS,)
    fills = (DEVPTS,)

    def apply(self, h: Handler) -> None:
        """Mount it on /dev/pts, keep its root directory, bind its ptmx."""
        root = h[ROOTFS].fileno()
        with _directory(root, "dev/pts") as target:
            self._mount(target.path)
        instance = files.open_beneath(root, "dev/pts", os.O_PATH | os.O_DIRECTORY)
        h[DEVPTS] = instance
        if self.ptmx:
            _bind_file(root, f"{instance.path}/ptmx", "dev/ptmx", replace=True)

    def _mount(self, target: str) -> None:
        """Where an outer user namespace maps no group 5 the kernel says EINVAL: then without the group."""
        flags = mount.MS_NOSUID | mount.MS_NOEXEC
        data = f"newinstance,ptmxmode=0666,mode=0620,max={self.count}"
        if self.group >= 0:
            try:
                mount.mount(
                    "devpts", target, "devpts", flags=flags, data=f"{data},gid={self.group}"
                )
            except OSError as error:
                if error.errno != EINVAL:
                    raise
            else:
                return
        mount.mount("devpts", target, "devpts", flags=flags, data=data)

    def explain(self) -> str:
        """With the number of ptys."""
        ptmx = " and its ptmx on /dev/ptmx" if self.ptmx else ""
        return f"mount a devpts for {self.count} ptys on /dev/pts{ptmx}"


class AllocateConsole(InitStep):
    """Take the console's pty from the container's devpts."""

    needs = (DEVPTS,)
    fills = (CONSOLE, CONSOLE_PEER)

    def apply(self, h: Handler) -> None:
        """The first pty: /dev/pts/0."""
        ptmx, pts, name = files.openpty_in(h[DEVPTS].fileno())
        h[CONSOLE] = Pty(ptmx=ptmx, name=name)
        h[CONSOLE_PEER] = pts

    def explain(self) -> str:
        """Where from."""
        return "allocate a pty of the container for the console"


class BindConsole(InitStep):
    """/dev/console, and DIRECTORY/console below /dev; `inside`: the pty is one of the container's devpts."""

    directory: str | None
    inside: bool
    needs = (ROOTFS, CONSOLE, CONSOLE_PEER)

    def apply(self, h: Handler) -> None:
        """Bind the pty over a regular file; whatever was mounted there before is taken off."""
        root = h[ROOTFS].fileno()
        source = self._source(h)
        if not self.inside:
            _chmod(h[CONSOLE_PEER], 0o620)
        if self.directory:
            files.make_directories(root, f"dev/{self.directory}", 0o755)
            _bind_file(root, source, f"dev/{self.directory}/console")
        _bind_file(root, source, "dev/console")

    def _source(self, h: Handler) -> str:
        if self.inside:
            return f"{h[DEVPTS].path}/{h[CONSOLE].name.removeprefix('pts/')}"
        # The descriptor was opened in the monitor's mount namespace, from which nothing can be bound: the same by name.
        name = f"/dev/{h[CONSOLE].name}"
        try:
            found = os.stat(name)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            found = None
        if found is None or found.st_rdev != os.fstat(h[CONSOLE_PEER].fileno()).st_rdev:
            raise HostError(
                f"cannot bind the console on /dev/console: its pty {name} is hidden below the container's own /dev",
                fix="set lxc.autodev = 0, lxc.console.path = none, or lxc.pty.max to 2 or more",
            )
        return name

    def explain(self) -> str:
        """On what."""
        also = f" and /dev/{self.directory}/console" if self.directory else ""
        return f"bind the console on /dev/console{also}"


class AllocateTtys(InitStep):
    """Take `count` ptys from the container's devpts."""

    count: int
    needs = (DEVPTS,)
    fills = (TTYS,)

    def apply(self, h: Handler) -> None:
        """Nobody holds their terminal's ends: opening them is the container's business."""
        taken: list[Pty] = []
        for _ in range(self.count):
            ptmx, pts, name = files.openpty_in(h[DEVPTS].fileno())
            pts.close()
            taken.append(Pty(ptmx=ptmx, name=name))
        h[TTYS] = tuple(taken)
        variables = h.get(HOOK_ENVIRONMENT)
        if variables is not None:  # start hooks are told what init is told
            variables["container_ttys"] = " ".join(pty.name for pty in taken)

    def explain(self) -> str:
        """How many."""
        return f"allocate {self.count} ptys of the container for its ttys"


class BindTtys(InitStep):
    """/dev/tty1 … as files that the ptys are bound on, or as links into `directory` below /dev."""

    directory: str | None
    needs = (ROOTFS, DEVPTS, TTYS)

    def apply(self, h: Handler) -> None:
        """One after another."""
        root, instance, ttys = h[ROOTFS].fileno(), h[DEVPTS].path, h[TTYS]
        if self.directory:
            files.make_directories(root, f"dev/{self.directory}", 0o755)
        with files.open_beneath(root, "dev", os.O_PATH | os.O_DIRECTORY) as dev:
            for number, pty in enumerate(ttys, start=1):
                source = f"{instance}/{pty.name.removeprefix('pts/')}"
                if self.directory:
                    _bind_file(root, source, f"dev/{self.directory}/tty{number}")
                    _link(f"{self.directory}/tty{number}", f"tty{number}", dev.fileno())
                else:
                    _bind_file(root, source, f"dev/tty{number}")

    def explain(self) -> str:
        """Where."""
        place = f"/dev/{self.directory}, with links from /dev" if self.directory else "/dev"
        return f"bind the ttys in {place}"


class SendTerminals(InitStep):
    """Give the monitor the devpts, the console's controlling end and those of the ttys."""

    devpts: bool
    console: bool
    ttys: int
    needs = (SYNC,)

    def apply(self, h: Handler) -> None:
        """In frames of at most 60 descriptors."""
        if self.devpts:
            h[SYNC].send_fds("devpts", [h[DEVPTS].fileno()])
        if self.console:
            h[SYNC].send_fds("console", [h[CONSOLE].ptmx.fileno()], h[CONSOLE].name)
        taken = h[TTYS] if self.ttys else ()
        for at in range(0, self.ttys, FDS_A_FRAME):
            part = taken[at : at + FDS_A_FRAME]
            listed = " ".join(pty.name for pty in part)
            h[SYNC].send_fds(f"ttys {at}", [pty.ptmx.fileno() for pty in part], listed)

    def explain(self) -> str:
        """What goes."""
        return f"send {_listing(self)} to the monitor"


class ReceiveTerminals(HostStep):
    """Take what SendTerminals sent; the relay and the command socket need it. Nothing of the host changes."""

    devpts: bool
    console: bool
    ttys: int
    needs = (SYNC,)

    def apply(self, h: Handler) -> None:
        """Wait for the frames in the order in which they are sent."""
        if self.devpts:
            _text, (instance,) = h[SYNC].receive_fds("devpts")
            h[DEVPTS] = instance
        if self.console:
            name, (ptmx,) = h[SYNC].receive_fds("console")
            h[CONSOLE] = Pty(ptmx=ptmx, name=name)
        taken: list[Pty] = []
        while len(taken) < self.ttys:
            listed, fds = h[SYNC].receive_fds(f"ttys {len(taken)}")
            taken += [Pty(ptmx=fd, name=n) for fd, n in zip(fds, listed.split(), strict=True)]
        if self.ttys:
            h[TTYS] = tuple(taken)

    def explain(self) -> str:
        """What comes."""
        return f"receive {_listing(self)} from init"


def _listing(step: SendTerminals | ReceiveTerminals) -> str:
    parts = ["the devpts"] * step.devpts + ["the console"] * step.console
    if step.ttys:
        parts.append(f"{step.ttys} ttys")
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if parts[1:] else parts[0]


def _directory(root: int, name: str) -> OwnedFd:
    """An O_PATH descriptor of a directory of the container, made where it is missing."""
    try:
        return files.open_beneath(root, name, os.O_PATH | os.O_DIRECTORY, no_symlinks=True)
    except FileNotFoundError:
        files.make_directories(root, name, 0o755)
        return files.open_beneath(root, name, os.O_PATH | os.O_DIRECTORY, no_symlinks=True)


def _bind_file(root: int, source: str, target: str, *, replace: bool = False) -> None:
    """Bind a device on a file of the container, which is made (mode 0000); with `replace` anew where there is one.

    What was mounted on a file that is there already is taken off.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        place = files.open_beneath(root, target, flags)
    except FileExistsError:
        if replace:
            _remove_file(root, target)
            place = files.open_beneath(root, target, flags)
        else:
            place = _uncovered(root, target)
    with place:
        mount.mount(source, place.path, flags=mount.MS_BIND)


def _link(target: str, name: str, directory: int) -> None:
    """A symbolic link in place of what has that name."""
    try:
        files.symlink(target, name, dir_fd=directory)
    except FileExistsError:
        files.unlink(name, dir_fd=directory)
        files.symlink(target, name, dir_fd=directory)


def _remove_file(root: int, name: str) -> None:
    directory, _, last = name.rpartition("/")
    with files.open_beneath(root, directory, os.O_PATH | os.O_DIRECTORY) as parent:
        files.unlink(last, dir_fd=parent.fileno())


def _uncovered(root: int, name: str) -> OwnedFd:
    """A file of the container without what is mounted on it."""
    while True:
        place = files.open_beneath(root, name, os.O_PATH | os.O_NOFOLLOW)
        try:
            if stat.S_ISLNK(os.fstat(place.fileno()).st_mode):
                raise HostError(
                    f"cannot bind a terminal on /{name}: it is a symbolic link in the container",
                    fix=f"remove /{name} from the root file system, or set lxc.autodev = 1",
                    errno=ELOOP,
                )
            mount.umount(place.path, flags=mount.MNT_DETACH)
        except OSError as error:
            if error.errno == EINVAL:  # not a mount point, or one that an outer namespace locked
                return place
            place.close()
            raise
        except HostError:
            place.close()
            raise
        place.close()


def _chmod(pts: OwnedFd, mode: int) -> None:
    """The mode of a pty; one of the host's that is not ours keeps its own."""
    try:
        files.chmod(pts.fileno(), mode)
    except OSError as error:
        if error.errno != EPERM:
            raise
