"""What is wrong with a configuration as a whole, found before anything is done: by planning its start, over and over.

Plans are pure functions of a configuration and a Host, so a start can be planned for a machine that can do everything (what is
refused then is wrong everywhere), and for this one. Each line that is refused is left out of the next attempt, until a plan
stands: these are the checks of a start itself, all at once. What only looks odd is in lifecycle/advice.py, what a plan does
not look at on this machine in lifecycle/abilities.py. Nothing here changes anything.
"""

from __future__ import annotations

from atoll import host as host_module
from atoll.config import owners
from atoll.config.keys import Many
from atoll.errors import AtollError, ConfigError
from atoll.lifecycle import sequence
from atoll.linux.process import CAPABILITIES
from atoll.plan import Plan
from atoll.records import Record
from atoll.resources import mounts, namespaces, storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host

ATTEMPTS = 200
"""Problems that are looked for; there are as many plans made."""
INIT = "/sbin/init"
CONTROLLERS = (
    "cpu", "cpuset", "devices", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma",
)  # fmt: skip


class Finding(Record):
    """Something about a key, or about the whole configuration: `severity` is error, warning or note.

    `origin` is the line, `token` the part of it that is meant, `fix` what to do.
    """

    severity: str
    message: str
    key: str | None = None
    origin: Origin | None = None
    fix: str | None = None
    token: str | None = None


def refusals(
    config: Config, host: Host, *, name: str = "checked", lxcpath: str | None = None
) -> tuple[tuple[AtollError, ...], Config]:
    """The errors that a start on `host` would have before its first step, each once; and what is left without their lines.

    Without a line to blame the first of them is the last.
    """
    told: dict[tuple[str | None, str], AtollError] = {}
    for _attempt in range(ATTEMPTS):
        result = plan(config, host, name=name, lxcpath=lxcpath or host.lxcpath)
        if isinstance(result, Plan):
            break
        told.setdefault((getattr(result, "key", None), result.message), result)
        smaller = config.omit(_blamed(config, result))
        if len(smaller.assignments) == len(config.assignments):
            break
        config = smaller
    return tuple(told.values()), config


def plan(config: Config, host: Host, *, name: str, lxcpath: str) -> Plan | AtollError:
    """The plan of a start, of /sbin/init where the configuration has no root file system; or why there is none."""
    rootless = not config.get("lxc.rootfs.path") and not config.get("lxc.init.cmd")
    wish = sequence.Wish(
        name=name,
        lxcpath=lxcpath,
        argv=(INIT,) if rootless else (),
        start_id="0" * 8,
        daemon=True,
    )
    try:
        facts = sequence.Facts(fstab=_fstab(config), root_on_device=_on_device(config))
        start = sequence.decide(config, host, wish, facts)
        return sequence.start(config, host, start, facts, wish)
    except AtollError as error:
        return error


def able(host: Host) -> Host:
    """`host` as it would be if nothing were missing: root, every namespace, cgroup2 with all controllers, subordinate ids."""
    hierarchy = host_module.Hierarchy(
        version=2, mount="/sys/fs/cgroup", controllers=CONTROLLERS, base="", own="", writable=True
    )
    many = (host_module.SubIds(first=0, count=0xFFFFFFFF),)
    return host.replace(
        uid=0,
        gid=0,
        user="root",
        capabilities=(1 << len(CAPABILITIES)) - 1,
        last_capability=len(CAPABILITIES) - 1,
        namespaces=frozenset(namespaces.NAMES),
        in_user_namespace=False,
        hierarchies=(hierarchy,),
        newuidmap="/usr/bin/newuidmap",
        newgidmap="/usr/bin/newgidmap",
        subuids=many,
        subgids=many,
        proc_masked=False,
        sys_masked=False,
        seccomp=True,
    )


def without_limits(config: Config) -> Config:
    """Without cgroup limits, of which each generation of cgroups has others: whether they can be set depends on the host."""
    return config.omit({*config.origins("lxc.cgroup.*"), *config.origins("lxc.cgroup2.*")})


# ---------------------------------------------------------------------------------------- private
def _fstab(config: Config) -> str | None:
    """The text of lxc.mount.fstab where it can be read; that it cannot is told by abilities.py."""
    try:
        return mounts.load_fstab(config)
    except ConfigError:
        return None


def _on_device(config: Config) -> bool:
    try:
        return storage.on_device(config)
    except ConfigError:  # the plan says it as well
        return False


def _blamed(config: Config, error: AtollError) -> set[Origin]:
    """The lines to leave out, so that what else is wrong can be seen.

    That of the error; all lines of its key where the error is not about one of a list's items; and with a network's type all
    lines of that network, which mean nothing without it.
    """
    origin: Origin | None = getattr(error, "origin", None)
    key: str | None = getattr(error, "key", None)
    lines = {origin} if origin is not None else set()
    target = owners.find(key) if key else None
    if target is not None and target.key is not None and isinstance(target.key.kind, Many):
        value = origin.text.partition("=")[2].strip() if origin is not None else ""
        if not value or value not in error.message:
            lines.update(config.origins(str(key)))
    elif origin is None and key:
        lines.update(config.origins(key))
    if key and key.endswith(".type"):
        lines.update(config.origins(key.removesuffix(".type")))
    return lines
