"""The outer isolation: one throw-away machine for a whole test run.

Four processes.  The *supervisor* stays outside: it makes the state directory and the cgroups, waits, and
removes them whatever happens.  The *door* enters the cgroups and unshares.  *Pid 1* of the new pid
namespace arranges mounts and network, then reaps.  The *worker* is the command.  Each dies with the one
before it (PR_SET_PDEATHSIG), and pid 1 takes its namespace along, so nothing survives the supervisor.

A supervisor that was itself killed by SIGKILL leaves an empty directory and empty cgroups: the next run
finds the directory's lock free and removes both.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import glob
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import TYPE_CHECKING

from isolation import cgroups, kernel, marker

if TYPE_CHECKING:
    from collections.abc import Callable

STATE = "/var/tmp/atoll-isolation."
# Writes to these are thrown away.  Transparent for reading, so the order and the repository's place do
# not matter; one that holds the repository or the working directory is left alone.
OVERLAYS = ("etc", "usr", "home", "root", "opt", "srv", "var/lib", "var/cache", "var/log")
# On the disk, not under an overlay: containers made on overlays cannot stack on an overlay, and tmpfs has
# neither id-mapped mounts nor user xattrs on Debian 12's kernel.
REAL = ("var/lib/lxc", "var/cache/lxc")
SYSFS_CHILDREN = {"securityfs", "bpf", "debugfs", "tracefs", "configfs", "fusectl", "pstore"}
LOOP_NODES = 32
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
GRACE = 10.0
ARRANGING_FAILED = 125


def main(argv: list[str]) -> int:
    options = _options(argv)
    if os.geteuid() != 0:
        print("isolation: only root can be isolated (and need be)", file=sys.stderr)
        return ARRANGING_FAILED
    return Supervisor(options).run()


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="isolation", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--cgroup", choices=cgroups.LAYOUTS, default="auto", help="layout of /sys/fs/cgroup")
    add("--keep-network", action="store_true", help="stay in the present network namespace")
    add("--keep-tmp", action="store_true", help="do not hide /tmp")
    add("command", nargs="+", metavar="COMMAND")
    return parser.parse_args(argv)


class Supervisor:
    """Makes, waits, removes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.layout = cgroups.resolve_layout(options.cgroup)

    def run(self) -> int:
        # Blocked, not handled: a signal can then never interrupt the clean-up half-way.
        signals = {*STOPPING, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # pid 1 comes to us when the door is killed
        remove_stale()
        state = tempfile.mkdtemp(prefix=STATE)
        os.chmod(state, 0o755)
        lock = os.open(f"{state}/lock", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        subtree = cgroups.Subtree(_name(state))
        left: list[str] = []
        try:
            if self.layout != "host":
                subtree.make()
            return self._wait(self._start(state, subtree), subtree)
        finally:
            left = subtree.remove()
            shutil.rmtree(state, ignore_errors=True)
            os.close(lock)
            if left or os.path.exists(state):
                print(f"isolation: could not remove {state} {left}", file=sys.stderr)

    def _start(self, state: str, subtree: cgroups.Subtree) -> int:
        supervisor = os.getpid()
        door = os.fork()
        if door == 0:
            _child(lambda: self._door(state, subtree, supervisor))
        return door

    def _wait(self, door: int, subtree: cgroups.Subtree) -> int:
        """The worker's status. A signal sent to us ends everything now; ctrl-C leaves the worker some time."""
        status: int | None = None
        deadline: float | None = None
        while True:
            pause = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
            info = signal.sigtimedwait({*STOPPING, signal.SIGCHLD}, min(pause, 1.0))
            if info is not None and info.si_signo in STOPPING:
                by_terminal = info.si_pid == 0 and deadline is None
                deadline = time.monotonic() + (GRACE if by_terminal else 0)
            if deadline is not None and time.monotonic() >= deadline:
                status = status if status is not None else 128 + signal.SIGTERM
                with contextlib.suppress(ProcessLookupError):
                    os.kill(door, signal.SIGKILL)
                subtree.thaw()
                subtree.kill()
            try:
                while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                    if reaped[0] == door and status is None:
                        status = _status(reaped[1])
            except ChildProcessError:
                return status if status is not None else 1

    def _door(self, state: str, subtree: cgroups.Subtree, supervisor: int) -> int:
        _die_with(supervisor)
        subtree.enter()
        flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        if subtree.made:
            flags |= kernel.CLONE_NEWCGROUP
        if not self.options.keep_network:
            flags |= kernel.CLONE_NEWNET
        kernel.unshare(flags)
        first = os.fork()
        if first == 0:
            _child(lambda: self._first(state, subtree))
        return _status(os.waitpid(first, 0)[1])

    def _first(self, state: str, subtree: cgroups.Subtree) -> int:
        """Pid 1: arrange, start the worker, reap until it is done, thaw; the kernel kills what is left."""
        _die_with(0)  # the door's pid is not visible from here
        self._arrange(state, subtree)
        worker = os.fork()
        if worker == 0:
            _child(self._work)
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == worker:
                break
        if self.layout != "host":
            cgroups.thaw_all()
        return _status(status)

    def _work(self) -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPPING, signal.SIGCHLD})
        command = self.options.command
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"isolation: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127

    def _arrange(self, state: str, subtree: cgroups.Subtree) -> None:
        here = os.getcwd()
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        kernel.mount("tmpfs", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
        for directory in (marker.DIRECTORY, marker.UPPER, f"{marker.DIRECTORY}/work"):
            os.mkdir(directory, 0o700)
        os.mkdir("/run/lock")
        os.chmod("/run/lock", 0o1777)
        overlays = [d for d in OVERLAYS if throw_away(d, busy=(here, _repository()))]
        grant_subordinate_ids()
        for directory in REAL:
            os.makedirs(f"{state}/{directory}")
            os.makedirs(f"/{directory}", exist_ok=True)
            kernel.mount(f"{state}/{directory}", f"/{directory}", None, kernel.MS_BIND)
        private_dev()
        if not self.options.keep_network or subtree.made:
            fresh_sysfs(keep_cgroups=not subtree.made)
        if subtree.made:
            cgroups.mount_layout(self.layout, subtree.made, own_leaf=True)
        if not self.options.keep_network:
            kernel.loopback_up()
        tmp = self._private_tmp(state, busy=(here, _repository(), *self.options.command))
        marker.Marker(self.layout, overlays, not self.options.keep_network, tmp).write()
        os.chdir(here)

    def _private_tmp(self, state: str, *, busy: tuple[str, ...]) -> bool:
        os.mkdir(f"{state}/tmp")
        os.chmod(f"{state}/tmp", 0o1777)
        os.environ["TMPDIR"] = f"{state}/tmp"
        if self.options.keep_tmp or any(_beneath(path, "/tmp") for path in busy):
            return False
        kernel.mount(f"{state}/tmp", "/tmp", None, kernel.MS_BIND)
        os.environ["TMPDIR"] = "/tmp"
        return True


def throw_away(directory: str, *, busy: tuple[str, ...]) -> bool:
    """Cover /`directory` so that writes are lost; True when the upper layer shows what was written."""
    target = f"/{directory}"
    if not os.path.isdir(target) or os.path.islink(target):
        return False
    if any(_beneath(path, target) for path in busy):
        return False
    layer = directory.replace("/", "-")
    upper, work = f"{marker.UPPER}/{layer}", f"{marker.DIRECTORY}/work/{layer}"
    status = os.stat(target)
    for path in (upper, work):
        os.mkdir(path)
        os.chown(path, status.st_uid, status.st_gid)
        os.chmod(path, status.st_mode & 0o7777)
    try:
        data = f"lowerdir={target},upperdir={upper},workdir={work}"
        kernel.mount("overlay", target, "overlay", 0, data)
    except OSError:
        # The kernel stacks overlays two deep: inside other isolations the third is refused.  What tests
        # write to (users, lxc's own files) is copied, the rest becomes read-only.
        os.rmdir(upper)
        if directory in ("etc", "root", "home"):
            shutil.copytree(target, work, symlinks=True, dirs_exist_ok=True, copy_function=_copy)
            kernel.mount(work, target, None, kernel.MS_BIND)
        else:
            kernel.mount(target, target, None, kernel.MS_BIND | kernel.MS_REC)
            if not directory.startswith("var/"):
                flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY
                kernel.mount(None, target, None, flags)
        return False
    return True


def grant_subordinate_ids() -> None:
    """Give root a range, in the throw-away /etc: Debian gives ranges to ordinary users only."""
    for path in ("/etc/subuid", "/etc/subgid"):
        with open(path, "a+", encoding="ascii") as file:
            file.seek(0)
            if not any(line.startswith("root:") for line in file):
                file.write("root:1000000:131072\n")


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)
    status = os.lstat(source)
    os.lchown(target, status.st_uid, status.st_gid)


