"""What a configuration key is: value types, declarations, and sections that are made of them.

This module knows no key by name: resource modules declare theirs, and parsing, getting, setting, clearing, listing and
documentation follow from the declaration. It reads no file (text.py) and finds no module (owners.py).
Source: lxc.container.conf(5), reference of LXC sections 2.1, 2.2, 2.5.

    class Console(Section):
        '''lxc.console.*: …'''
        path: str | None = key("lxc.console.path", path, doc="…")
        rotate: bool = key("lxc.console.rotate", flag, default=False, doc="…")
        entries: tuple[str, ...] = key("lxc.mount.entry", many(text), doc="…")
        sysctls: tuple[tuple[str, str], ...] = key("lxc.sysctl.*", pairs(text, unique=True), doc="…")
        nics: tuple[Nic, ...] = indexed("lxc.net", Nic, doc="…")

A field may be called like a value type (`path` above): a declared field does not hide it from the lines below.
"""

from __future__ import annotations

from atoll.records import Record, RecordType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar, Generic, Protocol, TypeVar

    from atoll.errors import Origin
    from atoll.host import Host

    T = TypeVar("T")

    class ValueType(Protocol[T]):
        """What a declaration needs of a value type."""

        def parse(self, value: str, /) -> T:
            """The value; ValueError with the reason as one lower-case phrase."""

        def show(self, value: T, /) -> str:
            """LXC's textual form."""

    # What a fold keeps of a section: field -> (value, origin), or a list of (item, origin), or index -> State.
    State = dict[str, Any]
else:
    T = None

    class Generic:
        """Stand in for typing.Generic, which type checkers read."""

        def __class_getitem__(cls, _item: object) -> type:
            return cls


WHITE = " \t\v\f\r\n"
"""What C's isspace takes for space; Python's own idea is wider."""
UINT_MAX = 0xFFFFFFFF
INT_MAX = 0x7FFFFFFF
LONG_MAX = 0x7FFFFFFFFFFFFFFF
PATH_MAX = 4096
_HEX = "0123456789abcdef"
_SIGNALS = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
)  # fmt: skip
_SIGNAL_SYNONYMS = {"IOT": "ABRT", "CLD": "CHLD", "POLL": "IO", "UNUSED": "SYS"}
SIGRTMIN = 34  # glibc keeps 32 and 33 for itself
SIGRTMAX = 64


# ------------------------------------------------------------------------------------ value types
class Kind(Generic[T]):
    """A value type made of two functions: `parse` raises ValueError with the reason, `show` gives LXC's text.

    `name` is what documentation calls it; `values` are the words that it takes, where they can be listed.
    """

    __slots__ = ("name", "parse", "show", "values")

    def __init__(
        self,
        parse: Callable[[str], T],
        show: Callable[[T], str] = str,
        *,
        name: str = "text",
        values: Sequence[str] = (),
    ) -> None:
        self.parse = parse
        self.show = show
        self.name = name
        self.values = values


class Many(Generic[T]):
    """A list: every line appends what it holds, an empty value clears.

    `split` takes a line apart into the texts of its items (None: a line is one item). Shown with `separator` between the
    items and `end` after the last; LXC's getter ends most lists with a newline, some (idmap, addresses) not.
    """

    __slots__ = ("end", "item", "separator", "split")

    def __init__(
        self,
        item: ValueType[T],
        *,
        split: Callable[[str], Sequence[str]] | None = None,
        separator: str = "\n",
        end: str = "\n",
    ) -> None:
        self.item = item
        self.split = split
        self.separator = separator
        self.end = end

    def parse(self, value: str) -> tuple[T, ...]:
        """The items of one line."""
        parts = (value,) if self.split is None else self.split(value)
        parse = self.item.parse
        return tuple([parse(part) for part in parts])

    def show(self, value: Sequence[T]) -> str:
        """All items."""
        if not value:
            return ""
        return self.separator.join([self.item.show(item) for item in value]) + self.end


class Pairs(Generic[T]):
    """A list of (sub-key, value): lxc.sysctl.*, lxc.cgroup2.*. Its key's name ends in `.*`.

    `unique`: setting a sub-key again replaces its value in place, and getting it gives the value without a newline
    (prlimit, sysctl, proc); else each line appends and getting gives a line for each (cgroup). `subkey` checks the sub-key.
    """

    __slots__ = ("item", "subkey", "unique")

    def __init__(
        self, item: ValueType[T], *, unique: bool = False, subkey: ValueType[str] | None = None
    ) -> None:
        self.item = item
        self.unique = unique
        self.subkey = subkey

    def parse(self, value: str) -> T:
        """The value of one line."""
        return self.item.parse(value)

    def show(self, value: Sequence[T]) -> str:
        """The values of one sub-key."""
        if self.unique:
            return self.item.show(value[-1]) if value else ""
        return "".join([f"{self.item.show(item)}\n" for item in value])


