"""The errors that a user meets: each text whole, the same from a daemon, with the host as before and a fix that works.

In an expected text stand NUMBER for the numbers of a step, which are compared with `--explain`, ALL for the number of
changes that were taken back, and VETH for a link's generated name. The line of the system call is left out: it has
descriptor numbers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

import snapshot
from abilities import needs
from atoll import host as host_module
from atoll.resources.cgroup import V2_CONTROLLERS
from isolation import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [needs("root", "busybox", "pidns", "veth"), pytest.mark.isolated(cgroup=True)]

LXCPATH = "/mnt/lxc"
ROOTFS = f"{LXCPATH}/c1/rootfs"
CONFIG = f"{LXCPATH}/c1/config"
USER = 4711
MAPPED = "lxc.idmap = u 0 1000000 65536\nlxc.idmap = g 0 1000000 65536\n"
HEAD = f"""\
lxc.uts.name = c1
lxc.rootfs.path = dir:{ROOTFS}
lxc.net.0.type = empty
"""


class Case(NamedTuple):
    """`prepare` gives the rest of the configuration (None: it wrote the file itself), `fix` makes the start succeed."""

    text: str
    prepare: Callable[[], str | None]
    fix: Callable[[], object] | None = None
    user: int = 0
    status: int = 1


CASES: dict[str, Case] = {}


def case(
    text: str, *, user: int = 0, status: int = 1
) -> Callable[[Callable[[], str | None]], Case]:
    def add(prepare: Callable[[], str | None]) -> Case:
        found = CASES[prepare.__name__] = Case(text, prepare, user=user, status=status)
        return found

    return add


def fixed(broken: Case) -> Callable[[Callable[[], object]], None]:
    """What the message says to do, done."""
    name = next(name for name, each in CASES.items() if each is broken)

    def add(fix: Callable[[], object]) -> None:
        CASES[name] = broken._replace(fix=fix)

    return add


# ------------------------------------------------------------------------------------- the scene
def write(path: str, content: str | bytes, mode: int = 0o644) -> None:
    data = content.encode() if isinstance(content, str) else content
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def append(line: str) -> None:
    with open(CONFIG, "a") as file:
        file.write(line)


def replace(old: str, new: str) -> None:
    with open(CONFIG) as file:
        text = file.read()
    assert old in text
    write(CONFIG, text.replace(old, new))


def scene(made: Case) -> None:
    """A container of busybox, of root's or of the user's, on file systems of the test's own."""
    for place in ("/mnt", "/run"):
        kernel.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    os.makedirs("/run/atoll/journal", 0o700)
    for directory in ("bin", "dev", "proc", "sys", "etc"):
        os.makedirs(f"{ROOTFS}/{directory}")
    shutil.copy("/bin/busybox", f"{ROOTFS}/bin/busybox")
    os.symlink("busybox", f"{ROOTFS}/bin/true")
    write(CONFIG, "")
    with open("/etc/passwd") as file:
        content = file.read()
    cover("/etc/passwd", f"{content}joe:x:{USER}:{USER}::/mnt/joe:/bin/sh\n")
    os.makedirs("/mnt/joe/.cache/atoll/run/journal")
    more = made.prepare()
    if more is not None:
        write(CONFIG, f"{HEAD}{more}")
    if made.user:
        subprocess.run(["chown", "-R", f"{USER}:{USER}", "/mnt/joe", LXCPATH], check=True)


def cover(path: str, content: str) -> None:
    """Other contents for a file of the machine, in the test's mount namespace."""
    name = f"/mnt/{os.path.basename(path)}"
    write(name, content)
    kernel.mount(name, path, None, kernel.MS_BIND)


class Told(NamedTuple):
    status: int
    out: str
    text: str


