"""Mounts inside a container: the automatic ones, lxc.mount.fstab, lxc.mount.entry, and its /dev.

Not the root file system (rootfs.py), cgroup mounts (cgroup/) and terminals (terminal/). All steps run in init's new mount
namespace before the pivot: the host's tree is at "/", the container's beneath the ROOTFS descriptor.
Source of truth: reference of LXC, sections 3.1, 3.2 and 3.5; mount(2), getmntent(3), mount_namespaces(7).

A target is opened beneath ROOTFS without following symbolic links (CVE-2015-1335) and mounted on through its descriptor. The
descriptor then still shows what is below, so what is to be changed in the new mount is opened anew.
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EINVAL, ELOOP, ENODEV, ENOENT, ENOTDIR, EPERM, EROFS

from atoll.config.keys import REFUSED, Kind, Section, flag, integer, key, many, path, text
from atoll.errors import AtollError, ConfigError, HostError, Origin, reason
from atoll.linux import files, mount
from atoll.linux.mount import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
)
from atoll.linux.process import CAPABILITIES, CLONE_NEWNET
from atoll.log import DEBUG, INFO, WARN
from atoll.plan import ROOTFS, InitStep
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Start

DEV_SIZE = 500000
SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
NODES = (
    ("full", 1, 7),
    ("null", 1, 3),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
)
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
IGNORED = frozenset(
    ("sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "remount")
)
"""Options that LXC knows and does not apply."""
NESTING_ENTRIES = (
    "proc dev/.lxc/proc proc create=dir,optional 0 0",
    "sys dev/.lxc/sys sysfs create=dir,optional 0 0",
)
SHARED_DIRECTORY = "/dev/.lxc-mounts"
BOOT_ID_FILE = "dev/.lxc-boot-id"
BOOT_ID = "proc/sys/kernel/random/boot_id"


def _cgroup_forms() -> frozenset[str]:
    modes = ("", ":mixed", ":ro", ":rw")
    forms = {f"{a}{m}{f}" for a in ("cgroup", "cgroup-full") for m in modes for f in ("", ":force")}
    return frozenset(forms | {f"cgroup2{m}{f}" for m in ("", ":ro", ":rw") for f in ("", ":force")})


CGROUP_FORMS = _cgroup_forms()
FORMS = CGROUP_FORMS | {"proc", "proc:mixed", "proc:rw", "sys", "sys:mixed", "sys:ro", "sys:rw"}


class Automatic(Record):
    """lxc.mount.auto, read: the mode of each group, None where it is not wanted.

    `cgroup` is the token as it stands; `shared` the host's and the container's directory of shmounts.
    """

    proc: str | None = None
    sys: str | None = None
    cgroup: str | None = None
    shared: tuple[str, str] | None = None


def _parse_token(token: str) -> str:
    if token not in FORMS and not token.startswith("shmounts:"):
        raise ValueError(
            f'there is no automatic mount "{token}": use proc, sys, cgroup, cgroup-full, cgroup2 or shmounts:DIR'
        )
    if token.startswith("shmounts:") and not token[9:].partition(":")[0]:
        raise ValueError(f'"{token}" names no directory')
    return token


def _show_tokens(tokens: tuple[str, ...]) -> str:
    """LXC's getter: nothing for shmounts, cgroup2 and what has :force."""
    wanted = parse_automatic(tokens)
    shown = [f"proc:{wanted.proc}"] if wanted.proc else []
    if wanted.sys:
        shown.append(f"sys:{wanted.sys}")
    cgroup = wanted.cgroup
    if cgroup and not cgroup.startswith("cgroup2") and not cgroup.endswith(":force"):
        shown.append(cgroup)
    return " ".join(shown)


def parse_automatic(tokens: tuple[str, ...]) -> Automatic:
    """The last token of each group counts."""
    found: dict[str, Any] = {}
    for token in tokens:
        name, _, rest = token.partition(":")
        if name in ("proc", "sys"):
            found[name] = rest or "mixed"
        elif name == "shmounts":
            outside, _, inside = rest.partition(":")
            found["shared"] = (outside, inside or SHARED_DIRECTORY)
        else:
            found["cgroup"] = token
    return Automatic(**found)