def many(
    item: ValueType[T] | Many[T],
    *,
    split: Callable[[str], Sequence[str]] | None = None,
    separator: str = "\n",
    end: str = "\n",
) -> Many[T]:
    """A list of `item`; see Many. A value type that is a list already (words) stays what it is."""
    if isinstance(item, Many):
        return item
    return Many(item, split=split, separator=separator, end=end)


def pairs(
    item: ValueType[T], *, unique: bool = False, subkey: ValueType[str] | None = None
) -> Pairs[T]:
    """A list of (sub-key, value); see Pairs."""
    return Pairs(item, unique=unique, subkey=subkey)


def parse_integer(value: str, low: int, high: int) -> int:
    """A number as strtol(3) with base 0 reads it (0x…, leading 0 octal), nothing after it, within low..high."""
    digits = value.lstrip(WHITE).lower()
    negative = digits[:1] == "-"
    if digits[:1] in ("-", "+"):
        digits = digits[1:]
    base = 10
    if digits[:2] == "0x":
        base, digits = 16, digits[2:]
    elif digits[:1] == "0" and len(digits) > 1:
        base, digits = 8, digits[1:]
    if not digits or digits.strip(_HEX[:base]):
        raise ValueError("not a whole number")
    if (negative and low >= 0) or len(digits) > 64:
        raise ValueError(f"not within {low} to {high}")
    number = -int(digits, base) if negative else int(digits, base)
    if not low <= number <= high:
        raise ValueError(f"not within {low} to {high}")
    return number


def within(low: int, high: int) -> Kind[int]:
    """A whole number from `low` to `high`, both included, written in base 10, 0x… or 0…."""
    return Kind(lambda value: parse_integer(value, low, high), name=f"number {low} to {high}")


def _parse_flag(value: str) -> bool:
    try:
        return bool(parse_integer(value, 0, 1))
    except ValueError:
        raise ValueError("neither 0 nor 1") from None


def simplify(value: str) -> str:
    """A path without doubled slashes, `.` elements and a trailing slash, as LXC stores it."""
    joined = "/".join([part for part in value.split("/") if part not in ("", ".")])
    if value.startswith("/"):
        return f"/{joined}"
    return joined or "."


def _parse_path(value: str) -> str:
    if len(value) >= PATH_MAX:
        raise ValueError(f"longer than {PATH_MAX - 1} characters")
    return simplify(value)


def _parse_size(value: str) -> int:
    number = value.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    suffix = value[len(number) :].upper()
    if len(suffix) > 1 and suffix not in ("KB", "MB", "GB"):
        raise ValueError("not a size: use a number of bytes, or KB, MB or GB after it")
    factor = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}.get(suffix, 1)
    size_in_bytes = parse_integer(number.rstrip(WHITE), 0, LONG_MAX) * factor
    if size_in_bytes > LONG_MAX:
        raise ValueError(f"more than {LONG_MAX} bytes")
    return size_in_bytes


def _parse_signal(value: str) -> int:
    if value[:1].isdigit():
        return parse_integer(value, 0, INT_MAX)
    name = value.upper()
    if not name.startswith("SIG"):
        raise ValueError("not a signal: use a number, SIGNAME, SIGRTMIN+N or SIGRTMAX-N")
    name = name[3:]
    name = _SIGNAL_SYNONYMS.get(name, name)
    if name in _SIGNALS:
        return _SIGNALS.index(name) + 1
    for start, sign, first in (("RTMIN+", 1, SIGRTMIN), ("RTMAX-", -1, SIGRTMAX)):
        if name.startswith(start):
            offset = parse_integer(name[len(start) :], 0, SIGRTMAX - SIGRTMIN)
            return first + sign * offset
    raise ValueError("there is no such signal")


def choice(*names: str, values: Mapping[str, T] | None = None) -> Kind[Any]:
    """One of `names` as it is written; with `values`, one of its keys, giving what it maps to."""
    table: dict[str, Any] = {name: name for name in names}
    table.update(values or {})
    shown = {value: name for name, value in reversed(table.items())}

    def parse(value: str) -> Any:
        if value not in table:
            raise ValueError(f"not one of {' '.join(table)}")
        return table[value]

    return Kind(parse, lambda value: shown[value], name="word", values=tuple(table))


