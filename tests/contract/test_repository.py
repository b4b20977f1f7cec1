"""Habits that a reader relies on: every module introduces itself, names say something, functions stay short."""

from __future__ import annotations

import ast
import os
import re
import statistics

import pytest

from contract import sources

EMPTY_WORDS = {"utils", "util", "helpers", "helper", "manager", "common", "misc", "base", "core"}
LONG = 35  # "nearly all in 35"
TOO_LONG = 100  # seccomp's parser is one straight story; nothing is longer than this
MOST = 10  # "most functions fit in 10 lines": the median
MODULES = pytest.mark.parametrize("module", sources.modules(), ids=lambda module: module.name)


@MODULES
def test_a_module_says_what_it_is(module: sources.Module) -> None:
    assert module.text.strip() == "" or ast.get_docstring(module.tree), (
        f"{module.path}: no docstring"
    )


@MODULES
def test_names_say_something(module: sources.Module) -> None:
    assert set(re.split(r"[._]", module.name)) & EMPTY_WORDS == set()


def functions() -> list[tuple[str, int]]:
    """(where, lines of code without docstring, comments and blank lines), of every function."""
    found = []
    for module in sources.modules():
        lines = module.text.splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if not body:
                    continue
                text = lines[body[0].lineno - 1 : body[-1].end_lineno]
                code = [line for line in text if line.strip() and not line.strip().startswith("#")]
                found.append((f"{module.name}.{node.name}:{node.lineno}", len(code)))
    return found


def test_functions_are_short() -> None:
    lengths = [length for _where, length in functions()]
    if len(lengths) < 20:
        return
    assert [f"{where} {length}" for where, length in functions() if length > TOO_LONG] == []
    assert statistics.median(lengths) <= MOST
    long = sorted(f"{length} {where}" for where, length in functions() if length > LONG)
    assert len(long) <= len(lengths) * 0.05, f"more than 5 % are longer than {LONG} lines: {long}"


def test_make_explains_its_targets() -> None:
    with open(f"{sources.REPOSITORY}/Makefile", encoding="utf-8") as file:
        text = file.read()
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)(.*)$", text, re.MULTILINE)
    assert [name for name, rest in targets if "## " not in rest] == []
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]  # it is there
    assert phony == {name for name, _rest in targets}


def test_ci_calls_make_test_and_nothing_else() -> None:
    with open(f"{sources.REPOSITORY}/.ci/run", encoding="utf-8") as file:
        assert file.read().splitlines()[1:] == [
            "set -eu",
            'cd "$(dirname "$0")/.."',
            "exec make test",
        ]
    assert os.access(f"{sources.REPOSITORY}/.ci/run", os.X_OK)


def test_exceptions_of_lint_and_types_have_a_reason() -> None:
    pattern = re.compile(
        r"#\s*(noqa(:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*)?|type: ignore(\[[^]]*\])?)(.*)$"
    )
    wrong = []
    for module in sources.modules():
        for number, line in enumerate(module.text.splitlines(), 1):
            match = pattern.search(line)
            if match and not (match[2] or match[4]):
                wrong.append(f"{module.path}:{number} names no code")
            elif match and not re.search(r"\w{2,}", match[5]):
                wrong.append(f"{module.path}:{number} gives no reason")
    assert wrong == []
