"""Files: owned descriptors, paths beneath a root, nodes, kernel text files, atomic writes, terminals, fd passing.

Not about mounts, and not a place that joins a container's path to its root: such a path is opened beneath the root's
descriptor, where no symbolic link leads out (CVE-2015-1335). Sources of truth: openat2(2), path_resolution(7),
ioctl_tty(2), termios(3), unix(7).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import stat
import struct

from atoll.linux import libc
from atoll.linux.libc import entering, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    import termios
    from collections.abc import Sequence
    from typing import Final, Self

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# The same numbers on x86 and arm (asm-generic/ioctls.h); the termios module lacks the first three.
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTN: Final = 0x80045430
_TIOCGPTPEER: Final = 0x5441
_TIOCGWINSZ: Final = 0x5413
_TIOCSWINSZ: Final = 0x5414

_OPEN_HOW: Final = struct.Struct("=QQQ")
_RACES: Final = 128  # how often a resolution that raced with a rename is tried again
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PLACE: Final = os.O_PATH | os.O_DIRECTORY


class OwnedFd:
    """A file descriptor that somebody owns: closed by close(), `with`, or when the last reference goes."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor's number. Raises ValueError when it is closed or detached."""
        if self._fd < 0:
            raise ValueError("the descriptor is closed")
        return self._fd

    @property
    def path(self) -> str:
        """A path by which calls of this process that only know paths reach the open file."""
        return f"/proc/self/fd/{self.fileno()}"

    @property
    def closed(self) -> bool:
        """Closed or detached."""
        return self._fd < 0

    def detach(self) -> int:
        """Give up the ownership: the number, which the caller has to close."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Close it; a second time does nothing. Errors of close(2) are not reported: the descriptor is gone anyway."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            self.close()

    def __repr__(self) -> str:
        return "OwnedFd(closed)" if self._fd < 0 else f"OwnedFd({self._fd})"


# ----------------------------------------------------------------------------------------- open
def open_flags(flags: int) -> str:
    """Flags of open(2) by name: "O_RDWR|O_CREAT|O_EXCL"."""
    names = [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")[flags & 3]]
    rest = flags & ~3
    for name in ("O_TMPFILE", *_OPEN_NAMES):  # O_TMPFILE contains O_DIRECTORY
        bits: int = getattr(os, name)
        if bits and rest & bits == bits:
            names.append(name)
            rest &= ~bits
    if rest:
        names.append(f"{rest:#x}")
    return "|".join(names)


_OPEN_NAMES: Final = (
    "O_PATH",
    "O_CREAT",
    "O_EXCL",
    "O_TRUNC",
    "O_APPEND",
    "O_DIRECTORY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_NOCTTY",
    "O_CLOEXEC",
)


def open_fd(path: str, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> OwnedFd:
    """Open a file, close-on-exec. `mode` is for O_CREAT, less the umask. open(2)."""
    try:
        entering("open", path, flags)
        return OwnedFd(os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd))
    except OSError as error:
        text = f"path={path!r} flags={open_flags(flags)} mode={mode:#o} dirfd={dir_fd}"
        note(error, f"open(2): {text}", path)
        raise


def open_beneath(
    root: int, path: str, flags: int, mode: int = 0, *, no_symlinks: bool = False
) -> OwnedFd:
    """Open a path as a process chrooted to `root` would: absolute paths, links and ".." stay inside; close-on-exec.

    `root` is any descriptor of a directory. `no_symlinks`: a symbolic link anywhere raises OSError(ELOOP). Magic links
    (/proc/PID/fd/N) are never followed: ELOOP. EAGAIN: somebody keeps renaming what the path goes through.
    A kernel before 5.6 lacks openat2(2); there the path is walked and every symbolic link refused with ELOOP.
    """
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    if no_symlinks:
        resolve |= RESOLVE_NO_SYMLINKS
    try:
        entering("openat2", path, flags)
        try:
            return _openat2(root, path, flags, mode, resolve)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
        return _walk(root, path, flags, mode)
    except OSError as error:
        text = f"dirfd={root} path={path!r} flags={open_flags(flags)} mode={mode:#o}"
        note(error, f"openat2(2): {text} resolve={resolve:#x}", path)
        raise


def _openat2(directory: int, path: str, flags: int, mode: int, resolve: int) -> OwnedFd:
    if not flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY):
        mode = 0  # unlike open(2), openat2(2) refuses one that means nothing
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    name = libc.encode(path)
    for attempt in range(_RACES):
        try:
            return OwnedFd(libc.syscall("openat2", directory, name, how, len(how)))
        except InterruptedError:
            continue
        except BlockingIOError:  # EAGAIN: ".." could not be resolved safely against a rename
            if attempt == _RACES - 1:
                raise
    raise libc.errno_error(errno.EINTR)


def _walk(root: int, path: str, flags: int, mode: int) -> OwnedFd:
    """Open a path beneath `root` one component at a time, following no symbolic link, not even the last."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path:
        raise libc.errno_error(errno.ENOENT)
    if parts and (path.endswith("/") or path.rsplit("/", maxsplit=1)[-1] == "."):
        flags |= os.O_DIRECTORY
    chain: list[OwnedFd] = []
    try:
        while parts and (len(parts) > 1 or parts[0] == ".."):
            part = parts.pop(0)
            if part == "..":
                if chain:
                    chain.pop().close()
                continue
            here = chain[-1].fileno() if chain else root
            chain.append(_step(here, part, _PLACE, 0))
        here = chain[-1].fileno() if chain else root
        return _step(here, parts[0] if parts else ".", flags, mode)
    finally:
        for opened in chain:
            opened.close()


