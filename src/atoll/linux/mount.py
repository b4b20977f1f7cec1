"""Mounts: mount(2), the descriptor based calls, pivot_root, and the words of fstab for the kernel's flags.

Not about what a container mounts where: that is in resources. Sources of truth: mount(2), mount(8), open_tree(2),
move_mount(2), fsopen(2), mount_setattr(2), linux/mount.h.
"""

from __future__ import annotations

import os
import struct

from atoll.linux import libc
from atoll.linux.files import OwnedFd
from atoll.linux.libc import entering, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_POSIXACL: Final = 1 << 16
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_I_VERSION: Final = 1 << 23
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
MNT_EXPIRE: Final = 4
UMOUNT_NOFOLLOW: Final = 8

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC

MOVE_MOUNT_F_SYMLINKS: Final = 0x01
MOVE_MOUNT_F_AUTOMOUNTS: Final = 0x02
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_SYMLINKS: Final = 0x10
MOVE_MOUNT_T_AUTOMOUNTS: Final = 0x20
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOVE_MOUNT_BENEATH: Final = 0x200

MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR_RELATIME: Final = 0x00
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6

_MOUNT_ATTR: Final = struct.Struct("=4Q")

OPTIONS: Final[dict[str, tuple[bool, int]]] = {
    "defaults": (False, 0),
    "ro": (False, MS_RDONLY),
    "rw": (True, MS_RDONLY),
    "nosuid": (False, MS_NOSUID),
    "suid": (True, MS_NOSUID),
    "nodev": (False, MS_NODEV),
    "dev": (True, MS_NODEV),
    "noexec": (False, MS_NOEXEC),
    "exec": (True, MS_NOEXEC),
    "sync": (False, MS_SYNCHRONOUS),
    "async": (True, MS_SYNCHRONOUS),
    "dirsync": (False, MS_DIRSYNC),
    "remount": (False, MS_REMOUNT),
    "mand": (False, MS_MANDLOCK),
    "nomand": (True, MS_MANDLOCK),
    "noatime": (False, MS_NOATIME),
    "atime": (True, MS_NOATIME),
    "nodiratime": (False, MS_NODIRATIME),
    "diratime": (True, MS_NODIRATIME),
    "relatime": (False, MS_RELATIME),
    "norelatime": (True, MS_RELATIME),
    "strictatime": (False, MS_STRICTATIME),
    "nostrictatime": (True, MS_STRICTATIME),
    "lazytime": (False, MS_LAZYTIME),
    "nolazytime": (True, MS_LAZYTIME),
    "nosymfollow": (False, MS_NOSYMFOLLOW),
    "symfollow": (True, MS_NOSYMFOLLOW),
    "bind": (False, MS_BIND),
    "rbind": (False, MS_BIND | MS_REC),
    "move": (False, MS_MOVE),
}
"""The file system independent options of mount(8): whether the flag is taken away, and the flag."""

