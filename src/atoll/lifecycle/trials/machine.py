"""Cgroups, file systems, system calls, security modules, and what CRIU needs.

Sources: cgroups(7), the man page of each call.
"""

from __future__ import annotations

import os
import select
import struct

from atoll.lifecycle.trials import (
    DISABLED,
    ENABLED,
    MISSING,
    Trial,
    attempt,
    become_root_inside,
    in_child,
    own_namespaces,
    program,
    text_of,
    when,
)
from atoll.lifecycle.trials.namespaces import ORDINARY_MAP, Waiting
from atoll.lifecycle.trials.network import diagnostics
from atoll.linux import bpf, files, libc, mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from atoll.host import Host

SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000


# -------------------------------------------------------------------------------------- cgroups
CONTROLLERS: Final = (
    ("Cgroup device", "devices", ""),
    ("Cgroup sched", "cpu", "cpu"),
    ("Cgroup cpu account", "cpuacct", ""),
    ("Cgroup memory controller", "memory", "memory"),
    ("Cgroup cpuset", "cpuset", "cpuset"),
    ("Cgroup freezer", "freezer", ""),
    ("Cgroup pids", "pids", "pids"),
    ("Cgroup io", "blkio", "io"),
    ("Cgroup hugetlb", "hugetlb", "hugetlb"),
)
"""Name, controller of v1, of v2; "": v2 has it without a controller."""


def cgroups(host: Host) -> tuple[Trial, ...]:
    """Each controller: whether this user may make cgroups where it is. Looked at, not tried: cgroups are the machine's."""
    if not host.hierarchies:
        return (Trial(item="Cgroups", state=MISSING, reason="nothing is mounted"),)
    found = [Trial(item="Cgroups", state=ENABLED, reason=host.layout)]
    legacy = [each for each in host.hierarchies if each.version == 1]
    if legacy:
        flag = any(os.path.exists(f"{each.mount}/cgroup.clone_children") for each in legacy)
        found.append(
            Trial(item="Cgroup v1 clone_children flag", state=ENABLED if flag else MISSING)
        )
    found += [_controller(host, item, v1, v2) for item, v1, v2 in CONTROLLERS]
    return tuple(found)


def _controller(host: Host, item: str, v1: str, v2: str) -> Trial:
    for each in host.hierarchies:
        has_it = v1 in each.controllers if each.version == 1 else not v2 or v2 in each.controllers
        if not has_it or (each.version == 2 and not v2 and host.layout != "unified"):
            continue
        place = f"{each.mount}{each.base}"
        if not each.writable:
            return Trial(item=item, state=DISABLED, reason=f"{place} is not writable")
        if each.version == 2 and v1 == "devices":
            return in_child(lambda: [_device_program(item)], [item])[0]
        return Trial(item=item, state=ENABLED, reason=f"v{each.version}, {place}")
    return Trial(item=item, state=MISSING, reason="no hierarchy has it")


def _device_program(item: str) -> Trial:
    code = bpf.device_program((), allow=True)
    return attempt(item, lambda: bpf.load_device_program(code).close(), "cgroup2, BPF")


# -------------------------------------------------------------------------------------- storage
OVERLAY: Final = "Overlay"
OVERLAY_INSIDE: Final = "Overlay in a user namespace"
FUSE: Final = "FUSE (for use with lxcfs)"
API: Final = "Mount API"
IDMAPPED: Final = "Idmapped mounts"


def storage(host: Host) -> tuple[Trial, ...]:
    """Overlays, the mount API and idmapped mounts, on file systems in memory or of the containers' directory."""
    found: list[Trial] = []
    if host.privileged:
        found += in_child(lambda: [_overlay(host, OVERLAY)], [OVERLAY])
        found += in_child(lambda: [_idmapped(host)], [IDMAPPED])
    else:
        found.append(Trial(item=IDMAPPED, state=DISABLED, reason="only root may"))
    found += in_child(lambda: [_overlay_inside()], [OVERLAY_INSIDE])
    found += in_child(lambda: [_mount_api(host)], [API])
    return tuple(found)


def fuse() -> tuple[Trial, ...]:
    """What lxcfs needs."""
    trial = attempt(FUSE, lambda: files.open_fd("/dev/fuse", os.O_RDWR).close())
    return (trial.replace(reason="no /dev/fuse") if trial.state == MISSING else trial,)


def _overlay(host: Host, item: str) -> Trial:
    own_namespaces(host, process.CLONE_NEWNS)
    return attempt(item, _mount_overlay)


def _overlay_inside() -> Trial:
    become_root_inside(os.geteuid(), os.getegid())
    process.unshare(process.CLONE_NEWNS)
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    return attempt(OVERLAY_INSIDE, _mount_overlay)


