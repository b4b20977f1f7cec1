"""The root file system: pin it, shield the host's mounts, pivot into it.

Not what mounts it (storage/) nor what is mounted inside (mounts.py). Sources: pivot_root(2), mount_namespaces(7),
reference of LXC sections 1.6 and 3.3.
"""

from __future__ import annotations

import os
from errno import EEXIST, EISDIR, EOPNOTSUPP, EROFS

from atoll.errors import HostError
from atoll.linux import files, mount
from atoll.linux.process import CLONE_NEWNS
from atoll.plan import ROOTFS, HostStep, InitStep, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Start

PIN: Slot[OwnedFd] = Slot("rootfs pin")
PIN_NAME = ".lxc_keep"


def pin(start: Start, directory: str | None, origin: Origin | None) -> tuple[HostStep, ...]:
    """Before the clone: keep a writable directory from being remounted read-only (LXC's .lxc_keep)."""
    if directory is None or start.id_map or not start.privileged:
        return ()
    return (PinRootfs(path=directory, origin=origin),)


def mount_point(host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone: the default mount point is made where no distribution made one."""
    if start.rootfs != f"{host.run_directory}/rootfs":
        return ()
    return (MakeMountPoint(path=start.rootfs),)


def prepare(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, first thing in its mount namespace."""
    del config, host
    if start.namespaces & CLONE_NEWNS:
        return (ShieldHostMounts(),)
    return ()


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
        """A root file system that cannot be written, or is pinned already, needs no pin."""
        try:
            h[PIN] = self._open()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return  # the step that mounts it says what is wrong with it
        except OSError as error:
            if error.errno not in (EROFS, EEXIST):
                raise

    def _open(self) -> OwnedFd:
        """A file that never has a name, so that nothing is left whoever is killed; where there are none, a short-lived one."""
        try:
            return files.open_fd(self.path, os.O_TMPFILE | os.O_RDWR, 0o600)
        except OSError as error:
            if error.errno not in (
                EOPNOTSUPP,
                EISDIR,
            ):  # the file system's answer, and an old kernel's
                raise
        place = f"{self.path}/{PIN_NAME}"
        fd = files.open_fd(place, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            files.unlink(place)
        except BaseException:
            fd.close()
            os.unlink(place)
            raise
        return fd


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
        return (
            "move the root file system to / and chroot"
            if self.chroot
            else "pivot into the root file system"
        )

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