PROPAGATION: Final = {
    "private": MS_PRIVATE,
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "unbindable": MS_UNBINDABLE,
    "rprivate": MS_PRIVATE | MS_REC,
    "rshared": MS_SHARED | MS_REC,
    "rslave": MS_SLAVE | MS_REC,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
"""Propagation types of mount(8); the kernel takes one in a call of its own."""

_FLAG_NAMES: Final = {
    value: name
    for name, value in globals().items()
    if name.startswith("MS_") and isinstance(value, int)
}


def flag_names(flags: int) -> str:
    """Flags of mount(2) by name: "MS_NOSUID|MS_NODEV"; "0" for none, a number for unknown ones."""
    names = [name for bit, name in _FLAG_NAMES.items() if flags & bit]
    rest = flags & ~sum(_FLAG_NAMES)
    if rest:
        names.append(f"{rest:#x}")
    return "|".join(names) or "0"


def mount(
    source: str | None,
    target: str,
    fstype: str | None = None,
    *,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount, bind, move, remount, or change the propagation, as `flags` say. `data` is the file system's. mount(2).

    Symbolic links in `target` are followed: a path in a container is given as OwnedFd.path.
    """
    try:
        entering("mount", source, target, fstype, flags, data)
        encoded = [libc.encode(text) for text in (source, target, fstype, data)]
        libc.call("mount", *encoded[:3], flags, encoded[3])
    except OSError as error:
        names = flag_names(flags)
        text = f"source={source!r} target={target!r} fstype={fstype!r} flags={names} data={data!r}"
        note(error, f"mount(2): {text}", target)
        raise


def umount(target: str, *, flags: int = 0) -> None:
    """Take a mount away; MNT_DETACH: from the tree now, for good when it is no longer used. umount2(2)."""
    try:
        entering("umount", target, flags)
        libc.call("umount2", libc.encode(target), flags)
    except OSError as error:
        note(error, f"umount2(2): target={target!r} flags={flags:#x}", target)
        raise


def pivot_root(new: str, old: str) -> None:
    """Make `new`, a mount point, the root of the mount namespace and put the former one on `old`. pivot_root(2).

    pivot_root(".", ".") stacks the former root on the new one, ready for umount(".", flags=MNT_DETACH).
    """
    try:
        entering("pivot_root", new, old)
        libc.syscall("pivot_root", libc.encode(new), libc.encode(old))
    except OSError as error:
        note(error, f"pivot_root(2): new_root={new!r} put_old={old!r}", new, old)
        raise


def open_tree(
    path: str,
    *,
    dir_fd: int = AT_FDCWD,
    clone: bool,
    recursive: bool = False,
    follow: bool = True,
) -> OwnedFd:
    """Open a place in the tree (`path` "": that of `dir_fd`), or with `clone` a detached bind mount of it. open_tree(2).

    `recursive`: with the mounts below it; only with `clone`.
    """
    flags = OPEN_TREE_CLOEXEC | (OPEN_TREE_CLONE if clone else 0)
    flags |= (AT_RECURSIVE if recursive else 0) | (0 if follow else AT_SYMLINK_NOFOLLOW)
    flags |= 0 if path else AT_EMPTY_PATH
    try:
        entering("open_tree", dir_fd, path, flags)
        return OwnedFd(libc.syscall("open_tree", dir_fd, libc.encode(path), flags))
    except OSError as error:
        note(error, f"open_tree(2): dirfd={dir_fd} path={path!r} flags={flags:#x}", path or None)
        raise


def move_mount(
    fd: int,
    target: str = "",
    *,
    dir_fd: int = AT_FDCWD,
    to_fd: int | None = None,
    follow: bool = False,
) -> None:
    """Attach the mount of a descriptor (detached or not) at `target`, or with `to_fd` on that open place. move_mount(2).

    `follow`: a symbolic link as the last component of `target` is followed.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | (MOVE_MOUNT_T_SYMLINKS if follow else 0)
    if to_fd is not None:
        dir_fd, target = to_fd, ""
        flags |= MOVE_MOUNT_T_EMPTY_PATH
    try:
        entering("move_mount", fd, dir_fd, target, flags)
        libc.syscall("move_mount", fd, b"", dir_fd, libc.encode(target), flags)
    except OSError as error:
        text = f"from_dirfd={fd} to_dirfd={dir_fd} to_path={target!r} flags={flags:#x}"
        note(error, f"move_mount(2): {text}", target or None)
        raise


def fsopen(fstype: str) -> OwnedFd:
    """Begin to configure a new file system. Raises OSError(ENODEV) for one that the kernel does not know. fsopen(2)."""
    try:
        entering("fsopen", fstype)
        return OwnedFd(libc.syscall("fsopen", libc.encode(fstype), _FSOPEN_CLOEXEC))
    except OSError as error:
        note(error, f"fsopen(2): fsname={fstype!r} flags=FSOPEN_CLOEXEC", fstype)
        raise


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """Set an option to a string: "source", or one of the file system's. fsconfig(2)."""
    _fsconfig(fd, "FSCONFIG_SET_STRING", _FSCONFIG_SET_STRING, key, value)


def fsconfig_flag(fd: int, key: str) -> None:
    """Set an option without a value: "ro", or one of the file system's. fsconfig(2)."""
    _fsconfig(fd, "FSCONFIG_SET_FLAG", _FSCONFIG_SET_FLAG, key)


def fsconfig_fd(fd: int, key: str, value: int) -> None:
    """Set an option to an open file, for file systems that take one. fsconfig(2)."""
    _fsconfig(fd, "FSCONFIG_SET_FD", _FSCONFIG_SET_FD, key, aux=value)


def fsconfig_create(fd: int) -> None:
    """Make the file system as configured. fsconfig(2)."""
    _fsconfig(fd, "FSCONFIG_CMD_CREATE", _FSCONFIG_CMD_CREATE)


def _fsconfig(
    fd: int, word: str, command: int, key: str | None = None, value: str | None = None, aux: int = 0
) -> None:
    try:
        entering("fsconfig", fd, word, key, value)
        libc.syscall("fsconfig", fd, command, libc.encode(key), libc.encode(value), aux)
    except OSError as error:
        note(error, f"fsconfig(2): fd={fd} cmd={word} key={key!r} value={value!r} aux={aux}")
        _note_log(error, fd)
        raise


def fsmount(fd: int, *, attributes: int = 0) -> OwnedFd:
    """A detached mount, with MOUNT_ATTR_* `attributes`, of the file system that was made. fsmount(2)."""
    try:
        entering("fsmount", fd, attributes)
        return OwnedFd(libc.syscall("fsmount", fd, _FSMOUNT_CLOEXEC, attributes))
    except OSError as error:
        note(error, f"fsmount(2): fsfd={fd} flags=FSMOUNT_CLOEXEC attr_flags={attributes:#x}")
        _note_log(error, fd)
        raise


def _note_log(error: OSError, fd: int) -> None:
    """Add what the kernel says about it: each read(2) of the descriptor gives one line, "e " before an error."""
    for _ in range(8):  # the kernel keeps no more
        try:
            line = os.read(fd, 4096)
        except OSError:  # ENODATA: no more of them
            return
        text = line.decode("utf-8", "surrogateescape").strip()
        error.add_note(f"kernel: {text[2:] if text[1:2] == ' ' else text}")


def mount_setattr(
    fd_or_path: int | str,
    *,
    set: int = 0,  # noqa: A002 - the kernel's name, beside clear
    clear: int = 0,
    propagation: int = 0,
    userns_fd: int | None = None,
    recursive: bool = False,
) -> None:
    """Change attributes (MOUNT_ATTR_*), propagation (one MS_*) and id mapping of a mount, all or none. mount_setattr(2).

    `userns_fd` is a user namespace whose id map applies to a mount that is still detached. To set an atime attribute, clear
    MOUNT_ATTR__ATIME as well.
    """
    directory, path = (fd_or_path, "") if isinstance(fd_or_path, int) else (AT_FDCWD, fd_or_path)
    flags = (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    wanted = set | (0 if userns_fd is None else MOUNT_ATTR_IDMAP)
    attributes = _MOUNT_ATTR.pack(wanted, clear, propagation, userns_fd or 0)
    try:
        entering("mount_setattr", fd_or_path, wanted, clear, propagation, userns_fd, recursive)
        name = libc.encode(path)
        libc.syscall("mount_setattr", directory, name, flags, attributes, len(attributes))
    except OSError as error:
        text = f"dirfd={directory} path={path!r} flags={flags:#x} attr_set={wanted:#x}"
        text += f" attr_clr={clear:#x} propagation={flag_names(propagation)} userns_fd={userns_fd}"
        note(error, f"mount_setattr(2): {text}", path or None)
        raise
