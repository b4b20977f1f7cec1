"""What lxc-start, lxc-execute, lxc-create and lxc-destroy do besides what they print: each test with Debian's tools, then with ours."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import stat
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

from abilities import needs
from conformance import tools

if TYPE_CHECKING:
    from collections.abc import Generator

NAMES = ("net", "ipc", "uts", "pid")


@pytest.fixture
def by(maker_tools: tools.Tools, rootfs: str) -> Generator[tools.Tools, None, None]:
    """The maker's tools; the containers of a test are ended with it."""
    yield maker_tools
    for name in maker_tools.must("lxc-ls -1 --active").split():
        maker_tools.kill(name)
    for name in os.listdir(f"{rootfs}/tmp"):
        os.unlink(f"{rootfs}/tmp/{name}")


def define(
    by: tools.Tools, rootfs: str, *lines: str, name: str = "c", base: str = tools.CONFIG
) -> str:
    return tools.define(by.lxcpath, name, rootfs, *lines, base=base)


def parent(pid: int) -> int:
    return int(re.findall(r"PPid:\t(\d+)", tools.read(f"/proc/{pid}/status"))[0])


def descriptors(pid: int) -> dict[int, str]:
    return {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


def namespace(pid: int | str, name: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino


def ready(by: tools.Tools, name: str = "c") -> int:
    """Started and ready: init's pid."""
    by.must(f"lxc-wait -n {name} -s RUNNING -t 10")
    pid = by.pid(name)
    tools.await_ready(pid)
    return pid


# ------------------------------------------------------------------------------------ where it runs


def test_a_daemon(by: tools.Tools, rootfs: str) -> None:
    """Away from the terminal: a session of its own in /, with /dev/null, and the title that LXC gives it."""
    define(by, rootfs)
    assert by.run("lxc-start -n c", cwd="/usr") == tools.Done(0, "", "")
    monitor = parent(ready(by))
    assert parent(monitor) == 1
    assert os.getsid(monitor) == monitor
    assert os.readlink(f"/proc/{monitor}/cwd") == "/"
    assert {fd: descriptors(monitor)[fd] for fd in (0, 1, 2)} == dict.fromkeys(
        (0, 1, 2), "/dev/null"
    )
    assert tools.read(f"/proc/{monitor}/cmdline").rstrip("\0") == f"[lxc monitor] {by.lxcpath} c"
    assert "/lxc.monitor.c" in tools.read(f"/proc/{monitor}/cgroup")
    assert "/lxc.payload.c" in tools.read(f"/proc/{by.pid('c')}/cgroup")


def test_the_foreground(by: tools.Tools, rootfs: str) -> None:
    """The tool is the monitor; signals go on to init, a hang-up as SIGTERM."""
    define(by, rootfs)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPWR):
        tool = by.spawn("lxc-start -F -n c")
        assert parent(ready(by)) == tool.pid
        tool.send_signal(number)
        assert tool.wait(10) == 0
        assert tool.communicate() == ("", "")


def test_a_terminal(by: tools.Tools, rootfs: str) -> None:
    """-F on a terminal: what init prints is seen there, what is typed arrives, and the terminal is as before."""
    define(by, rootfs)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    tool = by.spawn(
        ["lxc-start", "-F", "-n", "c", "--", "/bin/sh", "-c", "echo hello; read line; echo got $line; poweroff -f"],
        stdin=slave, stdout=slave, stderr=slave, preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0)),
    )  # fmt: skip
    seen = until_seen(master, b"hello")
    os.write(master, b"word\r")
    seen += until_seen(master, b"got word")
    assert tool.wait(10) == 0
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def until_seen(fd: int, wanted: bytes, patience: float = 10.0) -> bytes:
    seen = b""
    while wanted not in seen:
        assert select.select([fd], [], [], patience)[0], seen
        seen += os.read(fd, 4096)
    return seen


