"""cli/options.py and __main__.py: the parser against getopt, help, errors, exit statuses, the multicall."""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import __main__ as multicall
from atoll.cli import options
from atoll.cli.options import TOOLS, Call, Option, UsageError, parse, parse_table
from atoll.errors import ConfigError, Interrupted

TABLE = parse_table("""
  -f, --fancy               a table
  -F, --fancy-format=COLUMNS  which
                            -x is not an option here
      --filter=REGEX        some
  -s, --define=KEY=VALUE... again and again
  -e, --elevated[=WHAT]     maybe
  -1, --line                lines
""")


def test_table_is_read_from_the_help():
    assert TABLE == (
        Option(long="fancy", short="f"),
        Option(long="fancy-format", short="F", value="COLUMNS"),
        Option(long="filter", value="REGEX"),
        Option(long="define", short="s", value="KEY=VALUE", repeat=True),
        Option(long="elevated", short="e", value="WHAT", optional=True),
        Option(long="line", short="1"),
    )


def read(*argv, stop=False):
    parsed = parse(argv, TABLE, stop=stop)
    given = {name: value for name, value in parsed.values.items() if value not in (None, False, [])}
    return given, parsed.operands, parsed.before


@pytest.mark.parametrize(
    ("argv", "values", "operands", "before"),
    [
        (["-f1", "c1"], {"fancy": True, "line": True}, ("c1",), 1),
        (["c1", "-f"], {"fancy": True}, ("c1",), 1),
        (["c1", "--", "-f"], {}, ("c1", "-f"), 1),
        (["--", "a"], {}, ("a",), 0),
        (["-fsA=1", "-s", "B=2"], {"fancy": True, "define": ["A=1", "B=2"]}, (), 0),
        (["--define=A=1", "--def", "B"], {"define": ["A=1", "B"]}, (), 0),
        (["--fil=x"], {"filter": "x"}, (), 0),
        (["--fancy"], {"fancy": True}, (), 0),  # exact, though a prefix of another
        (["--filter", "--line"], {"filter": "--line"}, (), 0),
        (["--filter="], {"filter": ""}, (), 0),
        (["-e", "x"], {"elevated": ""}, ("x",), 1),
        (["-ex"], {"elevated": "x"}, (), 0),
        (["--elevated=x"], {"elevated": "x"}, (), 0),
        (["-"], {}, ("-",), 1),
    ],
)
def test_parses(argv, values, operands, before):
    assert read(*argv) == (values, operands, before)


def test_options_may_end_at_the_first_operand():
    assert read("-f", "ls", "-1", "--", "x", stop=True) == (
        {"fancy": True},
        ("ls", "-1", "--", "x"),
        4,
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["-x"], "invalid option -- 'x'"),
        (["-F"], "option requires an argument -- 'F'"),
        (["--filter"], "option '--filter' requires an argument"),
        (["--line=1"], "option '--line' doesn't allow an argument"),
        (
            ["--f"],
            "option '--f' is ambiguous; possibilities: '--fancy' '--fancy-format' '--filter'",
        ),
        (["--=x"], "unrecognized option '--'"),
    ],
)
def test_getopts_own_complaints(argv, message):
    with pytest.raises(UsageError) as caught:
        read(*argv)
    assert caught.value.message == message
    assert caught.value.help


words = st.sampled_from(
    "-a -b -ab -ba -c -cX -acX -bc --all --alp --alpha --al --beta --beta=1 --gamma --gamma=2 --g --gam X Y - -- -z --zeta --all=1".split()
)
ORACLE = parse_table("  -a, --all  x\n  -b, --beta=B  x\n  -c, --gamma=C...  x\n      --alpha  x\n")


