"""Old configurations in present words: what lxc-update-config does to a file's text.

The reader (text.py) understands the old names as they are; this rewrites them, in settings and in those that are commented
out. All else stays, byte for byte. Source: reference of LXC, section 2.4; where LXC's result could not be read, ours can
(docs/differences.md, "Configuration").
"""

from __future__ import annotations

from atoll.config import owners
from atoll.config.keys import WHITE
from atoll.records import Record

BACKENDS = (
    "aufs", "best", "btrfs", "dir", "loop", "lvm", "nbd", "overlay", "overlayfs", "rbd", "zfs",
)  # fmt: skip
GONE = "lxc.kmsg", "lxc.pivotdir", "lxc.rootfs.backend"
SEQUENTIAL = "lxc.network."


class Setting(Record):
    """A line `key = value`, or such a line behind a comment sign: `before` + key + `sign` + value + `after` is the line."""

    before: str
    key: str
    sign: str
    value: str
    after: str

    @property
    def live(self) -> bool:
        """Not commented out."""
        return "#" not in self.before


def modernise(text: str) -> tuple[str, tuple[tuple[int, str], ...]]:
    """The text with present names; and (line number, reason) of each old setting that was left as it is."""
    lines = text.split("\n")
    settings = [_setting(line) for line in lines]
    updater = _Updater(settings)
    kept: list[str] = []
    for number, (line, setting) in enumerate(zip(lines, settings, strict=True), 1):
        new = line if setting is None else updater.updated(number, line, setting)
        if new is not None:
            kept.append(new)
    return "\n".join(kept), tuple(updater.problems)


class _Updater:
    """What earlier lines mean for later ones: the type of the root file system, the number of the network."""

    def __init__(self, settings: list[Setting | None]) -> None:
        types = [s.value for s in settings if s and s.live and s.key == "lxc.rootfs.backend"]
        self.backend = types[-1] if types else ""
        self.types = -1  # lxc.network.type lines so far, commented out or not, as LXC counts them
        self.network = {True: -1, False: -1}  # by "live": the number that a sub-key belongs to
        self.problems: list[tuple[int, str]] = []

    def updated(self, number: int, line: str, setting: Setting) -> str | None:
        """The line in present words; None when it goes."""
        if setting.key in GONE:
            return None
        if setting.key.startswith(SEQUENTIAL):
            key = self._network(setting)
        elif setting.key.startswith("lxc.limit."):
            key = f"lxc.prlimit.{setting.key.removeprefix('lxc.limit.')}"
        else:
            key = owners.LEGACY.get(setting.key) or ""
        if not key:
            if setting.key.startswith(SEQUENTIAL) and setting.live:
                self.problems.append(
                    (number, f"{setting.key}: no lxc.network.type comes before it")
                )
            return line
        value = self._typed(setting.value) if setting.key == "lxc.rootfs" else setting.value
        return f"{setting.before}{key}{setting.sign}{value}{setting.after}"

    def _network(self, setting: Setting) -> str:
        """lxc.net.N.x; "" before the first type."""
        rest = setting.key.removeprefix(SEQUENTIAL)
        number, _dot, sub = rest.partition(".")
        if number.isascii() and number.isdigit():
            return f"lxc.net.{number}.{owners.LEGACY_NETWORK.get(sub, sub)}".rstrip(".")
        if rest == "type":
            self.types += 1
            # What is commented out below belongs to this one either way, what is live to a live one only.
            self.network = {
                False: self.types,
                True: self.types if setting.live else self.network[True],
            }
        index = self.network[setting.live]
        return f"lxc.net.{index}.{owners.LEGACY_NETWORK.get(rest, rest)}" if index >= 0 else ""

    def _typed(self, value: str) -> str:
        """The value of lxc.rootfs.path: TYPE:PATH."""
        quote = value[0] if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0] else ""
        path = value.strip(quote) if quote else value
        if not path or path.partition(":")[0] in BACKENDS:
            return value
        backend = self.backend
        if not backend and path.startswith("/dev/"):
            return value  # a block device: what is on it is found out
        return f"{quote}{backend or 'dir'}:{path}{quote}"


def _setting(line: str) -> Setting | None:
    """The parts of a setting, commented out or not; None for any other line."""
    name = line.lstrip(f"{WHITE}#")
    before = line[: len(line) - len(name)]
    left, equals, right = name.partition("=")
    key = left.rstrip(WHITE)
    if not equals or not key.startswith("lxc.") or " " in key or "\t" in key:
        return None
    value = right.strip(WHITE)
    start = right.find(value) if value else len(right.rstrip("\r"))
    return Setting(
        before=before,
        key=key,
        sign=f"{left[len(key) :]}={right[:start]}",
        value=value,
        after=right[start + len(value) :],
    )


def difference(path: str, old: str, new: str) -> str:
    """What a change of a file's text changes, as diff -u shows it."""
    from difflib import unified_diff

    found = unified_diff(_pieces(old), _pieces(new), path, path)
    end = "\n\\ No newline at end of file\n"
    return "".join([line if line.endswith("\n") else f"{line}{end}" for line in found])


def _pieces(text: str) -> list[str]:
    """The lines with their ends; unlike splitlines, at line feeds only."""
    pieces = [f"{line}\n" for line in text.split("\n")]
    pieces[-1] = pieces[-1].removesuffix("\n")
    return pieces if pieces[-1] else pieces[:-1]
