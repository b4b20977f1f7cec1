"""Every step: frozen, documented, able to explain itself, and taken back by what the journal can hold."""

from __future__ import annotations

import ast
import importlib
import typing
from typing import Any

import pytest

from atoll import executor, plan
from contract import sources

Classes = list[type[Any]]


def step_classes() -> Classes:
    """All concrete steps: importing every module that may declare one finds them all."""
    for module in sources.modules():
        if module.name.startswith(("atoll.resources", "atoll.lifecycle", "atoll.oci")):
            importlib.import_module(module.name)
    found: Classes = []
    waiting = [plan.Step]
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        if cls.__module__.startswith("atoll.") and cls.__module__ != "atoll.plan":
            if cls.apply is not plan.Step.apply:
                found.append(cls)
    return sorted(set(found), key=lambda cls: (cls.__module__, cls.__name__))


STEPS = step_classes()
each = pytest.mark.parametrize("cls", STEPS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
each_host_step = pytest.mark.parametrize(
    "cls", [c for c in STEPS if issubclass(c, plan.HostStep)], ids=lambda cls: cls.__name__
)


def sample(annotation: str, module: str) -> Any:
    """A value for a field, from its annotation's text: enough for explain() and inverse(), which are pure."""
    text = annotation.replace(" ", "")
    alternatives = text.split("|")
    simple: dict[str, Any] = {
        "str": "sample", "int": 1, "bool": True, "bytes": b"sample", "float": 1.5, "None": None,
        "object": "sample", "Any": "sample",
    }  # fmt: skip
    for alternative in alternatives:
        if alternative in simple and alternative != "None":
            return simple[alternative]
    first = alternatives[0] if "[" not in text else text
    if first.startswith(("tuple[", "Sequence[", "frozenset[")):
        inside = first[first.index("[") + 1 : first.rindex("]")]
        parts = _split(inside)
        items = [sample(part, module) for part in parts if part != "..."]
        return frozenset(items) if first.startswith("frozenset") else tuple(items)
    if first.startswith(("dict[", "Mapping[")):
        key, value = _split(first[first.index("[") + 1 : first.rindex("]")])
        return {sample(key, module): sample(value, module)}
    if first.startswith(("Literal[",)):
        return ast.literal_eval(_split(first[8:-1])[0])
    if "None" in alternatives and "[" not in text and not _record(first, module):
        return None
    record = _record(first, module)
    if record is None:
        pytest.fail(
            f"no sample for a field of type {annotation} in {module}; steps hold plain values"
        )
    return build(record)


def _split(text: str) -> list[str]:
    parts, depth, last = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "," and not depth:
            parts.append(text[last:position])
            last = position + 1
    return [*parts, text[last:]]


def _record(name: str, module: str) -> type[Any] | None:
    """The class `name` as `module` knows it, also when it is imported for the type checker only."""
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        known = next(m for m in sources.modules() if m.name == module)
        for node in ast.walk(known.tree):
            if isinstance(node, ast.ImportFrom) and name in [
                a.asname or a.name for a in node.names
            ]:
                found = getattr(importlib.import_module(node.module or ""), name, None)
    return found if isinstance(found, type) else None


def build(cls: type[Any]) -> Any:
    """An instance with samples in the fields that have no default."""
    if not hasattr(cls, "record_fields"):
        return cls(1) if issubclass(cls, int) else cls()
    values = {}
    for base in reversed(cls.__mro__):
        for field, annotation in base.__dict__.get("__annotations__", {}).items():
            if field in cls.record_fields and field not in cls.record_defaults:
                values[field] = sample(annotation, base.__module__)
    return cls(**values)


@each
def test_is_documented_and_says_more_than_its_name(cls: type[Any]) -> None:
    assert cls.__dict__.get("__doc__"), f"{cls.__module__}.{cls.__name__} has no docstring"


@each
def test_is_frozen_and_comparable(cls: type[Any]) -> None:
    step = build(cls)
    assert step == build(cls)
    assert hash(step) == hash(build(cls))
    with pytest.raises(AttributeError):
        step.origin = None
    with pytest.raises(AttributeError):
        step.something_new = 1


@each
def test_explains_itself(cls: type[Any]) -> None:
    text = build(cls).explain()
    assert text.strip() == text != ""
    assert "\n" not in text
    assert not text.endswith("."), "a phrase: errors say 'cannot ' + this"
    assert " object at 0x" not in text


@each
def test_is_on_one_side(cls: type[Any]) -> None:
    assert issubclass(cls, plan.HostStep) != issubclass(cls, plan.InitStep)
    if not issubclass(cls, plan.HostStep):
        assert not hasattr(cls, "inverse"), "what init does dies with the namespaces"


@each_host_step
def test_inverse_is_pure_and_fits_in_the_journal(cls: type[Any]) -> None:
    step = build(cls)
    inverse = step.inverse()
    assert inverse == step.inverse()
    if inverse is None:
        return
    assert isinstance(inverse, plan.HostStep)
    assert inverse.explain()
    assert_primitive({k: v for k, v in inverse.as_dict().items() if k != "origin"}, cls.__name__)
    name, fields = executor.encode(inverse).split("\t", 1)
    assert "\n" not in fields
    assert executor.decode(name, fields).replace(origin=inverse.origin) == inverse


def assert_primitive(values: dict[str, Any], where: str) -> None:
    def primitive(value: object) -> bool:
        if isinstance(value, tuple):
            return all(primitive(item) for item in value)
        return value is None or type(value) in (str, int, bool, bytes, float)

    wrong = {name: value for name, value in values.items() if not primitive(value)}
    assert wrong == {}, f"the inverse of {where} holds what the journal cannot"


def test_there_is_a_slot_for_every_need() -> None:
    filled = {slot for cls in STEPS for slot in cls.fills}
    lonely = {
        f"{cls.__name__} needs {slot}"
        for cls in STEPS
        for slot in typing.cast("tuple[Any, ...]", cls.needs)
        if slot not in filled
        and slot.name not in ("sync", "child", "owner", "program")  # given by the monitor
    }
    assert lonely == set()
