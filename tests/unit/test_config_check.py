"""Problems of a configuration: places, words, suggestions, old names, strangers, overridden lines, comments; and JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config import check
from atoll.config.check import ERROR, WARNING, Problem
from atoll.config.text import PROBLEM_LIMIT


def problems(*lines: str) -> tuple[Problem, ...]:
    return check.in_order(check.parse("\n".join(lines) + "\n", "config").problems)


def one(*lines: str) -> Problem:
    (problem,) = problems(*lines)
    return problem


def test_nothing_to_tell() -> None:
    assert problems("# comment", "", "lxc.uts.name = c1", "lxc.cap.drop = kill", "other text") == ()


def test_a_problem_has_its_place_key_reason_and_suggestion() -> None:
    problem = one("", "  lxc.tty.max =  many")
    assert problem.as_json() == {
        "severity": ERROR,
        "message": "cannot set lxc.tty.max = many: not a whole number",
        "file": "config",
        "line": 2,
        "column": 18,
        "end": 22,
        "key": "lxc.tty.max",
        "suggestion": None,
    }
    assert problem.text == "  lxc.tty.max =  many"
    assert json.loads(json.dumps(problem.as_json()))["line"] == 2


@pytest.mark.parametrize(
    ("line", "word", "suggestion"),
    [
        ("lxc.uts.nmae = c1", "lxc.uts.nmae", "the nearest known key is lxc.uts.name"),
        ("lxc.start.auto = yes", "yes", "it takes 0, 1"),
        ("lxc.signal.halt = PWR", "PWR", "did you mean SIGPWR?"),
        ("lxc.signal.halt = sigtrem", "sigtrem", "did you mean SIGTERM?"),
        ("lxc.arch = x86-64", "x86-64", "did you mean x86_64?"),
        ("lxc.log.level = debgu", "debgu", "did you mean DEBUG?"),
        ("lxc.log.syslog = local9", "local9", "did you mean local7?"),
        ("lxc.mount.auto = proc:mixd", "proc:mixd", "did you mean proc:mixed?"),
        ("lxc.namespace.share.nett = /x", "/x", None),
        ("lxc.net.0.type = veht", "veht", "did you mean veth?"),
        ("lxc.hook.version = 2", "2", "it takes 0, 1"),
        ("lxc.novalue", "lxc.novalue", None),
        ("lxc.uts.name = a\tb\t", "", None),
    ],
)
def test_suggestions(line: str, word: str, suggestion: str | None) -> None:
    found = problems(line)
    if not word:
        assert found == ()
        return
    (problem,) = found
    assert problem.text[problem.column - 1 : problem.end - 1] == word
    assert problem.suggestion == suggestion


def test_every_word_of_a_list_is_judged() -> None:
    found = problems("lxc.cap.drop = kill Bogus mknodd cap_kill")
    assert [(p.text[p.column - 1 : p.end - 1], p.suggestion) for p in found] == [
        ("Bogus", None),
        ("mknodd", "did you mean mknod?"),
        ("cap_kill", "did you mean kill?"),
    ]


def test_a_list_that_another_key_forbids_is_one_problem() -> None:
    problem = one("lxc.cap.drop = kill", "lxc.cap.keep = chown mknod")
    assert problem.line == 2
    assert "mutually exclusive" in problem.message


def test_all_at_once_and_in_order() -> None:
    found = problems("lxc.tty.max = x", "lxc.utsname = c1", "lxc.nope.x = 1", "lxc.pty.max = y")
    assert [(p.line, p.severity) for p in found] == [
        (1, ERROR),
        (2, WARNING),
        (3, ERROR),
        (4, ERROR),
    ]


def test_so_many_problems_end_with_the_last_that_is_told() -> None:
    assert len(problems(*["lxc.tty.max = x"] * (PROBLEM_LIMIT + 50))) == PROBLEM_LIMIT + 1


@pytest.mark.parametrize(
    ("line", "message", "suggestion"),
    [
        ("lxc.utsname = c1", "lxc.utsname is the old name of lxc.uts.name", "write lxc.uts.name"),
        ("lxc.kmsg = 1", "lxc.kmsg is an old key without effect", "remove the line"),
        ("lcx.uts.name = c1", "this line is ignored: it does not begin with `lxc.`", "did you mean lxc.uts.name?"),
        ("foo = bar", "this line is ignored: it does not begin with `lxc.`", "put # before it if it is meant so"),
        ("lxc.uts.name = c1 # web", "the text after # belongs to the value: a comment needs a line of its own", "write lxc.uts.name = c1"),
    ],
)  # fmt: skip
def test_warnings(line: str, message: str, suggestion: str) -> None:
    problem = one(line)
    assert (problem.severity, problem.message, problem.suggestion) == (WARNING, message, suggestion)


@pytest.mark.parametrize(
    "line",
    ["lxc.hook.start = /x # y", "lxc.uts.name = 'a # b'", "lxc.environment = A=b # c", "lxc.uts.name = a#b"],
)  # fmt: skip
def test_a_hash_that_is_meant(line: str) -> None:
    assert problems(line) == ()


def test_overridden_values() -> None:
    problem = one("lxc.tty.max = 1", "lxc.tty.max = 2")
    assert (problem.line, problem.message) == (
        1,
        "this has no effect: line 2 sets lxc.tty.max again",
    )


@pytest.mark.parametrize(
    "lines",
    [
        ["lxc.tty.max = 1", "lxc.tty.max =", "lxc.tty.max = 2"],
        ["lxc.mount.entry = a b", "lxc.mount.entry = a b"],
        ["lxc.cgroup2.devices.allow = c 1:1 r", "lxc.cgroup2.devices.allow = c 1:2 r"],
        ["lxc.net.0.type = veth", "lxc.net.0.link = a", "lxc.net.0.type = veth", "lxc.net.0.link = b"],
        ["lxc.hook.version = 1", "lxc.hook =", "lxc.hook.version = 0"],
        ["lxc.tty.max = 1", "lxc.tty.max = 1"],
    ],
)  # fmt: skip
def test_what_does_not_override(lines: list[str]) -> None:
    assert problems(*lines) == ()


def test_places_in_included_files(tmp_path) -> None:
    (tmp_path / "inner").write_text("\n\tlxc.tty.max = x\nlcx.a = 1\nlxc.pty.max = 1\n")
    (tmp_path / "outer").write_text(f"lxc.include = {tmp_path}/inner\nlxc.tty.max = 3\n")
    found = check.in_order(check.read(f"{tmp_path}/outer").problems)
    assert [(p.file.rpartition("/")[2], p.line, p.column, p.severity) for p in found] == [
        ("inner", 2, 16, ERROR),
        ("inner", 3, 1, WARNING),
    ]


def test_only_so_many_strangers_are_told() -> None:
    assert len(problems(*[f"a{n} = b" for n in range(1000)])) == check.STRANGERS_SHOWN


@settings(deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(
    ["lxc.cap.drop = kill x", "lxc.net.0.type = veth", "lxc.net.0.veth.pair = \x0b", "lxc.utsname=a # b", "x=", " = ", "lxc.arch=",
     "lxc.signal.halt=\t'PWR'", "lxc.sysctl=1", "lxc.tty.max = \udcff", "lxc.tty.max=1", "lxc.tty.max=2", "\r"])).map("\n".join))  # fmt: skip
def test_any_text_has_problems_with_places(text: str) -> None:
    reading = check.parse(text, "f")
    for problem in check.in_order(reading.problems):
        lines = reading.sources.lines("f")
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= problem.end <= len(problem.text) + 1
        json.dumps(problem.as_json())
