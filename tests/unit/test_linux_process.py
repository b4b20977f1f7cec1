"""Processes without privilege: clone and its child, pidfds, signals, limits, the title."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from atoll.linux import files, libc, process
from atoll.linux.process import ExitStatus


def wait(child):
    with child.pidfd:
        return process.wait_pidfd(child.pidfd.fileno())


def in_child(function):
    """Run a check in a process of its own, where it may change what it likes."""

    def entry():
        function()
        os._exit(0)

    assert wait(process.clone(entry)) == ExitStatus(exited=True, value=0)


# ------------------------------------------------------------------------------------------ clone
def test_the_child_runs_the_entry_and_nothing_else(tmp_path):
    log = tmp_path / "log"

    def entry():
        os.write(fd, b"child\n")
        raise LookupError("a fault between clone and exec")

    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        child = process.clone(entry)
    finally:
        os.write(fd, b"clean-up\n")
        os.close(fd)
    assert wait(child) == ExitStatus(exited=True, value=1)
    assert log.read_text().splitlines().count("clean-up") == 1
    assert "child" in log.read_text()


def test_the_last_words_of_a_child(capfd):
    def entry():
        files.mkdir("/nonexistent/x", 0o755)

    assert wait(process.clone(entry)).value == 1
    text = capfd.readouterr().err
    assert "between clone and exec" in text
    assert "in entry" in text
    assert "FileNotFoundError" in text
    assert "mkdir(2): path='/nonexistent/x'" in text


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), MemoryError()])  # fmt: skip
def test_no_exception_gets_out_of_the_child(error, capfd):
    def entry():
        raise error

    assert wait(process.clone(entry)) == ExitStatus(exited=True, value=1)


def test_an_entry_that_returns_is_a_failure():
    assert wait(process.clone(lambda: None)) == ExitStatus(exited=True, value=1)


def test_exec_in_the_child():
    status = wait(process.clone(lambda: os.execv("/bin/sh", ["sh", "-c", "exit 42"])))
    assert status == ExitStatus(exited=True, value=42)
    assert (status.shell, status.wait_status) == (42, 42 << 8)


def test_a_killed_child():
    status = wait(process.clone(lambda: os.kill(os.getpid(), 9)))
    assert status == ExitStatus(exited=False, value=9)
    assert (status.shell, status.wait_status) == (137, 9)
    assert os.waitstatus_to_exitcode(status.wait_status) == -9


def test_python_works_in_the_child():
    def check():
        ran: list[int] = []
        thread = threading.Thread(target=ran.append, args=(1,))
        thread.start()
        thread.join()
        assert ran == [1]
        assert subprocess.check_output(["/bin/echo", "nested"]) == b"nested\n"

    in_child(check)


def test_a_clone_in_a_clone():
    in_child(lambda: in_child(lambda: os._exit(0)))


def test_the_fork_hooks_run_on_both_sides():
    code = """if True:
        import os
        from atoll.linux import process
        seen = []
        for when in ("before", "after_in_parent", "after_in_child"):
            os.register_at_fork(**{when: lambda when=when: seen.append(when)})
        child = process.clone(lambda: os._exit(len(seen) * 10 + seen.index("after_in_child")))
        status = process.wait_pidfd(child.pidfd.fileno())
        print(seen, status.value)
        try:
            process.clone(print, flags=1 << 40)
        except OSError as error:
            print(seen[2:], error.errno)
        """
    done = python(code)
    assert (
        done.stdout
        == f"['before', 'after_in_parent'] 21\n['before', 'after_in_parent'] {errno.EINVAL}\n"
    )


def python(code, **options):
    source = os.path.dirname(os.path.dirname(os.path.dirname(process.__file__)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
        **options,
    )


def test_the_signal_mask_survives_on_both_sides():
    old = process.set_signal_mask(process.signal_bits(process.SIGUSR2))
    try:
        in_child(lambda: os._exit(process.block_signals(0) != process.signal_bits(12)))
        assert process.set_signal_mask(old) == process.signal_bits(process.SIGUSR2)
    finally:
        process.set_signal_mask(old)
    assert process.block_signals(0) == old


def test_a_process_with_threads_is_refused():
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert process.thread_count() == 2
        with pytest.raises(RuntimeError):
            process.clone(lambda: None)
    finally:
        go.set()
        thread.join()


def test_a_failed_clone_leaves_python_and_signals_as_they_were():
    old = process.block_signals(0)
    with pytest.raises(OSError) as caught:
        process.clone(lambda: None, flags=1 << 40)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.__notes__ == ["clone3(2): flags=0x10000001000 exit_signal=17 cgroup=None"]
    assert process.block_signals(0) == old
    assert wait(process.clone(lambda: os._exit(0))).value == 0


def test_a_child_of_the_parent(tmp_path):
    def entry():
        child = process.clone(lambda: os._exit(9), flags=process.CLONE_PARENT)
        (tmp_path / "pid").write_text(str(child.pid))
        try:
            process.wait_pidfd(child.pidfd.fileno())
        except ChildProcessError:
            os._exit(0)

    assert wait(process.clone(entry)).value == 0
    with process.pidfd_open(int((tmp_path / "pid").read_text())) as pidfd:
        assert process.wait_pidfd(pidfd.fileno()) == ExitStatus(exited=True, value=9)


# ------------------------------------------------------------------------------------------ pidfds
def test_waiting_without_blocking_and_without_reaping():
    reader, writer = os.pipe()

    def entry():
        os.close(writer)
        os.read(reader, 1)
        os._exit(3)

    child = process.clone(entry)
    pidfd = child.pidfd.fileno()
    assert process.wait_pidfd(pidfd, block=False) is None
    process.pidfd_send_signal(pidfd, 0)
    os.close(writer)
    os.close(reader)
    assert process.wait_pidfd(pidfd, reap=False) == ExitStatus(exited=True, value=3)
    assert process.wait_pidfd(pidfd, block=False) == ExitStatus(exited=True, value=3)
    with pytest.raises(ChildProcessError):
        process.wait_pidfd(pidfd)
    with pytest.raises(ProcessLookupError):
        process.pidfd_send_signal(pidfd, 0)


def test_a_child_without_exit_signal_can_be_waited_for():
    assert wait(process.clone(lambda: os._exit(4), exit_signal=0)).value == 4


def test_the_descriptor_of_another_process():
    with process.pidfd_open(os.getpid()) as pidfd, files.open_fd("/dev/null", os.O_RDONLY) as fd:
        with process.pidfd_getfd(pidfd.fileno(), fd.fileno()) as got:
            assert got.fileno() != fd.fileno()
            assert os.path.samestat(os.fstat(got.fileno()), os.fstat(fd.fileno()))


# ----------------------------------------------------------------------------------------- signals
def test_signal_numbers_are_pythons():
    for name, number in process.SIGNALS.items():
        if name not in ("SIGRTMIN", "SIGRTMAX"):
            assert getattr(signal, name, number) == number
    assert (process.SIGRTMIN, process.SIGRTMAX) == (signal.SIGRTMIN, signal.SIGRTMAX)


def test_signals_by_descriptor():
    bits = process.signal_bits(process.SIGUSR1, process.SIGCHLD)
    old = process.block_signals(bits)
    try:
        with process.signalfd(process.signal_bits(process.SIGUSR1)) as fd:
            assert process.read_signal(fd.fileno()) is None
            os.kill(os.getpid(), process.SIGUSR1)
            info = process.read_signal(fd.fileno())
            assert info is not None
            assert (info.signal, info.pid, info.uid) == (10, os.getpid(), os.getuid())
            with process.signalfd(bits, fd.fileno()) as again:
                assert again.fileno() != fd.fileno()
            child = process.clone(lambda: os._exit(6))
            process.wait_pidfd(child.pidfd.fileno(), reap=False)
            info = process.read_signal(fd.fileno())
            assert info is not None
            assert (info.signal, info.pid, info.status) == (17, child.pid, 6)
            assert info.code == os.CLD_EXITED
            wait(child)
    finally:
        process.set_signal_mask(old)


def test_signals_are_reset_for_an_exec():
    def ignored():
        return int(files.read_text("/proc/self/status").split("SigIgn:\t")[1].split("\n")[0], 16)

    def check():
        process.ignore_signal(process.SIGHUP)
        assert ignored() & process.signal_bits(process.SIGPIPE, process.SIGHUP)
        process.default_signal(process.SIGHUP)
        assert not ignored() & process.signal_bits(process.SIGHUP)
        process.reset_signals()
        internal = process.signal_bits(32, 33)  # the C library's own, which nobody may touch
        assert ignored() & ~internal == 0

    in_child(check)


# -------------------------------------------------------------------------------- prctl and limits
def test_prctl():
    def check():
        process.set_name("a-name-of-more-than-fifteen")
        assert files.read_text("/proc/self/comm") == "a-name-of-more-\n"
        process.set_death_signal(process.SIGTERM)
        assert process.get_death_signal() == process.SIGTERM
        process.set_dumpable(False)
        assert process.prctl(process.PR_GET_DUMPABLE) == 0
        process.no_new_privs()
        assert "NoNewPrivs:\t1" in files.read_text("/proc/self/status")
        process.ambient_clear()
        assert process.bounding_has(0) in (True, False)

    in_child(check)


def test_capabilities_are_those_of_proc():
    status = files.read_text("/proc/self/status")
    sets = process.capabilities()
    for letter, mask in (("Eff", sets.effective), ("Prm", sets.permitted), ("Inh", sets.inheritable)):  # fmt: skip
        assert int(status.split(f"Cap{letter}:\t")[1].split("\n")[0], 16) == mask
    assert len(process.CAPABILITIES) == 41
    assert process.CAPABILITIES.index("sys_admin") == 21

    def check():
        process.set_capabilities(process.Capabilities(effective=0, permitted=0, inheritable=0))
        assert process.capabilities().permitted == 0

    in_child(check)


def test_limits():
    def check():
        number = process.RLIMITS["nofile"]
        process.prlimit(0, number, 20, 30)
        assert process.get_prlimit(0, number) == (20, 30)
        process.prlimit(0, process.RLIMITS["core"], 0, process.get_prlimit(0, 4)[1])
        soft, hard = process.get_prlimit(0, process.RLIMITS["cpu"])
        process.prlimit(0, process.RLIMITS["cpu"], soft, hard)
        assert process.get_prlimit(0, process.RLIMITS["cpu"]) == (soft, hard)

    in_child(check)


@pytest.mark.parametrize("old", [False, True])
def test_close_range(monkeypatch, old):
    if old:
        numbers = {n: v for n, v in libc._NUMBERS.items() if n != "close_range"}
        monkeypatch.setattr(libc, "_NUMBERS", numbers)

    def check():
        keep, drop, last = (os.dup(2) for _ in range(3))
        os.set_inheritable(keep, True)
        process.close_range(keep, keep, cloexec=True)
        assert not os.get_inheritable(keep)
        process.close_range(drop, last)
        for fd in (drop, last):
            with pytest.raises(OSError):
                os.fstat(fd)

    in_child(check)


def test_namespace_names():
    flags = process.CLONE_NEWNS | process.CLONE_NEWPID
    assert process.namespace_names(flags) == "CLONE_NEWNS|CLONE_NEWPID"
    assert process.namespace_names(0) == "0"


# ------------------------------------------------------------------------------------------- title
TITLE = """if True:
    import os, subprocess, sys
    from atoll.linux import process
    os.environ["LATE"] = "set"
    for title in sys.argv[1:]:
        process.set_process_title(title)
        print(open("/proc/self/cmdline", "rb").read(), flush=True)
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.dup2(writer, 1)
            os.execv("/usr/bin/env", ["env", "-0"])  # the C library's own environment
        os.close(writer)
        inherited = os.fdopen(reader, "rb").read()
        assert sorted(inherited.decode().split("\\0")[:-1]) == sorted(f"{k}={v}" for k, v in os.environ.items())
        if os.path.exists("/bin/ps"):
            ps = subprocess.check_output(["ps", "-ww", "-o", "args=", "-p", str(os.getpid())], text=True)
            assert ps.rstrip("\\n") == title[: len(ps) - 1], (ps, title)
    """


def test_the_title_is_what_ps_shows():
    """Shorter than the arguments, as long, longer (over the environment), and shorter again."""
    titles = ["[lxc monitor] /var/lib/lxc c1", "[lxc monitor] " + "p" * 400, "short"]
    source = os.path.dirname(os.path.dirname(os.path.dirname(process.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", TITLE, *titles, "x" * 20],
        env={"PYTHONPATH": source, "PATH": os.environ["PATH"], "ROOM": "r" * 2000},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = [repr(title.encode() + b"\0") for title in [*titles, "x" * 20]]
    assert done.stdout.splitlines() == expected


def test_a_title_without_room_is_cut():
    code = "from atoll.linux import process; process.set_process_title('t' * 100000)\n"
    code += "print(len(open('/proc/self/cmdline', 'rb').read()))"
    assert 10 < int(python(code).stdout) <= 4096
