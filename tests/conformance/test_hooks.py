"""The same hook scripts under Debian's LXC and under ours: order, arguments, environment, namespaces."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING

import pytest

from abilities import needs
from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = needs("lxc")

SCRIPT = r"""#!/bin/busybox sh
{
  echo "=== $1"
  shift
  for word in "$@"; do echo "argument $word"; done
  env | grep -vE '^(PWD|OLDPWD|SHLVL|_|COVERAGE.*)=' | sort
  echo "directory $(pwd)"
  echo "umask $(umask)"
  echo "ids $(id -u) $(id -g) $(id -G)"
  echo "descriptors" $(cd /proc/$$/fd 2>/dev/null && for f in *; do t=$(readlink $f | tr -d 0-9); case $f:$t in 1:*|[3-9]:) ;; *) echo "$f:$t";; esac; done)
  echo "root $(ls -d /bin/quick 2>/dev/null)"
  for n in mnt uts ipc net pid cgroup; do echo "namespace $n $(readlink /proc/$$/ns/$n)"; done
  echo "hostname $(hostname)"
} >>LOG 2>&1
exit STATUS
"""
OUTSIDE = ("pre-start", "pre-mount", "mount", "autodev", "start-host", "stop", "post-stop")


class Life:
    """A container with every hook."""

    def __init__(self, lxcpath: str, rootfs: str) -> None:
        self.lxcpath = lxcpath
        self.rootfs = rootfs
        self.log = f"{lxcpath}/log"

    def define(
        self, *lines: str, failing: str = "", version: int = 0, base: str = tools.CONFIG
    ) -> None:
        for point in OUTSIDE:
            text = SCRIPT.replace("LOG", self.log).replace(
                "STATUS", "3" if point == failing else "0"
            )
            tools.write(f"{self.lxcpath}/{point}", text, 0o755)
        status = "3" if failing == "start" else "0"
        tools.write(
            f"{self.rootfs}/bin/start-hook",
            SCRIPT.replace("LOG", "/tmp/log").replace("STATUS", status).replace("shift", ""),
            0o755,
        )
        hooks = [
            f"lxc.hook.{point} = {self.lxcpath}/{point} {point} 'an  argument'" for point in OUTSIDE
        ]
        tools.define(
            self.lxcpath, "c", self.rootfs, "lxc.hook.start = /bin/start-hook", f"lxc.hook.version = {version}", *hooks,
            "lxc.environment = FROM=configuration", *lines, base=base,
        )  # fmt: skip

    def seen(self, own: dict[str, str]) -> str:
        """What the hooks wrote, without numbers that are other ones each time; namespaces as `host` or `own`."""
        texts = [
            tools.read(path)
            for path in (self.log, f"{self.rootfs}/tmp/log")
            if os.path.exists(path)
        ]
        for path in (self.log, f"{self.rootfs}/tmp/log"):
            if os.path.exists(path):
                os.unlink(path)
        text = "".join(texts)
        text = re.sub(r"/proc/\d+/fd/\d+", "/proc/…/fd/…", text)
        text = re.sub(r"(?m)^LXC_PID=\d+$", "LXC_PID=…", text)
        text = re.sub(r"\bveth\w+", "veth…", text)
        for name, link in own.items():
            text = text.replace(f"namespace {name} {link}", f"namespace {name} host")
        return re.sub(r"(namespace \w+) \w+:\[\d+\]", r"\1 own", text)


@pytest.fixture(scope="module")
def life(lxcpath: str, rootfs: str, bridge: str) -> Generator[Life, None, None]:
    yield Life(lxcpath, rootfs)
    os.unlink(f"{rootfs}/bin/start-hook")


def run(life: Life, how: str) -> dict[str, str]:
    """A life of the container under each maker, and what its hooks saw."""
    host = {
        name: os.readlink(f"/proc/self/ns/{name}")
        for name in ("mnt", "uts", "ipc", "net", "pid", "cgroup")
    }
    seen = {}
    for maker in tools.makers():
        by = tools.Tools(maker, life.lxcpath, tools.launcher())
        done = by.run(how, environ={"CALLER": "has this"}, cwd="/usr")
        text = f"exit status {done.code}\n"
        if by.state("c") != "STOPPED":
            pid = by.pid("c")
            tools.await_ready(pid)
            if "reboot" in life.lxcpath or "-- /bin/rebooting" in how:
                by.must("lxc-stop -n c -r -t 10")
                tools.await_ready(by.pid("c"))
            by.must("lxc-stop -n c -t 10")
        by.must("lxc-wait -n c -s STOPPED -t 10")
        tools.until(lambda: "=== post-stop" in tools.read(life.log), "the last hook has run")
        tools.until(lambda: not monitors(life.lxcpath), "the monitor has ended")
        seen[maker] = text + life.seen(host)
    return seen


def monitors(lxcpath: str) -> list[str]:
    """Monitors of containers there."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            title = tools.read(f"/proc/{pid}/cmdline")
        except OSError:
            continue
        if title.startswith(f"[lxc monitor] {lxcpath} "):
            found.append(title)
    return found


