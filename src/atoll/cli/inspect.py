"""The tools that look and change nothing: lxc-info, lxc-ls, lxc-wait.

They ask the monitors (lifecycle/client.py), read configurations on disk, and look into a running container's network
namespace and cgroups through init's pid. Source of truth: reference of LXC, sections 11.3 and 11.6 (observed on 5.0.2).
"""

from __future__ import annotations

import os

from atoll.cli.options import UsageError
from atoll.errors import EXIT_FAILURE, EXIT_OK, AtollError, CommandError, ConfigError, reason
from atoll.lifecycle.client import CommandClient, active_containers, wait_states
from atoll.lifecycle.commands import FROZEN, STATES, STOPPED
from atoll.log import get_logger
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from atoll.cli.options import Call
    from atoll.config.text import Config

log = get_logger(__name__)

ASK_TIMEOUT: Final = 3.0  # seconds: one monitor that hangs must not hide the other containers
AF_INET: Final = 2
AF_INET6: Final = 10
SCOPE_LINK: Final = 253  # rtnetlink(7): valid on that link only
LOOPBACK: Final = "lo"


# ------------------------------------------------------------------------------- what is running


class Interface(Record):
    """A link inside a container, with its addresses that others can reach."""

    name: str
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()


def defined_containers(lxcpath: str) -> tuple[str, ...]:
    """The names under `lxcpath` that have a readable configuration, sorted; those with a leading dot are not containers."""
    try:
        names = os.listdir(lxcpath)
    except OSError as error:
        log.debug("cannot list %s: %s", lxcpath, reason(error))
        return ()
    return tuple(sorted(name for name in names if name[0] != "." and is_defined(lxcpath, name)))


def is_defined(lxcpath: str, name: str) -> bool:
    """Has it a configuration that we can read?"""
    return os.access(f"{lxcpath}/{name}/config", os.R_OK)


def interfaces(pid: int) -> tuple[Interface, ...]:
    """The links in the network namespace of a process; empty when we may not look."""
    from atoll.linux.files import open_fd
    from atoll.linux.netlink import Netlink

    try:
        with (
            open_fd(f"/proc/{pid}/ns/net", os.O_RDONLY) as namespace,
            Netlink(namespace.fileno()) as netlink,
        ):
            links, addresses = netlink.links(), netlink.addresses()
    except OSError as error:
        log.info("cannot look into the network namespace of process %d: %s", pid, reason(error))
        return ()
    found = []
    for link in links:
        own = [one for one in addresses if one.index == link.index]
        ipv4 = tuple(one.address for one in own if one.family == AF_INET)
        ipv6 = tuple(
            one.address for one in own if one.family == AF_INET6 and one.scope != SCOPE_LINK
        )
        found.append(Interface(name=link.name, ipv4=ipv4, ipv6=ipv6))
    return tuple(sorted(found, key=lambda one: one.name))


def reachable(found: Sequence[Interface], family: int) -> tuple[str, ...]:
    """The addresses of a family on all links but the loopback, sorted as text as LXC does."""
    links = [one for one in found if one.name != LOOPBACK]
    return tuple(
        sorted(
            address for link in links for address in (link.ipv4 if family == AF_INET else link.ipv6)
        )
    )


def usage(client: CommandClient, pid: int) -> dict[str, int]:
    """What a container uses: cpu (nanoseconds), blkio, memory, kernel, swap (bytes); what cannot be read is left out."""
    from atoll.linux.files import read_text
    from atoll.linux.proc import parse_cgroups, parse_mountinfo

    found: dict[str, int] = {}
    try:
        lines = parse_cgroups(read_text(f"/proc/{pid}/cgroup"))
        mounts = parse_mountinfo(read_text("/proc/self/mountinfo"))
    except OSError as error:
        log.info("cannot find the cgroups of process %d: %s", pid, reason(error))
        return found
    for line in lines:  # cgroup2 comes last: what a v1 controller counts is not asked of it again
        if line.controllers[:1] == ("name=systemd",):
            continue
        kind = "cgroup" if line.controllers else "cgroup2"
        wanted = set(line.controllers[:1])
        mount = next(
            (
                one
                for one in mounts
                if one.fstype == kind and wanted <= set(one.super_options.split(","))
            ),
            None,
        )
        if mount is None:
            continue
        # A payload may have moved its init into a cgroup below: the monitor knows the container's own.
        path = _asked_path(client, line.controllers or ("memory", "pids")) or line.path
        below = path.removeprefix(mount.root) if mount.root != "/" else path
        counted = _count(f"{mount.target}/{below.strip('/')}", line.controllers)
        found = {**counted, **found}
    return found


