"""Limits, /proc files, sysctls and personality on the real kernel, and the words of their failures."""

from __future__ import annotations

import os
import resource

import pytest

from atoll import host
from atoll.config.text import Config
from atoll.errors import HostError
from atoll.linux import process
from atoll.linux.files import open_fd
from atoll.linux.process import CLONE_NEWPID
from atoll.plan import ROOTFS, Start
from atoll.resources import limits
from isolation import kernel
from privileged.stepping import in_child

HOST = host.probe()
START = Start(
    name="c1",
    lxcpath="/l",
    start_id="abcd1234",
    began=0.0,
    argv=("/init",),
    clone_namespaces=CLONE_NEWPID,
)


def limited(text: str) -> str:
    steps = limits.resource_limits(Config.parse(text), HOST, START)
    return in_child(
        (), lambda _h: f"{resource.getrlimit(resource.RLIMIT_NOFILE)} {resource.getrlimit(resource.RLIMIT_CORE)}",
        monitor=steps,
    )  # fmt: skip


@pytest.mark.isolated
def test_limits() -> None:
    assert (
        limited("lxc.prlimit.nofile = 100:200\nlxc.prlimit.core = unlimited\n")
        == "(100, 200) (-1, -1)"
    )


@pytest.mark.isolated
def test_refused_limits() -> None:
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    for value, message in (
        ("9:5", "limit nofile of init to 9:5: the soft limit is above the hard one"),
        (
            f"{most + 1}",
            f"limit nofile of init to {most + 1}: fs.nr_open of this machine is {most}",
        ),
    ):
        with pytest.raises(HostError) as caught:
            limited(f"lxc.prlimit.nofile = {value}\n")
        assert caught.value.message == f"cannot {message}"


@pytest.mark.isolated
def test_a_hard_limit_that_a_user_may_not_raise() -> None:
    process.prlimit(0, process.RLIMITS["nproc"], 5000, 5000)
    process.set_ids(1234, 1234, ())
    process.set_dumpable(True)
    with pytest.raises(HostError) as caught:
        limited("lxc.prlimit.nproc = unlimited\n")
    assert caught.value.message == (
        "cannot limit nproc of init to unlimited: the hard limit here is 5000 and only CAP_SYS_RESOURCE of the machine may"
        " raise it"
    )
    assert caught.value.fix == "use at most 5000, or start the container as root"


@pytest.mark.isolated
def test_proc_files() -> None:
    def run(text: str) -> str:
        steps = limits.proc_files(Config.parse(text), HOST, START)
        return in_child((), lambda _h: open("/proc/self/oom_score_adj").read(), monitor=steps)

    assert run("lxc.proc.oom_score_adj = 10\n") == "10\n"
    with pytest.raises(
        HostError,
        match=r"^cannot write 10 to /proc/PID/nosuch of init: the kernel has no such file$",
    ):
        run("lxc.proc.nosuch = 10\n")


def sysctl(text: str, root: str = "/") -> str:
    steps = limits.sysctls(Config.parse(text), HOST, START)
    slots = {ROOTFS: open_fd(root, os.O_PATH)}
    return in_child(steps, lambda _h: open("/proc/sys/net/ipv4/ip_forward").read(), slots=slots)  # type: ignore[arg-type]  # Slot is invariant


@pytest.mark.isolated
def test_sysctl() -> None:
    assert sysctl("lxc.sysctl.net.ipv4.ip_forward = 1\n") == "1\n"


@pytest.mark.isolated
@pytest.mark.parametrize(
    ("line", "root", "answer"),
    [
        ("no.such = 1", "/", "the kernel has no such setting in these namespaces | None"),
        ("net.ipv4.ip_forward = x", "/", "the kernel refuses the value 'x' | None"),
        (
            "no.such = 1",
            "/mnt",
            "proc is not mounted in the container | add lxc.mount.auto = proc:mixed",
        ),
    ],
)
def test_refused_sysctls(line: str, root: str, answer: str) -> None:
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    assert sysctl(f"lxc.sysctl.{line}\n", root) == f"FAILED cannot set sysctl {line}: {answer}"


@pytest.mark.isolated
def test_a_container_cannot_lead_a_sysctl_elsewhere() -> None:
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    os.makedirs("/mnt/proc/sys/kernel")
    with open("/mnt/victim", "w") as file:
        file.write("untouched")
    os.symlink("/victim", "/mnt/proc/sys/kernel/x")
    assert sysctl("lxc.sysctl.kernel.x = 1\n", "/mnt").startswith(
        "FAILED too many levels of symbolic links"
    )
    with open("/mnt/victim") as file:
        assert file.read() == "untouched"


@pytest.mark.isolated
def test_personality() -> None:
    steps = limits.personality(Config.parse("lxc.arch = i686\n"), HOST, START)
    answer = in_child(steps, lambda _h: os.uname().machine)
    expected = {"x86_64": "i686", "aarch64": "armv8l"}
    assert answer == expected.get(HOST.machine, answer)


@pytest.mark.isolated
def test_core_scheduling_or_why_not() -> None:
    """No kernel that we test on has it; where one has, the cookie is set."""
    steps = limits.core_scheduling(Config.parse("lxc.sched.core = 1\n"), HOST, START)
    try:
        answer = in_child((), lambda _h: "went on", monitor=steps)
    except HostError as error:
        answer = error.message
    assert answer.removeprefix(
        "cannot give the container a core scheduling cookie of its own: "
    ) in (
        "went on",
        "this machine has no cores with several threads",
        "the kernel does not support core scheduling",
    )