def private_dev() -> None:
    """A tmpfs with copies of the machine's nodes: chmod there changes nothing outside."""
    new = tempfile.mkdtemp(prefix="dev.", dir="/run")
    kernel.mount("tmpfs", new, "tmpfs", kernel.MS_NOSUID, "mode=755")
    kernel.copy_nodes("/dev", new, skip=("pts", "shm", "mqueue", "hugepages"))
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{new}/{name}")
    if os.path.exists("/dev/loop-control"):  # the kernel makes new nodes only in devtmpfs
        for number in range(LOOP_NODES):
            with contextlib.suppress(FileExistsError):
                os.mknod(f"{new}/loop{number}", 0o060660, os.makedev(7, number))
    if os.path.isdir("/dev/pts"):  # the same ptys: our own terminal is one of them
        kernel.mount("/dev/pts", f"{new}/pts", None, kernel.MS_BIND)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", f"{new}/shm", "tmpfs", flags, "mode=1777")
    with contextlib.suppress(OSError):  # no CONFIG_POSIX_MQUEUE
        kernel.mount("mqueue", f"{new}/mqueue", "mqueue", flags | kernel.MS_NOEXEC)
    with contextlib.suppress(OSError):  # in a container /dev/console is a pty bound there
        if any(point == "/dev/console" for point, _type in kernel.mounts_below("/dev")):
            kernel.mount("/dev/console", f"{new}/console", None, kernel.MS_BIND)
    kernel.umount("/dev", kernel.MNT_DETACH)
    kernel.mount(new, "/dev", None, kernel.MS_MOVE)
    os.rmdir(new)