def test_a_file_of_its_own(by: tools.Tools, rootfs: str) -> None:
    """-f: the container need not exist; -s comes on top."""
    file = tools.write(
        f"{by.lxcpath}/elsewhere.conf", tools.CONFIG.format(name="from-file", rootfs=rootfs)
    )
    by.start("nowhere", "-f", file, "-s", "lxc.uts.name=from-option", "-s", "lxc.environment = A=1")
    assert by.inside("nowhere", "hostname") == "from-option\n"
    assert by.inside("nowhere", "sh", "-c", "echo $A") == "1\n"
    assert by.must("lxc-ls -1 --active") == "nowhere\n"
    by.must("lxc-stop -k -n nowhere")
    assert not os.path.exists(f"{by.lxcpath}/nowhere")


def test_a_pidfile(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    path = f"{by.lxcpath}/pid"
    for words in (("-p", path), ("--pidfile", path)):
        by.start("c", *words)
        monitor = parent(ready(by))
        assert tools.read(path) == str(monitor)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        by.must("lxc-stop -k -n c")
        tools.until(lambda: not os.path.exists(path), "the pidfile is removed")
    tool = by.spawn(f"lxc-start -F -p {path} -n c")
    ready(by)
    assert tools.read(path) == str(tool.pid)
    tool.terminate()
    tool.wait(10)
    assert not os.path.exists(path)


# ------------------------------------------------------------------------------------------- the log

LINE = r"lxc-start (\S+) \d{14}\.\d{3} (TRACE|DEBUG|INFO|NOTICE|WARN|ERROR) {1,5}\S+ - \S+:\S+:\d+ - .*"


def test_a_log_file(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    path = f"{by.lxcpath}/new/directory/log"
    by.start("c", "-o", path, "-l", "DEBUG")
    by.must("lxc-stop -k -n c")
    lines = tools.read(path).splitlines()
    assert lines
    assert not [line for line in lines if not re.fullmatch(LINE, line)]
    assert {found.group(1) for line in lines if (found := re.fullmatch(LINE, line))} == {"c"}
    levels = {line.split()[3] for line in lines}
    assert {"INFO", "DEBUG"} <= levels
    assert "TRACE" not in levels
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640 or by.maker != tools.DEBIAN


def test_only_a_level(by: tools.Tools, rootfs: str) -> None:
    """-l without -o: LXCPATH/NAME/NAME.log; -o none: nowhere."""
    directory = define(by, rootfs)
    by.run("lxc-start -n c -l INFO -o none")
    by.must("lxc-stop -k -n c")
    assert not os.path.exists(f"{directory}/c.log")
    by.start("c", "-l", "INFO")
    by.must("lxc-stop -k -n c")
    assert re.fullmatch(LINE, tools.read(f"{directory}/c.log").splitlines()[0])
    os.unlink(f"{directory}/c.log")


def test_the_log_of_the_configuration(by: tools.Tools, rootfs: str) -> None:
    path = f"{by.lxcpath}/by-key"
    define(by, rootfs, f"lxc.log.file = {path}", "lxc.log.level = INFO")
    by.start("c")
    by.must("lxc-stop -k -n c")
    assert re.fullmatch(LINE, tools.read(path).splitlines()[0])
    size = os.stat(path).st_size
    other = f"{by.lxcpath}/by-option"
    by.start("c", "-o", other, "-l", "INFO")
    by.must("lxc-stop -k -n c")
    assert tools.read(other)
    assert os.stat(path).st_size == size


# ------------------------------------------------------------------------------------ descriptors


def test_inherited_descriptors(by: tools.Tools, rootfs: str) -> None:
    """A daemon closes them; -C as well; in the foreground they stay in the monitor. Init has none of them in any case."""
    define(by, rootfs)
    reader, writer = os.pipe()
    pipe = os.readlink(f"/proc/self/fd/{reader}")
    try:
        by.must("lxc-start -n c", fds=(reader,))
        pid = ready(by)
        assert pipe not in descriptors(pid).values()
        assert pipe not in descriptors(parent(pid)).values()
        by.must("lxc-stop -k -n c")
        for option, stays in (("-C", False), ("", True)):
            tool = by.spawn(f"lxc-start -F {option} -n c", pass_fds=(reader,))
            pid = ready(by)
            assert (pipe in descriptors(tool.pid).values()) == stays
            leaks = pipe in descriptors(pid).values()
            if by.maker == tools.DEBIAN:
                _name, leaks_too = differs("inherited descriptors", stays)
                assert leaks == leaks_too
            else:
                assert not leaks
            tool.terminate()
            tool.wait(10)
    finally:
        os.close(reader)
        os.close(writer)


def differs(name: str, what: object) -> tuple[str, object]:
    """A deliberate difference: its name in docs/differences.md, and what Debian's do."""
    return name, what


def test_listen_fds(by: tools.Tools, rootfs: str) -> None:
    """LISTEN_FDS=1: descriptor 3 is for init. Its environment does not say so: it begins empty."""
    define(by, rootfs, "lxc.environment = LISTEN_FDS=1")
    reader, writer = os.pipe()
    command = by.argv("lxc-start -n c")
    pipe = os.readlink(f"/proc/self/fd/{reader}")
    done = subprocess.run(
        ["sh", "-c", 'exec 3<&"$0"; exec "$@"', str(reader), *command], check=False, pass_fds=(reader,), capture_output=True,
        env=tools.environment({"LISTEN_FDS": "1"}),
    )  # fmt: skip
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0, done
    pid = ready(by)
    assert descriptors(pid).get(3) == pipe
    assert list(descriptors(pid).values()).count(pipe) == 1


# ------------------------------------------------------------------------------- shared namespaces


@pytest.mark.parametrize("form", ["name", "pid", "path"])
def test_shared_namespaces(by: tools.Tools, rootfs: str, form: str) -> None:
    define(by, rootfs, name="other")
    define(by, rootfs)
    by.start("other")
    other = ready(by, "other")
    for names in (("net",), ("ipc",), ("uts",), ("pid",), NAMES):
        value = {
            "name": lambda _n: "other",
            "pid": lambda _n: str(other),
            "path": lambda n: f"/proc/{other}/ns/{n}",
        }[form]
        by.start("c", *(f"--share-{name}={value(name)}" for name in names))
        pid = by.pid("c")
        for name in NAMES:
            assert (namespace(pid, name) == namespace(other, name)) == (name in names), name
        if "uts" in names:
            assert by.inside("c", "hostname") == "other\n"
        by.must("lxc-stop -k -n c")
    assert by.state("other") == "RUNNING"


def test_shared_by_key(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs, "lxc.namespace.share.net = other", "lxc.namespace.share.ipc = other")
    define(by, rootfs, name="other")
    assert by.run("lxc-start -n c").code == 1
    by.start("other")
    by.start("c")
    assert [namespace(by.pid("c"), n) == namespace(by.pid("other"), n) for n in NAMES] == [
        True,
        True,
        False,
        False,
    ]


# ------------------------------------------------------------------------------------------ rootfs


def test_the_rootfs_is_pinned(by: tools.Tools, rootfs: str) -> None:
    """Nobody can make its file system read-only meanwhile; and no file shows how."""
    place = f"{by.lxcpath}/disk"
    os.makedirs(place, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "disk", place], check=True)
    try:
        tools.make_rootfs(f"{place}/rootfs")
        define(by, f"{place}/rootfs", "lxc.init.cmd = /bin/sleep 1000")
        assert remount(place, "ro").returncode == 0
        assert remount(place, "rw").returncode == 0
        before = set(os.listdir(f"{place}/rootfs"))
        by.start("c")
        assert remount(place, "ro").returncode != 0
        assert set(os.listdir(f"{place}/rootfs")) == before
        by.must("lxc-stop -k -n c")
        assert remount(place, "ro").returncode == 0
    finally:
        by.kill("c")
        subprocess.run(["umount", place], check=True)


def remount(place: str, how: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["mount", "-o", f"remount,{how}", place], check=False, capture_output=True
    )


@pytest.mark.parametrize("backend", ["dir", "overlay"])
def test_no_mount_stays_on_a_shared_host(by: tools.Tools, rootfs: str, backend: str) -> None:
    """Where / is shared, as systemd makes it, what a start mounts must not be seen on the host."""
    directory = define(by, rootfs)
    if backend == "overlay":
        os.makedirs(f"{directory}/delta", exist_ok=True)
        define(by, rootfs, f"lxc.rootfs.path = overlay:{rootfs}:{directory}/delta")
    start, stop = (" ".join(by.argv(f"lxc-{verb} -n c")) for verb in ("start", "stop -k"))
    script = f"mount --make-rshared /; cat /proc/self/mountinfo; echo =; {start}; cat /proc/self/mountinfo; {stop}; echo =; cat /proc/self/mountinfo"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", script],
        check=True, capture_output=True, text=True, env=tools.environment(),
    )  # fmt: skip
    before, during, after = done.stdout.split("=\n")
    assert during == before
    assert after == before


