"""Live values as text, and back: what a monitor that parks leaves for the one that wakes (docs/adr/0003-parked-monitor.md).

Not what is left, nor when (park.py). Values are numbers, texts, bytes, containers of them, Records, and descriptors, which
keep their numbers. Anything else cannot be saved, and a monitor that has it does not park. No pickle: nothing is called
but the constructors of this program's Records, and fields that they do not have (any more) are left out.
"""

from __future__ import annotations

import os
import sys

from atoll.linux.files import OwnedFd
from atoll.plan import Handler
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from atoll.plan import Slot

    T = TypeVar("T")

PLAIN = (bool, int, float, str, bytes, type(None))


class CannotSaveError(Exception):
    """A live value that does not survive an exec: the monitor stays as it is. The text says which."""


def freeze(value: object) -> Any:
    """A literal for a value. Raises CannotSaveError.

    Tuples and lists stay what they are; {"fd": n}, {"record": …, "fields": {…}}, {"dict": [(key, value), …]} and
    {"set": […]} stand for the rest.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, OwnedFd):
        return {"fd": value.fileno()}
    if isinstance(value, Record):
        fields = {name: freeze(item) for name, item in value.as_dict().items()}
        return {"record": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if kind is dict:
        return {"dict": [(freeze(key), freeze(item)) for key, item in value.items()]}  # type: ignore[attr-defined]  # `kind` says so
    if kind in (set, frozenset):
        return {"set": [freeze(item) for item in value]}  # type: ignore[attr-defined]  # likewise
    if kind in (tuple, list):
        return kind([freeze(item) for item in value])  # type: ignore[attr-defined]  # likewise
    raise CannotSaveError(f"a {kind.__module__}.{kind.__qualname__} cannot be saved")


def thaw(literal: Any, adopt: Callable[[int], object]) -> Any:
    """The value of a literal; `adopt` makes a descriptor's owner of its number. Raises ValueError, ImportError or TypeError."""
    if isinstance(literal, (tuple, list)):
        return type(literal)([thaw(item, adopt) for item in literal])
    if not isinstance(literal, dict):
        return literal
    if "fd" in literal:
        return adopt(literal["fd"])
    if "dict" in literal:
        return {thaw(key, adopt): thaw(item, adopt) for key, item in literal["dict"]}
    if "set" in literal:
        return frozenset([thaw(item, adopt) for item in literal["set"]])
    cls = _record(literal["record"])
    fields = literal["fields"]
    return cls(**{name: thaw(fields[name], adopt) for name in cls.record_fields if name in fields})


def descriptors(literal: Any) -> list[int]:
    """The numbers of all descriptors in a literal."""
    if isinstance(literal, dict):
        if "fd" in literal:
            return [literal["fd"]]
        return descriptors(list(literal.values()))
    if isinstance(literal, (tuple, list)):
        return [number for item in literal for number in descriptors(item)]
    return []


def _record(name: str) -> type[Record]:
    module, _, qualified = name.partition(":")
    if not module.startswith("atoll."):
        raise ValueError(f"{name} is not a record of Atoll")
    __import__(module)
    found = getattr(sys.modules[module], qualified, None)
    if not (isinstance(found, type) and issubclass(found, Record)):
        raise ValueError(f"{name} is not known to this version")
    return found


def literal(text: str) -> Any:
    """The literal of a text that repr made of one. Raises ValueError or SyntaxError.

    Not ast.literal_eval, whose module costs more time than the rest of waking up; without names there is nothing to call.
    """
    code = compile(text, "saved", "eval")
    if code.co_names:
        raise ValueError(f"not a literal: it names {code.co_names[0]}")
    return eval(code, {"__builtins__": {}})  # noqa: S307 - no name can be looked up, so nothing but a literal comes out


class Saved:
    """Sections of text, one a line, read only when somebody asks: `name TAB literal`."""

    def __init__(self, magic: str) -> None:
        self.magic = magic
        self.sections: dict[str, str] = {}

    @classmethod
    def parse(cls, text: str, magic: str) -> Saved:
        """What text() wrote. Raises ValueError for another magic line."""
        lines = text.split("\n")
        if lines[0] != magic:
            raise ValueError(
                f"this version reads {magic!r}, and the monitor was parked by {lines[0][:40]!r}"
            )
        saved = cls(magic)
        for line in lines[1:]:
            name, tab, rest = line.partition("\t")
            if tab:
                saved.sections[name] = rest
        return saved

    def __contains__(self, name: str) -> bool:
        return name in self.sections

    def __setitem__(self, name: str, value: object) -> None:
        self.sections[name] = repr(value)

    def __getitem__(self, name: str) -> Any:
        return literal(self.sections[name])

    def text(self) -> str:
        """All of it."""
        lines = [self.magic, *[f"{name}\t{rest}" for name, rest in self.sections.items()], ""]
        return "\n".join(lines)


def read(fd: int) -> str:
    """The whole text of a file, from its beginning, whatever its offset is."""
    chunks: list[bytes] = []
    place = 0
    while chunk := os.pread(fd, 1 << 20, place):
        chunks.append(chunk)
        place += len(chunk)
    return b"".join(chunks).decode()


class LiveHandler(Handler):
    """A Handler whose values survive an exec; those of before are made when they are asked for, and known by slot name."""

    _frozen: dict[str, Any] | None = None

    def save(self, *, without: Iterable[Slot[Any]]) -> dict[str, Any]:
        """All values as literals, by slot name. Raises CannotSaveError."""
        left = [slot.name for slot in without]
        values = dict(self._frozen or {})
        values |= {s.name: freeze(v) for s, v in self._values.items() if s.name not in left}
        return values

    def restore(self, values: dict[str, Any]) -> None:
        """Take the values of save()."""
        self._frozen = dict(values)

    def _thaw(self, slot: Slot[Any]) -> None:
        if self._frozen and slot.name in self._frozen and slot not in self._values:
            self._values[slot] = thaw(self._frozen[slot.name], OwnedFd)
            del self._frozen[slot.name]

    def __getitem__(self, slot: Slot[T]) -> T:
        self._thaw(slot)
        return super().__getitem__(slot)

    def __setitem__(self, slot: Slot[T], value: T) -> None:
        self._thaw(slot)
        super().__setitem__(slot, value)

    def __contains__(self, slot: Slot[Any]) -> bool:
        self._thaw(slot)
        return super().__contains__(slot)

    def get(self, slot: Slot[T]) -> T | None:
        """The value, or None when the slot is empty."""
        self._thaw(slot)
        return super().get(slot)

    def take(self, slot: Slot[T]) -> T | None:
        """Empty the slot and return what it held, or None."""
        self._thaw(slot)
        return super().take(slot)

    def close(self) -> None:
        """Close every value, those that nobody asked for too, and empty all slots."""
        frozen, self._frozen = self._frozen, None
        for number in descriptors(list((frozen or {}).values())):
            os.close(number)
        super().close()