def _parse_dev_size(value: str) -> int:
    """LXC takes what is no number for the default, silently."""
    try:
        return integer.parse(value)
    except ValueError:
        return DEV_SIZE


class Mounts(Section):
    """lxc.mount.*: what is mounted in the container before it starts."""

    auto: tuple[str, ...] = key(
        "lxc.mount.auto",
        many(Kind(_parse_token, name="mount", values=tuple(sorted(FORMS))), split=str.split),
        show=_show_tokens,
        doc="Mounts by name: proc[:mixed|rw], sys[:mixed|ro|rw],"
        " cgroup[-full][:mixed|ro|rw][:force], cgroup2[:ro|:rw][:force],"
        " shmounts:HOSTDIR[:DIR]. The last one of a group counts.",
        example="proc:mixed sys:ro cgroup:mixed",
        since="1.x",
    )
    entries: tuple[str, ...] = key(
        "lxc.mount.entry",
        many(text),
        later="storage",
        later_for=lambda line: "idmap=" in line,
        doc="A line of fstab(5), SOURCE TARGET TYPE OPTIONS 0 0; the target is relative to the"
        " root file system. More options: create=dir, create=file, optional, relative.",
        example="/srv/data data none bind,ro,create=dir 0 0",
        since="1.x",
    )
    fstab: str | None = key(
        "lxc.mount.fstab",
        path,
        empty=REFUSED,
        doc="File of the host with such lines; they are mounted before those of lxc.mount.entry.",
        example="/var/lib/lxc/c1/fstab",
        since="2.x",
    )


class Autodev(Section):
    """lxc.autodev: a /dev of the container's own."""

    enabled: bool = key(
        "lxc.autodev",
        flag,
        default=True,
        empty=False,
        doc="1: mount a tmpfs on /dev and put device nodes in it; 0, or an empty value: leave the"
        " root file system's /dev.",
        example="0",
        since="1.x",
    )
    size: int = key(
        "lxc.autodev.tmpfs.size",
        Kind(_parse_dev_size, name="number"),
        default=0,
        doc="Size of that tmpfs in bytes; 0: 500000, and so is what is no number.",
        example="1000000",
        since="5.0.2",
    )


class Entry(Record):
    """One line of fstab, read. `flags` are for mount(2), `propagation` for a call of its own, `data` the file system's.

    `create`: make the target as "dir" or "file". `relative`: the source is in the container. `dev`: device nodes are
    asked for even where the source's mount has none.
    """

    source: str
    target: str
    fstype: str
    flags: int = 0
    propagation: int = 0
    data: str = ""
    create: str = ""
    optional: bool = False
    relative: bool = False
    dev: bool = False
    ignored: str = ""


def load_fstab(config: Config) -> str | None:
    """The text of lxc.mount.fstab, None when it is not set. Raises ConfigError when it cannot be read."""
    name = config[Mounts].fstab
    if name is None:
        return None
    try:
        return files.read_text(name)
    except OSError as error:
        raise ConfigError(
            f"cannot read the mounts of {name}: {reason(error)}",
            key="lxc.mount.fstab",
            origin=config.origin("lxc.mount.fstab"),
        ) from error


def cgroup_token(config: Config) -> str | None:
    """The last cgroup, cgroup-full or cgroup2 token of lxc.mount.auto as it stands, or None."""
    return parse_automatic(config[Mounts].auto).cgroup


def has_own_dev(config: Config, start: Start) -> bool:
    """A tmpfs goes on /dev. A container without a root file system shares the host's /dev unless it asks."""
    return config[Autodev].enabled and (
        start.rootfs is not None or config.origin("lxc.autodev") is not None
    )


