"""Storage back ends of root file systems: the table, and how lxc.rootfs.path names one.

Not the pivot or the pin (rootfs.py). Each back end is a module with `mount(source, start, options) -> steps`.
Source: reference of LXC, section 13 (type resolution by the text before the first colon).
"""

from __future__ import annotations

from atoll.errors import ConfigError
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.errors import Origin

BACKENDS = {
    "dir": "atoll.resources.storage.dirs",
    "overlay": "atoll.resources.storage.dirs",
    "overlayfs": "atoll.resources.storage.dirs",
}
LATER = ("btrfs", "loop", "lvm", "nbd", "rbd", "zfs")


class Source(Record):
    """What lxc.rootfs.path says: the back end and its own text ("/path", "/lower:/upper")."""

    backend: str
    text: str


class Options(Record):
    """lxc.rootfs.options taken apart: mount flags to set, propagation flags, and data for the file system."""

    flags: int = 0
    propagation: int = 0
    data: str = ""


def parse_source(value: str, origin: Origin | None = None) -> Source:
    """Take `[TYPE:]TEXT` apart; without a known type the whole is a directory's path.

    Raises ConfigError for a back end that exists in LXC but belongs to a later part of this project.
    """
    kind, colon, rest = value.partition(":")
    if colon and kind in BACKENDS:
        return Source(backend="overlay" if kind == "overlayfs" else kind, text=rest)
    if colon and kind in LATER:
        raise ConfigError(
            f"the storage back end {kind} is not there yet: it belongs to the storage part of the project",
            key="lxc.rootfs.path",
            origin=origin,
            fix="use a directory or overlay:LOWER:UPPER",
        )
    return Source(backend="dir", text=value)
