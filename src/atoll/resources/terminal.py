"""Terminals of a container: its devpts, its console, its ttys, and the monitor's relay between console and user.

Not the client of a tty (lxc-console is a tool) and not init's standard streams (lifecycle/spawn.py takes CONSOLE_PEER).
Source of truth: reference of LXC, sections 3.5 and 7; pty(7), devpts in the kernel's filesystems/devpts.rst.

Whose pty is the console: with lxc.pty.max above 1 the container's own devpts gives it (init allocates it and sends its ptmx to
the monitor), otherwise the host's devpts does, before the clone.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from errno import EBADF, EINVAL, EIO, ELOOP, ENOENT, EPERM

from atoll.config import keys
from atoll.config.keys import Kind, Section, flag, key, number, text
from atoll.errors import CommandError, HostError, reason
from atoll.linux import files, mount
from atoll.log import get_logger
from atoll.loop import READ, WRITE
from atoll.plan import ROOTFS, SYNC, HostStep, InitStep, Slot
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.linux.proc import IdMapping
    from atoll.loop import Loop
    from atoll.plan import Handler, Start

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


def relay(
    config: Config, h: Handler, loop: Loop, stdio: tuple[int, int, int] | None
) -> Relay | None:
    """The relay of a container that runs; None when it has no console.

    Shown on the terminal of lxc.console.path, else on the controlling terminal of this process, unless init got `stdio`.
    """
    pty = h.get(CONSOLE)
    if pty is None:
        return None
    section = config[Console]
    ring = Ring(section.buffer_size) if section.buffer_size else None
    made = Relay(loop, pty.ptmx.fileno(), log_file=h.take(CONSOLE_LOG), ring=ring)
    user = h.take(CONSOLE_USER)
    if user is None and stdio is None:
        user = _controlling_terminal()
    if user is not None:
        with user:
            try:
                made.attach(user.fileno(), user.fileno())
            except OSError as error:
                log.warn("cannot show the console on the terminal: %s", reason(error))
    return made


def save_relay(made: Relay) -> dict[str, Any] | None:
    """What a relay keeps, for the same process after an exec: texts, numbers and `fds`; None while somebody uses it."""
    if not made.idle:
        return None
    ring, log_file = made.ring, made.log_file
    saved: dict[str, Any] = {"ptmx": made.ptmx, "fds": [made.ptmx]}
    if ring is not None:
        saved["ring"] = (ring.capacity, ring.peek(0))
    if log_file is not None and log_file.fileno() >= 0:
        saved["log"] = (log_file.name, log_file.limit, log_file.rotate, log_file.fileno())
        saved["fds"].append(log_file.fileno())
    return saved


def restore_relay(saved: dict[str, Any], loop: Loop) -> Relay:
    """The relay of save_relay()."""
    ring = log_file = None
    if "ring" in saved:
        ring = Ring(saved["ring"][0] + 1)
        ring.write(saved["ring"][1])
    if "log" in saved:
        name, limit, rotate, fd = saved["log"]
        log_file = ConsoleLog(name, limit=limit, rotate=rotate, file=files.OwnedFd(fd))
    return Relay(loop, saved["ptmx"], log_file=log_file, ring=ring)


def _controlling_terminal() -> OwnedFd | None:
    try:
        return files.open_fd("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        log.debug("the console is shown nowhere: no controlling terminal: %s", reason(error))
        return None


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


class Ring:
    """The newest console output: a buffer of `size` bytes, of which size - 1 are usable, as in LXC."""

    def __init__(self, capacity: int) -> None:
        self.capacity = max(capacity - 1, 0)
        self._data = bytearray()

    def __len__(self) -> int:
        """Bytes that are kept."""
        return len(self._data)

    def write(self, data: bytes) -> None:
        """Add; the oldest bytes make room."""
        self._data += data
        del self._data[: max(len(self._data) - self.capacity, 0)]

    def read(self, limit: int = 0) -> bytes:
        """Take out the oldest `limit` bytes, 0: all."""
        data = bytes(self._data[: limit or None])
        del self._data[: len(data)]
        return data

    def peek(self, limit: int) -> bytes:
        """The oldest `limit` bytes, 0: all; they stay."""
        return bytes(self._data[: limit or None])

    def clear(self) -> None:
        """Forget everything."""
        self._data.clear()


class ConsoleLog:
    """The log file of the console: added to, with a cap of `limit` bytes (0: none), 0600.

    Full: with `rotate` it becomes NAME.1, else it is emptied; output goes on in the middle of a line, as in LXC.
    Failing to write never disturbs the container: it is said once, and the log ends there.
    """

    def __init__(
        self, name: str, *, limit: int = 0, rotate: bool = False, file: OwnedFd | None = None
    ) -> None:
        """Open it, unless it is given open. Raises OSError, or HostError for a limit on what is not a regular file."""
        self.name = name
        self.limit = limit
        self.rotate = rotate
        self._file: OwnedFd | None = file or self._open()
        status = os.fstat(self._file.fileno())
        self._used = status.st_size
        if limit and not stat.S_ISREG(status.st_mode):
            self.close()
            raise HostError(
                f"cannot cap the console's log file {name}: it is not a regular file",
                fix="remove lxc.console.size, or name another lxc.console.logfile",
            )

    def fileno(self) -> int:
        """The file's descriptor; -1 when the log has ended."""
        return self._file.fileno() if self._file is not None else -1

    def _open(self) -> OwnedFd:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY
        return files.open_fd(self.name, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Add, within the cap."""
        try:
            while data and self._file is not None:
                room = self.limit - self._used if self.limit else len(data)
                if room <= 0:
                    self._turn(self._file)
                    continue
                written = os.write(self._file.fileno(), data[:room])
                self._used += written
                data = data[written:]
        except OSError as error:
            log.warn("cannot write the console's log file %s, it ends here: %s", self.name, error)
            self.close()

    def _turn(self, full: OwnedFd) -> None:
        if self.rotate:
            files.rename(self.name, f"{self.name}.1")
            self._file = self._open()
            full.close()
        else:
            os.ftruncate(full.fileno(), 0)
        self._used = 0

    def replace(self, ring: Ring) -> None:
        """At the end: the oldest bytes of the ring buffer, as many as the cap allows, take the log's place.

        Without a cap the log has everything and stays. (LXC 5.0.2 empties it then, which helps nobody.)
        """
        if self._file is None or not self.limit or not len(ring):
            return
        try:
            os.ftruncate(self._file.fileno(), 0)
            self._used = os.write(self._file.fileno(), ring.peek(self.limit))
        except OSError as error:
            log.warn("cannot write the console's log file %s: %s", self.name, error)

    def close(self) -> None:
        """Close the file; writes go nowhere after that."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _End:
    """One descriptor of a user: opened anew where that works, because O_NONBLOCK would hit everybody who shares it.

    A shell's standard input is the same open file as ours: non-blocking for us would be non-blocking for the shell.
    """

    def __init__(self, fd: int, flags: int) -> None:
        status = os.fstat(fd)
        self.polled = not stat.S_ISREG(status.st_mode)
        self.may_block = False
        character = stat.S_ISCHR(status.st_mode) and status.st_rdev != os.makedev(5, 2)
        if character or stat.S_ISFIFO(status.st_mode):
            try:
                again = flags | os.O_NONBLOCK | os.O_NOCTTY
                self.own = files.open_fd(f"/proc/self/fd/{fd}", again)
            except OSError as error:  # somebody else's terminal (su), no /proc
                log.debug("cannot open descriptor %d anew: %s", fd, reason(error))
            else:
                return
        self.may_block = self.polled
        self.own = files.OwnedFd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))

    def fileno(self) -> int:
        return self.own.fileno()

    def write(self, data: bytes) -> int:
        """Write what goes now, perhaps nothing. OSError: nobody is there any more."""
        try:
            return os.write(self.fileno(), data[:SMALL] if self.may_block else data)
        except BlockingIOError:
            return 0

    def watch(self, loop: Loop, callback: Callable[[int], None], events: int) -> bool:
        """False for what cannot be watched, because it is always ready."""
        if self.polled:
            try:
                loop.watch(self.fileno(), callback, events=events)
            except PermissionError:
                self.polled = False
        return self.polled

    def close(self, loop: Loop) -> None:
        loop.forget(self.fileno())
        self.own.close()


