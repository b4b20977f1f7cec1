"""lxc.conf: settings of the whole system, which are not those of a container. Never written.

Source: lxc.system.conf(5); reference of LXC, section 2.3. Root reads /etc/lxc, others ~/.config/lxc.
"""

from __future__ import annotations

from atoll.config.keys import WHITE
from atoll.config.text import load
from atoll.errors import ConfigError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from atoll.host import Host

KEYS = (
    "lxc.default_config",
    "lxc.lxcpath",
    "lxc.bdev.lvm.vg",
    "lxc.bdev.lvm.thin_pool",
    "lxc.bdev.zfs.root",
    "lxc.bdev.rbd.rbdpool",
    "lxc.cgroup.use",
    "lxc.cgroup.pattern",
)


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
