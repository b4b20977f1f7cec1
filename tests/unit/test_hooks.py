"""Hook keys, their order and environment, and the words of their failures."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import host
from atoll.config.text import Config
from atoll.errors import ConfigError, HostError
from atoll.linux.files import open_fd
from atoll.linux.process import Child
from atoll.plan import CHILD, HOOK_ENVIRONMENT, NAMESPACES, ROOTFS, Handler, Start
from atoll.resources import hooks

HOST = host.probe()
START = Start(
    name="c1", lxcpath="/l", start_id="abcd1234", began=0.0, argv=("/init",), rootfs="/mnt"
)


def test_all_points_have_a_key() -> None:
    text = "".join(
        f"lxc.hook.{point} = /{point} a\nlxc.hook.{point} = /second\n" for point in hooks.POINTS
    )
    config = Config.parse(text)
    for point in hooks.POINTS:
        assert config[hooks.Hooks].at(point) == (f"/{point} a", "/second")
        assert config.get(f"lxc.hook.{point}") == f"/{point} a\n/second\n"


def test_the_bare_key_clears_all_and_takes_no_value() -> None:
    config = Config.parse("lxc.hook.stop = /x\nlxc.hook.version = 1\nlxc.hook =\n")
    assert config[hooks.Hooks].at("stop") == ()
    with pytest.raises(ConfigError, match=r"lxc\.hook"):
        Config.parse("lxc.hook = x\n")


@pytest.mark.parametrize("value", ["2", "-1", "x", "01"])
def test_refused_version(value: str) -> None:
    with pytest.raises(ConfigError, match="only 0 \\(legacy\\) and 1 are supported"):
        Config.parse(f"lxc.hook.version = {value}\n")


def test_plan_has_a_step_for_each_hook_with_its_line() -> None:
    config = Config.parse(
        "lxc.hook.pre-start = /a x\nlxc.hook.mount = /m\nlxc.hook.pre-start = /b\n"
    )
    steps = hooks.run(config, HOST, START, "pre-start")
    assert [(s.explain(), s.origin.line if s.origin else 0) for s in steps] == [
        ("run the pre-start hook /a x", 1), ("run the pre-start hook /b", 3),
    ]  # fmt: skip
    assert [s.explain() for s in hooks.run_inside(config, HOST, START, "mount")] == [
        "run the mount hook /m"
    ]
    assert hooks.run(config, HOST, START, "stop") == ()


def test_start_hooks_are_all_verified() -> None:
    config = Config.parse("lxc.hook.start = /a x\nlxc.hook.start = /b\n")
    assert [s.explain() for s in hooks.verify(config, HOST, START)] == [
        "check that the container has the start hook /a x", "check that the container has the start hook /b",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------ environment
def prepared(text: str, **start: object) -> dict[str, str]:
    handler = Handler()
    config = Config.parse(text, file="/l/c1/config")
    for step in hooks.environment(
        config, HOST, START.replace(**start), environ={"PATH": "/p", "LXC_NAME": "old"}
    ):
        step.apply(handler)
    return handler[HOOK_ENVIRONMENT]


def test_environment() -> None:
    found = prepared(
        "lxc.rootfs.path = dir:/srv/r\nlxc.console.path = none\nlxc.console.logfile = /log\nlxc.hook.version = 1\n"
        "lxc.log.level = debug\n"
    )
    cgroup = {"LXC_CGNS_AWARE": "1"} if "cgroup" in HOST.namespaces else {}
    assert found == {
        "PATH": "/p", "LXC_NAME": "c1", "LXC_CONFIG_FILE": "/l/c1/config", "LXC_ROOTFS_MOUNT": "/mnt",
        "LXC_ROOTFS_PATH": "/srv/r", "LXC_CONSOLE": "none", "LXC_CONSOLE_LOGPATH": "/log", "LXC_LOG_LEVEL": "DEBUG",
        "LXC_HOOK_VERSION": "1", **cgroup,
    }  # fmt: skip


def test_environment_has_only_what_is_configured() -> None:
    found = prepared("", rootfs=None)
    assert not {"LXC_ROOTFS_PATH", "LXC_CONSOLE", "LXC_CONSOLE_LOGPATH"} & set(found)
    assert found["LXC_ROOTFS_MOUNT"] == HOST.rootfs_mount
    assert found["LXC_HOOK_VERSION"] == "0"
    assert found["LXC_LOG_LEVEL"] == "ERROR"  # observed with lxc-execute of 5.0.2


def test_environment_is_explained_without_values() -> None:
    (step,) = hooks.environment(Config.empty(), HOST, START, environ={"TOKEN": "secret"})
    assert "secret" not in step.explain()


def test_pid_and_namespaces_are_added() -> None:
    handler = Handler()
    handler[HOOK_ENVIRONMENT] = {}
    handler[CHILD] = Child(pid=42, pidfd=open_fd("/dev/null", os.O_RDONLY))
    handler[NAMESPACES] = {
        name: open_fd("/dev/null", os.O_RDONLY) for name in ("cgroup", "net", "mnt")
    }
    fds = {name: fd.fileno() for name, fd in handler[NAMESPACES].items()}
    for step in (
        *hooks.child_environment(Config.empty(), HOST, START),
        *hooks.stop_environment(Config.empty(), HOST, START, target="reboot"),
    ):
        step.apply(handler)
    me = os.getpid()
    assert handler[HOOK_ENVIRONMENT] == {
        "LXC_PID": "42", "LXC_TARGET": "reboot", "LXC_MNT_NS": f"/proc/{me}/fd/{fds['mnt']}",
        "LXC_NET_NS": f"/proc/{me}/fd/{fds['net']}", "LXC_CGROUP_NS": f"/proc/{me}/fd/{fds['cgroup']}",
    }  # fmt: skip
    assert [name for name, _path in hooks.kept_namespaces(handler)] == ["mnt", "net", "cgroup"]
    for fd in (*handler[NAMESPACES].values(), handler[CHILD].pidfd):
        fd.close()


# ------------------------------------------------------------------------------------------ words
@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("/a b c", "/a"),
        ("  /a", "/a"),
        ("", ""),
        ('"/a b" c', ""),
        ("$HOME/x", ""),
        ("/a;/b", ""),
        ("X=1 /a", ""),
    ],
)
def test_program_of_a_command_line(command: str, program: str) -> None:
    assert hooks._program(command) == program


@given(st.text())
def test_program_is_the_first_word_or_nothing(command: str) -> None:
    assert hooks._program(command) in ("", *command.split()[:1])


def test_why_a_program_could_not_be_executed(tmp_path: os.PathLike[str]) -> None:
    directory = os.fspath(tmp_path)
    plain, script = f"{directory}/plain", f"{directory}/script"
    for path, mode in ((plain, 0o644), (script, 0o755)):
        with open(path, "w") as file:
            file.write("#! /no/such/interpreter -x\n")
        os.chmod(path, mode)
    assert hooks._why_not("/no/such", {})[0] == "there is no file /no/such"
    assert hooks._why_not(script, {}) == (
        "the interpreter /no/such/interpreter in its first line does not exist", None,
    )  # fmt: skip
    assert hooks._why_not("nosuch", {"PATH": directory})[0] == "there is no program nosuch in PATH"
    assert hooks._why_not("script", {"PATH": directory}) == (None, None)
    assert hooks._why_not("/bin/true", {}) == (None, None)
    if os.geteuid() != 0 or not os.access(plain, os.X_OK):
        assert hooks._why_not(plain, {}) == (f"{plain} is not executable", f"chmod +x {plain}")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/hk/no S", "the container has no file /hk/no"),
        ("/hk/plain", "the container has /hk/plain, but not as an executable file"),
        ("/hk", "the container has /hk, but not as an executable file"),
        ("hk", "the container has to be told its whole path"),
        ("/../../bin/sh", "the container has no file /../../bin/sh"),
    ],
)
def test_start_hook_is_looked_for_in_the_container(
    tmp_path: os.PathLike[str], command: str, message: str
) -> None:
    os.mkdir(f"{os.fspath(tmp_path)}/hk")
    for name, mode in (("plain", 0o644), ("good", 0o755)):
        open(f"{os.fspath(tmp_path)}/hk/{name}", "w").close()
        os.chmod(f"{os.fspath(tmp_path)}/hk/{name}", mode)
    handler = Handler()
    with open_fd(os.fspath(tmp_path), os.O_PATH) as root:
        handler[ROOTFS] = root
        hooks.VerifyStartHook(command="/hk/good with arguments").apply(handler)
        with pytest.raises(HostError) as caught:
            hooks.VerifyStartHook(command=command).apply(handler)
    assert caught.value.message == f"cannot run the start hook {command}: {message}"