def device_tmpfs(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """The tmpfs on /dev."""
    del host
    if not has_own_dev(config, start):
        return ()
    size = config[Autodev].size
    return (
        MountDevTmpfs(size=size if size > 0 else DEV_SIZE, origin=config.origin("lxc.autodev")),
    )


def automatic(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """lxc.mount.auto without its cgroup part."""
    wanted = parse_automatic(config[Mounts].auto)
    origins = _origins_of_groups(config)
    own_root = start.rootfs is not None
    steps: list[InitStep] = []
    if wanted.proc:
        net = bool(start.kept_capabilities >> CAPABILITIES.index("net_admin") & 1)
        steps.append(
            MountProc(
                mode=wanted.proc,
                net=net,
                fresh=own_root,
                masked=host.proc_masked,
                origin=origins.get("proc"),
            )
        )
    if wanted.sys:
        foreign_net = bool(start.id_map) and not start.namespaces & CLONE_NEWNET
        steps.append(
            MountSys(
                mode=wanted.sys, fresh=own_root, foreign_net=foreign_net, origin=origins.get("sys")
            )
        )
    if wanted.shared:
        outside, inside = wanted.shared
        entry = Entry(
            source=outside, target=inside.strip("/"), fstype="none", flags=MS_BIND, create="dir"
        )
        steps.append(_mount_step(entry, start, origins.get("shmounts")))
    return tuple(steps)


def fstab(
    config: Config, host: Host, start: Start, *, fstab_text: str | None
) -> tuple[InitStep, ...]:
    """The lines of lxc.mount.fstab, which load_fstab read."""
    del host
    name = config[Mounts].fstab
    if name is None or fstab_text is None:
        return ()
    steps: list[InitStep] = []
    for line_number, line in enumerate(fstab_text.split("\n"), start=1):
        origin = Origin(file=name, line=line_number, text=line.strip())
        steps += _steps_of_line(config, start, line, origin)
    return tuple(steps)


def entries(config: Config, host: Host, start: Start, *, nesting: bool) -> tuple[InitStep, ...]:
    """lxc.mount.entry in order; `nesting` (lxc.apparmor.allow_nesting) adds a proc and a sysfs for inner containers."""
    del host
    steps: list[InitStep] = []
    lines = config[Mounts].entries
    for line, origin in zip(lines, config.origins("lxc.mount.entry"), strict=True):
        steps += _steps_of_line(config, start, line, origin)
    if lines and nesting:
        nested = config.origin("lxc.apparmor.allow_nesting")
        for line in NESTING_ENTRIES:
            steps += _steps_of_line(config, start, line, nested)
    return tuple(steps)


def populate_dev(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """The device nodes of a /dev of its own, and the links to the standard streams."""
    del host
    steps: list[InitStep] = []
    if has_own_dev(config, start):
        steps.append(MakeDeviceNodes(origin=config.origin("lxc.autodev")))
    if start.rootfs is not None:
        steps.append(LinkStandardStreams())
    return tuple(steps)


def boot_id(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """A boot id of the container's own. Before the pivot, while the host's /proc leads to descriptors."""
    del host
    if start.rootfs is None or not has_own_dev(config, start):
        return ()
    return (ReplaceBootId(origin=config.origin("lxc.autodev")),)


def after_pivot(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """The directory of shmounts gets what the host mounts there later, and gives nothing back."""
    del host, start
    shared = parse_automatic(config[Mounts].auto).shared
    if shared is None:
        return ()
    origin = _origins_of_groups(config).get("shmounts")
    return (ReceiveMounts(directory=shared[1].strip("/"), origin=origin),)


def _origins_of_groups(config: Config) -> dict[str, Origin]:
    """The line of the last token of each group."""
    tokens = config[Mounts].auto
    origins = config.origins("lxc.mount.auto")
    return {t.partition(":")[0]: o for t, o in zip(tokens, origins, strict=True) if o is not None}


# --------------------------------------------------------------------------------- fstab's language
_ESCAPES = {
    "\\040": " ",
    "\\011": "\t",
    "\\012": "\n",
    "\\134": "\\",
    "\\043": "#",
}


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    out: list[str] = []
    at = 0
    while at < len(field):
        known = _ESCAPES.get(field[at : at + 4])
        if known is not None:
            out.append(known)
            at += 4
        elif field[at : at + 2] == "\\\\":
            out.append("\\")
            at += 2
        else:
            out.append(field[at])
            at += 1
    return "".join(out)


def parse_line(line: str) -> Entry | None:
    """A line as getmntent(3) reads it; None for an empty one and a comment. Raises ValueError with the reason."""
    fields = line.replace("\t", " ").strip(" \r\n").split(" ")
    fields = [field for field in fields if field]
    if not fields or fields[0].startswith("#"):
        return None
    if len(fields) == 1:
        raise ValueError("it has no target: SOURCE TARGET FSTYPE OPTIONS 0 0")
    source, target, fstype, options = (_unescape(f) for f in (*fields, "", "")[:4])
    return Entry(source=source, target=target, fstype=fstype or "none", **_parse_options(options))


def _parse_options(options: str) -> dict[str, Any]:
    """The fields of Entry that options are. What nobody knows is the file system's."""
    flags = propagation = 0
    data: list[str] = []
    ignored: list[str] = []
    found: dict[str, Any] = {}
    for option in options.split(","):
        if option in ("optional", "relative"):
            found[option] = True
        elif option.startswith("create="):
            if option not in ("create=dir", "create=file"):
                raise ValueError(f"{option} is neither create=dir nor create=file")
            found["create"] = option[7:]
        elif option.startswith("idmap="):
            raise ValueError(f"{option}: idmapped mounts belong to a later part of Atoll")
        elif option in IGNORED:
            ignored.append(option)
        elif option in mount.PROPAGATION:
            propagation |= mount.PROPAGATION[option]
        elif option in mount.OPTIONS:
            clear, bits = mount.OPTIONS[option]
            flags = flags & ~bits if clear else flags | bits
            found["dev"] = option == "dev" or (option != "nodev" and found.get("dev", False))
        elif option:
            data.append(option)
    found |= {"flags": flags, "propagation": propagation, "data": ",".join(data)}
    return {**found, "ignored": ",".join(ignored)}


def _steps_of_line(
    config: Config, start: Start, line: str, origin: Origin | None
) -> tuple[InitStep, ...]:
    try:
        entry = parse_line(line)
    except ValueError as error:
        raise ConfigError(
            f'cannot use mount entry "{line.strip()}": {error}',
            key="lxc.mount.entry",
            origin=origin,
        ) from error
    if entry is None:
        return ()
    target = _target_inside(entry.target, config, start)
    if target is None:
        return (SkipMount(target=entry.target, origin=origin),)
    return (_mount_step(entry.replace(target=target), start, origin),)


def _target_inside(target: str, config: Config, start: Start) -> str | None:
    """The target without leading slash; None when it is an absolute path that is not the container's."""
    if start.rootfs is None or not target.startswith("/"):
        return target.strip("/") or "."
    for prefix in (f"{start.directory}/rootfs", config.get("lxc.rootfs.path")):
        if prefix and prefix in target:
            return target.split(prefix, 1)[1].strip("/") or "."
    return None


def _mount_step(entry: Entry, start: Start, origin: Origin | None) -> MountEntry:
    return MountEntry(**entry.as_dict(), links=start.rootfs is None, origin=origin)


# -------------------------------------------------------------------------------------------- steps
class MountDevTmpfs(InitStep):
    """A tmpfs of `size` bytes on /dev, and /dev/pts in it."""

    size: int
    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """/dev is made where it is missing."""
        root = h[ROOTFS].fileno()
        with _directory(root, "dev") as place:
            mount.mount("none", place.path, "tmpfs", data=f"size={self.size},mode=0755")
        with files.open_beneath(root, "dev", os.O_PATH | os.O_DIRECTORY) as dev:
            _with_umask(0, lambda: files.mkdir("pts", 0o755, dir_fd=dev.fileno()))

    def explain(self) -> str:
        """With its size."""
        return f"mount a tmpfs of {self.size} bytes on /dev"


class MountProc(InitStep):
    """proc on /proc; `mode` mixed: /proc/sys is read-only, but for /proc/sys/net when `net` (the container keeps net_admin).

    `fresh`: take off what is mounted there. `masked`: parts of this machine's /proc are covered (host.proc_masked).
    """

    mode: str
    net: bool
    fresh: bool
    masked: bool
    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Mount it, then bind parts of it onto themselves."""
        root = h[ROOTFS].fileno()
        with _free_place(root, "proc", fresh=self.fresh) as place:
            try:
                mount.mount("proc", place.path, "proc", flags=SAFE)
            except OSError as error:
                if error.errno == EPERM and self.masked:
                    raise _masked_proc() from error
                raise
        if self.mode != "mixed":
            return
        with files.open_beneath(root, "proc", os.O_PATH | os.O_DIRECTORY) as proc:
            self._protect(proc.fileno())

    def _protect(self, proc: int) -> None:
        network = _open_if_there(proc, "sys/net") if self.net else None
        if _bind_read_only(proc, "sys") and network is not None:
            with network, files.open_beneath(proc, "sys/net", os.O_PATH) as place:
                mount.mount(network.path, place.path, flags=MS_BIND)
        _bind_read_only(proc, "sysrq-trigger")

    def explain(self) -> str:
        """What can be written."""
        if self.mode != "mixed":
            return "mount proc on /proc"
        return f"mount proc on /proc, /proc/sys read-only{' but for /proc/sys/net' * self.net}"


class MountSys(InitStep):
    """sysfs on /sys; `mode` mixed: read-only but for /sys/devices/virtual/net, ro: read-only, rw.

    `foreign_net`: there is a user namespace, and the network namespace is not one of its own.
    """

    mode: str
    fresh: bool
    foreign_net: bool
    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Writable first: what stays so is bound before the rest becomes read-only."""
        root = h[ROOTFS].fileno()
        flags = {"mixed": SAFE, "ro": MS_RDONLY}.get(self.mode, 0)
        with _free_place(root, "sys", fresh=self.fresh) as place:
            try:
                mount.mount("sysfs", place.path, "sysfs", flags=flags)
            except OSError as error:
                if error.errno == EPERM and self.foreign_net:
                    raise _foreign_sysfs() from error
                raise
        if self.mode != "mixed":
            return
        with files.open_beneath(root, "sys", os.O_PATH | os.O_DIRECTORY) as sysfs:
            network = _open_if_there(sysfs.fileno(), "devices/virtual/net")
            if network is not None:
                with network:
                    mount.mount(network.path, network.path, flags=MS_BIND)
            mount.mount(None, sysfs.path, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | SAFE)

    def explain(self) -> str:
        """What can be written."""
        kinds = {"mixed": ", read-only but for /sys/devices/virtual/net", "ro": ", read-only"}
        return f"mount sysfs on /sys{kinds.get(self.mode, '')}"


class SkipMount(InitStep):
    """A mount entry with an absolute target that is not in the container's root file system: ignored, as LXC does."""

    target: str

    def apply(self, h: Handler) -> None:
        """Say so."""
        h.report(WARN, f"ignoring mount entry: its target {self.target} is not in the container")

    def explain(self) -> str:
        """What is ignored."""
        return f"ignore mount entry for {self.target}, which is not in the container"


class MountEntry(InitStep):
    """One line of fstab; the fields are Entry's. `links`: symbolic links in the target are followed (no rootfs)."""

    source: str
    target: str
    fstype: str
    flags: int
    propagation: int
    data: str
    create: str
    optional: bool
    relative: bool
    dev: bool
    ignored: str
    links: bool
    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Mount; a bind mount's options need a second call, its propagation a third."""
        if self.ignored:
            h.report(
                INFO, f"options without effect in mount entry for /{self.target}: {self.ignored}"
            )
        try:
            self._mount(h, h[ROOTFS].fileno())
        except (OSError, AtollError) as error:
            if not self.optional:
                raise
            told = isinstance(error, AtollError)
            why = reason(error) if told else f"cannot {self.explain()}: {reason(error)}"
            h.report(INFO, f"going on without an optional mount: {why}")

    def _mount(self, h: Handler, root: int) -> None:
        with self._target(root) as place:
            if not self.relative:
                self._mount_on(place, self.source)
            else:
                with self._relative_source(root) as source:
                    self._mount_on(place, source.path)
        if self.flags & MS_BIND:
            self._apply_options(h, root)
        if self.propagation:
            with self._open(root) as mounted:
                mount.mount(None, mounted.path, flags=self.propagation)

    def _mount_on(self, place: OwnedFd, source: str) -> None:
        try:
            fstype = None if self.flags & MS_BIND else self.fstype
            mount.mount(source, place.path, fstype, flags=self.flags, data=self.data or None)
        except OSError as error:
            told = self._tell(error, place)
            if told is None:
                raise
            raise told from error

    def _apply_options(self, h: Handler, root: int) -> None:
        """Keep what the source's mount forbids; without anything new, or ro, LXC leaves a bind mount as it is."""
        with self._open(root) as mounted:
            locked = MS_NOSUID | MS_RDONLY | MS_NOEXEC | (0 if self.dev else MS_NODEV)
            required = os.statvfs(mounted.fileno()).f_flag & locked
            if not required & ~self.flags and not self.flags & MS_RDONLY:
                lost = self.flags & SAFE & ~required
                if lost:
                    names = mount.flag_names(lost).replace("MS_", "").replace("|", ",").lower()
                    h.report(
                        WARN, f"{names} of mount entry for /{self.target} need ro to have an effect"
                    )
                return
            flags = MS_REMOUNT | MS_BIND | (self.flags & ~MS_REC) | required
            mount.mount(None, mounted.path, flags=flags)

    def _open(self, root: int) -> OwnedFd:
        return files.open_beneath(root, self.target, os.O_PATH, no_symlinks=not self.links)

    def _target(self, root: int) -> OwnedFd:
        """The place to mount on, made if the entry says so."""
        try:
            return self._open(root)
        except OSError as error:
            if error.errno == ELOOP:
                raise self._linked(root) from error
            if error.errno != ENOENT:
                raise
            if not self.create:
                raise self._missing() from error
        self._make(root)
        return self._open(root)

    def _make(self, root: int) -> None:
        if self.create == "dir":
            files.make_directories(root, self.target, 0o755)
            return
        parent = self.target.rpartition("/")[0]
        if parent:
            files.make_directories(root, parent, 0o755)
        files.make_file(root, self.target, 0)

    def _relative_source(self, root: int) -> OwnedFd:
        try:
            return files.open_beneath(root, self.source.strip("/") or ".", os.O_PATH)
        except FileNotFoundError as error:
            raise HostError(
                f"cannot {self.explain()}: the container has no /{self.source.strip('/')}",
                fix="make it, or remove relative from the entry's options",
                errno=error.errno,
            ) from error

    def _linked(self, root: int) -> HostError:
        link = _first_link(root, self.target)
        return HostError(
            f"cannot {self.explain()}: /{link} is a symbolic link in the container",
            fix="name the directory that it leads to as the entry's target",
            errno=ELOOP,
        )

    def _missing(self) -> HostError:
        try:
            kind = "dir" if self.fstype != "none" or os.path.isdir(self.source) else "file"
        except ValueError:  # a NUL in the name
            kind = "dir"
        return HostError(
            f"cannot {self.explain()}: the container has no /{self.target}",
            fix=f"add create={kind} to the entry's options",
            errno=ENOENT,
        )

    def _tell(self, error: OSError, place: OwnedFd) -> HostError | None:
        """Better words where the cause is known."""
        bind = self.flags & MS_BIND
        told: tuple[str, str] | None = None
        if error.errno == ENOENT and bind and not os.path.lexists(self.source):
            told = f"there is no {self.source}", "make it, or add optional to the entry's options"
        elif error.errno == ENOTDIR and bind:
            onto = "directory" if stat.S_ISDIR(os.fstat(place.fileno()).st_mode) else "file"
            other = "file" if onto == "directory" else "directory"
            told = f"{self.source} is no {onto}", f"give it a target that is a {other}"
        elif error.errno == ENODEV and not bind and self.fstype not in _file_systems():
            told = (
                f"this kernel knows no file system {self.fstype}",
                f"load its module (modprobe {self.fstype}) or correct the type",
            )
        if told is None:
            return None
        return HostError(f"cannot {self.explain()}: {told[0]}", fix=told[1], errno=error.errno)

    def explain(self) -> str:
        """What on what, and how."""
        inside = "the container's /" if self.relative else ""
        target = "/" if self.target == "." else f"/{self.target}"
        read_only = ", read-only" if self.flags & MS_RDONLY else ""
        if self.flags & MS_BIND:
            tree = " with what is mounted in it" if self.flags & MS_REC else ""
            return f"bind {inside}{self.source}{tree} on {target}{read_only}"
        what = (
            self.fstype if self.source in (self.fstype, "none") else f"{self.fstype} {self.source}"
        )
        return f"mount {what} on {target}{read_only}"


class MakeDeviceNodes(InitStep):
    """full, null, random, tty, urandom and zero in /dev: made, or in a user namespace bound from the host."""

    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """What an autodev hook made already stays."""
        with files.open_beneath(h[ROOTFS].fileno(), "dev", os.O_PATH | os.O_DIRECTORY) as dev:
            _with_umask(0, lambda: self._make_all(dev.fileno()))

    def _make_all(self, dev: int) -> None:
        made_here = True
        for name, major, minor in NODES:
            if made_here:
                try:
                    files.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
                    continue
                except FileExistsError:
                    continue
                except PermissionError:
                    made_here = False
            self._bind(dev, name)

    def _bind(self, dev: int, name: str) -> None:
        """An empty file with the host's node bound on it."""
        if not files.make_file(dev, name, 0):
            return
        with files.open_beneath(dev, name, os.O_PATH, no_symlinks=True) as place:
            mount.mount(f"/dev/{name}", place.path, flags=MS_BIND)

    def explain(self) -> str:
        """Their names."""
        return f"make device nodes {' '.join(name for name, _major, _minor in NODES)} in /dev"


class LinkStandardStreams(InitStep):
    """/dev/fd, stdin, stdout and stderr as links to /proc/self/fd, where the names are free."""

    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """A root file system that is read-only, or has no /dev, is as it is."""
        try:
            dev = files.open_beneath(h[ROOTFS].fileno(), "dev", os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            h.report(DEBUG, "no links to the standard streams: the container has no /dev")
            return
        with dev:
            for name, target in LINKS:
                try:
                    files.symlink(target, name, dir_fd=dev.fileno())
                except OSError as error:
                    if error.errno not in (EEXIST, EROFS):
                        raise

    def explain(self) -> str:
        """Their names."""
        return "link /dev/fd, stdin, stdout and stderr to /proc/self/fd"


class ReplaceBootId(InitStep):
    """A random uuid in /dev/.lxc-boot-id, bound read-only on /proc/sys/kernel/random/boot_id."""

    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Without a proc in the container there is nothing to replace."""
        root = h[ROOTFS].fileno()
        try:
            place = files.open_beneath(root, BOOT_ID, os.O_PATH, no_symlinks=True)
        except OSError as error:
            h.report(DEBUG, f"no boot id of its own: {reason(error)}")
            return
        with place:
            try:
                self._bind(root, place)
            except OSError as error:
                h.report(WARN, f"cannot {self.explain()}: {reason(error)}")

    def _bind(self, root: int, place: OwnedFd) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with files.open_beneath(root, BOOT_ID_FILE, flags, 0o444) as file:
            os.write(file.fileno(), random_uuid(os.urandom(16)).encode() + b"\n")
            mount.mount(file.path, place.path, flags=MS_BIND)
        with files.open_beneath(root, BOOT_ID, os.O_PATH) as mounted:
            mount.mount(None, mounted.path, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | SAFE)

    def explain(self) -> str:
        """What for."""
        return "give the container a boot id of its own"


class ReceiveMounts(InitStep):
    """After the pivot: make a directory's mounts slaves of the host's."""

    directory: str
    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """By descriptor: /proc is the container's by now."""
        with files.open_beneath(h[ROOTFS].fileno(), self.directory, os.O_PATH) as place:
            mount.mount_setattr(place.fileno(), propagation=MS_SLAVE, recursive=True)

    def explain(self) -> str:
        """Where."""
        return f"receive the host's later mounts in /{self.directory}"


def random_uuid(data: bytes) -> str:
    """A version 4 uuid of 16 random bytes (RFC 9562)."""
    digits = bytearray(data)
    digits[6] = digits[6] & 0x0F | 0x40
    digits[8] = digits[8] & 0x3F | 0x80
    text_ = digits.hex()
    return "-".join((text_[:8], text_[8:12], text_[12:16], text_[16:20], text_[20:]))


def _with_umask(mask: int, action: Callable[[], None]) -> None:
    """Modes are exact, whatever the umask that was inherited."""
    before = os.umask(mask)
    try:
        action()
    finally:
        os.umask(before)


def _directory(root: int, name: str) -> OwnedFd:
    """An O_PATH descriptor of a directory of the container's root, made where it is missing."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        try:
            return files.open_beneath(root, name, flags, no_symlinks=True)
        except FileNotFoundError:
            files.make_directories(root, name, 0o755)
            return files.open_beneath(root, name, flags, no_symlinks=True)
    except OSError as error:
        if error.errno not in (ELOOP, ENOTDIR):
            raise
        raise HostError(
            f"cannot mount on /{name}: it is not a directory in the container"
            if error.errno == ENOTDIR
            else f"cannot mount on /{name}: it is a symbolic link in the container",
            fix=f"make /{name} a directory of the root file system",
            errno=error.errno,
        ) from error


def _free_place(root: int, name: str, *, fresh: bool) -> OwnedFd:
    """The directory; with `fresh` without what was mounted on it."""
    place = _directory(root, name)
    if not fresh or os.fstat(place.fileno()).st_dev == os.fstat(root).st_dev:
        return (
            place  # a bind mount of the same file system may hide there: it does no harm under ours
        )
    try:
        mount.umount(place.path, flags=mount.MNT_DETACH)
    except OSError as error:
        if error.errno == EINVAL:  # nothing is mounted there
            return place
        place.close()
        raise
    place.close()
    return _directory(root, name)


def _open_if_there(directory: int, name: str) -> OwnedFd | None:
    try:
        return files.open_beneath(directory, name, os.O_PATH)
    except FileNotFoundError:
        return None


def _bind_read_only(directory: int, name: str) -> bool:
    """Bind something onto itself and make that read-only; False when it is not there."""
    place = _open_if_there(directory, name)
    if place is None:
        return False
    with place:
        mount.mount(place.path, place.path, flags=MS_BIND)
    with files.open_beneath(directory, name, os.O_PATH) as mounted:
        mount.mount(None, mounted.path, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    return True


def _first_link(root: int, target: str) -> str:
    """The first part of a path that is a symbolic link."""
    parts = target.split("/")
    for count in range(1, len(parts) + 1):
        prefix = "/".join(parts[:count])
        try:
            with files.open_beneath(root, prefix, os.O_PATH | os.O_NOFOLLOW) as found:
                if stat.S_ISLNK(os.fstat(found.fileno()).st_mode):
                    return prefix
        except OSError:
            break
    return target


def _file_systems() -> tuple[str, ...]:
    """What this kernel can mount now, by /proc/filesystems."""
    try:
        lines = files.read_text("/proc/filesystems").split("\n")
    except OSError:
        return ()
    return tuple(line.split("\t")[-1] for line in lines)


def _masked_proc() -> HostError:
    return HostError(
        "cannot mount proc on /proc: the outer container masks parts of /proc, and the kernel lets a user namespace "
        "mount a new proc only where nothing of the old one is hidden",
        missing="an unmasked /proc",
        fix="start the outer container with its /proc unmasked (docker, podman: --security-opt unmask=/proc/*; "
        "LXC: lxc.mount.auto = proc:rw), or share it: lxc.mount.entry = /proc proc none rbind,create=dir 0 0 "
        "instead of proc in lxc.mount.auto",
        errno=EPERM,
    )


def _foreign_sysfs() -> HostError:
    return HostError(
        "cannot mount sysfs on /sys: a user namespace may do that only with a network namespace of its own",
        fix="give the container a network namespace, or bind the host's: lxc.mount.entry = /sys sys none rbind 0 0",
        errno=EPERM,
    )
