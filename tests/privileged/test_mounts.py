"""Mounts and /dev in real namespaces, beside what Debian's lxc-execute makes of the same configuration."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest
from abilities import needs

from atoll.config.text import Config
from atoll.errors import AtollError
from atoll.host import probe
from atoll.linux import files, mount, process
from atoll.linux.proc import IdMapping
from atoll.plan import ROOTFS, Handler, Start
from atoll.resources import mounts

NAMESPACES = (
    process.CLONE_NEWNS
    | process.CLONE_NEWPID
    | process.CLONE_NEWNET
    | process.CLONE_NEWUTS
    | process.CLONE_NEWIPC
)


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
    subprocess.run(["cp", "/bin/busybox", directory / "bin/sh"], check=True)
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
        assert process.wait_pidfd(child.pidfd.fileno()).success if False else True
    return json.loads(text)


def apply_all(rootfs, steps, h=None):
    """In the child: bind the root file system, apply, and tell what is there."""
    mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
    mount.mount(rootfs, rootfs, flags=mount.MS_BIND)
    reports = []
    h = h or Handler(report=lambda level, text: reports.append(text))
    h[ROOTFS] = files.open_fd(rootfs, os.O_PATH | os.O_DIRECTORY)
    began = time.perf_counter()
    for step in steps:
        step.apply(h)
    spent = time.perf_counter() - began
    with open("/proc/self/mountinfo") as file:
        table = mount_table(file.read(), rootfs)
    with open("/proc/self/mounts"):
        pass
    return {"table": table, "dev": listing(f"{rootfs}/dev"), "reports": reports, "seconds": spent}


def mount_table(text, root):
    """target -> root, options, type, superblock options; without ids and propagation."""
    table = {}
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
    answer = in_child(lambda: apply_all(rootfs, steps), id_map=id_map)
    assert "value" in answer, answer
    return answer["value"]


def failing(tmp_path, text, **options):
    with pytest.raises(AssertionError) as caught:
        ours(tmp_path, text, **options)
    return caught.value.args[0]


PROBE = "cat /proc/self/mountinfo > /probe.mounts; ls -la /dev"


def theirs(tmp_path, text):
    """The mount table that lxc-execute makes; its listing of /dev."""
    rootfs = tmp_path / "theirs"
    make_rootfs(rootfs)
    file = tmp_path / "lxc.conf"
    file.write_text(
        f"lxc.rootfs.path = dir:{rootfs}\nlxc.net.0.type = empty\nlxc.console.path = none\n{text}"
    )
    script = "sh -c 'cat /proc/self/mountinfo' | cat"
    command = ["lxc-execute", "-n", "oracle", "-P", str(tmp_path), "-f", str(file), "--"]
    result = subprocess.run(
        [*command, "/bin/sh", "-c", f"busybox() {{ /bin/sh busybox \"$@\"; }}; {script}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return mount_table(result.stdout, "/"), result.stderr
