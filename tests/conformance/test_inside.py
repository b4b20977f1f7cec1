"""The same configuration started by Debian's LXC and by ours: what init and the processes beside it see must be the same.

One key or group of keys at a time; both are looked at with the same eyes (a script attached by Debian's lxc-attach, and /proc
of the host). What differs on purpose is masked by a rule with its name in docs/differences.md.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from abilities import needs
from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs("lxc")

LOOK = r"""#!/bin/sh
export PATH=/bin
section() { echo "== $1"; }
section mounts; sed -E 's/^[0-9]+ [0-9]+ [0-9]+:[0-9]+ //; s/(shared|master):[0-9]+/\1/g' /proc/1/mountinfo | sort
section dev; cd /dev; for f in . * pts/* shm mqueue .lxc* lxc/*; do
  [ -e "$f" -o -L "$f" ] && echo "$f $(stat -c '%A %u:%g %t:%T %h' "$f") $(readlink "$f")"
done
section top; cd /; for f in * mnt/* mnt/*/*; do [ -e "$f" ] && echo "$f $(stat -c '%F %a %u:%g' "$f")"; done
section status; grep -E '^(Name|Umask|Uid|Gid|Groups|Sig...:|Shd|Cap|NoNew|Seccomp|NSpid|Cpus_allowed_list|Mems_allowed_list)' /proc/1/status
section cgroup; cat /proc/1/cgroup
section environ; tr '\0' '\n' </proc/1/environ | sort
section limits; cat /proc/1/limits
section names; hostname; cat /proc/sys/kernel/hostname; uname -m
section descriptors; cd /proc/1/fd; for f in *; do echo "$f $(readlink $f)"; done
section place; readlink /proc/1/cwd; readlink /proc/1/root; readlink /proc/1/exe; tr '\0' ' ' </proc/1/cmdline; echo
section numbers; cut -d' ' -f5-8 /proc/1/stat; cd /proc/1; cat oom_score_adj timerslack_ns coredump_filter loginuid timens_offsets 2>/dev/null
section sysctl; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_default_ttl
section maps; cat /proc/1/uid_map /proc/1/gid_map /proc/1/setgroups
section links; ip -o link | sed -E 's/@if[0-9]+//; s/^[0-9]+: //; s/qlen [0-9]+//'
section addresses; ip -o address | sed -E 's/^[0-9]+: //; s/valid_lft.*//'
section routes; ip route; ip -6 route 2>/dev/null | grep -v '^\(ff\|fe80\)'
section processes; ps -o tty,args | grep -v -e look -e ps$ -e '\[exe\]$'
section files; ls -l /proc/kcore /proc/sysrq-trigger /sys/kernel 2>&1 | wc -l; wc -c </proc/sys/kernel/random/boot_id
"""


class Case(NamedTuple):
    """Lines of configuration, the template they are added to, and names of the rules that mask deliberate differences."""

    name: str
    lines: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    base: str = tools.CONFIG
    needs: tuple[str, ...] = ()


PLAIN = "lxc.uts.name = {name}\nlxc.rootfs.path = dir:{rootfs}\nlxc.init.cmd = /bin/quick\n"
EMPTY = PLAIN + "lxc.net.0.type = empty\n"
MOUNTED = EMPTY + "lxc.mount.auto = proc:mixed\n"


def auto(value: str, *lines: str, needs: tuple[str, ...] = ()) -> Case:
    """A form of lxc.mount.auto; the look needs a /proc."""
    proc = "" if "proc" in value else " proc:rw"
    name = " ".join((value, *lines)).replace("lxc.", "")
    return Case(
        f"auto {name}", (f"lxc.mount.auto = {value}{proc}", *lines), base=EMPTY, needs=needs
    )


def entry(text: str, name: str = "") -> Case:
    """One lxc.mount.entry."""
    return Case(f"entry {name or text}", (f"lxc.mount.entry = {text}",), base=MOUNTED)


def net(*lines: str, name: str, rules: tuple[str, ...] = ()) -> Case:
    """Links in place of the empty one."""
    return Case(f"net {name}", ("lxc.mount.auto = proc:rw", *lines), rules, base=PLAIN)


BROADCAST = ("broadcast addresses",)


VETH = (
    "lxc.net.0.type = veth",
    "lxc.net.0.link = lxcbr0",
    "lxc.net.0.hwaddr = 00:16:3e:11:22:33",
    "lxc.net.0.flags = up",
)
CASES = (
    Case("usual"),
    Case("nothing but a root", base=MOUNTED),
    Case("environment", ("lxc.environment = A=b c", "lxc.environment = EMPTY=", "lxc.environment = A=last")),
    Case("init ids", ("lxc.init.uid = 5", "lxc.init.gid = 6")),
    Case("init groups", ("lxc.init.groups = 7,8",)),
    Case("init ids and groups", ("lxc.init.uid = 5", "lxc.init.gid = 6", "lxc.init.groups = 7,8")),
    Case("init directory", ("lxc.init.cwd = /tmp",)),
    Case("init command", ("lxc.init.cmd = /bin/sh /bin/quick with  two",)),
    Case("drop", ("lxc.cap.drop = mknod sys_time", "lxc.cap.drop = 12")),
    Case("keep", ("lxc.cap.keep = kill chown sys_admin setgid setuid",)),
    Case("keep none", ("lxc.cap.keep = none",)),
    Case("no new privileges", ("lxc.no_new_privs = 1",)),
    Case("limits", ("lxc.prlimit.nofile = 100:200", "lxc.prlimit.core = unlimited", "lxc.prlimit.nproc = 900")),
    Case("sysctl", ("lxc.sysctl.net.ipv4.ip_forward = 1", "lxc.sysctl.net.ipv4.ip_default_ttl = 33")),
    Case("proc", ("lxc.proc.oom_score_adj = 10", "lxc.proc.coredump_filter = 0x1")),
    Case("architecture", ("lxc.arch = i686",)),
    Case("clock", ("lxc.time.offset.boot = 100000s",), needs=("timens",)),
    Case("keep namespaces", ("lxc.namespace.keep = net user time",)),
    Case("clone namespaces", ("lxc.namespace.clone = pid mnt", "lxc.uts.name =")),
    Case("without autodev", ("lxc.autodev = 0", "lxc.tty.max = 0", "lxc.pty.max = 0", "lxc.console.path = none", "lxc.mount.entry = /dev/null dev/null none bind,create=file 0 0")),
    Case("size of dev", ("lxc.autodev.tmpfs.size = 200000",)),
    Case("no console", ("lxc.console.path = none",)),
    Case("no terminals", ("lxc.tty.max = 0", "lxc.pty.max = 0")),
    Case("one pty", ("lxc.tty.max = 3", "lxc.pty.max = 1")),
    Case("ttys in a directory", ("lxc.tty.dir = lxc", "lxc.tty.max = 2")),
    Case("read-only root", ("lxc.rootfs.options = ro",)),
    Case("shared memory", ("lxc.mount.entry = shm dev/shm tmpfs defaults,create=dir 0 0", "lxc.mount.entry = mqueue dev/mqueue mqueue defaults,optional,create=dir 0 0")),
    auto("proc"),
    auto("proc:mixed"),
    auto("proc:mixed", "lxc.cap.drop = net_admin"),
    auto("proc:rw"),
    auto("sys"),
    auto("sys:mixed"),
    auto("sys:ro"),
    auto("sys:rw"),
    auto("proc:mixed sys:mixed cgroup:mixed"),
    auto("cgroup"),
    auto("sys:rw cgroup:mixed:force", needs=("hybrid",)),
    auto("sys:rw cgroup:ro:force", needs=("hybrid",)),
    auto("sys:rw cgroup-full:rw:force", needs=("hybrid",)),
    auto("sys:rw cgroup2"),
    auto("sys:rw cgroup:mixed", "lxc.namespace.keep = cgroup user", needs=("hybrid",)),
    auto("sys:rw cgroup:ro", "lxc.namespace.keep = cgroup user", needs=("hybrid",)),
    auto("sys:rw cgroup:rw", "lxc.namespace.keep = cgroup user", needs=("hybrid",)),
    auto("sys:rw cgroup-full:mixed", "lxc.namespace.keep = cgroup user", needs=("hybrid",)),
    auto("sys:rw cgroup-full:ro", "lxc.namespace.keep = cgroup user", needs=("hybrid",)),
    auto("shmounts:{base}/shared"),
    auto("shmounts:{base}/shared:/mnt/there"),
    entry("{base}/shared mnt/a none bind,create=dir 0 0"),
    entry("{base}/file mnt/b/f none bind,create=file,ro 0 0"),
    entry("/nonexistent mnt/c none bind,optional,create=dir 0 0"),
    entry("tmpfs mnt/d tmpfs size=1m,nosuid,noexec,create=dir,mode=0700 0 0"),
    entry("tmpfs mnt/d tmpfs rw,nodev,noatime,create=dir"),
    entry("{base}/shared /mnt/e none bind,create=dir 0 0"),
    entry("{base}/shared {rootfs}/mnt/g none bind,create=dir 0 0"),
    entry("etc mnt/h none bind,create=dir,relative 0 0"),
    entry("{base}/with\\040space mnt/i none rbind,create=dir,ro,nosuid,nodev,noexec 0 0"),
    entry("{base}/shared mnt/k none bind,nosuid,create=dir 0 0"),
    entry("{base}/shared mnt/l none bind,create=dir,private 0 0"),
    entry("{base}/shared mnt/m none rbind,create=dir,rslave 0 0"),
    entry("proc mnt/p proc ro,create=dir 0 0"),
    entry("sysfs mnt/s sysfs ro,nosuid,create=dir,optional 0 0"),
    entry("devpts mnt/t devpts newinstance,ptmxmode=0666,create=dir 0 0"),
    Case("fstab", ("lxc.mount.fstab = {base}/fstab", "lxc.mount.entry = tmpfs mnt/last tmpfs create=dir 0 0"), base=MOUNTED),
    Case("nesting", ("lxc.apparmor.allow_nesting = 1", "lxc.mount.entry = tmpfs mnt tmpfs defaults 0 0"), base=MOUNTED),
    Case("common.conf", ("lxc.include = /usr/share/lxc/config/common.conf", "lxc.seccomp.profile ="), needs=("hybrid",)),
    net(name="without any"),
    net("lxc.net.0.type = empty", name="empty"),
    net("lxc.net.0.type = empty", "lxc.net.0.flags = up", name="empty up"),
    net("lxc.net.0.type = none", name="none"),
    net("lxc.net.0.type = none", "lxc.net.1.type = empty", name="none and empty"),
    net(*VETH, name="veth"),
    net(*VETH[:3], name="veth down"),
    net(*VETH, "lxc.net.0.name = wan0", "lxc.net.0.mtu = 1400", name="veth name and mtu"),
    net(*VETH, "lxc.net.0.ipv4.address = 10.77.0.5/24", "lxc.net.0.ipv4.address = 10.77.1.5/25 10.77.1.127", "lxc.net.0.ipv6.address = fd77::5/64", name="veth addresses", rules=BROADCAST),
    net(*VETH, "lxc.net.0.ipv4.address = 10.77.0.5/24", "lxc.net.0.ipv4.gateway = 10.77.0.1", "lxc.net.0.ipv6.address = fd77::5/64", "lxc.net.0.ipv6.gateway = fd77::1", name="veth gateways", rules=BROADCAST),
    net(*VETH, "lxc.net.0.ipv4.address = 10.77.0.5/24", "lxc.net.0.ipv4.gateway = 192.0.2.1", name="veth far gateway", rules=BROADCAST),
    net(*VETH, "lxc.net.0.ipv4.address = 10.77.0.5/24", "lxc.net.0.ipv4.gateway = dev", name="veth device gateway", rules=BROADCAST),
    net(*VETH, "lxc.net.7.type = veth", "lxc.net.7.flags = up", "lxc.net.7.hwaddr = 00:16:3e:11:22:44", "lxc.net.3.type = veth", "lxc.net.3.name = first", "lxc.net.3.hwaddr = 00:16:3e:11:22:55", name="three veths"),
    Case("id map", ("lxc.idmap = u 0 1000000 65536", "lxc.idmap = g 0 1000000 65536"), needs=("subids",)),
    Case("id map with init ids", ("lxc.idmap = u 0 1000000 65536", "lxc.idmap = g 0 1000000 65536", "lxc.init.uid = 5", "lxc.init.gid = 6"), needs=("subids",)),
    Case("id map and mounts", ("lxc.idmap = u 0 1000000 65536", "lxc.idmap = g 0 1000000 65536", "lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed", "lxc.mount.entry = tmpfs mnt/d tmpfs create=dir 0 0"), needs=("subids",)),
    Case("id map with a hole", ("lxc.idmap = u 0 1000000 1000", "lxc.idmap = g 0 1000000 1000", "lxc.idmap = u 2000 1002000 10", "lxc.idmap = g 2000 1002000 10"), needs=("subids",)),
    Case("overlay", ("lxc.rootfs.path = overlay:{rootfs}:{base}/upper/delta",), base=tools.CONFIG, needs=("overlay",)),
)  # fmt: skip
EVERYWHERE = (
    "signals that init ignores",
    "mode of the console",
    "mode of an empty dev/pts",
    "sources of mounts",
    "streams of a daemon",
)


def differs(name: str, look: Callable[[str], str]) -> tuple[str, Callable[[str], str]]:
    """A deliberate difference: its name in docs/differences.md, and what is done to Debian's look and ours to hide it."""
    return name, look


