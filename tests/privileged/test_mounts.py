"""Mounts and /dev in real namespaces, beside what Debian's lxc-execute makes of the same configuration."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from abilities import needs
from atoll.config.text import Config
from atoll.errors import AtollError
from atoll.host import probe
from atoll.linux import files, mount, process
from atoll.linux.proc import IdMapping
from atoll.log import INFO
from atoll.plan import ROOTFS, Handler, Start
from atoll.resources import mounts

pytestmark = needs("root")

NAMESPACES = (
    process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWNET
    | process.CLONE_NEWUTS
    | process.CLONE_NEWIPC
)


@pytest.fixture
def public():
    """A directory that a mapped root can reach: pytest's own is 0700."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="atoll-mounts-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def make_start(rootfs, **fields):
    values = {
        "name": "c1",
        "lxcpath": "/var/lib/lxc",
        "start_id": "abcd1234",
        "began": 0.0,
        "argv": ("/bin/sh",),
        "clone_namespaces": NAMESPACES,
        "rootfs": rootfs,
    }
    return Start(**{**values, **fields})


def make_rootfs(directory, owner=0):
    for name in ("bin", "proc", "sys", "dev", "mnt", "etc", "tmp"):
        (directory / name).mkdir(parents=True)
        os.chown(directory / name, owner, owner)
    os.chown(directory, owner, owner)
    shutil.copy("/bin/busybox", directory / "bin/sh")
    for name in ("cat", "ls"):
        (directory / "bin" / name).symlink_to("sh")
    return str(directory)


def steps_of(config, start, nesting=False, host=None):
    host = host or probe()
    c = (config, host, start)
    return (
        *mounts.device_tmpfs(*c),
        *mounts.automatic(*c),
        *mounts.fstab(*c, fstab_text=mounts.load_fstab(config)),
        *mounts.entries(*c, nesting=nesting),
        *mounts.populate_dev(*c),
        *mounts.boot_id(*c),
    )


