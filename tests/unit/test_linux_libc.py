"""Calls, notes and the observer: every function that changes something can be made to fail, and says what it did."""

from __future__ import annotations

import errno
import os

import pytest

from atoll.linux import files, libc, mount, netdevice, process

SETS = process.Capabilities(effective=0, permitted=0, inheritable=0)
# Each is stopped by the observer before its call is made, so nothing happens here.
CALLS = {
    "clone3(2)": lambda: process.clone(lambda: None),
    "posix_spawn(3)": lambda: process.spawn("/bin/true", ("true",), {}),
    "pidfd_open(2)": lambda: process.pidfd_open(1),
    "pidfd_send_signal(2)": lambda: process.pidfd_send_signal(99, 0),
    "pidfd_getfd(2)": lambda: process.pidfd_getfd(99, 0),
    "unshare(2)": lambda: process.unshare(process.CLONE_NEWNS),
    "setns(2)": lambda: process.setns(99),
    "sethostname(2)": lambda: process.sethostname("x"),
    "setdomainname(2)": lambda: process.setdomainname("x"),
    "prctl(2)": process.no_new_privs,
    "capset(2)": lambda: process.set_capabilities(SETS),
    "setgroups(2)": lambda: process.set_ids(1, 1, (1,)),
    "setresgid(2)": lambda: process.set_ids(1, 1, None),
    "setresuid(2)": lambda: process.set_ids(1, None, None),
    "keyctl(2)": process.join_session_keyring,
    "personality(2)": lambda: process.personality(8),
    "reboot(2)": lambda: process.reboot(process.RB_DISABLE_CAD),
    "rt_sigprocmask(2)": lambda: process.block_signals(1),
    "signal(2)": process.reset_signals,
    "signalfd(2)": lambda: process.signalfd(1),
    "prlimit(2)": lambda: process.prlimit(0, 7, 1, 1),
    "close_range(2)": lambda: process.close_range(1000, 1001),
    "ioctl(2)": lambda: process.set_controlling_terminal(99),
    "ioctl(2): request=SIOCSIFFLAGS": netdevice.bring_up_loopback,
    "mount(2)": lambda: mount.mount("a", "/b", "c"),
    "umount2(2)": lambda: mount.umount("/b"),
    "pivot_root(2)": lambda: mount.pivot_root("/a", "/b"),
    "open_tree(2)": lambda: mount.open_tree("/", clone=True),
    "move_mount(2)": lambda: mount.move_mount(99, "/b"),
    "fsopen(2)": lambda: mount.fsopen("tmpfs"),
    "fsconfig(2)": lambda: mount.fsconfig_create(99),
    "fsmount(2)": lambda: mount.fsmount(99),
    "mount_setattr(2)": lambda: mount.mount_setattr("/", set=mount.MOUNT_ATTR_RDONLY),
    "open(2)": lambda: files.open_fd("/dev/null", os.O_RDONLY),
    "openat2(2)": lambda: files.open_beneath(99, "x", os.O_RDONLY),
    "mkdir(2)": lambda: files.mkdir("/nonexistent/x", 0o755),
    "rmdir(2)": lambda: files.rmdir("/nonexistent/x"),
    "unlink(2)": lambda: files.unlink("/nonexistent/x"),
    "rename(2)": lambda: files.rename("/nonexistent/x", "/nonexistent/y"),
    "symlink(2)": lambda: files.symlink("x", "/nonexistent/x"),
    "mknod(2)": lambda: files.mknod("/nonexistent/x", 0o600),
    "fchownat(2)": lambda: files.chown("/nonexistent/x", 0, 0),
    "fchmodat(2)": lambda: files.chmod("/nonexistent/x", 0o600),
    "fcntl(2)": lambda: files.lock_file(99, exclusive=True, block=False),
    "tcsetattr(3)": lambda: files.restore_terminal(99, []),
    "socketpair(2)": files.seqpacket_pair,
}


@pytest.fixture
def seen(monkeypatch):
    calls: list[tuple[str, tuple[object, ...]]] = []
    monkeypatch.setattr(libc, "observer", lambda name, args: calls.append((name, args)))
    return calls


@pytest.mark.parametrize("call", CALLS)
def test_an_injected_fault_looks_like_the_calls_own(call, monkeypatch):
    def refuse(_name, _args):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(libc, "observer", refuse)
    with pytest.raises(OSError) as caught:
        CALLS[call]()
    assert caught.value.errno == errno.EDQUOT
    assert caught.value.__notes__[0].startswith(f"{call}: " if call[-1] == ")" else call)


def test_a_fault_without_an_errno_is_noted_too(monkeypatch):
    def refuse(_name, _args):
        raise BlockingIOError

    monkeypatch.setattr(libc, "observer", refuse)
    with pytest.raises(BlockingIOError):
        files.mkdir("/nonexistent/x", 0o755)


def test_a_real_failure_has_class_file_names_and_note():
    with pytest.raises(FileNotFoundError) as caught:
        files.rename("/nonexistent/a", "/nonexistent/b")
    assert (caught.value.filename, caught.value.filename2) == ("/nonexistent/a", "/nonexistent/b")
    assert caught.value.__notes__ == ["rename(2): old='/nonexistent/a' new='/nonexistent/b'"]


def test_the_note_of_a_mount_is_the_call_as_made():
    with pytest.raises(OSError) as caught:
        mount.mount("proc", "/nonexistent/proc", "proc", flags=mount.MS_NOSUID | mount.MS_NODEV)
    assert caught.value.filename == "/nonexistent/proc"
    call = "mount(2): source='proc' target='/nonexistent/proc' fstype='proc'"
    assert caught.value.__notes__ == [f"{call} flags=MS_NOSUID|MS_NODEV data=None"]


def test_the_observer_sees_calls_in_order(seen, tmp_path):
    files.mkdir(f"{tmp_path}/a", 0o700)
    files.write_atomic(f"{tmp_path}/a/b", b"1")
    names = [name for name, _args in seen]
    assert names == ["mkdir", "open", "write", "chmod", "fsync", "rename"]


def test_an_unknown_machine_has_no_system_calls(monkeypatch):
    monkeypatch.setattr(libc, "_NUMBERS", {})
    with pytest.raises(OSError) as caught:
        mount.pivot_root("/a", "/b")
    assert caught.value.errno == errno.ENOSYS
    assert "pivot_root" in str(caught.value)
    with pytest.raises(OSError):
        process.clone(lambda: None)


def test_both_tables_know_the_same_calls():
    assert sorted(libc._X86_64) == sorted(libc._AARCH64)
    assert len(set(libc._AARCH64.values())) == len(libc._AARCH64)


def test_a_zero_byte_is_refused():
    with pytest.raises(ValueError):
        libc.encode("a\0b")
    with pytest.raises(ValueError):
        mount.umount("/a\0b")


def test_a_library_that_is_not_there():
    with pytest.raises(OSError):
        libc.Library("libnone.so.99", {})


def test_a_function_by_its_prototype():
    library = libc.Library(None, {"strnlen": "Lsp"})
    assert library.function("strnlen")(b"four", 99) == 4
    assert library.function("strnlen") is library.function("strnlen")