RULES = dict((
    differs("sources of mounts", lambda text: re.sub(r" - (overlay|cgroup2?) (overlay|/\S+|cgroup2?|none) ", r" - \1 … ", text)),
    differs("broadcast addresses", lambda text: re.sub(r" brd (0.0.0.255|10.77.0.255)", " brd …", text)),
    differs("mode of the console", lambda text: re.sub(r"(?m)^((?:lxc/)?console|(?:pts/)?\d+) crw(?:--w----|x------)", r"\1 …", text)),
    differs("mode of an empty dev/pts", lambda text: re.sub(r"(?m)^pts drw(?:xr-x|-r--)r-[x-] 0:0 0:0", r"pts …", text)),
    differs("signals that init ignores", lambda text: re.sub(r"SigIgn:\t\w+", "SigIgn: …", text)),
    differs(
        "streams of a daemon",
        lambda text: re.sub(r"(?m)^(\d+) (/dev/null|/null|/dev/pts/\d+|/dev/console|/\d+)$", r"\1 …", text),
    ),
))  # fmt: skip


@pytest.fixture(scope="module")
def places(base: str, rootfs: str) -> dict[str, str]:
    """What mount entries speak of."""
    for directory in ("shared", "with space", "upper/delta"):
        os.makedirs(f"{base}/{directory}", exist_ok=True)
    tools.write(f"{base}/file", "content\n")
    tools.write(
        f"{base}/fstab",
        f"# comment\n\n{base}/shared mnt/f1 none bind,create=dir\ntmpfs mnt/f2 tmpfs size=64k,create=dir 0 0\n",
    )
    tools.write(f"{rootfs}/bin/look", LOOK, 0o755)
    return {"base": base, "rootfs": rootfs}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("/", "|"))
