"""How long reading a container's configuration of 300 lines takes in a process that has the modules: at most 2 ms.

For bench.py: `measure()`. By itself it prints the number. The lines are like those of a real container: Debian's device rules,
five networks, mounts, hooks, limits, an environment, comments; in one file, so that the disk has little part in it.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

from atoll.config.text import Config

LINES = 300
RUNS = 60
TARGET = 0.002
"""Seconds."""
DEVICES = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 1:8 rwm",
)


def text() -> str:
    """The configuration."""
    lines = [
        "# a container",
        "lxc.uts.name = web1",
        "lxc.rootfs.path = dir:/var/lib/lxc/web1/rootfs",
        "lxc.arch = x86_64",
        "lxc.tty.dir = lxc",
        "lxc.pty.max = 1024",
        "lxc.tty.max = 4",
        "lxc.cap.drop = mac_admin mac_override sys_time sys_module sys_rawio",
        "lxc.mount.auto = cgroup:mixed proc:mixed sys:mixed",
        "lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp",
        "lxc.apparmor.profile = generated",
        "lxc.idmap = u 0 100000 65536",
        "lxc.idmap = g 0 100000 65536",
        "lxc.start.auto = 1",
        "lxc.signal.halt = SIGRTMIN+3",
    ]
    for generation in ("lxc.cgroup", "lxc.cgroup2"):
        lines.append(f"{generation}.devices.deny = a")
        for rule in DEVICES:
            lines += [f"### {rule}", f"{generation}.devices.allow = {rule}"]
    for number in range(5):
        network = f"lxc.net.{number}"
        lines += [
            "",
            f"{network}.type = veth",
            f"{network}.link = lxcbr{number}",
            f"{network}.flags = up",
            f"{network}.name = eth{number}",
            f"{network}.hwaddr = 00:16:3e:12:34:{number:02x}",
            f"{network}.ipv4.address = 10.0.{number}.5/24",
            f"{network}.ipv6.address = fd00:{number}::5/64",
        ]
    lines += [f"lxc.environment = VARIABLE_{number}=value {number}" for number in range(40)]
    lines += [f"lxc.sysctl.net.ipv4.conf.eth{number}.forwarding = 1" for number in range(5)]
    lines += [f"lxc.prlimit.{name} = 1024:4096" for name in ("nofile", "nproc", "core")]
    lines += [f"lxc.hook.start-host = /usr/local/lib/hook{number}" for number in range(5)]
    while len(lines) < LINES:
        lines.append(
            f"lxc.mount.entry = /srv/{len(lines)} srv/{len(lines)} none bind,create=dir 0 0"
        )
    return "".join(f"{line}\n" for line in lines[:LINES])


def measure() -> float:
    """Seconds that reading takes: the median of many, after one that imports what the keys need."""
    with tempfile.NamedTemporaryFile("w", prefix="atoll-bench-", delete=False) as file:
        file.write(text())
    try:
        Config.read(file.name)
        return statistics.median(_once(file.name) for _run in range(RUNS))
    finally:
        os.unlink(file.name)


def _once(path: str) -> float:
    begin = time.perf_counter()
    Config.read(path)
    return time.perf_counter() - begin


if __name__ == "__main__":
    print(f"reading {LINES} lines: {measure() * 1000:.2f} ms (target {TARGET * 1000:.0f})")
