"""Two makers of the same tools, Debian's LXC and ours, and small containers for them to work on.

Black boxes: nothing here or in the tests beside it uses Atoll's code, so `make conformance LXC=system` proves the tests on
Debian's tools alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEBIAN, ATOLL = "debian", "atoll"
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DIFFERENCES = f"{REPOSITORY}/docs/differences.md"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOTFS_DIRECTORIES = (
    "bin",
    "sbin",
    "dev",
    "proc",
    "sys",
    "etc",
    "tmp",
    "root",
    "mnt",
    "run",
    "var",
    "home",
)
# Ends at once when asked to, as no busybox init does. Ready when it has a child.
QUICK_INIT = """\
#!/bin/sh
trap 'exit 0' PWR TERM
trap 'reboot -f' INT
trap 'exit 7' USR1
while :; do sleep 100000 & wait; done
"""


SPAWNED: list[subprocess.Popen[str]] = []


def reap() -> None:
    """End what a test has spawned and not waited for."""
    while SPAWNED:
        process = SPAWNED.pop()
        if process.poll() is None:
            process.kill()
        with process:  # closes its pipes, and waits
            pass


def makers() -> tuple[str, ...]:
    """ATOLL_CONFORMANCE=system: Debian's alone; anything else: Debian's, then ours."""
    return (DEBIAN,) if os.environ.get("ATOLL_CONFORMANCE") == "system" else (DEBIAN, ATOLL)


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


class Tools:
    """The tools of one maker, for the containers in one directory."""

    def __init__(self, maker: str, lxcpath: str, command: list[str]) -> None:
        self.maker = maker
        self.lxcpath = lxcpath
        self.command = command

    def argv(self, line: str | list[str]) -> list[str]:
        """The words of a command line that names lxc-TOOL, with this maker's program and the lxcpath."""
        words = shlex.split(line) if isinstance(line, str) else list(line)
        tool, rest = words[0], words[1:]
        head = [tool] if self.maker == DEBIAN else [*self.command, tool]
        return [*head, "-P", self.lxcpath, *rest]

    def run(
        self,
        line: str | list[str],
        *,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        environ: Mapping[str, str] | None = None,
        fds: tuple[int, ...] = (),
        cwd: str = "/",
        timeout: float = 30,
    ) -> Done:
        """Run to its end."""
        done = subprocess.run(
            self.argv(line), stdin=stdin, capture_output=True, text=True, errors="surrogateescape",
            check=False, timeout=timeout, env=environment(environ), pass_fds=fds, cwd=cwd,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def must(self, line: str | list[str], **more: object) -> str:
        """Run, insist on success, return the output."""
        done = self.run(line, **more)  # type: ignore[arg-type]  # run's own keywords
        assert done.code == 0, (self.maker, line, done)
        return done.out

    def spawn(self, line: str | list[str], **more: object) -> subprocess.Popen[str]:
        """Start and return; 0 is /dev/null, 1 and 2 are pipes unless told otherwise. Ended with the test, at the latest."""
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        options = {"text": True, "env": environment(), "cwd": "/", **streams, **more}
        process = subprocess.Popen(self.argv(line), **options)  # type: ignore[call-overload]  # Popen's own keywords
        SPAWNED.append(process)
        return process  # type: ignore[no-any-return]  # text=True

    def start(self, name: str, *words: str) -> None:
        """lxc-start, insisting on success."""
        self.must(["lxc-start", "-n", name, *words])

    def kill(self, name: str) -> None:
        """lxc-stop -k."""
        self.run(["lxc-stop", "-k", "-n", name])

    def inside(self, name: str, *argv: str) -> str:
        """The output of a command attached to a container; failure is an error."""
        return self.must(["lxc-attach", "--clear-env", "-n", name, "--", *argv])

    def state(self, name: str) -> str:
        """lxc-info -sH."""
        return self.must(["lxc-info", "-sH", "-n", name]).strip()

    def pid(self, name: str) -> int:
        """lxc-info -pH."""
        return int(self.must(["lxc-info", "-pH", "-n", name]))

    def beside(self, maker: str) -> Tools:
        """Another maker's tools for the same containers."""
        return Tools(maker, self.lxcpath, self.command)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A small environment, the same for everything that is run."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
    return {"PATH": PATH, "HOME": "/root", "LANG": "C", **kept, **(more or {})}


def make_rootfs(path: str) -> str:
    """A root file system of one static program; 0755 all the way, for containers whose root is another user."""
    for directory in ROOTFS_DIRECTORIES:
        os.makedirs(f"{path}/{directory}", mode=0o755)
    with open("/bin/busybox", "rb") as source, open(f"{path}/bin/busybox", "wb") as target:
        target.write(source.read())
    os.chmod(f"{path}/bin/busybox", 0o755)
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            os.symlink("busybox", f"{path}/bin/{applet}")
    os.symlink("../bin/busybox", f"{path}/sbin/init")
    os.chmod(f"{path}/tmp", 0o1777)
    write(f"{path}/bin/quick", QUICK_INIT, 0o755)
    write(f"{path}/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/ash\n")
    write(f"{path}/etc/group", "root:x:0:root\ntty:x:5:\nuser:x:1000:\n")
    return path


def write(path: str, text: str, mode: int = 0o644) -> str:
    """Make or replace a file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def read(path: str) -> str:
    """A whole file."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


CONFIG = """\
lxc.uts.name = {name}
lxc.rootfs.path = dir:{rootfs}
lxc.net.0.type = empty
lxc.mount.auto = proc:mixed sys:ro
lxc.init.cmd = /bin/quick
lxc.tty.max = 2
lxc.pty.max = 16
"""


def define(lxcpath: str, name: str, rootfs: str, *lines: str, base: str = CONFIG) -> str:
    """Define a container of the small root file system; more lines come after the base. Returns its directory."""
    directory = f"{lxcpath}/{name}"
    os.makedirs(directory, mode=0o755, exist_ok=True)
    text = base.format(name=name, rootfs=rootfs) + "".join(f"{line}\n" for line in lines)
    write(f"{directory}/config", text, 0o640)
    return directory


def hierarchies() -> list[str]:
    """The directories of the cgroup hierarchies that are mounted here."""
    top = "/sys/fs/cgroup"
    if os.path.exists(f"{top}/cgroup.procs"):
        return [top]
    return [path for name in sorted(os.listdir(top)) if not os.path.islink(path := f"{top}/{name}")]


def leftovers() -> set[str]:
    """Lock files, and cgroups of monitors."""
    found = {
        f"{top}/{name}"
        for top in hierarchies()
        for name in os.listdir(top)
        if name.startswith("lxc.monitor.")
    }
    for directory, names, files in os.walk("/run/lxc"):
        found |= {directory, *(f"{directory}/{name}" for name in (*names, *files))}
    return found


def remove_leftovers(before: set[str]) -> None:
    """Remove those that were not there before; a cgroup with a process in it stays, and is found to be left."""
    for path in sorted(leftovers() - before, reverse=True):
        with contextlib.suppress(OSError):
            os.unlink(path) if os.path.isfile(path) else os.rmdir(path)


def until(fact: Callable[[], object], what: str, patience: float = 10.0) -> None:
    """Wait for something that comes to pass by itself; an assertion with `what` when it does not."""
    deadline = time.monotonic() + patience
    pause = 0.002
    while not fact():
        assert time.monotonic() < deadline, f"waited {patience} s in vain: {what}"
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def await_ready(pid: int) -> None:
    """Wait until a QUICK_INIT has set its traps."""
    until(lambda: read(f"/proc/{pid}/task/{pid}/children"), "the init is ready")


def launcher() -> list[str]:
    """The words that start our tool."""
    path = f"{REPOSITORY}/.venv/bin/atoll"
    if "COVERAGE_PROCESS_CONFIG" in os.environ or not os.access(path, os.X_OK):
        return [sys.executable, "-m", "atoll"]
    return [path]
