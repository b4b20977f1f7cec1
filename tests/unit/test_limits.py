"""lxc.prlimit, sysctl, proc, arch, sched.core: values as LXC 5.0.2 gives them back, and the steps planned from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import host
from atoll.config.text import Config
from atoll.errors import ConfigError
from atoll.linux import process
from atoll.plan import Start
from atoll.resources import limits

HOST = host.probe()
START = Start(
    name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",),
    clone_namespaces=process.CLONE_NEWPID,
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    # Observed with lxc-info -c of 5.0.2.
    [("1024", "1024"), ("100:100", "100"), ("0:unlimited", "0:unlimited"), ("010", "10"), ("5 : 6", "5:6"),
     ("unlimited:5", "unlimited:5"), ("5:", "5"), (":5", "0:5"), ("-1", "unlimited"), ("+5", "5")],
)  # fmt: skip
def test_limit_is_given_back_as_lxc_does(value: str, shown: str) -> None:
    config = Config.parse(f"lxc.prlimit.nofile = {value}\n")
    assert config.get("lxc.prlimit.nofile") == shown


@pytest.mark.parametrize("value", ["5x", "unlimitedx", "0x10", "99999999999999999999999", "²"])
def test_limit_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="not a resource limit"):
        Config.parse(f"lxc.prlimit.nofile = {value}\n")


bounds = st.one_of(st.just(-1), st.integers(0, (1 << 64) - 2))


@given(bounds, bounds)
def test_limit_round_trip(soft: int, hard: int) -> None:
    limit = limits.Limit(soft=soft, hard=hard)
    assert limits.parse_limit(str(limit)) == limit


@given(st.text())
def test_limit_parser_fails_only_with_value_error(value: str) -> None:
    try:
        limits.parse_limit(value)
    except ValueError as error:
        assert "not a resource limit" in str(error)  # noqa: PT017 - either end is right


def test_a_limit_set_again_replaces() -> None:
    config = Config.parse(
        "lxc.prlimit.nofile = 5\nlxc.prlimit.core = 1\nlxc.prlimit.nofile = 6:7\n"
    )
    steps = limits.resource_limits(config, HOST, START)
    assert [step.explain() for step in steps] == [
        "limit nofile of init to 6:7",
        "limit core of init to 1",
    ]
    assert steps[0].origin is not None
    assert steps[0].origin.line == 3


def test_resource_by_number() -> None:
    (step,) = limits.resource_limits(Config.parse("lxc.prlimit.7 = 5\n"), HOST, START)
    assert isinstance(step, limits.SetResourceLimit)
    assert (step.number, step.soft, step.hard) == (7, 5, 5)


@pytest.mark.parametrize("name", ["bogus", "16", "NOFILE"])
def test_unknown_resource(name: str) -> None:
    config = Config.parse(f"lxc.prlimit.{name} = 1\n")
    with pytest.raises(ConfigError, match=f"^unknown resource {name}$") as caught:
        limits.resource_limits(config, HOST, START)
    assert caught.value.origin is not None
    assert caught.value.origin.line == 1


def test_proc_files_and_sysctls() -> None:
    config = Config.parse("lxc.proc.oom_score_adj = 10\nlxc.sysctl.net.ipv4.ip_forward = 1\n")
    planned = [*limits.proc_files(config, HOST, START), *limits.sysctls(config, HOST, START)]
    assert [step.explain() for step in planned] == [
        "write 10 to /proc/PID/oom_score_adj of init",
        "set sysctl net.ipv4.ip_forward = 1",
    ]


@pytest.mark.parametrize(
    ("name", "persona", "shown"),
    [("i386", 8, "i686"), ("x86", 8, "i686"), ("amd64", 0, "x86_64"), ("aarch64", 0, "x86_64")],
)
def test_personality(name: str, persona: int, shown: str) -> None:
    config = Config.parse(f"lxc.arch = {name}\n")
    assert config.get("lxc.arch") == shown
    (step,) = limits.personality(config, HOST, START)
    assert isinstance(step, limits.SetPersonality)
    assert step.persona == persona


def test_personality_unset() -> None:
    assert Config.empty().get("lxc.arch") == ""
    assert limits.personality(Config.empty(), HOST, START) == ()


@pytest.mark.parametrize("value", ["vax", "I386", ""])
def test_personality_refused(value: str) -> None:
    with pytest.raises(ConfigError):
        Config.parse(f"lxc.arch = {value}\n")


def test_core_scheduling_needs_a_pid_namespace() -> None:
    config = Config.parse("lxc.sched.core = 1\n")
    assert len(limits.core_scheduling(config, HOST, START)) == 1
    with pytest.raises(ConfigError, match="no pid namespace of its own"):
        limits.core_scheduling(config, HOST, START.replace(clone_namespaces=0))


@pytest.mark.parametrize(
    ("value", "bound", "above"),
    [(5, 4, True), (5, 5, False), (-1, 5, True), (5, -1, False), (-1, -1, False)],
)
def test_exceeds(value: int, bound: int, above: bool) -> None:
    assert limits._exceeds(value, bound) is above