def differs(name: str, pattern: str, instead: str = "") -> tuple[str, re.Pattern[str], str]:
    """A deliberate difference: its name in docs/differences.md, and the pattern that hides it."""
    return name, re.compile(pattern, re.MULTILINE), instead


MASKS = (
    differs("namespaces in the environment of hooks", r"^LXC_(MNT|PID|UTS|IPC|NET|CGROUP|USER|TIME)_NS=/proc/…/fd/…\n"),
    differs("input of start hooks", r"^(descriptors 0:)(?:/dev/pts/|/dev/null)( 10:/bin/start-hook)", r"\1…\2"),
    differs("descriptors in hooks", r" \d+:socket:\[\]"),
)  # fmt: skip
AFTER_A_REBOOT = (
    differs("environment after a reboot", r"^(LXC_PID=…|LXC_TARGET=reboot|container_ttys=.*)\n"),
)


def compare(
    seen: dict[str, str], *points: str, masks: tuple[tuple[str, re.Pattern[str], str], ...] = ()
) -> None:
    """The same, and these points in this order."""
    masked = {}
    for maker, text in seen.items():
        for _name, pattern, instead in (*MASKS, *masks):
            text = pattern.sub(instead, text)
        masked[maker] = text.splitlines()
    debian, other = masked[tools.DEBIAN], masked[tools.makers()[-1]]
    differing = [
        line
        for line in difflib.unified_diff(debian, other, n=40, lineterm="")
        if not line.startswith(("@@", "---", "+++"))
    ]
    if differing:
        pytest.fail("\n".join(("Debian's and ours differ:", *differing)), pytrace=False)
    assert tuple(line[4:] for line in debian if line.startswith("=== ")) == points


LIFE = ("pre-start", "pre-mount", "mount", "autodev", "start-host", "stop", "post-stop")


@pytest.mark.parametrize("version", [0, 1])
def test_a_life(life: Life, version: int) -> None:
    life.define(version=version, failing="")
    seen = run(life, "lxc-start -n c")
    compare(seen, *LIFE, "c" if version == 0 else "")
    if version == 0:
        assert (
            "argument an  argument\nargument c\nargument lxc\nargument pre-start\n"
            in seen[tools.DEBIAN]
        )
    else:
        assert "LXC_HOOK_SECTION=lxc\nLXC_HOOK_TYPE=post-stop\n" in seen[tools.DEBIAN]


def test_a_life_in_the_foreground(life: Life) -> None:
    life.define()
    compare(run(life, "lxc-start -F -n c -- /bin/poweroff -f"), *LIFE, "c")


def test_a_reboot(life: Life) -> None:
    life.define()
    tools.write(f"{life.rootfs}/bin/rebooting", tools.QUICK_INIT, 0o755)
    compare(
        run(life, "lxc-start -n c -- /bin/rebooting"), *LIFE, *LIFE, "c", "c", masks=AFTER_A_REBOOT
    )


def test_all_values_that_hooks_are_told(life: Life) -> None:
    life.define(
        f"lxc.console.logfile = {life.lxcpath}/console.log", "lxc.console.path = none", "lxc.log.level = INFO", "lxc.hook.version = 1",
    )  # fmt: skip
    compare(run(life, "lxc-start -n c"), *LIFE, "")