def _show_flag(value: bool) -> str:  # noqa: FBT001 - a value type's show has this shape
    return "1" if value else "0"


def _same(value: str) -> str:
    return value


text: Kind[str] = Kind(_same)
"""A string."""
number: Kind[int] = Kind(lambda value: parse_integer(value, 0, UINT_MAX), name="number")
"""An unsigned number of 32 bits; base by its prefix."""
integer: Kind[int] = Kind(
    lambda value: parse_integer(value, -INT_MAX - 1, INT_MAX), name="signed number"
)
"""A signed number of 32 bits; base by its prefix."""
flag: Kind[bool] = Kind(_parse_flag, _show_flag, name="0 or 1", values=("0", "1"))
"""0 or 1."""
path: Kind[str] = Kind(_parse_path, name="path")
"""A path, simplified; not checked for existence."""
size: Kind[int] = Kind(_parse_size, name="size")
"""Bytes, with KB, MB or GB (of 1024) after the number."""
signal: Kind[int] = Kind(
    _parse_signal, name="signal", values=tuple([f"SIG{name}" for name in _SIGNALS])
)
"""A signal's number, written as number or with SIG before its name."""
words: Many[str] = Many(text, split=str.split)
"""A list: every line appends its words."""


# ----------------------------------------------------------------------------------- declarations
class _Mark:
    """A value that says something about a value; compared by identity."""

    __slots__ = ("meaning",)

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning

    def __repr__(self) -> str:
        return self.meaning


CLEARED = _Mark("an empty value resets the key")
REFUSED = _Mark("an empty value is an error")


class Key:
    """One declared key: everything that reading, getting, clearing, listing and documenting it needs.

    Made by `key()`; `section` and `field` are set by the class that it is declared in.
    """

    __slots__ = (
        "check", "clears", "default", "doc", "empty", "example", "field", "kind", "later", "later_for", "later_on",
        "name", "needs", "resets", "section", "shown", "since", "unset",
    )  # fmt: skip

    section: type[Section]
    field: str

    def __init__(self, name: str, kind: ValueType[Any], default: object, doc: str) -> None:
        self.name = name
        self.kind: Any = kind
        self.default = default
        self.doc = doc
        self.example = ""
        self.since = ""
        self.later: str | None = None
        self.later_on: Callable[[Host], bool] | None = None
        self.later_for: Callable[[Any], bool] | None = None
        self.shown: Callable[[Any], str] | None = None
        self.unset: str | None = None
        self.empty: object = CLEARED
        self.clears: tuple[str, ...] = ()
        self.resets = False
        self.needs: tuple[str, tuple[object, ...]] | None = None
        self.check: Callable[[Any, Any], None] | None = None

    def __repr__(self) -> str:
        return f"<key {self.name}>"

    # -- folding: one assignment after the other into a State
    def assign(self, state: State, value: str, origin: Origin, sub: str = "") -> None:
        """Take in one line; ValueError with the reason when its value cannot be used here."""
        if self.needs is not None:
            self._demand(state)
        if not value:
            self._assign_empty(state, origin, sub)
            return
        kind = self.kind
        if isinstance(kind, Pairs):
            self._assign_pair(kind, state, value, origin, sub)
            return
        parsed = kind.parse(value)
        if self.check is not None:
            self.check(Values(self.section, state), parsed)
        if self.resets:
            state.clear()
        if isinstance(kind, Many):
            state.setdefault(self.field, []).extend([(item, origin) for item in parsed])
        else:
            state[self.field] = (parsed, origin)

    def _assign_pair(
        self, kind: Pairs[Any], state: State, value: str, origin: Origin, sub: str
    ) -> None:
        if not sub:
            raise ValueError(f"a name is missing: {self.name.replace('*', 'NAME')} = VALUE")
        if kind.subkey is not None:
            kind.subkey.parse(sub)
        entry = (sub, kind.parse(value))
        if self.check is not None:
            self.check(Values(self.section, state), entry)
        if kind.unique:
            state.setdefault(self.field, {})[sub] = (entry, origin)
        else:
            state.setdefault(self.field, []).append((entry, origin))

    def _assign_empty(self, state: State, origin: Origin, sub: str) -> None:
        if self.empty is REFUSED:
            raise ValueError("a value is missing")
        self.clear(state, sub)
        if self.empty is not CLEARED:
            state[self.field] = (self.empty, origin)

    def _demand(self, state: State) -> None:
        field, allowed = self.needs or ("", ())
        if not self.fits(state):
            names = " or ".join(str(value) for value in allowed)
            other = self.section.section_keys[field].name
            raise ValueError(f"it needs {other.rpartition('.')[2]} = {names} on a line before it")

    def fits(self, state: State) -> bool:
        """Whether the key means something in this state (`needs`): a veth key of a veth."""
        if self.needs is None:
            return True
        field, allowed = self.needs
        return state.get(field, (self.section.section_keys[field].default,))[0] in allowed

    def clear(self, state: State, sub: str = "") -> None:
        """Forget the value, the items, or those of one sub-key; and what is cleared together with it."""
        held = state.get(self.field)
        if sub and isinstance(held, dict):
            held.pop(sub, None)
            return
        if sub and held is not None:
            held[:] = [pair for pair in held if pair[0][0] != sub]
            return
        for field in (self.field, *self.clears):
            state.pop(field, None)

    # -- asking
    def items(self, state: State, sub: str = "") -> list[tuple[Any, Origin]]:
        """(value or item, origin) for each that was set, in order; of one sub-key when given."""
        held = state.get(self.field)
        if held is None:
            return []
        if isinstance(held, tuple):
            return [held]
        pairs = list(held.values()) if isinstance(held, dict) else held
        return [pair for pair in pairs if pair[0][0] == sub] if sub else pairs

    def value(self, state: State) -> Any:
        """The field's value: the last, all items, or the default."""
        held = self.items(state)
        if not held:
            return self.default
        if isinstance(self.kind, (Many, Pairs)):
            return tuple([item for item, _origin in held])
        return held[0][0]

    def get(self, state: State, sub: str = "") -> str:
        """LXC's textual form of the value; an unset string is empty."""
        held = self.items(state, sub)
        if not held and self.unset is not None:
            return self.unset
        if isinstance(self.kind, Pairs):
            return self._get_pairs(self.kind, [item for item, _origin in held], sub)
        value = self.value(state)
        if value is None:
            return ""
        return (self.shown or self.kind.show)(value)

    def _get_pairs(self, kind: Pairs[Any], held: list[tuple[str, Any]], sub: str) -> str:
        if sub:
            return kind.show([value for _sub, value in held])
        prefix = self.name[:-1]
        return "".join([f"{prefix}{name} = {kind.item.show(value)}\n" for name, value in held])