SMALL = 256  # what a pipe and a terminal take whole when poll says that they can be written
READ_SIZE = 4096
READS_A_TURN = 16
HIGH_WATER = 65536
LOW_WATER = HIGH_WATER // 2


class Relay:
    """Carries bytes between a pty's controlling end and a user; nothing blocks, memory is bounded.

    What the container writes goes to the user (`attach`), the log file and the ring buffer. A user who reads slowly slows the
    container down and loses nothing; without a user the output is taken and dropped, so the container never blocks. What the
    user types waits for the container likewise.

    The pty is watched edge-triggered: when its last terminal end closes, the kernel reports a hang-up until one is opened
    again, which for a console is the everyday life of a getty (`lasting`), and the end for one command's terminal.
    """

    def __init__(
        self,
        loop: Loop,
        ptmx: int,
        *,
        log_file: ConsoleLog | None = None,
        ring: Ring | None = None,
        lasting: bool = True,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """`ptmx` stays the caller's to close, after close(). `on_end`: the pty ended and the user has everything."""
        self.loop = loop
        self.ptmx = ptmx
        self.log_file = log_file
        self.ring = ring
        self.ended = False
        self._lasting = lasting
        self._on_end = on_end
        self._input: _End | None = None
        self._output: _End | None = None
        self._saved: list[object] | None = None
        self._behind = -1  # a terminal that is not ours to read until our job is in the foreground
        self._to_user = bytearray()
        self._to_container = bytearray()
        self._paused = False
        self._writing = False
        self._feeding = False
        os.set_blocking(ptmx, False)
        self._watch_ptmx()

    def attach(self, stdin: int, stdout: int) -> None:
        """Show it to a user: `stdin` may be -1; a terminal is put into raw mode and gives the pty its size.

        The descriptors stay the caller's. Raises OSError; then nothing is attached and the terminal is as before.
        """
        self.detach()
        try:
            self._output = _End(stdout, os.O_WRONLY)
            if stdin >= 0 and _in_background(stdin):
                self._behind = stdin
                edge = READ | select.EPOLLET  # once a line, whoever reads it: not every shell sends SIGCONT
                self.loop.watch(stdin, lambda _events: self.come_forward(), events=edge)
            elif stdin >= 0:
                self._take_input(stdin)
        except BaseException:
            self.detach()
            raise
        self.resize()

    def _take_input(self, stdin: int) -> None:
        self._input = _End(stdin, os.O_RDONLY)
        if os.isatty(stdin):
            self._saved = files.make_raw(self._input.fileno())
        self._pace_input()

    def come_forward(self) -> None:
        """Where we were started in the background (`&`), the terminal may be ours now: SIGCONT says so, or a typed line."""
        stdin = self._behind
        if stdin >= 0 and not _in_background(stdin):
            self._stop_waiting()
            self._take_input(stdin)
            self.resize()

    def _stop_waiting(self) -> None:
        if self._behind >= 0:
            self.loop.forget(self._behind)
            self._behind = -1

    def detach(self) -> None:
        """The user goes: the terminal is as before, output that is not written yet is dropped. Harmless when repeated."""
        self._drop_input()
        if self._output is not None:
            self._output.close(self.loop)
            self._output = None
        self._writing = False
        self._to_user.clear()
        self._resume()

    def _drop_input(self) -> None:
        self._stop_waiting()
        if self._input is None:
            return
        if self._saved is not None:
            try:
                files.restore_terminal(self._input.fileno(), self._saved)
            except OSError as error:
                log.debug("cannot restore the terminal, it is gone: %s", reason(error))
            self._saved = None
        self._input.close(self.loop)
        self._input = None

    def resize(self) -> None:
        """Give the pty the size of the user's terminal (SIGWINCH)."""
        for end in (self._input, self._output):
            size = _size_of(end.fileno()) if end is not None else None
            if size is None:
                continue
            try:
                files.set_window_size(self.ptmx, *size)
            except OSError as error:
                log.debug("cannot copy the window size: %s", reason(error))
            return

    @property
    def idle(self) -> bool:
        """Nobody looks at it and nothing is under way: all there is to it is the pty, the log and the ring buffer."""
        used = self._input is not None or self._output is not None or self._behind >= 0
        return not (used or self.ended or self._paused or self._to_user or self._to_container)

    @property
    def pending(self) -> bool:
        """Output waits for the user."""
        return bool(self._to_user)

    def drain(self) -> None:
        """Take what the pty has, whatever waits for the user then: at the end of the container."""
        while not self.ended and self._read_once():
            pass
        self._flush()

    def finish(self) -> None:
        """The container ended: drain(), serve the loop until the user has everything or is gone, and close()."""
        self.drain()
        while self.pending:
            self.loop.run_once()
        self.close()

    def close(self) -> None:
        """Restore the terminal, stop watching, complete and close the log file. Harmless when repeated."""
        self.ended = True
        self.detach()
        self.loop.forget(self.ptmx)
        if self.log_file is not None:
            if self.ring is not None:
                self.log_file.replace(self.ring)
            self.log_file.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # -- from the container to the user

    def _watch_ptmx(self) -> None:
        """Watching anew reports what is ready now, edge or not."""
        waits = WRITE if self._to_container else 0
        self.loop.watch(self.ptmx, self._ptmx_ready, events=READ | waits | select.EPOLLET)

    def _ptmx_ready(self, events: int) -> None:
        if events & WRITE:
            self._feed()
            self._pace_input()
        if events & ~WRITE:
            self._pump()

    def _pump(self) -> None:
        """Some reads, so that one busy container does not starve the others; then ask to be called again."""
        for _ in range(READS_A_TURN):
            if self._paused or self.ended or not self._read_once():
                return
        self._watch_ptmx()

    def _read_once(self) -> bool:
        """One read; False when there is nothing (more)."""
        try:
            data = os.read(self.ptmx, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != EIO:
                raise
            data = b""
        if not data:
            if not self._lasting:
                self.ended = True
                self.loop.forget(self.ptmx)
                self._settle()
            return False
        if self.log_file is not None:
            self.log_file.write(data)
        if self.ring is not None:
            self.ring.write(data)
        if self._output is not None:
            self._to_user += data
            if self._output.may_block:  # only when it says that it can be written
                self._settle()
            else:
                self._flush()
        return True

    def _flush(self, _events: int = 0) -> None:
        """Write to the user what goes."""
        output = self._output
        while self._to_user and output is not None:
            try:
                written = output.write(bytes(self._to_user[:READ_SIZE]))
            except OSError as error:
                log.debug("the user of the console is gone: %s", reason(error))
                self.detach()
                break
            del self._to_user[:written]
            if not written or output.may_block:
                break
        self._settle()

    def _settle(self) -> None:
        """Choose between going on and waiting, and tell when all is over."""
        output, waiting = self._output, len(self._to_user)
        if output is not None and bool(waiting) != self._writing:
            self._writing = bool(waiting)
            if not waiting:
                self.loop.forget(output.fileno())
            elif not output.watch(self.loop, self._flush, WRITE):
                self._writing = False
        if waiting >= HIGH_WATER:
            self._paused = True
        elif waiting <= LOW_WATER:
            self._resume()
        if self.ended and not waiting and self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end()

    def _resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if not self.ended:
            self._watch_ptmx()

    # -- from the user to the container

    def _input_ready(self, _events: int) -> None:
        self._read_input()
        self._pace_input()

    def _pace_input(self) -> None:
        """Take what the user types as long as there is room for it; a regular file is always ready."""
        while self._input is not None and len(self._to_container) < LOW_WATER:
            if self._input.watch(self.loop, self._input_ready, READ):
                return
            self._read_input()
        if self._input is not None:
            self.loop.forget(self._input.fileno())

    def _read_input(self) -> None:
        if self._input is None:
            return
        try:
            data = os.read(self._input.fileno(), READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("the user of the console is gone: %s", reason(error))
            data = b""
        if data:
            self._to_container += data
            self._feed()
        else:
            self._drop_input()

    def _feed(self) -> None:
        """Write to the container what it takes."""
        while self._to_container:
            try:
                written = os.write(self.ptmx, bytes(self._to_container[:READ_SIZE]))
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("nobody in the container reads the console: %s", reason(error))
                written = len(self._to_container)
            del self._to_container[:written]
        if bool(self._to_container) != self._feeding and not self.ended:
            self._feeding = not self._feeding
            self._watch_ptmx()


def _in_background(fd: int) -> bool:
    """Is it our controlling terminal, and another job's turn to use it? To set it raw would take it from the shell."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # no terminal, or not our controlling one
        return False


def _size_of(fd: int) -> tuple[int, int] | None:
    try:
        return files.window_size(fd)
    except OSError:  # hung up
        return None


class TtyLeases:
    """Which ttys are lent to lxc-console: one client each, for as long as its connection to the command socket lives."""

    def __init__(self, h: Handler, lent: Iterable[int] = ()) -> None:
        """`lent`: those that are lent already (by the same monitor before an exec)."""
        self._ttys = h.get(TTYS) or ()
        self._lent = set(lent)

    def acquire(self, wanted_tty: int) -> tuple[int, int]:
        """Lend a tty, 1 to lxc.tty.max or -1 for the first free one: its number and its controlling end's descriptor.

        Raises CommandError with errno EBADF, which is what liblxc answers, when there is no such tty or it is lent.
        """
        count = len(self._ttys)
        if wanted_tty == -1:
            free = (n for n in range(1, count + 1) if n not in self._lent)
            wanted_tty = next(free, 0)
            if not wanted_tty:
                why = "all ttys are in use" if count else "the container has no ttys"
                raise CommandError(f"cannot open a tty: {why}", errno=EBADF)
        elif not 1 <= wanted_tty <= count:
            raise CommandError(
                f"cannot open tty {wanted_tty}: the container has {count or 'no'} ttys", errno=EBADF
            )
        elif wanted_tty in self._lent:
            raise CommandError(f"cannot open tty {wanted_tty}: it is in use", errno=EBADF)
        self._lent.add(wanted_tty)
        return wanted_tty, self._ttys[wanted_tty - 1].ptmx.fileno()

    def release(self, tty: int) -> None:
        """The client is gone."""
        self._lent.discard(tty)
