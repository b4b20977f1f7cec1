"""Record: the one definition of a value type (frozen, slotted, keyword-only, comparable).

Not a data-class library: no positional arguments, no converters, no inheritance of mutable state.
It exists because a frozen dataclass costs 0.5-0.9 ms a class and 12 ms of import, and a container runtime is
started cold thousands of times; this costs about 0.05 ms a class. Exchange it here if that ever changes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):  # noqa: ANN003, ANN201 - the run-time stand-in does nothing
        """Stand in for typing.dataclass_transform, which type checkers read and nothing runs."""
        return lambda decorated: decorated


_set = object.__setattr__


@dataclass_transform(kw_only_default=True, frozen_default=True)
class RecordType(type):
    """Turns the annotations of a Record class into slots and remembers their defaults."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> RecordType:
        """Make the class."""
        annotations = namespace.get("__annotations__", {})
        if not annotations and len(bases) == 1:  # nothing new: the base's own tables are inherited
            namespace["__slots__"] = ()
            return super().__new__(mcs, name, bases, namespace, **options)
        fields: dict[str, None] = {}
        defaults: dict[str, Any] = {}
        for base in bases:
            fields.update(dict.fromkeys(getattr(base, "record_fields", ())))
            defaults.update(getattr(base, "record_defaults", {}))
        own = []
        for field, annotation in annotations.items():
            if annotation.startswith("ClassVar"):
                continue
            if field not in fields:
                own.append(field)
            fields[field] = None
            if field in namespace:
                defaults[field] = namespace.pop(field)
        namespace["__slots__"] = tuple(own)
        namespace["record_fields"] = tuple(fields)
        namespace["record_names"] = frozenset(fields)
        namespace["record_defaults"] = defaults
        return super().__new__(mcs, name, bases, namespace, **options)


class Record(metaclass=RecordType):
    """A value: fields from the annotations, given by keyword, never changed afterwards."""

    record_fields: ClassVar[tuple[str, ...]]
    record_names: ClassVar[frozenset[str]]
    record_defaults: ClassVar[dict[str, Any]]

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        whole = cls.record_defaults | values
        if whole.keys() != cls.record_names:
            raise _misfit(cls, whole)
        for field in whole:
            _set(self, field, whole[field])

    def __setattr__(self, field: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, field: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in order of declaration."""
        return {field: getattr(self, field) for field in type(self).record_fields}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields exchanged."""
        return type(self)(**{**self.as_dict(), **changes})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((type(self), *self.as_dict().values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({fields})"


def _misfit(cls: type[Record], values: dict[str, Any]) -> TypeError:
    for field in cls.record_fields:
        if field not in values:
            return TypeError(f"{cls.__name__} needs {field}")
    unknown = [field for field in values if field not in cls.record_names]
    return TypeError(f"{cls.__name__} has no field {', '.join(unknown)}")
