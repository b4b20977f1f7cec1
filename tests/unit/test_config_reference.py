"""What keys answer and what they refuse, row by row of the reference of LXC, sections 2.5 and 2.6 (docs/differences.md)."""

from __future__ import annotations

import pytest

from atoll.config.text import Config
from atoll.errors import ConfigError

VETH = "lxc.net.0.type = veth"


def config(*lines: str) -> Config:
    return Config.parse("".join(f"{line}\n" for line in lines))


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("lines", "key", "answer"),
    [
        (["lxc.arch = i386"], "lxc.arch", "i686"),
        (["lxc.arch = arm64"], "lxc.arch", "x86_64"),
        ([], "lxc.arch", ""),
        (["lxc.cap.drop = sys_boot  mknod", "lxc.cap.drop = 12"], "lxc.cap.drop", "sys_boot\nmknod\n12\n"),
        (["lxc.cap.drop = sys_boot"], "lxc.cap.keep", ""),
        (["lxc.cap.keep = kill none chown"], "lxc.cap.keep", "chown\n"),
        (["lxc.cgroup.devices.allow = c 1:3 rwm", "lxc.cgroup.devices.allow = c 1:5 rwm"], "lxc.cgroup.devices.allow", "c 1:3 rwm\nc 1:5 rwm\n"),
        (["lxc.cgroup2.memory.max = 1G"], "lxc.cgroup2", "lxc.cgroup2.memory.max = 1G\n"),
        ([], "lxc.cgroup.dir", ""),
        (["lxc.cgroup.relative = 1"], "lxc.cgroup.relative", "1"),
        ([], "lxc.keyring.session", "0"),
        (["lxc.console.buffer.size = 5000"], "lxc.console.buffer.size", "8192"),
        (["lxc.console.buffer.size = auto"], "lxc.console.buffer.size", "131072"),
        (["lxc.console.size = 1MB"], "lxc.console.size", "1048576"),
        (["lxc.console.logfile = /srv//x/./log/"], "lxc.console.logfile", "/srv/x/log"),
        (["lxc.mount.fstab = /a//b/"], "lxc.mount.fstab", "/a/b"),
        (["lxc.init.cwd = /a/./b"], "lxc.init.cwd", "/a/b"),
        (["lxc.environment = A=1", "lxc.environment = HOME"], "lxc.environment", "A=1\nHOME=/root\n"),
        (['lxc.execute.cmd = "/bin/echo hi"'], "lxc.execute.cmd", "/bin/echo hi"),
        (["lxc.group = a b", "lxc.group = c"], "lxc.group", "a\nb\nc\n"),
        (["lxc.hook.start = /a", "lxc.hook.start = /b c"], "lxc.hook.start", "/a\n/b c\n"),
        (["lxc.idmap = u 0 100000 65536", "lxc.idmap = g 0 100000 65536"], "lxc.idmap", "u 0 100000 65536\ng 0 100000 65536"),
        (["lxc.init.uid = 010"], "lxc.init.uid", "8"),
        (["lxc.init.gid = 0x10"], "lxc.init.gid", "16"),
        (["lxc.init.groups = 5,6", "lxc.init.groups = 7"], "lxc.init.groups", "5,6,7"),
        (["lxc.log.level = debug"], "lxc.log.level", "DEBUG"),
        ([], "lxc.log.level", "NOTSET"),
        (["lxc.log.syslog = local3"], "lxc.log.syslog", "local3"),
        (["lxc.monitor.signal.pdeath = SIGTERM"], "lxc.monitor.signal.pdeath", "15"),
        ([], "lxc.monitor.signal.pdeath", "9"),
        (["lxc.signal.halt = SIGRTMIN+3"], "lxc.signal.halt", "37"),
        (["lxc.signal.reboot = SIGTERM"], "lxc.signal.reboot", "15"),
        ([], "lxc.signal.stop", "0"),
        (["lxc.mount.auto = proc sys:ro cgroup:rw:force"], "lxc.mount.auto", "proc:mixed sys:ro"),
        (["lxc.mount.auto = cgroup:rw shmounts:/a"], "lxc.mount.auto", "cgroup:rw"),
        (["lxc.mount.entry = a b", "lxc.mount.entry = c d"], "lxc.mount.entry", "a b\nc d\n"),
        (["lxc.namespace.keep = net IPC"], "lxc.namespace.keep", "ipc\nnet\n"),
        ([], "lxc.namespace.share.net", ""),
        ([VETH, "lxc.net.1.type = empty"], "lxc.net", "veth\nempty\n"),
        ([VETH, "lxc.net.0.flags = whatever"], "lxc.net.0.flags", "up"),
        ([VETH, "lxc.net.0.ipv4.address = 10.0.0.5", "lxc.net.0.ipv4.address = 10.1.0.5/24 10.1.0.255"], "lxc.net.0.ipv4.address", "10.0.0.5/8\n10.1.0.5/24"),
        ([VETH, "lxc.net.0.ipv4.gateway = auto"], "lxc.net.0.ipv4.gateway", "auto"),
        ([VETH, "lxc.net.0.ipv6.gateway = dev"], "lxc.net.0.ipv6.gateway", "dev"),
        ([VETH, "lxc.net.0.ipv6.address = fe80::1"], "lxc.net.0.ipv6.address", "fe80::1/64"),
        ([VETH, "lxc.net.0.veth.ipv4.route = 10.1.0.0/16", "lxc.net.0.veth.ipv4.route = 10.2.0.0/16"], "lxc.net.0.veth.ipv4.route", "10.1.0.0/16\n10.2.0.0/16"),
        ([VETH, "lxc.net.0.veth.vlan.tagged.id = 1", "lxc.net.0.veth.vlan.tagged.id = 2"], "lxc.net.0.veth.vlan.tagged.id", "1\n2"),
        ([VETH], "lxc.net.0.veth.vlan.id", ""),
        ([VETH, "lxc.net.0.veth.vlan.id = none"], "lxc.net.0.veth.vlan.id", "-1"),
        ([VETH], "lxc.net.0.veth.pair", ""),
        (["lxc.net.0.type = vlan", "lxc.net.0.vlan.id = 0x20"], "lxc.net.0.vlan.id", "32"),
        (["lxc.net.0.type = empty"], "lxc.net.0.type", "empty"),
        (["lxc.prlimit.nofile = 1024"], "lxc.prlimit.nofile", "1024"),
        (["lxc.prlimit.core = 0:unlimited"], "lxc.prlimit.core", "0:unlimited"),
        (["lxc.prlimit.core = 1", "lxc.prlimit.nofile = 2"], "lxc.prlimit", "lxc.prlimit.core = 1\nlxc.prlimit.nofile = 2\n"),
        (["lxc.sysctl.a.b = 1"], "lxc.sysctl", "lxc.sysctl.a.b = 1\n"),
        (["lxc.proc.oom_score_adj = 1"], "lxc.proc.oom_score_adj", "1"),
        (["lxc.rootfs.path = dir:/p"], "lxc.rootfs.path", "/p"),
        (["lxc.seccomp.notify.proxy = unix:/run/px"], "lxc.seccomp.notify.proxy", "/run/px"),
        (["lxc.autodev.tmpfs.size = abc"], "lxc.autodev.tmpfs.size", "500000"),
        ([], "lxc.autodev.tmpfs.size", "0"),
        ([], "lxc.autodev", "1"),
        (["lxc.autodev ="], "lxc.autodev", "0"),
        ([], "lxc.rootfs.managed", "1"),
        (["lxc.time.offset.boot = 1h"], "lxc.time.offset.boot", "3600 s\n"),
        (["lxc.time.offset.boot = 5us"], "lxc.time.offset.boot", "5000 ns\n"),
        (["lxc.time.offset.monotonic = 5 s"], "lxc.time.offset.monotonic", "5s\n"),
        (["lxc.tty.max = 3", "lxc.tty.max ="], "lxc.tty.max", "0"),
    ],
)  # fmt: skip
def test_get(lines: list[str], key: str, answer: str) -> None:
    assert config(*lines).get(key) == answer


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ([VETH], "lxc.net.0.macvlan.mode"),
        ([VETH], "lxc.net.0"),
        ([], "lxc.net.0.type"),
        ([], "lxc.include"),
        ([], "lxc.hook"),
        ([], "lxc.nope"),
    ],
)
def test_get_refuses(lines: list[str], key: str) -> None:
    with pytest.raises(ConfigError):
        config(*lines).get(key)


