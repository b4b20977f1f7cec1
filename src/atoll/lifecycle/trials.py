"""What this machine lets this user do, found out by doing it: lxc-checkconfig's answers.

Not facts that can be read (host.py), and no plan. Every trial runs in a forked child, in namespaces of its own where it would
change something; what it makes dies with them. One trace may stay: the kernel loads a module when somebody asks for what is in
it, as the first container would. Sources: the man page of each call; reference of LXC, section 11.9.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
from errno import (
    EACCES,
    EAFNOSUPPORT,
    ECANCELED,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    ETIMEDOUT,
    EUSERS,
)

from atoll.errors import reason
from atoll.linux import bpf, files, libc, mount, netlink, process
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Final, Self

    from atoll.host import Host

ENABLED: Final = "enabled"
DISABLED: Final = "disabled"
MISSING: Final = "missing"

PATIENCE: Final = 10.0  # seconds for one child: a helper may ask a directory service about users
ABSENT: Final = frozenset(
    (EAFNOSUPPORT, EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPROTONOSUPPORT)
)
NOBODY: Final = 65534
ORDINARY_MAP: Final = (100000, 65536)
IFLA_VLAN_ID: Final = 1
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
SECCOMP_GET_ACTION_AVAIL: Final = 2
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000


class Trial(Record):
    """One thing that was tried: its name, enabled, disabled (there, but not for us) or missing, and why in few words."""

    item: str
    state: str
    reason: str = ""


def attempt(item: str, action: Callable[[], object], success: str = "") -> Trial:
    """Do it here and say how it went; `success` is the reason of an enabled one."""
    try:
        action()
    except OSError as error:
        return Trial(item=item, state=_state(error), reason=_why(error))
    return Trial(item=item, state=ENABLED, reason=success)


def _state(error: OSError) -> str:
    return MISSING if error.errno in ABSENT else DISABLED


def _why(error: OSError) -> str:
    if error.errno in ABSENT:
        return "not in this kernel"
    if error.errno in (EPERM, EACCES):
        return "not permitted"
    if error.errno in (ENOSPC, EUSERS):
        return "limit reached"
    return str(error.strerror) if error.errno == ECANCELED else reason(error)


# -------------------------------------------------------------------------------------- a child
def in_child(work: Callable[[], Iterable[Trial]], items: Iterable[str]) -> tuple[Trial, ...]:
    """What `work` finds out in a forked child. When that dies or hangs, `items` are disabled, with how it ended."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()  # not clone3: it is one of the things to be tried
    if pid == 0:
        _work_and_exit(work, writer, parent)
    os.close(writer)
    try:
        text = _read_all(reader)
    except TimeoutError:
        os.kill(pid, process.SIGKILL)
        text = ""
    finally:
        os.close(reader)
        status = os.waitpid(pid, 0)[1]
    if text:
        from ast import literal_eval

        return tuple([Trial(item=i, state=s, reason=r) for i, s, r in literal_eval(text)])
    how = f"ended by signal {status & 127}" if status & 127 else "it did not say why"
    return tuple([Trial(item=item, state=DISABLED, reason=how) for item in items])


def _work_and_exit(work: Callable[[], Iterable[Trial]], writer: int, parent: int) -> None:
    try:
        process.set_death_signal(process.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        found = [(trial.item, trial.state, trial.reason) for trial in work()]
        os.write(writer, repr(found).encode())  # a few lines: less than a pipe holds
    except OSError as error:
        os.write(2, f"the trial failed: {reason(error)}\n".encode())
    finally:
        os._exit(0)


def _read_all(reader: int) -> str:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    chunks: list[bytes] = []
    while True:
        if not poll.poll(PATIENCE * 1000):
            raise TimeoutError(ETIMEDOUT, "the trial hangs")
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(chunks).decode()
        chunks.append(chunk)


def _own_namespaces(host: Host, flags: int) -> None:
    """In the child: leave for new namespaces; who is not root gets them from a user namespace of his own."""
    if not host.privileged:
        _become_root_inside(os.geteuid(), os.getegid())
    process.unshare(flags)
    if flags & process.CLONE_NEWNS:
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)


def _become_root_inside(uid: int, gid: int) -> None:
    process.unshare(process.CLONE_NEWUSER)
    files.write_text("/proc/self/setgroups", "deny")
    files.write_text("/proc/self/uid_map", f"0 {uid} 1\n")
    files.write_text("/proc/self/gid_map", f"0 {gid} 1\n")


