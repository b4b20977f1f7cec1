"""What a test needs, found out by trying it: `@needs("root", "overlay")`.

A probe answers None (able) or why not.  A skip is honest only if the machine is known, by another look than
the probe's own, to lack the thing: `justified` is that look.  conftest.py turns every other skip into a failure,
so that a broken probe, or a package that tools/setup should have installed, does not pass as green.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from isolation import cgroups, inside, kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    Probe = Callable[[], str | None]

PREFIX = "needs "
CAPABILITIES = {
    "sys-resource": 24,
    "sys-admin": 21,
    "sys-boot": 22,
    "mac-admin": 33,
    "sys-time": 25,
}


def needs(*abilities: str) -> pytest.MarkDecorator:
    """Mark a test (or with `pytestmark = needs(…)` a module) with the abilities it needs; unknown names are errors."""
    for name in abilities:
        _find(name)
    return pytest.mark.needs(*abilities)


@functools.cache
def why_not(ability: str) -> str | None:
    """None if this process can, else the reason in words."""
    return _find(ability)()


def skip_reason(abilities: tuple[str, ...]) -> str | None:
    """The reason of the first ability that is missing, in the form that `is_justified` reads."""
    for ability in abilities:
        reason = why_not(ability)
        if reason is not None:
            return f"{PREFIX}{ability}: {reason}"
    return None


def is_justified(reason: str) -> bool:
    """Is a skip for `reason` right on this machine?"""
    if not reason.startswith(PREFIX):
        return False
    return justified(reason[len(PREFIX) :].split(": ", 1)[0])


@functools.cache
def justified(ability: str) -> bool:
    """By a look of its own: does this machine really lack the ability?"""
    if os.geteuid() != 0 and ability in NEED_ROOT:
        return True
    if ability in PROGRAMS:
        package = PROGRAMS[ability][1]
        return package is None or not _setup_can_install()
    if ability in FILESYSTEMS:
        return not _kernel_has(ability)
    if ability in LINKS:
        return not _kernel_has(ability)
    if ability.startswith("controller:") or ability in ("cgroup-v1", "cgroup-v2", "hybrid"):
        return not _machine_has_cgroup(ability)
    if ability in CAPABILITIES:
        return not _capabilities("CapBnd") >> CAPABILITIES[ability] & 1
    if ability in ("apparmor", "selinux", "landlock"):
        return ability not in _read("/sys/kernel/security/lsm") and not os.path.isdir(
            f"/sys/module/{ability}"
        )
    if ability == "guest":
        return not os.environ.get("ATOLL_GUEST")
    if ability == "systemd":
        return _read("/proc/1/comm").strip() != "systemd" or inside() is not None
    if ability == "userns":
        limits = (
            "/proc/sys/user/max_user_namespaces",
            "/proc/sys/kernel/unprivileged_userns_clone",
        )
        return any(_read(limit).strip() == "0" for limit in limits)
    if ability == "rt":
        return _read("/proc/sys/kernel/sched_rt_runtime_us").strip() == "0"
    if ability in ("x86_64", "aarch64"):
        return platform.machine() != ability
    return False


# ------------------------------------------------------------------------------------------- probes


def _root() -> str | None:
    return None if os.geteuid() == 0 else f"runs as user {os.geteuid()}"


def _isolation() -> str | None:
    return _root() or (
        None if inside() else "not in the isolation (python tests/isolation -- pytest)"
    )


def _in_child(flags: int, attempt: Callable[[], None] | None = None) -> str | None:
    """Unshare `flags` in a child and try something there; the error's text or None."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.unshare(flags)
            if flags & kernel.CLONE_NEWNS:
                kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
            if attempt is not None:
                attempt()
        except BaseException as error:
            os.write(writer, str(error).encode()[:500] or b"failed")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text or None


CLONE_NEWUSER = 0x10000000
CLONE_NEWTIME = 0x00000080


def _userns() -> str | None:
    def attempt() -> None:
        with open("/proc/self/uid_map", "w", encoding="ascii") as file:
            file.write(f"0 {uid} 1")

    uid = os.geteuid()
    return _in_child(CLONE_NEWUSER, attempt)


def _namespace(flag: int) -> Probe:
    return lambda: _root() or _in_child(flag)


def _overlay() -> str | None:
    def attempt() -> None:
        top = "/mnt"
        kernel.mount("tmpfs", top, "tmpfs")
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{top}/{name}")
        data = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
        kernel.mount("overlay", f"{top}/merged", "overlay", 0, data)

    return _root() or _in_child(kernel.CLONE_NEWNS, attempt)


def _filesystem(name: str) -> Probe:
    def probe() -> str | None:
        if os.geteuid() == 0 and shutil.which("modprobe"):
            subprocess.run(["modprobe", "-q", name], check=False, capture_output=True)
        known = [line.split()[-1] for line in _read("/proc/filesystems").splitlines()]
        return None if name in known else f"the kernel does not know the file system {name}"

    return probe