@given(st.lists(words, max_size=8), st.booleans())
def test_agrees_with_getopt(argv, stop):
    theirs = getopt.getopt if stop else getopt.gnu_getopt
    try:
        found, operands = theirs(argv, "ab:c:", ["all", "beta=", "gamma=", "alpha"])
    except getopt.GetoptError:
        with pytest.raises(UsageError):
            parse(argv, ORACLE, stop=stop)
        return
    ours = parse(argv, ORACLE, stop=stop)
    pairs = [
        ({"-a": "all", "-b": "beta", "-c": "gamma"}.get(name, name[2:]), value)
        for name, value in found
    ]
    assert list(ours.operands) == [word for word in operands if stop is False or word]
    assert ours.values["all"] == ("all" in dict(pairs))
    assert ours.values["alpha"] == ("alpha" in dict(pairs))
    assert ours.values["beta"] == dict(pairs).get("beta")
    assert ours.values["gamma"] == [value for name, value in pairs if name == "gamma"]


@given(
    st.lists(st.text(st.characters(exclude_characters="\0"), max_size=12), max_size=6),
    st.booleans(),
)
def test_any_words_parse_or_are_usage_errors(argv, stop):
    try:
        parse(argv, TABLE, stop=stop)
    except UsageError as error:
        assert error.message  # noqa: PT017 - both ways are right


# -------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", TOOLS)
def test_every_row_is_sound(name):
    tool = TOOLS[name]
    table = [one for one in options._table(tool) if one != Option(long="help", short="h")]
    longs = [option.long for option in table]
    shorts = [option.short for option in table if option.short]
    assert len(set(longs)) == len(longs)
    assert len(set(shorts)) == len(shorts)
    assert {"name", "lxcpath", "quiet", "help"} <= set(longs)
    assert all(long.replace("-", "").isalnum() for long in longs)
    text = options.help_text(name, tool)
    hidden = {"name"} if tool.name == "none" else set()
    assert all(f"--{long}" in text for long in longs if long not in hidden)
    assert "..." not in text
    assert max(map(len, text.splitlines())) <= 100


LXC_OPTIONS = {  # reference of LXC, section 11.2
    "lxc-attach": "e/elevated-privileges a/arch s/namespaces R/remount-sys-proc /clear-env /keep-env /keep-var v/set-var L/pty-log f/rcfile u/uid g/gid c/context",
    "lxc-create": "f/config t/template B/bdev /dir /lvname /vgname /thinpool /rbdname /rbdpool /zfsroot /fstype /fssize",
    "lxc-destroy": "s/snapshots f/force",
    "lxc-execute": "d/daemon f/rcfile s/define u/uid g/gid /share-net /share-ipc /share-uts /share-pid",
    "lxc-info": "c/config i/ips p/pid S/stats H/no-humanize s/state",
    "lxc-ls": "1/line f/fancy F/fancy-format /active /running /frozen /stopped /defined /nesting /filter g/groups",
    "lxc-start": "d/daemon F/foreground p/pidfile f/rcfile c/console L/console-log C/close-all-fds s/define /share-net /share-ipc /share-uts /share-pid",
    "lxc-stop": "r/reboot W/nowait t/timeout k/kill /nolock /nokill",
    "lxc-wait": "s/state t/timeout",
}


@pytest.mark.parametrize("name", LXC_OPTIONS)
def test_lxcs_options_are_there(name):
    ours = {f"{option.short}/{option.long}" for option in parse_table(TOOLS[name].options)}
    assert set(LXC_OPTIONS[name].split()) <= ours


# ------------------------------------------------------------------------------------- the call