def _mount_overlay() -> None:
    top = "/tmp" if os.path.isdir("/tmp") else "/"
    mount.mount("tmpfs", top, "tmpfs")
    os.chdir(top)
    for name in ("lower", "upper", "work", "merged"):
        files.mkdir(name, 0o755)
    mount.mount("overlay", "merged", "overlay", data="lowerdir=lower,upperdir=upper,workdir=work")
    files.mkdir("merged/made", 0o755)


def _mount_api(host: Host) -> Trial:
    own_namespaces(host, process.CLONE_NEWNS)

    def make() -> None:
        with mount.fsopen("tmpfs") as context:
            mount.fsconfig_create(context.fileno())
            with mount.fsmount(context.fileno()) as made:
                mount.move_mount(made.fileno(), "/")

    return attempt(API, make)


def _idmapped(host: Host) -> Trial:
    """A mount of the containers' directory with other ids: its file system must be able to."""
    path = host.lxcpath if os.path.isdir(host.lxcpath) else "/"
    with mount.open_tree(path, clone=True) as tree, _mapped_namespace() as userns:
        trial = attempt(
            IDMAPPED,
            lambda: mount.mount_setattr(tree.fileno(), userns_fd=userns.fileno()),
            path,
        )
    return (
        trial
        if trial.state == ENABLED
        else trial.replace(reason=f"not by the file system of {path}")
    )


def _mapped_namespace() -> files.OwnedFd:
    """A user namespace with a map, held by nothing but this descriptor."""
    first, count = ORDINARY_MAP
    with Waiting() as child:
        for file in ("uid_map", "gid_map"):
            files.write_text(f"/proc/{child.pid}/{file}", f"0 {first} {count}\n")
        return files.open_fd(f"/proc/{child.pid}/ns/user", os.O_RDONLY)


# --------------------------------------------------------------------------------- kernel calls
def calls() -> tuple[Trial, ...]:
    """Calls that a start makes, and what the C library's companions need."""
    items = ("clone3", "pidfd", "openat2", "close_range", "Seccomp filter", "Seccomp notify")
    return (*in_child(_calls, items), when("libseccomp", _has_library(), "not installed"))


def _calls() -> list[Trial]:
    how = struct.pack("=QQQ", os.O_PATH, 0, 0)
    return [
        attempt("clone3", _clone),
        attempt("pidfd", lambda: process.pidfd_open(os.getpid()).close()),
        attempt("openat2", lambda: os.close(libc.syscall("openat2", -100, b"/", how, len(how)))),
        attempt("close_range", lambda: libc.syscall("close_range", 0x7FFFFFFE, 0x7FFFFFFF, 0)),
        attempt("Seccomp filter", lambda: _seccomp(SECCOMP_RET_ERRNO)),
        attempt("Seccomp notify", lambda: _seccomp(SECCOMP_RET_USER_NOTIF)),
    ]


def _has_library() -> bool:
    try:
        libc.Library("libseccomp.so.2", {})
    except OSError:
        return False
    return True


def _clone() -> None:
    child = process.clone(lambda: os._exit(0))
    with child.pidfd:
        process.wait_pidfd(child.pidfd.fileno())


def _seccomp(action: int) -> None:
    libc.syscall("seccomp", SECCOMP_GET_ACTION_AVAIL, 0, struct.pack("=I", action))


# ----------------------------------------------------------------------------------- checkpoint
def checkpoint(host: Host, environ: Mapping[str, str]) -> tuple[Trial, ...]:
    """What CRIU needs."""
    criu = program("criu", environ)
    return (
        when("checkpoint restore", os.path.exists("/proc/sys/kernel/ns_last_pid")),
        when("CRIU", criu is not None, "not installed", criu or ""),
        when("CONFIG_FHANDLE", _has_handles()),
        attempt("CONFIG_EVENTFD", lambda: os.close(os.eventfd(0))),
        attempt("CONFIG_EPOLL", lambda: select.epoll().close()),
        *diagnostics(host),
        when(
            "File capabilities",
            "no_file_caps" not in text_of("/proc/cmdline").split(),
            "switched off",
        ),
    )


def _has_handles() -> bool:
    """name_to_handle_at(2) works on some file system that is always there."""
    call = libc.Library(None, {"name_to_handle_at": "iisppi"}).function("name_to_handle_at")
    handle = libc.buffer(struct.pack("=I", 128).ljust(136, b"\0"))
    return any(
        call(files.AT_FDCWD, place, handle, libc.buffer(4), 0) == 0
        for place in (b"/sys", b"/dev", b"/")
    )


def security(host: Host) -> tuple[Trial, ...]:
    """The security modules that can confine a container."""
    return tuple(
        [
            when(name, host.lsm == name.lower(), "not in this kernel, or switched off")
            for name in ("AppArmor", "SELinux")
        ]
    )
