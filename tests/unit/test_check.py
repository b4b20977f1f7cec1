"""What keys mean together, and what a machine lacks: planned starts, rules, advice, looks; and the tool `atoll check`."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

import pytest

from atoll import host as host_module
from atoll.cli import options
from atoll.config.text import Config
from atoll.errors import ConfigError
from atoll.host import SubIds
from atoll.lifecycle import abilities, advice, check, rules, sequence
from atoll.plan import Plan

HOST = host_module.probe()
ABLE = check.able(HOST)
ROOT = "lxc.rootfs.path = /r"


def config(*lines: str) -> Config:
    return Config.parse("".join(f"{line}\n" for line in lines), file="config")


def refused(*lines: str) -> list[tuple[int, str]]:
    errors, _rest = check.refusals(config(*lines), ABLE)
    return [(getattr(e, "origin").line, e.message) for e in errors]  # noqa: B009 - ConfigError's


def advised(*lines: str, whole: bool = False) -> list[tuple[int, str]]:
    found = advice.findings(config(*lines), ABLE, whole=whole)
    return [(f.origin.line if f.origin else 0, f.message) for f in found]


def lacking(*lines: str, **facts: Any) -> list[tuple[str, str]]:
    found = abilities.findings(config(*lines), HOST.replace(**facts))
    return [(f.severity, f.message) for f in found]


# ------------------------------------------------------------------------------------ planned starts
def test_a_good_configuration_is_planned() -> None:
    errors, rest = check.refusals(config(ROOT, "lxc.net.0.type = empty"), ABLE)
    assert errors == ()
    assert len(rest.assignments) == 2


def test_everything_that_is_refused_is_told_at_once() -> None:
    found = refused(
        ROOT,
        "lxc.idmap = u 0 100000 65536",
        "lxc.idmap = u 5 300000 65536",
        "lxc.idmap = g 0 100000 65536",
        "lxc.idmap = g 7 300000 65536",
        "lxc.mount.entry = foo",
        "lxc.prlimit.nofil = 1",
        "lxc.net.0.type = veth",
        "lxc.net.0.ipv4.gateway = 10.0.0.1",
        "lxc.net.1.type = macvlan",
    )
    assert sorted(line for line, _message in found) == [3, 5, 6, 7, 9, 10]
    assert "share ids in the container" in dict(found)[3]


def test_an_error_about_a_whole_list_is_told_once() -> None:
    found = refused(ROOT, "lxc.idmap = u 0 100000 10", "lxc.idmap = u 10 100010 10")
    assert [message for _line, message in found] == ["cannot use lxc.idmap: it maps no gids"]


def test_a_network_type_takes_the_rest_of_its_network_along() -> None:
    found = refused(ROOT, "lxc.net.0.type = macvlan", "lxc.net.0.ipv4.gateway = 10.0.0.1")
    assert [line for line, _message in found] == [2]


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["lxc.namespace.keep = mnt"], "lxc.namespace.keep"),
        (["lxc.namespace.keep = time", "lxc.time.offset.boot = 5s"], "lxc.time.offset.boot"),
        (["lxc.namespace.clone = user mnt pid"], "lxc.namespace.clone"),
        (["lxc.namespace.keep = user", "lxc.idmap = u 0 1 2", "lxc.idmap = g 0 1 2"], "lxc.idmap"),
        (["lxc.cgroup.dir.monitor = a"], "lxc.cgroup.dir.monitor"),
        (["lxc.mount.entry = a b none create=x"], "lxc.mount.entry"),
    ],
)
def test_contradictions_that_plans_find(lines: list[str], key: str) -> None:
    errors, _rest = check.refusals(config(ROOT, *lines), ABLE)
    assert [getattr(error, "key", None) for error in errors] == [key]


def test_debians_configurations_have_no_error() -> None:
    found = sorted(glob.glob("/usr/share/lxc/config/**/*.conf", recursive=True))
    for path in found:
        errors, _rest = check.refusals(check.without_limits(Config.read(path)), ABLE)
        assert errors == (), path


# -------------------------------------------------------------------------------------------- rules
@pytest.mark.parametrize(
    ("lines", "line", "why"),
    [
        (["lxc.idmap = u 0 1 10", "lxc.idmap = g 0 1 10", "lxc.init.uid = 10"], 3, "maps no id 10"),
        (["lxc.idmap = u 0 1 10", "lxc.idmap = g 0 1 10", "lxc.init.groups = 3,12"], 3, "maps no id 12"),
        (["lxc.prlimit.core = 5:3"], 1, "above the hard one"),
        (["lxc.prlimit.core = unlimited:3"], 1, "above the hard one"),
        (["lxc.net.0.type = veth", "lxc.net.0.veth.pair = a", "lxc.net.1.type = veth", "lxc.net.1.veth.pair = a"], 4, "lxc.net.0.veth.pair"),
        (["lxc.cgroup.dir.monitor = a", "lxc.cgroup.dir.container = a"], 1, "the container's own cgroup"),
    ],
)  # fmt: skip
def test_rules(lines: list[str], line: int, why: str) -> None:
    (error,) = rules.contradictions(config(*lines))
    assert error.origin is not None
    assert error.origin.line == line
    assert why in error.message
    assert error.fix
    wish = sequence.Wish(name="c", lxcpath="/l", argv=("/x",))
    with pytest.raises(ConfigError) as caught:
        sequence.decide(config(*lines), ABLE, wish, sequence.Facts())
    assert caught.value.message == error.message


@pytest.mark.parametrize(
    "lines",
    [
        ["lxc.idmap = u 0 1 10", "lxc.idmap = g 0 1 10", "lxc.init.uid = 9"],
        ["lxc.init.uid = 1000"],
        ["lxc.prlimit.core = 3:unlimited", "lxc.prlimit.nofile = 5"],
        ["lxc.net.0.type = veth", "lxc.net.0.veth.pair = a", "lxc.net.1.type = veth"],
    ],
)
def test_no_contradiction(lines: list[str]) -> None:
    assert list(rules.contradictions(config(*lines))) == []


# ------------------------------------------------------------------------------------------- advice
def test_nothing_to_advise() -> None:
    assert advised(ROOT, "lxc.uts.name = a", "lxc.pty.max = 9", "lxc.tty.max = 2", whole=True) == []


def test_a_container_without_a_root_file_system() -> None:
    assert [
        line for line, _m in advised("lxc.uts.name = a", "lxc.rootfs.options = ro", whole=True)
    ] == [0, 2]
    assert advised("lxc.rootfs.options = ro") == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["lxc.uts.name = a", "lxc.namespace.keep = uts"], "no uts namespace of its own"),
        (["lxc.namespace.share.net = /x", "lxc.namespace.keep = net"], "shared, not kept"),
        (["lxc.time.offset.boot = 5s", "lxc.namespace.clone = pid"], "time is not in"),
        (["lxc.sysctl.kernel.panic = 1"], "a setting of the whole machine"),
        (["lxc.sysctl.net.ipv4.ip_forward = 1", "lxc.namespace.keep = net"], "a setting of the whole machine"),
        (["lxc.tty.max = 1"], "without lxc.pty.max"),
        (["lxc.console.logfile = /x", "lxc.console.path = none"], "there is no console"),
        (["lxc.console.rotate = 1"], "no lxc.console.logfile"),
        (["lxc.console.rotate = 1", "lxc.console.logfile = /x"], "lxc.console.size is not set"),
        (["lxc.hook.autodev = /x", "lxc.autodev = 0"], "lxc.autodev is 0"),
        (["lxc.apparmor.raw = x,"], "not `generated`"),
        (["lxc.seccomp.notify.cookie = x"], "no lxc.seccomp.notify.proxy"),
        (["lxc.net.0.link = a"], "a network of type empty has none"),
        (["lxc.net.0.ipv4.address = 10.0.0.1", "lxc.net.0.type = veth", "lxc.net.0.ipv4.address = 10.0.0.1"], "not brought up"),
        (["lxc.net.0.hwaddr = 01:00:00:00:00:01"], "has none"),
        (["lxc.cgroup.dir.container.inner = x"], "no lxc.cgroup.dir.container"),
        (["lxc.cgroup2.memory.mx = 1"], "no file that the kernel is known to have"),
        (["lxc.cgroup.cpu.share = 1"], "no file that the kernel is known to have"),
        (["lxc.start.delay = 3"], "lxc.start.auto is 0"),
        (["lxc.signal.halt = 999"], "no such signal"),
    ],
)  # fmt: skip
def test_advice(lines: list[str], words: str) -> None:
    ((_line, message),) = advised(*lines)
    assert words in message


@pytest.mark.parametrize(
    "lines",
    [
        ["lxc.sysctl.net.ipv4.ip_forward = 1", "lxc.sysctl.kernel.msgmax = 5", "lxc.sysctl.kernel.hostname = a"],
        ["lxc.cgroup2.memory.brand.new = 1", "lxc.cgroup.dir = x", "lxc.cgroup2.devices.deny = a"],
        ["lxc.net.0.type = none", "lxc.net.0.script.up = x"],
    ],
)  # fmt: skip
def test_no_advice(lines: list[str]) -> None:
    assert advised(*lines) == []


def test_networks_that_are_not_made_or_share_an_address() -> None:
    found = advised(
        "lxc.net.0.type = veth", "lxc.net.0.hwaddr = 00:16:3e:00:00:01", "lxc.net.1.type = veth",
        "lxc.net.1.hwaddr = 00:16:3E:00:00:01",
    )  # fmt: skip
    assert found == [(4, "lxc.net.1.hwaddr: lxc.net.0 has this address too")]
    assert "is ignored" in advised("lxc.net.0.type = veth", "lxc.namespace.keep = net")[0][1]


def test_steps_that_only_say_something() -> None:
    found = advised(ROOT, "lxc.mount.entry = /a /elsewhere none bind 0 0")
    assert [line for line, _message in found] == [2]
    assert found[0][1].startswith("a start will ")


# --------------------------------------------------------------------------------------------- looks
def test_a_root_file_system_that_is_not_there(tmp_path) -> None:
    assert lacking(f"lxc.rootfs.path = {tmp_path}/no")[0] == (
        "error",
        f"cannot use the root file system {tmp_path}/no: no such file or directory",
    )
    (tmp_path / "up").mkdir()
    assert lacking(f"lxc.rootfs.path = overlay:/:{tmp_path}/up") == []
    assert lacking("lxc.rootfs.path = overlay:/:tmpfs") == []


def test_init_and_start_hooks_are_looked_up_in_the_root(tmp_path) -> None:
    root = tmp_path / "root"
    (root / "sbin").mkdir(parents=True)
    (root / "sbin/init").symlink_to("/bin/busybox")
    lines = (
        f"lxc.rootfs.path = {root}",
        "lxc.hook.start = /sbin/init x",
        "lxc.init.cmd = /sbin/init",
    )
    assert [severity for severity, _message in lacking(*lines)] == ["error", "error"]
    (root / "bin").mkdir()
    (root / "bin/busybox").write_text("")
    assert "is not an executable file" in lacking(*lines)[0][1]
    (root / "bin/busybox").chmod(0o755)
    assert lacking(*lines) == []


def test_programs_of_the_host(tmp_path) -> None:
    program = tmp_path / "hook"
    line = f"lxc.hook.pre-start = {program} a"
    assert lacking(line) == [("error", f"cannot run {program}: it does not exist")]
    program.write_text("")
    assert lacking(line) == [("error", f"cannot run {program}: it is not executable")]
    program.chmod(0o755)
    assert lacking(line, "lxc.hook.stop = sh -c x", "lxc.hook.mount = '/a b'/c") == []
    assert lacking("lxc.hook.clone = /no/such")[0][0] == "warning"
    assert lacking("lxc.net.0.type = empty", "lxc.net.0.script.up = /no")[0][0] == "error"


def test_links() -> None:
    assert lacking("lxc.net.0.type = veth", "lxc.net.0.link = nosuchbr0")[0] == (
        "error",
        "the host has no link nosuchbr0",
    )
    if not os.path.isdir("/sys/module/openvswitch"):
        assert lacking("lxc.net.0.type = veth", "lxc.net.0.link = lo") == [
            ("error", "lo is no bridge")
        ]
    assert lacking("lxc.net.0.type = macvlan", "lxc.net.0.link = lo") == []
    assert lacking("lxc.net.0.type = veth", "lxc.net.0.veth.pair = lo")[0][0] == "warning"


def test_mounts(tmp_path) -> None:
    assert lacking(f"lxc.mount.entry = {tmp_path}/no a none bind 0 0")[0][0] == "error"
    assert lacking(f"lxc.mount.entry = {tmp_path}/no a none bind,optional 0 0") == []
    assert (
        lacking(f"lxc.mount.entry = {tmp_path} a none bind 0 0", "lxc.mount.entry = tmpfs b tmpfs")
        == []
    )
    assert lacking("lxc.mount.entry = x a nosuchfs")[0][0] == "warning"


@pytest.mark.parametrize(
    "line",
    ["lxc.mount.fstab = /no", "lxc.seccomp.profile = /no/such", "lxc.console.logfile = /no/such/log", "lxc.log.file = /no/such/log",
     "lxc.console.path = /dev/nosuchtty", "lxc.namespace.share.net = /no/such", "lxc.namespace.share.net = 999999999"],
)  # fmt: skip
def test_files(line: str) -> None:
    ((severity, _message),) = lacking(line, seccomp=True)
    assert severity == "error"


def test_ids_of_an_ordinary_user() -> None:
    lines = (
        "lxc.idmap = u 0 100000 65536",
        "lxc.idmap = g 0 100000 65536",
        "lxc.idmap = u 70000 1000 1",
    )
    given = (SubIds(first=100000, count=65536),)
    user = {"uid": 1000, "gid": 1000, "user": "me"}
    assert lacking(*lines, **user, subuids=given, subgids=given) == []
    assert lacking(*lines, **user, subuids=given, subgids=()) == [
        ("error", "/etc/subgid does not give me the ids 100000 to 165535")
    ]


def test_security_that_the_kernel_lacks() -> None:
    lines = ("lxc.apparmor.profile = generated", "lxc.selinux.context = x")
    assert [severity for severity, _m in lacking(*lines, lsm="none")] == ["note", "note"]
    assert lacking("lxc.apparmor.profile = unconfined", lsm="none") == []


# ------------------------------------------------------------------------------------------ the tool
def run(tmp_path, *argv: str, text: str = "") -> tuple[int, str]:
    (tmp_path / "in").write_text(text)
    with (tmp_path / "in").open() as given, (tmp_path / "out").open("w+") as out:
        status = options.run("check", argv, stdin=given.fileno(), stdout=out.fileno(), stderr=out.fileno(), cwd=str(tmp_path), environ={})  # fmt: skip
        out.seek(0)
        return status, out.read()


def test_tool_says_what_is_wrong_and_where(tmp_path) -> None:
    (tmp_path / "c.conf").write_text("lxc.uts.name = c\nlxc.tty.max = x\n")
    status, out = run(tmp_path, "c.conf")
    assert status == 1
    assert out.splitlines() == [
        f"{tmp_path}/c.conf:2:15: error: cannot set lxc.tty.max = x: not a whole number",
        "    lxc.tty.max = x",
        "                  ^",
        "1 error",
    ]


def test_tool_without_errors(tmp_path) -> None:
    assert run(tmp_path, "-", text="lxc.uts.name = c\n") == (0, "no problems\n")
    status, out = run(tmp_path, "-", text="lxc.utsname = c\n")
    assert status == 0
    assert out.endswith("1 warning\n")


def test_tool_by_name_and_several(tmp_path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/config").write_text("lxc.uts.name = c\n")
    status, out = run(tmp_path, "-P", str(tmp_path), "web", "nosuch", "/no/such", "--json")
    found = json.loads(out)
    assert status == 1
    assert [(p["severity"], os.path.basename(p["file"])) for p in found] == [
        ("warning", "config"),
        ("error", "nosuch"),
        ("error", "such"),
    ]


def test_tool_looks_at_the_host_only_when_asked(tmp_path) -> None:
    text = "lxc.rootfs.path = /no/such\n"
    assert run(tmp_path, "-", text=text)[0] == 0
    status, out = run(tmp_path, "-", "--host", text=text)
    assert status == 1
    assert "standard input:1:" in out or "-:1:" in out or "no such file" in out


def test_tool_wants_something_to_check(tmp_path) -> None:
    status, out = run(tmp_path)
    assert status == 1
    assert "give a container's name or a configuration file" in out


def test_a_plan_is_a_plan() -> None:
    made = check.plan(config(ROOT), ABLE, name="c", lxcpath="/l")
    assert isinstance(made, Plan)
