"""lxc.conf: settings of the whole system, which are not those of a container. Never written.

Source: lxc.system.conf(5); reference of LXC, section 2.3. Root reads /etc/lxc, others ~/.config/lxc.
"""

from __future__ import annotations

from atoll.config.keys import WHITE
from atoll.config.text import load
from atoll.errors import ConfigError, reason
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from atoll.host import Host


class SystemKey(Record):
    """One setting of lxc.conf: what it means, an example, and the part of the project that will make it effective."""

    doc: str
    example: str
    default: str
    """As documentation shows it."""
    later: str | None = None


KEYS = {
    "lxc.default_config": SystemKey(
        doc="File with what lxc-create begins a configuration with.",
        example="/etc/lxc/small.conf",
        default="/etc/lxc/default.conf; for others than root ~/.config/lxc/default.conf",
    ),
    "lxc.lxcpath": SystemKey(
        doc="Directory of the containers.",
        example="/srv/lxc",
        default="/var/lib/lxc; for others than root ~/.local/share/lxc",
    ),
    "lxc.bdev.lvm.vg": SystemKey(
        doc="Volume group for root file systems made with lxc-create -B lvm.",
        example="vg0",
        default="lxc",
        later="storage",
    ),
    "lxc.bdev.lvm.thin_pool": SystemKey(
        doc="Thin pool in that volume group.", example="pool0", default="lxc", later="storage"
    ),
    "lxc.bdev.zfs.root": SystemKey(
        doc="Data set below which lxc-create -B zfs makes others.",
        example="tank/lxc",
        default="lxc",
        later="storage",
    ),
    "lxc.bdev.rbd.rbdpool": SystemKey(
        doc="Pool for lxc-create -B rbd.", example="containers", default="lxc", later="storage"
    ),
    "lxc.cgroup.use": SystemKey(
        doc="Controllers of cgroup v1 to use, with commas between; hierarchies with any other are left alone. A start fails"
        " where one of them is missing.",
        example="memory,cpu,devices",
        default="all",
    ),
    "lxc.cgroup.pattern": SystemKey(
        doc="Relative path in which the cgroups `payload` and `monitor` of a container are made; %n is its name.",
        example="lxc/%n",
        default="lxc.payload.%n and lxc.monitor.%n",
    ),
}


def system_file(host: Host, environment: Mapping[str, str] | None = None) -> str:
    """The path of lxc.conf for this user; LXC_GLOBAL_CONF in `environment`, the caller's, names another."""
    named = (environment or {}).get("LXC_GLOBAL_CONF")
    return named or f"{_directory(host)}/lxc.conf"


def system_value(host: Host, key: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The value of a system key, its default where lxc.conf does not set it, or None where it has none.

    `environment` is looked at for LXC_GLOBAL_CONF alone. ConfigError for an unknown key or a file that cannot be read.
    """
    if key not in KEYS:
        raise ConfigError(
            f"unknown system key {key}", key=key, fix=f"the keys are {', '.join(KEYS)}"
        )
    value = read_system(system_file(host, environment)).get(key) or _default(host, key)
    if key == "lxc.lxcpath" and value is not None:
        return value.rstrip("/") or "/"
    return value


def read_system(path: str) -> dict[str, str]:
    """The settings in an lxc.conf; the first line of a key wins. Empty without the file, or where it sets nothing."""
    try:
        data = load(path)[0]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the system configuration {path}: {why}") from error
    found: dict[str, str] = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        name, _equals, value = line.strip(WHITE).partition("=")
        name, value = name.rstrip(WHITE), value.lstrip(WHITE)
        if value and name in KEYS:
            found.setdefault(name, value)
    return found


def _directory(host: Host) -> str:
    return "/etc/lxc" if host.uid == 0 else f"{host.home.rstrip('/')}/.config/lxc"


def _default(host: Host, key: str) -> str | None:
    if key == "lxc.lxcpath":
        return host.lxcpath
    if key == "lxc.default_config":
        return f"{_directory(host)}/default.conf"
    return "lxc" if key.startswith("lxc.bdev.") else None