def in_child(body, flags=NAMESPACES, id_map=()):
    """Run body() -> JSON value in a clone; its result, or raise what it told."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    hold, go = os.pipe2(os.O_CLOEXEC)

    def entry():
        os.close(go)
        os.read(hold, 1)
        if id_map:
            process.set_ids(0, 0, ())
        try:
            answer = {"value": body()}
        except AtollError as error:
            answer = {"error": error.message, "fix": error.fix}
        except OSError as error:
            answer = {"error": f"{error.strerror}", "fix": None, "notes": error.__notes__}
        os.write(writer, json.dumps(answer).encode())

    child = process.clone(entry, flags=flags | (process.CLONE_NEWUSER if id_map else 0))
    os.close(writer)
    os.close(hold)
    for kind, file in (("u", "uid_map"), ("g", "gid_map")) if id_map else ():
        lines = [f"{e.inside} {e.outside} {e.count}" for e in id_map if e.kind == kind]
        files.write_text(f"/proc/{child.pid}/{file}", "\n".join(lines))
    os.close(go)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    with child.pidfd:
        process.wait_pidfd(child.pidfd.fileno())
    return json.loads(text)


def apply_all(rootfs, steps, h=None):
    """In the child: bind the root file system, apply, and tell what is there."""
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    mount.mount(rootfs, rootfs, flags=mount.MS_BIND)
    reports = []
    h = h or Handler(report=lambda level, text: reports.append(text) if level >= INFO else None)
    h[ROOTFS] = files.open_fd(rootfs, os.O_PATH | os.O_DIRECTORY)
    for step in steps:
        step.apply(h)
    with open("/proc/self/mountinfo") as file:
        table = mount_table(file.read(), rootfs)
    return {"table": table, "dev": listing(f"{rootfs}/dev"), "reports": reports}


def mount_table(text, root):
    """target -> root, options, type, superblock options; without ids and propagation."""
    table: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if fields[4] != root and not fields[4].startswith(root.rstrip("/") + "/"):
            continue
        target = fields[4][len(root.rstrip("/")) :] or "/"
        fstype, _source, options = right.split(" ", 2)
        if target != "/":
            table.setdefault(target, []).append([fields[3], fields[5], fstype, options])
    return table


def listing(directory):
    found = {}
    for name in sorted(os.listdir(directory)):
        status = os.lstat(f"{directory}/{name}")
        what = os.readlink(f"{directory}/{name}") if os.path.islink(f"{directory}/{name}") else ""
        device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        found[name] = [oct(status.st_mode), device, what]
    return found


def ours(tmp_path, text, *, id_map=(), rootfs=None, nesting=False, host=None, **fields):
    rootfs = rootfs or make_rootfs(tmp_path / "rootfs", id_map[0].outside if id_map else 0)
    config = Config.parse(text, file="config")
    start = make_start(rootfs, id_map=id_map, **fields)
    steps = steps_of(config, start, nesting, host)
    return in_child(lambda: apply_all(rootfs, steps), id_map=id_map)


def value(answer):
    assert "value" in answer, answer
    return answer["value"]


def theirs(tmp_path, text):
    """The mount table that lxc-execute makes of a configuration; in an isolation of its own."""
    mount.mount("tmpfs", "/run", "tmpfs")
    rootfs = make_rootfs(tmp_path / "theirs")
    file = tmp_path / "lxc.conf"
    file.write_text(f"lxc.rootfs.path = dir:{rootfs}\nlxc.net.0.type = empty\n{text}")
    result = subprocess.run(
        ["lxc-execute", "-n", "oracle", "-P", tmp_path, "-f", file, "--", "/bin/cat", "/proc/self/mountinfo"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return mount_table(result.stdout, "/")


MAPS = tuple(IdMapping(kind=kind, inside=0, outside=100000, count=65536) for kind in "ug")

ENTRIES = """
lxc.mount.auto = proc:rw
lxc.mount.entry = {tmp}/src mnt/a none bind,create=dir 0 0
lxc.mount.entry = {tmp}/src/file mnt/b/f none bind,create=file,ro 0 0
lxc.mount.entry = /nonexist mnt/c none bind,optional,create=dir 0 0
lxc.mount.entry = tmpfs mnt/d tmpfs size=1m,nosuid,noexec,create=dir,mode=0700 0 0
lxc.mount.entry = {tmp}/src /mnt/e none bind,create=dir
lxc.mount.entry = etc mnt/h none bind,create=dir,relative
lxc.mount.entry = {tmp}/with\\040space mnt/i\\040j none bind,create=dir
lxc.mount.entry = {tmp}/src mnt/k none bind,nodev,nosuid,create=dir
lxc.mount.entry = {tmp}/src mnt/l none bind,nodev,noexec,ro,create=dir
lxc.mount.entry = /sys/kernel mnt/m none rbind,create=dir
"""


@needs("lxc")
@pytest.mark.isolated(cgroup=True)  # lxc leaves cgroups and lock files behind
@pytest.mark.parametrize(
    "text",
    [
        "lxc.mount.auto = proc:mixed sys:mixed\n",
        "lxc.mount.auto = proc:mixed sys:mixed\nlxc.cap.drop = net_admin\n",
        "lxc.mount.auto = proc:rw sys:ro\n",
        "lxc.mount.auto = proc sys:rw shmounts:{tmp}/src\n",
        "lxc.mount.auto = proc\nlxc.autodev = 0\n",
        "lxc.mount.auto = proc\nlxc.autodev.tmpfs.size = 1000000\n",
        "lxc.mount.auto = proc\nlxc.mount.fstab = {tmp}/fstab\nlxc.mount.entry = etc mnt none bind,relative\n",
        ENTRIES,
    ],
)
def test_same_mounts_as_lxc(tmp_path, text):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/file").touch()
    (tmp_path / "with space").mkdir()
    (tmp_path / "fstab").write_text(f"# x\n\n{tmp_path}/src tmp none bind,ro\n")
    text = text.replace("{tmp}", str(tmp_path))
    kept = ~(1 << 12) if "net_admin" in text else (1 << 41) - 1
    expected = theirs(tmp_path, f"lxc.console.path = none\n{text}")
    mine = "".join(line for line in text.splitlines(keepends=True) if "lxc.cap" not in line)
    got = value(ours(tmp_path, mine, kept_capabilities=kept))["table"]
    assert _relative(got, tmp_path / "rootfs") == _relative(expected, tmp_path / "theirs")


def _relative(table, rootfs):
    """Mounts of the container's own directories look the same whatever the root file system is called."""
    return json.loads(json.dumps(table).replace(str(rootfs), "ROOTFS"))


