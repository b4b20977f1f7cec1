"""`atoll config`, lxc-update-config and lxc-checkconfig against the real kernel: owners, full disks, other users, trials."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess

import pytest

from abilities import needs
from isolation import kernel

USER = 1234
TEXT = "# mine\nlxc.uts.name = web\nlxc.tty = 4\n"


@pytest.fixture
def tool(atoll_command):
    """Run a tool of ours, as root or as another user."""

    def call(*words, uid=0, environ=None, before=()):
        return subprocess.run(
            [*before, *atoll_command, *words], capture_output=True, text=True, check=False, timeout=60, cwd="/",
            user=uid, group=uid, extra_groups=[], env={"HOME": "/", "PATH": os.environ["PATH"], **(environ or {})},
        )  # fmt: skip

    return call


def make(path, uid=0, mode=0o640, text=TEXT):
    with open(path, "w") as file:
        file.write(text)
    os.chown(path, uid, uid)
    os.chmod(path, mode)
    return path


def read(path):
    with open(path) as file:
        return file.read()


@pytest.fixture
def directory(tmp_path):
    """A directory that the other user may enter, and write to."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        os.chmod(path, 0o755)
    path = tmp_path / "c"
    path.mkdir(mode=0o755)
    os.chown(path, USER, USER)
    return str(path)


def changes(tool, path, **more):
    """Every tool that saves, on a file: they must all fail in the same way."""
    return [
        tool("config", "-f", path, "set", "lxc.arch", "i386", **more),
        tool("config", "-f", path, "unset", "lxc.uts.name", **more),
        tool("lxc-update-config", "-c", path, **more),
    ]


# ------------------------------------------------------------------------------------------ saving
def test_root_keeps_the_owner_and_the_mode(tool, directory):
    path = make(f"{directory}/config", uid=USER, mode=0o600)
    for done in changes(tool, path):
        assert (done.returncode, done.stderr) == (0, "")
        status = os.stat(path)
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (USER, USER, 0o600)
    backup = os.stat(f"{path}.backup")
    assert (backup.st_uid, backup.st_gid, stat.S_IMODE(backup.st_mode)) == (USER, USER, 0o600)
    assert read(path) == "# mine\nlxc.tty.max = 4\nlxc.arch = i386\n"
    assert sorted(os.listdir(directory)) == ["config", "config.backup"]


def test_an_owner_that_cannot_be_kept(tool, directory):
    path = make(f"{directory}/config", uid=0, mode=0o664)
    for done in changes(tool, path, uid=USER):
        assert done.returncode == 1
        assert "its owner and group cannot be kept" in done.stderr
        assert "do it as root, or as their user: uid 0, gid 0" in done.stderr
    assert (read(path), os.listdir(directory)) == (TEXT, ["config"])


def test_a_file_that_may_not_be_read(tool, directory):
    path = make(f"{directory}/config", uid=0, mode=0o600)
    for done in (*changes(tool, path, uid=USER), tool("config", "-f", path, uid=USER)):
        assert (done.returncode, done.stdout) == (1, "")
        assert "permission denied" in done.stderr
    assert (read(path), os.listdir(directory)) == (TEXT, ["config"])


def test_a_directory_that_may_not_be_written(tool, directory):
    path = make(f"{directory}/config", uid=USER)
    os.chmod(directory, 0o555)
    for done in changes(tool, path, uid=USER):
        assert done.returncode == 1
        assert f"cannot save {path}" in done.stderr
        assert "permission denied" in done.stderr
    assert (read(path), os.listdir(directory)) == (TEXT, ["config"])


@pytest.mark.isolated
def test_a_full_disk(tool, directory):
    kernel.mount("tmpfs", directory, "tmpfs", data="size=4k")  # a page: the file has it
    path = make(f"{directory}/config")
    for done in changes(tool, path):
        assert done.returncode == 1
        assert f"cannot save {path}" in done.stderr
        assert "no space left on device" in done.stderr
    assert (read(path), os.listdir(directory)) == (TEXT, ["config"])


@pytest.mark.isolated
def test_a_disk_with_room_for_the_backup_alone(tool, directory):
    kernel.mount("tmpfs", directory, "tmpfs", data="size=8k")
    path = make(f"{directory}/config")
    done = tool("lxc-update-config", "-c", path)
    assert done.returncode == 1
    assert f"cannot save {path}: no space left on device" in done.stderr
    assert (read(path), read(f"{path}.backup")) == (TEXT, TEXT)
    assert sorted(os.listdir(directory)) == ["config", "config.backup"]


@pytest.mark.isolated
def test_a_read_only_file_system(tool, directory):
    kernel.mount("tmpfs", directory, "tmpfs")
    path = make(f"{directory}/config")
    kernel.mount(None, directory, flags=kernel.MS_REMOUNT | kernel.MS_RDONLY)
    for done in changes(tool, path):
        assert done.returncode == 1
        assert "read-only file system" in done.stderr
    assert (read(path), os.listdir(directory)) == (TEXT, ["config"])