def _link(kind: str) -> Probe:
    def attempt() -> None:
        extra = {
            "vlan": ["id", "7", "link", "lo"], "macvlan": ["link", "v0"], "ipvlan": ["link", "v0"],
            "veth": ["peer", "name", "tp0"],
        }.get(kind, [])  # fmt: skip
        if "v0" in extra:
            _ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        link = extra[-2:] if "link" in extra else []
        rest = extra[:-2] if link else extra
        _ip("link", "add", *link, "name", "t0", "type", kind, *rest)

    return lambda: _root() or _in_child(kernel.CLONE_NEWNET, attempt)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _program(name: str) -> Probe:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return lambda: None if shutil.which(name, path=path) else f"no program {name}"


def _file(path: str) -> Probe:
    return lambda: None if os.path.exists(path) else f"no {path}"


def _layout(wanted: str) -> Probe:
    def probe() -> str | None:
        present = cgroups.hierarchies()
        v1 = any(not h.unified for h in present)
        v2 = any(h.unified for h in present)
        able = {"cgroup-v1": v1, "cgroup-v2": v2, "hybrid": v1 and v2}[wanted]
        return None if able else f"/sys/fs/cgroup is v1: {v1}, v2: {v2}"

    return probe


def _controller(name: str) -> Probe:
    def probe() -> str | None:
        for h in cgroups.hierarchies():
            if not h.unified and name in h.options.split(","):
                return None
            if h.unified and name in _read(f"{h.mount}/cgroup.controllers").split():
                return None
        return f"no hierarchy here has the controller {name}"

    return probe


def _capability(name: str) -> Probe:
    def probe() -> str | None:
        able = _capabilities("CapEff") >> CAPABILITIES[name] & 1
        return None if able else f"CAP_{name.upper().replace('-', '_')} is not effective"

    return probe


def _capabilities(which: str) -> int:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith(which):
            return int(line.split()[1], 16)
    return 0


def _subordinate_ids() -> str | None:
    missing = _program("newuidmap")()
    if missing:
        return missing
    user = "root" if os.geteuid() == 0 else os.environ.get("USER", str(os.geteuid()))
    for path in ("/etc/subuid", "/etc/subgid"):
        if not any(line.startswith(f"{user}:") for line in _read(path).splitlines()):
            return f"no line for {user} in {path}"
    return None


def _loop() -> str | None:
    if not os.path.exists("/dev/loop-control"):
        return "no /dev/loop-control"
    with contextlib.suppress(OSError), open("/dev/loop-control", "rb"):
        return None
    return "/dev/loop-control cannot be opened"


def _lsm(name: str) -> Probe:
    def probe() -> str | None:
        active = _read("/sys/kernel/security/lsm").strip().split(",")
        return None if name in active else f"the kernel's active security modules are {active}"

    return probe


def _realtime() -> str | None:
    def attempt() -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    return _root() or _in_child(0, attempt)


def _seccomp() -> str | None:
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii"):
            pass
    except OSError:
        return "the kernel has no seccomp filters"
    for directory in ("/lib", "/usr/lib", "/usr/lib64", f"/usr/lib/{platform.machine()}-linux-gnu"):
        if os.path.exists(f"{directory}/libseccomp.so.2"):
            return None
    return "no libseccomp.so.2"


def _ipv6() -> str | None:
    if _read("/proc/sys/net/ipv6/conf/lo/disable_ipv6").strip() == "1":
        return "IPv6 is disabled on lo"
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        return f"IPv6: {error.strerror}"
    return None


def _tmpdir_xattr() -> str | None:
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.setxattr(file.name, "user.atoll", b"1")
        except OSError as error:
            return f"{tempfile.gettempdir()}: {error.strerror}"
    return None


