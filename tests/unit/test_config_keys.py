"""Value types and declarations, against reference sections 2.1, 2.2, 2.5 and 2.6."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.config import keys
from atoll.config.keys import (  # fmt: skip
    Kind,
    Section,
    choice,
    flag,
    indexed,
    integer,
    key,
    many,
    number,
    pairs,
    path,
    signal,
    size,
    text,
    words,
)

TYPES = [flag, integer, number, path, signal, size, text, words, choice("a", "b"), many(number)]


@pytest.mark.parametrize(
    ("kind", "value", "parsed", "shown"),
    [
        (number, "010", 8, "8"),
        (number, "0x10", 16, "16"),
        (number, "  7", 7, "7"),
        (number, "+7", 7, "7"),
        (number, "0", 0, "0"),
        (number, "4294967295", 4294967295, "4294967295"),
        (integer, "-5", -5, "-5"),
        (integer, "-0x10", -16, "-16"),
        (flag, "1", True, "1"),
        (flag, "0x0", False, "0"),
        (path, "/srv//x/./log/", "/srv/x/log", "/srv/x/log"),
        (path, "a//b/.", "a/b", "a/b"),
        (path, "///", "/", "/"),
        (path, "overlay:/a//b:/c/", "overlay:/a/b:/c", "overlay:/a/b:/c"),
        (size, "1MB", 1048576, "1048576"),
        (size, "2kb", 2048, "2048"),
        (size, "1 GB", 1 << 30, str(1 << 30)),
        (size, "5B", 5, "5"),
        (size, "5", 5, "5"),
        (signal, "SIGTERM", 15, "15"),
        (signal, "sigpwr", 30, "30"),
        (signal, "SIGIOT", 6, "6"),
        (signal, "SIGRTMIN+3", 37, "37"),
        (signal, "SIGRTMAX-1", 63, "63"),
        (signal, "999", 999, "999"),
        (signal, "0", 0, "0"),
        (words, "a  b\tc", ("a", "b", "c"), "a\nb\nc\n"),
        (
            many(number, split=lambda line: line.split(","), separator=",", end=""),
            "5,6",
            (5, 6),
            "5,6",
        ),
        (many(text, end=""), "x y", ("x y",), "x y"),
        (choice("bridge", values={"b": "bridge", "r": "router"}), "r", "router", "r"),
    ],
)
def test_value(kind, value, parsed, shown):
    assert kind.parse(value) == parsed
    assert kind.show(parsed) == shown


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (number, "-1"), (number, "1 # c"), (number, "1x"), (number, ""), (number, "4294967296"), (number, "1_0"),
        (number, "١"), (number, "08"), (number, "0x"), (number, "9" * 5000), (integer, "1x"), (integer, "2147483648"),
        (flag, "2"), (flag, "yes"), (flag, "-1"), (path, "/" * 4096), (size, "1TB"), (size, "MB"), (size, "-5"),
        (size, "1.5MB"), (size, "1MBB"), (size, f"{1 << 62}GB"), (signal, "PWR"), (signal, "SIGFOO"), (signal, "SIGRTMIN"),
        (signal, "SIGRTMIN+"), (signal, "SIGRTMIN+99"), (signal, "-9"), (choice("a", "b"), "A"),
    ],
)  # fmt: skip
def test_refused_value(kind, value):
    with pytest.raises(ValueError):
        kind.parse(value)


@pytest.mark.parametrize("kind", TYPES)
@given(value=st.text())
def test_any_text_is_a_value_or_a_value_error(kind, value):
    try:
        parsed = kind.parse(value)
    except ValueError:
        return
    shown = kind.show(parsed)
    if not isinstance(kind, keys.Many):
        assert kind.parse(shown) == parsed


def test_signal_names_are_the_kernels():
    import signal as standard

    for member in standard.Signals:
        if member.name not in ("SIGRTMIN", "SIGRTMAX"):
            assert signal.parse(member.name) == member.value
    assert (keys.SIGRTMIN, keys.SIGRTMAX) == (standard.SIGRTMIN, standard.SIGRTMAX)


class Item(Section):
    """A numbered section."""

    path: str | None = key("lxc.t.N.path", path)
    other: str | None = key("lxc.t.N.other", path, doc="the field above has the type's name")


class Thing(Section, group="lxc.thing"):
    """One of each."""

    items: tuple[Item, ...] = indexed("lxc.t", Item)
    count: int = key("lxc.thing.count", number, default=3)
    names: tuple[str, ...] = key("lxc.thing.names", words)
    maps: tuple[tuple[str, str], ...] = key("lxc.thing.maps.*", pairs(text))


def test_section_is_a_record_of_defaults():
    assert Thing() == Thing(items=(), count=3, names=(), maps=(), index=-1)
    assert list(Thing.section_fields) == ["items", "count", "names", "maps"]
    assert Thing.section_keys["count"].section is Thing
    assert Thing.section_group == "lxc.thing"


def test_a_field_does_not_hide_the_value_type_of_its_name():
    assert Item.section_keys["other"].kind is path


def test_a_key_without_annotation_is_a_programming_error():
    with pytest.raises(TypeError, match=r"Wrong\.x has a key but no annotation"):

        class Wrong(Section):
            x = key("lxc.thing.x", text)


def test_only_pairs_have_a_star():
    with pytest.raises(TypeError):
        key("lxc.thing.x", pairs(text))
    with pytest.raises(TypeError):
        key("lxc.thing.*", text)


def test_kind_of_two_functions():
    upper = Kind(str.upper, str.lower)
    assert upper.show(upper.parse("abc")) == "abc"