def _asked_path(client: CommandClient, controllers: Sequence[str]) -> str | None:
    for controller in controllers:
        try:
            path = client.get_cgroup(controller, limit=True)
        except AtollError:
            return None
        if path is not None:
            return path
    return None


def _count(directory: str, controllers: Sequence[str]) -> dict[str, int]:
    """The counters of one directory, read here: importing resources.cgroup costs a cold lxc-info 2 ms."""
    found = {}
    for controller, key, file in COUNTERS if controllers else COUNTERS2:
        if controllers and controller not in controllers:
            continue
        value = _number(f"{directory}/{file}")
        if value is not None:
            found[key] = value
    if "with swap" in found:
        found["swap"] = max(found.pop("with swap") - found.get("memory", 0), 0)
    return found


# Controller, what it counts, file. The number is the last word of blkio's ("Total N").
COUNTERS: Final = (
    ("cpuacct", "cpu", "cpuacct.usage"),
    ("blkio", "blkio", "blkio.throttle.io_service_bytes"),
    ("memory", "memory", "memory.usage_in_bytes"),
    ("memory", "kernel", "memory.kmem.usage_in_bytes"),
    ("memory", "with swap", "memory.memsw.usage_in_bytes"),
)
COUNTERS2: Final = (
    ("cpu", "cpu", "cpu.stat"),
    ("io", "blkio", "io.stat"),
    ("memory", "memory", "memory.current"),
    ("memory", "swap", "memory.swap.current"),
)


def _number(path: str) -> int | None:
    """The number in a file of /sys; None when it cannot be read."""
    from atoll.linux.files import read_text

    try:
        words = read_text(path).split()
        if path.endswith("/cpu.stat"):
            return int(words[words.index("usage_usec") + 1]) * 1000
        if path.endswith("/io.stat"):
            parts = [word.partition("=") for word in words]
            return sum(int(value) for key, _, value in parts if key in {"rbytes", "wbytes"})
        return int(words[-1])
    except (OSError, ValueError, IndexError):
        return None


def _on_disk(lxcpath: str, name: str) -> Config:
    from atoll.config.text import Config

    file = f"{lxcpath}/{name}/config"
    return Config.read(file, problems=[]) if os.path.exists(file) else Config.empty()


def _config_item(config: Config, key: str) -> str | None:
    """The value, or None for a key that means nothing."""
    try:
        return config.get(key)
    except ConfigError as error:
        log.debug("%s", error.message)
        return None


# -------------------------------------------------------------------------------------- lxc-info


class Traffic(Record):
    """What a container's link carried, as the container sees it: bytes sent and received; `name` is the host's link."""

    name: str
    sent: int
    received: int


class Info(Record):
    """All that lxc-info may show; what was not asked for, or is not there, is None or empty."""

    name: str
    state: int | None = None
    pid: int | None = None
    ips: tuple[str, ...] = ()
    usage: dict[str, int]
    traffic: tuple[Traffic, ...] = ()
    keys: tuple[tuple[str, str | None], ...] = ()


def lxc_info(call: Call) -> int:
    """Show the state, process, addresses and use of a container; or keys of its configuration."""
    client = CommandClient(call.lxcpath, call.name)
    state = client.get_state()
    if state == STOPPED and not is_defined(call.lxcpath, call.name):
        if not call.quiet:
            call.err.line(f"{call.name} doesn't exist")
        return EXIT_FAILURE
    asked = {one for one in ("state", "pid", "ips", "stats") if call.flag(one)}
    keys = call.texts("config")
    everything = not asked and not keys
    shown = {"state", "pid", "ips", "stats"} if everything else asked
    info = _gather(call, client, state, shown, keys)
    if call.flag("json"):
        _print_json(call, info)
        return EXIT_OK
    bare = call.flag("no-humanize") and len(asked) + len(keys) == 1 and "stats" not in asked
    lines = _info_lines(info, human=not call.flag("no-humanize"), name=everything)
    for label, value in lines:
        call.out.line(value if bare else f"{label:<15} {value}")
    for key, text in info.keys:
        if text is None:
            call.err.line(f"{key} invalid")
        elif bare:
            call.out.line(text)
        else:
            call.out.line(f"{key} = {text}" if text else f"{key} =")
    return EXIT_OK


