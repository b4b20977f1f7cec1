"""The page of all keys, from their declarations: `python -m atoll.config.document > docs/keys.md` (`make keys`).

A test holds the page current. It imports every module that owns keys. Not the manual page of the language (docs/config.md).
"""

from __future__ import annotations

import sys

from atoll.config import owners
from atoll.config.keys import REFUSED, SIGRTMIN, Indexed, Key, Many, Pairs, signal
from atoll.config.system import KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from atoll.config.keys import Section

HEAD = """\
# Keys

Made by `make keys` from the declarations in `src/atoll`; do not edit.

A line is `KEY = VALUE`. A list gets an item, or several, with every line, and anything else the last value; an empty value
resets the key, where nothing else is said. N is the number of a network device.

Types: `size` is bytes, with KB, MB or GB (of 1024) after the number; `path` a path of the host, unless the meaning says of the
container; `signal` a number, SIGNAME, SIGRTMIN+N or SIGRTMAX-N; numbers may be written 0x… and, octal, 0….

Since: the oldest generation of LXC, of these four, that has the key by this name: 1.x (as of 2014), 2.x (2.1 renamed many),
5.0.2 and HEAD (of 2026).
"""
COLUMNS = ("key", "type", "default", "meaning", "example", "old names", "since")
LEGACY_HEAD = """\
## Old names

Accepted, with a warning that has the line and the present name. `lxc.network.type` begins the next device, from 0; the lines
below it are about that one. `lxc.network.N.…` names its number.
"""
SYSTEM_HEAD = """\
## System configuration

Settings of lxc.conf (/etc/lxc/lxc.conf; for others than root ~/.config/lxc/lxc.conf; LXC_GLOBAL_CONF names another). The first
line of a key counts.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in sections():
        title = (section.__doc__ or "").strip().partition("\n")[0]
        rows = [_row(key) for key in declared(section)]
        if section.section_group:
            rows.append(_group_row(section.section_group))
        parts.append(f"## {title}\n\n{table(COLUMNS, rows)}")
    old = [(name, *_successor(name)) for name in _old_names()]
    parts.append(f"{LEGACY_HEAD}\n{table(('old name', 'present name', ''), old)}")
    system = [
        (f"`{name}`", key.default, key.doc + _later(key.later), f"`{name} = {key.example}`")
        for name, key in KEYS.items()
    ]
    parts.append(f"{SYSTEM_HEAD}\n{table(('key', 'default', 'meaning', 'example'), system)}")
    return "\n".join(parts)


def sections() -> Iterator[type[Section]]:
    """Every section, in the order of its module in the table of owners and of declaration."""
    for module in dict.fromkeys(owners.OWNERS.values()):
        owners.declarations(module)
        for value in vars(sys.modules[module]).values():
            if isinstance(value, type) and f"{value.__module__}.".startswith(f"{module}."):
                fields = getattr(value, "section_fields", {})
                if fields:
                    yield value


def declared(section: type[Section]) -> tuple[Key | Indexed, ...]:
    """The keys of a section, and the bare name of a numbered one."""
    return tuple(section.section_fields.values())


def example_lines(key: Key) -> tuple[str, ...]:
    """Lines of a configuration that set the key to its example: those that it needs, then its own."""
    name = key.name.replace(".N.", ".0.")
    if isinstance(key.kind, Pairs):
        sub, _equals, value = key.example.partition("=")
        return (f"{name[:-1]}{sub.strip()} = {value.strip()}",)
    lines = [f"{name} = {key.example}"]
    if key.needs is not None:
        field, values = key.needs
        other = key.section.section_keys[field].name.replace(".N.", ".0.")
        lines.insert(0, f"{other} = {values[0]}")
    return tuple(lines)


def old_names(name: str) -> tuple[str, ...]:
    """The names that a key had before LXC 3."""
    found = [old for old, new in owners.LEGACY.items() if new == name]
    if name.startswith("lxc.net.N."):
        sub = name.removeprefix("lxc.net.N.")
        changed = {new: old for old, new in owners.LEGACY_NETWORK.items()}
        if sub in changed or _section_key(name).since == "2.x":
            found.append(f"lxc.network.{changed.get(sub, sub)}")
    if name == "lxc.prlimit.*":
        found.append("lxc.limit.*")
    return tuple(found)


def table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    names = tuple(columns)
    lines = [names, tuple("---" for _name in names), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


# ---------------------------------------------------------------------------------------- private
def _row(key: Key | Indexed) -> tuple[str, ...]:
    if isinstance(key, Indexed):
        old = ", ".join(f"`{name}`" for name in old_names(key.name))
        return (f"`{key.name}`", "no value", "", key.doc, f"`{key.name} =`", old, "2.x")
    old = ", ".join(f"`{name}`" for name in old_names(key.name))
    meaning = key.doc + _conditions(key)
    example = f"`{example_lines(key)[-1]}`"
    return (f"`{key.name}`", _type(key), _default(key), meaning, example, old, key.since)


def _group_row(name: str) -> tuple[str, ...]:
    meaning = f"Takes no value; empty, it resets all keys {name}.*."
    return (f"`{name}`", "no value", "", meaning, f"`{name} =`", "", "5.0.2")


def _type(key: Key) -> str:
    kind: Any = key.kind
    if isinstance(kind, Pairs):
        return f"for each NAME: {_type_name(kind.item)}"
    if isinstance(kind, Many):
        return f"list: {_type_name(kind.item)}"
    return _type_name(kind)


def _type_name(kind: Any) -> str:
    if kind.name == "word" and len(kind.values) < 10:
        return " ".join(f"`{word}`" for word in kind.values)
    return str(kind.name)


def _default(key: Key) -> str:
    value = key.default
    if value is None or value == ():
        return ""
    if key.kind is signal and isinstance(value, int) and value < SIGRTMIN:
        return str(signal.values[value - 1])
    return str(key.kind.show(value)).strip() if value else "0"


def _conditions(key: Key) -> str:
    parts = []
    if key.needs is not None:
        field, values = key.needs
        name = key.section.section_keys[field].name.rpartition(".")[2]
        parts.append(f" Only with {name} = {' or '.join(str(value) for value in values)}.")
    if key.empty is REFUSED:
        parts.append(" An empty value is an error.")
    parts.append(_later(key.later, some=key.later_for is not None))
    return "".join(parts)


def _later(part: str | None, *, some: bool = False) -> str:
    if part is None:
        return ""
    what = "some values come" if some else "its effect comes"
    return f' *Not yet: {what} with the part "{part}" of the project.*'


def _section_key(name: str) -> Key:
    target = owners.find(name.replace(".N.", ".0."))
    assert target is not None  # noqa: S101 - a declared name
    assert target.key is not None  # noqa: S101 - and no bare one
    return target.key


def _old_names() -> list[str]:
    network = [
        old
        for name in owners.names()
        for old in old_names(name)
        if name.startswith("lxc.net.N.") or name == "lxc.prlimit.*"
    ]
    return sorted([*owners.LEGACY, *network])


def _successor(old: str) -> tuple[str, str]:
    """The present name of an old one, and what there is to say about it."""
    if old == "lxc.rootfs.backend":
        return (
            "`lxc.rootfs.path`",
            "`lxc.rootfs.backend = TYPE` and `lxc.rootfs = PATH` are now `lxc.rootfs.path = TYPE:PATH`",
        )
    if old in owners.LEGACY:
        new = owners.LEGACY[old]
        return (f"`{new}`", "") if new else ("none", "without effect: it went away")
    if old == "lxc.limit.*":
        return "`lxc.prlimit.*`", ""
    sub = old.removeprefix("lxc.network.")
    return f"`lxc.net.N.{owners.LEGACY_NETWORK.get(sub, sub)}`", ""


if __name__ == "__main__":
    sys.stdout.write(page())
