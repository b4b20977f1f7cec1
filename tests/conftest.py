"""Rules of the whole suite: the isolation, abilities, equal hosts before and after, honest skips.

As root, `pytest` starts itself again inside the isolation (tests/isolation); `--no-isolation` keeps it out,
and then no privileged test runs.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

import abilities
import snapshot
from isolation import inside, run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRIVILEGED = ("privileged", "fault", "conformance")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("atoll")
    group.addoption(
        "--no-isolation", action="store_true", help="run here; privileged tests are skipped"
    )
    group.addoption(
        "--cgroup", default="auto", help="cgroup layout of the isolation: auto hybrid v1 v2 host"
    )
    group.addoption(
        "--allow-skips", action="store_true", help="a skip without a justified reason is no failure"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Exec ourselves in the isolation: the capture of output has not begun to hold anything yet."""
    keep = config.getoption("--no-isolation") or config.option.collectonly or config.option.help
    if os.geteuid() == 0 and inside() is None and not keep:
        command = [sys.executable, "-m", "pytest", *config.invocation_params.args]
        layout = f"--cgroup={config.getoption('--cgroup')}"
        sys.stdout.flush()
        os.execv(
            sys.executable,
            [sys.executable, f"{REPOSITORY}/tests/isolation", layout, "--", *command],
        )


def pytest_report_header() -> str:
    marker = inside()
    if marker is None:
        return f"isolation: none, uid {os.geteuid()}"
    return f"isolation: cgroups {marker.layout}, private network {marker.network}, private /tmp {marker.tmp}"


# ------------------------------------------------------------------------------ marks and abilities


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parts = os.path.relpath(str(item.path), f"{REPOSITORY}/tests").split(os.sep)
        if parts[0] in PRIVILEGED:
            item.add_marker(pytest.mark.privileged)
        if item.get_closest_marker("privileged"):
            item.add_marker(pytest.mark.needs("root", "isolation"))


def _needed(item: pytest.Item) -> tuple[str, ...]:
    # Nearest last: root and isolation were added last, and must be asked first.
    found = [name for mark in item.iter_markers("needs") for name in mark.args]
    return tuple(sorted(dict.fromkeys(found), key=lambda name: name not in ("root", "isolation")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = abilities.skip_reason(_needed(item))
    if reason is not None:
        pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `isolated` in namespaces of its own, its fixtures made outside."""
    mark = pyfuncitem.get_closest_marker("isolated")
    if mark is None:
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    def body() -> None:
        pyfuncitem.obj(**arguments)

    try:
        run_isolated(body, **mark.kwargs)
    except AssertionError as error:
        pytest.fail(f"in its own isolation:\n{error}", pytrace=False)
    return True


# ------------------------------------------------------------------------------------ honest skips


def _refuse_skip(config: pytest.Config, report: Any) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or config.getoption("--allow-skips"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not abilities.is_justified(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, but this machine does not justify the reason: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    del call
    report = yield
    _refuse_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(collector.config, report)
    return report


# ---------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session", autouse=True)
def run_directory() -> None:
    """The run directory stays where a start has once made it: it is no change that a test makes."""
    if os.geteuid() == 0 and inside() is not None:
        os.makedirs("/run/atoll/journal", mode=0o700, exist_ok=True)
        os.makedirs("/run/atoll/rootfs", mode=0o755, exist_ok=True)


@pytest.fixture(autouse=True)
def host_unchanged(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """A privileged test leaves the host exactly as it found it. There is no way to opt out."""
    if not request.node.get_closest_marker("privileged"):
        yield
        return
    before = snapshot.HostSnapshot.take()
    yield
    differences = snapshot.settled(before)
    if differences:
        pytest.fail("the test left the host changed:\n  " + "\n  ".join(differences), pytrace=False)


@pytest.fixture
def isolated() -> Callable[..., Any]:
    """`run_isolated(function or argv, cgroup=False, network=True, timeout=60)`."""
    return run_isolated


@pytest.fixture(scope="session")
def atoll_command() -> list[str]:
    """The words that start the tool: the launcher, or `python -m` where coverage must see it."""
    launcher = f"{REPOSITORY}/.venv/bin/atoll"
    if "COVERAGE_PROCESS_CONFIG" in os.environ or not os.access(launcher, os.X_OK):
        return [sys.executable, "-m", "atoll"]
    return [launcher]


@pytest.fixture(scope="session")
def repository() -> str:
    return REPOSITORY