def _gather(
    call: Call, client: CommandClient, state: int, shown: set[str], keys: Sequence[str]
) -> Info:
    pid: int | None = None
    if state != STOPPED and shown != {"state"}:
        pid = client.get_init_pid() or None
    config = _on_disk(call.lxcpath, call.name) if keys else None
    found = interfaces(pid) if pid and "ips" in shown else ()
    stats = "stats" in shown and pid is not None
    return Info(
        name=call.name,
        state=state if "state" in shown else None,
        pid=pid if "pid" in shown else None,
        ips=tuple(sorted((*reachable(found, AF_INET), *reachable(found, AF_INET6)))),
        usage=usage(client, pid) if stats and pid else {},
        traffic=_traffic(client) if stats else (),
        keys=tuple((key, _config_item(config, key)) for key in keys) if config else (),
    )


def _traffic(client: CommandClient) -> tuple[Traffic, ...]:
    found = []
    for number in range(1000):  # a foreign monitor may answer for ever
        kind = client.get_config_item(f"lxc.net.{number}.type")
        if kind is None:
            break
        key = "veth.pair" if kind == "veth" else "link"
        name = client.get_config_item(f"lxc.net.{number}.{key}")
        if not name or "/" in name:
            continue
        statistics = f"/sys/class/net/{name}/statistics"
        received, sent = (_number(f"{statistics}/{one}_bytes") for one in ("rx", "tx"))
        if received is not None and sent is not None:
            # What the host's end receives, the container sent.
            found.append(Traffic(name=name, sent=received, received=sent))
    return tuple(found)


def _info_lines(info: Info, *, human: bool, name: bool) -> list[tuple[str, str]]:
    lines = [("Name:", info.name)] if name else []
    if info.state is not None:
        lines.append(("State:", STATES[info.state]))
    if info.pid is not None:
        lines.append(("PID:", str(info.pid)))
    lines += [("IP:", ip) for ip in info.ips]
    show = human_size if human else str
    if "cpu" in info.usage:
        cpu = info.usage["cpu"]
        lines.append(("CPU use:", f"{cpu / 1e9:.2f} seconds" if human else str(cpu)))
    for label, key in (("BlkIO use:", "blkio"), ("Memory use:", "memory"), ("KMem use:", "kernel")):
        if key in info.usage:
            lines.append((label, show(info.usage[key])))
    for one in info.traffic:
        lines += [
            ("Link:", one.name),
            (" TX bytes:", show(one.sent)),
            (" RX bytes:", show(one.received)),
            (" Total bytes:", show(one.sent + one.received)),
        ]
    return lines


def human_size(size: int) -> str:
    """Bytes as LXC prints them, rounding included (observed): exactly 1 KiB is still "1024 bytes", GiB are cut off."""
    if size > 1 << 30:
        return f"{size >> 30}.{(size & (1 << 30) - 1) // 10737419:02} GiB"
    for unit, shift, half in (("MiB", 20, 5243), ("KiB", 10, 5)):
        if size > 1 << shift:
            size += half
            hundredths = (size & (1 << shift) - 1) * 100 >> shift
            return f"{size >> shift}.{hundredths:02} {unit}"
    return f"{size} bytes"


def _print_json(call: Call, info: Info) -> None:
    import json

    shown: dict[str, object] = {"name": info.name}
    if info.state is not None:
        shown["state"] = STATES[info.state]
    shown["pid"] = info.pid
    shown["ips"] = info.ips
    shown["usage"] = info.usage
    shown["links"] = [one.as_dict() for one in info.traffic]
    shown["config"] = dict(info.keys)
    call.out.line(json.dumps(shown, indent=2))


# ---------------------------------------------------------------------------------------- lxc-ls


class Row(Record):
    """One container in a list. What a column shows is asked for only when the column is."""

    name: str
    lxcpath: str
    state: int

    def client(self) -> CommandClient:
        """Its monitor."""
        return CommandClient(self.lxcpath, self.name, timeout=ASK_TIMEOUT)


