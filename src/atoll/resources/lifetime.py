"""Wishes about a container's life as a whole: starting with the host, how to end it, its monitor and its log.

Sections only: lifecycle, the log and the tools read them. Source: reference of LXC, sections 2.2, 2.5, 2.6 and 14.
"""

from __future__ import annotations

from atoll.config.keys import (
    Kind,
    Section,
    choice,
    flag,
    integer,
    key,
    number,
    path,
    signal,
    text,
    words,
)
from atoll.log import LEVELS, parse_level

COMMANDS = "commands"  # the part of the project that brings lxc-autostart and the other tools
SIGINT, SIGKILL, SIGPWR = 2, 9, 30
FACILITIES = ("daemon", *(f"local{n}" for n in range(8)))


class Autostart(Section):
    """lxc.start.*, lxc.group: what lxc-autostart does with the container when the host boots."""

    auto: bool = key(
        "lxc.start.auto", flag, default=False, later=COMMANDS, doc="1: start with the host."
    )
    delay: int = key(
        "lxc.start.delay",
        number,
        default=0,
        later=COMMANDS,
        doc="Seconds to wait after starting it before the next one.",
    )
    order: int = key(
        "lxc.start.order",
        integer,
        default=0,
        later=COMMANDS,
        doc="Lower ones start first and stop last; names decide between equals.",
    )
    groups: tuple[str, ...] = key(
        "lxc.group", words, later=COMMANDS, doc="Groups that it belongs to, for lxc-autostart -g."
    )


class Lifetime(Section):
    """lxc.ephemeral, lxc.execute.cmd: what a container is for."""

    ephemeral: bool = key(
        "lxc.ephemeral",
        flag,
        default=False,
        doc="1: destroy it when it has stopped; not on reboot.",
    )
    execute_command: str | None = key(
        "lxc.execute.cmd", text, doc="Command that lxc-execute runs when it is given none."
    )


class Monitor(Section):
    """lxc.monitor.*: the process that watches the container."""

    unshare: int = key(
        "lxc.monitor.unshare",
        number,
        default=0,
        doc="Not 0: the monitor gets a mount namespace of its own before it sets up the container.",
    )
    death_signal: int = key(
        "lxc.monitor.signal.pdeath",
        signal,
        default=SIGKILL,
        empty=0,
        doc="Signal that init gets when the monitor dies; 0 or nothing: none.",
    )


class Signals(Section):
    """lxc.signal.*: what init is sent to end it. Unset, LXC's getter prints 0 and the defaults hold."""

    halt: int = key(
        "lxc.signal.halt",
        signal,
        default=SIGPWR,
        unset="0",
        legacy=("lxc.haltsignal",),
        doc="Signal that asks init to shut down.",
    )
    reboot: int = key(
        "lxc.signal.reboot",
        signal,
        default=SIGINT,
        unset="0",
        legacy=("lxc.rebootsignal",),
        doc="Signal that asks init to reboot.",
    )
    stop: int = key(
        "lxc.signal.stop",
        signal,
        default=SIGKILL,
        unset="0",
        legacy=("lxc.stopsignal",),
        doc="Signal that ends init by force.",
    )


class Log(Section):
    """lxc.log.*: where the monitor logs; explicit -o and -l win."""

    file: str | None = key("lxc.log.file", path, legacy=("lxc.logfile",), doc="File to log to.")
    level: int | None = key(
        "lxc.log.level",
        Kind(parse_level, LEVELS.__getitem__),
        unset="NOTSET",
        legacy=("lxc.loglevel",),
        doc=f"Least level that is logged: {' '.join(LEVELS)}, or 0 to 8.",
    )
    syslog: str | None = key(
        "lxc.log.syslog",
        choice(*FACILITIES),
        legacy=("lxc.syslog",),
        later=COMMANDS,
        doc="Facility of syslog(3) that the log goes to as well: daemon or local0 to local7.",
    )
