"""What the configuration of a kernel promises: lxc-checkconfig of a kernel that does not run, CONFIG=FILE.

For the running kernel what was tried is truer (trials.py). Sources: reference of LXC, section 11.9; the kernel's Kconfig.
"""

from __future__ import annotations

from atoll.config.text import load
from atoll.errors import HostError, reason
from atoll.lifecycle.trials import ENABLED, MISSING, Trial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

REQUIRED: Final = "required"
GZIP: Final = b"\x1f\x8b"
LIMIT: Final = 16 << 20  # bytes, unpacked: a kernel's configuration has some 300,000

# Item and symbol; with a mark, nothing works without it.
SYMBOLS: Final = {
    "Namespaces": """
        Namespaces: NAMESPACES!
        Utsname namespace: UTS_NS
        Ipc namespace: IPC_NS!
        Pid namespace: PID_NS!
        User namespace: USER_NS
        Network namespace: NET_NS
        Time namespace: TIME_NS
    """,
    "Control groups": """
        Cgroups: CGROUPS
        Cgroup device: CGROUP_DEVICE
        Cgroup sched: CGROUP_SCHED
        Cgroup cpu account: CGROUP_CPUACCT
        Cgroup memory controller: MEMCG
        Cgroup cpuset: CPUSETS
        Cgroup freezer: CGROUP_FREEZER
        Cgroup pids: CGROUP_PIDS
        Cgroup io: BLK_CGROUP
        Cgroup hugetlb: CGROUP_HUGETLB
    """,
    "Misc": """
        Veth pair device: VETH
        Macvlan: MACVLAN
        Vlan: VLAN_8021Q
        Ipvlan: IPVLAN
        Bridges: BRIDGE
        Advanced netfilter: NETFILTER_ADVANCED
        CONFIG_IP_NF_TARGET_MASQUERADE: IP_NF_TARGET_MASQUERADE
        CONFIG_IP6_NF_TARGET_MASQUERADE: IP6_NF_TARGET_MASQUERADE
        CONFIG_NETFILTER_XT_TARGET_CHECKSUM: NETFILTER_XT_TARGET_CHECKSUM
        CONFIG_NETFILTER_XT_MATCH_COMMENT: NETFILTER_XT_MATCH_COMMENT
        FUSE (for use with lxcfs): FUSE_FS
    """,
    "Storage": "Overlay: OVERLAY_FS",
    "Kernel calls": "Seccomp filter: SECCOMP_FILTER",
    "Security": """
        AppArmor: SECURITY_APPARMOR
        SELinux: SECURITY_SELINUX
    """,
    "Checkpoint/Restore": """
        checkpoint restore: CHECKPOINT_RESTORE
        CONFIG_FHANDLE: FHANDLE
        CONFIG_EVENTFD: EVENTFD
        CONFIG_EPOLL: EPOLL
        CONFIG_UNIX_DIAG: UNIX_DIAG
        CONFIG_INET_DIAG: INET_DIAG
        CONFIG_PACKET_DIAG: PACKET_DIAG
        CONFIG_NETLINK_DIAG: NETLINK_DIAG
    """,
}


def promised(path: str) -> tuple[tuple[str, tuple[Trial, ...]], ...]:
    """(section, items) of the kernel whose configuration this file is, packed by gzip or not. Raises HostError."""
    values = _values(_read(path))
    return tuple(
        [
            (title, tuple([_item(line, values) for line in table.split("\n") if line.strip()]))
            for title, table in SYMBOLS.items()
        ]
    )


def _item(line: str, values: dict[str, str]) -> Trial:
    item, _colon, symbol = line.strip().rpartition(": ")
    value = values.get(f"CONFIG_{symbol.rstrip('!')}", "")
    if value in {"y", "m"}:
        return Trial(item=item, state=ENABLED, reason="module" if value == "m" else "built in")
    return Trial(item=item, state=REQUIRED if symbol.endswith("!") else MISSING)


def _values(text: str) -> dict[str, str]:
    pairs = [line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_")]
    found = {name: value.strip() for name, _equals, value in pairs}
    if not found:
        raise HostError("cannot use the kernel configuration: it has no line CONFIG_…=")
    return found


def _read(path: str) -> str:
    try:
        data = load(path)[0]
        if data.startswith(GZIP):
            from zlib import decompressobj, error

            try:
                data = decompressobj(31).decompress(data, LIMIT)
            except error as broken:
                raise ValueError("its compression is broken") from broken
    except (OSError, ValueError) as failure:
        why = reason(failure) if isinstance(failure, OSError) else str(failure)
        raise HostError(f"cannot read the kernel configuration {path}: {why}") from failure
    return data.decode("utf-8", "replace")
