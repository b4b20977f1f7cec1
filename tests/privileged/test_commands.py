"""Our command server in front of Debian's tools, and the refusal of other users."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from abilities import needs
from atoll.errors import CommandError, HostError
from atoll.lifecycle.client import CommandClient, active_containers, wait_states
from atoll.lifecycle.commands import FROZEN, RUNNING, STOPPED, THAWED, CgroupContext
from atoll.lifecycle.server import CommandServer
from atoll.loop import Loop
from isolation import kernel

pytestmark = [needs("root", "lxc", "pidns"), pytest.mark.isolated()]

LXCPATH = "/mnt/containers"
NOBODY = 65534


class Sleeper:
    """A container that is one sleeping process, and its monitor: a server in a thread."""

    def __init__(self, name="c1"):
        self.name, self.lxcpath = name, LXCPATH
        self.state, self.clone_flags = RUNNING, 0x6E020000
        self.process = subprocess.Popen(["sleep", "600"])
        self.init_pid = self.process.pid
        self.pidfd = os.pidfd_open(self.process.pid)
        self.loop = Loop()
        self.server = CommandServer.listen(LXCPATH, name)
        self.server.serve(self.loop, self)
        self.ended = False
        self.loop.watch(self.pidfd, self.end)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.ended:
            self.loop.run_once()

    def end(self, _events):
        self.process.wait()
        self.loop.forget(self.pidfd)
        self.server.close()
        self.ended = True

    def close(self):
        self.process.kill()
        self.thread.join()
        os.close(self.pidfd)
        self.loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def init_pidfd(self):
        return self.pidfd

    def config_item(self, key):
        return {"lxc.group": "web\n", "lxc.start.auto": "1"}.get(key)

    def stop(self):
        self.process.kill()

    def set_state(self, state):
        self.state = RUNNING if state == THAWED else state
        self.server.notify(state)

    def console(self, ttynum):
        return None

    def release_console(self, tty):
        raise AssertionError("nothing was leased")

    def console_log(self, *, clear, read, limit, write_file):
        return None

    def cgroup_path(self, controller, *, limit):
        return None

    def cgroup_context(self):
        return CgroupContext(layout=0, utilities=0, fds=())

    def cgroup_fd(self, controller, kind, *, limit):
        return None

    def cgroup2_fd(self, *, limit):
        return None

    def devpts_fd(self):
        return None


def lxc(tool, *arguments):
    done = subprocess.run(
        [f"/usr/bin/lxc-{tool}", "-P", LXCPATH, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout


def private():
    """Give the test's namespaces a lxcpath, and a /run for the lock files of Debian's tools."""
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    kernel.mount("tmpfs", "/run", "tmpfs")
    os.makedirs(f"{LXCPATH}/c1")
    with open(f"{LXCPATH}/c1/config", "w") as file:
        file.write("lxc.uts.name = c1\n")


def test_debians_tools_ask_us():
    private()
    with Sleeper() as sleeper:
        assert lxc("info", "-n", "c1", "-s", "-H") == (0, "RUNNING\n")
        assert lxc("info", "-n", "c1", "-p", "-H") == (0, f"{sleeper.init_pid}\n")
        assert lxc("ls", "-1") == (0, "c1\n")
        assert lxc("ls", "-f", "-F", "NAME,STATE,PID,AUTOSTART,GROUPS,UNPRIVILEGED")[1].split("\n")[1].split() == [
            "c1", "RUNNING", str(sleeper.init_pid), "1", "web", "false",
        ]  # fmt: skip
        assert lxc("wait", "-n", "c1", "-s", "RUNNING") == (0, "")
        assert active_containers(LXCPATH) == ("c1",)


def test_debians_wait_hears_of_states():
    private()
    with Sleeper():
        frozen = subprocess.Popen(["lxc-wait", "-P", LXCPATH, "-n", "c1", "-s", "FROZEN"])
        stopped = subprocess.Popen(["lxc-wait", "-P", LXCPATH, "-n", "c1", "-s", "STOPPED"])
        client = CommandClient(LXCPATH, "c1")
        while frozen.poll() is None:  # until it has registered
            client.set_state(FROZEN)
        assert frozen.returncode == 0
        client.set_state(THAWED)
        assert client.get_state() == RUNNING
        assert lxc("stop", "-n", "c1", "-k") == (0, "")
        assert stopped.wait(30) == 0
    assert lxc("info", "-n", "c1", "-s", "-H") == (0, "STOPPED\n")


def test_ours_stops_it():
    private()
    with Sleeper():
        CommandClient(LXCPATH, "c1").stop(timeout=30)
        assert CommandClient(LXCPATH, "c1").get_state() == STOPPED
        assert wait_states(LXCPATH, "c1", [STOPPED], 0) == STOPPED


def as_nobody(attempt):
    """Run it as another user; what it wrote to the pipe."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            attempt(writer)
        finally:
            os._exit(0)
    os.close(writer)
    return pid, reader


def test_other_users_are_refused():
    private()

    def attempt(writer):
        try:
            CommandClient(LXCPATH, "c1").stop()
        except CommandError as error:
            os.write(writer, error.message.encode())

    with Sleeper() as sleeper:
        pid, reader = as_nobody(attempt)
        with os.fdopen(reader) as pipe:
            assert pipe.read() == "container c1: command 2 was refused: operation not permitted"
        os.waitpid(pid, 0)
        assert sleeper.process.poll() is None


def test_a_name_that_another_user_holds():
    private()

    def attempt(writer):
        squatter = CommandServer.listen(LXCPATH, "c1")
        os.write(writer, b"ready")
        os.read(done, 1)
        squatter.close()

    done, finish = os.pipe()
    pid, reader = as_nobody(attempt)
    try:
        assert os.read(reader, 5) == b"ready"
        with pytest.raises(HostError, match=f"held by a process of user {NOBODY}"):
            CommandServer.listen(LXCPATH, "c1")
        with pytest.raises(CommandError, match="held by a process of user"):
            CommandClient(LXCPATH, "c1").get_init_pid()
    finally:
        os.write(finish, b"x")
        os.waitpid(pid, 0)
        for fd in (done, finish, reader):
            os.close(fd)
