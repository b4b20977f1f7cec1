"""Speed and memory of Atoll beside its peers: `make bench`, or `bench/bench.py [--quick] [--json] [--runs N]`.

Prints the tables that the README shows. Whatever of lxc-execute, bwrap and runc is installed does the same work with the same
root file system; all of one table take turns, so that a busy moment of the machine meets each of them, and what is compared
are medians. As root it runs itself in the tests' isolation (tests/isolation), where nothing it does outlives it.

A ratio beside a target is the issue's promise: `met` or `missed` is said, never failed: a bench on a busy machine is no test.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(HERE)
sys.path[:0] = [HERE, f"{REPOSITORY}/tests"]

import peers  # noqa: E402 - the paths come first

from isolation import inside  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

ATOLL = f"{REPOSITORY}/.venv/bin/atoll"
PYTHON = "/usr/bin/python3"
RUNS = 40
IDLE = 3.0
"""Seconds that a started container is left alone before its monitor is weighed."""


class Row(NamedTuple):
    """One line of a table: what was measured, its samples in seconds, and what it is compared with."""

    name: str
    samples: list[float]
    beside: str = ""
    """Name of the row that the ratio is to."""
    target: float | None = None

    @property
    def median(self) -> float:
        """In milliseconds."""
        return sorted(self.samples)[len(self.samples) // 2] * 1000

    @property
    def quartiles(self) -> tuple[float, float]:
        """In milliseconds."""
        ordered, quarter = sorted(self.samples), len(self.samples) // 4
        return ordered[quarter] * 1000, ordered[-1 - quarter] * 1000


class Table(NamedTuple):
    """What took turns."""

    title: str
    rows: list[Row]


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("bench: only root can measure what root does", file=sys.stderr)
        return 1
    if inside() is None:
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        os.execv(sys.executable, [sys.executable, f"{REPOSITORY}/tests/isolation", "--", *command])
    _uncover_root()
    runs = 3 if options.quick else max(options.runs, RUNS)
    stage = peers.Stage(ATOLL)
    try:
        tables = [lives(stage, runs), tools(stage, runs), daemons(stage, runs), reading(stage)]
        memory = monitors(stage, 0.1 if options.quick else IDLE)
    finally:
        stage.close()
    show = as_json if options.json else as_markdown
    print(show(tables, memory, runs))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three runs each: only to see it work")
    parser.add_argument("--json", action="store_true", help="all samples")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each, at least {RUNS}")
    return parser.parse_args()


def _uncover_root() -> None:
    """Take off the isolation's overlays: `atoll run` gives what is mounted below / overlays of its own, and a machine has few.

    Nothing measured here writes outside /run and /var/lib/lxc, which stay private.
    """
    marker = inside()
    for name in marker.overlays if marker is not None else ():
        if "/" not in name.strip("/"):
            subprocess.run(["umount", "-l", f"/{name.strip('/')}"], check=False)


# ------------------------------------------------------------------------------------- measuring
def interleaved(runs: int, actions: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """So many samples of each action, taking turns in an order of chance: what one leaves to do to the kernel meets all."""
    for action in actions.values():
        action()
    samples: dict[str, list[float]] = {name: [] for name in actions}
    chance = random.Random(1)  # noqa: S311 - the same order each time is what is wanted
    for _ in range(runs):
        for name in chance.sample(sorted(actions), len(actions)):
            samples[name].append(actions[name]())
    return samples


def lives(stage: peers.Stage, runs: int) -> Table:
    """/bin/true in a container, from the call to everything taken back."""
    warm = stage.warm()
    ours, known = "atoll, library call", "atoll, library call with `host=`"
    plain = "atoll, library call with `host=`, the command as process 1"
    actions: dict[str, Callable[[], float]] = {
        ours: lambda: warm.ask("run"),
        known: lambda: warm.ask("run-known-host"),
        plain: lambda: warm.ask("run-as-init"),
    }
    actions |= {
        name: lambda argv=argv: peers.spawn(argv)  # type: ignore[misc]  # the default binds the loop's variable
        for name, argv in stage.life_of_peers().items()
    }
    samples = interleaved(runs, actions)
    target = {ours: 0.5, known: 0.5}
    rows = [Row(name, taken, "lxc-execute", target.get(name)) for name, taken in samples.items()]
    return Table(
        "`/bin/true` in six new namespaces with /proc, /sys, /dev, ptys and cgroups, until all is taken back",
        rows,
    )


def tools(stage: peers.Stage, runs: int) -> Table:
    """Tools started cold, beside the bare interpreter and Debian's own."""
    stage.start("up")
    path = stage.lxcpath
    info = ("-n", "up", "-P", path, "-s")
    gone = ("-n", "down", "-P", path, "-s")
    attach = ("-n", "up", "-P", path, "--", "/bin/true")
    base = "python3 -I -c pass"
    commands: dict[str, list[str]] = {
        base: [PYTHON, "-I", "-c", "pass"],
        "atoll run -- true": [ATOLL, "run", "--", "true"],
        "atoll lxc-info -s, running": [ATOLL, "lxc-info", *info],
        "atoll lxc-info -s, stopped": [ATOLL, "lxc-info", *gone],
        "atoll lxc-attach -- true": [ATOLL, "lxc-attach", *attach],
        "atoll explain": [ATOLL, "explain", "-f", stage.config],
    }
    for name, rest in (("lxc-info", info), ("lxc-attach", attach)):
        if shutil.which(name):
            commands[f"Debian's {name}"] = [name, *rest]
    actions: dict[str, Callable[[], float]] = {
        name: lambda argv=argv: peers.spawn(argv)  # type: ignore[misc]  # the default binds the loop's variable
        for name, argv in commands.items()
    }
    samples = interleaved(runs, actions)
    stage.stop("up")
    targets = {"atoll run -- true": 3.0} | dict.fromkeys(
        ("atoll lxc-info -s, running", "atoll lxc-info -s, stopped"), 2.0
    )
    rows = [Row(name, taken, base, targets.get(name)) for name, taken in samples.items()]
    return Table("Tools, started cold", rows)