# ----------------------------------------------------------------------------------------- trials
def found(done):
    """What lxc-checkconfig --json found: item -> (state, reason)."""
    assert (done.returncode, done.stderr) == (0, ""), done
    sections = json.loads(done.stdout)["sections"]
    return {
        item["item"]: (item["state"], item["reason"]) for one in sections for item in one["items"]
    }


def test_as_root(tool):
    answers = found(tool("lxc-checkconfig", "--json"))
    for item in ("Namespaces", "Mount namespace", "Utsname namespace", "Ipc namespace", "Pid namespace", "Network namespace", "clone3",
                 "pidfd", "openat2", "Mount API", "CONFIG_EPOLL", "CONFIG_EVENTFD"):  # fmt: skip
        assert answers[item][0] == "enabled", item
    there = os.listdir("/proc/self/ns")
    for item, name in (
        ("User namespace", "user"),
        ("Cgroup namespace", "cgroup"),
        ("Time namespace", "time"),
    ):
        assert (answers[item][0] == "enabled") == (name in there)
    assert answers["Subordinate ids"][0] == "enabled"
    ordinary = found(tool("lxc-checkconfig", "--json", uid=USER))["User namespace"][0]
    assert answers["User namespace, for ordinary users"][0] == ordinary
    text = tool("lxc-checkconfig")
    assert (text.returncode, text.stderr) == (0, "")
    assert re.search(r"^--- Checkpoint/Restore ---$", text.stdout, re.MULTILINE)


@needs("netns")
@pytest.mark.isolated
def test_links_are_as_ip_finds_them(tool):
    """iproute2 has its own conversation with the kernel."""
    answers = found(tool("lxc-checkconfig", "--json"))
    lower = "link add v0 type veth peer name v1".split()
    assert subprocess.run(["ip", *lower], check=False, capture_output=True).returncode == 0
    for item, words in (
        ("Veth pair device", "link add v2 type veth"), ("Bridges", "link add b0 type bridge"), ("Macvlan", "link add link v0 m0 type macvlan"),
        ("Vlan", "link add link v0 name v0.5 type vlan id 5"), ("Ipvlan", "link add link v1 i0 type ipvlan"),
    ):  # fmt: skip
        able = (
            subprocess.run(["ip", *words.split()], check=False, capture_output=True).returncode == 0
        )
        assert (answers[item][0] == "enabled") == able, item


@needs("userns")
def test_as_an_ordinary_user(tool):
    answers = found(tool("lxc-checkconfig", "--json", uid=USER))
    assert answers["User namespace"][0] == answers["Network namespace"][0] == "enabled"
    assert answers["Subordinate ids"] == ("missing", f"none for {USER} in /etc/subuid")
    assert answers["Idmapped mounts"] == ("disabled", "only root may")
    assert "Overlay" not in answers
    assert answers["Overlay in a user namespace"][0] == "enabled"
    assert {answers[item][0] for item in ("Cgroup sched", "Cgroup memory controller")} <= {
        "disabled",
        "missing",
    }
    assert "User namespace, for ordinary users" not in answers


@needs("userns", "newuidmap")
@pytest.mark.isolated
def test_subordinate_ids_go_through_newuidmap(tool):
    """Its line in /etc/subuid decides; a range that is not there is refused."""
    kernel.mount("tmpfs", "/mnt", "tmpfs")
    for name in ("subuid", "subgid"):
        with open(f"/mnt/{name}", "w") as file:
            file.write(f"{USER}:200000:65536\n")
        kernel.mount(f"/mnt/{name}", f"/etc/{name}", flags=kernel.MS_BIND)
    make("/mnt/passwd", mode=0o644, text=f"root:x:0:0::/:/bin/sh\nme:x:{USER}:{USER}::/:/bin/sh\n")
    kernel.mount("/mnt/passwd", "/etc/passwd", flags=kernel.MS_BIND)
    answers = found(tool("lxc-checkconfig", "--json", uid=USER))
    assert answers["Subordinate ids"] == ("enabled", "200000:65536, 200000:65536")
    no_privileges = ("setpriv", "--no-new-privs")  # newuidmap loses its setuid bit
    answers = found(tool("lxc-checkconfig", "--json", uid=USER, before=no_privileges))
    assert answers["Subordinate ids"] == ("disabled", "refused")


@needs("userns")
def test_user_namespaces_that_a_setting_forbids(tool):
    inside = (
        "unshare",
        "--user",
        "--map-root-user",
        "--",
        "sh",
        "-c",
        'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"',
        "sh",
    )
    answers = found(tool("lxc-checkconfig", "--json", uid=USER, before=inside))
    assert answers["User namespace"] == ("disabled", "user.max_user_namespaces = 0")
    assert answers["Namespaces"][0] == "disabled"


def test_without_any_privilege(tool):
    """No capability at all, as in a strict container: answers, no crash."""
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    answers = found(tool("lxc-checkconfig", "--json", before=bare))
    assert answers["clone3"][0] == "enabled"
    assert len(answers) > 40


def test_nothing_is_left_behind(tool):
    """Links, mounts, files and processes are the fixture's affair (host_unchanged); modules stay, by the kernel's own doing."""
    for uid in (0, USER):
        assert tool("lxc-checkconfig", uid=uid).returncode == 0
