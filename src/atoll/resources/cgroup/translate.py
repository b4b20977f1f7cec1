"""Limits of one generation of cgroups in the words of the other: lxc.cgroup.* for a host with cgroup2, lxc.cgroup2.* for v1.

Pure functions over lines. A limit is translated only where the kernel has an equal; where it has none, there is a reason, and
the user decides. Nothing is dropped in silence. docs/cgroups.md, section "Translation", is this table in words.
Sources: the kernel's admin-guide on cgroup-v1 and cgroup-v2; kernel/sched/core.c for the factor between cpu.shares and
cpu.weight (1024 to 100, the defaults: the share beside a neighbour without a setting stays the same; OCI's formula does not).
"""

from __future__ import annotations

from atoll.records import Record
from atoll.resources.cgroup.driver import Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final

    Written = list[tuple[str, str]]
    """Files and what is written to them."""
    Translator = Callable[["Context", str, str], Written]

LEGACY: Final = 1
UNIFIED: Final = 2
PREFIXES: Final = {LEGACY: "lxc.cgroup", UNIFIED: "lxc.cgroup2"}
UNLIMITED: Final = -1
SHARES: Final = 1024
"""Default of cpu.shares."""
BLKIO_WEIGHT: Final = 500
"""Default of blkio.weight."""
WEIGHT: Final = 100
"""Default of cpu.weight and io.weight."""
PERIOD: Final = "100000"
"""Default of cpu.cfs_period_us, and the second number of cpu.max."""
_UNITS: Final = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}


class Refused(Record):
    """A line that has no equal here: why, and what to do instead."""

    line: Line
    why: str
    fix: str | None = None


class Outcome(Record):
    """What becomes of lines of the absent generation: equals to write, refused ones, and those left out, with the reason."""

    lines: tuple[Line, ...]
    refused: tuple[Refused, ...] = ()
    left_out: tuple[tuple[Line, str], ...] = ()


class NoEqualError(ValueError):
    """There is no equal. `settled_by`: files of the host's generation with which the user has decided what is to be instead."""

    def __init__(
        self, why: str, fix: str | None = None, *, settled_by: tuple[str, ...] = ()
    ) -> None:
        super().__init__(why)
        self.fix = fix
        self.settled_by = settled_by


class Context:
    """What stands beside a line: `own`, the other lines that are not of the host's generation; `native`, those that are."""

    def __init__(self, own: Sequence[Line], native: Sequence[Line]) -> None:
        self.own = {line.file: line.value for line in own}
        self.native = {line.file: line for line in native}
        self.devices = {(n.file, n.value) for n in native if n.file.startswith("devices.")}

    def native_value(self, file: str) -> str | None:
        """The last value that the host's generation has for a file."""
        line = self.native.get(file)
        return line.value if line else None


def resolve(foreign: Sequence[Line], native: Sequence[Line]) -> Outcome:
    """Decide about lines whose controllers this host has in the other generation, beside those that are written as they are."""
    contexts = {
        generation: Context(
            [line for line in foreign if line.generation == generation],
            [line for line in native if line.generation != generation],
        )
        for generation in (LEGACY, UNIFIED)
    }
    written: dict[tuple[str, str], Line] = {}
    refused: list[Refused] = []
    left_out: list[tuple[Line, str]] = []
    for line in foreign:
        where = contexts[line.generation]
        try:
            equal = _equal(line, where)
        except NoEqualError as error:
            there = next((where.native[f] for f in error.settled_by if f in where.native), None)
            if there is None:
                refused.append(Refused(line=line, why=str(error), fix=error.fix))
            else:
                left_out.append((line, f"{there} is set"))
            continue
        reason = _superfluous(line, equal, where)
        if reason is not None:
            left_out.append((line, reason))
            continue
        for file, value in equal:
            made = Line(generation=3 - line.generation, file=file, value=value, origin=line.origin)
            written.setdefault((file, value), made)
    return Outcome(lines=tuple(written.values()), refused=tuple(refused), left_out=tuple(left_out))


def _superfluous(line: Line, written: Written, where: Context) -> str | None:
    """Why an equal need not be written: it is so anyway, or the host's own words say it or something else about it."""
    if not written:
        return f"cgroup {'v1' if line.generation == UNIFIED else 'v2'} does so anyway"
    if line.file.startswith("devices."):
        return (
            f"{PREFIXES[3 - line.generation]} has it too" if set(written) <= where.devices else None
        )
    there = next((where.native[file] for file, _value in written if file in where.native), None)
    return f"{there} is set" if there is not None else None


