"""Mounting for real, in namespaces that are thrown away."""

from __future__ import annotations

import errno
import os

import pytest

from abilities import needs
from atoll.linux import files, mount, proc, process

pytestmark = [needs("root", "mountns"), pytest.mark.isolated()]


def found(target):
    """The topmost mount at a place."""
    mounts = proc.parse_mountinfo(files.read_text("/proc/self/mountinfo"))
    at = [m for m in mounts if m.target == str(target)]
    return at[-1] if at else None


def test_mount_remount_propagation_umount(tmp_path):
    flags = mount.MS_NOSUID | mount.MS_NODEV
    mount.mount("name", str(tmp_path), "tmpfs", flags=flags, data="size=64k,mode=711")
    seen = found(tmp_path)
    assert seen is not None
    assert (seen.source, seen.fstype) == ("name", "tmpfs")
    assert {"nosuid", "nodev"} <= set(seen.options.split(","))
    assert "size=64k" in seen.super_options
    mount.mount(None, str(tmp_path), flags=mount.MS_REMOUNT | mount.MS_BIND | mount.MS_RDONLY)
    with pytest.raises(OSError) as caught:
        files.mkdir(f"{tmp_path}/x", 0o755)
    assert caught.value.errno == errno.EROFS
    mount.mount(None, str(tmp_path), flags=mount.PROPAGATION["shared"])
    again = found(tmp_path)
    assert again is not None
    assert again.optional[0].startswith("shared:")
    with files.open_fd(str(tmp_path), os.O_PATH):
        with pytest.raises(OSError) as caught:
            mount.umount(str(tmp_path))
        assert caught.value.errno == errno.EBUSY
        mount.umount(str(tmp_path), flags=mount.MNT_DETACH)
    assert found(tmp_path) is None


def test_a_file_system_by_descriptors(tmp_path):
    with mount.fsopen("tmpfs") as fs:
        mount.fsconfig_string(fs.fileno(), "source", "mine")
        mount.fsconfig_string(fs.fileno(), "size", "64k")
        mount.fsconfig_flag(fs.fileno(), "ro")
        mount.fsconfig_create(fs.fileno())
        with mount.fsmount(fs.fileno(), attributes=mount.MOUNT_ATTR_NOEXEC) as detached:
            mount.mount_setattr(detached.fileno(), set=mount.MOUNT_ATTR_NODEV)
            mount.move_mount(detached.fileno(), str(tmp_path))
    seen = found(tmp_path)
    assert seen is not None
    assert (seen.source, seen.super_options.split(",")[0]) == ("mine", "ro")
    assert {"noexec", "nodev"} <= set(seen.options.split(","))
    mount.umount(str(tmp_path))


def test_the_kernels_own_words_are_in_the_note():
    with mount.fsopen("tmpfs") as fs, pytest.raises(OSError) as caught:
        mount.fsconfig_string(fs.fileno(), "bogus", "1")
    assert caught.value.__notes__[0].startswith("fsconfig(2): ")
    assert "kernel: tmpfs: Unknown parameter 'bogus'" in caught.value.__notes__
    with pytest.raises(OSError) as caught:
        mount.fsopen("nosuchfs")
    assert caught.value.errno == errno.ENODEV


def test_a_detached_tree_attached_by_descriptor(tmp_path):
    for name in ("from", "from/below", "to"):
        (tmp_path / name).mkdir()
    mount.mount("a", f"{tmp_path}/from/below", "tmpfs")
    with mount.open_tree(f"{tmp_path}/from", clone=True, recursive=True) as tree:
        mount.mount_setattr(tree.fileno(), set=mount.MOUNT_ATTR_RDONLY, recursive=True)
        mount.mount_setattr(tree.fileno(), propagation=mount.MS_PRIVATE, recursive=True)
        with files.open_fd(f"{tmp_path}/to", os.O_PATH) as place:
            mount.move_mount(tree.fileno(), to_fd=place.fileno())
    below = found(f"{tmp_path}/to/below")
    assert below is not None
    assert "ro" in below.options.split(",")
    mount.umount(f"{tmp_path}/to", flags=mount.MNT_DETACH)
    mount.umount(f"{tmp_path}/from/below")


def test_an_idmapped_mount(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    mount.mount("a", f"{tmp_path}/from", "tmpfs")
    (tmp_path / "from" / "file").write_text("")
    reader, writer = os.pipe()

    def entry():
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)

    child = process.clone(entry, flags=process.CLONE_NEWUSER)
    os.close(reader)
    for name in ("uid_map", "gid_map"):
        files.write_text(f"/proc/{child.pid}/{name}", "0 100000 65536")
    with files.open_fd(f"/proc/{child.pid}/ns/user", os.O_RDONLY) as userns:
        with mount.open_tree(f"{tmp_path}/from", clone=True) as tree:
            mount.mount_setattr(tree.fileno(), userns_fd=userns.fileno())
            mount.move_mount(tree.fileno(), f"{tmp_path}/to")
    assert os.stat(tmp_path / "to" / "file").st_uid == 100000
    os.close(writer)
    assert process.wait_pidfd(child.pidfd.fileno()) == process.ExitStatus(exited=True, value=0)
    mount.umount(f"{tmp_path}/to")
    mount.umount(f"{tmp_path}/from")


def test_pivot_root(tmp_path):
    def entry():
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)
        mount.mount("root", str(tmp_path), "tmpfs")
        os.chdir(tmp_path)
        mount.pivot_root(".", ".")
        mount.umount(".", flags=mount.MNT_DETACH)
        os.chdir("/")
        os._exit(len(os.listdir("/")))

    child = process.clone(entry, flags=process.CLONE_NEWNS)
    assert process.wait_pidfd(child.pidfd.fileno()) == process.ExitStatus(exited=True, value=0)


def test_remove_tree_stops_at_a_mount_of_the_same_device(tmp_path):
    for name in ("tree/a/mounted", "precious"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "precious" / "file").write_text("")
    mount.mount(f"{tmp_path}/precious", f"{tmp_path}/tree/a/mounted", flags=mount.MS_BIND)
    for place in ("tree", "tree/a/mounted"):
        with pytest.raises(OSError) as caught:
            files.remove_tree(f"{tmp_path}/{place}")
        assert caught.value.errno == errno.EXDEV
    assert (tmp_path / "precious" / "file").exists()
    mount.umount(f"{tmp_path}/tree/a/mounted")
    files.remove_tree(f"{tmp_path}/tree")


def test_a_terminal_of_another_devpts(tmp_path):
    mount.mount("devpts", str(tmp_path), "devpts", data="newinstance,ptmxmode=0666")
    with files.open_fd(str(tmp_path), os.O_RDONLY) as devpts:
        master, terminal, name = files.openpty_in(devpts.fileno())
    assert name == "pts/0"
    status = os.stat(tmp_path / "0")
    assert os.path.samestat(os.fstat(terminal.fileno()), status)
    master.close()
    terminal.close()
    mount.umount(str(tmp_path))


def test_nodes_with_a_device_number(tmp_path):
    mount.mount("dev", str(tmp_path), "tmpfs")
    with files.open_fd(str(tmp_path), os.O_PATH) as fd:
        files.mknod("null", 0o20666, os.makedev(1, 3), dir_fd=fd.fileno())
    assert os.stat(tmp_path / "null").st_rdev == os.makedev(1, 3)
    mount.umount(str(tmp_path))