class Indexed:
    """A field that is a tuple of sections, one a number: `lxc.net.N.…`. Made by `indexed()`."""

    __slots__ = ("doc", "field", "item", "name", "section", "shown")

    section: type[Section]
    field: str

    def __init__(
        self, name: str, item: type[Section], shown: Callable[[Any], str] | None, doc: str
    ) -> None:
        self.name = name
        self.item = item
        self.shown = shown
        self.doc = doc

    def value(self, state: State) -> tuple[Section, ...]:
        """The sections, lowest number first."""
        held: dict[int, State] = state.get(self.field, {})
        return tuple([build(self.item, held[index], index=index) for index in sorted(held)])


def key(
    name: str,
    kind: Any,
    *,
    default: object = None,
    doc: str = "",
    example: str = "",
    since: str = "",
    later: str | None = None,
    later_on: Callable[[Host], bool] | None = None,
    later_for: Callable[[Any], bool] | None = None,
    show: Callable[[Any], str] | None = None,
    unset: str | None = None,
    empty: object = CLEARED,
    clears: tuple[str, ...] = (),
    resets: bool = False,
    needs: tuple[str, tuple[object, ...]] | None = None,
    check: Callable[[Any, Any], None] | None = None,
) -> Any:
    """Declare a key of a section; the field's type is what `kind`, a ValueType, parses to.

    `name`: `lxc.a.b`; ends in `.*` for pairs; `lxc.net.N.x` in the item of an indexed field.
    `default`: of the field while unset (lists: ()). For docs/keys.md: `doc`, what it means, with unit and format; `example`, a
    value that works (of pairs: `sub.key = value`); `since`, the oldest generation of LXC that has it by this name: 1.x (as of
    2014), 2.x (which renamed many), 5.0.2 or HEAD. Older names are in owners.LEGACY, as a lookup must not import every module.
    `later`: the part of the project that will make the key effective; until then a start warns where `later_on(host)`, and
    with `later_for` of those values (of lists and pairs: items) alone for which it is true.
    `show`: value -> text, where LXC's getter differs from `kind.show`. `unset`: what the getter gives while unset.
    `empty`: what `key =` does: CLEARED, REFUSED, or a value that it sets. `clears`: fields that an empty value clears too.
    `resets`: assigning forgets all other keys of this section (lxc.net.N.type).
    `needs`: (field, values): an error unless that field has one of these values by then.
    `check`: called with the section's Values so far and the new value (of pairs: sub-key and value); ValueError refuses it.
    """
    if isinstance(kind, (Many, Pairs)) and default is None:
        default = ()
    if isinstance(kind, Pairs) != name.endswith(".*"):
        raise TypeError(f"{name}: pairs have a name that ends in .*, and only they")
    declared = Key(name, kind, default, doc)
    declared.example = example
    declared.since = since
    declared.later = later
    declared.later_on = later_on
    declared.later_for = later_for
    declared.shown = show
    declared.unset = unset
    declared.empty = empty
    declared.clears = clears
    declared.resets = resets
    declared.needs = needs
    declared.check = check
    return declared


