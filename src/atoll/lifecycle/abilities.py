"""What this machine lacks for a configuration, found by looking: links, files, hooks, the root file system, the kernel.

A start would find each of these by failing; `atoll check --host` finds them all before. It only looks: nothing is opened for
writing, made, or asked of a network. What a plan refuses on this machine (controllers, namespaces, ids) is in check.refusals.
Sources: reference of LXC, sections 3, 6.2 and 8; path_resolution(7).
"""

from __future__ import annotations

import os
import stat

from atoll.errors import AtollError, reason
from atoll.lifecycle.check import INIT, Finding
from atoll.linux import files, proc
from atoll.resources import idmap, mounts, storage
from atoll.resources.cgroup import Cgroup
from atoll.resources.hooks import POINTS, Hooks
from atoll.resources.lsm import AppArmor
from atoll.resources.mounts import Mounts
from atoll.resources.namespaces import Namespaces
from atoll.resources.network import Network
from atoll.resources.seccomp import Seccomp
from atoll.resources.storage import Rootfs
from atoll.resources.terminal import Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.resources.network import Nic

ERROR = "error"
WARNING = "warning"
LINKS = "/sys/class/net"
SHELL_CHARACTERS = frozenset("\"'\\$`=~*?[;&|<>(){}")
UNTYPED = ("none", "", "proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "cgroup2", "overlay")
"""Types of mounts whose source is no file, and those whose file systems are there or are loaded as modules."""


def findings(config: Config, host: Host) -> Iterator[Finding]:
    """All of it."""
    yield from _rootfs(config, host)
    yield from _hooks(config)
    yield from _networks(config)
    yield from _mounts(config)
    yield from _files(config)
    yield from _ids(config, host)
    yield from _shared(config)
    yield from _kernel(config, host)


# ------------------------------------------------------------------------------- root file system
def _rootfs(config: Config, host: Host) -> Iterator[Finding]:
    key, value = "lxc.rootfs.path", config[Rootfs].path
    if not value:
        return
    origin = config.origin(key)
    try:
        source = storage.parse_source(value, origin)
    except AtollError:  # told by the plan
        return
    paths = [source.text]
    if source.backend == "overlay":
        paths = [path for path in source.text.split(":") if path != "tmpfs"]
    for path in paths:
        problem = _not_a_place(path)
        if problem is not None:
            yield Finding(
                severity=ERROR,
                message=f"cannot use the root file system {path}: {problem}",
                key=key,
                origin=origin,
                fix="create it (lxc-create), or correct the path",
                token=path,
            )
            return
    if idmap.mappings(config) and host.uid == 0:
        yield from _closed_path(config, paths[-1], origin)
    if source.backend == "dir" and os.path.isdir(source.text):
        yield from _inside(config, source.text)


def _not_a_place(path: str) -> str | None:
    """Why nothing can be mounted from here: it is neither a directory nor a block device or image."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return reason(error)
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or stat.S_ISREG(mode):
        return None
    return "it is neither a directory nor an image"


def _closed_path(config: Config, path: str, origin: Origin | None) -> Iterator[Finding]:
    """The container's root is nobody special on the host, and has to pass every directory on the way."""
    uid, gid = idmap.container_root(idmap.mappings(config))
    parts = os.path.abspath(path).split("/")
    for count in range(1, len(parts) + 1):
        part = "/".join(parts[:count]) or "/"
        try:
            status = os.stat(part)
        except OSError:  # it went away, or we may not pass ourselves
            return
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not (status.st_mode >> shift) & 1 and not _has_acl(part):
            yield Finding(
                severity=ERROR,
                message=f"the container's root (uid {uid} of the host) cannot pass {part}",
                key="lxc.rootfs.path",
                origin=origin,
                fix=f"chmod o+x {part}, or setfacl -m u:{uid}:x {part}",
            )
            return


def _has_acl(path: str) -> bool:
    """Somebody was given rights that the mode does not show: then it is not for us to say."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _inside(config: Config, root: str) -> Iterator[Finding]:
    """Init and the start hooks, looked up beneath the root, as it will be /."""
    with files.open_fd(root, os.O_PATH | os.O_DIRECTORY) as fd:
        command = config.get("lxc.init.cmd") or INIT
        program = next((word for word in command.split(" ") if word), INIT)
        if program.startswith("/"):
            problem = _not_executable_beneath(fd.fileno(), program)
            if problem is not None:
                yield Finding(
                    severity=WARNING if config.origin("lxc.init.cmd") is None else ERROR,
                    message=f"{program} {problem} in the root file system",
                    key="lxc.init.cmd",
                    origin=config.origin("lxc.init.cmd") or config.origin("lxc.rootfs.path"),
                    fix="install an init in it, or set lxc.init.cmd",
                    token=program,
                )
        origins = config.origins("lxc.hook.start")
        for hook, origin in zip(config[Hooks].start, origins, strict=True):
            program = _program(hook)
            problem = _not_executable_beneath(fd.fileno(), program) if program else None
            if problem is not None:
                yield Finding(
                    severity=ERROR,
                    message=f"the start hook {program} {problem} in the root file system",
                    key="lxc.hook.start",
                    origin=origin,
                    fix="start hooks run inside the container: put the file there",
                    token=program,
                )


def _not_executable_beneath(root: int, path: str) -> str | None:
    try:
        with files.open_beneath(root, path, os.O_PATH) as file:
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        return f"cannot be found ({reason(error)})"
    if not stat.S_ISREG(mode) or not mode & 0o111:
        return "is not an executable file"
    return None


# ---------------------------------------------------------------------------------------- programs
def _hooks(config: Config) -> Iterator[Finding]:
    """Hooks that run while the host's files are what is seen: all but those of `start`."""
    section = config[Hooks]
    for point in POINTS:
        if point == "start":
            continue
        key = f"lxc.hook.{point}"
        for hook, origin in zip(section.at(point), config.origins(key), strict=True):
            needed = point not in ("clone", "destroy")
            yield from _command(hook, key, origin, severity=ERROR if needed else WARNING)


def _command(value: str, key: str, origin: Origin | None, *, severity: str) -> Iterator[Finding]:
    program = _program(value)
    if not program.startswith("/"):
        return
    problem, fix = "", f"make {program}, or correct the path"
    if not os.path.exists(program):
        problem = "does not exist"
    elif not os.access(program, os.X_OK) or os.path.isdir(program):
        problem, fix = "is not executable", f"chmod +x {program}"
    if problem:
        yield Finding(
            severity=severity,
            message=f"cannot run {program}: it {problem}",
            key=key,
            origin=origin,
            fix=fix,
            token=program,
        )


def _program(command: str) -> str:
    """The first word of a shell command, where it is what it looks like; else nothing."""
    word = command.split(maxsplit=1)[0] if command.strip() else ""
    return "" if set(word) & SHELL_CHARACTERS else word


# ----------------------------------------------------------------------------------------- network
def _networks(config: Config) -> Iterator[Finding]:
    for nic in config[Network].nics:
        prefix = f"lxc.net.{nic.index}"
        for sub, command in (("script.up", nic.script_up), ("script.down", nic.script_down)):
            if command:
                key = f"{prefix}.{sub}"
                yield from _command(command, key, config.origin(key), severity=ERROR)
        if nic.link and nic.type in ("veth", "macvlan", "ipvlan", "vlan", "phys"):
            yield from _link(config, nic, nic.link)
        if nic.veth_pair and os.path.exists(f"{LINKS}/{nic.veth_pair}"):
            yield Finding(
                severity=WARNING,
                message=f"the host has a link {nic.veth_pair} already",
                key=f"{prefix}.veth.pair",
                origin=config.origin(f"{prefix}.veth.pair"),
                fix="fine while this container runs; else remove it, or take another name",
            )


def _link(config: Config, nic: Nic, link: str) -> Iterator[Finding]:
    key = f"lxc.net.{nic.index}.link"
    if nic.type == "phys" and link.endswith("+"):
        return
    directory = f"{LINKS}/{link}"
    problem = fix = None
    if not os.path.isdir(directory):
        problem = f"the host has no link {link}"
        near = _nearest_link(link)
        bridge = nic.type == "veth" and nic.veth_mode == "bridge"
        made = f"create it (ip link add {link} type bridge)" if bridge else "create it"
        fix = f"did you mean {near}?" if near else f"{made}, or use another"
    elif nic.type == "veth" and nic.veth_mode == "bridge" and not _is_bridge(directory):
        problem = f"{link} is no bridge"
        fix = "use a bridge, or lxc.net.N.veth.mode = router, or type = macvlan"
    if problem is not None:
        yield Finding(
            severity=ERROR, message=problem, key=key, origin=config.origin(key), fix=fix, token=link
        )


def _is_bridge(directory: str) -> bool:
    """The kernel's own, or one of Open vSwitch, whose links look like any other."""
    return os.path.isdir(f"{directory}/bridge") or os.path.isdir("/sys/module/openvswitch")


def _nearest_link(link: str) -> str | None:
    from difflib import get_close_matches

    try:
        there = os.listdir(LINKS)
    except OSError:
        return None
    return next(iter(get_close_matches(link, there, n=1, cutoff=0.7)), None)


# ------------------------------------------------------------------------------------------- files
def _mounts(config: Config) -> Iterator[Finding]:
    key = "lxc.mount.entry"
    filesystems = proc.parse_filesystems(files.read_text("/proc/filesystems"))
    for text, origin in zip(config[Mounts].entries, config.origins(key), strict=True):
        try:
            entry = mounts.parse_line(text)
        except ValueError:  # told by the plan
            continue
        if entry is None or entry.optional or entry.relative:
            continue
        if entry.fstype not in (*UNTYPED, *filesystems):
            yield Finding(
                severity=WARNING,
                message=f"the kernel has no file system {entry.fstype} at present",
                key=key,
                origin=origin,
                fix="load its module before the start, or correct the type",
                token=entry.fstype,
            )
        if entry.source.startswith("/") and not os.path.exists(entry.source):
            yield Finding(
                severity=ERROR,
                message=f"cannot mount {entry.source}: no such file or directory",
                key=key,
                origin=origin,
                fix="create it, or add the option `optional`",
                token=entry.source,
            )


def _files(config: Config) -> Iterator[Finding]:
    """Files that are read, and directories that files are made in."""
    for key, path in (
        ("lxc.mount.fstab", config[Mounts].fstab),
        ("lxc.seccomp.profile", config[Seccomp].profile),
    ):
        if path and not os.access(path, os.R_OK):
            why = "permission denied" if os.path.exists(path) else "no such file"
            yield _about_file(config, key, path, f"cannot read {path}: {why}")
    console = config[Console]
    for key, path in (
        ("lxc.console.logfile", console.logfile),
        ("lxc.log.file", config.get("lxc.log.file")),
    ):
        directory = os.path.dirname(path or "") or "."
        if path and path.startswith("/") and not os.path.isdir(directory):
            yield _about_file(
                config, key, path, f"cannot write {path}: there is no directory {directory}"
            )
    if console.path not in (None, "none") and not os.path.exists(str(console.path)):
        path = str(console.path)
        yield _about_file(config, "lxc.console.path", path, f"there is no terminal {path}")


def _about_file(config: Config, key: str, path: str, message: str) -> Finding:
    return Finding(
        severity=ERROR,
        message=message,
        key=key,
        origin=config.origin(key),
        fix="create it, or correct the path",
        token=path,
    )


# ------------------------------------------------------------------------------------ user, kernel
def _ids(config: Config, host: Host) -> Iterator[Finding]:
    """An ordinary user may map what /etc/subuid and /etc/subgid give him, and his own ids."""
    if not config.mentions("lxc.idmap") or (host.uid == 0 and not host.newuidmap):
        return
    for entry, origin in zip(
        config[idmap.IdMaps].entries, config.origins("lxc.idmap"), strict=True
    ):
        own = host.uid if entry.kind == "u" else host.gid
        ranges = host.subuids if entry.kind == "u" else host.subgids
        if entry.count == 1 and entry.outside == own:
            continue
        if host.uid == 0 and not ranges:  # root writes the map itself
            continue
        end = entry.outside + entry.count
        if not any(r.first <= entry.outside and end <= r.first + r.count for r in ranges):
            file = "/etc/subuid" if entry.kind == "u" else "/etc/subgid"
            there = ", ".join(f"{r.first} to {r.first + r.count - 1}" for r in ranges)
            yield Finding(
                severity=WARNING if host.uid == 0 else ERROR,
                message=f"{file} does not give {host.user} the ids {entry.outside} to {end - 1}",
                key="lxc.idmap",
                origin=origin,
                fix=f"it gives {there}"
                if there
                else f"usermod --add-sub{entry.kind}ids … {host.user}",
            )


def _shared(config: Config) -> Iterator[Finding]:
    origins = config.origins("lxc.namespace.share.*")
    for (name, value), origin in zip(config[Namespaces].share, origins, strict=True):
        digits = value.isascii() and value.isdigit()
        path = value if value.startswith("/") else f"/proc/{value}/ns/{name}" if digits else None
        if path is not None and not os.path.exists(path):
            yield Finding(
                severity=ERROR,
                message=f"there is no {name} namespace {path}",
                key=f"lxc.namespace.share.{name}",
                origin=origin,
                token=value,
            )


def _kernel(config: Config, host: Host) -> Iterator[Finding]:
    """Settings that LXC ignores on a kernel that has not got what they are about."""
    for key, wanted, there, what in (
        ("lxc.apparmor.profile", config[AppArmor].profile, host.lsm == "apparmor", "AppArmor"),
        (
            "lxc.selinux.context",
            config.get("lxc.selinux.context"),
            host.lsm == "selinux",
            "SELinux",
        ),
        ("lxc.seccomp.profile", config[Seccomp].profile, host.seccomp, "seccomp"),
    ):
        if wanted and not there and wanted not in ("unconfined", "unchanged"):
            yield Finding(
                severity="note",
                message=f"{key} has no effect: this kernel runs without {what}",
                key=key,
                origin=config.origin(key),
            )
    if config[Cgroup].relative and not host.hierarchies:
        yield Finding(
            severity="note",
            message="lxc.cgroup.relative has no effect: there are no cgroups here",
            key="lxc.cgroup.relative",
            origin=config.origin("lxc.cgroup.relative"),
        )