def daemons(stage: peers.Stage, runs: int) -> Table:
    """lxc-start in the background, and lxc-stop -k."""

    def life(start: list[str], stop: list[str]) -> Callable[[], float]:
        return lambda: peers.spawn(start) + peers.spawn(stop)

    path = stage.lxcpath
    start, stop = ("-n", "turn", "-P", path), ("-n", "turn", "-P", path, "-k")
    actions = {
        "atoll": life([ATOLL, "lxc-start", *start], [ATOLL, "lxc-stop", *stop]),
    }
    if shutil.which("lxc-start"):
        actions["Debian's"] = life(["lxc-start", *start], ["lxc-stop", *stop])
    samples = interleaved(max(runs // 2, 3), actions)
    rows = [Row(name, taken, "Debian's") for name, taken in samples.items()]
    return Table("`lxc-start -d` until RUNNING, then `lxc-stop -k`", rows)


def reading(stage: peers.Stage) -> Table:
    """What a warm process needs before it does anything."""
    warm = stage.warm()
    names = {
        "a configuration of 300 lines": "read",
        "the plan of a start": "plan",
        "the host": "probe",
    }
    rows = [Row(name, [warm.ask(word) for _ in range(20)]) for name, word in names.items()]
    return Table("Read and planned, in a warm process", rows)


def monitors(stage: peers.Stage, idle: float) -> dict[str, int]:
    """Private dirty memory, in KiB, of the monitor of an idle container in the background."""
    found: dict[str, int] = {}
    makers = {"atoll": [ATOLL, "lxc-start"], "Debian's": ["lxc-start"]}
    for name, tool in makers.items():
        if not shutil.which(tool[0]):
            continue
        pid = stage.start("idle", tool=tool)
        time.sleep(idle)
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        found[name] = int(fields["Private_Dirty"].split()[0])
        stage.stop("idle")
    return found


# --------------------------------------------------------------------------------------- showing
def as_markdown(tables: list[Table], memory: dict[str, int], runs: int) -> str:
    """Tables for people, and for the README."""
    about = f"Medians of {runs} interleaved runs (quartiles); Python {sys.version.split()[0]}, Linux {os.uname().release}, "
    lines = [f"{about}{os.cpu_count()} processors, cgroups: {_layout()}.", ""]
    for table in tables:
        by_name = {row.name: row for row in table.rows}
        compared = any(row.beside in by_name for row in table.rows)
        lines += [f"**{table.title}**", "", "| | ms |" + (" ratio | target |" if compared else "")]
        lines.append("|---|---:|" + ("---:|---|" if compared else ""))
        for row in table.rows:
            low, high = row.quartiles
            cells = f"| {row.name} | {row.median:.2f} ({low:.2f} to {high:.2f}) |"
            lines.append(cells + (_comparison(row, by_name) if compared else ""))
        lines.append("")
    weights = ", ".join(f"{name} {size} KiB" for name, size in memory.items())
    verdict = "met" if memory.get("atoll", 0) <= 1024 else "missed"
    lines.append(
        f"**Private dirty memory of an idle monitor**: {weights} (target ≤ 1024 KiB: {verdict})"
    )
    return "\n".join(lines)


def _comparison(row: Row, by_name: dict[str, Row]) -> str:
    other = by_name.get(row.beside)
    if other is None:
        return " | |"
    ratio = row.median / other.median
    if row.target is None:
        return f" {ratio:.2f} | |"
    verdict = "met" if ratio <= row.target else "missed"
    return f" **{ratio:.2f}** | ≤ {row.target:g} of {row.beside}: {verdict} |"


def _layout() -> str:
    marker = inside()
    return marker.layout if marker is not None else "the machine's"


def as_json(tables: list[Table], memory: dict[str, int], runs: int) -> str:
    """Everything that was measured; seconds and KiB."""
    data: dict[str, Any] = {
        "runs": runs,
        "python": sys.version,
        "kernel": os.uname().release,
        "layout": _layout(),
        "monitor_private_dirty_kib": memory,
        "tables": [
            {"title": table.title, "rows": [row._asdict() for row in table.rows]}
            for table in tables
        ],
    }
    return json.dumps(data, indent=1)


if __name__ == "__main__":
    sys.exit(main())
