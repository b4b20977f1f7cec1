"""The import budget: what a cold start may not load (docs/design.md, speed).

A list of modules, not milliseconds: a list does not depend on the machine's mood.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from contract import sources

# What each costs at start is in the design; `enum` and `re` lie under most of them.
FORBIDDEN = {
    "argparse", "ast", "asyncio", "dataclasses", "enum", "inspect", "json",
    "locale", "logging", "multiprocessing", "pathlib", "pickle", "re", "selectors", "shutil",
    "signal", "socket", "subprocess", "tempfile", "threading", "traceback",
    "typing", "warnings", "weakref",
}  # fmt: skip
# The layers that a monitor, `atoll run`, `lxc-start` and `lxc-info` load.
START = [
    "atoll", "atoll.__main__", "atoll.records", "atoll.errors", "atoll.log", "atoll.plan", "atoll.executor",
    "atoll.host", "atoll.linux.*", "atoll.config.*", "atoll.resources.*", "atoll.lifecycle.*",
    "atoll.cli.options", "atoll.cli.inspect", "atoll.cli.manage", "atoll.cli.enter",
]  # fmt: skip
# Loaded only when asked for, by a function: their own imports are their own affair.
APART = {"atoll.lifecycle.checkpoint"}


def existing(pattern: str) -> list[str]:
    names = [module.name for module in sources.modules()]
    if pattern.endswith(".*"):
        return [n for n in names if n.startswith(pattern[:-1]) and n not in APART]
    return [n for n in names if n == pattern]


COLD = [name for pattern in START for name in existing(pattern)]


def loaded_by(*statements: str) -> set[str]:
    """The modules that a bare interpreter loads for these statements, beyond what it always has."""
    code = "\n".join(
        [f"import sys; sys.path[:0] = [{sources.SRC!r}]", "had = set(sys.modules)"]
        + list(statements)
        + ["print(*sorted(set(sys.modules) - had))"]
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", COLD)
def test_a_cold_module_loads_nothing_dear(name: str) -> None:
    assert loaded_by(f"import {name}") & FORBIDDEN == set()


def test_the_package_itself_loads_nothing() -> None:
    assert {n for n in loaded_by("import atoll") if n.startswith("atoll.")} == set()


def test_info_loads_no_start_path() -> None:
    """`lxc-info` of a container that does not exist: the tool's whole life but for the socket's answer."""
    if not existing("atoll.cli.inspect"):
        return
    code = "import atoll.__main__ as m\ntry: m.main(['lxc-info', '-n', 'none', '-P', '/nonexistent'])\n"
    code += "except SystemExit: pass"
    loaded = loaded_by(
        f"import io; sys.stderr = sys.stdout = io.StringIO()\n{code}\nsys.stdout = sys.__stdout__"
    )
    assert loaded & FORBIDDEN == set()
    assert [n for n in loaded if n.startswith(("atoll.resources.", "atoll.oci"))] == []


def test_the_launcher_is_bare(atoll_command: list[str]) -> None:
    if len(atoll_command) > 1:
        return  # coverage, or no .venv
    with open(atoll_command[0], encoding="utf-8") as launcher:
        first = launcher.readline().split()
    assert first[1:] == ["-IS"]
    assert os.path.realpath(first[0][2:]) == os.path.realpath(sys.executable)
