"""Directories and overlays as root file systems: the steps that mount them.

Not creation, copy or snapshots (later), nor loop devices and volumes. Sources: mount(2), the kernel's overlayfs document,
reference of LXC sections 3.3 and 13.
"""

from __future__ import annotations

import os

from atoll.errors import ConfigError, HostError, reason
from atoll.linux import files, mount
from atoll.plan import ROOTFS, InitStep
from atoll.resources.storage import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.errors import Origin
    from atoll.plan import Handler, Start
    from atoll.resources.storage import Source

TMPFS = "tmpfs"
"""As overlay upper directory: a new tmpfs, gone with the container. An extension: LXC's UPPER is a path."""
SKIPPED_TOP = ("proc", "sys", "dev", "run", "tmp", "lost+found", "mnt", "media")
"""Of the host's top directories, those that a rootless host image makes empty."""


def mount_steps(
    source: Source, start: Start, options: Options, *, origin: Origin | None
) -> tuple[InitStep, ...]:
    """The step that mounts `source` on start.rootfs. Raises ConfigError for a malformed overlay source."""
    target = start.rootfs or "/"
    if source.backend == "dir":
        return (
            MountDirectory(source=source.text, target=target, flags=options.flags, origin=origin),
        )
    lower, _, upper = source.text.rpartition(":")
    if not lower or not upper:
        raise ConfigError(
            f"an overlay root file system is overlay:LOWER:UPPER, not overlay:{source.text}",
            key="lxc.rootfs.path",
            origin=origin,
        )
    if lower == "/" and upper == TMPFS and not start.privileged:
        return (MountHostImage(target=target, flags=options.flags, origin=origin),)
    return (
        MountOverlay(
            lower=lower,
            upper=upper,
            target=target,
            flags=options.flags,
            data=options.data,
            user_attributes=not start.privileged or bool(start.id_map),
            origin=origin,
        ),
    )


class MountDirectory(InitStep):
    """Bind a directory of the host on the place where the root file system is built."""

    source: str
    target: str
    flags: int = 0
    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say what is bound where."""
        options = f" ({mount.flag_names(self.flags)})" if self.flags else ""
        return f"mount the root file system {self.source} on {self.target}{options}"

    def apply(self, h: Handler) -> None:
        """Bind it, read-only where asked."""
        if not os.path.isdir(self.source):
            raise _missing("root file system", self.source, "correct lxc.rootfs.path or create it")
        mount.mount(self.source, self.target, flags=mount.MS_BIND | mount.MS_REC)
        if self.flags:
            flags = mount.MS_REMOUNT | mount.MS_BIND | self.flags
            mount.mount(None, self.target, flags=flags)
        h[ROOTFS] = files.open_fd(self.target, os.O_PATH | os.O_DIRECTORY)


class MountOverlay(InitStep):
    """Mount an overlay; an upper of `tmpfs` is a new tmpfs that is gone with the container."""

    lower: str
    upper: str
    target: str
    flags: int = 0
    data: str = ""
    user_attributes: bool = False
    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say the layers."""
        upper = "a new tmpfs" if self.upper == TMPFS else self.upper
        return f"mount the root file system on {self.target}: read-only {self.lower} below {upper}"

    def apply(self, h: Handler) -> None:
        """Mount tmpfs where asked, then the overlay above it."""
        for lower in self.lower.split(":"):
            if not os.path.isdir(lower):
                raise _missing("lower directory", lower, "correct lxc.rootfs.path")
        upper = self.upper
        if upper == TMPFS:
            mount.mount("tmpfs", self.target, "tmpfs", data="mode=755")
            upper = f"{self.target}/upper"
            files.mkdir(upper, 0o755)
            work = f"{self.target}/work"
            files.mkdir(work, 0o755)
        else:
            if not os.path.isdir(upper):
                raise _missing("upper directory", upper, "correct lxc.rootfs.path or create it")
            work = f"{os.path.dirname(upper)}/work"
            if not os.path.isdir(work):
                files.mkdir(work, 0o755)
        h[ROOTFS] = self._mount(upper, work)

    def _mount(self, upper: str, work: str) -> files.OwnedFd:
        options = [
            f"lowerdir={_escaped(self.lower)}",
            f"upperdir={_escaped(upper)}",
            f"workdir={_escaped(work)}",
        ]
        if self.user_attributes:
            options.append("userxattr")
        if self.data:
            options.append(self.data)
        mount.mount("overlay", self.target, "overlay", flags=self.flags, data=",".join(options))
        return files.open_fd(self.target, os.O_PATH | os.O_DIRECTORY)


class MountHostImage(InitStep):
    """The host's `/` without privilege: a tmpfs with an overlay for each top directory.

    An overlay whose lower layer is "/" is refused in a user namespace, because the mounts below it are locked there
    (mount_namespaces(7)); where a top directory has mounts below it, it is bound read-only instead.
    """

    target: str
    flags: int = 0
    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say what the root becomes."""
        return f"mount the host's top directories on {self.target}, each as an overlay above a new tmpfs"

    def apply(self, h: Handler) -> None:
        """Build the tree."""
        target = self.target
        names = os.listdir("/")
        mount.mount("tmpfs", target, "tmpfs", data="mode=755")
        for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "media", ".upper", ".work"):
            files.mkdir(f"{target}/{name}", 0o755)
        os.chmod(f"{target}/tmp", 0o1777)
        for name in sorted(names):
            if name not in SKIPPED_TOP:
                self._take(name, h)
        if self.flags:
            mount.mount(None, target, flags=mount.MS_REMOUNT | mount.MS_BIND | self.flags)
        h[ROOTFS] = files.open_fd(target, os.O_PATH | os.O_DIRECTORY)

    def _take(self, name: str, h: Handler) -> None:
        source, place = f"/{name}", f"{self.target}/{name}"
        if os.path.islink(source):
            files.symlink(os.readlink(source), place)
            return
        if not os.path.isdir(source):
            return
        files.mkdir(place, 0o755)
        upper, work = f"{self.target}/.upper/{name}", f"{self.target}/.work/{name}"
        files.mkdir(upper, 0o755)
        files.mkdir(work, 0o755)
        data = f"lowerdir={_escaped(source)},upperdir={upper},workdir={work},userxattr"
        try:
            mount.mount("overlay", place, "overlay", flags=self.flags, data=data)
        except OSError as error:
            h.report(
                3, f"{source} cannot be a lower layer ({reason(error)}): bound read-only instead"
            )
            mount.mount(source, place, flags=mount.MS_BIND | mount.MS_REC)
            mount.mount_setattr(place, set=mount.MOUNT_ATTR_RDONLY, recursive=True)


def _missing(what: str, path: str, advice: str) -> HostError:
    if not os.path.lexists(path):
        return HostError(
            f"{what} {path} is missing: no such file or directory",
            missing=path,
            fix=advice,
            errno=2,
        )
    try:
        os.stat(path)
    except OSError as error:
        return HostError(f"{what} {path} cannot be reached: {reason(error)}", errno=error.errno)
    return HostError(f"{what} {path} is not a directory", fix=advice, errno=20)


def _escaped(path: str) -> str:
    """A path for overlayfs options: backslash before what separates."""
    return path.replace("\\", "\\\\").replace(",", "\\,") if "," in path or "\\" in path else path