COLUMNS: Final = (
    "NAME", "STATE", "PID", "RAM", "SWAP", "AUTOSTART",
    "GROUPS", "INTERFACE", "IPV4", "IPV6", "UNPRIVILEGED",
)  # fmt: skip
FIGURES: Final = {"RAM": 6, "SWAP": 6}  # as wide as 0.00MB, even where there is only a dash
DEFAULT_COLUMNS: Final = ("NAME", "STATE", "AUTOSTART", "GROUPS", "IPV4", "IPV6", "UNPRIVILEGED")


def lxc_ls(call: Call) -> int:
    """List containers, as names or as a table."""
    if call.flag("nesting"):
        raise UsageError("--nesting is not available yet: run lxc-ls inside the container")
    columns = _columns(call)
    if columns is None:
        return EXIT_OK
    rows = _select(call)
    if not rows:
        if call.flag("json"):
            call.out.line("[]")
        return EXIT_OK
    if call.flag("json"):
        _print_rows_json(call, rows)
    elif call.flag("fancy"):
        _print_table(call, columns, [_cells(row, columns) for row in rows])
    else:
        _print_names(call, [row.name for row in rows])
    return EXIT_OK


def _columns(call: Call) -> tuple[str, ...] | None:
    text = call.text("fancy-format") if call.flag("fancy") else None
    if text is None:
        return DEFAULT_COLUMNS
    columns = [one for one in text.split(",") if one]
    for column in columns:
        if column.upper() not in COLUMNS:
            call.err.line(f"Invalid key: {column}")
            return None
    return tuple(column.upper() for column in columns)


def _select(call: Call) -> list[Row]:
    matches = _filter(call)
    groups = {one for one in (call.text("groups") or "").split(",") if one}
    rows = []
    for lxcpath in call.lxcpaths:
        active = active_containers(lxcpath)
        defined = defined_containers(lxcpath)
        names = set(active) if call.flag("active") or call.flag("frozen") else {*active, *defined}
        if call.flag("defined"):
            names &= set(defined)
        for name in sorted(filter(matches, names)):
            row = Row(name=name, lxcpath=lxcpath, state=_state(lxcpath, name))
            if _wanted(call, row) and (not groups or groups <= _memberships(row)):
                rows.append(row)
    return sorted(rows, key=lambda row: row.name)


def _state(lxcpath: str, name: str) -> int:
    try:
        return CommandClient(lxcpath, name, timeout=ASK_TIMEOUT).get_state()
    except CommandError as error:
        log.warn("%s", error.message)
        return -1


def _wanted(call: Call, row: Row) -> bool:
    if call.flag("frozen") and not call.flag("active"):
        return row.state == FROZEN
    if call.flag("running"):
        return row.state != STOPPED
    if call.flag("stopped"):
        return row.state == STOPPED
    return True


CLASSES: Final = (
    ("[:alnum:]", "a-zA-Z0-9"),
    ("[:alpha:]", "a-zA-Z"),
    ("[:digit:]", "0-9"),
    ("[:lower:]", "a-z"),
    ("[:upper:]", "A-Z"),
    ("[:space:]", r"\s"),
    ("[:xdigit:]", "0-9a-fA-F"),
    ("[:punct:]", r"!-/:-@\[-`{-~"),
)


def _filter(call: Call) -> Callable[[str], object]:
    """Does a name match --filter, or the operand?"""
    given = [call.text("filter"), *call.operands]
    expressions = [one for one in given if one is not None]
    if not expressions:
        return lambda _name: True
    if len(expressions) > 1:
        raise UsageError("only one regular expression can be given")
    import re

    expression = expressions[0]
    for name, characters in CLASSES:
        expression = expression.replace(name, characters)
    try:
        return re.compile(expression).search
    except re.error as error:
        raise UsageError(f"'{expressions[0]}' is not a regular expression: {error}") from None


def _item(row: Row, key: str) -> str:
    """A key of the running configuration, or of the one on disk when the container is stopped."""
    if row.state != STOPPED:
        try:
            return row.client().get_config_item(key) or ""
        except AtollError as error:
            log.debug("%s", error.message)
            return ""
    try:
        return _on_disk(row.lxcpath, row.name).get(key)
    except AtollError as error:
        log.warn("%s", error.message)
        return ""


def _groups(row: Row) -> list[str]:
    """Its groups, one a line of the configuration; a line may name several, joined with commas."""
    return _item(row, "lxc.group").split()


