"""What a host looks like, as data: taken before and after, two snapshots must be equal.

Not exhaustive: what containers are known to leave behind.  In the outer isolation the upper layers of the
overlays list every file that anything wrote to /etc, /usr, /home, /root, /var/lib, … (isolation/outer.py).
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from isolation.marker import UPPER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The isolation's own temporary directory: the machine's /tmp is anybody's.
TEMPORARY = os.environ.get("TMPDIR", "/nonexistent")
WATCHED = ("/run", "/var/lib/lxc", "/var/cache/lxc", "/dev/shm", TEMPORARY)
# pytest's own directories, and the directory of the isolation, whose upper layers are a section of their own.
UNWATCHED = (f"{TEMPORARY}/pytest-of-", "/run/atoll-isolation")
PF_KTHREAD = 0x00200000


class HostSnapshot(NamedTuple):
    """Section -> key -> value, all text."""

    sections: dict[str, dict[str, str]]

    @classmethod
    def take(cls, *directories: str) -> HostSnapshot:
        """Look at everything; `directories` are watched besides WATCHED."""
        sections: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
            "descriptor": _descriptors,  # first: what this function opens is closed again
            "mount": _mounts,
            "link": _links,
            "address or route": _routes,
            "cgroup": _cgroups,
            "process": _processes,
            "loop device": _loop_devices,
            "device node": lambda: _files("/dev", skip=("/dev/pts", "/dev/shm", "/dev/mqueue")),
            "abstract socket": _abstract_sockets,
            "file": lambda: _watched(directories),
            "overwritten": _overwritten,
            "of the test process": _self,
        }
        return cls({name: dict(_numbered(look())) for name, look in sections.items()})


def diff(before: HostSnapshot, after: HostSnapshot) -> list[str]:
    """One line for each difference: `+` appeared, `-` is gone, `!` changed."""
    lines = []
    for section, old in before.sections.items():
        new = after.sections[section]
        lines += [f"+ {section} {key}  {new[key]}".rstrip() for key in new if key not in old]
        lines += [f"- {section} {key}  {old[key]}".rstrip() for key in old if key not in new]
        lines += [
            f"! {section} {key}  {old[key]} -> {new[key]}"
            for key in old
            if key in new and old[key] != new[key]
        ]
    return lines


def settled(before: HostSnapshot, *directories: str, patience: float = 2.0) -> list[str]:
    """The differences that remain after at most `patience` seconds.

    The kernel takes down a network namespace, and the host's end of its veths, some time after the last
    process has gone, and pid 1 reaps orphans when it gets to it.
    """
    deadline = time.monotonic() + patience
    pause = 0.002
    while differences := diff(before, HostSnapshot.take(*directories)):
        if time.monotonic() > deadline:
            return differences
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    return []


def _numbered(items: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Make repeated keys (mounts upon mounts) distinct."""
    seen: dict[str, int] = {}
    for key, value in items:
        seen[key] = seen.get(key, 0) + 1
        yield (key if seen[key] == 1 else f"{key} #{seen[key]}"), value


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _descriptors() -> Iterator[tuple[str, str]]:
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            yield name, os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own


def _mounts() -> Iterator[tuple[str, str]]:
    for line in _read("/proc/self/mountinfo").splitlines():
        left, right = line.split(" - ", 1)
        fields = left.split()
        fstype, source, options = right.split(" ", 2)
        yield fields[4], f"{fstype} {source} root {fields[3]} {fields[5]} {options}"


def _links() -> Iterator[tuple[str, str]]:
    for index, name in socket.if_nameindex():
        directory = f"/sys/class/net/{name}"
        facts = [_read(f"{directory}/{file}").strip() for file in ("address", "mtu", "flags")]
        master = os.path.basename(os.path.realpath(f"{directory}/master"))
        yield name, f"index {index} {' '.join(facts)} {master if master != 'master' else ''}"


def _routes() -> Iterator[tuple[str, str]]:
    for line in _read("/proc/self/net/route").splitlines()[1:]:
        fields = line.split()
        yield f"route {fields[0]} {fields[1]}/{fields[7]}", f"via {fields[2]}"
    for line in _read("/proc/self/net/if_inet6").splitlines():
        fields = line.split()
        yield f"address {fields[5]} {fields[0]}", f"/{fields[2]}"
    for line in _read("/proc/self/net/fib_trie").splitlines():
        if "|--" in line:
            yield f"prefix {line.split()[-1]}", ""


def _cgroups() -> Iterator[tuple[str, str]]:
    for directory, _names, _files in os.walk("/sys/fs/cgroup"):
        yield directory, ""


def _processes() -> Iterator[tuple[str, str]]:
    own = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        text = _read(f"/proc/{name}/stat")
        if not text:
            continue
        command, rest = text[text.index("(") + 1 :].rsplit(") ", 1)
        fields = rest.split()
        if not int(fields[6]) & PF_KTHREAD:
            zombie = " (zombie)" if fields[0] == "Z" else ""
            yield f"{name} {command}{zombie}", f"started {fields[19]}"


def _loop_devices() -> Iterator[tuple[str, str]]:
    if not os.path.isdir("/sys/block"):
        return
    for name in os.listdir("/sys/block"):
        backing = _read(f"/sys/block/{name}/loop/backing_file").strip()
        if backing:
            yield name, backing


def _abstract_sockets() -> Iterator[tuple[str, str]]:
    for line in _read("/proc/self/net/unix").splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7].startswith("@") and fields[3] == "00010000":
            yield fields[7], "listening"


def _watched(directories: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for top in WATCHED:
        yield from _files(top, skip=UNWATCHED)
    for top in directories:
        yield from _files(top, skip=())


def _overwritten() -> Iterator[tuple[str, str]]:
    yield from _files(UPPER, skip=())


def _files(top: str, *, skip: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.path.startswith(skip or ("\0",)):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        mode = stat.filemode(status.st_mode)
        size = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else ""
        yield entry.path, f"{mode} {status.st_uid}:{status.st_gid} {status.st_rdev or ''} {size}"
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, skip=skip)


def _self() -> Iterator[tuple[str, str]]:
    umask = os.umask(0o22)
    os.umask(umask)
    yield "umask", oct(umask)
    yield "working directory", os.getcwd()
    yield "host name", os.uname().nodename
    yield "blocked signals", str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    for name in os.listdir("/proc/self/ns"):
        yield f"namespace {name}", os.readlink(f"/proc/self/ns/{name}")
    for line in _read("/proc/self/cgroup").splitlines():
        yield f"cgroup {line.split(':')[1] or 'v2'}", line
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:")):
            key, value = line.split(":", 1)
            yield key, value.strip()