@pytest.mark.parametrize(
    ("failing", "points"),
    [
        ("pre-start", ("pre-start", "stop", "post-stop")),
        ("pre-mount", ("pre-start", "pre-mount", "stop", "post-stop")),
        ("mount", ("pre-start", "pre-mount", "mount", "stop", "post-stop")),
        ("autodev", ("pre-start", "pre-mount", "mount", "autodev", "stop", "post-stop")),
        ("start", ("pre-start", "pre-mount", "mount", "autodev", "stop", "post-stop", "c")),
        (
            "start-host",
            ("pre-start", "pre-mount", "mount", "autodev", "start-host", "stop", "post-stop", "c"),
        ),
        ("stop", (*LIFE, "c")),
        ("post-stop", (*LIFE, "c")),
    ],
)
def test_a_hook_that_fails(life: Life, failing: str, points: tuple[str, ...]) -> None:
    life.define(failing=failing)
    compare(run(life, "lxc-start -n c"), *points)


@pytest.mark.parametrize("version", [0, 1])
def test_network_scripts(life: Life, version: int) -> None:
    for name in ("up", "down"):
        tools.write(
            f"{life.lxcpath}/{name}", SCRIPT.replace("LOG", life.log).replace("STATUS", "0"), 0o755
        )
    life.define(
        "lxc.net.0.type = veth", "lxc.net.0.link = lxcbr0", "lxc.net.0.flags = up", "lxc.net.0.hwaddr = 00:16:3e:11:22:33",
        f"lxc.net.0.script.up = {life.lxcpath}/up up", f"lxc.net.0.script.down = {life.lxcpath}/down down",
        "lxc.net.1.type = empty", f"lxc.net.1.script.up = {life.lxcpath}/up up-empty",
        base=tools.CONFIG.replace("lxc.net.0.type = empty\n", ""), version=version,
    )  # fmt: skip
    seen = run(life, "lxc-start -n c")
    lives = {maker: sections(text) for maker, text in seen.items()}
    expected = [
        *LIFE[:1],
        "up",
        "up-empty",
        *LIFE[1:5],
        "down",
        "stop",
        "post-stop",
        "c" if version == 0 else "",
    ]
    assert list(lives[tools.DEBIAN]) == expected
    _name, _pattern, _instead = differs("stop hooks before down scripts", "")
    assert sorted(lives[tools.makers()[-1]]) == sorted(expected)
    for point in expected:
        debian, other = (
            network_mask(point, lives[maker][point]) for maker in (tools.DEBIAN, tools.makers()[-1])
        )
        assert other == debian, point
    down = lives[tools.DEBIAN]["down"]
    if version == 0:
        assert (
            "argument c\nargument net\nargument down\nargument veth\nargument lxcbr0\nargument veth…\n"
            in down
        )
    else:
        assert "argument veth\nargument lxcbr0\nargument veth…\n" in down
        for line in (
            "LXC_NET_TYPE=veth",
            "LXC_NET_PARENT=lxcbr0",
            "LXC_NET_PEER=veth…",
            "LXC_HOOK_TYPE=down",
            "LXC_HOOK_SECTION=net",
        ):
            assert f"{line}\n" in down


def sections(text: str) -> dict[str, str]:
    """What each hook and script wrote, by its name."""
    return {
        name: rest
        for name, _newline, rest in (part.partition("\n") for part in text.split("=== ")[1:])
    }


def network_mask(point: str, text: str) -> str:
    """Without what Debian's LXC leaves in its environment for whoever comes next."""
    for _name, pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    _name, leak, _instead = differs("environment after a network script", r"^LXC_NET_\w+=.*\n")
    _name, target, _instead = differs("target of down scripts", r"^LXC_TARGET=stop\n")
    if point == "up-empty":
        return re.sub(r"(?m)^LXC_NET_P\w+=.*\n", "", text)
    return (
        target.sub("", text) if point == "down" else leak.sub("", text) if point != "up" else text
    )