@needs("overlay")
def test_an_overlay(by: tools.Tools, rootfs: str) -> None:
    directory = define(by, rootfs)
    define(by, rootfs, f"lxc.rootfs.path = overlay:{rootfs}:{directory}/overlay/delta")
    os.makedirs(f"{directory}/overlay/delta", exist_ok=True)
    by.start("c")
    by.inside("c", "sh", "-c", "echo new >/written; rm /etc/group")
    by.must("lxc-stop -k -n c")
    assert tools.read(f"{directory}/overlay/delta/written") == "new\n"
    assert not os.path.exists(f"{rootfs}/written")
    assert os.path.exists(f"{rootfs}/etc/group")


def test_an_ephemeral_container(by: tools.Tools, rootfs: str) -> None:
    """Destroyed when it has stopped, and not when it reboots."""
    lower = tools.make_rootfs(f"{by.lxcpath}/lower")
    directory = define(by, lower, "lxc.ephemeral = 1", name="brief")
    by.start("brief")
    first = ready(by, "brief")
    by.must("lxc-stop -r -n brief -t 10")
    assert ready(by, "brief") != first
    assert os.path.exists(f"{directory}/config")
    by.must("lxc-stop -n brief -t 10")
    tools.until(lambda: not os.path.exists(directory), "it is destroyed")
    assert not os.path.exists(lower)