# -------------------------------------------------------------------------------------- one line
def _equal(line: Line, where: Context) -> Written:
    """What to write instead; [] when nothing needs to be. Raises NoEqualError."""
    table = _TO_UNIFIED if line.generation == LEGACY else _TO_LEGACY
    found = table.get(line.file)
    if found is None:
        found = next(
            (
                translator
                for pattern, translator in table.items()
                if "*" in pattern and _matches(line.file, pattern)
            ),
            None,
        )
    if found is None:
        raise NoEqualError(
            f"{line.file} is not known to have an equal in cgroup {'v2' if line.generation == LEGACY else 'v1'}",
            f"set the limit with {PREFIXES[3 - line.generation]}, or remove the line",
        )
    if isinstance(found, tuple):  # (why, fix, settled by)
        raise NoEqualError(found[0], found[1], settled_by=found[2])
    return found(where, line.file, line.value)


def _matches(file: str, pattern: str) -> bool:
    head, _star, tail = pattern.partition("*")
    word = file.removeprefix(head).removesuffix(tail)
    return bool(word) and "." not in word and file == f"{head}{word}{tail}"


def _renamed(to: str) -> Translator:
    """Another name, the same value. A * in it is what the old name has after its own controller."""

    def translate(_where: Context, file: str, value: str) -> Written:
        if "*" in to:
            return [(to.replace("*", file.split(".")[1]), value)]
        return [(to, value)]

    return translate


def _amount(to: str) -> Translator:
    """A number of bytes (or of anything); -1 is `max`, or the other way round."""

    def translate(_where: Context, file: str, value: str) -> Written:
        name = to.replace("*", file.split(".")[1])
        return [(name, _unlimited(value, unified=not to.endswith("_bytes")))]

    return translate


def _unlimited(value: str, *, unified: bool) -> str:
    amount = _bytes(value)
    if amount == UNLIMITED:
        return "max" if unified else "-1"
    return value


def _bytes(value: str) -> int:
    """A size as the kernel's memparse reads it; -1 for `-1` and `max`. Raises NoEqualError for what is none."""
    text = value.strip().lower()
    if text in ("-1", "max"):
        return UNLIMITED
    digits = text.rstrip("kmgtpe")
    unit = text[len(digits) :]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20 or len(unit) > 1:
        raise NoEqualError(f"{value} is not a number of bytes")
    return int(digits) << _UNITS.get(unit, 0)


def _number(value: str, low: int, high: int) -> int:
    text = value.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or not low <= int(text) <= high:
        raise NoEqualError(f"{value} is not a number from {low} to {high}")
    return int(text)