class Ran:
    def __init__(self, status, out, err, calls):
        self.status, self.out, self.err, self.calls = status, out, err, calls


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Run a tool whose function is replaced by one that keeps its call and does `what`."""
    calls: list[Call] = []

    def run(name, *argv, what=lambda call: 0, environ=None, run=options.run):
        def function(call):
            calls.append(call)
            return what(call)

        module = types.ModuleType("atoll_test_tool")
        setattr(module, "tool", function)  # noqa: B010 - a name that the type does not have
        monkeypatch.setitem(sys.modules, "atoll_test_tool", module)
        if name in TOOLS:
            monkeypatch.setitem(TOOLS, name, TOOLS[name].replace(run="atoll_test_tool:tool"))
        out, err = tmp_path / "out", tmp_path / "err"
        with out.open("wb") as o, err.open("wb") as e:
            status = run(
                name, argv, stdout=o.fileno(), stderr=e.fileno(), cwd="/here",
                environ=environ or {"HOME": "/root", "LXC_GLOBAL_CONF": "/nowhere"},
            )  # fmt: skip
        return Ran(status, out.read_text(), err.read_text(), calls)

    return run


def test_call_has_everything(ran):
    got = ran(
        "lxc-start", "-n", "c1", "-P", "/srv//", "-sA=1", "-F", "-p", "pid", "/bin/sh", "--", "-x"
    )
    (call,) = got.calls
    assert (got.status, got.out, got.err) == (0, "", "")
    assert (call.name, call.lxcpath, call.operands) == ("c1", "/srv", ("/bin/sh", "-x"))
    assert call.flag("foreground")
    assert not call.flag("daemon")
    assert not call.flag("console")
    assert call.texts("define") == ("A=1",)
    assert call.file("pidfile") == "/here/pid"
    assert call.text("console") is None
    with pytest.raises(KeyError):
        call.flag("unheard-of")


def test_name_may_be_the_first_operand(ran):
    (call,) = ran("lxc-start", "c1", "-F", "init").calls
    assert (call.name, call.operands) == ("c1", ("init",))


def test_relative_paths_are_the_callers(ran):
    (call,) = ran("lxc-ls", "-P", "a/", "-P", "/", "x").calls
    assert (call.lxcpaths, call.operands, call.name) == (("/here/a", "/"), ("x",), "")


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("lxc-info", [], "lxc-info: No container name specified\n"),
        ("lxc-create", ["-t", "busybox", "--", "c1"], "lxc-create: No container name specified\n"),
        ("lxc-info", ["-n", "../x"], "lxc-info: '../x' cannot be a container's name: it is a path\n"),
        ("lxc-info", ["c", "-P", "a", "-P", "b"], "lxc-info: This command only accepts 1 -P,--lxcpath arguments\n"),
        ("lxc-info", ["c", "-l", "LOUD"], "lxc-info: not a log level: 'LOUD' (use one of TRACE DEBUG INFO NOTICE WARN ERROR CRIT ALERT FATAL or 0 to 8)\n"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(ran, name, argv, message):
    got = ran(name, *argv)
    assert (got.status, got.out, got.err, got.calls) == (1, "", message, [])


def test_help_of_lxcs_tools_goes_to_stderr(ran):
    for word in ("--help", "-h", "-?", "--hel"):
        got = ran("lxc-info", word)
        assert (got.status, got.out) == (0, "")
        assert got.err.startswith("Usage: lxc-info -n NAME")
    got = ran("run", "--help")
    assert (got.status, got.err) == (0, "")
    assert "atoll run -- sh -c" in got.out


def test_unknown_option_prints_the_help(ran):
    got = ran("lxc-info", "--bogus")
    assert got.status == 1
    assert got.err.startswith("lxc-info: unrecognized option '--bogus'\nUsage: lxc-info")


def test_version_and_usage(ran):
    got = ran("lxc-info", "--version")
    assert got.status == 0
    assert got.out.startswith("5.0.2 (atoll ")
    assert ran("lxc-info", "--usage").err == "Usage: lxc-info -n NAME [OPTION…]\n"


def test_run_stops_at_the_command(ran):
    (call,) = ran("run", "--image", "host", "ls", "-l", "--help").calls
    assert call.operands == ("ls", "-l", "--help")
    assert (call.name, call.text("image")) == ("", "host")


def test_errors_are_printed_once_and_never_when_quiet(ran):
    def fail(_call):
        raise ConfigError("cannot read it", fix="write it")

    got = ran("lxc-info", "c1", what=fail)
    assert (got.status, got.err) == (1, "lxc-info: c1: cannot read it\n  fix    write it\n")
    assert ran("lxc-info", "c1", "-q", what=fail).err == ""


def raises(error):
    def what(_call):
        raise error

    return what


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Interrupted("ended", signal=15), 143),
        (PermissionError(13, "Permission denied", "/x"), 1),
        (UsageError("no"), 1),
    ],
)
def test_exit_status(ran, error, status):
    assert ran("lxc-info", "c1", what=raises(error)).status == status


def test_reader_that_went_away():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert options.run("run", ["--help"], stdout=writer) == 141
    finally:
        os.close(writer)


def test_output_waits_for_a_full_nonblocking_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        options.Output(writer).write("x" * 300_000)
        os._exit(0)
    os.close(writer)
    size = 0
    while data := os.read(reader, 4096):
        size += len(data)
    os.close(reader)
    assert (os.waitpid(pid, 0)[1], size) == (0, 300_000)


def test_default_lxcpath(tmp_path, monkeypatch):
    conf = tmp_path / "lxc.conf"
    environ = {"HOME": "/home/me", "LXC_GLOBAL_CONF": str(conf)}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert options.default_lxcpath(environ) == "/var/lib/lxc"
    conf.write_text("lxc.lxcpath = /srv/lxc/\n")
    assert options.default_lxcpath(environ) == "/srv/lxc"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    conf.unlink()
    assert options.default_lxcpath(environ) == "/home/me/.local/share/lxc"


# ------------------------------------------------------------------------------------- multicall


@pytest.fixture
def told(monkeypatch):
    calls = []

    def run(name, argv):
        calls.append((name, list(argv)))
        return 7

    monkeypatch.setattr(options, "run", run)
    return calls


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (["/usr/bin/lxc-start", "-n", "c"], ("lxc-start", ["-n", "c"])),
        (["atoll", "lxc-start", "c"], ("lxc-start", ["c"])),
        (["/x/__main__.py", "start", "c"], ("lxc-start", ["c"])),
        (["atoll", "run", "ls"], ("run", ["ls"])),
        (["atoll", "help", "run"], ("run", ["--help"])),
        (["atoll", "ls", "--help"], ("lxc-ls", ["--help"])),
    ],
)
def test_finds_the_tool(told, argv, call):
    assert multicall.main(argv) == 7
    assert told == [call]


def test_unknown_command_names_the_nearest(told, capfd):
    assert multicall.main(["atoll", "strat"]) == 1
    assert capfd.readouterr().err == "atoll: there is no command 'strat'; did you mean lxc-start?\n"
    assert multicall.main(["atoll", "zzzzzz"]) == 1
    assert capfd.readouterr().err == "atoll: there is no command 'zzzzzz'; see atoll --help\n"
    assert told == []


def test_overview(told, capfd):
    assert multicall.main(["atoll", "--help"]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in TOOLS)
    assert multicall.main(["atoll"]) == 1
    assert multicall.main(["atoll", "--version"]) == 0


FORBIDDEN = "asyncio dataclasses inspect logging subprocess pathlib typing argparse re enum json socket selectors signal contextlib functools collections tempfile shutil ctypes".split()


def test_lxc_info_imports_little():
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); before = set(sys.modules)\n"
        "from atoll.__main__ import main\n"
        "main(['lxc-info', '-P', '/nowhere', '-n', 'nobody', '-s'])\n"
        "print(*(set(sys.modules) - before))"
    )
    source = os.path.dirname(
        os.path.dirname(options.__file__.removesuffix("/cli/options.py")) + "/atoll"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "nobody doesn't exist\n"
    assert not set(done.stdout.split()) & set(FORBIDDEN)
