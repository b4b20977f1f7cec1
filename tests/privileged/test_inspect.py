"""lxc-info, lxc-ls and lxc-wait on containers that Debian's LXC started: the same output as its own tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from abilities import needs
from isolation import kernel

pytestmark = [needs("root", "lxc", "busybox", "pidns"), pytest.mark.isolated(cgroup=True)]

LXCPATH = "/mnt/lxc"
SOURCE = os.path.join(os.path.dirname(__file__), "..", "..", "src")


def ours(*words):
    return subprocess.run(
        [sys.executable, "-m", "atoll", *words], capture_output=True, text=True, check=False, timeout=30,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )  # fmt: skip


def theirs(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)


def same(tool, *arguments):
    """Run both; equal status and output, which comes back."""
    words = (tool, "-P", LXCPATH, *arguments)
    expected, got = theirs(*words), ours(*words)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout), got.stderr
    return got


@pytest.fixture
def containers():
    """Functions for the test's own namespaces: the fixture itself runs outside of them."""

    def make(name, extra=""):
        rootfs = f"{LXCPATH}/{name}/rootfs"
        for directory in ("bin", "dev", "proc", "sys", "etc", "tmp"):
            os.makedirs(f"{rootfs}/{directory}")
        shutil.copy("/bin/busybox", f"{rootfs}/bin/busybox")
        with open(f"{LXCPATH}/{name}/config", "w") as file:
            file.write(
                f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:{rootfs}\n"
                f"lxc.init.cmd = /bin/busybox sleep 600\nlxc.mount.auto = proc:mixed sys:ro\n{extra}"
            )

    return make


NETWORK = "lxc.net.0.type = veth\nlxc.net.0.flags = up\nlxc.net.0.ipv4.address = 10.9.8.7/24\n"


def mount():
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    kernel.mount("tmpfs", "/run", "tmpfs")
    os.mkdir(LXCPATH)


def start(name):
    done = theirs("lxc-start", "-P", LXCPATH, "-n", name)
    assert done.returncode == 0, done.stderr


def test_a_running_container_of_debians(containers):
    mount()
    containers("d1", NETWORK + "lxc.group = web\n")
    containers("longer", "lxc.group = web\nlxc.group = db\nlxc.start.auto = 1\n")
    start("d1")
    for item in ("-s", "-p", "-i", "-sp", "-pH", "-iH"):
        same("lxc-info", "-n", "d1", item)
    assert same("lxc-info", "-i", "d1").stdout == "IP:             10.9.8.7\n"
    assert same("lxc-info", "longer").stdout.splitlines() == [
        "Name:           longer",
        "State:          STOPPED",
    ]
    assert same("lxc-info", "none").returncode == 1
    assert same("lxc-info", "-n", "d1", "-c", "lxc.uts.name", "-c", "lxc.nope").stderr.endswith(
        "lxc.nope invalid\n"
    )

    labels = r"Name: +d1\nState: +RUNNING\nPID: +\d+\nIP: +10.9.8.7\n(CPU use: +0.\d\d seconds\n)?"
    labels += r"(BlkIO use: +\d.*\n)?(Memory use: +[\d.]+ KiB\n)?(KMem use: +[\d.]+ KiB\n)?Link: +veth\w+\n TX bytes: +\d.*\n RX bytes: +\d.*\n Total bytes: +\d.*\n"
    for got in (ours("lxc-info", "-P", LXCPATH, "d1"), theirs("lxc-info", "-P", LXCPATH, "d1")):
        assert re.fullmatch(labels, got.stdout), got
    raw = json.loads(ours("lxc-info", "-P", LXCPATH, "d1", "--json").stdout)
    assert raw["ips"] == ["10.9.8.7"]
    assert raw["usage"]["cpu"] > 0

    for arguments in (
        (), ("-1",), ("-f",), ("--running",), ("--stopped", "-f"), ("--active",), ("--frozen",), ("--defined",),
        ("-g", "web"), ("-g", "web,db"), ("-g", "db,nope"), ("^d",), ("--filter", "[[:digit:]]$"), ("-f", "none"),
        ("-f", "-F", "STATE,NAME,PID,INTERFACE,IPV4"), ("-F", "foo"), ("-f", "-F", "foo"),
    ):  # fmt: skip
        same("lxc-ls", *arguments)
    listed = json.loads(ours("lxc-ls", "-P", LXCPATH, "--json").stdout)
    assert [(row["name"], row["state"]) for row in listed] == [
        ("d1", "RUNNING"),
        ("longer", "STOPPED"),
    ]

    same("lxc-wait", "-n", "d1", "-s", "RUNNING|FROZEN")
    same("lxc-wait", "-n", "d1", "-s", "STOPPED", "-t", "1")
    same("lxc-wait", "-n", "none", "-s", "STOPPED")
    same("lxc-wait", "-n", "none", "-s", "RUNNING", "-t", "1")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "atoll", "lxc-wait", "-P", LXCPATH, "-n", "d1", "-s", "STOPPED"],
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert theirs("lxc-stop", "-P", LXCPATH, "-n", "d1", "-k").returncode == 0
    assert waiting.wait(30) == 0


def test_a_terminal_gets_columns(containers):
    mount()
    for name in ("a", "bb", "a-name-of-some-length", "another-long-name-here", "x" * 30):
        os.makedirs(f"{LXCPATH}/{name}")
        with open(f"{LXCPATH}/{name}/config", "w"):
            pass
    shown = []
    for program in ("lxc-ls", f"{sys.executable} -m atoll lxc-ls"):
        done = subprocess.run(
            ["script", "-qec", f"stty cols 70; {program} -P {LXCPATH}", "/dev/null"],
            capture_output=True, text=True, check=False, timeout=30, env={**os.environ, "PYTHONPATH": SOURCE},
        )  # fmt: skip
        shown.append(done.stdout)
    assert shown[0] == shown[1]
    assert shown[1].count("\n") > 1
