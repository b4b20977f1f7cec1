"""Tools about configuration: `atoll config`, lxc-config, lxc-update-config, lxc-checkconfig.

What they do to a file's text is in config/ (editing, update, listing), what is tried of the machine in lifecycle/trials.py.
Messages and exit statuses: reference of LXC, sections 2.3, 2.4, 11.2, 11.3 and 11.9 (observed on 5.0.2).
"""

from __future__ import annotations

import os

from atoll import host as host_module
from atoll.cli import options
from atoll.cli.options import UsageError
from atoll.config import editing, listing, update
from atoll.config.system import KEYS, system_value
from atoll.config.text import Config, load
from atoll.errors import EXIT_FAILURE, EXIT_OK, ConfigError, StateError, reason
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from atoll.cli.options import Call
    from atoll.config.listing import Row
    from atoll.host import Host
    from atoll.lifecycle.trials import Trial

# ------------------------------------------------------------------------------------- lxc-config
UNLISTED: Final = ("lxc.bdev.rbd.rbdpool",)  # LXC's library knows it, its tool does not list it
CONFIG_USAGE: Final = """\
Usage: lxc-config -l: list all available configuration items
       lxc-config item: print configuration item"""


def lxc_config(call: Call) -> int:
    """lxc-config: list the settings of lxc.conf, or print one; a part of its name is enough, the first in the list wins."""
    listed = [key for key in KEYS if key not in UNLISTED]
    if call.flag("list"):
        for key in listed:
            call.out.line(key)
        return EXIT_OK
    wanted = call.operands[0] if call.operands else ""
    if not wanted:
        call.out.line(CONFIG_USAGE)
        return EXIT_OK
    matching = [key for key in (*listed, *UNLISTED) if key.startswith(wanted)]
    if not matching:
        call.out.line(f"Unknown configuration item: {wanted}")
        return EXIT_FAILURE
    value = system_value(host_module.probe(), matching[0], call.environ)
    call.out.line(f"{wanted} is not set." if value is None else value)
    return EXIT_OK


# ------------------------------------------------------------------------------ lxc-update-config
UPDATE_USAGE: Final = """\
lxc-update-config -h|--help [-c|--config]
config: the container configuration to update"""


def lxc_update_config(call: Call) -> int:
    """lxc-update-config: rewrite a file with the present names of keys, keeping the old one as FILE.backup."""
    if not call.argv:
        call.out.line(UPDATE_USAGE)
        return EXIT_OK
    path = call.file("config")
    if path is None:
        raise UsageError("No configuration file specified: use -c FILE")
    old = _text_of(path)
    new, problems = update.modernise(old)
    if call.flag("diff"):
        call.out.write(update.difference(path, old, new))
    elif old != new or not os.path.exists(f"{path}.backup"):
        _keep(path, old)
        if old != new:
            editing.replace(path, new.encode("utf-8", "surrogateescape"))
    for number, why in problems:
        call.complain(f"{path}:{number}: left as it is: {why}")
    return EXIT_OK


def _text_of(path: str) -> str:
    try:
        return load(path)[0].decode("utf-8", "surrogateescape")
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read {path}: {why}") from error


def _keep(path: str, text: str) -> None:
    """Write FILE.backup, over an older one."""
    backup = f"{path}.backup"
    data = text.encode("utf-8", "surrogateescape")
    editing.replace(backup, data, model=path)


# --------------------------------------------------------------------------------- atoll config
VERBS: Final = {"get": 1, "set": 2, "add": 2, "unset": 1, "show": 0}
"""What can be done, and how many words it needs at least: KEY, VALUE."""


class Asked(Record):
    """An `atoll config` command line: which file, what to do, and its words."""

    path: str
    verb: str
    words: tuple[str, ...]


def config(call: Call) -> int:
    """Show a container's configuration, or change it: get, set, add, unset, show."""
    call = _with_later_options(call)
    if call.flag("help"):
        call.out.write(options.help_text("config", call.tool))
        return EXIT_OK
    asked = _asked(call)
    if asked.verb == "show":
        return _show(call, asked)
    if asked.verb == "get":
        return _get(call, asked)
    return _change(call, asked)


def _with_later_options(call: Call) -> Call:
    """The call with the options between its words; what comes after a KEY to set is a value, though it begin with a dash."""
    table = options.parse_table(call.tool.options + options.COMMON)
    table += (options.Option(long="help", short="h"),)
    values = dict(call.values)
    words: list[str] = []
    rest: Sequence[str] = call.operands
    first = 0 if call.text("rcfile") or call.text("name") else 1
    while rest:
        if len(words) >= first + 2 and words[first] in {"set", "add"}:
            words += rest
            break
        parsed = options.parse(rest, table, stop=True)
        values.update({k: v for k, v in parsed.values.items() if v not in (None, False, [])})
        first = 0 if values["rcfile"] or values["name"] else 1
        words += parsed.operands[:1]
        rest = parsed.operands[1:]
    paths = values["lxcpath"]
    given = tuple(os.path.join(call.cwd, path) for path in paths) if isinstance(paths, list) else ()
    return call.replace(values=values, operands=tuple(words), lxcpaths=given or call.lxcpaths)


def _asked(call: Call) -> Asked:
    words = list(call.operands)
    path, name = call.file("rcfile"), call.text("name")
    if path is None:
        name = name or (words.pop(0) if words else "")
        if not name:
            raise UsageError("No container name specified", help=True)
        if "/" in name or name in {".", ".."}:
            raise UsageError(f"'{name}' cannot be a container's name: use -f for a file")
        path = f"{call.lxcpath}/{name}/config"
        if not os.path.lexists(path):
            raise StateError(
                f"container {name} is not defined: {path} does not exist", now="undefined",
                wanted="defined", fix="give its lxcpath with -P, or a file with -f",
            )  # fmt: skip
    verb = words.pop(0) if words else "show"
    if verb not in VERBS:
        raise UsageError(f"'{verb}' is none of {' '.join(VERBS)}", help=True)
    if len(words) < VERBS[verb]:
        raise UsageError(f"{verb} needs {' and '.join(('KEY', 'VALUE')[: VERBS[verb]])}")
    return Asked(path=path, verb=verb, words=tuple(words))