def _run(*argv: str) -> int:
    """Run a program without its output; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    return os.waitpid(pid, 0)[1]


def program(name: str, environ: Mapping[str, str]) -> str | None:
    """The path of a program: in PATH, or where system programs are."""
    for directory in (
        *environ.get("PATH", "").split(":"),
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ):
        path = f"{directory}/{name}"
        if directory and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


def everything(host: Host, environ: Mapping[str, str]) -> tuple[tuple[str, tuple[Trial, ...]], ...]:
    """All trials as (section, items), in LXC's order and with its names where it has them."""
    return (
        ("Namespaces", namespaces(host)),
        ("Control groups", cgroups(host)),
        ("Misc", (*links(host), *netfilter(host, environ), *fuse())),
        ("Storage", storage(host)),
        ("Kernel calls", calls()),
        ("Security", security(host)),
        ("Checkpoint/Restore", checkpoint(host, environ)),
    )


# ----------------------------------------------------------------------------------- namespaces
NAMESPACES: Final = (
    ("Mount namespace", process.CLONE_NEWNS),
    ("Utsname namespace", process.CLONE_NEWUTS),
    ("Ipc namespace", process.CLONE_NEWIPC),
    ("Pid namespace", process.CLONE_NEWPID),
    ("Network namespace", process.CLONE_NEWNET),
    ("Cgroup namespace", process.CLONE_NEWCGROUP),
    ("Time namespace", process.CLONE_NEWTIME),
)
USER: Final = "User namespace"
ORDINARY: Final = "User namespace, for ordinary users"
SUBORDINATE: Final = "Subordinate ids"


def namespaces(host: Host) -> tuple[Trial, ...]:
    """Each kind of namespace, for this user; and user namespaces for everybody else."""
    items = [item for item, _flag in NAMESPACES]

    def work() -> list[Trial]:
        if not host.privileged:
            _become_root_inside(os.geteuid(), os.getegid())
        return [attempt(item, lambda f=flag: process.unshare(f)) for item, flag in NAMESPACES]  # type: ignore[misc]  # the default binds the loop's variable

    user = in_child(lambda: [_user_namespace(USER)], [USER])
    found = [*in_child(work, items)] if host.privileged or user[0].state == ENABLED else [
        Trial(item=item, state=DISABLED, reason="no user namespace") for item in items
    ]  # fmt: skip
    found.insert(4, user[0])
    worst = [trial.state for trial in found[:6] if trial.state != ENABLED]
    found.insert(0, Trial(item="Namespaces", state=(*worst, ENABLED)[0]))
    if host.privileged:
        found += in_child(_as_nobody, [ORDINARY])
    return (*found, *in_child(lambda: [_subordinate(host)], [SUBORDINATE]))


def _user_namespace(item: str) -> Trial:
    trial = attempt(item, lambda: process.unshare(process.CLONE_NEWUSER))
    return trial if trial.state == ENABLED else trial.replace(reason=_forbids() or trial.reason)


def _forbids() -> str:
    """The setting that forbids user namespaces."""
    for setting, value in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        if _text(f"/proc/sys/{setting}") == value:
            return f"{setting.replace('/', '.')} = {value}"
    return ""


def _as_nobody() -> list[Trial]:
    process.set_ids(NOBODY, NOBODY, ())
    return [_user_namespace(ORDINARY)]


def _subordinate(host: Host) -> Trial:
    """A range of subordinate ids mapped into a user namespace: by root itself, or by newuidmap and newgidmap."""
    direct = host.can("setuid") and host.can("setgid")
    ranges = [(found[0].first, found[0].count) for found in (host.subuids, host.subgids) if found]
    if direct and len(ranges) < 2:
        ranges = [ORDINARY_MAP] * 2
    for helper, path in (("newuidmap", host.newuidmap), ("newgidmap", host.newgidmap)):
        if path is None and not direct:
            installed = program(helper, {})
            why = f"{helper} is {'not setuid root' if installed else 'not installed'}"
            return Trial(item=SUBORDINATE, state=DISABLED if installed else MISSING, reason=why)
    if len(ranges) < 2:
        file = "/etc/subgid" if host.subuids else "/etc/subuid"
        return Trial(item=SUBORDINATE, state=MISSING, reason=f"none for {host.user} in {file}")
    shown = ", ".join(f"{first}:{count}" for first, count in ranges)
    return attempt(SUBORDINATE, lambda: _map(host, ranges, direct=direct), shown)


