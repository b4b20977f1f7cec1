"""cli/configure.py: lxc-config, lxc-update-config, `atoll config`, and the printing of lxc-checkconfig."""

from __future__ import annotations

import gzip
import json
import os
import re

import pytest

from atoll import host as host_module
from atoll.cli import options
from atoll.lifecycle import trials
from atoll.lifecycle.trials import Trial, machine


class Ran:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    def __repr__(self):
        return f"{self.status}\n{self.out}\n{self.err}"


@pytest.fixture
def run(tmp_path):
    """Run a tool in a directory of its own: status, standard output, standard error."""

    def call(name, *argv, environ=None):
        streams = tmp_path / ".out", tmp_path / ".err"
        with streams[0].open("wb") as out, streams[1].open("wb") as err:
            status = options.run(
                name, argv, stdout=out.fileno(), stderr=err.fileno(), cwd=str(tmp_path),
                environ={"HOME": "/root", "PATH": os.environ["PATH"], "LXC_GLOBAL_CONF": "/nowhere", **(environ or {})},
            )  # fmt: skip
        return Ran(status, *(stream.read_text(errors="surrogateescape") for stream in streams))

    return call


# ------------------------------------------------------------------------------------- lxc-config
def test_lxc_config(run, tmp_path):
    conf = tmp_path / "lxc.conf"
    conf.write_text("lxc.lxcpath = /srv/lxc//\nlxc.cgroup.use = memory\n# lxc.bdev.lvm.vg = x\n")
    environ = {"LXC_GLOBAL_CONF": str(conf)}

    def ask(*words):
        got = run("lxc-config", *words, environ=environ)
        assert got.err == ""
        return got.status, got.out

    assert ask("lxc.lxcpath") == (0, "/srv/lxc\n")
    assert ask("lxc.l") == (0, "/srv/lxc\n")
    assert ask("lxc.cgroup") == (0, "memory\n")
    assert ask("lxc.cgroup.p") == (0, "lxc.cgroup.p is not set.\n")
    assert ask("lxc.bdev") == (0, "lxc\n")
    assert ask("lxc.bdev.rbd") == (0, "lxc\n")
    assert ask("lxc.nope") == (1, "Unknown configuration item: lxc.nope\n")
    assert ask("lxc.lxcpath.x") == (1, "Unknown configuration item: lxc.lxcpath.x\n")
    assert ask()[1].startswith("Usage: lxc-config -l: ")
    assert ask("") == ask()
    assert ask("-l")[1].splitlines() == [
        "lxc.default_config", "lxc.lxcpath", "lxc.bdev.lvm.vg", "lxc.bdev.lvm.thin_pool", "lxc.bdev.zfs.root", "lxc.cgroup.use",
        "lxc.cgroup.pattern",
    ]  # fmt: skip
    assert ask("-l", "lxc.lxcpath") == ask("--list")


def test_lxc_config_of_an_unreadable_file(run, tmp_path):
    got = run("lxc-config", "lxc.lxcpath", "-P", "/x", environ={"LXC_GLOBAL_CONF": str(tmp_path)})
    assert (got.status, got.out) == (1, "")
    assert f"cannot read the system configuration {tmp_path}: is a directory" in got.err


def test_the_help_knows_that_the_letter_is_taken(run):
    text = run("lxc-config", "--help").err
    assert re.search(r"^  -l, --list ", text, re.MULTILINE)
    assert re.search(r"^      --logpriority=LEVEL ", text, re.MULTILINE)


# ------------------------------------------------------------------------------ lxc-update-config
OLD = "lxc.utsname = c1\nlxc.tty = 4\n"
NEW = "lxc.uts.name = c1\nlxc.tty.max = 4\n"


def test_update(run, tmp_path):
    file, backup = tmp_path / "config", tmp_path / "config.backup"
    file.write_text(OLD)
    file.chmod(0o640)
    got = run("lxc-update-config", "-c", "config", "--diff")
    assert (got.status, got.err, file.read_text(), backup.exists()) == (0, "", OLD, False)
    assert got.out.splitlines()[2:] == ["@@ -1,2 +1,2 @@", "-lxc.utsname = c1", "-lxc.tty = 4", "+lxc.uts.name = c1", "+lxc.tty.max = 4"]  # fmt: skip
    got = run("lxc-update-config", "--config=config")
    assert (got.status, got.out, got.err) == (0, "", "")
    assert (file.read_text(), backup.read_text()) == (NEW, OLD)
    assert file.stat().st_mode == backup.stat().st_mode
    assert file.stat().st_mode & 0o777 == 0o640


