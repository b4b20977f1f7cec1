"""Cgroups inside the container: the cgroup tokens of lxc.mount.auto.

With a cgroup namespace of its own a container's init mounts cgroups itself, so without `force` nothing is done.
Sources of truth: reference of LXC 3.2 and 5.6, cgroup_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import os

from atoll.errors import HostError
from atoll.linux import files, mount
from atoll.linux.process import CAPABILITIES, CLONE_NEWCGROUP
from atoll.plan import ROOTFS, InitStep
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Final

    from atoll.config.text import Config
    from atoll.host import Hierarchy, Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Slot, Start
    from atoll.resources.cgroup.driver import Payload

TARGET: Final = "sys/fs/cgroup"
TMPFS: Final = "size=10240k,mode=0755"
_SAFE: Final = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
_SAFE_FLAGS: Final = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC | mount.MS_RELATIME


class Token(Record):
    """`kind` cgroup, cgroup-full or cgroup2; `mode` mixed, ro, rw or "" (not given); `force`: in spite of a namespace."""

    kind: str
    mode: str = ""
    force: bool = False


def parse_token(token: str) -> Token:
    """`cgroup[-full][:mixed|ro|rw][:force]` or `cgroup2[:ro|rw][:force]`. Raises ValueError for anything else."""
    kind, *words = token.split(":")
    force = words[-1:] == ["force"]
    mode = ":".join(words[:-1] if force else words)
    modes = ("", "ro", "rw") if kind == "cgroup2" else ("", "mixed", "ro", "rw")
    if kind not in ("cgroup", "cgroup-full", "cgroup2") or mode not in modes or token.endswith(":"):
        raise ValueError(f"not a cgroup token: {token!r}")
    return Token(kind=kind, mode=mode, force=force)


def plan(
    config: Config, host: Host, start: Start, *, token: str, payload: Payload
) -> tuple[InitStep, ...]:
    """The steps for one token; see cgroup.mounts."""
    wish = parse_token(token)
    origin = config.origin("lxc.mount.auto")
    admin = bool(start.kept_capabilities & 1 << CAPABILITIES.index("sys_admin"))
    namespace = bool(start.namespaces & CLONE_NEWCGROUP)
    unified = host.layout == "unified" or wish.kind == "cgroup2"
    force = wish.force or unified or not admin
    if not payload.hierarchies or (namespace and not force):
        return ()
    mode = wish.mode or ("rw" if admin else "mixed")
    if unified and not namespace:
        raise HostError(
            f"cannot mount {token}: cgroup2 needs a new cgroup namespace",
            fix="take cgroup out of lxc.namespace.keep, or the token out of lxc.mount.auto",
        )
    if unified:
        return (MountCgroup2(read_only=mode == "ro", origin=origin),)
    if namespace:
        return (
            MountCgroups(hierarchies=payload.hierarchies, read_only=mode == "ro", origin=origin),
        )
    return (
        BindCgroups(
            hierarchies=payload.hierarchies,
            path=payload.path,
            mode=mode,
            whole=wish.kind == "cgroup-full",
            origin=origin,
        ),
    )


# ------------------------------------------------------------------------------------------ steps
class MountCgroup2(InitStep):
    """The container's cgroup2 tree on /sys/fs/cgroup, which has to be there."""

    read_only: bool
    needs: ClassVar[tuple[Slot[Any], ...]] = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Mount it in the new cgroup namespace, which makes the payload's cgroup its root."""
        with files.open_beneath(h[ROOTFS].fileno(), TARGET, os.O_PATH | os.O_DIRECTORY) as target:
            _mount_cgroup("cgroup2", (), target, read_only=self.read_only)

    def explain(self) -> str:
        """In words."""
        return f"mount cgroup2 on /{TARGET}{' read-only' if self.read_only else ''}"


