"""Processes with privilege: namespaces, ids, capabilities, cgroups, the controlling terminal."""

from __future__ import annotations

import errno
import os

import pytest

from abilities import needs
from atoll.linux import files, mount, proc, process
from atoll.linux.process import ExitStatus

pytestmark = needs("root")


def wait(child):
    with child.pidfd:
        return process.wait_pidfd(child.pidfd.fileno())


def in_child(function, flags=0):
    def entry():
        function()
        os._exit(0)

    assert wait(process.clone(entry, flags=flags)) == ExitStatus(exited=True, value=0)


ALL = (
    process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWUTS
    | process.CLONE_NEWIPC
    | process.CLONE_NEWNET
    | process.CLONE_NEWCGROUP
)


@pytest.mark.isolated
def test_a_child_in_new_namespaces():
    def check():
        assert os.getpid() == 1
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        mount.mount("proc", "/proc", "proc", flags=mount.MS_NOSUID | mount.MS_NODEV)
        assert [name for name in os.listdir("/proc") if name.isdigit()] == ["1"]
        process.sethostname("inner")
        process.setdomainname("inner.domain")
        assert os.uname().nodename == "inner"
        assert files.read_text("/proc/sys/kernel/domainname") == "inner.domain\n"

    before = os.uname().nodename
    in_child(check, ALL)
    assert os.uname().nodename == before


@pytest.mark.isolated
def test_a_fault_of_a_clone_leaves_no_process():
    before = os.listdir("/proc")
    with pytest.raises(OSError) as caught:
        process.clone(lambda: None, flags=process.CLONE_NEWNS | 0x200)  # CLONE_FS contradicts it
    assert caught.value.errno == errno.EINVAL
    assert [name for name in os.listdir("/proc") if name.isdigit()] == [n for n in before if n.isdigit()]  # fmt: skip


@pytest.mark.isolated
def test_reboot_ends_the_pid_namespace():
    status = wait(process.clone(_reboot, flags=process.CLONE_NEWPID))
    assert status == ExitStatus(exited=False, value=process.SIGHUP)


def _reboot():
    def entry():
        process.reboot(process.RB_AUTOBOOT)

    process.clone(entry)
    while True:
        os.sched_yield()


@pytest.mark.isolated
def test_unshare_and_setns():
    def check():
        with files.open_fd("/proc/self/ns/uts", os.O_RDONLY) as home:
            process.unshare(process.CLONE_NEWUTS)
            process.sethostname("elsewhere")
            process.setns(home.fileno(), process.CLONE_NEWUTS)
        assert os.uname().nodename != "elsewhere"

    in_child(check)


@pytest.mark.isolated
def test_setns_into_all_namespaces_of_a_pidfd():
    reader, writer = os.pipe()

    def entry():
        process.sethostname("target")
        os.write(writer, b"1")
        while True:
            os.read(reader, 0)
            os.sched_yield()

    child = process.clone(entry, flags=process.CLONE_NEWUTS | process.CLONE_NEWIPC)
    os.read(reader, 1)

    def check():
        process.setns(child.pidfd.fileno(), process.CLONE_NEWUTS | process.CLONE_NEWIPC)
        assert os.uname().nodename == "target"

    in_child(check)
    process.pidfd_send_signal(child.pidfd.fileno(), process.SIGKILL)
    assert wait(child) == ExitStatus(exited=False, value=9)
    os.close(reader)
    os.close(writer)


def test_ids():
    def check():
        process.set_ids(1234, 2345, (3456, 4567))
        assert os.getresuid() == (1234, 1234, 1234)
        assert os.getresgid() == (2345, 2345, 2345)
        assert os.getgroups() == [3456, 4567]
        assert process.capabilities().effective == 0
        with pytest.raises(PermissionError) as caught:
            process.set_ids(0, None, None)
        assert caught.value.__notes__ == ["setresuid(2): uid=0"]

    in_child(check)


def test_capability_sets():
    def check():
        cap = process.CAPABILITIES.index("net_raw")
        process.bounding_drop(process.CAPABILITIES.index("mknod"))
        assert not process.bounding_has(process.CAPABILITIES.index("mknod"))
        assert process.bounding_has(cap)
        with pytest.raises(OSError):
            process.bounding_has(63)
        with pytest.raises(PermissionError):
            process.ambient_raise(cap)
        now = process.capabilities()
        process.set_capabilities(now.replace(inheritable=1 << cap))
        process.ambient_raise(cap)
        assert f"CapAmb:\t{1 << cap:016x}" in files.read_text("/proc/self/status")
        process.ambient_clear()
        assert f"CapAmb:\t{0:016x}" in files.read_text("/proc/self/status")

    in_child(check)


def test_limits_of_another_process():
    reader, writer = os.pipe()

    def entry():
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)

    child = process.clone(entry)
    process.prlimit(child.pid, process.RLIMITS["nofile"], 11, 22)
    assert process.get_prlimit(child.pid, process.RLIMITS["nofile"]) == (11, 22)
    process.prlimit(child.pid, process.RLIMITS["cpu"], process.RLIM_INFINITY, -1)
    os.close(writer)
    os.close(reader)
    assert wait(child).value == 0


def test_keyring_and_personality():
    def check():
        first = process.join_session_keyring()
        assert first > 0
        assert process.join_session_keyring() != first
        assert process.personality(0x0008) == 0  # PER_LINUX32
        assert process.personality(0xFFFFFFFF) == 0x0008

    in_child(check)


def test_the_controlling_terminal():
    master, terminal, _name = files.openpty()

    def check():
        os.setsid()
        process.set_controlling_terminal(terminal.fileno())
        with files.open_fd("/dev/tty", os.O_RDWR) as tty:
            assert files.window_size(tty.fileno()) is not None

    in_child(check)
    master.close()
    terminal.close()


@needs("cgroup-v2")
@pytest.mark.isolated(cgroup=True)
def test_a_child_begins_in_a_cgroup():
    mounts = proc.parse_mountinfo(files.read_text("/proc/self/mountinfo"))
    directory = next(m.target for m in mounts if m.fstype == "cgroup2") + "/begin"
    files.mkdir(directory, 0o755)
    with files.open_fd(directory, os.O_RDONLY | os.O_DIRECTORY) as cgroup:
        child = process.clone(
            lambda: os._exit("/begin" not in files.read_text("/proc/self/cgroup")),
            cgroup_fd=cgroup.fileno(),
        )
    assert wait(child).value == 0
    files.rmdir(directory)