def _memberships(row: Row) -> set[str]:
    return {name for line in _groups(row) for name in (line, *line.split(","))}


def _pid(row: Row) -> int:
    if row.state == STOPPED:
        return 0
    try:
        return row.client().get_init_pid()
    except AtollError as error:
        log.debug("%s", error.message)
        return 0


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    pid = _pid(row) if {"PID", "RAM", "SWAP", "INTERFACE", "IPV4", "IPV6"} & set(columns) else 0
    links = interfaces(pid) if pid and {"INTERFACE", "IPV4", "IPV6"} & set(columns) else ()
    used = usage(row.client(), pid) if pid and {"RAM", "SWAP"} & set(columns) else {}
    shown: dict[str, Callable[[], str]] = {
        "NAME": lambda: row.name,
        "STATE": lambda: STATES[row.state] if row.state >= 0 else "UNKNOWN",
        "PID": lambda: str(pid) if pid else "-",
        "RAM": lambda: _megabytes(used.get("memory", 0)) if pid else "-",
        "SWAP": lambda: _megabytes(used.get("swap", 0)) if pid else "-",
        "AUTOSTART": lambda: "1" if _item(row, "lxc.start.auto") == "1" else "0",
        "GROUPS": lambda: _joined(_groups(row)),
        "INTERFACE": lambda: _joined([link.name for link in links]),
        "IPV4": lambda: _joined(reachable(links, AF_INET)),
        "IPV6": lambda: _joined(reachable(links, AF_INET6)),
        "UNPRIVILEGED": lambda: "true" if _item(row, "lxc.idmap") else "false",
    }
    return [shown[column]() for column in columns]


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.2f}MB"


def _joined(items: Sequence[str]) -> str:
    return ", ".join(items) or "-"


def _print_table(call: Call, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shortest = [FIGURES.get(column, 0) for column in columns]
    widths = [
        max(least, *map(len, cells))
        for least, cells in zip(shortest, zip(columns, *rows, strict=True), strict=True)
    ]
    text = ""
    for cells in (columns, *rows):
        text += "".join(f"{cell:<{width}} " for cell, width in zip(cells, widths, strict=True))
        text += "\n"
    call.out.write(text)


def _print_names(call: Call, names: Sequence[str]) -> None:
    if call.flag("line"):
        call.out.write("".join(f"{name}\n" for name in names))
        return
    width = max(4, *map(len, names))
    if not call.out.isatty():
        call.out.write("".join(f"{name:<{width}}\n" for name in names))
        return
    from atoll.linux.files import window_size

    _rows, room = window_size(call.stdout) or (0, 80)
    text, used = "", 0
    for name in names:
        if used and used + width >= room:
            text, used = text[:-1] + "\n", 0
        text += f"{name:<{width}} "
        used += width + 1
    call.out.write(text + "\n")


def _print_rows_json(call: Call, rows: Sequence[Row]) -> None:
    import json

    shown = []
    for row in rows:
        pid = _pid(row)
        links = interfaces(pid) if pid else ()
        shown.append(
            {
                "name": row.name,
                "lxcpath": row.lxcpath,
                "state": STATES[row.state] if row.state >= 0 else None,
                "pid": pid or None,
                "usage": usage(row.client(), pid) if pid else {},
                "autostart": _item(row, "lxc.start.auto") == "1",
                "groups": _groups(row),
                "interfaces": [link.as_dict() for link in links],
                "unprivileged": bool(_item(row, "lxc.idmap")),
            }
        )
    call.out.line(json.dumps(shown, indent=2))


# -------------------------------------------------------------------------------------- lxc-wait


def lxc_wait(call: Call) -> int:
    """Wait for one of some states; 1 when the time is up or the container stopped instead."""
    text = call.text("state")
    if text is None:
        raise UsageError("could not parse command line: no state to wait for (-s)")
    states = []
    for word in text.split("|"):
        if word.upper() in STATES:
            states.append(STATES.index(word.upper()))
        elif word or not text.strip("|"):  # `RUNNING|` names one state, and '' none
            raise UsageError(f"'{word}' is not a state (use {' '.join(STATES)})")
    timeout = call.number("timeout")
    if timeout is not None and timeout < 0:
        timeout = None
    reached = wait_states(call.lxcpath, call.name, states, timeout)
    return EXIT_OK if reached in states else EXIT_FAILURE