def test_update_again_keeps_the_first_backup(run, tmp_path):
    file, backup = tmp_path / "config", tmp_path / "config.backup"
    file.write_text(OLD)
    for _ in range(2):
        assert run("lxc-update-config", "-c", "config").status == 0
    assert (file.read_text(), backup.read_text()) == (NEW, OLD)
    assert run("lxc-update-config", "-c", "config", "--diff").out == ""


def test_update_of_a_present_configuration_makes_a_backup(run, tmp_path):
    (tmp_path / "config").write_text(NEW)
    assert run("lxc-update-config", "-c", "config").status == 0
    assert (tmp_path / "config.backup").read_text() == NEW


def test_update_through_a_link(run, tmp_path):
    (tmp_path / "real").write_text(OLD)
    (tmp_path / "config").symlink_to("real")
    assert run("lxc-update-config", "-c", "config").status == 0
    assert os.readlink(tmp_path / "config") == "real"
    assert (tmp_path / "real").read_text() == NEW
    assert (tmp_path / "config.backup").read_text() == OLD


def test_update_tells_what_it_leaves(run, tmp_path):
    (tmp_path / "config").write_text("lxc.network.link = br0\n")
    got = run("lxc-update-config", "-c", "config")
    assert (got.status, got.out) == (0, "")
    assert (
        got.err
        == f"lxc-update-config: {tmp_path}/config:1: left as it is: lxc.network.link: no lxc.network.type comes before it\n"
    )


def test_update_refuses(run, tmp_path):
    got = run("lxc-update-config", "-c", "none")
    assert (got.status, got.err) == (
        1,
        f"lxc-update-config: cannot read {tmp_path}/none: no such file or directory\n",
    )
    got = run("lxc-update-config", "-c", ".")
    assert (got.status, got.err) == (
        1,
        f"lxc-update-config: cannot read {tmp_path}/.: is a directory\n",
    )
    assert run("lxc-update-config", "-q", "-c", "none").err == ""
    assert run("lxc-update-config", "config").status == 1
    assert set(os.listdir(tmp_path)) == {".out", ".err"}


def test_update_without_arguments_tells_how(run):
    got = run("lxc-update-config")
    assert (got.status, got.err) == (0, "")
    assert got.out.startswith("lxc-update-config -h|--help [-c|--config]\n")


# ----------------------------------------------------------------------------------- atoll config
CONFIG = "# mine\nlxc.uts.name = web\n\nlxc.group = a b\nlxc.net.0.type = veth\nlxc.net.0.link = br0\nlxc.execute.cmd = ' x'\n"


@pytest.fixture
def web(run, tmp_path):
    """`atoll config -P . web …` on a container, and its text afterwards."""
    os.mkdir(tmp_path / "web")
    (tmp_path / "web" / "config").write_text(CONFIG)

    def call(*argv):
        got = run("config", "-P", str(tmp_path), "web", *argv)
        got.text = (tmp_path / "web" / "config").read_text(errors="surrogateescape")
        return got

    call.path = f"{tmp_path}/web/config"  # type: ignore[attr-defined]  # for the tests that want it
    return call


def ok(got, text=CONFIG):
    """What it printed, without complaints, leaving this text."""
    assert (got.status, got.err, got.text) == (0, "", text)
    return got.out


def test_show(web):
    lines = [
        line.replace("' x'", '" x"') for line in CONFIG.splitlines() if line.startswith("lxc.")
    ]
    assert ok(web()).splitlines() == ok(web("show")).splitlines() == lines
    assert ok(web("show", "lxc.net", "lxc.group")).splitlines() == lines[1:4]
    assert ok(web("show", "lxc.ne")) == ""
    assert ok(web("show", "--where", "lxc.net.0.link")) == f"{web.path}:6  lxc.net.0.link = br0\n"
    found = json.loads(ok(web("show", "--json", "lxc.uts")))
    assert found == [{"key": "lxc.uts.name", "value": "web", "file": web.path, "line": 2}]


def test_show_effective(web):
    lines = ok(web("--effective", "show", "--where")).splitlines()
    assert re.fullmatch(rf"{re.escape(web.path)}:2 +lxc\.uts\.name = web", lines[0])
    assert any(re.fullmatch(r"default +lxc\.tty\.max = 0", line) for line in lines)
    assert any(re.fullmatch(r"default +lxc\.rootfs\.mount = /.*", line) for line in lines)


