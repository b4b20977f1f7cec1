"""Cgroups without a kernel: keys, names, which steps, which limits, tokens, processor lists."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.config.text import Config
from atoll.errors import AtollError, ConfigError, HostError
from atoll.host import Hierarchy, Host
from atoll.linux.proc import IdMapping
from atoll.linux.process import CAPABILITIES, CLONE_NEWCGROUP, CLONE_NEWNS
from atoll.plan import Handler, Start
from atoll.resources import cgroup
from atoll.resources.cgroup import legacy, mounting, steps

V1 = ("cpu,cpuacct", "cpuset", "memory", "freezer", "devices", "name=systemd")


def hierarchy(
    controllers: str, *, version: int = 1, base: str = "", own: str = "/own"
) -> Hierarchy:
    name = controllers.removeprefix("name=") if version == 1 else "unified"
    return Hierarchy(
        version=version, mount=f"/sys/fs/cgroup/{name}", controllers=tuple(controllers.split(",")) if controllers else (),
        base=base, own=own, writable=True,
    )  # fmt: skip


LEGACY = tuple(hierarchy(text) for text in V1)
V2 = hierarchy("cpu,memory,pids", version=2).replace(mount="/sys/fs/cgroup")
LAYOUTS = {
    "legacy": LEGACY,
    "hybrid": (*LEGACY, hierarchy("", version=2)),
    "unified": (V2,),
    "none": (),
}


def host(layout: str = "hybrid", **changes: Any) -> Host:
    values: dict[str, Any] = {
        "machine": "x86_64", "release": "6.1", "uid": 0, "gid": 0, "user": "root", "home": "/root", "capabilities": (1 << 41) - 1,
        "last_capability": 40, "namespaces": frozenset(), "in_user_namespace": False, "hierarchies": LAYOUTS[layout],
        "newuidmap": None, "newgidmap": None, "subuids": (), "subgids": (), "proc_masked": False, "sys_masked": False,
        "lsm": "none", "seccomp": True, "run_directory": "/run/atoll", "lxcpath": "/var/lib/lxc", "rootfs_mount": "/r",
        "root_on_ramfs": False,
    }  # fmt: skip
    return Host(**{**values, **changes})


def start(**changes: Any) -> Start:
    values: dict[str, Any] = {
        "name": "c1",
        "lxcpath": "/l",
        "start_id": "abcdefgh",
        "began": 1.0,
        "argv": ("x",),
    }
    return Start(**{**values, **changes})


def config(*lines: str) -> Config:
    return Config.parse("".join(f"{line}\n" for line in lines), file="config")


def explained(planned: tuple[Any, ...]) -> list[str]:
    return [step.explain() for step in planned]


# ------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lxc.cgroup.dir = /a", "paths may not be absolute"),
        ("lxc.cgroup.dir = a/../b", 'paths may not walk upwards via "../"'),
        ("lxc.cgroup.dir.monitor = ..", 'paths may not walk upwards via "../"'),
        ("lxc.cgroup.dir.container.inner = a/b", "must be a single directory name"),
        ("lxc.cgroup.dir.container.inner = ..", "must be a single directory name"),
        ("lxc.cgroup.relative = 2", "neither 0 nor 1"),
    ],
)
def test_refused_values(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        config(line)


def test_fixed_keys_win_over_the_prefix() -> None:
    made = config("lxc.cgroup.dir = a//b/", "lxc.cgroup.relative = 1", "lxc.cgroup.cpu.shares = 7")
    section = made[cgroup.Cgroup]
    assert (section.directory, section.relative) == ("a/b", True)
    assert section.legacy == (("cpu.shares", "7"),)


def test_a_file_may_be_written_more_than_once() -> None:
    made = config("lxc.cgroup.devices.allow = c 1:3 rwm", "lxc.cgroup.devices.allow = c 1:5 rwm")
    assert made.get("lxc.cgroup.devices.allow") == "c 1:3 rwm\nc 1:5 rwm\n"


# ------------------------------------------------------------------------------------------ names
def paths(*lines: str, **changes: Any) -> dict[str, str]:
    system = changes.pop("system", cgroup.CgroupSystem())
    planned = cgroup.prepare(config(*lines), host(), start(**changes), system=system)
    return {type(s).__name__: s.path for s in planned if hasattr(s, "path")}


@pytest.mark.parametrize(
    ("lines", "monitor", "payload"),
    [
        ((), "lxc.monitor.c1-2", "lxc.payload.c1-2"),
        (("lxc.cgroup.dir = d/e",), "d/e/lxc.monitor.c1-2", "d/e/lxc.payload.c1-2"),
        (("lxc.cgroup.dir.monitor = m", "lxc.cgroup.dir.container = p/q"), "m", "p/q"),
    ],
)
def test_names(lines: tuple[str, ...], monitor: str, payload: str) -> None:
    found = paths(*lines, cgroup_suffix="-2")
    assert (found["CreateMonitorCgroup"], found["CreatePayloadCgroup"]) == (monitor, payload)


def test_pattern_of_the_system_configuration() -> None:
    system = cgroup.CgroupSystem.parse(None, "/all/%n/")
    found = paths(system=system)
    assert (found["CreateMonitorCgroup"], found["CreatePayloadCgroup"]) == (
        "all/c1/monitor",
        "all/c1/payload",
    )


def test_no_monitor_cgroup_for_the_caller_of_a_library() -> None:
    assert list(paths(monitor_cgroup=False)) == ["CreatePayloadCgroup"]


@pytest.mark.parametrize("line", ["lxc.cgroup.dir.monitor = m", "lxc.cgroup.dir.container = p"])
def test_explicit_directories_come_in_pairs(line: str) -> None:
    with pytest.raises(ConfigError, match="must both be set") as caught:
        paths(line)
    assert caught.value.origin is not None


def test_explicit_directories_exclude_dir() -> None:
    with pytest.raises(ConfigError, match="cannot be set together"):
        paths("lxc.cgroup.dir = d", "lxc.cgroup.dir.monitor = m", "lxc.cgroup.dir.container = p")


def test_relative_uses_the_own_cgroup_as_base() -> None:
    planned = cgroup.prepare(config("lxc.cgroup.relative = 1"), host(), start())
    inverse: Any = planned[-1].inverse()
    assert {base for _version, base in inverse.bases} == {
        f"{h.mount}/own" for h in LAYOUTS["hybrid"]
    }


def test_use_leaves_other_v1_hierarchies_alone() -> None:
    system = cgroup.CgroupSystem.parse("memory, cpu,cpuacct,systemd", None)
    planned: Any = cgroup.prepare(
        config(), host("legacy"), start(monitor_cgroup=False), system=system
    )
    assert [h.controllers for h in planned[0].hierarchies] == [
        ("cpu", "cpuacct"),
        ("memory",),
        ("name=systemd",),
    ]


def test_use_of_what_is_not_there() -> None:
    with pytest.raises(HostError, match="rdma"):
        cgroup.prepare(
            config(), host(), start(), system=cgroup.CgroupSystem(use=("memory", "rdma"))
        )


def test_free_suffix(tmp_path) -> None:
    here = (
        Hierarchy(version=2, mount=str(tmp_path), controllers=(), base="", own="", writable=True),
    )
    other = host(hierarchies=here)
    assert cgroup.free_suffix(config(), other, "c1") == ""
    (tmp_path / "lxc.payload.c1").mkdir()
    (tmp_path / "lxc.monitor.c1-1").mkdir()
    assert cgroup.free_suffix(config(), other, "c1") == "-2"
    assert cgroup.free_suffix(config(), other, "c1", monitor=False) == "-1"
    explicit = config("lxc.cgroup.dir.monitor = m", "lxc.cgroup.dir.container = lxc.payload.c1")
    assert cgroup.free_suffix(explicit, other, "c1") == ""


# ------------------------------------------------------------------------------------------ plans
def test_hybrid_plan() -> None:
    lines = (
        "lxc.cgroup.devices.deny = a",
        "lxc.cgroup.memory.memsw.limit_in_bytes = 2M",
        "lxc.cgroup.memory.limit_in_bytes = 1M",
    )
    wish, here, this = config(*lines), host(), start(id_map=(IdMapping(kind="u", inside=0, outside=100000, count=65536),), root_uid=100000, root_gid=100000)  # fmt: skip
    assert explained(cgroup.prepare(wish, here, this)) == [
        "create the monitor's cgroup lxc.monitor.c1 in 7 hierarchies",
        "move the monitor into cgroup lxc.monitor.c1 in 7 hierarchies",
        "create the container's cgroup lxc.payload.c1 in 7 hierarchies",
        "set memory.limit_in_bytes to 1M in the container's cgroup",
        "set memory.memsw.limit_in_bytes to 2M in the container's cgroup",
    ]
    assert explained(cgroup.join(wish, here, this)) == ["enter the container's cgroups"]
    assert explained(cgroup.enter(wish, here, this)) == [
        "give the container's cgroups to its root (uid 100000, gid 100000)",
    ]
    assert explained(cgroup.finish(wish, here, this)) == [
        "set devices.deny to a in the container's cgroup"
    ]


def test_unified_plan() -> None:
    wish = config(
        "lxc.cgroup2.memory.max = 1M",
        "lxc.cgroup2.cgroup.max.depth = 7",
        "lxc.cgroup2.devices.deny = a",
    )
    here = host("unified")
    assert explained(cgroup.prepare(wish, here, start(monitor_cgroup=False))) == [
        "hand the controllers cpu memory pids down from /sys/fs/cgroup",
        "create the container's cgroup lxc.payload.c1",
    ]
    assert explained(cgroup.join(wish, here, start())) == ["enter the container's cgroups"]
    entered = cgroup.enter(wish, here, start())
    assert explained(entered) == [
        "set memory.max to 1M in the container's cgroup2",
        "set cgroup.max.depth to 7 in the container's cgroup2",
        "ignore lxc.cgroup2.devices.deny: device rules of cgroup2 are not applied yet",
    ]
    assert [step.origin.line for step in entered if step.origin] == [1, 2, 3]


def test_legacy_has_nothing_of_cgroup2() -> None:
    assert cgroup.enter(config(), host("legacy"), start()) == ()


def test_shared_mount_namespace_is_entered_from_outside() -> None:
    this = start(shared_namespaces=CLONE_NEWNS)
    assert cgroup.join(config(), host(), this) == ()
    assert explained(cgroup.enter(config(), host(), this)) == [
        "put init into the container's cgroups"
    ]


def test_without_a_writable_hierarchy() -> None:
    bound = host(hierarchies=tuple(h.replace(writable=False) for h in LEGACY))
    for here in (host("none"), bound):
        assert explained(cgroup.prepare(config(), here, start())) == [
            "run without cgroups: no hierarchy is writable"
        ]
        assert cgroup.join(config(), here, start()) == cgroup.enter(config(), here, start()) == ()
        with pytest.raises(
            HostError, match=r"cannot set lxc.cgroup2.memory.max = 1M: there is no"
        ) as caught:
            cgroup.prepare(config("lxc.cgroup2.memory.max = 1M"), here, start())
        assert caught.value.fix


@pytest.mark.parametrize(
    ("layout", "line", "message"),
    [
        ("legacy", "lxc.cgroup.nosuch.x = 1", "cannot set lxc.cgroup.nosuch.x = 1: no cgroup v1 hierarchy here has the controller nosuch"),
        ("unified", "lxc.cgroup2.io.max = 1", "cannot set lxc.cgroup2.io.max = 1: the controller io is not available in /sys/fs/cgroup"),
    ],
)  # fmt: skip
def test_missing_controller_is_an_error_before_anything_is_done(
    layout: str, line: str, message: str
) -> None:
    with pytest.raises(HostError) as caught:
        cgroup.prepare(config(line), host(layout), start())
        cgroup.enter(config(line), host(layout), start())
    assert caught.value.message == message
    assert getattr(caught.value, "origin").line == 1  # noqa: B009 - not every HostError has one
    assert "available are: cpu" in (caught.value.fix or "")


def test_pressure_files_need_no_controller() -> None:
    line = "lxc.cgroup2.io.pressure = some 150000 1000000"
    assert len(cgroup.enter(config(line), host("unified"), start())) == 1


def reports(layout: str, *lines: str) -> list[tuple[int, str]]:
    said: list[tuple[int, str]] = []
    handler = Handler(report=lambda level, text: said.append((level, text)))
    for step in cgroup.prepare(config(*lines), host(layout), start()):
        if isinstance(step, steps.SkipLimits):
            step.apply(handler)
    return said


def written(layout: str, *lines: str) -> list[str]:
    wish, here = config(*lines), host(layout)
    planned = (*cgroup.prepare(wish, here, start()), *cgroup.enter(wish, here, start()))
    return [
        f"{step.file} = {step.value} <- {step.origin.line}"
        for step in planned
        if isinstance(step, (steps.SetLimit, steps.SetLegacyLimit)) and step.origin
    ]


def test_limits_of_the_other_generation_are_translated() -> None:
    assert written("hybrid", "lxc.cgroup2.memory.max = 1M", "lxc.cgroup2.cpu.weight = 200") == [
        "memory.limit_in_bytes = 1M <- 1",
        "cpu.shares = 2048 <- 2",
    ]
    assert written(
        "unified", "lxc.cgroup.memory.limit_in_bytes = 1M", "lxc.cgroup.pids.max = 1"
    ) == [
        "memory.max = 1M <- 1",
        "pids.max = 1 <- 2",
    ]


def test_a_hybrid_cgroup2_takes_what_is_its_own() -> None:
    unified = hierarchy("hugetlb", version=2)
    here = host(hierarchies=(*LEGACY, unified))
    wish = config(
        "lxc.cgroup2.hugetlb.2MB.max = 2M",
        "lxc.cgroup.hugetlb.1GB.limit_in_bytes = -1",
        "lxc.cgroup2.cgroup.max.depth = 3",
    )
    planned = (*cgroup.prepare(wish, here, start()), *cgroup.enter(wish, here, start()))
    assert [step.explain() for step in planned][2:] == [
        "hand the controllers hugetlb down from /sys/fs/cgroup/unified",
        "create the container's cgroup lxc.payload.c1 in 7 hierarchies",
        "set hugetlb.2MB.max to 2M in the container's cgroup2",
        "set cgroup.max.depth to 3 in the container's cgroup2",
        "set hugetlb.1GB.max to max in the container's cgroup2",
    ]


def test_limits_without_an_equal_are_refused_with_the_reason() -> None:
    with pytest.raises(HostError) as caught:
        written("unified", "lxc.cgroup.memory.soft_limit_in_bytes = 1M")
    assert caught.value.message == (
        "cannot set lxc.cgroup.memory.soft_limit_in_bytes = 1M: cgroup2 has no soft limit: memory.low protects what is below it,"
        " memory.high slows down what is above it"
    )
    assert caught.value.fix == "set lxc.cgroup2.memory.low or lxc.cgroup2.memory.high"
    assert getattr(caught.value, "origin").line == 1  # noqa: B009 - not every HostError has one


def test_a_translation_whose_controller_is_missing_is_refused_in_the_users_words() -> None:
    with pytest.raises(
        HostError, match=r"cannot set lxc.cgroup.blkio.weight = 500: the controller io "
    ):
        written("unified", "lxc.cgroup.blkio.weight = 500")


def test_limits_given_for_both_generations_are_no_warning() -> None:
    assert reports("hybrid", "lxc.cgroup.devices.deny = a", "lxc.cgroup2.devices.deny = a") == [
        (
            2,
            "ignoring lxc.cgroup2.devices.deny (config:2): the other generation of the key says the same",
        )
    ]
    lines = ("lxc.cgroup2.memory.max = 1G", "lxc.cgroup.memory.limit_in_bytes = 1M")
    assert reports("unified", *lines) == [
        (
            2,
            "ignoring lxc.cgroup.memory.limit_in_bytes (config:2): lxc.cgroup2.memory.max = 1G is set",
        )
    ]
    assert written("unified", *lines) == ["memory.max = 1G <- 1"]


@pytest.mark.parametrize("layout", ["hybrid", "legacy"])
def test_debians_common_configuration_loads_no_table(layout: str) -> None:
    """It says everything twice."""
    import sys

    sys.modules.pop("atoll.resources.cgroup.translate", None)
    rules = ["devices.deny = a", *(f"devices.allow = c 1:{n} rwm" for n in (3, 5, 7))]
    said = reports(
        layout, *(f"{key}.{rule}" for key in ("lxc.cgroup", "lxc.cgroup2") for rule in rules)
    )
    assert [text for _level, text in said] == [
        "ignoring lxc.cgroup2.devices.deny and 3 more (config:5): the other generation of the key says the same"
    ]
    assert "atoll.resources.cgroup.translate" not in sys.modules


def test_inner_directory_keeps_the_limits_outside() -> None:
    wish = config(
        "lxc.cgroup.dir.monitor = m", "lxc.cgroup.dir.container = p", "lxc.cgroup.dir.container.inner = i",
        "lxc.cgroup.cpuset.cpus = 0", "lxc.cgroup.cpu.shares = 7",
    )  # fmt: skip
    planned = cgroup.prepare(wish, host("legacy"), start())
    found = {s.file: s.directories for s in planned if isinstance(s, steps.SetLegacyLimit)}
    assert found == {
        "cpuset.cpus": ("/sys/fs/cgroup/cpuset/p", "/sys/fs/cgroup/cpuset/p/i"),
        "cpu.shares": ("/sys/fs/cgroup/cpu,cpuacct/p",),
    }


def test_owner_is_the_caller_where_the_container_has_that_id() -> None:
    lines = (
        IdMapping(kind="u", inside=0, outside=100000, count=10),
        IdMapping(kind="u", inside=1000, outside=1000, count=1),
    )
    this = start(id_map=lines, root_uid=100000, root_gid=100000)
    for caller, owner in ((1000, 1000), (1001, 100000)):
        last: Any = cgroup.enter(config(), host(uid=caller), this)[-1]
        assert last.uid == owner


def test_inverses_are_primitive() -> None:
    for step in cgroup.prepare(config(), host("unified"), start()):
        inverse = step.inverse()
        if inverse is not None:
            values = inverse.as_dict()
            assert eval(repr(values), {}) == values


# ------------------------------------------------------------------------------------------ mounts
def mounted(
    layout: str, token: str | None, *, namespace: bool = True, admin: bool = True
) -> list[str]:
    kept = (1 << 41) - 1 - (0 if admin else 1 << CAPABILITIES.index("sys_admin"))
    this = start(later_namespaces=CLONE_NEWCGROUP if namespace else 0, kept_capabilities=kept)
    return explained(cgroup.mounts(config(), host(layout), this, token=token))


@pytest.mark.parametrize(
    ("layout", "token", "options", "expected"),
    [
        ("hybrid", None, {}, []),
        ("hybrid", "cgroup:mixed", {}, []),
        ("hybrid", "cgroup:mixed:force", {}, ["mount 7 cgroup hierarchies below /sys/fs/cgroup"]),
        ("hybrid", "cgroup-full:ro:force", {}, ["mount 7 cgroup hierarchies below /sys/fs/cgroup read-only"]),
        ("hybrid", "cgroup", {"admin": False}, ["mount 7 cgroup hierarchies below /sys/fs/cgroup"]),
        ("hybrid", "cgroup2", {}, ["mount cgroup2 on /sys/fs/cgroup"]),
        ("unified", "cgroup:mixed", {}, ["mount cgroup2 on /sys/fs/cgroup"]),
        ("unified", "cgroup:ro", {}, ["mount cgroup2 on /sys/fs/cgroup read-only"]),
        ("legacy", "cgroup", {"namespace": False}, ["bind cgroup lxc.payload.c1 of 6 hierarchies below /sys/fs/cgroup (rw)"]),
        ("legacy", "cgroup", {"namespace": False, "admin": False}, ["bind cgroup lxc.payload.c1 of 6 hierarchies below /sys/fs/cgroup (mixed)"]),
        ("legacy", "cgroup-full:ro", {"namespace": False}, ["bind all cgroups of 6 hierarchies below /sys/fs/cgroup (ro)"]),
        ("none", "cgroup:rw:force", {}, []),
    ],
)  # fmt: skip
def test_mounts(layout: str, token: str | None, options: dict, expected: list[str]) -> None:
    assert mounted(layout, token, **options) == expected


def test_cgroup2_needs_a_cgroup_namespace() -> None:
    with pytest.raises(HostError, match="needs a new cgroup namespace"):
        mounted("unified", "cgroup:mixed", namespace=False)


TOKENS = st.builds(
    ":".join,
    st.tuples(st.sampled_from(["cgroup", "cgroup-full"]), st.sampled_from(["mixed", "ro", "rw"]))
    | st.tuples(st.sampled_from(["cgroup", "cgroup-full", "cgroup2"])),
)


@given(TOKENS, st.booleans())
def test_tokens(token: str, force: bool) -> None:
    parsed = mounting.parse_token(f"{token}:force" if force else token)
    assert parsed.force == force
    assert f"{parsed.kind}:{parsed.mode}".rstrip(":") == token


@given(st.text(alphabet="cgroup2-ful:mixedrwo", max_size=20))
def test_any_token_parses_or_is_refused(token: str) -> None:
    try:
        parsed = mounting.parse_token(token)
    except ValueError:
        return
    words = [
        parsed.kind,
        *([parsed.mode] if parsed.mode else []),
        *(["force"] if parsed.force else []),
    ]
    assert ":".join(words) == token


# --------------------------------------------------------------------------------------- the rest
NUMBERS = st.sets(st.integers(0, 40), min_size=1)


@given(NUMBERS, NUMBERS)
def test_processors_without_isolated_ones(there: set[int], gone: set[int]) -> None:
    left = legacy.without(",".join(map(str, there)), ",".join(map(str, gone)))
    assert set(map(int, left.split(","))) == ((there - gone) or there)


def test_processor_ranges() -> None:
    assert legacy.without("0-3,7", "1-2") == "0,3,7"
    assert legacy.without("0-3,7", "") == "0-3,7"


def test_device_rule() -> None:
    assert steps.device_rule("/dev/null rwm") == "c 1:3 rwm"
    with pytest.raises(AtollError, match="it is not a device"):
        steps.device_rule("/etc/passwd r")
    with pytest.raises(AtollError, match="no such file"):
        steps.device_rule("/dev/nosuch r")