def start(command: list[str], made: Case, *arguments: str) -> Told:
    words = [*command, "lxc-start", "-P", LXCPATH, "-n", "c1", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    if made.user:
        ids = ["--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
        words, environment["HOME"] = ["setpriv", *ids, *words], "/mnt/joe"
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=30, env=environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Told(done.returncode, done.stdout, done.stderr)


def normal(text: str) -> str:
    text = re.sub(r"step   \d+ of \d+", "step   NUMBER", text)
    text = re.sub(r"restored, (\d+) of \1 changes", "restored, ALL changes", text)
    text = re.sub(r"\bveth[0-9a-z]{8}\d", "VETH", text)
    return "".join(line for line in text.splitlines(True) if not line.startswith("  call   "))


def check_number(command: list[str], made: Case, text: str) -> None:
    """The step's number is the one that it has in the plan."""
    found = re.search(r"step   (\d+) of (\d+), (\w+), (\w+) side, phase (\w+)", text)
    if found is None:
        return
    number, total = int(found[1]), int(found[2])
    plan = json.loads(start(command, made, "-F", "--explain", "--json").out)
    place = plan[number - 1]
    assert (len(plan), place["step"], place["side"], place["phase"]) == (total, *found.groups()[2:])


# ------------------------------------------------------------------------------------- the cases
@case(
    """\
lxc-start: c1: root file system /mnt/lxc/c1/rootfs is missing: no such file or directory
  from   lxc.rootfs.path = dir:/mnt/lxc/c1/rootfs /mnt/lxc/c1/config:2
  step   NUMBER, MountDirectory, init side, phase rootfs
  host   restored, ALL changes taken back
  fix    correct lxc.rootfs.path or create it
"""
)
def rootfs_missing() -> str:
    os.rename(ROOTFS, f"{ROOTFS}.away")
    return "lxc.init.cmd = /bin/true\n"


@fixed(rootfs_missing)
def _() -> None:
    os.rename(f"{ROOTFS}.away", ROOTFS)


@case(
    """\
lxc-start: c1: root file system /mnt/lxc/c1/rootfs is not a directory
  from   lxc.rootfs.path = dir:/mnt/lxc/c1/rootfs /mnt/lxc/c1/config:2
  step   NUMBER, MountDirectory, init side, phase rootfs
  host   restored, ALL changes taken back
  fix    correct lxc.rootfs.path or create it
"""
)
def rootfs_is_a_file() -> str:
    os.rename(ROOTFS, f"{ROOTFS}.away")
    write(ROOTFS, "")
    return ""


@case(
    """\
lxc-start: c1: cannot enter /mnt/lxc/c1/rootfs as the container's root: /mnt/lxc/c1 (mode 0750, owner 0) lacks x for uid 1000000
  from   lxc.rootfs.path = dir:/mnt/lxc/c1/rootfs /mnt/lxc/c1/config:2
  step   NUMBER, CheckPath, init side, phase network
  host   restored, ALL changes taken back
  fix    setfacl -m u:1000000:x /mnt/lxc/c1   (chmod o+x /mnt/lxc/c1 where there are no ACLs)
"""
)
def rootfs_path_not_traversable() -> str:
    os.chmod(f"{LXCPATH}/c1", 0o750)
    return f"{MAPPED}lxc.init.cmd = /bin/true\n"


@fixed(rootfs_path_not_traversable)
def _() -> None:
    os.chmod(f"{LXCPATH}/c1", 0o751)


@case(
    """\
lxc-start: c1: cannot enter /mnt/lxc as the container's root: /mnt/lxc (mode 0700, owner 0) lacks x for uid 1000000
  step   NUMBER, CheckPath, init side, phase network
  host   restored, ALL changes taken back
  fix    setfacl -m u:1000000:x /mnt/lxc   (chmod o+x /mnt/lxc where there are no ACLs)
"""
)
def lxcpath_not_traversable() -> str:
    os.chmod(LXCPATH, 0o700)
    return f"{MAPPED}lxc.init.cmd = /bin/true\n"


@case(
    """\
lxc-start: c1: cannot attach VETH to bridge lxcbr0: no such device
  from   lxc.net.1.link = lxcbr0                  /mnt/lxc/c1/config:5
  step   NUMBER, AttachBridge, monitor side, phase network
  host   restored, ALL changes taken back
  fix    there is no bridge here; set lxc.net.1.link to one, start lxc-net, or set lxc.net.1.type = empty
"""
)
def bridge_missing() -> str:
    return "lxc.net.1.type = veth\nlxc.net.1.link = lxcbr0\nlxc.init.cmd = /bin/true\n"


@fixed(bridge_missing)
def _() -> None:
    replace("lxc.net.1.type = veth\nlxc.net.1.link = lxcbr0\n", "lxc.net.1.type = empty\n")


@case(
    """\
lxc-start: c1: cannot attach VETH to bridge lo: lo is no bridge
  from   lxc.net.1.link = lo                      /mnt/lxc/c1/config:5
  step   NUMBER, AttachBridge, monitor side, phase network
  host   restored, ALL changes taken back
  fix    bridges here: br7; set lxc.net.1.link to one, start lxc-net, or set lxc.net.1.type = empty
"""
)
def bridge_is_none() -> str:
    subprocess.run(["ip", "link", "add", "br7", "type", "bridge"], check=True)
    return "lxc.net.1.type = veth\nlxc.net.1.link = lo\nlxc.init.cmd = /bin/true\n"


@fixed(bridge_is_none)
def _() -> None:
    replace("link = lo", "link = br7")


@case(
    """\
lxc-start: c1: cannot create link mine: the host has a veth of that name
  from   lxc.net.1.veth.pair = mine               /mnt/lxc/c1/config:5
  step   NUMBER, CreateVeth, monitor side, phase network
  host   restored, ALL changes taken back
  fix    ip link delete mine, if nobody needs it, or choose another name
"""
)
def link_name_taken() -> str:
    subprocess.run("ip link add mine type veth peer theirs".split(), check=True)
    return "lxc.net.1.type = veth\nlxc.net.1.veth.pair = mine\nlxc.init.cmd = /bin/true\n"


@fixed(link_name_taken)
def _() -> None:
    subprocess.run("ip link delete mine".split(), check=True)


@case(
    """\
lxc-start: c1: cannot execute /sbin/init: it does not exist in the container
  step   NUMBER, ExecInit, init side, phase ready
  host   restored, ALL changes taken back
  fix    install it in the root file system, or set lxc.init.cmd
"""
)
def init_missing() -> str:
    return ""


@fixed(init_missing)
def _() -> None:
    append("lxc.init.cmd = /bin/true\n")


@case(
    """\
lxc-start: c1: cannot execute /bin/prog: its interpreter /bin/nosh does not exist in the container
  from   lxc.init.cmd = /bin/prog --now           /mnt/lxc/c1/config:4
  step   NUMBER, ExecInit, init side, phase ready
  host   restored, ALL changes taken back
  fix    install /bin/nosh in the root file system, or correct the first line of /bin/prog
"""
)
def interpreter_of_init_missing() -> str:
    write(f"{ROOTFS}/bin/prog", "#!/bin/nosh -e\n", 0o755)
    return "lxc.init.cmd = /bin/prog --now\n"


@fixed(interpreter_of_init_missing)
def _() -> None:
    write(f"{ROOTFS}/bin/prog", "#!/bin/true\n", 0o755)


@case(
    """\
lxc-start: c1: cannot execute /bin/prog: it is not executable (mode 0644)
  from   lxc.init.cmd = /bin/prog                 /mnt/lxc/c1/config:4
  step   NUMBER, ExecInit, init side, phase ready
  host   restored, ALL changes taken back
  fix    chmod +x /bin/prog in the root file system
"""
)
def init_not_executable() -> str:
    write(f"{ROOTFS}/bin/prog", "#!/bin/true\n")
    return "lxc.init.cmd = /bin/prog\n"


@fixed(init_not_executable)
def _() -> None:
    os.chmod(f"{ROOTFS}/bin/prog", 0o755)


@case(
    f"""\
lxc-start: c1: cannot execute /bin/prog: it is built for s390x and this machine is {os.uname().machine}
  from   lxc.init.cmd = /bin/prog                 /mnt/lxc/c1/config:4
  step   NUMBER, ExecInit, init side, phase ready
  host   restored, ALL changes taken back
  fix    use a root file system for {os.uname().machine}, or install an emulator on the host (qemu-user-static)
"""
)
def init_of_another_architecture() -> str:
    header = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HHI", 2, 22, 1) + bytes(40)
    write(f"{ROOTFS}/bin/prog", header, 0o755)
    return "lxc.init.cmd = /bin/prog\n"


@case(
    """\
lxc-start: c1: cannot bind /nosuch on /etc: there is no /nosuch
  from   lxc.mount.entry = /nosuch etc none bind 0 0 /mnt/lxc/c1/config:4
  step   NUMBER, MountEntry, init side, phase rootfs
  host   restored, ALL changes taken back
  fix    make it, or add optional to the entry's options
"""
)
def mount_source_missing() -> str:
    return "lxc.mount.entry = /nosuch etc none bind 0 0\nlxc.init.cmd = /bin/true\n"


@fixed(mount_source_missing)
def _() -> None:
    replace("none bind", "none bind,optional")


@case(
    """\
lxc-start: c1: cannot bind /usr on /opt/usr: the container has no /opt/usr
  from   lxc.mount.entry = /usr opt/usr none bind 0 0 /mnt/lxc/c1/config:4
  step   NUMBER, MountEntry, init side, phase rootfs
  host   restored, ALL changes taken back
  fix    add create=dir to the entry's options
"""
)
def mount_target_missing() -> str:
    return "lxc.mount.entry = /usr opt/usr none bind 0 0\nlxc.init.cmd = /bin/true\n"


@fixed(mount_target_missing)
def _() -> None:
    replace("none bind", "none bind,create=dir")


@case(
    """\
lxc-start: c1: cannot mount nosuchfs on /etc: this kernel knows no file system nosuchfs
  from   lxc.mount.entry = none etc nosuchfs defaults 0 0 /mnt/lxc/c1/config:4
  step   NUMBER, MountEntry, init side, phase rootfs
  host   restored, ALL changes taken back
  fix    load its module (modprobe nosuchfs) or correct the type
"""
)
def file_system_unknown() -> str:
    return "lxc.mount.entry = none etc nosuchfs defaults 0 0\nlxc.init.cmd = /bin/true\n"


@fixed(file_system_unknown)
def _() -> None:
    replace("nosuchfs", "tmpfs")


@case(
    """\
lxc-start: c1: cannot run the pre-start hook /mnt/hook: there is no file /mnt/hook
  from   lxc.hook.pre-start = /mnt/hook           /mnt/lxc/c1/config:4
  step   NUMBER, RunHook, monitor side, phase prepare
  host   unchanged, nothing to take back
  fix    make it, or take the hook out of the configuration
"""
)
def hook_missing() -> str:
    return "lxc.hook.pre-start = /mnt/hook\nlxc.init.cmd = /bin/true\n"


@fixed(hook_missing)
def _() -> None:
    write("/mnt/hook", "#!/bin/sh\n", 0o755)


@case(
    """\
lxc-start: c1: cannot run the mount hook /mnt/hook: it exited with status 3: no luck today
  from   lxc.hook.mount = /mnt/hook               /mnt/lxc/c1/config:4
  step   NUMBER, RunHookInside, init side, phase mounts
  host   restored, ALL changes taken back
"""
)
def hook_fails_inside() -> str:
    write("/mnt/hook", "#!/bin/sh\necho trying\necho no luck today >&2\nexit 3\n", 0o755)
    return "lxc.hook.mount = /mnt/hook\n"


@case(
    """\
lxc-start: c1: cannot run the start-host hook /mnt/hook: it was ended by signal 15
  from   lxc.hook.start-host = /mnt/hook          /mnt/lxc/c1/config:4
  step   NUMBER, RunHook, monitor side, phase limits
  host   restored, ALL changes taken back
"""
)
def hook_fails_on_the_host() -> str:
    write("/mnt/hook", "#!/bin/sh\nkill -15 $$\n", 0o755)
    return "lxc.hook.start-host = /mnt/hook\n"


@case(
    """\
lxc-start: c1: no container config specified: /mnt/lxc/c1/config does not exist
  fix    create the container, or give its configuration with -f or its lxcpath with -P
"""
)
def container_not_defined() -> None:
    shutil.rmtree(f"{LXCPATH}/c1")


@case(
    """\
lxc-start: c1: cannot read the configuration /mnt/lxc/c1/config: permission denied
  fix    run as uid 0, to whom /mnt/lxc/c1/config belongs, or widen its mode 0640
"""
)
def configuration_unreadable() -> str | None:
    write(CONFIG, HEAD, 0o640)
    return None


@case(
    """\
lxc-start: c1: cannot read the configuration /mnt/lxc/c1/config: permission denied
  fix    run as uid 0, to whom /mnt/lxc belongs, or widen its mode 0700
"""
)
def configuration_hidden() -> str:
    os.chmod(LXCPATH, 0o700)
    return ""


@case(
    """\
lxc-start: c1: cannot read the configuration /mnt/lxc/c1/config: is a directory
"""
)
def configuration_is_a_directory() -> None:
    os.unlink(CONFIG)
    os.mkdir(CONFIG)


@case(
    """\
lxc-start: c1: cannot read the configuration /mnt/lxc/c1/config: it is not text, line 3 has a NUL byte
"""
)
def configuration_is_a_program() -> None:
    write(CONFIG, b"\xff\xfe\n# \x01\nlxc.\0uts.name = \xff\n")


@case(
    """\
lxc-start: c1: this would execute the host's own /sbin/init: there is neither a root file system nor a command
  fix    set lxc.rootfs.path or lxc.init.cmd, or give a command after the options
"""
)
def configuration_is_empty() -> None:
    write(CONFIG, "")


@case(
    """\
lxc-start: c1: unknown key lxc.rootfs.pth
  from   lxc.rootfs.pth = /x                      /mnt/lxc/c1/config:4
  fix    the nearest known key is lxc.rootfs.path
"""
)
def key_unknown() -> str:
    return "lxc.rootfs.pth = /x\nlxc.init.cmd = /bin/true\n"


@fixed(key_unknown)
def _() -> None:
    replace("lxc.rootfs.pth = /x\n", f"lxc.rootfs.path = {ROOTFS}\n")


@case(
    """\
lxc-start: c1: an ordinary user's container needs an id map, and user joe has no subordinate ids in /etc/subuid and /etc/subgid
  fix    usermod --add-subuids 100000-165535 --add-subgids 100000-165535 joe (as root), then set lxc.idmap
""",
    user=USER,
)
def no_subordinate_ids() -> str:
    return "lxc.init.cmd = /bin/true\n"


@fixed(no_subordinate_ids)
def _() -> None:
    cover("/etc/subuid", "joe:100000:65536\n")
    cover("/etc/subgid", "joe:100000:65536\n")
    append("lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 100000 65536\n")
    give_rootfs(100000)


def give_rootfs(uid: int) -> None:
    """To the container's root, who otherwise may not make its mount points."""
    subprocess.run(["chown", "-R", f"{uid}:{uid}", ROOTFS], check=True)


@case(
    """\
lxc-start: c1: an ordinary user's container needs an id map, and lxc.idmap is not set
  fix    add lxc.idmap = u 0 100000 65536 and lxc.idmap = g 0 200000 1000, or run as root
""",
    user=USER,
)
def no_id_map() -> str:
    cover("/etc/subuid", "joe:100000:65536\n")
    cover("/etc/subgid", "joe:200000:1000\n")
    return "lxc.init.cmd = /bin/true\n"


@fixed(no_id_map)
def _() -> None:
    append("lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 200000 1000\n")
    give_rootfs(100000)


@case(
    """\
lxc-start: c1: cannot write the uid map 0 300000 100 with newuidmap: it refuses (uid range [0-100) -> [300000-300100) not allowed); /etc/subuid allows user joe 100000-165535
  from   lxc.idmap = u 0 300000 100               /mnt/lxc/c1/config:4
  step   NUMBER, RunIdHelper, monitor side, phase clone
  host   restored, ALL changes taken back
  fix    as root: usermod --add-subuids 300000-300099 joe
""",
    user=USER,
)
def newuidmap_refuses() -> str:
    cover("/etc/subuid", "joe:100000:65536\n")
    cover("/etc/subgid", "joe:100000:65536\n")
    return "lxc.idmap = u 0 300000 100\nlxc.idmap = g 0 100000 100\nlxc.init.cmd = /bin/true\n"


@fixed(newuidmap_refuses)
def _() -> None:
    write("/mnt/subuid", "joe:100000:65536\njoe:300000:100\n")
    give_rootfs(300000)


def missing_controller() -> tuple[str, str, str, str]:
    """Key, controller, why and what there is, in the layout that the suite runs in."""
    found = host_module.probe().hierarchies
    if all(each.version == 2 for each in found):
        there = found[0].controllers
        missing = next(name for name in V2_CONTROLLERS if name not in there)
        where = f"{found[0].mount}{found[0].base}"
        why = f"the controller {missing} is not available in {where}"
        return f"lxc.cgroup2.{missing}.max", missing, why, " ".join(sorted(there))
    there = tuple(sorted(c for each in found if each.version == 1 for c in each.controllers))
    why = "no cgroup v1 hierarchy here has the controller nosuch"
    return "lxc.cgroup.nosuch.max", "nosuch", why, " ".join(there)


@case(
    """\
lxc-start: c1: cannot set KEY = 1: WHY
  from   KEY_ = 1 /mnt/lxc/c1/config:4
  fix    remove the line; available are: THERE
"""
)
def controller_not_available() -> str:
    return f"{missing_controller()[0]} = 1\nlxc.init.cmd = /bin/true\n"


@fixed(controller_not_available)
def _() -> None:
    replace(f"{missing_controller()[0]} = 1\n", "")


@case(
    """\
lxc-start: c1: cannot mount proc on /proc: the outer container masks parts of /proc, and the kernel lets a user namespace mount a new proc only where nothing of the old one is hidden
  from   lxc.mount.auto = proc                    /mnt/lxc/c1/config:6
  step   NUMBER, MountProc, init side, phase rootfs
  host   restored, ALL changes taken back
  fix    start the outer container with its /proc unmasked (docker, podman: --security-opt unmask=/proc/*; LXC: lxc.mount.auto = proc:rw), or share it: lxc.mount.entry = /proc proc none rbind,create=dir 0 0 instead of proc in lxc.mount.auto
""",
    user=USER,
)
def proc_masked_by_an_outer_container() -> str:
    kernel.mount("tmpfs", "/proc/sysvipc", "tmpfs", kernel.MS_RDONLY)
    own = f"lxc.idmap = u 0 {USER} 1\nlxc.idmap = g 0 {USER} 1\n"
    return f"{own}lxc.mount.auto = proc\nlxc.init.cmd = /bin/true\n"


@fixed(proc_masked_by_an_outer_container)
def _() -> None:
    replace("lxc.mount.auto = proc\n", "lxc.mount.entry = /proc proc none rbind,create=dir 0 0\n")


# ------------------------------------------------------------------------------------- the tests
READERS = ("configuration_unreadable", "configuration_hidden")
"""Cases of a user who looks at root's container."""


@pytest.mark.parametrize("name", list(CASES))
def test_text_and_fix(name: str, atoll_command: list[str]) -> None:
    made = CASES[name]
    scene(made)
    if name in READERS:
        made = made._replace(user=USER)
    expected = made.text
    if name == "controller_not_available":
        key, _controller, why, there = missing_controller()
        column = f"{key + ' = 1':<40}"
        expected = expected.replace("KEY_ = 1", column).replace("KEY", key)
        expected = expected.replace("WHY", why).replace("THERE", there)
    before = snapshot.HostSnapshot.take("/mnt")
    for mode in ("-F", "-d"):
        told = start(atoll_command, made, mode)
        assert (told.out, normal(told.text)) == ("", expected), mode
        assert told.status == made.status
        check_number(atoll_command, made, told.text)
        assert snapshot.settled(before, "/mnt") == []
    if made.fix is not None:
        made.fix()
        told = start(atoll_command, made, "-F")
        assert (told.status, told.text) == (0, "")


def test_container_already_running(atoll_command: list[str]) -> None:
    made = Case("", lambda: "lxc.init.cmd = /bin/busybox sleep 1000\n")
    scene(made)
    assert start(atoll_command, made, "-d") == (0, "", "")
    before = snapshot.HostSnapshot.take("/mnt")
    for mode in ("-F", "-d"):  # lxc: its words, and no failure
        told = start(atoll_command, made, mode)
        assert told == (0, "", "lxc-start: c1: Container is already running\n")
    for words in (["lxc-execute", "-d"], ["lxc-execute"], ["run"]):
        done = subprocess.run(
            [*atoll_command, words[0], "-P", LXCPATH, "-n", "c1", *words[1:], "--", "/bin/true"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        tool = "atoll run" if words == ["run"] else "lxc-execute"
        assert (done.returncode, done.stderr) == (
            125 if words == ["run"] else 1,
            f"{tool}: c1: container c1 is already running\n  fix    stop it first: lxc-stop -n c1 -P /mnt/lxc\n",
        )
    assert snapshot.settled(before, "/mnt") == []
    stopped = subprocess.run(
        [*atoll_command, "lxc-stop", "-k", "-n", "c1", "-P", LXCPATH], check=False
    )
    assert stopped.returncode == 0


def test_a_broken_configuration_stops_nothing_of_a_running_container(
    atoll_command: list[str],
) -> None:
    """Its monitor has read it long ago; only a new start needs it."""
    made = Case("", lambda: "lxc.init.cmd = /bin/busybox sleep 1000\n")
    scene(made)
    assert start(atoll_command, made, "-d").status == 0
    write(CONFIG, "lxc.uts.nam = x\n")
    told = start(atoll_command, made, "-d")
    assert (told.status, told.text.splitlines()[0]) == (1, "lxc-start: c1: unknown key lxc.uts.nam")
    words = [*atoll_command, "lxc-stop", "-k", "-n", "c1", "-P", LXCPATH]
    assert subprocess.run(words, check=False).returncode == 0


def test_quiet_says_nothing_and_fails_all_the_same(atoll_command: list[str]) -> None:
    made = CASES["rootfs_missing"]
    scene(made)
    for mode in ("-F", "-d"):
        assert start(atoll_command, made, mode, "-q") == (1, "", "")
