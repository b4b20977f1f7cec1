"""The stage of the bench: one root file system, the same container for each runtime, and processes to time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = "/usr/bin/python3"
BUSYBOX = ("/bin/busybox", "/usr/bin/busybox")
CONFIG = """\
lxc.uts.name = bench
lxc.rootfs.path = dir:{root}
lxc.net.0.type = empty
lxc.net.0.flags = up
lxc.mount.auto = proc:mixed sys:ro
lxc.pty.max = 64
"""
CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
SILENT = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]


def spawn(argv: list[str]) -> float:
    """Seconds that a program takes, from its start to its end. Raises when it fails."""
    path = shutil.which(argv[0]) or argv[0]
    began = time.perf_counter()
    pid = os.posix_spawn(path, argv, CLEAN, file_actions=SILENT)
    status = os.waitpid(pid, 0)[1]
    seconds = time.perf_counter() - began
    if status:
        raise RuntimeError(f"{' '.join(argv)}: status {os.waitstatus_to_exitcode(status)}")
    return seconds


class Warm:
    """warm.py, asked by words."""

    def __init__(self, *arguments: str) -> None:
        here = os.path.dirname(os.path.abspath(__file__))
        self.process = subprocess.Popen(
            [PYTHON, "-IS", f"{here}/warm.py", f"{REPOSITORY}/src", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=CLEAN, text=True,
        )  # fmt: skip

    def ask(self, word: str) -> float:
        """Seconds that it says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the warm process ended at {word}: its message stands above")
        return float(answer)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Stage:
    """Directories, configurations and processes of one bench; close() takes all of it away."""

    def __init__(self, atoll: str) -> None:
        self.atoll = atoll
        self.top = tempfile.mkdtemp(prefix="bench.", dir="/run")
        os.chmod(self.top, 0o755)
        self.root = f"{self.top}/root"
        self.lxcpath = f"{self.top}/lxc"
        self.config = f"{self.top}/config"
        self._warm: Warm | None = None
        _make_root(self.root)
        _write(self.config, CONFIG.format(root=self.root))
        _write(f"{self.top}/long", long_config(self.root))
        sleeper = "lxc.init.cmd = /bin/sleep 100000\n"
        for name in ("up", "down", "turn", "idle"):
            os.makedirs(f"{self.lxcpath}/{name}")
            text = CONFIG.format(root=self.root).replace("= bench", f"= {name}") + sleeper
            _write(f"{self.lxcpath}/{name}/config", text)

    def warm(self) -> Warm:
        """The warm process, started once."""
        if self._warm is None:
            self._warm = Warm(self.config, f"{self.top}/long")
        return self._warm

    def close(self) -> None:
        """End and remove everything."""
        if self._warm is not None:
            self._warm.close()
        shutil.rmtree(self.top, ignore_errors=True)

    def start(self, name: str, tool: list[str] | None = None) -> int:
        """Start a container in the background; its monitor's pid."""
        pidfile = f"{self.top}/{name}.pid"
        spawn([*(tool or [self.atoll, "lxc-start"]), "-n", name, "-P", self.lxcpath, "-p", pidfile])
        with open(pidfile, encoding="ascii") as file:
            return int(file.read())

    def stop(self, name: str) -> None:
        """Kill it."""
        spawn([self.atoll, "lxc-stop", "-n", name, "-P", self.lxcpath, "-k"])

    def life_of_peers(self) -> dict[str, list[str]]:
        """The same life by what else is installed."""
        found: dict[str, list[str]] = {}
        if shutil.which("lxc-execute"):
            found["lxc-execute"] = [
                "lxc-execute",
                "-n",
                "peer",
                "-f",
                self.config,
                "--",
                "/bin/true",
            ]
        if shutil.which("bwrap"):
            found["bwrap (no cgroups, no /sys)"] = [
                "bwrap", "--unshare-all", "--bind", self.root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true",
            ]  # fmt: skip
        if shutil.which("runc"):
            self._make_bundle()
            found["runc"] = ["runc", "run", "--bundle", f"{self.top}/bundle", "bench"]
        return found

    def _make_bundle(self) -> None:
        bundle = f"{self.top}/bundle"
        os.mkdir(bundle)
        subprocess.run(["runc", "spec"], cwd=bundle, check=True)
        with open(f"{bundle}/config.json", encoding="utf-8") as file:
            spec = json.load(file)
        spec["process"] |= {"terminal": False, "args": ["/bin/true"]}
        spec["root"] |= {"path": self.root}
        _write(f"{bundle}/config.json", json.dumps(spec))


def _make_root(root: str) -> None:
    """A root file system of one static program."""
    for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"):
        os.makedirs(f"{root}/{name}")
    busybox = next(path for path in BUSYBOX if os.path.exists(path))
    shutil.copy(busybox, f"{root}/bin/busybox")
    for name in ("sh", "sleep", "true"):
        os.symlink("busybox", f"{root}/bin/{name}")


def long_config(root: str) -> str:
    """A configuration of 300 lines, of the keys that long ones have."""
    lines = CONFIG.format(root=root).splitlines()
    lines += [f"lxc.mount.entry = /srv/{n} srv/{n} none bind,create=dir 0 0" for n in range(90)]
    lines += [f"lxc.environment = VARIABLE_{n}=value number {n}" for n in range(80)]
    lines += [f"lxc.cgroup2.devices.allow = c {n}:* rwm" for n in range(60)]
    lines += [f"lxc.sysctl.net.ipv4.conf.eth{n}.forwarding = 1" for n in range(40)]
    lines += ["# a comment"] * (300 - len(lines))
    return "\n".join([*lines, ""])


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
