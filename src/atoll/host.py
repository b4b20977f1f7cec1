"""Host: one frozen record of facts about this machine and this user; probing, and JSON for tests and bug reports.

Facts are about the machine, never about a container's file system. A plan is a pure function of configuration, Host and
Start, so a Host written to a file (tests/hosts/*.json) replays another machine's plan here.
Sources: proc(5), cgroups(7), user_namespaces(7), subuid(5).
"""

from __future__ import annotations

import os
import stat

from atoll.linux import files, proc, process
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Places = tuple[tuple[str, str, str], ...]  # of proc.parse_places

SYSTEM_LXCPATH = "/var/lib/lxc"
BUILD_ROOTFS_MOUNT = "/usr/lib/{triplet}/lxc/rootfs"
TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


class Hierarchy(Record):
    """One mounted cgroup hierarchy.

    `mount` is its directory, `controllers` its v1 controllers ("cpu", "cpuacct", "name=systemd") or v2's cgroup.controllers,
    `base` the cgroup below which containers are made: init's for root, the caller's otherwise, without a trailing slash
    ("" is the root cgroup). `own` is the caller's present cgroup. `writable`: we may make cgroups in base.
    """

    version: int
    mount: str
    controllers: tuple[str, ...]
    base: str
    own: str
    writable: bool


class SubIds(Record):
    """A range of subordinate ids from /etc/subuid or /etc/subgid."""

    first: int
    count: int