def indexed(
    name: str, item: type[Section], *, show: Callable[[Any], str] | None = None, doc: str = ""
) -> Any:
    """Declare a field of numbered sections: `indexed("lxc.net", Nic)` for keys `lxc.net.N.…` of Nic.

    `lxc.net =` clears all, `lxc.net.N =` one. `show`: the tuple -> what getting the bare name gives; None: an error.
    """
    return Indexed(name, item, show, doc)


# --------------------------------------------------------------------------------------- sections
class _Body(dict[str, Any] if TYPE_CHECKING else dict):  # type: ignore[misc]  # a plain dict at run time
    """The names of a class body, with declarations kept aside so that a field does not hide a value type."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: dict[str, Key | Indexed] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, (Key, Indexed)):
            self.declared[name] = value
        else:
            super().__setitem__(name, value)


class SectionType(RecordType):
    """Collects the declarations of a Section in the order of the class and puts their defaults in their place."""

    @classmethod
    def __prepare__(cls, _name: str, _bases: tuple[type, ...], **_options: Any) -> _Body:  # type: ignore[override]  # narrower than MutableMapping
        """The namespace that the class body runs in."""
        return _Body()

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: _Body,
        *,
        group: str | None = None,
        **options: Any,
    ) -> SectionType:
        """Make the class; `group` is the bare name that clears all of its keys."""
        fields: dict[str, Any] = {}
        for base in bases:
            fields.update(getattr(base, "section_fields", {}))
        annotated = namespace.get("__annotations__", {})
        for field, declaration in namespace.declared.items():
            if field not in annotated:
                raise TypeError(f"{name}.{field} has a key but no annotation")
            fields[field] = declaration
            declaration.field = field
            namespace[field] = declaration.default if isinstance(declaration, Key) else ()
        namespace["section_fields"] = fields
        namespace["section_keys"] = {f: d for f, d in fields.items() if isinstance(d, Key)}
        namespace["section_group"] = group
        cls = super().__new__(mcs, name, bases, namespace, **options)
        for declaration in namespace.declared.values():
            declaration.section = cls  # type: ignore[assignment]  # what this metaclass makes is a Section
        return cls  # type: ignore[return-value]  # RecordType.__new__ makes what mcs says


class Section(Record, metaclass=SectionType):
    """Wishes about one thing: a Record whose fields are keys. Without a line in the file it is its defaults.

    `class Hooks(Section, group="lxc.hook")`: the bare name `lxc.hook` takes no value and, empty, clears all of it.
    """

    section_fields: ClassVar[dict[str, Key | Indexed]]
    section_keys: ClassVar[dict[str, Key]]
    section_group: ClassVar[str | None]

    index: int = -1
    """The N of a numbered section (lxc.net.N); -1 in all others."""


def build(section: type[Section], state: State, *, index: int = -1) -> Section:
    """The section's record from what was folded."""
    fields = section.section_fields
    values = {field: fields[field].value(state) for field in state}
    return section(index=index, **values)


class Values:
    """The values of a section so far, by field, as a `check` sees them; an unset field has its default."""

    __slots__ = ("_section", "_state")

    def __init__(self, section: type[Section], state: State) -> None:
        self._section = section
        self._state = state

    def __getitem__(self, field: str) -> Any:
        return self._section.section_keys[field].value(self._state)

    def __contains__(self, field: str) -> bool:
        return bool(self._state.get(field))

    def get(self, field: str, default: Any = None) -> Any:
        """The value where the field is set, else `default`."""
        if field not in self:
            return default
        return self[field]