def _map(host: Host, ranges: list[tuple[int, int]], *, direct: bool) -> None:
    """Write both maps of a waiting child. Raises OSError."""
    helpers = ("", "") if direct else (host.newuidmap or "", host.newgidmap or "")
    with _Waiting() as child:
        for file, helper, (first, count) in zip(("uid", "gid"), helpers, ranges, strict=True):
            if not helper:
                files.write_text(f"/proc/{child.pid}/{file}_map", f"0 {first} {count}\n")
            elif _run(helper, str(child.pid), "0", str(first), str(count)):
                raise OSError(ECANCELED, "refused")


class _Waiting:
    """A child that waits in a new user namespace until it is let go: `with _Waiting() as child`."""

    def __enter__(self) -> Self:
        """Fork it. Raises PermissionError when it cannot have the namespace."""
        ready, tell = os.pipe2(os.O_CLOEXEC)
        wait, self.release = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            self._wait_and_exit(tell, wait)
        os.close(tell)
        os.close(wait)
        told = os.read(ready, 1)
        os.close(ready)
        if not told:
            self.__exit__()
            raise PermissionError(EPERM, "no user namespace")
        return self

    def _wait_and_exit(self, tell: int, wait: int) -> None:
        os.close(self.release)
        try:
            process.unshare(process.CLONE_NEWUSER)
            os.write(tell, b"+")
            os.read(wait, 1)
        finally:
            os._exit(0)

    def __exit__(self, *_error: object) -> None:
        os.close(self.release)
        os.waitpid(self.pid, 0)


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


# -------------------------------------------------------------------------------------- network
LINKS: Final = ("Veth pair device", "Bridges", "Macvlan", "Vlan", "Ipvlan")
FILTERS: Final = (
    ("Advanced netfilter", "add rule ip t c counter"),
    ("CONFIG_IP_NF_TARGET_MASQUERADE", "add rule ip t c masquerade"),
    ("CONFIG_IP6_NF_TARGET_MASQUERADE", "add rule ip6 t c masquerade"),
)
XTABLES: Final = (
    ("CONFIG_NETFILTER_XT_TARGET_CHECKSUM", "-t mangle -A POSTROUTING -p udp -j CHECKSUM --checksum-fill"),
    ("CONFIG_NETFILTER_XT_MATCH_COMMENT", "-A INPUT -m comment --comment x"),
)  # fmt: skip
DIAGNOSTICS: Final = (
    ("CONFIG_UNIX_DIAG", _socket.AF_UNIX, 0),
    ("CONFIG_INET_DIAG", _socket.AF_INET, _socket.IPPROTO_TCP),
    ("CONFIG_PACKET_DIAG", _socket.AF_PACKET, 0),
    ("CONFIG_NETLINK_DIAG", netlink.AF_NETLINK, 0),
)


def links(host: Host) -> tuple[Trial, ...]:
    """Each kind of link, made in a network namespace that goes at once."""
    return in_child(lambda: _links(host), LINKS)


def _links(host: Host) -> list[Trial]:
    _own_namespaces(host, process.CLONE_NEWNET)
    with netlink.Netlink() as kernel:
        found = [
            attempt(LINKS[0], lambda: kernel.create_veth("a", peer="b")),
            attempt(LINKS[1], lambda: kernel.create_link("bridge", "bridge")),
        ]
        lower = 0
        for name in ("a", "bridge", "lo"):
            try:
                lower = kernel.link_index(name)
                break
            except OSError:
                continue
        vlan = netlink.attribute(IFLA_VLAN_ID, struct.pack("=H", 5))
        for item, kind, data in ((LINKS[2], "macvlan", b""), (LINKS[3], "vlan", vlan)):
            make = lambda k=kind, d=data: kernel.create_link(k, k, data=d, lower=lower)  # noqa: E731 - named for the line's length
            found.append(attempt(item, make))
        own = lambda: kernel.create_link("ipvlan", "ipvlan", lower=kernel.link_index("b"))  # noqa: E731 - a device has macvlans or ipvlans
        found.append(attempt(LINKS[4], own))
    return found


def netfilter(host: Host, environ: Mapping[str, str]) -> tuple[Trial, ...]:
    """What a bridge with NAT needs, asked of nft and iptables in a network namespace of their own."""
    nft, iptables = program("nft", environ), program("iptables", environ)
    names = [item for item, _rule in (*FILTERS, *XTABLES)]

    def work() -> list[Trial]:
        _own_namespaces(host, process.CLONE_NEWNET | process.CLONE_NEWNS)
        mount.mount("tmpfs", "/run", "tmpfs")  # iptables keeps a lock there
        found = [_nft(item, nft, rule) for item, rule in FILTERS]
        return found + [_xtables(item, iptables, rule) for item, rule in XTABLES]

    return in_child(work, names)