# ------------------------------------------------------------------------------- from the inside


@pytest.mark.parametrize("command", ["halt", "poweroff", "reboot"])
def test_the_kernel_is_asked_from_inside(by: tools.Tools, rootfs: str, command: str) -> None:
    define(by, rootfs)
    tool = by.spawn("lxc-start -F -n c")
    first = ready(by)
    by.run(["lxc-attach", "-n", "c", "--", command, "-f"])
    if command == "reboot":
        tools.until(
            lambda: by.run("lxc-info -pH -n c").out.strip() not in ("", "0", str(first)),
            "it runs again",
        )
        assert parent(ready(by)) == tool.pid
        tool.terminate()
    assert tool.wait(10) == 0


# --------------------------------------------------------------------------------------- console


@pytest.mark.parametrize("how", ["key", "option"])
def test_a_console_log(by: tools.Tools, rootfs: str, how: str) -> None:
    path = f"{by.lxcpath}/console.log"
    define(by, rootfs, *([f"lxc.console.logfile = {path}"] if how == "key" else []))
    options = ["-L", path] if how == "option" else []
    by.start(
        "c",
        *options,
        "--",
        "/bin/sh",
        "-c",
        "echo one; echo two >/dev/console; echo three >&2; poweroff -f",
    )
    by.must("lxc-wait -n c -s STOPPED -t 10")
    tools.until(
        lambda: os.path.exists(path) and tools.read(path).count("\n") == 3, "all is written"
    )
    with open(path, "rb") as file:
        assert file.read() == b"one\r\ntwo\r\nthree\r\n"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.unlink(path)