def _ratio(number: int, over: int, under: int, least: int, most: int) -> int:
    """number * over / under, rounded; never below `least`, which is as little as there is. NoEqualError above `most`."""
    scaled = max(least, (number * over + under // 2) // under)
    if scaled > most:
        raise NoEqualError(f"it would be {scaled}, and the kernel takes {most} at most")
    return scaled


def _only(harmless: str, why: str, fix: str | None = None) -> Translator:
    """A switch whose value `harmless` is what the other generation does anyway; anything else has no equal."""

    def translate(_where: Context, _file: str, value: str) -> Written:
        if value.strip() == harmless:
            return []
        raise NoEqualError(why, fix)

    return translate


# --------------------------------------------------------------------------------- v1 to cgroup2
def _weight_of_shares(_where: Context, _file: str, value: str) -> Written:
    shares = _number(value, 0, 262144)
    return [("cpu.weight", str(_ratio(shares, WEIGHT, SHARES, 1, 10000)))]


def _maximum_of_quota(where: Context, _file: str, _value: str) -> Written:
    """Both files of v1 are one line of cpu.max, whichever of them is asked about."""
    quota = where.own.get("cpu.cfs_quota_us", "-1").strip()
    period = where.own.get("cpu.cfs_period_us", PERIOD).strip()
    _number(period, 1, 1_000_000)
    if quota == "-1":
        return [("cpu.max", f"max {period}")]
    _number(quota, 1, 1 << 62)
    return [("cpu.max", f"{quota} {period}")]


def _swap_of_both(where: Context, _file: str, value: str) -> Written:
    """v1 limits memory and swap together, cgroup2 each: the sum of both stays the same."""
    both = _bytes(value)
    if both == UNLIMITED:
        return [("memory.swap.max", "max")]
    memory = where.native_value("memory.max") or where.own.get("memory.limit_in_bytes")
    alone = UNLIMITED if memory is None else _bytes(memory)
    if alone == UNLIMITED:
        raise NoEqualError(
            "it limits memory and swap together, and without a limit on memory nothing is left to subtract",
            "set lxc.cgroup.memory.limit_in_bytes too",
            settled_by=("memory.swap.max",),
        )
    if both < alone:
        raise NoEqualError(f"it is less than the limit on memory alone, {memory}")
    return [("memory.swap.max", str(both - alone))]


def _io_weight(_where: Context, file: str, value: str) -> Written:
    """blkio.weight and blkio.weight_device: 500 is the default there, 100 here."""
    device, weight = _device(value) if file.endswith("_device") else ("", value)
    scaled = str(_ratio(_number(weight, 10, 1000), WEIGHT, BLKIO_WEIGHT, 1, 10000))
    return [("io.weight", f"{device} {scaled}" if device else scaled)]


def _io_maximum(word: str) -> Translator:
    def translate(_where: Context, _file: str, value: str) -> Written:
        device, rate = _device(value)
        amount = _bytes(rate)
        return [("io.max", f"{device} {word}={amount if amount > 0 else 'max'}")]

    return translate


def _device(value: str) -> tuple[str, str]:
    """`MAJOR:MINOR REST` taken apart."""
    device, _blank, rest = value.strip().partition(" ")
    major, colon, minor = device.partition(":")
    if not (colon and major.isdigit() and minor.isdigit() and rest.strip()):
        raise NoEqualError(f"{value} is not of the form MAJOR:MINOR VALUE")
    return device, rest.strip()


def _device_rule(where: Context, file: str, value: str) -> Written:
    """The rules are written the same way. One for all devices beside rules of the host's generation would undo those."""
    every = value.strip() == "a" or value.strip().startswith("a *:*")
    if every and where.devices and (file, value) not in where.devices:
        raise NoEqualError(
            "it is about all devices, and would undo the rules that the other generation of these keys sets",
            f"say it in the host's generation too: {file} = {value}",
        )
    return [(file, value)]


_NO_SOFT_LIMIT = (
    "cgroup2 has no soft limit: memory.low protects what is below it, memory.high slows down what is above it",
    "set lxc.cgroup2.memory.low or lxc.cgroup2.memory.high",
    ("memory.low", "memory.high", "memory.min"),
)
_KERNEL_MEMORY = (
    "cgroup2 has no limit for the kernel's memory alone: memory.max counts it in",
    "set lxc.cgroup2.memory.max, or remove the line",
    ("memory.max",),
)
_NO_NETWORK = (
    "cgroup2 has no network controllers: packets are marked by the path of the cgroup (nft: socket cgroupv2)",
    "remove the line",
    (),
)
_NO_REALTIME = ("cgroup2 does not share out real time", "remove the line", ())


def _soft_limit(_where: Context, _file: str, value: str) -> Written:
    if _bytes(value) == UNLIMITED:
        return []
    raise NoEqualError(*_NO_SOFT_LIMIT[:2], settled_by=_NO_SOFT_LIMIT[2])


_TO_UNIFIED: Mapping[str, Translator | tuple[str, str, tuple[str, ...]]] = {
    "memory.limit_in_bytes": _amount("memory.max"),
    "memory.memsw.limit_in_bytes": _swap_of_both,
    "memory.soft_limit_in_bytes": _soft_limit,
    "memory.kmem.limit_in_bytes": _KERNEL_MEMORY,
    "memory.kmem.tcp.limit_in_bytes": _KERNEL_MEMORY,
    "memory.swappiness": (
        "cgroup2 has no swappiness of a cgroup: memory.swap.max limits what is swapped",
        "set lxc.cgroup2.memory.swap.max (0: no swap)",
        ("memory.swap.max",),
    ),
    "memory.use_hierarchy": _only("1", "cgroup2 always counts children in"),
    "memory.oom_control": _only("0", "cgroup2 cannot switch its out-of-memory killer off"),
    "memory.move_charge_at_immigrate": _only("0", "cgroup2 never moves what was charged"),
    "cpu.shares": _weight_of_shares,
    "cpu.cfs_quota_us": _maximum_of_quota,
    "cpu.cfs_period_us": _maximum_of_quota,
    "cpu.cfs_burst_us": _renamed("cpu.max.burst"),
    "cpu.uclamp.min": _renamed("cpu.uclamp.min"),
    "cpu.uclamp.max": _renamed("cpu.uclamp.max"),
    "cpu.idle": _renamed("cpu.idle"),
    "cpu.rt_runtime_us": _NO_REALTIME,
    "cpu.rt_period_us": _NO_REALTIME,
    "cpuset.cpus": _renamed("cpuset.cpus"),
    "cpuset.mems": _renamed("cpuset.mems"),
    "cpuset.cpu_exclusive": _only("0", "cgroup2 has partitions instead (cpuset.cpus.partition)"),
    "cpuset.mem_exclusive": _only("0", "cgroup2 does not know exclusive memory nodes"),
    "cpuset.mem_hardwall": _only("0", "cgroup2 does not know hard walls between memory nodes"),
    "cpuset.memory_migrate": _only("1", "cgroup2 always moves memory along with cpuset.mems"),
    "cpuset.memory_spread_page": _only("0", "cgroup2 does not spread pages"),
    "cpuset.memory_spread_slab": _only("0", "cgroup2 does not spread slabs"),
    "cpuset.sched_load_balance": _only(
        "1", "cgroup2 has isolated partitions instead (cpuset.cpus.partition)"
    ),
    "pids.max": _renamed("pids.max"),
    "blkio.weight": _io_weight,
    "blkio.weight_device": _io_weight,
    "blkio.bfq.weight": _renamed("io.bfq.weight"),
    "blkio.bfq.weight_device": _renamed("io.bfq.weight"),
    "blkio.throttle.read_bps_device": _io_maximum("rbps"),
    "blkio.throttle.write_bps_device": _io_maximum("wbps"),
    "blkio.throttle.read_iops_device": _io_maximum("riops"),
    "blkio.throttle.write_iops_device": _io_maximum("wiops"),
    "blkio.leaf_weight": ("cgroup2 has processes in leaves only", "remove the line", ()),
    "devices.allow": _device_rule,
    "devices.deny": _device_rule,
    "hugetlb.*.limit_in_bytes": _amount("hugetlb.*.max"),
    "hugetlb.*.rsvd.limit_in_bytes": _amount("hugetlb.*.rsvd.max"),
    "rdma.max": _renamed("rdma.max"),
    "misc.max": _renamed("misc.max"),
    "net_cls.classid": _NO_NETWORK,
    "net_prio.ifpriomap": _NO_NETWORK,
    "freezer.state": ("a container is frozen when it runs", "use lxc-freeze", ()),
}


# --------------------------------------------------------------------------------- cgroup2 to v1
def _shares_of_weight(_where: Context, _file: str, value: str) -> Written:
    weight = _number(value, 1, 10000)
    return [("cpu.shares", str(_ratio(weight, SHARES, WEIGHT, 2, 262144)))]


def _quota_of_maximum(_where: Context, _file: str, value: str) -> Written:
    quota, _blank, period = value.strip().partition(" ")
    if quota != "max":
        _number(quota, 1, 1 << 62)
    written = [("cpu.cfs_quota_us", "-1" if quota == "max" else quota)]
    if period.strip():
        _number(period, 1, 1_000_000)
        written.insert(0, ("cpu.cfs_period_us", period.strip()))
    return written


def _both_of_swap(where: Context, _file: str, value: str) -> Written:
    swap = _bytes(value)
    if swap == UNLIMITED:
        return [("memory.memsw.limit_in_bytes", "-1")]
    memory = where.native_value("memory.limit_in_bytes") or where.own.get("memory.max")
    alone = UNLIMITED if memory is None else _bytes(memory)
    if alone == UNLIMITED:
        raise NoEqualError(
            "cgroup v1 limits memory and swap together, and there is no limit on memory to add",
            "set lxc.cgroup2.memory.max too",
            settled_by=("memory.memsw.limit_in_bytes",),
        )
    return [("memory.memsw.limit_in_bytes", str(alone + swap))]


def _blkio_weight(_where: Context, _file: str, value: str) -> Written:
    device, _blank, weight = value.strip().rpartition(" ")
    scaled = _ratio(_number(weight, 1, 10000), BLKIO_WEIGHT, WEIGHT, 10, 1000)
    if device in ("", "default"):
        return [("blkio.weight", str(scaled))]
    return [("blkio.weight_device", f"{device} {scaled}")]


def _bfq_weight(_where: Context, _file: str, value: str) -> Written:
    device, _blank, weight = value.strip().rpartition(" ")
    if device in ("", "default"):
        return [("blkio.bfq.weight", weight)]
    return [("blkio.bfq.weight_device", f"{device} {weight}")]


_THROTTLES: Final = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}


def _throttles(_where: Context, _file: str, value: str) -> Written:
    device, rest = _device(value)
    written = []
    for word in rest.split():
        name, _equals, rate = word.partition("=")
        if name not in _THROTTLES:
            raise NoEqualError(f"{word} is not one of rbps= wbps= riops= wiops=")
        amount = _bytes(rate)
        written.append((_THROTTLES[name], f"{device} {max(amount, 0)}"))
    return written


_NO_PROTECTION = (
    "cgroup v1 protects no memory, and slows nobody down before the limit",
    "set lxc.cgroup.memory.soft_limit_in_bytes (which is reclaimed first), or remove the line",
    ("memory.soft_limit_in_bytes",),
)
_NO_CORE = ("cgroup v1 has no such file", "remove the line", ())

_TO_LEGACY: Mapping[str, Translator | tuple[str, str, tuple[str, ...]]] = {
    "memory.max": _amount("memory.limit_in_bytes"),
    "memory.swap.max": _both_of_swap,
    "memory.high": _NO_PROTECTION,
    "memory.low": _NO_PROTECTION,
    "memory.min": _NO_PROTECTION,
    "memory.swap.high": _NO_PROTECTION,
    "memory.oom.group": _only("0", "cgroup v1 kills one process at a time"),
    "memory.zswap.max": _only("max", "cgroup v1 does not limit zswap"),
    "cpu.weight": _shares_of_weight,
    "cpu.weight.nice": (
        "cgroup v1 has no weight by nice levels",
        "set lxc.cgroup2.cpu.weight instead",
        ("cpu.shares",),
    ),
    "cpu.max": _quota_of_maximum,
    "cpu.max.burst": _renamed("cpu.cfs_burst_us"),
    "cpu.uclamp.min": _renamed("cpu.uclamp.min"),
    "cpu.uclamp.max": _renamed("cpu.uclamp.max"),
    "cpu.idle": _renamed("cpu.idle"),
    "cpuset.cpus": _renamed("cpuset.cpus"),
    "cpuset.mems": _renamed("cpuset.mems"),
    "cpuset.cpus.partition": _only("member", "cgroup v1 has no partitions"),
    "pids.max": _renamed("pids.max"),
    "io.weight": _blkio_weight,
    "io.bfq.weight": _bfq_weight,
    "io.max": _throttles,
    "io.latency": ("cgroup v1 has no target for latency", "remove the line", ()),
    "devices.allow": _device_rule,
    "devices.deny": _device_rule,
    "hugetlb.*.max": _amount("hugetlb.*.limit_in_bytes"),
    "hugetlb.*.rsvd.max": _amount("hugetlb.*.rsvd.limit_in_bytes"),
    "rdma.max": _renamed("rdma.max"),
    "misc.max": _renamed("misc.max"),
    "cgroup.freeze": ("a container is frozen when it runs", "use lxc-freeze", ()),
    "cgroup.max.descendants": _only("max", "cgroup v1 does not limit the number of cgroups"),
    "cgroup.max.depth": _only("max", "cgroup v1 does not limit the depth of cgroups"),
    "cgroup.subtree_control": _NO_CORE,
    "cgroup.type": _NO_CORE,
}


# ---------------------------------------------------------------------------------- for the check
def misspelt(file: str, *, generation: int) -> str | None:
    """The known file that a file is nearly, when it is unknown itself; else None."""
    table = _TO_UNIFIED if generation == LEGACY else _TO_LEGACY
    names = [name for name in table if "*" not in name]
    if file in table or any("*" in name and _matches(file, name) for name in table):
        return None
    from difflib import get_close_matches

    # A file of a newer kernel is no mistake: only what is nearly a known name is.
    near = get_close_matches(file, names, n=1, cutoff=0.8)
    return near[0] if near else None


def known(generation: int) -> tuple[str, ...]:
    """The files of a generation that this table says something about."""
    return tuple(_TO_UNIFIED if generation == LEGACY else _TO_LEGACY)