def _nft(item: str, nft: str | None, rule: str) -> Trial:
    if nft is None:
        return Trial(item=item, state=MISSING, reason="nft is not installed")
    family = rule.split()[2]
    rules = f"add table {family} t; add chain {family} t c {{ type nat hook postrouting priority 100; }}; {rule}"
    return _refused(item, _run(nft, rules), "nft")


def _xtables(item: str, iptables: str | None, rule: str) -> Trial:
    if iptables is None:
        return Trial(item=item, state=MISSING, reason="iptables is not installed")
    return _refused(item, _run(iptables, *rule.split()), "iptables")


def _refused(item: str, status: int, tool: str) -> Trial:
    if status:
        return Trial(item=item, state=MISSING, reason=f"{tool} refuses it")
    return Trial(item=item, state=ENABLED, reason=f"by {tool}")


def diagnostics(host: Host) -> tuple[Trial, ...]:
    """The interfaces that CRIU lists sockets with."""

    def work() -> list[Trial]:
        _own_namespaces(host, process.CLONE_NEWNET)
        return [attempt(item, lambda f=f, p=p: _diagnose(f, p)) for item, f, p in DIAGNOSTICS]  # type: ignore[misc]  # the defaults bind the loop's variables

    return in_child(work, [item for item, _family, _protocol in DIAGNOSTICS])


def _diagnose(family: int, protocol: int) -> None:
    """List the sockets of a family. Raises OSError(ENOENT) when nothing in the kernel can; sock_diag(7)."""
    body = struct.pack("=BB", family, protocol).ljust(56, b"\0")
    head = struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, 0x301, 1, 0)
    with _socket_of(NETLINK_SOCK_DIAG) as fd:
        os.write(fd.fileno(), head + body)
        for kind, _flags, _number, answer in netlink.parse_messages(os.read(fd.fileno(), 1 << 16)):
            if kind == netlink.NLMSG_ERROR:
                code: int = struct.unpack_from("=i", answer)[0]
                raise libc.errno_error(-code)


def _socket_of(protocol: int) -> files.OwnedFd:
    made = _socket.socket(netlink.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    made.connect((0, 0))  # to the kernel: a plain write needs it
    return files.OwnedFd(made.detach())


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
    _own_namespaces(host, process.CLONE_NEWNS)
    return attempt(item, _mount_overlay)


def _overlay_inside() -> Trial:
    _become_root_inside(os.geteuid(), os.getegid())
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
    _own_namespaces(host, process.CLONE_NEWNS)

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
    with _Waiting() as child:
        for file in ("uid_map", "gid_map"):
            files.write_text(f"/proc/{child.pid}/{file}", f"0 {first} {count}\n")
        return files.open_fd(f"/proc/{child.pid}/ns/user", os.O_RDONLY)


# --------------------------------------------------------------------------------- kernel calls
def calls() -> tuple[Trial, ...]:
    """Calls that a start makes, and what the C library's companions need."""
    items = ("clone3", "pidfd", "openat2", "close_range", "Seccomp filter", "Seccomp notify")
    return (*in_child(_calls, items), _when("libseccomp", _has_library(), "not installed"))


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
        _when("checkpoint restore", os.path.exists("/proc/sys/kernel/ns_last_pid")),
        _when("CRIU", criu is not None, "not installed", criu or ""),
        _when("CONFIG_FHANDLE", _has_handles()),
        attempt("CONFIG_EVENTFD", lambda: os.close(os.eventfd(0))),
        attempt("CONFIG_EPOLL", lambda: select.epoll().close()),
        *diagnostics(host),
        _when(
            "File capabilities",
            "no_file_caps" not in _text("/proc/cmdline").split(),
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
            _when(name, host.lsm == name.lower(), "not in this kernel, or switched off")
            for name in ("AppArmor", "SELinux")
        ]
    )


def _when(item: str, there: bool, otherwise: str = "not in this kernel", how: str = "") -> Trial:  # noqa: FBT001 - the finding itself
    return Trial(item=item, state=ENABLED if there else MISSING, reason=how if there else otherwise)


def _text(path: str) -> str:
    try:
        return files.read_text(path).strip()
    except OSError:
        return ""
