"""Command lines, one by one: exit status, standard output, and what kind of message comes on standard error.

Each line is first green with Debian's tools and then with ours. Where ours differs on purpose the line says so with the
name of a section of docs/differences.md; a test here sees that both know the same names.
Expectations: reference of LXC, sections 11.1 to 11.7.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Generator

NOTHING = ""
HELP = r"^Usage: \S*lxc-|^Options ?:"
PID = r"PID: {12}\d+\n"
STATS = r"CPU use: {8}\d+\.\d\d seconds\n(BlkIO use: {6}.*\n)?(Memory use: {5}.*\n)?(KMem use: {7}.*\n)?"
RAW_STATS = r"(CPU use: {8}\d+\n)(BlkIO use: {6}\d+\n)?(Memory use: {5}\d+\n)?(KMem use: {7}\d+\n)?"
HEADER = "NAME    STATE   AUTOSTART GROUPS   IPV4 IPV6 UNPRIVILEGED \n"


class Ours(NamedTuple):
    """A deliberate difference: its name in docs/differences.md, and what our tools do; None is what Debian's do."""

    name: str
    code: int | None = None
    out: str | None = None
    err: str | None = None


class Line(NamedTuple):
    """A command line and what comes of it.

    `out` is the whole output (text, or a pattern when it begins with "~"); `err` a pattern to be found, whatever its case,
    or nothing at all.
    """

    words: str
    code: int = 0
    out: str = NOTHING
    err: str = NOTHING
    ours: Ours | None = None
    environ: tuple[tuple[str, str], ...] = ()


LINES = [
    # Every tool: 11.1.
    Line("lxc-info", 1, err="^lxc-info: No container name specified$"),
    Line("lxc-start", 1, err="^lxc-start: No container name specified$"),
    Line("lxc-execute", 1, err="^lxc-execute: No container name specified$"),
    Line("lxc-attach", 1, err="^lxc-attach: No container name specified$"),
    Line("lxc-wait -s RUNNING", 1, err="^lxc-wait: No container name specified$"),
    Line("lxc-stop", 1, err="^lxc-stop: No container name specified$"),
    Line("lxc-destroy", 1, err="^lxc-destroy: No container name specified$"),
    Line("lxc-create -t none", 1, err="^lxc-create: No container name specified$"),
    Line("lxc-info --nonsense", 1, err=HELP),
    Line("lxc-info -Z", 1, err=HELP),
    Line("lxc-info -n", 1, err=HELP),
    Line("lxc-ls --nonsense", 1, err=HELP),
    Line("lxc-info --help", 0, err=HELP),
    Line("lxc-info -h", 0, err=HELP),
    Line("lxc-info -?", 0, err=HELP),
    Line("lxc-start --usage", 0, err="^Usage: lxc-start"),
    Line("lxc-ls --version", 0, out=r"~5\.0\.2.*\n"),
    Line("lxc-info --st --name=stopped", 0, ours=Ours("abbreviations"), err=NOTHING),
]