def fresh_sysfs(*, keep_cgroups: bool) -> None:
    """Mount sysfs anew: it shows the network namespace of whoever mounted it."""
    below = kernel.mounts_below("/sys")
    saved = None
    if keep_cgroups and os.path.ismount(cgroups.ROOT):
        saved = tempfile.mkdtemp(prefix="cgroup.", dir="/run")
        kernel.mount(cgroups.ROOT, saved, None, kernel.MS_BIND | kernel.MS_REC)
    while os.path.ismount("/sys"):
        kernel.umount("/sys", kernel.MNT_DETACH)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("sysfs", "/sys", "sysfs", flags)
    for point, fstype in below:
        if fstype in SYSFS_CHILDREN:
            with contextlib.suppress(OSError):
                kernel.mount(fstype, point, fstype, flags)
    if saved is not None:
        kernel.mount(saved, cgroups.ROOT, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.umount(saved, kernel.MNT_DETACH)
        os.rmdir(saved)


def remove_stale() -> None:
    """Remove what supervisors that were killed left: theirs is the lock that nobody holds."""
    for state in glob.glob(f"{STATE}*"):
        with contextlib.suppress(OSError):
            lock = os.open(f"{state}/lock", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                subtree = cgroups.Subtree(_name(state))
                subtree.made = [h for h in subtree.hierarchies if os.path.isdir(subtree.path(h))]
                subtree.remove()
                shutil.rmtree(state, ignore_errors=True)
            finally:
                os.close(lock)


def _name(state: str) -> str:
    return os.path.basename(state).replace(".", "-")


def _repository() -> str:
    return os.path.realpath(f"{os.path.dirname(__file__)}/../..")


def _beneath(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _die_with(parent: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the prctl
        os._exit(1)


def _child(body: Callable[[], int]) -> None:
    """Run `body` and never come back."""
    code = ARRANGING_FAILED
    try:
        code = body()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