@pytest.mark.parametrize(
    "lines",
    [
        ["lxc.cap.drop = bogus"], ["lxc.cap.drop = SYS_ADMIN"], ["lxc.cap.drop = cap_kill"], ["lxc.cap.drop = 99"],
        ["lxc.cap.drop = none"], ["lxc.cap.keep = kill", "lxc.cap.drop = chown"], ["lxc.cap.drop = chown", "lxc.cap.keep = kill"],
        ["lxc.arch ="], ["lxc.arch = vax"], ["lxc.uts.name = " + "x" * 65], ["lxc.autodev = 2"], ["lxc.autodev = yes"],
        ["lxc.tty.max = -1"], ["lxc.tty.max = 1 # c"], ["lxc.start.order = 1x"], ["lxc.rootfsfoo = x"], ["lxc.hook.bogus = x"],
        ["lxc.hook = x"], ["lxc.hook.version = 2"], ["lxc.idmap = u 0 1"], ["lxc.idmap = x 0 1 2"], ["lxc.idmap = u 0 1 2 3"],
        ["lxc.net.0.bogus = 1"], ["lxc.net.0.type = bogus"], ["lxc.net.x.type = veth"], ["lxc.net.0 = v"],
        ["lxc.net.0.veth.pair = a"], [VETH, "lxc.net.0.veth.vlan.id = 4095"], [VETH, "lxc.net.0.veth.mode = x"],
        [VETH, "lxc.net.0.ipv4.address = 10.0.0.1/33"], [VETH, "lxc.net.0.ipv4.address = 10.0.0"], [VETH, "lxc.net.0.ipv4.gateway = x"],
        ["lxc.net.0.type = empty", "lxc.net.0.name = eth0"], ["lxc.prlimit.nofile = 5x"], ["lxc.prlimit.nofile = unlimitedx"],
        ["lxc.mount.auto = bogus"], ["lxc.mount.fstab ="], ["lxc.include = /no/such/file"], ["lxc.environment = UNSET"],
        ["lxc.signal.halt = PWR"], ["lxc.signal.halt = SIGFOO"], ["lxc.signal.halt = SIGRTMIN"], ["lxc.log.level = bogus"],
        ["lxc.log.level = 9"], ["lxc.cgroup.dir = /a"], ["lxc.cgroup.dir = a/../b"], ["lxc.cgroup.dir.container.inner = a/b"],
        ["lxc.namespace.keep = foo"], ["lxc.namespace.keep = net", "lxc.namespace.clone = pid"], ["lxc.console.rotate = 2"],
        ["lxc.seccomp.notify.proxy = /run/px"], ["lxc.novalue"], ["lxc.init.groups = 1,x"], ["lxc.time.offset.boot = 5"],
        ["lxc.time.offset.boot = 5 ms"], ["lxc.pty.max = 4294967296"],
    ],
    ids=lambda lines: lines[-1][:40],
)  # fmt: skip
def test_refused(lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*lines)
    assert caught.value.origin is not None
    assert caught.value.origin.line == len(lines)


@pytest.mark.parametrize(
    "line",
    ["foo = bar", "# lxc.tty.max = x", "lxc.mount.entry = garbage", "lxc.prlimit.bogus = 1", "lxc.signal.halt = 999",
     "lxc.include = /no/such/directory/", "lxc.include =", "lxc.net.0.link = averyveryverylongname", "lxc.cgroup.nosuch.x = 1",
     "lxc.time.offset.boot = 5 s"],
)  # fmt: skip
def test_taken(line: str) -> None:
    config(line)
