"""atoll check: every problem of configurations at once, with its place; exit 1 when one of them is an error.

What is found is in config/check.py (the lines), lifecycle/check.py (a start that is planned), advice.py and abilities.py.
"""

from __future__ import annotations

import os

from atoll import api
from atoll.cli.options import UsageError
from atoll.config import check as language
from atoll.config.check import ERROR, NOTE, WARNING, Problem
from atoll.errors import EXIT_FAILURE, EXIT_OK, ConfigError
from atoll.lifecycle import abilities, advice, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.cli.options import Call
    from atoll.config.check import Reading, Sources
    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.lifecycle.check import Finding

STANDARD_INPUT = "-"
TEXT_SHOWN = 160


def run(call: Call) -> int:
    """The tool."""
    wanted = ([call.name] if call.name else []) + list(call.operands)
    if not wanted:
        raise UsageError("give a container's name or a configuration file", help=True)
    host = api.Container("check", lxcpath=call.lxcpath, environ=call.environ).host
    found: list[Problem] = []
    for operand in wanted:
        found += _problems(call, operand, host)
    if call.flag("json"):
        from json import dumps

        call.out.line(dumps([problem.as_json() for problem in found], indent=1))
    else:
        _print(call, found)
    return EXIT_FAILURE if any(problem.severity == ERROR for problem in found) else EXIT_OK


def _problems(call: Call, operand: str, host: Host) -> tuple[Problem, ...]:
    path, name = operand, ""
    try:
        path, name = _path(call, operand)
        reading = _read(call, path)
    except ConfigError as error:
        return language.from_error(error, language.Sources(), file=path)
    found = list(reading.problems)
    ideal = check.able(host)
    whole = bool(name) or reading.config.mentions("lxc.rootfs.path")
    errors, rest = check.refusals(check.without_limits(reading.config), ideal, name=name or "check")
    for refusal in errors:
        found += language.from_error(refusal, reading.sources, file=path)
    found += _located(advice.findings(reading.config, ideal, whole=whole), reading.sources, path)
    refused = {(problem.file, problem.line) for problem in found if problem.severity == ERROR}
    later = _later(reading.config, host, reading.sources, path)
    found += [problem for problem in later if (problem.file, problem.line) not in refused]
    if call.flag("host"):
        found += _of_host(reading, rest, host, path, name)
    return language.in_order(found)


def _of_host(reading: Reading, rest: Config, host: Host, path: str, name: str) -> Iterator[Problem]:
    """What this machine lacks. `rest` is the configuration without what is wrong everywhere."""
    limited = reading.config.omit(
        {a.origin for a in reading.config.assignments}
        - {a.origin for a in rest.assignments}
        - {*reading.config.origins("lxc.cgroup.*"), *reading.config.origins("lxc.cgroup2.*")}
    )
    errors, able = check.refusals(limited, host, name=name or "check")
    for error in errors:
        yield from language.from_error(error, reading.sources, file=path)
    yield from _located(abilities.findings(able, host), reading.sources, path)


def _path(call: Call, operand: str) -> tuple[str, str]:
    """The file that an operand names, and the container's name where it names one."""
    if operand == STANDARD_INPUT:
        return operand, ""
    path = os.path.join(call.cwd, operand)
    if "/" in operand:
        return path, os.path.basename(os.path.dirname(path)) if path.endswith("/config") else ""
    container = api.Container(operand, lxcpath=call.lxcpath, environ=call.environ)
    if os.path.lexists(container.config_file):
        return container.config_file, operand
    if os.path.isfile(path):
        return path, ""
    raise ConfigError(
        f"{operand} is neither a container in {call.lxcpath} nor a file here",
        fix="name a file with a / in its name, or the directory of the containers with -P",
    )


def _read(call: Call, path: str) -> Reading:
    if path != STANDARD_INPUT:
        return language.read(path)
    chunks = []
    while chunk := os.read(call.stdin, 1 << 16):
        chunks.append(chunk)
    return language.parse(b"".join(chunks).decode("utf-8", "surrogateescape"), "standard input")


def _located(findings: Iterable[Finding], sources: Sources, path: str) -> Iterator[Problem]:
    for finding in findings:
        origin = finding.origin
        column, end = sources.place(origin, finding.token) if origin else (0, 0)
        yield Problem(
            severity=finding.severity,
            message=finding.message,
            file=origin.file if origin else path,
            line=origin.line if origin else 0,
            column=column,
            end=end,
            key=finding.key,
            suggestion=finding.fix,
            text=sources.line(origin) if origin else "",
        )


def _later(config: Config, host: Host, sources: Sources, path: str) -> Iterator[Problem]:
    return _located(
        (
            check.Finding(
                severity=NOTE,
                message=f'{key} is understood but not yet applied: it comes with the part "{part}" of the project',
                key=key,
                origin=origin,
            )
            for key, part, origin in config.later(host)
        ),
        sources,
        path,
    )


def _print(call: Call, problems: list[Problem]) -> None:
    for problem in problems:
        place = problem.file
        if problem.line:
            place += f":{problem.line}:{problem.column}"
        call.out.line(f"{place}: {problem.severity}: {problem.message}")
        if problem.line and len(problem.text) <= TEXT_SHOWN and problem.text.isprintable():
            mark = "^" * max(1, problem.end - problem.column)
            call.out.line(f"    {problem.text}")
            call.out.line(f"    {' ' * (problem.column - 1)}{mark}")
        if problem.suggestion:
            call.out.line(f"    fix: {problem.suggestion}")
    if not call.quiet:
        call.out.line(_summary(problems))


def _summary(problems: list[Problem]) -> str:
    counts = []
    for severity in (ERROR, WARNING, NOTE):
        number = sum(problem.severity == severity for problem in problems)
        if number:
            counts.append(f"{number} {severity}{'s' if number > 1 else ''}")
    return ", ".join(counts) or "no problems"
