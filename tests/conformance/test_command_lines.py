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
HEADER = "NAME    STATE   AUTOSTART GROUPS  IPV4 IPV6 UNPRIVILEGED \n"
GROUPED_ROW = "grouped STOPPED 1         web, db -    -    false        \n"
RUNNING_ROW = "running RUNNING 0         -       -    -    false        \n"
STOPPED_ROW = "stopped STOPPED 0         -       -    -    false        \n"


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
    Line("lxc-info -n stopped --st", 1, err="ambiguous"),
    Line("lxc-ls --nonsense", 1, err=HELP),
    Line("lxc-info --help", err=HELP),
    Line("lxc-info -h", err=HELP),
    Line("lxc-info '-?'", 1, err=HELP, ours=Ours("question mark", 0)),
    Line("lxc-start --usage", err="^Usage: lxc-start"),
    Line("lxc-ls --version", out=r"~5\.0\.2.*\n"),
    Line("lxc-info --conf=lxc.uts.name --na=stopped", out="lxc.uts.name = stopped\n"),
    Line("lxc-info stopped -s", out="State:          STOPPED\n"),
    Line(
        "lxc-info -s -- stopped",
        out="State:          STOPPED\n",
        ours=Ours("name after dashes", 1, NOTHING, "No container name specified"),
    ),
    Line("lxc-info -P /elsewhere -n stopped", 1, err="only accepts 1 -P,--lxcpath arguments"),
    Line(
        "lxc-ls -P /elsewhere",
        1,
        err="only accepts 1",
        ours=Ours("several lxcpaths", 0, "grouped\nrunning\nstopped\n", NOTHING),
    ),
    Line("lxc-info a/b", 1, err="a/b"),
    # lxc-info: 11.6.
    Line("lxc-info missing", 1, err="^missing doesn't exist$"),
    Line("lxc-info stopped", out="Name:           stopped\nState:          STOPPED\n"),
    Line("lxc-info -sH stopped", out="STOPPED\n"),
    Line("lxc-info -spH stopped", out="State:          STOPPED\n"),
    Line("lxc-info -p stopped"),
    Line("lxc-info -iS stopped"),
    Line("lxc-info running", out=f"~Name: {{11}}running\nState: {{10}}RUNNING\n{PID}{STATS}"),
    Line("lxc-info -s running", out="State:          RUNNING\n"),
    Line("lxc-info -p running", out=f"~{PID}"),
    Line("lxc-info -pH running", out=r"~\d+\n"),
    Line("lxc-info -sp running", out=f"~State: {{10}}RUNNING\n{PID}"),
    Line("lxc-info -i running"),
    Line("lxc-info -S running", out=f"~{STATS}"),
    Line("lxc-info -SH running", out=f"~{RAW_STATS}"),
    Line("lxc-info -q -sH running", out="RUNNING\n"),
    Line("lxc-info stopped -c lxc.uts.name", out="lxc.uts.name = stopped\n"),
    Line("lxc-info stopped -c lxc.uts.name -H", out="stopped\n"),
    Line(
        "lxc-info grouped -c lxc.start.auto -c lxc.init.uid",
        out="lxc.start.auto = 1\nlxc.init.uid = 0\n",
    ),
    Line("lxc-info stopped -c lxc.execute.cmd", out="lxc.execute.cmd =\n"),
    Line(
        "lxc-info stopped -c lxc.net.0.type -s",
        out="State:          STOPPED\nlxc.net.0.type = empty\n",
    ),
    Line("lxc-info stopped -c lxc.nope", err="^lxc.nope invalid$"),
    # lxc-ls: 11.6.
    Line("lxc-ls", out="grouped\nrunning\nstopped\n"),
    Line("lxc-ls -1", out="grouped\nrunning\nstopped\n"),
    Line("lxc-ls --line '^r'", out="running\n"),
    Line("lxc-ls --filter 'stop|nope'", out="stopped\n"),
    Line("lxc-ls nope"),
    Line("lxc-ls --running", out="running\n"),
    Line("lxc-ls --stopped", out="grouped\nstopped\n"),
    Line("lxc-ls --active", out="running\n"),
    Line("lxc-ls --frozen"),
    Line("lxc-ls --defined", out="grouped\nrunning\nstopped\n"),
    Line("lxc-ls -g web", out="grouped\n"),
    Line("lxc-ls --groups=web,db", out="grouped\n"),
    Line("lxc-ls -g web,nope"),
    Line("lxc-ls -f", out=HEADER + GROUPED_ROW + RUNNING_ROW + STOPPED_ROW),
    Line("lxc-ls -f --stopped", out=HEADER + GROUPED_ROW + STOPPED_ROW),
    Line("lxc-ls -f nope"),
    Line("lxc-ls -F NAME", out="grouped\nrunning\nstopped\n"),
    Line("lxc-ls -f -F STATE,NAME 'g$'", out="STATE   NAME    \nRUNNING running \n"),
    Line("lxc-ls -f -F name,Pid -g web", out="NAME    PID \ngrouped -   \n"),
    Line(
        "lxc-ls -f -F NAME,PID,RAM,SWAP,INTERFACE -g web",
        out="NAME    PID RAM    SWAP   INTERFACE \ngrouped -   -      -      -         \n",
    ),
    Line(
        "lxc-ls -f -F PID,RAM,SWAP,INTERFACE,IPV4,IPV6 --running",
        out=r"~PID *RAM *SWAP *INTERFACE IPV4 IPV6 \n\d+ *\d\.\d\dMB \d\.\d\dMB lo        -    -    \n",
    ),
    Line("lxc-ls -f -F nope", err="^Invalid key: nope$"),
    Line("lxc-ls '['", ours=Ours("bad patterns", 1, err="not a regular expression")),
    Line(
        "lxc-ls one two",
        out="grouped\nrunning\nstopped\n",
        ours=Ours("bad patterns", 1, NOTHING, "only one"),
    ),
    # lxc-wait: 11.3.
    Line("lxc-wait running", 1, err="^lxc-wait: could not parse command line"),
    Line("lxc-wait running -s RUNNING"),
    Line("lxc-wait running -s 'STOPPED|RUNNING'"),
    Line("lxc-wait running -s 'RUNNING|'"),
    Line(
        "lxc-wait running -s running",
        1,
        err="invalid state 'running'",
        ours=Ours("state names", 0, err=NOTHING),
    ),
    Line("lxc-wait running -s 'RUNNING|NOPE'", 1, err="invalid state 'NOPE'|'NOPE' is not a state"),
    Line(
        "lxc-wait running -s STOPPED -t 1",
        1,
        err="Failed to receive",
        ours=Ours("wait in silence", err=NOTHING),
    ),
    Line("lxc-wait stopped -s STOPPED"),
    Line("lxc-wait stopped -s RUNNING -t 1", 1),
    Line("lxc-wait missing -s STOPPED"),
    Line("lxc-wait missing -s RUNNING -t 1", 1),
    Line("lxc-wait running -s RUNNING -t -1"),
    Line("lxc-wait running -s RUNNING -t x", ours=Ours("numbers", 1, err="whole number")),
    # lxc-stop: 11.4.
    Line("lxc-stop missing", 2, err="missing is not running"),
    Line("lxc-stop stopped", 2, err="stopped is not running"),
    Line("lxc-stop -k stopped", 2, err="stopped is not running"),
    Line("lxc-stop -k --nolock stopped", 2, err="stopped is not running"),
    Line("lxc-stop -kW stopped", 2, err="stopped is not running"),
    Line("lxc-stop -r stopped", 2, err="stopped is not running"),
    Line("lxc-stop -q stopped", 2),
    Line("lxc-stop -k --nokill running", 1, err="-k can't be used with --nokill"),
    Line("lxc-stop -k -r running", 1, err="-k can't be used with -r"),
    Line("lxc-stop -k -t 3 running", 1, err="-k doesn't allow timeouts"),
    Line("lxc-stop --nolock running", 1, err="--nolock may only be used with -k"),
    Line("lxc-stop -t x running", 1, err="could not parse command line|whole number"),
    Line(
        "lxc-stop -t -2 stopped",
        2,
        err="not running",
        ours=Ours("numbers", 1, err="Invalid timeout"),
    ),
    # lxc-start: 11.4.
    Line("lxc-start running", err="Container is already running"),
    Line("lxc-start -F running", err="Container is already running"),
    Line("lxc-start missing", 1, err="No container config specified"),
    Line("lxc-start missing /bin/true", 1, err="No container config specified"),
    Line("lxc-start -n missing -s lxc.uts.name=x", 1, err="No container config specified"),
    Line("lxc-start -n stopped -f /nonexistent", 1, err="/nonexistent"),
    Line(
        "lxc-start -n stopped -s nonsense",
        1,
        err="could not parse command line|cannot use -s nonsense",
    ),
    Line(
        "lxc-start -n stopped -s lxc.nonsense=1",
        1,
        err='(Unsupported config|unknown) key "?lxc.nonsense',
    ),
    Line("lxc-start -n stopped --share-net=missing", 1, err="."),
    Line("lxc-start -n stopped --share-net=/nonexistent", 1, err="."),
    Line(
        "lxc-start -n stopped -- /bin/nonsense",
        1,
        err="The container failed to start|cannot execute /bin/nonsense",
    ),
    Line(
        "lxc-start -F -n stopped -- /bin/nonsense",
        1,
        err="The container failed to start|cannot execute /bin/nonsense",
    ),
    Line("lxc-start -F -n stopped -- /bin/true"),
    Line("lxc-start -F -n stopped -- /bin/sh -c 'exit 3'", ours=Ours("foreground status", 3)),
    Line("lxc-start -F -n stopped -- /bin/poweroff -f"),
    Line("lxc-start -n stopped -- /bin/true"),
    # lxc-execute: 11.3, 11.4.
    Line("lxc-execute missing -- true", 1, err="no configuration file may crash the host"),
    Line("lxc-execute -n stopped -f /nonexistent -- true", 1, err="/nonexistent"),
    Line("lxc-execute -n stopped -s lxc.nonsense=1 -- true", 1, err='key "?lxc.nonsense'),
    Line("lxc-execute stopped", 139, ours=Ours("execute nothing", 1, err="no command")),
    Line("lxc-execute stopped -- true"),
    Line("lxc-execute stopped -- false", 1),
    Line("lxc-execute stopped -- echo a b", out="a b\n"),
    Line("lxc-execute stopped -- sh -c 'echo problem >&2; exit 42'", 42, err="^problem$"),
    Line("lxc-execute stopped -- sh -c 'kill -9 $$'", 137),
    Line("lxc-execute stopped -- sh -c 'kill -TERM $$'", 143),
    Line(
        "lxc-execute stopped -- nonsense",
        255,
        ours=Ours("silent failures", err="cannot execute nonsense"),
    ),
    Line(
        "lxc-execute stopped -- /etc/passwd",
        255,
        ours=Ours("silent failures", err="cannot execute /etc/passwd"),
    ),
    Line(
        "lxc-execute -n stopped -s 'lxc.execute.cmd=echo from a key'",
        139,
        ours=Ours("execute nothing", 0, "from a key\n"),
    ),
    Line("lxc-execute -n stopped -u 1000 -g 1000 -- id", out="uid=1000(user) gid=1000(user)\n"),
    Line("lxc-execute -d -n stopped -- true"),
    Line("lxc-execute running -- true", 1, err="already running"),
    # lxc-attach: 11.3, 11.5.
    Line("lxc-attach missing -- true", 1, err="get init pid|not running"),
    Line("lxc-attach stopped -- true", 1, err="get init pid|not running"),
    Line("lxc-attach running -- true"),
    Line("lxc-attach running -- false", 1),
    Line("lxc-attach running -- sh -c 'echo problem >&2; exit 42'", 42, err="^problem$"),
    Line("lxc-attach running -- sh -c 'kill -9 $$'", 137),
    Line("lxc-attach running -- nonsense", 127, err="^lxc-attach: running: .*nonsense"),
    Line("lxc-attach running -- /etc/passwd", 126, err="^lxc-attach: running: .*/etc/passwd"),
    Line("lxc-attach running -- /etc", 126, err="^lxc-attach: running: .*/etc"),
    Line("lxc-attach running -- pwd", out="/\n"),
    Line("lxc-attach running -- hostname", out="running\n"),
    Line("lxc-attach running", out=NOTHING),
    Line(
        "lxc-attach running -- env",
        environ=(("A", "b c"),),
        out="~PATH=.*\nHOME=/root\nLANG=C\n(?:COVERAGE.*\n)*A=b c\ncontainer=lxc\n",
    ),
    Line("lxc-attach running --clear-env -- env", out=f"PATH={tools.PATH}\ncontainer=lxc\n"),
    Line(
        "lxc-attach running --clear-env --keep-var HOME --keep-var NOPE -v A=1 -v B= -- env",
        out=f"HOME=/root\nPATH={tools.PATH}\ncontainer=lxc\nA=1\nB=\n",
    ),
    Line("lxc-attach running -v PATH=/nonexistent -- env", 127, err="env"),
    Line("lxc-attach running -v HOME -- sh -c 'echo ${HOME-unset}'", out="unset\n"),
    Line("lxc-attach running -u 1000 -g 1000 -- id", out="uid=1000(user) gid=1000(user)\n"),
    Line("lxc-attach running -u 1000 -- id", out="uid=1000(user) gid=0(root)\n"),
    Line("lxc-attach running -g 1000 -- id", out="uid=0(root) gid=1000(user)\n"),
    Line("lxc-attach running -u x -- id", 1, err="could not parse command line|whole number"),
    Line("lxc-attach running -a i686 -- uname -m", out="i686\n"),
    Line("lxc-attach running -a nonsense -- true", 1, err="could not parse command line|nonsense"),
    Line("lxc-attach running -s 'UTSNAME|PID' -- hostname", out="running\n"),
    Line("lxc-attach running -s uts -- hostname", out="running\n"),
    Line("lxc-attach running -s NOPE -- true", 1, err="could not parse command line|NOPE"),
    Line("lxc-attach running -eNOPE -- true", 1, err="could not parse command line|NOPE"),
    Line("lxc-attach running --elevated-privileges='CAP|CGROUP' -- true"),
    Line(
        "lxc-attach running -eLSM -c some_t -- true",
        1,
        err="Cannot combine elevated LSM privileges",
    ),
    Line("lxc-attach running -f /nonexistent -- true", 1, err="/nonexistent"),
    # lxc-create and lxc-destroy: 11.7.
    Line("lxc-create new", 1, err="A template must be specified"),
    Line("lxc-create new -t nonsense", 1, err="nonsense"),
    Line("lxc-create new -t /nonsense", 1, err="/nonsense"),
    Line("lxc-create running -t none", 1, err="already exists"),
    Line("lxc-create a/b -t none", 1, err="a/b"),
    Line(
        "lxc-create new -t none -B nonsense", 1, err="nonsense is not a valid backing storage type"
    ),
    Line("lxc-create new -t none --fssize 1G", 1, err="only valid with block devices"),
    Line("lxc-create new -t none -B dir --fstype ext4", 1, err="only valid with block devices"),
    Line("lxc-create new -t none --lvname x", 1, err="only valid with -B lvm"),
    Line("lxc-create new -t none --vgname x", 1, err="only valid with -B lvm"),
    Line("lxc-create new -t none --thinpool x", 1, err="only valid with -B lvm"),
    Line("lxc-create new -t none --rbdname x", 1, err="only valid with -B rbd"),
    Line("lxc-create new -t none --rbdpool x", 1, err="only valid with -B rbd"),
    Line("lxc-create new -t none --zfsroot x", 1, err="only valid with -B zfs"),
    Line(
        "lxc-create new -t busybox -- --nonsense",
        1,
        "~(?s:LXC busybox.*)",
        "nonsense",
        Ours("our busybox", out=NOTHING),
    ),
    Line("lxc-destroy missing", 1, err="Container is not defined"),
    Line("lxc-destroy running", 1, err="running is running"),
]
# A configuration with a line that no LXC knows.
BROKEN_LINES = [
    Line("lxc-start broken", 1, err="lxc.nonsense"),
    Line("lxc-execute broken -- true", 1, err="lxc.nonsense"),
    Line(
        "lxc-info broken", 1, err="Failed to load config",
        ours=Ours("broken configuration", 0, "Name:           broken\nState:          STOPPED\n", NOTHING),
    ),
    Line("lxc-ls", err="Failed to load config", ours=Ours("broken configuration", 0, "broken\n", NOTHING)),
    Line("lxc-stop broken", 1, err="lxc.nonsense", ours=Ours("broken configuration", 2, err="not running")),
    Line("lxc-wait broken -s STOPPED", 1, err="lxc.nonsense", ours=Ours("broken configuration", 0, err=NOTHING)),
]  # fmt: skip


