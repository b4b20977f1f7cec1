"""The root file system: pin it, shield the host's mounts, mount it, pivot into it.

Not what is mounted inside (mounts.py) nor the storage back ends (storage/). Sources: pivot_root(2), mount_namespaces(7),
reference of LXC sections 1.6 and 3.3.
"""

from __future__ import annotations

import os
from errno import EROFS

from atoll.config.keys import Section, flag, key, path, text
from atoll.errors import ConfigError, HostError
from atoll.linux import files, mount
from atoll.linux.process import CLONE_NEWNS
from atoll.plan import ROOTFS, HostStep, InitStep, Slot
from atoll.resources.storage import Options, parse_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Start

PIN = Slot["OwnedFd"]("rootfs pin")
PIN_NAME = ".lxc_keep"
SPECIFIC = ("create=", "optional", "relative")


class Rootfs(Section):
    """lxc.rootfs.*: where the root file system is and how it is mounted."""

    path: str | None = key(
        "lxc.rootfs.path",
        text,
        legacy=("lxc.rootfs",),
        show=lambda value: parse_plain(value),
        doc="[TYPE:]PATH of the root file system. TYPE: dir (default), overlay:LOWER:UPPER.",
    )
    mount: str | None = key(
        "lxc.rootfs.mount", path, doc="Directory of the host on which it is mounted during the set-up."
    )
    options: str | None = key(
        "lxc.rootfs.options", text, doc="Mount options, comma separated; idmap= for an idmapped mount."
    )
    managed: bool = key(
        "lxc.rootfs.managed", flag, default=True, doc="0: lxc-destroy leaves the storage alone."
    )


def parse_plain(value: str) -> str:
    """The path without its type, as LXC's getter answers."""
    kind, colon, rest = value.partition(":")
    known = ("dir", "overlay", "overlayfs", "btrfs", "loop", "lvm", "nbd", "rbd", "zfs")
    return rest if colon and kind in known else value


def parse_options(value: str | None, origin: Origin | None) -> Options:
    """lxc.rootfs.options as flags and data. Raises ConfigError for options that only mount entries take."""
    flags, propagation = 0, 0
    data: list[str] = []
    for option in (value or "").split(","):
        if not option or option == "defaults":
            continue
        if option.startswith(SPECIFIC) or option.startswith("idmap="):
            what = "belongs to the storage part of the project" if option.startswith("idmap=") else "is for mount entries"
            raise ConfigError(
                f"lxc.rootfs.options: {option} {what}", key="lxc.rootfs.options", origin=origin
            )
        if option in mount.OPTIONS:
            clear, bit = mount.OPTIONS[option]
            flags = flags & ~bit if clear else flags | bit
        elif option in mount.PROPAGATION:
            propagation |= mount.PROPAGATION[option]
        else:
            data.append(option)
    return Options(flags=flags & ~(mount.MS_BIND | mount.MS_REC), propagation=propagation, data=",".join(data))