def _read(call: Call, path: str) -> Config:
    """A configuration, without the lines that cannot be used; those are told."""
    problems: list[ConfigError] = []
    found = Config.read(path, problems=problems)
    for problem in problems:
        call.complain(f"{problem.origin}: {problem.message}")
    return found


def _get(call: Call, asked: Asked) -> int:
    found = _read(call, asked.path)
    for word in asked.words:
        key = editing.present_name(word)
        text = found.get(key).rstrip("\n")  # refuses what has no value
        if call.flag("where"):
            rows = [row for row in listing.effective(found) if _below(row.key, key)]
            _print_rows(call, rows, [row.value for row in rows])
        elif text:
            call.out.line(text)
    return EXIT_OK


def _show(call: Call, asked: Asked) -> int:
    found = _read(call, asked.path)
    rows = listing.effective(found) if call.flag("effective") else listing.own(found)
    if call.flag("effective") and not any(row.key == "lxc.rootfs.mount" for row in rows):
        mount = host_module.probe().rootfs_mount  # the one default that depends on the machine
        rows += (listing.Row(key="lxc.rootfs.mount", value=mount),)
    if asked.words:
        rows = tuple([row for row in rows if any(_below(row.key, word) for word in asked.words)])
    if call.flag("json"):
        import json

        call.out.line(json.dumps([row.as_dict() for row in rows], indent=2))
        return EXIT_OK
    _print_rows(call, rows, [row.text for row in rows])
    return EXIT_OK


def _print_rows(call: Call, rows: Sequence[Row], texts: Sequence[str]) -> None:
    """Lines, with --where behind the place where each is set."""
    width = max((len(row.place) for row in rows), default=0)
    for row, text in zip(rows, texts, strict=True):
        call.out.line(f"{row.place:<{width}}  {text}" if call.flag("where") else text)


def _below(key: str, word: str) -> bool:
    return key == word or key.startswith(f"{word.rstrip('.')}.")


def _change(call: Call, asked: Asked) -> int:
    with editing.ConfigFile(asked.path) as file:
        if asked.verb == "unset":
            for key in asked.words:
                file.unset(key)
        else:
            change = file.set if asked.verb == "set" else file.add
            change(asked.words[0], asked.words[1:])
        if call.flag("diff"):
            call.out.write(update.difference(asked.path, file.original, file.config.text()))
        else:
            file.save()
        for problem in file.problems:
            call.complain(f"{problem.origin}: {problem.message}")
    return EXIT_OK


# -------------------------------------------------------------------------------- lxc-checkconfig
RED: Final = "\033[1;31m"
COLOURS: Final = {
    "enabled": "\033[1;32m",
    "disabled": RED,
    "required": RED,
    "missing": "\033[1;33m",
}
PLAIN: Final = "\033[0m"


def lxc_checkconfig(call: Call) -> int:
    """lxc-checkconfig: what this machine lets this user do, tried out; or what another kernel's configuration promises."""
    from atoll.lifecycle import kernelconfig, trials

    facts = host_module.probe()
    other = call.environ.get("CONFIG")
    if other:
        sections = kernelconfig.promised(os.path.join(call.cwd, other))
    else:
        sections = trials.everything(facts, call.environ)
    if call.flag("json"):
        _print_sections_json(call, facts, sections, other)
        return EXIT_OK
    call.out.line(f"LXC version {options.version_text(call.program)}")
    who = f"promised by {other}" if other else f"tried by {facts.user} on Linux {facts.release}"
    call.out.line(who)
    for title, items in sections:
        call.out.line(f"\n--- {title} ---")
        mounts = _mount_points(facts) if title == "Control groups" and not other else []
        for number, item in enumerate(items):
            call.out.line(_shown(item, colour=_coloured(call)))
            if number == 0:
                for line in mounts:
                    call.out.line(line)
    if not other:
        call.out.line(
            "\nAnother kernel, before it is booted: CONFIG=/path/to/its/config lxc-checkconfig"
        )
    return EXIT_OK


def _coloured(call: Call) -> bool:
    return call.out.isatty() and not call.environ.get("NO_COLOR")


def _shown(trial: Trial, *, colour: bool) -> str:
    state = f"{COLOURS[trial.state]}{trial.state}{PLAIN}" if colour else trial.state
    return f"{trial.item}: {state}{f' ({trial.reason})' if trial.reason else ''}"


def _mount_points(facts: Host) -> list[str]:
    lines = []
    for version in (1, 2):
        lines.append(f"Cgroup v{version} mount points:")
        lines += [f" - {each.mount}" for each in facts.hierarchies if each.version == version]
    return lines


def _print_sections_json(
    call: Call, facts: Host, sections: Iterable[tuple[str, Sequence[Trial]]], other: str | None
) -> None:
    import json

    shown = {
        "version": options.version_text(call.program),
        "user": facts.user,
        "uid": facts.uid,
        "kernel": other or facts.release,
        "cgroups": [{"version": h.version, "mount": h.mount, "writable": h.writable} for h in facts.hierarchies],
        "sections": [
            {"title": title, "items": [item.as_dict() for item in items]}
            for title, items in sections
        ],
    }  # fmt: skip
    call.out.line(json.dumps(shown, indent=2))
