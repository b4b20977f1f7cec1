"""Files without privilege: descriptors, paths beneath a root, atomic writes, removing trees, terminals, fd passing."""

from __future__ import annotations

import errno
import os
import resource
import stat

import pytest

from atoll.linux import files, libc, process


def open_descriptors():
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture
def root(tmp_path):
    """A container's root with links that want to lead out."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("host")
    top = tmp_path / "root"
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "passwd").write_text("container")
    (top / "absolute").symlink_to("/etc/passwd")
    (top / "upwards").symlink_to("../../../../../../etc/passwd")
    (top / "out").symlink_to(tmp_path / "outside")
    (top / "dangling").symlink_to("/nothing/here")
    (top / "loop").symlink_to("loop")
    (top / "etclink").symlink_to("etc")
    with files.open_fd(str(top), os.O_PATH | os.O_DIRECTORY) as fd:
        yield fd.fileno()


@pytest.fixture
def old_kernel(monkeypatch):
    """A kernel before 5.6: no openat2."""
    numbers = {name: number for name, number in libc._NUMBERS.items() if name != "openat2"}
    monkeypatch.setattr(libc, "_NUMBERS", numbers)


def contents(fd):
    with fd:
        return os.read(fd.fileno(), 100)


# ------------------------------------------------------------------------------------ descriptors
def test_an_owned_descriptor_closes_once():
    fd = files.open_fd("/dev/null", os.O_RDONLY)
    number = fd.fileno()
    assert fd.path == f"/proc/self/fd/{number}"
    assert not os.get_inheritable(number)
    fd.close()
    fd.close()
    assert fd.closed
    assert repr(fd) == "OwnedFd(closed)"
    with pytest.raises(ValueError):
        fd.fileno()


def test_a_detached_descriptor_stays_open():
    with files.open_fd("/dev/null", os.O_RDONLY) as fd:
        number = fd.detach()
    os.fstat(number)
    os.close(number)


def test_a_forgotten_descriptor_is_closed():
    before = open_descriptors()
    files.open_fd("/dev/null", os.O_RDONLY)
    assert open_descriptors() == before


def test_open_flags_by_name():
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    assert files.open_flags(flags) == "O_RDWR|O_CREAT|O_EXCL"
    assert files.open_flags(os.O_TMPFILE | os.O_WRONLY) == "O_WRONLY|O_TMPFILE"


# ---------------------------------------------------------------------------------- beneath a root
@pytest.mark.parametrize(
    "path",
    ["etc/passwd", "/etc/passwd", "../../etc/passwd", "absolute", "upwards", "etclink/passwd", "etc/../etc/passwd"],
)  # fmt: skip
def test_no_path_leads_out(root, path):
    assert contents(files.open_beneath(root, path, os.O_RDONLY)) == b"container"


def test_a_link_to_the_host_finds_nothing(root):
    with pytest.raises(FileNotFoundError) as caught:
        files.open_beneath(root, "out/secret", os.O_RDONLY)
    assert caught.value.filename == "out/secret"
    assert "resolve=0x12" in caught.value.__notes__[0]


def test_links_can_be_refused(root):
    for path in ("absolute", "etclink/passwd"):
        with pytest.raises(OSError) as caught:
            files.open_beneath(root, path, os.O_RDONLY, no_symlinks=True)
        assert caught.value.errno == errno.ELOOP


def test_magic_links_are_refused():
    with files.open_fd("/proc", os.O_PATH) as proc, pytest.raises(OSError) as caught:
        files.open_beneath(proc.fileno(), "self/root/etc/passwd", os.O_RDONLY)
    assert caught.value.errno in (errno.ELOOP, errno.EXDEV)


def test_a_mode_without_creation_is_no_error(root):
    files.open_beneath(root, "etc", os.O_RDONLY, 0o755).close()


@pytest.mark.parametrize("path", ["etc/passwd", "/etc//./passwd", "../etc/../../etc/passwd"])
def test_an_old_kernel_walks(root, old_kernel, path):
    before = open_descriptors()
    assert contents(files.open_beneath(root, path, os.O_RDONLY)) == b"container"
    assert open_descriptors() == before


@pytest.mark.parametrize("path", ["absolute", "upwards", "out", "out/secret", "etclink/passwd", "dangling", "loop"])  # fmt: skip
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH, os.O_WRONLY | os.O_CREAT])
def test_an_old_kernel_refuses_every_link(root, old_kernel, path, flags):
    before = open_descriptors()
    with pytest.raises(OSError) as caught:
        files.open_beneath(root, path, flags, 0o600)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert open_descriptors() == before


def test_an_old_kernel_opens_the_root_itself(root, old_kernel):
    for path in ("/", ".", "..", "/../."):
        with files.open_beneath(root, path, os.O_PATH) as fd:
            assert os.path.samestat(os.fstat(fd.fileno()), os.fstat(root))
    with pytest.raises(FileNotFoundError):
        files.open_beneath(root, "", os.O_PATH)


def test_an_old_kernel_may_still_open_a_link_itself(root, old_kernel):
    with files.open_beneath(root, "absolute", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd.fileno()).st_mode)


def test_a_race_is_tried_again_and_given_up(root, monkeypatch):
    tries = []

    def busy(name, *args):
        tries.append(name)
        raise libc.errno_error(errno.EAGAIN)

    monkeypatch.setattr(libc, "syscall", busy)
    with pytest.raises(BlockingIOError):
        files.open_beneath(root, "etc", os.O_PATH)
    assert len(tries) == files._RACES


def test_exists(root):
    assert files.exists_beneath(root, "absolute")
    for path in ("dangling", "loop", "nothing", "etc/passwd/x", "out/secret"):
        assert not files.exists_beneath(root, path)


def test_make_directories_beneath(root):
    assert files.make_directories(root, "/etclink/a/b") == ("etclink/a", "etclink/a/b")
    assert files.make_directories(root, "/etc/a/b") == ()
    assert files.exists_beneath(root, "etc/a/b")
    assert files.make_directories(root, "/") == ()
    with pytest.raises(NotADirectoryError):
        files.make_directories(root, "etc/passwd/x")
    with pytest.raises(FileNotFoundError):
        files.make_directories(root, "dangling/x")


def test_make_directories_on_the_host(tmp_path):
    place = f"{tmp_path}/a/b"
    assert files.make_directories(None, place, 0o700) == (f"{tmp_path}/a", place)
    assert files.make_directories(None, place) == ()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        files.make_directories(None, f"{tmp_path}/file")


def test_make_file(root, tmp_path):
    assert files.make_file(root, "etc/new") is True
    assert files.make_file(root, "etc/new") is False
    assert files.make_file(root, "dangling") is False
    assert files.make_file(None, f"{tmp_path}/new", 0o600) is True
    with pytest.raises(FileNotFoundError):
        files.make_file(root, "missing/new")


# ---------------------------------------------------------------------------------------- contents
def test_write_atomic_replaces_and_has_the_mode(tmp_path):
    path = f"{tmp_path}/file"
    mask = os.umask(0o077)
    try:
        files.write_atomic(path, b"one", 0o644)
        files.write_atomic(path, b"two" * 100000, 0o640)
    finally:
        os.umask(mask)
    assert (tmp_path / "file").read_bytes() == b"two" * 100000
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["open", "write", "chmod", "fsync", "rename"])
def test_a_failed_atomic_write_leaves_nothing(tmp_path, monkeypatch, call):
    (tmp_path / "file").write_text("old")
    before = open_descriptors()

    def fail(name, _args):
        if name == call:
            raise libc.errno_error(errno.ENOSPC)

    monkeypatch.setattr(libc, "observer", fail)
    with pytest.raises(OSError) as caught:
        files.write_atomic(f"{tmp_path}/file", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"
    assert open_descriptors() == before


def test_read_text(tmp_path):
    (tmp_path / "file").write_bytes(b"a\xff\n")
    assert files.read_text(f"{tmp_path}/file") == "a\udcff\n"
    assert files.read_text(f"{tmp_path}/file", limit=3) == "a\udcff\n"
    with pytest.raises(OSError) as caught:
        files.read_text(f"{tmp_path}/file", limit=2)
    assert caught.value.errno == errno.EFBIG


def test_write_text_neither_makes_nor_shortens(tmp_path):
    (tmp_path / "file").write_text("abc")
    files.write_text(f"{tmp_path}/file", "X")
    assert (tmp_path / "file").read_text() == "Xbc"
    with pytest.raises(FileNotFoundError):
        files.write_text(f"{tmp_path}/none", "X")


def test_chmod_and_chown_of_an_o_path_descriptor(tmp_path):
    (tmp_path / "file").write_text("")
    with files.open_fd(f"{tmp_path}/file", os.O_PATH) as fd:
        files.chown(fd.fileno(), -1, os.getgid())
        files.chown(f"{tmp_path}/file", os.getuid(), -1)
        files.chmod(fd.fileno(), 0o4711)  # after them: a change of owner clears the set-uid bit
    assert stat.S_IMODE(os.stat(f"{tmp_path}/file").st_mode) == 0o4711
    with pytest.raises(FileNotFoundError):
        files.chown(f"{tmp_path}/none", 0, 0)


def test_nodes_and_links(tmp_path):
    with files.open_fd(str(tmp_path), os.O_PATH) as fd:
        files.mknod("fifo", stat.S_IFIFO | 0o600, dir_fd=fd.fileno())
        files.symlink("fifo", "link", dir_fd=fd.fileno())
        files.rename("link", "other", old_dir_fd=fd.fileno(), new_dir_fd=fd.fileno())
        files.mkdir("directory", 0o755, dir_fd=fd.fileno())
        assert sorted(os.listdir(tmp_path)) == ["directory", "fifo", "other"]
        files.unlink("fifo", dir_fd=fd.fileno())
        files.unlink("other", dir_fd=fd.fileno())
        files.rmdir("directory", dir_fd=fd.fileno())
    assert os.listdir(tmp_path) == []


def test_a_lock_keeps_others_out(tmp_path):
    with files.open_fd(f"{tmp_path}/lock", os.O_RDWR | os.O_CREAT, 0o600) as fd:
        files.lock_file(fd.fileno(), exclusive=True, block=False)

        def try_it():
            with files.open_fd(f"{tmp_path}/lock", os.O_RDWR) as mine:
                try:
                    files.lock_file(mine.fileno(), exclusive=True, block=False)
                except (BlockingIOError, PermissionError):
                    os._exit(7)

        child = process.clone(try_it)
        assert process.wait_pidfd(child.pidfd.fileno()) == process.ExitStatus(exited=True, value=7)


# ------------------------------------------------------------------------------------ remove_tree
def test_remove_tree(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("")
    tree = tmp_path / "tree"
    for name in ("a/b/c", "a/d", "e", "f/g"):
        (tree / name).mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "a" / "b" / "out").symlink_to(outside)
    (tree / "direct").symlink_to(outside)
    before = open_descriptors()
    files.remove_tree(f"{tree}/")
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "keep").exists()
    assert open_descriptors() == before


def test_remove_tree_on_an_old_kernel(tmp_path, old_kernel):
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "link").symlink_to("/")
    files.remove_tree(f"{tmp_path}/tree")
    assert os.listdir(tmp_path) == []


def test_remove_tree_is_not_stopped_by_depth(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = files.open_fd(str(tmp_path), os.O_RDONLY)
    for _ in range(1500):
        files.mkdir("d", 0o700, dir_fd=here.fileno())
        here = files.open_fd("d", os.O_RDONLY, dir_fd=here.fileno())
    here.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 64), hard))
    try:
        files.remove_tree(f"{tmp_path}/d")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_remove_tree_refuses_links_and_files(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("file", "link", "none"):
        with pytest.raises(OSError) as caught:
            files.remove_tree(f"{tmp_path}/{name}")
        assert f"in remove_tree('{tmp_path}/{name}')" in caught.value.__notes__
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "real"]


@pytest.mark.parametrize("fails", range(8))
def test_a_failed_remove_tree_leaks_nothing(tmp_path, monkeypatch, fails):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "file").write_text("")
    before = open_descriptors()
    calls = []

    def fail(name, _args):
        calls.append(name)
        if len(calls) == fails + 1:
            raise libc.errno_error(errno.EIO)

    monkeypatch.setattr(libc, "observer", fail)
    try:
        files.remove_tree(f"{tmp_path}/tree")
    except OSError:
        pass
    assert os.path.exists(tmp_path / "tree") == (fails < len(calls))
    assert open_descriptors() == before


# -------------------------------------------------------------------------------------- terminals
def test_a_pseudo_terminal():
    master, terminal, name = files.openpty()
    with master, terminal:
        assert name == f"pts/{os.path.basename(os.ttyname(terminal.fileno()))}"
        assert not os.get_inheritable(terminal.fileno())
        files.set_window_size(master.fileno(), 24, 80)
        assert files.window_size(terminal.fileno()) == (24, 80)
        old = files.make_raw(terminal.fileno())
        os.write(master.fileno(), b"\x03\r")
        assert os.read(terminal.fileno(), 10) == b"\x03\r"
        os.write(terminal.fileno(), b"\n")
        assert os.read(master.fileno(), 10) == b"\n"
        files.restore_terminal(terminal.fileno(), old)
        os.write(terminal.fileno(), b"\n")
        assert os.read(master.fileno(), 10) == b"\r\n"


def test_what_is_no_terminal(tmp_path):
    with files.open_fd("/dev/null", os.O_RDWR) as fd:
        assert files.window_size(fd.fileno()) is None
        with pytest.raises(OSError) as caught:
            files.make_raw(fd.fileno())
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.__notes__[0].startswith("tcgetattr(3)")


# -------------------------------------------------------------------------------------- fd passing
def test_messages_stay_whole_and_carry_descriptors():
    before = open_descriptors()
    left, right = files.seqpacket_pair()
    with left, right, files.open_fd("/dev/null", os.O_RDONLY) as fd:
        assert not os.get_inheritable(left.fileno())
        left.send(b"one", [fd.fileno(), fd.fileno()])
        left.send(b"two")
        data, received = right.receive()
        assert data == b"one"
        for got in received:
            assert os.path.samestat(os.fstat(got.fileno()), os.fstat(fd.fileno()))
            assert not os.get_inheritable(got.fileno())
            got.close()
        assert len(received) == 2
        assert right.receive() == (b"two", [])
        left.close()
        assert right.receive() == (b"", [])
        with pytest.raises(BrokenPipeError):
            right.send(b"three")
    assert open_descriptors() == before


@pytest.mark.parametrize(("max_bytes", "max_fds"), [(2, 2), (100, 1), (100, 0)])
def test_a_message_that_is_too_large_leaks_no_descriptor(max_bytes, max_fds):
    left, right = files.seqpacket_pair()
    with left, right, files.open_fd("/dev/null", os.O_RDONLY) as fd:
        before = open_descriptors()
        left.send(b"long", [fd.fileno()] * 3)
        with pytest.raises(OSError) as caught:
            right.receive(max_bytes, max_fds)
        assert caught.value.errno == errno.EMSGSIZE
        assert open_descriptors() == before
