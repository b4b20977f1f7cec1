"""Fixtures of the conformance tests: each test once with Debian's tools, then with ours."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import abilities
from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Generator


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "maker" in metafunc.fixturenames:
        metafunc.parametrize("maker", tools.makers(), scope="module")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory that everybody may enter: containers whose root is another user must reach their rootfs."""
    path = tmp_path_factory.mktemp("lxc")
    for directory in (path, path.parent, path.parent.parent):
        os.chmod(directory, 0o755)
    return str(path)


@pytest.fixture(scope="session")
def rootfs(base: str) -> str:
    return tools.make_rootfs(f"{base}/rootfs")


@pytest.fixture(scope="module")
def lxcpath(base: str, request: pytest.FixtureRequest) -> str:
    """A directory of containers for the module."""
    path = f"{base}/{request.module.__name__.rpartition('.')[2].removeprefix('test_')}"
    os.makedirs(path, mode=0o755, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def maker_tools(maker: str, lxcpath: str) -> tools.Tools:
    """The maker's tools on a directory of its own; skips where Debian's are not installed."""
    if maker == tools.DEBIAN and (reason := abilities.skip_reason(("lxc",))):
        pytest.skip(reason)
    path = f"{lxcpath}/{maker}"
    os.makedirs(path, exist_ok=True)
    return tools.Tools(maker, path, tools.launcher())


@pytest.fixture(scope="session", autouse=True)
def pivots() -> Generator[None, None, None]:
    """Debian's monitors end in a cgroup lxc.pivot that they never remove, and make when nobody looks: make it first."""
    made = [f"{top}/lxc.pivot" for top in tools.hierarchies()]
    for directory in made:
        with contextlib.suppress(OSError):
            os.mkdir(directory)
    yield
    for directory in made:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


@pytest.fixture(autouse=True)
def tidy() -> Generator[None, None, None]:
    """Remove what Debian's tools leave on a host: lock files, and cgroups of monitors whose container has ended."""
    before = tools.leftovers()
    yield
    tools.reap()
    tools.remove_leftovers(before)


@pytest.fixture(scope="module")
def bridge() -> Generator[str, None, None]:
    """lxcbr0, without addresses of its own making."""
    for words in (
        "link add lxcbr0 address 02:00:00:00:00:01 type bridge",
        "link set lxcbr0 addrgenmode none up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    yield "lxcbr0"
    subprocess.run(["ip", "link", "delete", "lxcbr0"], check=True)