# --------------------------------------------------------------------------------------- execute


def test_execute_passes_streams(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    tool = by.spawn(
        ["lxc-execute", "-n", "c", "--", "sh", "-c", "cat; echo problem >&2; exit 5"],
        stdin=subprocess.PIPE,
    )
    assert tool.communicate("some\x00thing\n", timeout=10) == ("some\x00thing\n", "problem\n")
    assert tool.returncode == 5


def test_execute_passes_signals(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    for number, expected in (
        (signal.SIGTERM, "TERM"),
        (signal.SIGINT, "INT"),
        (signal.SIGUSR1, "USR1"),
    ):
        script = 'for s in TERM INT USR1; do trap "echo $s; exit 9" $s; done; echo set; while :; do sleep 0.05; done'
        tool = by.spawn(["lxc-execute", "-n", "c", "--", "sh", "-c", script])
        assert tool.stdout is not None
        assert tool.stdout.readline() == "set\n"
        tool.send_signal(number)
        out, _err = tool.communicate(timeout=10)
        assert (tool.returncode, out) == (9, f"{expected}\n")


def test_execute_waits_for_orphans(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    done = by.run(["lxc-execute", "-n", "c", "--", "sh", "-c", "(sleep 0.3; echo late) & exit 4"])
    assert done == tools.Done(4, "late\n", "")


def test_execute_in_the_background(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    assert by.run(["lxc-execute", "-d", "-n", "c", "--", "sleep", "1000"]) == tools.Done(0, "", "")
    assert by.state("c") == "RUNNING"
    assert by.inside("c", "ps", "-o", "pid,args").splitlines()[1].split()[:1] == ["1"]
    assert by.run("lxc-stop -n c -t 10").code == 0


# ---------------------------------------------------------------------------------------- attach


def test_attach_passes_streams(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    by.start("c")
    tool = by.spawn(
        ["lxc-attach", "-n", "c", "--", "sh", "-c", "cat; echo problem >&2; exit 5"],
        stdin=subprocess.PIPE,
    )
    assert tool.communicate("text\n", timeout=10) == ("text\n", "problem\n")
    assert tool.returncode == 5
    assert by.run(["lxc-attach", "-n", "c"], stdin=subprocess.DEVNULL) == tools.Done(0, "", "")


def test_attach_with_a_terminal(by: tools.Tools, rootfs: str) -> None:
    """A pty of the container's own, its size that of the terminal, and a shell that has job control."""
    define(by, rootfs)
    by.start("c")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    tool = by.spawn(
        ["lxc-attach", "-n", "c"], stdin=slave, stdout=slave, stderr=slave,
        preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0)),
    )  # fmt: skip
    os.write(master, b"tty; stty size; hostname; echo e''nd\r")
    seen = until_seen(master, b"end\r\n").decode()
    assert re.search(r"/dev/pts/\d+\r\n33 77\r\nc\r\n", seen), seen
    termios.tcsetwinsize(slave, (40, 100))
    os.kill(tool.pid, signal.SIGWINCH)
    os.write(master, b"sleep 1000\r")
    tools.until(lambda: "sleep 1000" in by.inside("c", "ps", "-o", "args"), "it sleeps")
    os.write(master, b"\x03stty size; exit 6\r")
    assert "40 100" in until_seen(master, b"40 100").decode()
    assert tool.wait(10) == 6
    os.close(master)
    os.close(slave)


def test_attach_log(by: tools.Tools, rootfs: str) -> None:
    define(by, rootfs)
    by.start("c")
    master, slave = pty.openpty()
    path = f"{by.lxcpath}/pty.log"
    tool = by.spawn(
        ["lxc-attach", "-n", "c", "-L", path, "--", "echo", "shown"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    assert b"shown" in until_seen(master, b"shown")
    assert tool.wait(10) == 0
    assert "shown" in tools.read(path)
    os.close(master)
    os.close(slave)


def test_attach_has_the_containers_limits(by: tools.Tools, rootfs: str) -> None:
    define(
        by,
        rootfs,
        "lxc.prlimit.nofile = 100:200",
        "lxc.proc.oom_score_adj = 10",
        "lxc.no_new_privs = 1",
        "lxc.cap.drop = sys_time",
    )
    by.start("c")
    script = "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; grep NoNew /proc/self/status; grep CapBnd /proc/self/status"
    shown = by.inside("c", "sh", "-c", script).split()
    assert shown[:5] == ["100", "200", "10", "NoNewPrivs:", "1"]
    assert not int(shown[6], 16) >> 25 & 1


# ------------------------------------------------------------------------------- create and destroy


def tree(top: str) -> dict[str, str]:
    """Each file's kind and mode."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = f"{directory}/{name}"
            found[os.path.relpath(path, top)] = stat.filemode(os.lstat(path).st_mode)
    return found


def test_create_none(by: tools.Tools) -> None:
    config = tools.write(f"{by.lxcpath}/base.conf", "lxc.net.0.type = none\nlxc.start.auto = 1\n")
    by.must(f"lxc-create -n made -t none -f {config}")
    assert tree(f"{by.lxcpath}/made") == {"config": "-rw-r-----"}
    assert stat.S_IMODE(os.stat(f"{by.lxcpath}/made").st_mode) == 0o770
    assert tools.read(f"{by.lxcpath}/made/config") == "lxc.net.0.type = none\nlxc.start.auto = 1\n"
    by.must("lxc-destroy -n made")
    assert not os.path.exists(f"{by.lxcpath}/made")


def test_create_busybox(by: tools.Tools) -> None:
    config = tools.write(f"{by.lxcpath}/base.conf", "lxc.net.0.type = empty\n")
    by.must(f"lxc-create -n made -t busybox -f {config}")
    made = f"{by.lxcpath}/made"
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o770
    assert sorted(os.listdir(made)) == ["config", "rootfs"]
    found = tree(made)
    assert found["config"] == "-rw-r-----"
    assert found["rootfs"] == "drwxr-xr-x"
    for path in (
        "sbin/init",
        "bin/sh",
        "etc/inittab",
        "etc/passwd",
        "etc/init.d/rcS",
        "dev",
        "proc",
        "sys",
        "tmp",
        "root",
    ):
        assert f"rootfs/{path}" in found
    text = tools.read(f"{made}/config")
    assert re.match(
        r"# Template used to create this container: \S+\n# Parameters passed to the template:\n# For additional",
        text,
    )
    keys = dict(
        line.split(" = ", 1)
        for line in text.splitlines()
        if line.startswith("lxc.") and "entry" not in line
    )
    assert keys["lxc.rootfs.path"] == f"dir:{made}/rootfs"
    assert keys["lxc.net.0.type"] == "empty"
    expected = {
        "lxc.signal.halt": "SIGUSR1",
        "lxc.signal.reboot": "SIGTERM",
        "lxc.uts.name": '"made"',
        "lxc.tty.max": "5",
        "lxc.pty.max": "1",
    }
    assert {key: keys[key] for key in expected} == expected
    assert by.run("lxc-create -n made -t busybox").code == 1
    assert tree(made) == found
    by.must("lxc-destroy -n made")


def test_create_with_a_directory(by: tools.Tools) -> None:
    by.must(f"lxc-create -n made -t busybox -B dir --dir {by.lxcpath}/place")
    assert os.path.exists(f"{by.lxcpath}/place/sbin/init")
    assert f"lxc.rootfs.path = dir:{by.lxcpath}/place\n" in tools.read(f"{by.lxcpath}/made/config")
    by.must("lxc-destroy -n made")
    assert not os.path.exists(f"{by.lxcpath}/place")


TEMPLATE = """\
#!/bin/sh
for word; do echo "argument $word"; done >{log}
for word; do case $word in --rootfs=*) rootfs=${{word#*=}};; --path=*) path=${{word#*=}};; esac; done
echo "rootfs $(ls -ld $rootfs | cut -c1-10)" >>{log}
grep -c rootfs.path $path/config >>{log}
[ -e $path/partial ] && echo partial >>{log}
echo "lxc.uts.name = by-template" >>$path/config
exit {status}
"""


def test_a_template_of_the_users(by: tools.Tools) -> None:
    log = f"{by.lxcpath}/template.log"
    template = tools.write(f"{by.lxcpath}/template", TEMPLATE.format(log=log, status=0), 0o755)
    by.must(f"lxc-create -n made -t {template} -- --own 'an argument'")
    made = f"{by.lxcpath}/made"
    words = [f"--path={made}", "--name=made", f"--rootfs={made}/rootfs", "--own", "an argument"]
    assert (
        tools.read(log)
        == "".join(f"argument {word}\n" for word in words) + "rootfs drwxr-xr-x\n1\npartial\n"
    )
    text = tools.read(f"{made}/config")
    assert text.startswith(
        f"# Template used to create this container: {template}\n# Parameters passed to the template: --own an argument\n"
    )
    assert text.endswith("lxc.uts.name = by-template\n")
    assert not os.path.exists(f"{made}/partial")
    by.must("lxc-destroy -n made")


def test_a_template_that_fails(by: tools.Tools) -> None:
    template = tools.write(
        f"{by.lxcpath}/template", TEMPLATE.format(log=f"{by.lxcpath}/template.log", status=3), 0o755
    )
    assert by.run(f"lxc-create -n made -t {template}").code == 1
    assert not os.path.exists(f"{by.lxcpath}/made")


def test_destroy_runs_its_hook(by: tools.Tools, rootfs: str) -> None:
    log = f"{by.lxcpath}/hook.log"
    script = f'#!/bin/sh\nfor word; do echo "$word"; done >{log}; env | grep ^LXC_ | sort >>{log}\n'
    hook = tools.write(f"{by.lxcpath}/destroyer", script, 0o755)
    by.must("lxc-create -n made -t busybox")
    with open(f"{by.lxcpath}/made/config", "a", encoding="utf-8") as file:
        file.write(f"lxc.hook.destroy = {hook} mine\n")
    by.must("lxc-destroy -n made")
    lines = tools.read(log).splitlines()
    assert lines[:4] == ["mine", "made", "lxc", "destroy"]
    assert {line.split("=")[0] for line in lines[4:]} >= {
        "LXC_NAME",
        "LXC_CONFIG_FILE",
        "LXC_ROOTFS_PATH",
    }
    assert not os.path.exists(f"{by.lxcpath}/made")


def test_destroy_when_the_hook_fails(by: tools.Tools) -> None:
    by.must("lxc-create -n made -t busybox")
    path = f"{by.lxcpath}/made/config"
    text = tools.read(path)
    tools.write(path, text + "lxc.hook.destroy = /bin/false\n")
    assert by.run("lxc-destroy -n made").code == 1
    assert os.path.exists(f"{by.lxcpath}/made/rootfs/sbin/init")
    tools.write(path, text)
    by.must("lxc-destroy -n made")


def test_what_depends_on_it_keeps_it(by: tools.Tools) -> None:
    by.must("lxc-create -n made -t none")
    made = f"{by.lxcpath}/made"
    tools.write(f"{made}/lxc_snapshots", f"{by.lxcpath}\nclone\n")
    done = by.run("lxc-destroy -n made")
    assert (done.code, "made has clones" in done.err) == (1, True)
    os.unlink(f"{made}/lxc_snapshots")
    os.makedirs(f"{made}/snaps/snap0")
    tools.write(f"{made}/snaps/snap0/config", "")
    done = by.run("lxc-destroy -n made")
    assert (done.code, "made has snapshots" in done.err) == (1, True)
    os.unlink(f"{made}/snaps/snap0/config")
    os.removedirs(f"{made}/snaps/snap0")
    by.run("lxc-destroy -n made")
