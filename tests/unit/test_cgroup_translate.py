"""Limits of one generation of cgroups in the other's words: each row of the table, and what has no equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import Origin
from atoll.resources.cgroup import translate
from atoll.resources.cgroup.driver import Line
from contract import sources


def lines(generation: int, *texts: str) -> list[Line]:
    return [
        Line(
            generation=generation,
            file=text.partition(" = ")[0],
            value=text.partition(" = ")[2],
            origin=Origin(file="config", line=number, text=text),
        )
        for number, text in enumerate(texts, 1)
    ]


def to_unified(*texts: str, native: tuple[str, ...] = ()) -> translate.Outcome:
    return translate.resolve(lines(1, *texts), lines(2, *native))


def to_legacy(*texts: str, native: tuple[str, ...] = ()) -> translate.Outcome:
    return translate.resolve(lines(2, *texts), lines(1, *native))


def written(outcome: translate.Outcome) -> list[str]:
    assert outcome.refused == ()
    return [f"{line.file} = {line.value}" for line in outcome.lines]


@pytest.mark.parametrize(
    ("legacy", "unified"),
    [
        ("memory.limit_in_bytes = 512M", "memory.max = 512M"),
        ("memory.limit_in_bytes = -1", "memory.max = max"),
        ("cpu.shares = 1024", "cpu.weight = 100"),
        ("cpu.shares = 2048", "cpu.weight = 200"),
        ("cpu.cfs_quota_us = -1", "cpu.max = max 100000"),
        ("cpu.cfs_quota_us = 50000", "cpu.max = 50000 100000"),
        ("cpu.cfs_period_us = 20000", "cpu.max = max 20000"),
        ("cpu.cfs_burst_us = 1000", "cpu.max.burst = 1000"),
        ("cpu.uclamp.max = 50", "cpu.uclamp.max = 50"),
        ("cpuset.cpus = 0-3", "cpuset.cpus = 0-3"),
        ("cpuset.mems = 0", "cpuset.mems = 0"),
        ("pids.max = 100", "pids.max = 100"),
        ("blkio.weight = 500", "io.weight = 100"),
        ("blkio.weight = 1000", "io.weight = 200"),
        ("blkio.weight_device = 8:0 250", "io.weight = 8:0 50"),
        ("blkio.bfq.weight = 300", "io.bfq.weight = 300"),
        ("blkio.throttle.read_bps_device = 8:0 1m", "io.max = 8:0 rbps=1048576"),
        ("blkio.throttle.write_bps_device = 8:0 0", "io.max = 8:0 wbps=max"),
        ("blkio.throttle.read_iops_device = 8:0 100", "io.max = 8:0 riops=100"),
        ("blkio.throttle.write_iops_device = 8:0 100", "io.max = 8:0 wiops=100"),
        ("devices.allow = c 1:3 rwm", "devices.allow = c 1:3 rwm"),
        ("devices.deny = a", "devices.deny = a"),
        ("hugetlb.2MB.limit_in_bytes = 4M", "hugetlb.2MB.max = 4M"),
        ("hugetlb.1GB.rsvd.limit_in_bytes = -1", "hugetlb.1GB.rsvd.max = max"),
        ("rdma.max = mlx4_0 hca_handle=2", "rdma.max = mlx4_0 hca_handle=2"),
    ],
)
def test_v1_in_cgroup2(legacy: str, unified: str) -> None:
    outcome = to_unified(legacy)
    assert written(outcome) == [unified]
    assert outcome.lines[0].origin == lines(1, legacy)[0].origin
    assert outcome.lines[0].generation == 2


@pytest.mark.parametrize(
    ("unified", "legacy"),
    [
        ("memory.max = 512M", ["memory.limit_in_bytes = 512M"]),
        ("memory.max = max", ["memory.limit_in_bytes = -1"]),
        ("memory.swap.max = max", ["memory.memsw.limit_in_bytes = -1"]),
        ("cpu.weight = 100", ["cpu.shares = 1024"]),
        ("cpu.max = max", ["cpu.cfs_quota_us = -1"]),
        ("cpu.max = 50000 200000", ["cpu.cfs_period_us = 200000", "cpu.cfs_quota_us = 50000"]),
        ("cpu.max.burst = 1000", ["cpu.cfs_burst_us = 1000"]),
        ("cpuset.cpus = 0", ["cpuset.cpus = 0"]),
        ("pids.max = max", ["pids.max = max"]),
        ("io.weight = 100", ["blkio.weight = 500"]),
        ("io.weight = default 50", ["blkio.weight = 250"]),
        ("io.weight = 8:0 20", ["blkio.weight_device = 8:0 100"]),
        ("io.bfq.weight = 8:0 20", ["blkio.bfq.weight_device = 8:0 20"]),
        (
            "io.max = 8:0 rbps=1000 wiops=max",
            [
                "blkio.throttle.read_bps_device = 8:0 1000",
                "blkio.throttle.write_iops_device = 8:0 0",
            ],
        ),
        ("hugetlb.2MB.max = 2M", ["hugetlb.2MB.limit_in_bytes = 2M"]),
        ("devices.allow = c 1:3 rwm", ["devices.allow = c 1:3 rwm"]),
    ],
)
def test_cgroup2_in_v1(unified: str, legacy: list[str]) -> None:
    assert written(to_legacy(unified)) == legacy


def test_quota_and_period_are_one_line() -> None:
    both = ("cpu.cfs_period_us = 20000", "cpu.cfs_quota_us = 10000")
    assert written(to_unified(*both)) == ["cpu.max = 10000 20000"]
    assert written(to_unified(*reversed(both))) == ["cpu.max = 10000 20000"]


def test_memory_and_swap_together() -> None:
    limit = "memory.limit_in_bytes = 1G"
    assert written(to_unified(limit, "memory.memsw.limit_in_bytes = 3G")) == [
        "memory.max = 1G",
        f"memory.swap.max = {2 << 30}",
    ]
    native = ("memory.max = 2G",)
    assert written(to_unified("memory.memsw.limit_in_bytes = 3G", native=native)) == [
        f"memory.swap.max = {1 << 30}"
    ]
    assert written(to_legacy("memory.max = 1G", "memory.swap.max = 0")) == [
        "memory.limit_in_bytes = 1G",
        f"memory.memsw.limit_in_bytes = {1 << 30}",
    ]
    for outcome in (
        to_unified("memory.memsw.limit_in_bytes = 3G"),
        to_unified(limit, "memory.memsw.limit_in_bytes = 1M"),
        to_legacy("memory.swap.max = 1G"),
        to_legacy("memory.max = max", "memory.swap.max = 1G"),
    ):
        assert len(outcome.refused) == 1


@pytest.mark.parametrize(
    "line",
    ["memory.use_hierarchy = 1", "memory.oom_control = 0", "memory.soft_limit_in_bytes = -1", "cpuset.cpu_exclusive = 0",
     "cpuset.memory_migrate = 1", "cpuset.sched_load_balance = 1"],
)  # fmt: skip
def test_what_cgroup2_does_anyway_needs_no_writing(line: str) -> None:
    outcome = to_unified(line)
    assert outcome.lines == ()
    assert [why for _line, why in outcome.left_out] == ["cgroup v2 does so anyway"]


@pytest.mark.parametrize(
    ("generation", "line", "why"),
    [
        (1, "memory.soft_limit_in_bytes = 1G", "no soft limit"),
        (1, "memory.kmem.limit_in_bytes = 1G", "kernel's memory"),
        (1, "memory.swappiness = 10", "no swappiness"),
        (1, "memory.oom_control = 1", "out-of-memory killer"),
        (1, "cpu.rt_runtime_us = 1", "real time"),
        (1, "cpuset.cpu_exclusive = 1", "partitions"),
        (1, "net_cls.classid = 1", "network"),
        (1, "freezer.state = FROZEN", "frozen"),
        (1, "memory.nosuch = 1", "not known to have an equal in cgroup v2"),
        (1, "cpu.shares = 262144", "the kernel takes 10000 at most"),
        (1, "cpu.shares = many", "not a number"),
        (1, "memory.limit_in_bytes = lots", "not a number of bytes"),
        (1, "blkio.throttle.read_bps_device = 1", "MAJOR:MINOR"),
        (2, "memory.high = 1G", "protects no memory"),
        (2, "memory.low = 1G", "protects no memory"),
        (2, "memory.oom.group = 1", "one process at a time"),
        (2, "cpuset.cpus.partition = root", "no partitions"),
        (2, "io.latency = 8:0 target=1", "latency"),
        (2, "io.weight = 10000", "the kernel takes 1000 at most"),
        (2, "io.max = 8:0 bps=1", "is not one of"),
        (2, "cgroup.freeze = 1", "frozen"),
        (2, "memory.nosuch = 1", "not known to have an equal in cgroup v1"),
    ],
)
def test_no_equal(generation: int, line: str, why: str) -> None:
    (refused,) = translate.resolve(lines(generation, line), []).refused
    assert why in refused.why
    assert refused.line.origin is not None


def test_the_hosts_own_words_win() -> None:
    outcome = to_unified(
        "memory.limit_in_bytes = 1M", "cpu.cfs_period_us = 1000", native=("memory.max = 1G", "cpu.max = max")
    )  # fmt: skip
    assert outcome.lines == ()
    assert [why for _line, why in outcome.left_out] == [
        "lxc.cgroup2.memory.max = 1G is set",
        "lxc.cgroup2.cpu.max = max is set",
    ]


@pytest.mark.parametrize(
    ("line", "native"),
    [("memory.soft_limit_in_bytes = 1G", "memory.high = 1G"), ("memory.swappiness = 0", "memory.swap.max = 0"),
     ("memory.kmem.limit_in_bytes = 1G", "memory.max = 2G")],
)  # fmt: skip
def test_a_user_who_decided_is_not_refused(line: str, native: str) -> None:
    outcome = to_unified(line, native=(native,))
    assert outcome.refused == outcome.lines == ()
    assert [why for _line, why in outcome.left_out] == [f"lxc.cgroup2.{native} is set"]


def test_device_rules_are_added_to_the_hosts_own_but_never_undo_them() -> None:
    native = ("devices.deny = a", "devices.allow = c 1:3 rwm")
    outcome = to_unified("devices.deny = a", "devices.allow = c 226:* rwm", native=native)
    assert written(outcome) == ["devices.allow = c 226:* rwm"]
    assert len(outcome.left_out) == 1
    (refused,) = to_unified("devices.allow = a", native=native).refused
    assert "would undo" in refused.why


@given(shares=st.integers(2, 102400))
def test_shares_keep_their_proportion(shares: int) -> None:
    (line,) = to_unified(f"cpu.shares = {shares}").lines
    weight = int(line.value)
    assert abs(weight * 1024 - shares * 100) <= 512 or weight == 1
    (back,) = to_legacy(f"cpu.weight = {weight}").lines
    assert abs(int(back.value) - shares) <= 6 or weight == 1


@given(
    generation=st.sampled_from([1, 2]),
    file=st.sampled_from([*translate.known(1), *translate.known(2), "x", "", "."]),
    value=st.text(max_size=12) | st.integers().map(str),
)
def test_any_value_is_translated_or_refused(generation: int, file: str, value: str) -> None:
    line = Line(generation=generation, file=file.replace("*", "2MB"), value=value)
    outcome = translate.resolve([line], [])
    assert len(outcome.refused) + len(outcome.left_out) + len(outcome.lines) >= 1
    assert all(equal.generation != generation for equal in outcome.lines)


@pytest.mark.parametrize(
    ("generation", "file", "meant"),
    [(2, "memory.mx", "memory.max"), (1, "memory.limit_in_byte", "memory.limit_in_bytes"), (2, "memory.max", None),
     (2, "hugetlb.2MB.max", None), (2, "memory.brand.new", None), (1, "nosuch.thing", None)],
)  # fmt: skip
def test_misspelt(generation: int, file: str, meant: str | None) -> None:
    assert translate.misspelt(file, generation=generation) == meant


@pytest.mark.parametrize("generation", [1, 2])
def test_the_page_has_every_file(generation: int) -> None:
    with open(f"{sources.REPOSITORY}/docs/cgroups.md", encoding="utf-8") as file:
        section = file.read().partition("## Translation")[2]
    missing = [name for name in translate.known(generation) if f"`{name}`" not in section]
    assert missing == []