class MountCgroups(InitStep):
    """A tmpfs on /sys/fs/cgroup, and in it every hierarchy as the container's cgroup namespace shows it."""

    hierarchies: tuple[Hierarchy, ...]
    read_only: bool
    needs: ClassVar[tuple[Slot[Any], ...]] = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """One mount a hierarchy."""
        root = h[ROOTFS].fileno()
        _mount_tmpfs(root)
        for hierarchy in self.hierarchies:
            with _directory(root, f"{TARGET}/{_name(hierarchy)}") as target:
                if hierarchy.version == 2:
                    _mount_cgroup("cgroup2", (), target, read_only=self.read_only)
                else:
                    options = hierarchy.controllers
                    _mount_cgroup("cgroup", options, target, read_only=self.read_only)

    def explain(self) -> str:
        """In words."""
        many = f"{len(self.hierarchies)} cgroup hierarchies"
        return f"mount {many} below /{TARGET}{' read-only' if self.read_only else ''}"


class BindCgroups(InitStep):
    """Without a cgroup namespace: the host's hierarchies below a tmpfs, `whole` or just the container's own cgroup.

    `mode` of a part: ro, rw, or mixed, where the own cgroup is writable and what leads to it is not.
    """

    hierarchies: tuple[Hierarchy, ...]
    path: str
    mode: str
    whole: bool
    needs: ClassVar[tuple[Slot[Any], ...]] = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Bind each; the sources are the host's, whose tree init still sees before the pivot."""
        root = h[ROOTFS].fileno()
        _mount_tmpfs(root)
        for hierarchy in self.hierarchies:
            top = f"{TARGET}/{_name(hierarchy)}"
            if self.whole:
                with _directory(root, top) as target:
                    _bind(hierarchy.mount, target, read_only=self.mode == "ro", attributes=_SAFE)
            else:
                self._bind_own(root, hierarchy, top)

    def _bind_own(self, root: int, hierarchy: Hierarchy, top: str) -> None:
        own = f"{hierarchy.base}/{self.path}"
        _directory(root, top + own).close()
        if self.mode != "rw":
            with _directory(root, top) as target:
                _bind(target.path, target, read_only=True)
        with _directory(root, top + own) as target:  # opened anew: beneath the bind mount
            _bind(hierarchy.mount + own, target, read_only=self.mode == "ro")

    def explain(self) -> str:
        """In words."""
        what = "all cgroups" if self.whole else f"cgroup {self.path}"
        return f"bind {what} of {len(self.hierarchies)} hierarchies below /{TARGET} ({self.mode})"


# ---------------------------------------------------------------------------------------- private
def _name(hierarchy: Hierarchy) -> str:
    return hierarchy.mount.rpartition("/")[2]


def _directory(root: int, path: str) -> OwnedFd:
    files.make_directories(root, path)
    return files.open_beneath(root, path, os.O_PATH | os.O_DIRECTORY)


def _mount_tmpfs(root: int) -> None:
    with _directory(root, TARGET) as target:
        mount.mount("none", target.path, "tmpfs", flags=_SAFE_FLAGS, data=TMPFS)


def _mount_cgroup(
    fstype: str, options: tuple[str, ...], target: OwnedFd, *, read_only: bool
) -> None:
    """Read-only is the mount, not the file system: the host's own mounts share that."""
    attributes = _SAFE | (mount.MOUNT_ATTR_RDONLY if read_only else 0)
    with mount.fsopen(fstype) as context:
        for option in options:
            name, equals, value = option.partition("=")
            if equals:  # name=systemd
                mount.fsconfig_flag(context.fileno(), "none")
                mount.fsconfig_string(context.fileno(), name, value)
            else:
                mount.fsconfig_flag(context.fileno(), name)
        mount.fsconfig_create(context.fileno())
        with mount.fsmount(context.fileno(), attributes=attributes) as made:
            mount.move_mount(made.fileno(), to_fd=target.fileno())


def _bind(source: str, target: OwnedFd, *, read_only: bool, attributes: int = 0) -> None:
    attributes |= mount.MOUNT_ATTR_RDONLY if read_only else 0
    with mount.open_tree(source, clone=True) as tree:
        if attributes:
            mount.mount_setattr(tree.fileno(), set=attributes)
        mount.move_mount(tree.fileno(), to_fd=target.fileno())