def test_get(web):
    assert ok(web("get", "lxc.uts.name")) == "web\n"
    assert ok(web("get", "lxc.utsname")) == "web\n"
    assert ok(web("get", "lxc.group", "lxc.tty.max", "lxc.arch")) == "a\nb\n0\n"
    assert ok(web("get", "lxc.net")) == "veth\n"
    assert ok(web("get", "--where", "lxc.group")) == f"{web.path}:4  a b\n"
    for key, message in (
        ("lxc.nope", "unknown key lxc.nope"),
        ("lxc.net.5.link", "there is no lxc.net.5"),
        ("lxc.hook", "no value of its own"),
    ):
        got = web("get", key)
        assert (got.status, got.out) == (1, "")
        assert message in got.err


def test_changes(web):
    assert ok(web("set", "lxc.uts.name", "two"), CONFIG.replace("= web", "= two")) == ""
    assert ok(web("set", "lxc.uts.name", "web")) == ""
    text = CONFIG.replace("a b\n", "a b\nlxc.group = c\n")
    assert ok(web("add", "lxc.group", "c"), text) == ""
    assert (
        ok(
            web("unset", "lxc.group", "lxc.net.0"),
            "# mine\nlxc.uts.name = web\n\nlxc.execute.cmd = ' x'\n",
        )
        == ""
    )
    assert (
        ok(web("unset", "lxc.arch"), "# mine\nlxc.uts.name = web\n\nlxc.execute.cmd = ' x'\n") == ""
    )


@pytest.mark.parametrize(
    "words",
    [
        ("set", "lxc.start.order", "-5"),
        ("set", "--", "lxc.start.order", "-5"),
        ("-q", "set", "lxc.start.order", "-5"),
    ],
)
def test_a_value_may_begin_with_a_dash(web, words):
    ok(web(*words), f"{CONFIG}lxc.start.order = -5\n")


def test_values_that_are_options(web):
    text = web("set", "lxc.group", "--diff", "-f").text
    assert [line for line in text.splitlines() if "group" in line] == [
        "lxc.group = --diff",
        "lxc.group = -f",
    ]


def test_diff_changes_nothing(web):
    out = ok(web("set", "--diff", "lxc.uts.name", "two"))
    assert out.splitlines()[3:] == [" # mine", "-lxc.uts.name = web", "+lxc.uts.name = two", " ", " lxc.group = a b", " lxc.net.0.type = veth"]  # fmt: skip
    assert ok(web("--diff", "set", "lxc.uts.name", "web")) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "lxc.tty.max", "many"), "cannot set lxc.tty.max = many: not a whole number"),
        (
            ("set", "lxc.uts.nam", "x"),
            "unknown key lxc.uts.nam\n  fix    the nearest known key is lxc.uts.name",
        ),
        (("set", "lxc.uts.name", "a", "b"), "it has one value, not 2"),
        (("set", "lxc.uts.name", "a\0b"), "NUL"),
        (("set", "lxc.uts.name", "a\nb"), "one line"),
        (("add", "lxc.uts.name", "x"), "it has one value"),
        (("unset", "lxc.nope"), "unknown key lxc.nope"),
        (("unset", "lxc.group", "lxc.nope"), "unknown key lxc.nope"),
        (("set", "lxc.tty.max"), "set needs KEY and VALUE"),
        (("get",), "get needs KEY"),
        (("change", "lxc.tty.max"), "'change' is none of get set add unset show"),
        (("set", "lxc.net.0.type", "macvlan", "x"), "it has one value"),
    ],
)
def test_refusals_change_nothing(web, words, message):
    got = web(*words)
    assert (got.status, got.out, got.text) == (1, "", CONFIG)
    assert message in got.err


