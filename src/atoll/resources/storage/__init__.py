"""Storage of root file systems: the keys lxc.rootfs.*, the table of back ends, and the steps that take a root.

Not the pivot or the pin (rootfs.py). Each back end is a module with `mount_steps(source, start, options) -> steps`.
Source: reference of LXC, sections 3.3 and 13 (type resolution by the text before the first colon).
"""

from __future__ import annotations

import os

from atoll.config import keys
from atoll.config.keys import Section, flag, key, text
from atoll.errors import ConfigError
from atoll.linux import files, mount
from atoll.linux.process import CLONE_NEWNS
from atoll.plan import ROOTFS, HostStep, InitStep
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.plan import Handler, Start

BACKENDS = {
    "dir": "atoll.resources.storage.dirs",
    "overlay": "atoll.resources.storage.dirs",
    "overlayfs": "atoll.resources.storage.dirs",
}
LATER = ("btrfs", "loop", "lvm", "nbd", "rbd", "zfs")
ENTRY_OPTIONS = ("create=", "optional", "relative")
"""LXC's own options of mount entries, which a root file system cannot have."""


def _plain(value: str) -> str:
    """The path without its type, as LXC's getter answers."""
    kind, colon, rest = value.partition(":")
    return rest if colon and (kind in BACKENDS or kind in LATER) else value


class Rootfs(Section):
    """lxc.rootfs.*: where the root file system is and how it is mounted."""

    path: str | None = key(
        "lxc.rootfs.path",
        text,
        show=_plain,
        later="storage",
        later_for=lambda value: value.partition(":")[0] in LATER,
        doc="[TYPE:]PATH of the root file system. TYPE: dir (default), overlay:LOWER:UPPER, btrfs,"
        " loop, lvm, nbd, rbd, zfs. Unset: the host's own.",
        example="/var/lib/lxc/c1/rootfs",
        since="2.x",
    )
    mount: str | None = key(
        "lxc.rootfs.mount",
        keys.path,
        doc="Directory of the host that it is mounted on during the set-up. Unset: the"
        " distribution's, or one in the run directory.",
        example="/run/c1-root",
        since="1.x",
    )
    options: str | None = key(
        "lxc.rootfs.options",
        text,
        later="storage",
        later_for=lambda value: "idmap=" in value,
        doc="Mount options for it with commas between, as mount(8) has them, and idmap=container"
        " or idmap=PATH.",
        example="ro,noatime",
        since="1.x",
    )
    managed: bool = key(
        "lxc.rootfs.managed",
        flag,
        default=True,
        doc="0: lxc-destroy leaves the storage alone.",
        example="0",
        since="5.0.2",
    )


class Source(Record):
    """What lxc.rootfs.path says: the back end and its own text ("/path", "/lower:/upper")."""

    backend: str
    text: str


class Options(Record):
    """lxc.rootfs.options taken apart: mount flags to set, propagation flags, and data for the file system."""

    flags: int = 0
    propagation: int = 0
    data: str = ""


def parse_source(value: str, origin: Origin | None = None) -> Source:
    """Take `[TYPE:]TEXT` apart; without a known type the whole is a directory's path.

    Raises ConfigError for a back end that exists in LXC but belongs to a later part of this project.
    """
    kind, colon, rest = value.partition(":")
    if colon and kind in BACKENDS:
        return Source(backend="overlay" if kind == "overlayfs" else kind, text=rest)
    if colon and kind in LATER:
        raise ConfigError(
            f"the storage back end {kind} is not there yet: it belongs to the storage part of the project",
            key="lxc.rootfs.path",
            origin=origin,
            fix="use a directory or overlay:LOWER:UPPER",
        )
    return Source(backend="dir", text=value)


def parse_options(value: str | None, origin: Origin | None) -> Options:
    """lxc.rootfs.options as flags and data. Raises ConfigError for options that only mount entries take."""
    flags, propagation = 0, 0
    data: list[str] = []
    for option in (value or "").split(","):
        if not option or option == "defaults":
            continue
        if option.startswith(ENTRY_OPTIONS) or option.startswith("idmap="):
            what = (
                "belongs to the storage part of the project"
                if option.startswith("idmap=")
                else "is for mount entries"
            )
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
    return Options(
        flags=flags & ~(mount.MS_BIND | mount.MS_REC), propagation=propagation, data=",".join(data)
    )


def directory(config: Config) -> str | None:
    """The directory that is the root file system, where it is one."""
    section = config[Rootfs]
    if not section.path:
        return None
    source = parse_source(section.path, config.origin("lxc.rootfs.path"))
    return source.text if source.backend == "dir" else None


def on_device(config: Config) -> bool:
    """Is the root file system a block device? A look at the host, made before planning."""
    path_ = directory(config)
    if path_ is None or not path_.startswith("/dev/"):
        return False
    from atoll.resources.storage import block

    return block.is_device(path_)


def attach(config: Config, host: Host, start: Start, *, device: bool) -> tuple[HostStep, ...]:
    """Before the clone: what the monitor has to mount itself."""
    del host
    if not device:
        return ()
    from atoll.resources.storage import block

    origin = config.origin("lxc.rootfs.path")
    options = parse_options(config[Rootfs].options, config.origin("lxc.rootfs.options"))
    return block.attach_steps(str(directory(config)), start, options, origin=origin)


def take(config: Config, host: Host, start: Start, *, device: bool) -> tuple[InitStep, ...]:
    """In init: mount the root file system, or take the host's as it is."""
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
    from atoll.resources.storage import dirs

    source = parse_source(section.path, origin)
    options = parse_options(section.options, config.origin("lxc.rootfs.options"))
    if device:
        from atoll.resources.storage import block

        return block.mount_steps(source.text, start, options, origin=origin)
    steps: list[InitStep] = [*dirs.mount_steps(source, host, start, options, origin=origin)]
    if options.propagation:
        steps.append(
            SetRootPropagation(
                flags=options.propagation, origin=config.origin("lxc.rootfs.options")
            )
        )
    return tuple(steps)


def protect(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, last before the pivot: make the root file system read-only where its mount points had to be made first."""
    del host
    section = config[Rootfs]
    if start.rootfs is None or not section.path:
        return ()
    from atoll.resources.storage import dirs

    origin = config.origin("lxc.rootfs.options")
    source = parse_source(section.path, config.origin("lxc.rootfs.path"))
    return dirs.protect_steps(source, start, parse_options(section.options, origin), origin=origin)


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