def test_dev_of_a_container(tmp_path):
    nodes = {
        "full": "1:7",
        "null": "1:3",
        "random": "1:8",
        "tty": "5:0",
        "urandom": "1:9",
        "zero": "1:5",
    }
    links = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
    expected = {name: ["0o20666", device, ""] for name, device in nodes.items()}
    expected |= {name: ["0o120777", "0:0", f"/proc/self/fd{to}"] for name, to in links.items()}
    expected["pts"] = ["0o40755", "0:0", ""]
    before = os.umask(0o77)
    try:
        assert value(ours(tmp_path, ""))["dev"] == expected
    finally:
        os.umask(before)


def test_in_a_user_namespace_nodes_are_the_hosts(public):
    found = value(ours(public, "lxc.mount.auto = proc:mixed sys:mixed\n", id_map=MAPS))
    assert found["dev"]["null"] == ["0o20666", "1:3", ""]
    assert found["table"]["/dev/null"][0][0] == "/null"
    assert "uid=100000,gid=100000" in found["table"]["/dev"][0][3]
    assert found["table"]["/proc/sys"] == [["/sys", "ro,relatime", "proc", "rw"]]


def test_nesting_entries(tmp_path):
    config = "lxc.mount.entry = etc mnt none bind,relative\nlxc.apparmor.allow_nesting = 1\n"
    table = value(ours(tmp_path, config, nesting=True))["table"]
    assert table["/dev/.lxc/proc"] == [["/", "rw,relatime", "proc", "rw"]]
    assert table["/dev/.lxc/sys"] == [["/", "rw,relatime", "sysfs", "rw"]]


def test_links_in_the_roots_dev_lead_nowhere_else(tmp_path):
    """CVE-2015-1335: nothing outside the root file system is mounted on, whatever the image holds."""
    rootfs = make_rootfs(tmp_path / "rootfs")
    outside = tmp_path / "outside"
    outside.mkdir()
    os.rmdir(f"{rootfs}/proc")
    os.symlink(outside, f"{rootfs}/proc")
    answer = ours(tmp_path, "lxc.mount.auto = proc\n", rootfs=rootfs)
    assert answer["error"] == "cannot mount on /proc: it is not a directory in the container" or (
        answer["error"] == "cannot mount on /proc: it is a symbolic link in the container"
    )


def test_options_of_a_bind_mount_without_ro_are_reported(tmp_path):
    (tmp_path / "src").mkdir()
    found = value(ours(tmp_path, f"lxc.mount.entry = {tmp_path}/src mnt none bind,nodev,nosuid\n"))
    assert found["reports"] == ["nosuid,nodev of mount entry for /mnt need ro to have an effect"]


def test_optional_mount_says_why(tmp_path):
    found = value(ours(tmp_path, "lxc.mount.entry = /nonexist mnt none bind,optional\n"))
    assert found["reports"] == [
        "going on without an optional mount: cannot bind /nonexist on /mnt: there is no /nonexist"
    ]