def test_which_file(run, web, tmp_path):
    (tmp_path / "other").write_text("lxc.tty.max = 7\n")
    for words in (
        ("-f", "other", "get", "lxc.tty.max"),
        ("get", "-f", "other", "lxc.tty.max"),
        ("--rcfile=other", "get", "lxc.tty.max"),
    ):
        assert run("config", *words).out == "7\n", words
    assert run("config", "-f", "other").out == "lxc.tty.max = 7\n"
    assert run("config", "-n", "web", "-P", str(tmp_path), "get", "lxc.uts.name").out == "web\n"
    assert run("config", "web", "get", "-P", str(tmp_path), "lxc.uts.name").out == "web\n"
    assert run("config", "web", "--help").out.startswith("Usage: atoll config NAME")
    refused: dict[tuple[str, ...], str] = {
        (): "No container name specified",
        ("../x",): "'../x' cannot be a container's name",
        (
            "none",
            "-P",
            str(tmp_path),
        ): f"container none is not defined: {tmp_path}/none/config does not exist",
        ("-f", "none"): f"cannot read the configuration {tmp_path}/none: no such file or directory",
        ("-f", "."): f"cannot read the configuration {tmp_path}/.: is a directory",
        ("web", "--bogus"): "unrecognized option '--bogus'",
    }
    for line, message in refused.items():
        got = run("config", *line)
        assert (got.status, got.out) == (1, "")
        assert message in got.err


def test_a_broken_file_is_shown_told_and_mended(run, tmp_path):
    path = tmp_path / "config"
    path.write_text("lxc.uts.name = a\nlxc.tty.max = many\nlxc.nope = 1\n")
    got = run("config", "-f", "config", "get", "lxc.uts.name")
    assert (got.status, got.out) == (0, "a\n")
    assert got.err.splitlines() == [
        f"atoll config: {path}:2: cannot set lxc.tty.max = many: not a whole number",
        f"atoll config: {path}:3: unknown key lxc.nope",
    ]
    got = run("config", "-f", "config", "set", "lxc.tty.max", "4")
    assert (got.status, got.err) == (0, f"atoll config: {path}:3: unknown key lxc.nope\n")
    assert path.read_text() == "lxc.uts.name = a\nlxc.tty.max = 4\nlxc.nope = 1\n"


def test_bytes_that_are_not_text(run, tmp_path):
    path = tmp_path / "config"
    path.write_bytes(b"# \xff\nlxc.execute.cmd = a\xfe\n")
    assert run("config", "-f", "config", "get", "lxc.execute.cmd").out == "a\udcfe\n"
    assert run("config", "-f", "config", "set", "lxc.tty.max", "1").status == 0
    assert path.read_bytes() == b"# \xff\nlxc.execute.cmd = a\xfe\nlxc.tty.max = 1\n"
    assert run("config", "-f", "config", "set", "lxc.execute.cmd", "b\udcfd").status == 0
    assert path.read_bytes() == b"# \xff\nlxc.execute.cmd = b\xfd\nlxc.tty.max = 1\n"
    path.write_bytes(b"lxc.uts.name = a\0\n")
    got = run("config", "-f", "config", "set", "lxc.tty.max", "1")
    assert (got.status, path.read_bytes()) == (1, b"lxc.uts.name = a\0\n")
    assert "NUL" in got.err


# -------------------------------------------------------------------------------- lxc-checkconfig
SECTIONS = (
    ("Namespaces", (Trial(item="User namespace", state="enabled"),)),
    ("Control groups", (Trial(item="Cgroups", state="enabled", reason="hybrid"), Trial(item="Cgroup io", state="disabled", reason="x"))),
    ("Misc", (Trial(item="Vlan", state="missing", reason="not in this kernel"),)),
)  # fmt: skip


@pytest.fixture
def tried(monkeypatch):
    monkeypatch.setattr(trials, "everything", lambda _host, _environ: SECTIONS)


def test_checkconfig(run, tried):
    got = run("lxc-checkconfig")
    assert (got.status, got.err) == (0, "")
    lines = got.out.splitlines()
    assert lines[0].startswith("LXC version 5.0.2")
    assert (
        "--- Namespaces ---\nUser namespace: enabled\n\n--- Control groups ---\nCgroups: enabled (hybrid)\nCgroup v1 mount points:\n"
        in got.out
    )
    assert (
        "Cgroup io: disabled (x)\n\n--- Misc ---\nVlan: missing (not in this kernel)\n" in got.out
    )
    assert "\033" not in got.out


def test_checkconfig_in_json(run, tried):
    found = json.loads(run("lxc-checkconfig", "--json").out)
    assert found["uid"] == os.geteuid()
    assert found["sections"][2] == {
        "title": "Misc",
        "items": [{"item": "Vlan", "state": "missing", "reason": "not in this kernel"}],
    }


