"""Directories and overlays as root file systems: the steps that mount them.

Not creation, copy or snapshots (later), nor loop devices and volumes. Sources: mount(2), the kernel's overlayfs document,
reference of LXC sections 3.3 and 13.
"""

from __future__ import annotations

import os
from errno import EINVAL
from stat import S_IMODE

from atoll.errors import ConfigError, HostError, reason
from atoll.linux import files, mount, proc
from atoll.log import INFO
from atoll.plan import ROOTFS, InitStep
from atoll.resources.storage import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.plan import Handler, Start
    from atoll.resources.storage import Source

TMPFS = "tmpfs"
"""As overlay upper directory: a new tmpfs, gone with the container. An extension: LXC's UPPER is a path."""
SKIPPED_TOP = ("proc", "sys", "dev", "run", "tmp", "lost+found", "mnt", "media")
"""Of the host's top directories, those that a rootless host image makes empty."""


def mount_steps(
    source: Source, host: Host, start: Start, options: Options, *, origin: Origin | None
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
    if lower == "/" and upper == TMPFS and (start.id_map or not start.privileged):
        return (MountHostImage(target=target, flags=options.flags, origin=origin),)
    return (
        MountOverlay(
            lower=lower,
            upper=upper,
            target=target,
            flags=options.flags,
            data=options.data,
            user_attributes=not start.privileged or bool(start.id_map) or host.in_user_namespace,
            parts=tuple(name for name in host.top_mounts if name not in SKIPPED_TOP)
            if (lower, upper) == ("/", TMPFS)
            else (),
            origin=origin,
        ),
    )


def protect_steps(
    source: Source, start: Start, options: Options, *, origin: Origin | None
) -> tuple[InitStep, ...]:
    """The step that makes an image above a tmpfs read-only: there, what is mounted may have made its places before."""
    new = source.backend == "overlay" and source.text.endswith(f":{TMPFS}")
    if not new or not options.flags & mount.MS_RDONLY:
        return ()
    return (ProtectImage(target=start.rootfs or "/", flags=options.flags, origin=origin),)


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
    """Mount an overlay; an upper of `tmpfs` is a new tmpfs that is gone with the container.

    An overlay does not show what is mounted in its lower directory: `parts` are directories of the host's / that get an
    overlay of their own.
    """

    lower: str
    upper: str
    target: str
    flags: int = 0
    data: str = ""
    user_attributes: bool = False
    parts: tuple[str, ...] = ()
    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say the layers."""
        upper = "a new tmpfs" if self.upper == TMPFS else self.upper
        parts = f", and so {' '.join(f'/{part}' for part in self.parts)}" if self.parts else ""
        return f"mount the root file system on {self.target}: read-only {self.lower} below {upper}{parts}"

    def apply(self, h: Handler) -> None:
        """Mount tmpfs where asked, then the overlay above it."""
        for lower in self.lower.split(":"):
            if not os.path.isdir(lower):
                raise _missing("lower directory", lower, "correct lxc.rootfs.path")
        if self.upper == TMPFS:
            self._above_tmpfs(self.lower, self.target)
        elif not os.path.isdir(self.upper):
            raise _missing("upper directory", self.upper, "correct lxc.rootfs.path or create it")
        else:
            work = f"{os.path.dirname(self.upper)}/work"
            if not os.path.isdir(work):
                files.mkdir(work, 0o755)
            self._mount(self.lower, self.upper, work, self.target, self.flags)
        for part in self.parts:
            self._take(part, h)
        h[ROOTFS] = files.open_fd(self.target, os.O_PATH | os.O_DIRECTORY)

    def _above_tmpfs(self, lower: str, place: str) -> None:
        mount.mount("tmpfs", place, "tmpfs", data="mode=755")
        upper, work = f"{place}/upper", f"{place}/work"
        _make_like(lower.partition(":")[0], upper, owner=not self.user_attributes)
        files.mkdir(work, 0o755)
        flags = self.flags & ~mount.MS_RDONLY  # ProtectImage does that
        self._mount(lower, upper, work, place, flags)

    def _take(self, part: str, h: Handler) -> None:
        source, place = f"/{part}", f"{self.target}/{part}"
        try:
            self._above_tmpfs(source, place)
        except (OSError, HostError) as error:
            mount.umount(place, flags=mount.MNT_DETACH)
            _bind_instead(source, place, error, h)

    def _mount(self, lower: str, upper: str, work: str, place: str, flags: int) -> None:
        options = [
            f"lowerdir={_escaped(lower)}",
            f"upperdir={_escaped(upper)}",
            f"workdir={_escaped(work)}",
        ]
        if self.user_attributes:
            options.append("userxattr")
        if self.data:
            options.append(self.data)
        try:
            mount.mount("overlay", place, "overlay", flags=flags, data=",".join(options))
        except OSError as error:
            on = [each for each in lower.split(":") if _file_system(each) == "overlay"]
            if error.errno != EINVAL or not on:
                raise
            raise HostError(
                f"cannot mount an overlay above {on[0]}: it is on overlays already, and the kernel stacks only two",
                fix="use a directory that is on no overlay as the lower one",
                errno=EINVAL,
            ) from error


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
        target, flags = self.target, self.flags & ~mount.MS_RDONLY  # ProtectImage does that
        names = os.listdir("/")
        mount.mount("tmpfs", target, "tmpfs", data="mode=755")
        for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "media"):
            files.mkdir(f"{target}/{name}", 0o755)
        os.chmod(f"{target}/tmp", 0o1777)
        layers = (
            f"{target}/mnt"  # of the overlays, which hold on to it when it is no more to be seen
        )
        mount.mount("tmpfs", layers, "tmpfs", data="mode=755")
        for name in sorted(names):
            if name not in SKIPPED_TOP:
                self._take(name, layers, flags, h)
        mount.umount(layers, flags=mount.MNT_DETACH)
        if flags:
            mount.mount(None, target, flags=mount.MS_REMOUNT | mount.MS_BIND | flags)
        h[ROOTFS] = files.open_fd(target, os.O_PATH | os.O_DIRECTORY)

    def _take(self, name: str, layers: str, flags: int, h: Handler) -> None:
        source, place = f"/{name}", f"{self.target}/{name}"
        if os.path.islink(source):
            files.symlink(os.readlink(source), place)
            return
        if not os.path.isdir(source):
            return
        files.mkdir(place, 0o755)
        upper, work = f"{layers}/{name}.upper", f"{layers}/{name}.work"
        _make_like(source, upper, owner=False)
        files.mkdir(work, 0o755)
        data = f"lowerdir={_escaped(source)},upperdir={upper},workdir={work},userxattr"
        try:
            mount.mount("overlay", place, "overlay", flags=flags, data=data)
        except OSError as error:
            _bind_instead(source, place, error, h)


def _make_like(source: str, path: str, *, owner: bool) -> None:
    """A directory with the mode (and owner) of another: what is merged has those of the upper one, and 0700 must stay so."""
    status = os.stat(source)
    files.mkdir(path, 0o700)
    if owner:
        files.chown(path, status.st_uid, status.st_gid)
    os.chmod(path, S_IMODE(status.st_mode))


def _bind_instead(source: str, place: str, error: OSError | HostError, h: Handler) -> None:
    h.report(INFO, f"{source} cannot be a lower layer ({reason(error)}): bound read-only instead")
    mount.mount(source, place, flags=mount.MS_BIND | mount.MS_REC)
    mount.mount_setattr(place, set=mount.MOUNT_ATTR_RDONLY, recursive=True)


class ProtectImage(InitStep):
    """Make an image above a tmpfs read-only: what is on `target` and, of the host's, each overlay in it."""

    target: str
    flags: int
    needs = (ROOTFS,)

    def explain(self) -> str:
        """Say it."""
        return "make the root file system read-only"

    def apply(self, h: Handler) -> None:
        """Remount each, and nothing that was mounted later on purpose."""
        layers = f"upperdir={self.target}/"
        places = [h[ROOTFS].path]
        for each in proc.parse_mountinfo(files.read_text("/proc/self/mountinfo")):
            below = each.target.startswith(f"{self.target}/")
            if below and each.fstype == "overlay" and layers in each.super_options:
                places.append(each.target)
        for place in places:
            mount.mount(None, place, flags=mount.MS_REMOUNT | mount.MS_BIND | self.flags)


def _file_system(path: str) -> str:
    """The type of the file system that a path is on."""
    path = os.path.realpath(path)
    found = ("", "")
    for each in proc.parse_mountinfo(files.read_text("/proc/self/mountinfo")):
        on = path == each.target or path.startswith(each.target.rstrip("/") + "/")
        if on and len(each.target) >= len(found[0]):
            found = (each.target, each.fstype)
    return found[1]


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