@pytest.mark.parametrize(
    ("entry", "error", "fix"),
    [
        ("/nonexist mnt none bind", "cannot bind /nonexist on /mnt: there is no /nonexist", "make it, or add optional to the entry's options"),
        ("/etc mnt/x none bind", "cannot bind /etc on /mnt/x: the container has no /mnt/x", "add create=dir to the entry's options"),
        ("/etc/passwd mnt/x none bind", "cannot bind /etc/passwd on /mnt/x: the container has no /mnt/x", "add create=file to the entry's options"),
        ("tmpfs mnt/x tmpfs", "cannot mount tmpfs on /mnt/x: the container has no /mnt/x", "add create=dir to the entry's options"),
        ("x mnt bogusfs", "cannot mount bogusfs x on /mnt: this kernel knows no file system bogusfs", "load its module (modprobe bogusfs) or correct the type"),
        ("/etc tmp/link/x none bind,create=dir", "cannot bind /etc on /tmp/link/x: /tmp/link is a symbolic link in the container", "name the directory that it leads to as the entry's target"),
        ("/etc tmp/link none bind", "cannot bind /etc on /tmp/link: /tmp/link is a symbolic link in the container", "name the directory that it leads to as the entry's target"),
        ("/etc/passwd mnt none bind", "cannot bind /etc/passwd on /mnt: /etc/passwd is no directory", "give it a target that is a file"),
        ("nothing mnt none bind,relative", "cannot bind the container's /nothing on /mnt: the container has no /nothing", "make it, or remove relative from the entry's options"),
        ("tmpfs mnt tmpfs bogus=1", "Invalid argument", None),
    ],
)  # fmt: skip
def test_errors(tmp_path, entry, error, fix):
    rootfs = make_rootfs(tmp_path / "rootfs")
    os.symlink("/etc", f"{rootfs}/tmp/link")
    answer = ours(tmp_path, f"lxc.mount.entry = {entry}\n", rootfs=rootfs)
    assert (answer["error"], answer["fix"]) == (error, fix)


def test_proc_that_an_outer_container_masks(public):
    """A user namespace in a mount namespace whose /proc has something mounted over a part of it."""
    rootfs = make_rootfs(public / "rootfs", 100000)
    host = probe().replace(proc_masked=True)
    config = Config.parse("lxc.mount.auto = proc\n", file="config")
    steps = steps_of(config, make_start(rootfs, id_map=MAPS), host=host)

    def outer():
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        mount.mount("tmpfs", "/proc/irq", "tmpfs")
        assert probe().proc_masked
        return in_child(lambda: apply_all(rootfs, steps), id_map=MAPS)

    answer = value(in_child(outer, flags=process.CLONE_NEWNS))
    assert answer["error"].startswith(
        "cannot mount proc on /proc: the outer container masks parts of /proc"
    )
    assert "unmask=/proc/*" in answer["fix"]


def test_sysfs_without_a_network_namespace(public):
    rootfs = make_rootfs(public / "rootfs", 100000)
    config = Config.parse("lxc.mount.auto = sys\n", file="config")
    flags = NAMESPACES & ~process.CLONE_NEWNET
    steps = steps_of(config, make_start(rootfs, id_map=MAPS, clone_namespaces=flags))
    answer = in_child(lambda: apply_all(rootfs, steps), flags=flags, id_map=MAPS)
    assert answer["error"] == (
        "cannot mount sysfs on /sys: a user namespace may do that only with a network namespace of its own"
    )


def test_shared_mounts_arrive_later(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    rootfs = make_rootfs(tmp_path / "rootfs")
    config = Config.parse(f"lxc.mount.auto = shmounts:{source}\n", file="config")
    start = make_start(rootfs)
    steps = (*steps_of(config, start), *mounts.after_pivot(config, probe(), start))

    def body():
        mount.mount(str(source), str(source), flags=mount.MS_BIND)
        mount.mount(None, str(source), flags=mount.MS_SHARED)
        h = Handler()
        h[ROOTFS] = files.open_fd(rootfs, os.O_PATH | os.O_DIRECTORY)
        for step in steps:
            step.apply(h)
        with open("/proc/self/mountinfo") as file:
            lines = [line for line in file if "/dev/.lxc-mounts" in line]
        return lines[0].split(" - ")[0].split(" ")[6:]

    (tag,) = value(in_child(body))
    assert tag.startswith("master:")
