"""What a configuration sets, as rows of key, value and place: its own lines, or all that holds.

Not LXC's getters (Config.get), which answer about one key and in their own form: a row's value can be written in a file again.
"""

from __future__ import annotations

from atoll.config import owners
from atoll.config.keys import WHITE
from atoll.config.text import unquoted
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.config.keys import Section
    from atoll.config.owners import Target
    from atoll.config.text import Config


class Row(Record):
    """One setting. `line` is 0 and `file` "" where it is a default."""

    key: str
    value: str
    file: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """FILE:LINE, or where else the value comes from."""
        return f"{self.file}:{self.line}" if self.line else self.file or "default"

    @property
    def text(self) -> str:
        """The line that sets it; in quotes where the reader would take blanks or quotes away."""
        value = self.value
        if value != value.strip(WHITE) or unquoted(value) != value:
            value = f'"{value}"'
        return f"{self.key} = {value}".rstrip(WHITE)


def own(config: Config) -> tuple[Row, ...]:
    """The settings of the file itself, in its order, under their present names; include lines are settings."""
    return tuple(
        [
            Row(
                key=key,
                value=unquoted(line.partition("=")[2].strip(WHITE)),
                file=config.file or "",
                line=number,
            )
            for number, (line, key) in enumerate(config.lines, 1)
            if key is not None
        ]
    )


def effective(config: Config, *, defaults: bool = True) -> tuple[Row, ...]:
    """What holds: the lines that count, of included files too, in the order in which they were read; then defaults.

    As lines of a file, without includes, they are a configuration that means the same.
    """
    names = dict.fromkeys(assignment.key for assignment in config.assignments)
    counting = {id(origin) for name in names for origin in config.origins(name)}
    rows = [
        Row(key=a.key, value=a.value, file=a.origin.file, line=a.origin.line)
        for a in config.assignments
        if id(a.origin) in counting
    ]
    if defaults:
        rows += _defaults(config, {_plain(row.key) for row in rows})
    return tuple(rows)


def _defaults(config: Config, known: set[str]) -> Iterator[Row]:
    """The defaults of keys that no line sets."""
    for name in owners.names():
        for full in _names(config, name):
            target = owners.find(full)
            if full not in known and target is not None and (value := _default(config, target)):
                siblings = f"{full.rpartition('.')[0]}."
                wipes = target.key is not None and target.key.resets
                if not (wipes and any(one.startswith(siblings) for one in known)):
                    yield Row(key=full, value=value)


def _names(config: Config, name: str) -> list[str]:
    """A key's name, or with the number of each network that there is in place of its N."""
    if ".N." not in name:
        return [name]
    target = owners.find(name.replace(".N.", ".0."))
    if target is None or target.numbered is None:
        return []
    found = getattr(config[target.section], target.numbered.field)
    return [name.replace(".N.", f".{one.index}.") for one in found]


def _plain(name: str) -> str:
    """A key's name with its number written plainly: lxc.net.01.type is lxc.net.1.type."""
    target = owners.find(name)
    if target is None or target.key is None or target.index < 0:
        return name
    return target.key.name.replace(".N.", f".{target.index}.")


def _default(config: Config, target: Target) -> str:
    """A default as it would be written; "" for none, and for a key that means nothing (of another type of network)."""
    key = target.key
    if key is None or key.default is None or key.default == ():
        return ""
    if key.needs is not None:
        field, allowed = key.needs
        section: Section | None = config[target.section]
        if target.numbered is not None:
            numbered = getattr(section, target.numbered.field)
            section = next((one for one in numbered if one.index == target.index), None)
        if getattr(section, field, None) not in allowed:
            return ""
    shown = str(key.kind.show(key.default)).strip()
    for value in (shown, shown.replace(" ", "")):  # lxc shows `0 ns`, which its own reader refuses
        try:
            if key.kind.parse(value) == key.default:
                return value
        except ValueError:
            continue
    return ""  # no line can say it (lxc.console.size: 0 would be a page)