GROUPED = ("lxc.start.auto = 1", "lxc.group = web", "lxc.group = db")


@pytest.fixture(scope="module")
def maker_tools(maker_tools: tools.Tools, rootfs: str) -> Generator[tools.Tools, None, None]:
    """One container that runs and two that do not."""
    for name, lines in (("grouped", GROUPED), ("running", ()), ("stopped", ())):
        tools.define(maker_tools.lxcpath, name, rootfs, *lines)
    maker_tools.start("running")
    maker_tools.inside(
        "running", "true"
    )  # the first to come in makes a cgroup that stays until the container stops
    yield maker_tools
    maker_tools.kill("running")


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.words)
def test_line(maker_tools: tools.Tools, line: Line) -> None:
    check(maker_tools, line)


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: line.words)
def test_line_about_a_broken_configuration(
    maker_tools: tools.Tools, rootfs: str, line: Line
) -> None:
    lxcpath = f"{maker_tools.lxcpath}/other"
    tools.define(lxcpath, "broken", rootfs, "lxc.nonsense = 1")
    check(tools.Tools(maker_tools.maker, lxcpath, maker_tools.command), line)


def check(maker_tools: tools.Tools, line: Line) -> None:
    done = maker_tools.run(line.words, environ=dict(line.environ))
    code, out, err = line.code, line.out, line.err
    if line.ours is not None and maker_tools.maker == tools.ATOLL:
        ours = line.ours
        code = code if ours.code is None else ours.code
        out = out if ours.out is None else ours.out
        err = err if ours.err is None else ours.err
    assert done.code == code, done
    assert re.fullmatch(out[1:], done.out) if out.startswith("~") else out == done.out, done
    if err:
        assert re.search(err, done.err, re.IGNORECASE | re.MULTILINE), done
    else:
        assert not done.err, done


def test_differences_are_written_down() -> None:
    """Each deliberate difference has its row, and no row speaks of one that no test shows."""
    here, shown = os.path.dirname(__file__), set()
    for name in os.listdir(here):
        if name.startswith("test_"):
            with open(f"{here}/{name}", encoding="utf-8") as file:
                shown |= set(re.findall(r'\b(?:Ours|differs)\(\s*"([^"]+)"', file.read()))
    with open(tools.DIFFERENCES, encoding="utf-8") as file:
        section = file.read().partition("\n## Tools\n")[2].partition("\n## ")[0]
    written = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)
    assert sorted(set(written) - {"difference", "---"}) == sorted(shown)