def test_checkconfig_has_colours_on_a_terminal_only(tried):
    shown = {}
    for name, environ in (("coloured", {}), ("plain", {"NO_COLOR": "1"})):
        master, terminal = os.openpty()
        try:
            assert (
                options.run("lxc-checkconfig", [], stdout=terminal, environ={"PATH": "", **environ})
                == 0
            )
            shown[name] = ""
            while "CONFIG=" not in shown[name]:  # its last line
                shown[name] += os.read(master, 65536).decode()
        finally:
            os.close(master)
            os.close(terminal)
    assert "User namespace: \033[1;32menabled\033[0m" in shown["coloured"]
    assert "Cgroup io: \033[1;31mdisabled\033[0m (x)" in shown["coloured"]
    assert "Vlan: \033[1;33mmissing\033[0m" in shown["coloured"]
    assert "\033" not in shown["plain"]


KERNEL = b"# Linux\nCONFIG_NAMESPACES=y\nCONFIG_VETH=m\n# CONFIG_BRIDGE is not set\nCONFIG_HZ=250\n"


@pytest.mark.parametrize("packed", [False, True])
def test_checkconfig_of_another_kernel(run, tmp_path, packed):
    (tmp_path / "kernel").write_bytes(gzip.compress(KERNEL) if packed else KERNEL)
    got = run("lxc-checkconfig", environ={"CONFIG": "kernel"})
    assert (got.status, got.err) == (0, "")
    assert "promised by kernel" in got.out
    for line in (
        "Namespaces: enabled (built in)",
        "Veth pair device: enabled (module)",
        "Bridges: missing",
        "Pid namespace: required",
    ):
        assert f"\n{line}\n" in got.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"nothing", "it has no line CONFIG_"),
        (b"\x1f\x8bbroken", "its compression is broken"),
        (gzip.compress(bytes(1 << 25)), "it has no line CONFIG_"),
    ],
)
def test_a_kernel_configuration_that_is_none(run, tmp_path, content, message):
    if content is not None:
        (tmp_path / "kernel").write_bytes(content)
    got = run("lxc-checkconfig", environ={"CONFIG": "kernel"})
    assert (got.status, got.out) == (1, "")
    assert message in got.err


def test_a_trial_that_dies_or_fails_is_told():
    def die():
        os.kill(os.getpid(), 9)

    def fail():
        raise PermissionError(1, "Operation not permitted")

    assert trials.in_child(die, ["a", "b"]) == tuple(
        Trial(item=i, state="disabled", reason="ended by signal 9") for i in "ab"
    )
    assert trials.attempt("a", fail) == Trial(item="a", state="disabled", reason="not permitted")
    assert trials.in_child(lambda: [trials.attempt("x", lambda: os.open("/none", 0))], ["x"]) == (
        Trial(item="x", state="missing", reason="not in this kernel"),
    )


def test_a_trial_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(trials, "PATIENCE", 0.01)
    reader, writer = os.pipe()

    def hang():
        os.read(reader, 1)
        return []

    try:
        found = trials.in_child(hang, ["a"])
    finally:
        os.close(reader)
        os.close(writer)
    assert found == (Trial(item="a", state="disabled", reason="ended by signal 9"),)


def test_cgroups_of_other_machines():
    base = host_module.probe()

    def found(*hierarchies):
        return {
            trial.item: (trial.state, trial.reason)
            for trial in machine.cgroups(base.replace(hierarchies=hierarchies))
        }

    assert found() == {"Cgroups": ("missing", "nothing is mounted")}
    unified = host_module.Hierarchy(
        version=2, mount="/c", controllers=("cpu", "memory"), base="/u", own="/u", writable=True
    )
    answers = found(unified)
    assert answers["Cgroup sched"] == answers["Cgroup memory controller"] == ("enabled", "v2, /c/u")
    assert answers["Cgroup cpu account"] == answers["Cgroup freezer"] == ("enabled", "v2, /c/u")
    assert answers["Cgroup pids"] == ("missing", "no hierarchy has it")
    assert "Cgroup v1 clone_children flag" not in answers
    legacy = host_module.Hierarchy(
        version=1, mount="/m", controllers=("memory",), base="", own="", writable=False
    )
    answers = found(legacy, unified.replace(controllers=("io",)))
    assert answers["Cgroup memory controller"] == ("disabled", "/m is not writable")
    assert answers["Cgroup io"] == ("enabled", "v2, /c/u")
    assert answers["Cgroup freezer"] == ("missing", "no hierarchy has it")