def test_inside(
    request: pytest.FixtureRequest, case: Case, places: dict[str, str], lxcpath: str, bridge: str
) -> None:
    for ability in case.needs:
        skip(ability)
    mapped = "idmap" in " ".join(case.lines)
    rootfs = request.getfixturevalue("mapped_rootfs") if mapped else places["rootfs"]
    seen = {}
    for maker in tools.makers():
        by = tools.Tools(maker, lxcpath, tools.launcher())
        lines = tuple(
            line.replace("{base}", places["base"]).replace("{rootfs}", rootfs)
            for line in case.lines
        )
        tools.define(lxcpath, "c", rootfs, *lines, base=case.base)
        seen[maker] = look(by, rootfs)
        clean(rootfs)
        shutil.rmtree(f"{places['base']}/upper")
        os.makedirs(f"{places['base']}/upper/delta")
    compare(seen, case.rules)


def compare(seen: dict[str, str], rules: tuple[str, ...] = ()) -> None:
    """Fail with the differing lines, `-` Debian's and `+` ours, that no rule explains."""
    assert "== files" in seen[tools.DEBIAN], seen[tools.DEBIAN]
    for rule in (*EVERYWHERE, *rules):
        seen = {maker: RULES[rule](text) for maker, text in seen.items()}
    debian, other = seen[tools.DEBIAN].splitlines(), seen[tools.makers()[-1]].splitlines()
    differing = [
        line
        for line in difflib.unified_diff(debian, other, n=0, lineterm="")
        if not line.startswith(("@@", "---", "+++"))
    ]
    if differing:
        pytest.fail("\n".join(("Debian's and ours differ:", *differing)), pytrace=False)