def pin(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone: keep a writable directory from being remounted read-only (LXC's .lxc_keep)."""
    section = config[Rootfs]
    if not section.path or start.id_map or not host.privileged:
        return ()
    source = parse_source(section.path, config.origin("lxc.rootfs.path"))
    if source.backend != "dir":
        return ()
    return (PinRootfs(path=source.text, origin=config.origin("lxc.rootfs.path")),)


def mount_point(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone: the default mount point is made where no distribution made one."""
    if start.rootfs is None or config[Rootfs].mount or start.rootfs != f"{host.run_directory}/rootfs":
        return ()
    return (MakeMountPoint(path=start.rootfs),)


def prepare(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, first thing in its mount namespace."""
    del config, host
    if start.namespaces & CLONE_NEWNS:
        return (ShieldHostMounts(),)
    return ()


def take(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: mount the root file system, or take the host's as it is."""
    del host
    section = config[Rootfs]
    origin = config.origin("lxc.rootfs.path")
    if start.rootfs is None or not section.path:
        return (ShareHostRoot(),)
    if not start.namespaces & CLONE_NEWNS:
        raise ConfigError(
            "a container with a root file system needs a mount namespace of its own",
            key="lxc.namespace.keep",
            origin=config.origin("lxc.namespace.keep") or config.origin("lxc.namespace.clone"),
            fix="take mnt out of lxc.namespace.keep, or add it to lxc.namespace.clone",
        )
    from atoll.resources.storage import dirs  # noqa: PLC0415 - a back end loads only when chosen

    source = parse_source(section.path, origin)
    options = parse_options(section.options, config.origin("lxc.rootfs.options"))
    steps: list[InitStep] = [*dirs.mount_steps(source, start, options, origin=origin)]
    if options.propagation:
        steps.append(
            SetRootPropagation(flags=options.propagation, origin=config.origin("lxc.rootfs.options"))
        )
    return tuple(steps)


def pivot(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: make the root file system `/` and let go of the host's tree."""
    del config
    if start.rootfs is None:
        return ()
    return (VerifyNotOvermounted(target=start.rootfs), EnterRoot(chroot=host.root_on_ramfs))


class PinRootfs(HostStep):
    """Hold an unlinked file in the root file system open for writing, so that nobody remounts it read-only."""

    path: str
    fills = (PIN,)

    def explain(self) -> str:
        """Say what is held."""
        return f"pin the root file system {self.path}"

    def apply(self, h: Handler) -> None:
        """Create, open, unlink. A root file system that cannot be written needs no pin."""
        place = f"{self.path}/{PIN_NAME}"
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
        try:
            fd = files.open_fd(place, flags, 0o600)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return  # the step that mounts it says what is wrong with it
        except OSError as error:
            if error.errno != EROFS:
                raise
            return
        try:
            files.unlink(place)
        except BaseException:
            fd.close()
            os.unlink(place)
            raise
        h[PIN] = fd


class MakeMountPoint(HostStep):
    """Make the default mount point of root file systems; it stays, like the run directory that it is in."""

    path: str

    def apply(self, h: Handler) -> None:
        """Make the directories that are missing."""
        del h
        files.make_directories(None, self.path, 0o755)


class ShieldHostMounts(InitStep):
    """Make every mount a slave, so that nothing mounted here reaches the host."""

    def explain(self) -> str:
        """Say why."""
        return "make all mounts slaves of the host's"

    def apply(self, h: Handler) -> None:
        """One recursive propagation change."""
        del h
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)


class ShareHostRoot(InitStep):
    """No root file system of its own: the container sees the host's tree."""

    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say whose root it is."""
        return "use the host's root file system (lxc.rootfs.path is not set)"

    def apply(self, h: Handler) -> None:
        """Open it."""
        h[ROOTFS] = files.open_fd("/", os.O_PATH | os.O_DIRECTORY)


class SetRootPropagation(InitStep):
    """Apply the propagation that lxc.rootfs.options asks for."""

    flags: int
    needs = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Change it."""
        mount.mount(None, h[ROOTFS].path, flags=self.flags)


class VerifyNotOvermounted(InitStep):
    """Refuse to go on when a hook mounted something over the root file system."""

    target: str
    needs = (ROOTFS,)

    def explain(self) -> str:
        """Say what is compared."""
        return f"verify that nothing was mounted over {self.target}"

    def apply(self, h: Handler) -> None:
        """Compare what the path leads to now with what was mounted."""
        now = os.stat(self.target)
        mounted = os.stat(h[ROOTFS].fileno())
        if (now.st_dev, now.st_ino) != (mounted.st_dev, mounted.st_ino):
            raise HostError(
                f"the root file system on {self.target} was overmounted during the set-up",
                fix="look at the mount hooks and at lxc.mount.entry lines whose target is the root itself",
            )


class EnterRoot(InitStep):
    """pivot_root into the root file system and detach the host's tree.

    Both arguments of pivot_root are "." (pivot_root(2), NOTES): no directory inside the container is needed. `chroot` is
    for a host whose root is a ramfs, which cannot be pivoted away.
    """

    chroot: bool = False
    needs = (ROOTFS,)

    def explain(self) -> str:
        """Say how."""
        return "move the root file system to / and chroot" if self.chroot else "pivot into the root file system"

    def apply(self, h: Handler) -> None:
        """Enter it."""
        root = h[ROOTFS].fileno()
        if self.chroot:
            os.fchdir(root)
            mount.mount(".", "/", flags=mount.MS_MOVE)
            os.chroot(".")
            os.chdir("/")
            return
        with files.open_fd("/", os.O_PATH | os.O_DIRECTORY) as old:
            os.fchdir(root)
            mount.pivot_root(".", ".")
            os.fchdir(old.fileno())
            mount.mount(None, ".", flags=mount.MS_SLAVE | mount.MS_REC)
            mount.umount(".", flags=mount.MNT_DETACH)
        os.chdir("/")
        mount.mount(None, "/", flags=mount.MS_SHARED | mount.MS_REC)