def _step(directory: int, name: str, flags: int, mode: int) -> OwnedFd:
    # O_PATH with O_NOFOLLOW opens a link itself, and O_DIRECTORY reports it as ENOTDIR: look at what it is.
    link_itself = (flags & os.O_NOFOLLOW and flags & os.O_PATH) or flags & os.O_EXCL
    if not link_itself and stat.S_ISLNK(_mode_of(directory, name)):
        raise libc.errno_error(errno.ELOOP)
    fd = OwnedFd(os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory))
    if not flags & os.O_NOFOLLOW and stat.S_ISLNK(os.fstat(fd.fileno()).st_mode):
        fd.close()
        raise libc.errno_error(errno.ELOOP)
    return fd


def _mode_of(directory: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def exists_beneath(root: int, path: str) -> bool:
    """Whether a path beneath `root` leads to something. Raises OSError when that cannot be told (EACCES)."""
    try:
        open_beneath(root, path, os.O_PATH).close()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def make_directories(root: int | None, path: str, mode: int = 0o755) -> tuple[str, ...]:
    """Make a directory and those above it that are missing, beneath `root` or (None) anywhere; `mode` less the umask.

    Returns the paths that were made, outermost first, so that they can be taken back.
    """
    if root is None:
        return _make_directories_anywhere(path, mode)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    missing = len(parts)
    made: list[str] = []
    while missing and not _is_directory(root, "/".join(parts[:missing])):
        missing -= 1
    for count in range(missing + 1, len(parts) + 1):
        place = "/".join(parts[:count])
        with open_beneath(root, "/".join(parts[: count - 1]) or ".", _PLACE) as parent:
            try:
                mkdir(parts[count - 1], mode, dir_fd=parent.fileno())
            except FileExistsError:
                open_beneath(
                    root, place, _PLACE
                ).close()  # somebody was faster, or it is no directory
            else:
                made.append(place)
    return tuple(made)


def _is_directory(root: int, path: str) -> bool:
    try:
        open_beneath(root, path, _PLACE).close()
    except FileNotFoundError:
        return False
    return True


def _make_directories_anywhere(path: str, mode: int) -> tuple[str, ...]:
    missing: list[str] = []
    place = path.rstrip("/")
    while place and not os.path.isdir(place):
        missing.append(place)
        place = os.path.dirname(place)
    made: list[str] = []
    for place in reversed(missing):
        try:
            mkdir(place, mode)
        except FileExistsError:
            if not os.path.isdir(place):
                raise
        else:
            made.append(place)
    return tuple(made)


def make_file(root: int | None, path: str, mode: int = 0o644) -> bool:
    """Make an empty file beneath `root` or (None) anywhere, `mode` less the umask. False: something is there already."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        if root is None:
            open_fd(path, flags, mode).close()
        else:
            open_beneath(root, path, flags, mode).close()
    except FileExistsError:
        return False
    return True


# ------------------------------------------------------------------------------- names and nodes
def mkdir(path: str, mode: int, *, dir_fd: int | None = None) -> None:
    """Make a directory, `mode` less the umask; mkdir(2)."""
    try:
        entering("mkdir", path)
        os.mkdir(path, mode, dir_fd=dir_fd)
    except OSError as error:
        note(error, f"mkdir(2): path={path!r} mode={mode:#o} dirfd={dir_fd}", path)
        raise


def rmdir(path: str, *, dir_fd: int | None = None) -> None:
    """Remove an empty directory; rmdir(2)."""
    try:
        entering("rmdir", path)
        os.rmdir(path, dir_fd=dir_fd)
    except OSError as error:
        note(error, f"rmdir(2): path={path!r} dirfd={dir_fd}", path)
        raise


def unlink(path: str, *, dir_fd: int | None = None) -> None:
    """Remove a name that is not a directory's; unlink(2)."""
    try:
        entering("unlink", path)
        os.unlink(path, dir_fd=dir_fd)
    except OSError as error:
        note(error, f"unlink(2): path={path!r} dirfd={dir_fd}", path)
        raise


def rename(
    old: str, new: str, *, old_dir_fd: int | None = None, new_dir_fd: int | None = None
) -> None:
    """Give a file another name, in place of what had that name; rename(2)."""
    try:
        entering("rename", old, new)
        os.rename(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)
    except OSError as error:
        note(error, f"rename(2): old={old!r} new={new!r}", old, new)
        raise


def symlink(target: str, path: str, *, dir_fd: int | None = None) -> None:
    """Make `path` a symbolic link to `target`; symlink(2)."""
    try:
        entering("symlink", target, path)
        os.symlink(target, path, dir_fd=dir_fd)
    except OSError as error:
        note(error, f"symlink(2): target={target!r} linkpath={path!r} dirfd={dir_fd}", path)
        raise


def mknod(path: str, mode: int, device: int = 0, *, dir_fd: int | None = None) -> None:
    """Make a node: `mode` has the type (S_IFCHR …) and the permissions less the umask; `device` by os.makedev. mknod(2)."""
    try:
        entering("mknod", path, mode, device)
        os.mknod(path, mode, device, dir_fd=dir_fd)
    except OSError as error:
        number = f"{os.major(device)}:{os.minor(device)}"
        note(error, f"mknod(2): path={path!r} mode={mode:#o} dev={number} dirfd={dir_fd}", path)
        raise


def chown(
    path_or_fd: str | int, uid: int, gid: int, *, follow: bool = False, dir_fd: int | None = None
) -> None:
    """Change owner and group (-1: as it is) of a path or of an open file, O_PATH too; fchownat(2)."""
    if isinstance(path_or_fd, int):
        directory, path, flags = path_or_fd, "", AT_EMPTY_PATH
    else:
        directory = AT_FDCWD if dir_fd is None else dir_fd
        path, flags = path_or_fd, 0 if follow else AT_SYMLINK_NOFOLLOW
    try:
        entering("chown", path_or_fd, uid, gid)
        unsigned = 0xFFFFFFFF
        name = libc.encode(path)
        libc.call("fchownat", directory, name, uid & unsigned, gid & unsigned, flags)
    except OSError as error:
        text = f"dirfd={directory} path={path!r} uid={uid} gid={gid} flags={flags:#x}"
        note(error, f"fchownat(2): {text}", path or None)
        raise


def chmod(path_or_fd: str | int, mode: int, *, dir_fd: int | None = None) -> None:
    """Change the permissions of a path (links are followed) or of an open file, O_PATH too; fchmodat(2).

    For an O_PATH descriptor /proc has to be mounted.
    """
    try:
        entering("chmod", path_or_fd, mode)
        try:
            os.chmod(path_or_fd, mode, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.EBADF or isinstance(path_or_fd, str):
                raise
            os.chmod(f"/proc/self/fd/{path_or_fd}", mode)  # fchmod(2) refuses O_PATH
    except OSError as error:
        name = path_or_fd if isinstance(path_or_fd, str) else None
        note(error, f"fchmodat(2): path={path_or_fd!r} mode={mode:#o} dirfd={dir_fd}", name)
        raise


# ------------------------------------------------------------------------------------- contents
def read_text(path: str, *, limit: int = 1 << 20, dir_fd: int | None = None) -> str:
    """The contents of a file, UTF-8 with surrogateescape. Raises OSError(EFBIG) beyond `limit` bytes."""
    with open_fd(path, os.O_RDONLY, dir_fd=dir_fd) as file:
        fd = file.fileno()
        try:
            entering("read", path)
            chunks: list[bytes] = []
            room = limit + 1
            while room > 0 and (chunk := os.read(fd, min(room, 65536))):
                chunks.append(chunk)
                room -= len(chunk)
            if room <= 0:
                raise libc.errno_error(errno.EFBIG)
        except OSError as error:
            note(error, f"read(2): path={path!r} limit={limit}", path)
            raise
    return b"".join(chunks).decode("utf-8", "surrogateescape")


def write_text(path: str, text: str, *, dir_fd: int | None = None) -> None:
    """Write to an existing file of /proc, /sys or a cgroup in one write(2), which is one request to the kernel."""
    data = text.encode("utf-8", "surrogateescape")
    with open_fd(path, os.O_WRONLY, dir_fd=dir_fd) as file:
        try:
            entering("write", path, text)
            written = os.write(file.fileno(), data)
            if written != len(data):
                raise libc.errno_error(errno.EIO)
        except OSError as error:
            note(error, f"write(2): path={path!r} data={text[:200]!r}", path)
            raise


def write_atomic(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a file's contents, or make it, so that a reader sees the old or the new whole; on disk when it returns.

    `mode` is exact, whatever the umask. A symbolic link at `path` is replaced, not followed. On failure nothing is left.
    """
    temporary = f"{path}.{os.urandom(6).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    file = open_fd(temporary, flags, 0o600)
    try:
        with file:
            fd = file.fileno()
            _write_all(fd, temporary, data)
            chmod(fd, mode)
            _sync(fd, temporary)
        rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:  # what happened first is what the caller has to know
            pass
        raise


def _write_all(fd: int, path: str, data: bytes) -> None:
    try:
        view = memoryview(data)
        while view:
            entering("write", path, len(view))
            view = view[os.write(fd, view) :]
    except OSError as error:
        note(error, f"write(2): path={path!r} count={len(data)}", path)
        raise


def _sync(fd: int, path: str) -> None:
    try:
        entering("fsync", path)
        os.fsync(fd)
    except OSError as error:
        note(error, f"fsync(2): path={path!r}", path)
        raise


def remove_tree(path: str) -> None:
    """Remove a directory and all in it, crossing no mount and following no symbolic link.

    Walks by descriptors, two at a time, so neither depth nor somebody who exchanges directories leads it astray. Raises
    OSError(EXDEV) when it meets a mount point (also `path` itself), ENOTDIR when `path` is no directory; what was removed
    before stays removed.
    """
    path = path.rstrip("/") or "/"
    parent, name = os.path.split(path)
    try:
        with open_fd(parent or ".", _DIRECTORY & ~os.O_NOFOLLOW) as above:
            _empty(_enter(above.fileno(), name))
            rmdir(name, dir_fd=above.fileno())
    except OSError as error:
        note(error, f"in remove_tree({path!r})")
        raise


def _empty(current: OwnedFd) -> None:
    """Remove what is in a directory, and close it."""
    above: list[tuple[str, list[str], tuple[int, int]]] = []
    try:
        todo = _unlink_files(current.fileno())
        while todo or above:
            if todo:
                name = todo.pop()
                below = _enter_own(current.fileno(), name)
                above.append((name, todo, _identity(current.fileno())))
                current.close()
                current = below
                todo = _unlink_files(current.fileno())
                continue
            name, todo, identity = above.pop()
            parent = open_fd("..", _DIRECTORY, dir_fd=current.fileno())
            current.close()
            current = parent
            if _identity(current.fileno()) != identity:
                raise libc.errno_error(errno.ESTALE)  # it was moved meanwhile
            rmdir(name, dir_fd=current.fileno())
    finally:
        current.close()


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _unlink_files(directory: int) -> list[str]:
    """Remove all that is not a directory; the names of the directories."""
    subdirectories: list[str] = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                subdirectories.append(entry.name)
                continue
            try:
                unlink(entry.name, dir_fd=directory)
            except FileNotFoundError:
                continue
    return subdirectories


def _enter_own(parent: int, name: str) -> OwnedFd:
    """Like _enter, also where the owner took his own permissions away, as overlayfs does in its work directory."""
    try:
        return _enter(parent, name)
    except PermissionError:
        with open_fd(name, os.O_PATH | _DIRECTORY, dir_fd=parent) as found:
            if os.fstat(found.fileno()).st_uid != os.geteuid():
                raise
            chmod(found.fileno(), 0o700)
        return _enter(parent, name)


def _enter(parent: int, name: str) -> OwnedFd:
    """Open a directory, but no mount point and no link: only the kernel can tell a bind mount of the same device."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
    try:
        entering("openat2", name, _DIRECTORY)
        try:
            return _openat2(parent, name, _DIRECTORY, 0, resolve)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
        below = OwnedFd(os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=parent))
        if _mount_id(below.fileno()) != _mount_id(parent):
            raise libc.errno_error(errno.EXDEV)
        return below
    except OSError as error:
        note(error, f"openat2(2): dirfd={parent} path={name!r} resolve={resolve:#x}", name)
        raise


def _mount_id(fd: int) -> str:
    for line in read_text(f"/proc/self/fdinfo/{fd}").split("\n"):
        if line.startswith("mnt_id:"):
            return line
    raise libc.errno_error(errno.ENOTSUP)


def lock_file(fd: int, *, exclusive: bool, block: bool) -> None:
    """Take a record lock on a whole file; BlockingIOError or PermissionError when another has it and not `block`.

    A fork does not inherit it, and *any* close of the file by this process ends it. fcntl_locking(2).
    """
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        entering("fcntl", fd, "F_SETLK")
        fcntl.lockf(fd, operation | (0 if block else fcntl.LOCK_NB))
    except OSError as error:
        kind = "F_WRLCK" if exclusive else "F_RDLCK"
        note(error, f"fcntl(2): fd={fd} cmd={'F_SETLKW' if block else 'F_SETLK'} type={kind}")
        raise


# ------------------------------------------------------------------------------------ terminals
def openpty_in(devpts: int) -> tuple[OwnedFd, OwnedFd, str]:
    """Make a pseudo-terminal in the devpts mounted at a descriptor: master, terminal, and its name ("pts/0")."""
    return _openpty(open_fd("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW, dir_fd=devpts))


def openpty() -> tuple[OwnedFd, OwnedFd, str]:
    """Make a pseudo-terminal in the devpts of the caller's /dev/ptmx: master, terminal, and its name ("pts/0")."""
    return _openpty(open_fd("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))


def _openpty(master: OwnedFd) -> tuple[OwnedFd, OwnedFd, str]:
    fd = master.fileno()
    request = "TIOCSPTLCK"
    try:
        entering("ioctl", fd, request)
        fcntl.ioctl(fd, _TIOCSPTLCK, struct.pack("=i", 0))
        request = "TIOCGPTN"
        (number,) = struct.unpack("=I", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))
        # By the master's descriptor: a name would be looked up in whatever is mounted on /dev/pts by now.
        request = "TIOCGPTPEER"
        entering("ioctl", fd, request)
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        terminal = OwnedFd(fcntl.ioctl(fd, _TIOCGPTPEER, flags))
    except OSError as error:
        master.close()
        note(error, f"ioctl(2): fd={fd} request={request}")
        raise
    return master, terminal, f"pts/{number}"


def open_peer(master: int) -> OwnedFd:
    """The terminal of a pseudo-terminal's master: TIOCGPTPEER of ioctl_tty(2), which needs no path."""
    entering("ioctl", master, "TIOCGPTPEER")
    try:
        return OwnedFd(fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        note(error, f"ioctl(2): fd={master} request=TIOCGPTPEER")
        raise


def window_size(fd: int) -> tuple[int, int] | None:
    """Rows and columns of a terminal; None when `fd` is none. ioctl_tty(2)."""
    try:
        data = fcntl.ioctl(fd, _TIOCGWINSZ, bytes(8))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        note(error, f"ioctl(2): fd={fd} request=TIOCGWINSZ")
        raise
    rows, columns, _, _ = struct.unpack("=4H", data)
    return rows, columns


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal; its foreground processes get SIGWINCH when it changes. ioctl_tty(2)."""
    try:
        entering("ioctl", fd, "TIOCSWINSZ", rows, columns)
        fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("=4H", rows, columns, 0, 0))
    except OSError as error:
        note(error, f"ioctl(2): fd={fd} request=TIOCSWINSZ rows={rows} columns={columns}")
        raise


def make_raw(fd: int) -> list[object]:
    """Set a terminal to raw mode as cfmakeraw(3) does; the old attributes, for restore_terminal."""
    import termios  # a shared object, which most tools need not load

    try:
        old = termios.tcgetattr(fd)
    except termios.error as error:  # not an OSError, although it has an errno
        raise _termios_error(error, f"tcgetattr(3): fd={fd}") from None
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = old
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    cflag = (cflag & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw = list(cc)
    raw[termios.VMIN], raw[termios.VTIME] = 1, 0
    restore_terminal(fd, [iflag, oflag, cflag, lflag, ispeed, ospeed, raw])
    return list(old)


def restore_terminal(fd: int, attributes: list[object]) -> None:
    """Set the attributes of a terminal once what was written to it is out; tcsetattr(3)."""
    import termios

    while True:
        try:
            entering("tcsetattr", fd)
            termios.tcsetattr(fd, termios.TCSADRAIN, attributes)  # type: ignore[arg-type] # typeshed splits the list
        except termios.error as error:
            if error.args[0] == errno.EINTR:
                continue
            raise _termios_error(error, f"tcsetattr(3): fd={fd} when=TCSADRAIN") from None
        except OSError as error:
            note(error, f"tcsetattr(3): fd={fd} when=TCSADRAIN")
            raise
        return


def _termios_error(error: termios.error, text: str) -> OSError:
    converted = libc.errno_error(int(error.args[0]))
    note(converted, text)
    return converted


# ----------------------------------------------------------------------------------- fd passing
class Channel:
    """One end of a SOCK_SEQPACKET pair: messages of bytes with descriptors, in order, each whole. Close-on-exec."""

    __slots__ = ("_socket",)

    def __init__(self, end: _socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        """The descriptor's number; -1 when closed."""
        return self._socket.fileno()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message. Raises BrokenPipeError when the other end is closed (never SIGPIPE), EMSGSIZE; unix(7)."""
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
        try:
            entering("sendmsg", self.fileno(), len(data), tuple(fds))
            self._socket.sendmsg([data], ancillary if fds else [], _socket.MSG_NOSIGNAL)
        except OSError as error:
            note(error, f"sendmsg(2): fd={self.fileno()} length={len(data)} fds={tuple(fds)}")
            raise

    def receive(self, max_bytes: int = 65536, max_fds: int = 64) -> tuple[bytes, list[OwnedFd]]:
        """Wait for one message and its descriptors; b"" is the end. Raises OSError(EMSGSIZE) for one that is larger."""
        space = _socket.CMSG_SPACE(max_fds * 4)
        fds: list[OwnedFd] = []
        try:
            entering("recvmsg", self.fileno())
            data, ancillary, flags, _ = self._socket.recvmsg(
                max_bytes, space, _socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, content in ancillary:
                if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                    count = len(content) // 4
                    numbers = struct.unpack(f"={count}i", content[: count * 4])
                    fds.extend(OwnedFd(number) for number in numbers)
            if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
                raise libc.errno_error(errno.EMSGSIZE)
        except OSError as error:
            for fd in fds:
                fd.close()
            text = f"fd={self.fileno()} length={max_bytes} fds={max_fds}"
            note(error, f"recvmsg(2): {text}")
            raise
        return data, fds

    def close(self) -> None:
        """Close this end; a second time does nothing."""
        try:
            self._socket.close()
        except OSError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def seqpacket_pair() -> tuple[Channel, Channel]:
    """Two connected ends; socketpair(2). An empty message cannot be told from the end: do not send one."""
    try:
        entering("socketpair", "AF_UNIX", "SOCK_SEQPACKET")
        left, right = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    except OSError as error:
        note(error, "socketpair(2): domain=AF_UNIX type=SOCK_SEQPACKET")
        raise
    return Channel(left), Channel(right)
