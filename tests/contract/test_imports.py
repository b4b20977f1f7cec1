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
# What `os` alone brings into a bare interpreter, and the C modules that everything needs.
BARE = {
    "__future__", "_collections_abc", "_socket", "_stat", "_struct", "errno", "gc", "genericpath", "os", "os.path",
    "posixpath", "select", "stat", "struct",
}  # fmt: skip
# All that a cold `lxc-info` loads.
INFO = {
    "atoll", "atoll.__main__", "atoll.cli", "atoll.cli.inspect", "atoll.cli.options", "atoll.errors", "atoll.lifecycle",
    "atoll.lifecycle.client", "atoll.lifecycle.commands", "atoll.log", "atoll.records",
}  # fmt: skip
# All that a cold `atoll run` loads besides, until it is done: as root, without hooks, id map, links, limits and terminal.
RUN = {
    "_ctypes", "fcntl",
    "atoll", "atoll.__main__", "atoll.api", "atoll.cli", "atoll.cli.manage", "atoll.cli.options",
    "atoll.config", "atoll.config.keys", "atoll.config.owners", "atoll.config.system", "atoll.config.text",
    "atoll.errors", "atoll.executor", "atoll.host",
    "atoll.lifecycle", "atoll.lifecycle.commands", "atoll.lifecycle.init", "atoll.lifecycle.monitor",
    "atoll.lifecycle.saved", "atoll.lifecycle.sequence", "atoll.lifecycle.server", "atoll.lifecycle.spawn",
    "atoll.lifecycle.states",
    "atoll.linux", "atoll.linux.files", "atoll.linux.libc", "atoll.linux.mount", "atoll.linux.netdevice",
    "atoll.linux.proc", "atoll.linux.process",
    "atoll.log", "atoll.loop", "atoll.plan", "atoll.records",
    "atoll.resources", "atoll.resources.cgroup", "atoll.resources.cgroup.driver", "atoll.resources.cgroup.steps",
    "atoll.resources.credentials", "atoll.resources.mounts", "atoll.resources.namespaces", "atoll.resources.network",
    "atoll.resources.rootfs", "atoll.resources.storage", "atoll.resources.storage.dirs", "atoll.resources.terminal",
}  # fmt: skip
# The cgroup drivers, as the machine has them.
DRIVERS = {"atoll.resources.cgroup.legacy", "atoll.resources.cgroup.unified"}
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


def test_a_cold_lxc_info_loads_this_and_no_more() -> None:
    """Of a container that does not exist: the tool's whole life but for the socket's answer."""
    code = "import atoll.__main__ as m\ntry: m.main(['lxc-info', '-n', 'none', '-P', '/nonexistent'])\n"
    code += "except SystemExit: pass"
    loaded = loaded_by(
        f"import io; sys.stderr = sys.stdout = io.StringIO()\n{code}\nsys.stdout = sys.__stdout__"
    )
    assert loaded - BARE - {"io"} == INFO


def test_planning_a_run_loads_this_and_no_more() -> None:
    """Everything but what happens between the clone and the end: tests/privileged looks at a whole run."""
    loaded = loaded_by(
        "import atoll.__main__",
        "from atoll import api, host",
        "from atoll.cli import manage",
        "here = host.probe().replace(uid=0, capabilities=(1 << 41) - 1)",
        "config = api.run_config(here, name='x')",
        "container = api.Container('x', config=config, host=here, lxcpath='/nonexistent', made_up=True)",
        "container.plan(container.wish(('true',), init_loop=True, console=False, stdio=(0, 1, 2)))",
    )
    assert loaded - BARE == RUN


def test_the_launcher_is_bare(atoll_command: list[str]) -> None:
    if len(atoll_command) > 1:
        return  # coverage, or no .venv
    with open(atoll_command[0], encoding="utf-8") as launcher:
        first = launcher.readline().split()
    assert first[1:] == ["-IS"]
    assert os.path.realpath(first[0][2:]) == os.path.realpath(sys.executable)
