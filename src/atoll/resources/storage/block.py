"""A block device as root file system.

Not loop files, logical volumes or network block devices, which are made and attached first (a later part of the project).
With an id map the kernel lets nobody in the new user namespace mount a disk's file system, so the monitor mounts it before the
clone, in a mount namespace of its own, as LXC does (reference, sections 1.3.C.3 and 13). Sources: mount(2), filesystems(5).
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL

from atoll.errors import HostError, StateError, reason
from atoll.linux import files, mount, process
from atoll.plan import ROOTFS, HostStep, InitStep, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.errors import Origin
    from atoll.plan import Handler, Start
    from atoll.resources.storage import Options

MOUNTED: Slot[str] = Slot("mounted device")
"""The mount point, in the monitor's own mount namespace."""


def is_device(path: str) -> bool:
    """Is it a block device? A look at the host, made before planning."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def attach_steps(
    source: str, start: Start, options: Options, *, origin: Origin | None
) -> tuple[HostStep, ...]:
    """Before the clone: the monitor's part, for a container with an id map."""
    if not start.id_map or start.rootfs is None:
        return ()
    if not start.monitor_cgroup:
        raise StateError(
            f"a library call cannot mount {source} for a container with an id map: it would move its caller to"
            " another mount namespace",
            now="library call",
            wanted="lxc-start",
            fix="start it with lxc-start",
        )
    return (
        MountDeviceOutside(
            device=source,
            target=start.rootfs,
            flags=options.flags,
            data=options.data,
            origin=origin,
        ),
    )


def mount_steps(
    source: str, start: Start, options: Options, *, origin: Origin | None
) -> tuple[InitStep, ...]:
    """In init: mount the device, or take what the monitor has mounted."""
    target = start.rootfs or "/"
    if start.id_map:
        return (TakeMountedRoot(target=target, origin=origin),)
    return (
        MountDevice(
            device=source, target=target, flags=options.flags, data=options.data, origin=origin
        ),
    )


class MountDeviceOutside(HostStep):
    """The monitor mounts the device, in a mount namespace of its own, as the host's root."""

    device: str
    target: str
    flags: int = 0
    data: str = ""
    fills = (MOUNTED,)

    def explain(self) -> str:
        """Say who mounts what where."""
        return f"give the monitor a mount namespace and mount {self.device} on {self.target} there, before ids are mapped"

    def inverse(self) -> HostStep:
        """Unmount it."""
        return UnmountDevice(target=self.target)

    def apply(self, h: Handler) -> None:
        """A new namespace, slave of the host's; then the device."""
        process.unshare(process.CLONE_NEWNS)
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_SLAVE)
        mount_device(self.device, self.target, flags=self.flags, data=self.data)
        h[MOUNTED] = self.target


class UnmountDevice(HostStep):
    """Unmount what the monitor mounted; after a crash it went with the monitor's namespace."""

    target: str

    def explain(self) -> str:
        """Name the mount point."""
        return f"unmount {self.target} in the monitor's mount namespace"

    def apply(self, h: Handler) -> None:
        """Only in the namespace that has it."""
        if h.take(MOUNTED) is not None:
            mount.umount(self.target, flags=mount.MNT_DETACH)

    def recognise(self, began: float) -> bool:
        """Nothing is left of it in any namespace."""
        del began
        return True


class TakeMountedRoot(InitStep):
    """Use the root file system that the monitor has mounted: bound on itself, so that this namespace owns the mount."""

    target: str
    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say which."""
        return f"take the root file system that is mounted on {self.target}"

    def apply(self, h: Handler) -> None:
        """Bind and open."""
        mount.mount(self.target, self.target, flags=mount.MS_BIND | mount.MS_REC)
        h[ROOTFS] = files.open_fd(self.target, os.O_PATH | os.O_DIRECTORY)


class MountDevice(InitStep):
    """Init mounts the device, in the container's mount namespace."""

    device: str
    target: str
    flags: int = 0
    data: str = ""
    fills = (ROOTFS,)

    def explain(self) -> str:
        """Say what is mounted where."""
        return f"mount the root file system of {self.device} on {self.target}"

    def apply(self, h: Handler) -> None:
        """Mount and open."""
        mount_device(self.device, self.target, flags=self.flags, data=self.data)
        h[ROOTFS] = files.open_fd(self.target, os.O_PATH | os.O_DIRECTORY)


def mount_device(device: str, target: str, *, flags: int, data: str) -> None:
    """Mount with the first file system of /proc/filesystems that takes it. Raises HostError when none does."""
    refused: OSError | None = None
    for kind in _kinds():
        try:
            mount.mount(device, target, kind, flags=flags, data=data or None)
        except OSError as error:
            if error.errno != EINVAL:
                what = f"cannot mount {device} as {kind} on {target}: {reason(error)}"
                raise HostError(what, errno=error.errno) from error
            refused = error
        else:
            return
    raise HostError(
        f"cannot mount {device} on {target}: it holds no file system that this kernel knows",
        fix=f"look at it with blkid {device}; load the module of its file system",
        errno=EINVAL,
    ) from refused


def _kinds() -> list[str]:
    """File systems on devices, in the kernel's order: lines of /proc/filesystems without nodev."""
    lines = files.read_text("/proc/filesystems").splitlines()
    return [line.strip() for line in lines if line[:1] == "\t"]