def skip(ability: str) -> None:
    import abilities

    reason = abilities.skip_reason((ability,))
    if reason is not None:
        pytest.skip(reason)


def look(by: tools.Tools, rootfs: str) -> str:
    """What is seen inside and from outside, or how the start failed."""
    done = by.run("lxc-start -n c")
    try:
        if done.code:
            return f"the start failed with {done.code}: {done.err}"
        pid = by.pid("c")
        tools.await_ready(pid)
        inside = by.beside(tools.DEBIAN).run("lxc-attach -n c --clear-env -- /bin/look")
        # Without ptys of its own the console is a pty of the host, with any number.
        text = re.sub(
            r"(?m)^/\d+ (/dev/console .*ptmxmode=000)$", r"/… \1", inside.out + inside.err
        )
        return re.sub(r"(?m)^(console .* 0:0 88):\w+", r"\1:…", text) + outside(pid)
    finally:
        by.kill("c")
        os.chmod("/dev/null", 0o666)  # Debian's LXC, where init has the host's on 0 to 2


def outside(pid: int) -> str:
    """Namespaces of its own, cgroups and monitor."""
    own = [
        n
        for n in sorted(os.listdir("/proc/self/ns"))
        if os.readlink(f"/proc/{pid}/ns/{n}") != os.readlink(f"/proc/self/ns/{n}")
    ]
    monitor = re.findall(r"PPid:\t(\d+)", tools.read(f"/proc/{pid}/status"))[0]
    title = tools.read(f"/proc/{monitor}/cmdline").rstrip("\0")
    paths = tools.read(f"/proc/{pid}/cgroup"), tools.read(f"/proc/{monitor}/cgroup")
    return "\n".join(("== namespaces", *own, "== cgroups", *paths, "== monitor", title, ""))