# Program -> (probe, Debian package that tools/setup dev installs, or None when it does not).
PROGRAMS: dict[str, tuple[Probe, str | None]] = {
    "lxc": (_program("lxc-start"), "lxc"),
    "python3-lxc": (_file("/usr/lib/python3/dist-packages/lxc"), "python3-lxc"),
    "newuidmap": (_program("newuidmap"), "uidmap"),
    "strace": (_program("strace"), "strace"),
    "busybox": (_file("/bin/busybox"), "busybox-static"),
    "iproute2": (_program("ip"), "iproute2"),
    "runc": (_program("runc"), "runc"),
    "bwrap": (_program("bwrap"), "bubblewrap"),
    "setfacl": (_program("setfacl"), "acl"),
    "dnsmasq": (_program("dnsmasq"), "dnsmasq-base"),
    "tmux": (_program("tmux"), "tmux"),
    "nft": (_program("nft"), None),
    "criu": (_program("criu"), None),
    "skopeo": (_program("skopeo"), None),
    "mkfs.btrfs": (_program("mkfs.btrfs"), None),
}
LINKS = ("bridge", "veth", "macvlan", "ipvlan", "vlan", "dummy")
FILESYSTEMS = ("btrfs", "zfs", "ext4", "xfs", "fuse", "squashfs")
ABILITIES: dict[str, Probe] = {
    "root": _root,
    "isolation": _isolation,
    "userns": _userns,
    "mountns": _namespace(kernel.CLONE_NEWNS),
    "netns": _namespace(kernel.CLONE_NEWNET),
    "pidns": _namespace(kernel.CLONE_NEWPID),
    "cgroupns": _namespace(kernel.CLONE_NEWCGROUP),
    "timens": _namespace(CLONE_NEWTIME),
    "overlay": _overlay,
    "loop": lambda: _root() or _loop(),
    "xattr": _tmpdir_xattr,
    "cgroup-v1": _layout("cgroup-v1"),
    "cgroup-v2": _layout("cgroup-v2"),
    "hybrid": _layout("hybrid"),
    "subids": _subordinate_ids,
    "seccomp": _seccomp,
    "rt": _realtime,
    "ipv6": _ipv6,
    "apparmor": _lsm("apparmor"),
    "selinux": _lsm("selinux"),
    "landlock": _lsm("landlock"),
    "guest": lambda: None if os.environ.get("ATOLL_GUEST") else "not in the prepared guest",
    "systemd": lambda: (
        None if _read("/proc/1/comm").strip() == "systemd" else "process 1 is not systemd"
    ),
    "x86_64": lambda: None if platform.machine() == "x86_64" else f"this is {platform.machine()}",
    "aarch64": lambda: None if platform.machine() == "aarch64" else f"this is {platform.machine()}",
    **{name: _link(name) for name in LINKS},
    **{name: _filesystem(name) for name in FILESYSTEMS},
    **{name: _capability(name) for name in CAPABILITIES},
    **{name: probe for name, (probe, _package) in PROGRAMS.items()},
}
NEED_ROOT = {
    "root", "isolation", "mountns", "netns", "pidns", "cgroupns", "timens", "overlay", "loop", "rt",
    "subids", *LINKS, *CAPABILITIES,
}  # fmt: skip


def _find(ability: str) -> Probe:
    if ability.startswith("controller:"):
        return _controller(ability.partition(":")[2])
    if ability not in ABILITIES:
        raise ValueError(f"unknown ability {ability!r}; there are {sorted(ABILITIES)}")
    return ABILITIES[ability]


# ------------------------------------------------------------------------------------ other looks


def _setup_can_install() -> bool:
    """tools/setup had what it needs to install a Debian package."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


@functools.cache
def _kernel_config() -> dict[str, str]:
    import gzip

    text = ""
    with contextlib.suppress(OSError), gzip.open("/proc/config.gz", "rt") as file:
        text = file.read()
    text = text or _read(f"/boot/config-{platform.release()}")
    return dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_"))


OPTIONS = {
    "vlan": "CONFIG_VLAN_8021Q", "ext4": "CONFIG_EXT4_FS", "btrfs": "CONFIG_BTRFS_FS",
    "xfs": "CONFIG_XFS_FS", "fuse": "CONFIG_FUSE_FS",
}  # fmt: skip


def _kernel_has(name: str) -> bool:
    """By the kernel's own configuration, or by a module file; without either, believe the probe."""
    config = _kernel_config()
    option = OPTIONS.get(name, f"CONFIG_{name.upper()}")
    if config:
        built = config.get(option)
        if built == "m":
            return os.path.isdir(f"/lib/modules/{platform.release()}")
        return built == "y"
    return os.path.isdir(f"/sys/module/{name}")


def _machine_has_cgroup(ability: str) -> bool:
    """By /proc/cgroups and the machine's file systems, unless another layout was chosen on purpose."""
    marker = inside()
    chosen = marker.layout if marker else "host"
    if ability == "cgroup-v2":
        return "\tcgroup2" in _read("/proc/filesystems") and chosen not in ("v1", "host")
    if ability in ("cgroup-v1", "hybrid"):
        used = [line.split() for line in _read("/proc/cgroups").splitlines()[1:]]
        bound = any(fields[1] != "0" for fields in used)  # bound to some v1 hierarchy
        return bound and chosen in (("hybrid",) if ability == "hybrid" else ("hybrid", "v1"))
    controller = ability.partition(":")[2]
    enabled = [line.split() for line in _read("/proc/cgroups").splitlines()[1:]]
    found = [fields for fields in enabled if fields[0] == controller and fields[3] == "1"]
    if not found or chosen == "v2":  # a v1 hierarchy holds it, or no parent hands it down
        return False
    return found[0][1] != "0"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
