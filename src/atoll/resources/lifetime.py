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
        "lxc.start.auto",
        flag,
        default=False,
        later=COMMANDS,
        doc="1: lxc-autostart starts it, as it does when the host boots.",
        example="1",
        since="1.x",
    )
    delay: int = key(
        "lxc.start.delay",
        number,
        default=0,
        later=COMMANDS,
        doc="Seconds that lxc-autostart waits after starting it, before the next one.",
        example="5",
        since="1.x",
    )
    order: int = key(
        "lxc.start.order",
        integer,
        default=0,
        later=COMMANDS,
        doc="Lower numbers start first and stop last; names decide between equals.",
        example="10",
        since="1.x",
    )
    groups: tuple[str, ...] = key(
        "lxc.group",
        words,
        later=COMMANDS,
        doc="Groups that the container belongs to, with blanks between, for lxc-autostart -g and"
        " lxc-ls -g.",
        example="onboot web",
        since="1.x",
    )


class Lifetime(Section):
    """lxc.ephemeral, lxc.execute.cmd: what a container is for."""

    ephemeral: bool = key(
        "lxc.ephemeral",
        flag,
        default=False,
        doc="1: destroy the container when it has stopped; not when it reboots.",
        example="1",
        since="5.0.2",
    )
    execute_command: str | None = key(
        "lxc.execute.cmd",
        text,
        doc="Command line that lxc-execute runs when it is given none.",
        example="/usr/bin/id -u",
        since="5.0.2",
    )


class Monitor(Section):
    """lxc.monitor.*: the process that watches the container."""

    unshare: int = key(
        "lxc.monitor.unshare",
        number,
        default=0,
        doc="Not 0: the monitor gets a mount namespace of its own before it sets up the container.",
        example="1",
        since="5.0.2",
    )
    death_signal: int = key(
        "lxc.monitor.signal.pdeath",
        signal,
        default=SIGKILL,
        empty=0,
        doc="Signal that init gets when the monitor dies: a number, SIGNAME, SIGRTMIN+N or"
        " SIGRTMAX-N; 0, or an empty value: none.",
        example="SIGTERM",
        since="5.0.2",
    )


class Signals(Section):
    """lxc.signal.*: what init is sent to end it. Unset, LXC's getter prints 0 and the defaults hold."""

    halt: int = key(
        "lxc.signal.halt",
        signal,
        default=SIGPWR,
        unset="0",
        doc="Signal that asks init to shut down: a number, SIGNAME, SIGRTMIN+N or SIGRTMAX-N."
        " Unset: SIGRTMIN+3 for a systemd, else SIGPWR.",
        example="SIGRTMIN+4",
        since="2.x",
    )
    reboot: int = key(
        "lxc.signal.reboot",
        signal,
        default=SIGINT,
        unset="0",
        doc="Signal that asks init to reboot, written the same way.",
        example="SIGINT",
        since="2.x",
    )
    stop: int = key(
        "lxc.signal.stop",
        signal,
        default=SIGKILL,
        unset="0",
        doc="Signal that ends init by force, written the same way.",
        example="SIGKILL",
        since="2.x",
    )


class Log(Section):
    """lxc.log.*: where the monitor logs; explicit -o and -l win."""

    file: str | None = key(
        "lxc.log.file",
        path,
        doc="File that the monitor logs to; -o wins.",
        example="/var/log/lxc/c1.log",
        since="2.x",
    )
    level: int | None = key(
        "lxc.log.level",
        Kind(parse_level, LEVELS.__getitem__, name="log level", values=LEVELS),
        unset="NOTSET",
        doc="Least level that is logged: TRACE DEBUG INFO NOTICE WARN ERROR CRIT ALERT FATAL in"
        " either case, or 0 to 8; -l wins. Unset: ERROR.",
        example="DEBUG",
        since="2.x",
    )
    syslog: str | None = key(
        "lxc.log.syslog",
        choice(*FACILITIES),
        later=COMMANDS,
        doc="Facility of syslog(3) that the log goes to as well: daemon, or local0 to local7.",
        example="daemon",
        since="2.x",
    )