class Host(Record):
    """Facts. Masks are capability bits; paths are absolute; None means that it is not there."""

    machine: str
    release: str
    uid: int
    gid: int
    user: str
    home: str
    capabilities: int
    """Effective capabilities of this process."""
    last_capability: int
    namespaces: frozenset[str]
    """Names below /proc/self/ns that can be made: cgroup ipc mnt net pid time user uts."""
    in_user_namespace: bool
    """The id map of this process is not the identity over all ids: we are in somebody's user namespace."""
    hierarchies: tuple[Hierarchy, ...]
    newuidmap: str | None
    newgidmap: str | None
    subuids: tuple[SubIds, ...]
    subgids: tuple[SubIds, ...]
    proc_masked: bool
    """Something is mounted over parts of /proc, so the kernel refuses a new proc mount in a user namespace."""
    sys_masked: bool
    lsm: str
    """apparmor, selinux or none."""
    seccomp: bool
    run_directory: str
    """Where journals and the default mount point of root file systems are kept."""
    lxcpath: str
    rootfs_mount: str
    """Default of lxc.rootfs.mount: the distribution's when it exists, else below run_directory."""
    root_on_ramfs: bool
    top_mounts: tuple[str, ...] = ()
    """Directories in / that are mounts of their own ("home"): an overlay of / does not show what is in them."""
    setgroups_denied: bool = False
    """We are in a user namespace whose gid map an ordinary user wrote: nobody in it may call setgroups(2)."""

    @property
    def layout(self) -> str:
        """cgroup layout: "legacy", "hybrid", "unified" or "none" (no hierarchy at all)."""
        versions = {hierarchy.version for hierarchy in self.hierarchies}
        return {
            frozenset({1}): "legacy",
            frozenset({1, 2}): "hybrid",
            frozenset({2}): "unified",
        }.get(frozenset(versions), "none")

    def can(self, capability: str) -> bool:
        """The capability ("sys_admin") is effective here."""
        return bool(self.capabilities & (1 << process.CAPABILITIES.index(capability)))

    @property
    def privileged(self) -> bool:
        """Root with CAP_SYS_ADMIN: namespaces can be made without a user namespace."""
        return self.uid == 0 and self.can("sys_admin")

    def to_json(self) -> str:
        """The facts as JSON, for a bug report or tests/hosts."""
        from json import dumps

        return dumps(_plain(self.as_dict()), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Host:
        """The Host that to_json wrote. Raises ValueError or TypeError for anything else."""
        from json import loads

        data = loads(text)
        data["hierarchies"] = tuple(
            Hierarchy(**{**entry, "controllers": tuple(entry["controllers"])})
            for entry in data["hierarchies"]
        )
        for field in ("subuids", "subgids"):
            data[field] = tuple(SubIds(**entry) for entry in data[field])
        data["namespaces"] = frozenset(data["namespaces"])
        data["top_mounts"] = tuple(data.get("top_mounts", ()))
        return cls(**data)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return _plain(value.as_dict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def probe() -> Host:
    """Look at this machine. Reads some twelve small files (about 0.4 ms); changes nothing."""
    uid = os.geteuid()
    gid = os.getegid()
    uname = os.uname()
    mounts = proc.parse_places(files.read_text("/proc/self/mountinfo"))
    boot = _boot_facts()
    capabilities = process.capabilities().effective
    user, home = _user(uid)
    run_directory = _run_directory(uid, home)
    root = next((fstype for target, fstype, _options in mounts if target == "/"), None)
    return Host(
        machine=uname.machine,
        release=uname.release,
        uid=uid,
        gid=gid,
        user=user,
        home=home,
        capabilities=capabilities,
        last_capability=boot.last_capability,
        namespaces=boot.namespaces,
        in_user_namespace=_in_user_namespace(),
        hierarchies=_hierarchies(mounts, escape=uid == 0),
        newuidmap=_setuid_program("newuidmap"),
        newgidmap=_setuid_program("newgidmap"),
        subuids=_subids("/etc/subuid", user, uid),
        subgids=_subids("/etc/subgid", user, uid),
        proc_masked=any(
            target.startswith("/proc/") and fstype not in ("binfmt_misc", "autofs")
            for target, fstype, _options in mounts
        ),
        sys_masked=False,
        lsm=boot.lsm,
        seccomp=boot.seccomp,
        run_directory=run_directory,
        lxcpath=SYSTEM_LXCPATH if uid == 0 else f"{home.rstrip('/')}/.local/share/lxc",
        rootfs_mount=_rootfs_mount(uname.machine, run_directory),
        root_on_ramfs=root in ("rootfs", "ramfs"),
        top_mounts=_top_mounts(mounts),
        setgroups_denied=_text_or_empty("/proc/self/setgroups").startswith("deny"),
    )


class _Boot(Record):
    """What holds until the next boot."""

    last_capability: int
    namespaces: frozenset[str]
    lsm: str
    seccomp: bool


def _boot_facts() -> _Boot:
    if not _boot:
        names = os.listdir("/proc/self/ns")
        facts = _Boot(
            last_capability=int(files.read_text("/proc/sys/kernel/cap_last_cap")),
            namespaces=frozenset(name for name in names if not name.endswith("children")),
            lsm=_lsm(),
            seccomp=os.path.exists("/proc/sys/kernel/seccomp"),
        )
        _boot.append(facts)
    return _boot[0]


_boot: list[_Boot] = []  # looked at once a process


def _top_mounts(mounts: Places) -> tuple[str, ...]:
    names = {target[1:] for target, _fstype, _options in mounts if target.count("/") == 1}
    return tuple(sorted(names - {""}))


def _user(uid: int) -> tuple[str, str]:
    """Login name and home directory; the environment's HOME wins, as in LXC."""
    home = os.environ.get("HOME")
    user = str(uid)
    lines = _text_or_empty("/etc/passwd").split("\n")
    possible = "\n".join([line for line in lines if f":{uid}:" in line])
    for entry in proc.parse_passwd(possible):
        if entry.uid == uid:
            user = entry.name
            home = home or entry.home
            break
    return user, home or "/"


def _run_directory(uid: int, home: str) -> str:
    if uid == 0:
        return "/run/atoll"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return f"{runtime}/atoll"
    if os.access(f"/run/user/{uid}", os.W_OK):
        return f"/run/user/{uid}/atoll"
    if home != "/" and os.access(home, os.W_OK):
        return f"{home}/.cache/atoll/run"
    return f"/tmp/atoll-{uid}"


def _rootfs_mount(machine: str, run_directory: str) -> str:
    build = BUILD_ROOTFS_MOUNT.format(triplet=TRIPLETS.get(machine, machine))
    return build if os.path.isdir(build) else f"{run_directory}/rootfs"


def _in_user_namespace() -> bool:
    try:
        entries = proc.parse_id_map(files.read_text("/proc/self/uid_map"))
    except FileNotFoundError:
        return False
    return not any(e.inside == 0 and e.outside == 0 and e.count == 0xFFFFFFFF for e in entries)


def _hierarchies(mounts: Places, *, escape: bool) -> tuple[Hierarchy, ...]:
    """Every mounted hierarchy, v1 in the order of /proc/self/cgroup, v2 last, as liblxc lists them."""
    own = _cgroup_paths("/proc/self/cgroup")
    base = (_cgroup_paths("/proc/1/cgroup") if escape else {}) or own
    by_controller, v2 = _cgroup_mounts(mounts)
    found: list[Hierarchy] = []
    for controllers, path in own.items():
        mount = by_controller.get(controllers[0]) if controllers else v2
        if mount is None:
            continue
        start = base.get(controllers, path).rstrip("/").removesuffix("/init.scope")
        directory = mount + start
        available = controllers
        if not controllers:
            available = tuple(_text_or_empty(f"{directory}/cgroup.controllers").split())
        found.append(
            Hierarchy(
                version=1 if controllers else 2,
                mount=mount,
                controllers=available,
                base=start,
                own=path.rstrip("/"),
                writable=os.access(directory, os.W_OK)
                and os.access(f"{directory}/cgroup.procs", os.W_OK),
            )
        )
    return tuple(sorted(found, key=lambda hierarchy: hierarchy.version))


def _cgroup_paths(file: str) -> dict[tuple[str, ...], str]:
    return proc.parse_cgroup_paths(_text_or_empty(file))


def _cgroup_mounts(mounts: Places) -> tuple[dict[str, str], str | None]:
    """Where each v1 controller ("cpu", "name=systemd") is mounted, and where cgroup2 is; the first mount of each counts."""
    by_controller: dict[str, str] = {}
    v2: str | None = None
    for target, fstype, options in mounts:
        if not target.startswith("/sys/fs/cgroup"):
            continue
        if fstype == "cgroup2":
            v2 = v2 or target
        elif fstype == "cgroup":
            for option in options.split(","):
                by_controller.setdefault(option, target)
    return by_controller, v2


def _setuid_program(name: str) -> str | None:
    for directory in os.environ.get("PATH", "/usr/bin:/bin").split(":"):
        path = f"{directory}/{name}"
        try:
            status = os.stat(path)
        except OSError:
            continue
        if status.st_mode & stat.S_ISUID or _has_file_capability(path):
            return path
    return None


def _has_file_capability(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _subids(path: str, user: str, uid: int) -> tuple[SubIds, ...]:
    entries = proc.parse_subids(_text_or_empty(path), (user, str(uid)))
    return tuple(SubIds(first=first, count=count) for first, count in entries)


def _lsm() -> str:
    if _text_or_empty("/sys/module/apparmor/parameters/enabled").startswith("Y"):
        return "apparmor"
    if os.path.exists("/sys/fs/selinux/enforce"):
        return "selinux"
    return "none"


def _text_or_empty(path: str) -> str:
    try:
        return files.read_text(path)
    except OSError:
        return ""