def clean(rootfs: str) -> None:
    """Forget what a container has made in the root file system."""
    for top, names, files in os.walk(f"{rootfs}/mnt", topdown=False):
        for name in files:
            os.unlink(f"{top}/{name}")
        for name in names:
            os.rmdir(f"{top}/{name}")
    for name in os.listdir(f"{rootfs}/tmp"):
        os.unlink(f"{rootfs}/tmp/{name}")


@pytest.fixture(scope="module")
def mapped_rootfs(base: str) -> str:
    """A root file system that belongs to the root of an id map."""
    path = tools.make_rootfs(f"{base}/mapped")
    tools.write(f"{path}/bin/look", LOOK, 0o755)
    for top, names, files in os.walk(path):
        for name in (".", *names, *files):
            os.lchown(f"{top}/{name}", 1000000, 1000000)
    return path


def test_the_hosts_name_stays(places: dict[str, str], lxcpath: str) -> None:
    """A container that keeps the host's uts namespace must not rename the host. Debian's LXC does."""
    before, after = socket.gethostname(), {}
    tools.define(lxcpath, "renamer", places["rootfs"], "lxc.namespace.keep = uts user")
    for maker in tools.makers():
        by = tools.Tools(maker, lxcpath, tools.launcher())
        by.start("renamer")
        after[maker] = socket.gethostname()
        by.kill("renamer")
        socket.sethostname(before)
    name, _same = differs("name of the host", lambda text: text)
    assert after.pop(tools.DEBIAN) == "renamer", name
    assert set(after.values()) <= {before}, name
