"""`atoll run`, as a user has it: the real command, sentence by sentence of what it promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import termios
import time
from typing import IO, TYPE_CHECKING, Any

import pexpect
import pytest

import snapshot
from abilities import needs
from isolation import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs("root", "overlay", "pidns"), pytest.mark.isolated(cgroup=True)]

USER = 4711
MEGABYTES = 10 << 20


# ------------------------------------------------------------------------------------- the scene
class Tool:
    """The command on a host of the test's own: /run, /mnt and /var/lib/lxc are new, everything else is watched."""

    def __init__(self, command: list[str], *, user: int = 0) -> None:
        for place in ("/mnt", "/run", "/var/lib/lxc"):
            kernel.mount("tmpfs", place, "tmpfs", 0, "mode=755")
        os.makedirs("/run/atoll/journal", 0o700)
        os.mkdir("/mnt/home")
        self.user = user
        self.environment = {**os.environ, "HOME": "/mnt/home", "LANG": "C"}
        for name in ("XDG_RUNTIME_DIR", "TERM"):
            self.environment.pop(name, None)
        self.words = command
        if user:
            os.makedirs("/mnt/home/.cache/atoll/run/journal")
            subprocess.run(["chown", "-R", f"{user}:{user}", "/mnt/home"], check=True)
            ids = ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
            self.words = ["setpriv", *ids, *command]
        self.before = snapshot.HostSnapshot.take("/mnt")

    def start(self, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        options |= {"env": self.environment, "start_new_session": True} | more
        process: subprocess.Popen[bytes] = subprocess.Popen([*self.words, *words], **options)
        return process

    def tool(self, *words: str, data: bytes | None = None, **more: Any) -> tuple[int, str, str]:
        """Any tool: status, output, errors."""
        if data is not None:
            more["stdin"] = subprocess.PIPE
        process = self.start(*words, **more)
        try:
            out, err = process.communicate(data, timeout=30)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process.returncode, (out or b"").decode(), (err or b"").decode()

    def run(self, *words: str, **more: Any) -> tuple[int, str, str]:
        return self.tool("run", *words, **more)

    def shell(self, script: str, *options: str, **more: Any) -> tuple[int, str, str]:
        return self.run(*options, "--", "sh", "-c", script, **more)

    def unchanged(self) -> None:
        assert snapshot.settled(self.before, "/mnt") == []

    @contextlib.contextmanager
    def terminal(self, *words: str, **more: Any) -> Iterator[pexpect.spawn]:
        """The tool on a terminal of 30 lines and 91 columns."""
        argv = [*self.words, *words]
        child = pexpect.spawn(
            argv[0], argv[1:], encoding="utf-8", timeout=20, dimensions=(30, 91),
            env={**self.environment, "TERM": "vt100"}, **more,
        )  # fmt: skip
        child.delaybeforesend = None
        try:
            yield child
        finally:
            child.close(force=True)


def ended(child: pexpect.spawn) -> int:
    """Wait for the end: the exit status."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    return int(child.exitstatus)


def line_of(stream: IO[bytes]) -> bytes:
    """A line from a pipe, in time."""
    assert select.select([stream], [], [], 20)[0], "nothing came"
    return stream.readline()


def tiny_image(path: str) -> str:
    """A directory with nothing but a static busybox."""
    os.makedirs(f"{path}/bin")
    shutil.copy("/bin/busybox", f"{path}/bin/busybox")
    for name in ("sh", "ls", "cat", "touch", "true", "sleep"):
        os.symlink("busybox", f"{path}/bin/{name}")
    return path


# --------------------------------------------------------------------------- what the container is
def test_the_machine_itself_is_the_image_and_does_not_change(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    script = (
        "cat /usr/bin/env | md5sum; echo x > /etc/made && echo x > /usr/bin/made && echo x > /made && rm /usr/bin/env"
        " && echo changed > /etc/hostname; cat /etc/made /usr/bin/made /made /etc/hostname; ls /usr/bin/env"
    )
    status, out, err = tool.shell(script)
    with open("/usr/bin/env", "rb") as file:
        digest = hashlib.md5(file.read()).hexdigest()
    assert (status, out) == (2, f"{digest}  -\nx\nx\nx\nchanged\n")
    assert "cannot access '/usr/bin/env'" in err
    tool.unchanged()
    for made in ("/etc/made", "/usr/bin/made", "/made"):
        assert not os.path.exists(made)
    assert tool.shell("ls /etc/made; ls /usr/bin/env")[1] == "/usr/bin/env\n"  # each run is new


def test_six_namespaces_of_its_own(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    status, out, err = tool.shell("for n in /proc/self/ns/*; do echo ${n##*/} $(readlink $n); done")
    assert (status, err) == (0, "")
    inside = dict(line.split() for line in out.splitlines())
    outside = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    assert inside.keys() == outside.keys()
    own = {name for name in inside if inside[name] != outside[name]}
    assert own == {"mnt", "pid", "pid_for_children", "uts", "ipc", "net", "cgroup"}
    tool.unchanged()


FACTS = """
hostname
cat /proc/1/comm; ls /proc | grep '^[0-9]' | wc -l
grep -v : /proc/self/cgroup; sed 's/^[^:]*:[^:]*://' /proc/self/cgroup | sort -u
cat /sys/class/net/lo/operstate; ls /sys/class/net; ip -brief address show lo | tr -s ' '
touch /sys/kernel/x 2>/dev/null || echo sys is read-only
echo 0 2>/dev/null > /proc/sys/vm/swappiness || echo proc sys is read-only
ls /dev | tr '\\n' ' '; echo
stat -c '%n %t,%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
echo lost > /dev/null; head -c 4 /dev/zero | od -An -tx1
echo shared > /dev/shm/x && cat /dev/shm/x
id -u; id -g; pwd; umask
"""


def test_its_proc_sys_dev_name_and_loopback(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    status, out, err = tool.shell(FACTS, "--name", "facts")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "facts",
        "init",
        "5",  # init, the shell, ls, grep, wc
        "/",
        "unknown",
        "lo",
        "lo UNKNOWN 127.0.0.1/8 ::1/128 ",
        "sys is read-only",
        "proc sys is read-only",
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
        "/dev/null 1,3 666",
        "/dev/zero 1,5 666",
        "/dev/full 1,7 666",
        "/dev/random 1,8 666",
        "/dev/urandom 1,9 666",
        "/dev/tty 5,0 666",
        " 00 00 00 00",
        "shared",
        "0",
        "0",
        "/",
        "0022",
    ]
    status, out, _err = tool.shell("cat /proc/mounts")
    mounts = {
        fields[1]: (fields[2], fields[3].split(",")) for fields in map(str.split, out.splitlines())
    }
    assert [mounts[place][0] for place in ("/", "/proc", "/sys", "/dev", "/dev/pts")] == [
        "overlay", "proc", "sysfs", "tmpfs", "devpts",
    ]  # fmt: skip
    assert "ro" in mounts["/sys"][1]
    assert "rw" in mounts["/"][1]
    assert not any(
        place.startswith("/mnt") for place in mounts
    )  # what the host has mounted is not there
    tool.unchanged()


def test_the_environment_is_its_own_and_no_descriptor_of_ours_is_there(
    atoll_command: list[str],
) -> None:
    tool = Tool(atoll_command)
    tool.environment["SECRET"] = "of the host"
    status, out, _err = tool.run("--", "env")
    assert (status, sorted(out.splitlines())) == (
        0,
        [
            "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "container=lxc",
        ],
    )
    read_end, write_end = os.pipe()
    status, out, _err = tool.run("--", "ls", "/proc/self/fd", pass_fds=(read_end, write_end))
    assert (status, out.split()) == (0, ["0", "1", "2", "3"])  # 3 is the listing's own
    os.close(read_end)
    os.close(write_end)


# -------------------------------------------------------------------- output, status, input, signals
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("true", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
        ("kill -HUP $$", 129),
        ("kill -INT $$", 130),
        ("sleep 1000 & exit 3", 3),  # what it leaves running does not outlive it
    ],
)
def test_output_and_status_come_back(script: str, status: int, atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    told = tool.shell(f"echo to you; echo not to you >&2; {script}")
    assert told == (status, "to you\n", "not to you\n")
    tool.unchanged()


def test_what_the_tool_logs_does_not_mix_with_it(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    told = tool.shell("echo out; echo err >&2", "-l", "TRACE", "-o", "/mnt/log")
    assert told == (0, "out\n", "err\n")
    with open("/mnt/log") as file:
        assert "step 1 prepare monitor" in file.read()


@pytest.mark.parametrize(
    ("stdin", "script", "told"),
    [
        ("<&-", "cat", (1, "", "cat: -: Bad file descriptor\n")),
        ("</dev/null", "cat; echo end", (0, "end\n", "")),
        ("< /etc/passwd", "head -c 5; head -c 2", (0, "root::0", "")),
        (
            ">&-",
            "echo lost; echo told >&2; exit 4",
            (4, "", "sh: 1: echo: echo: I/O error\ntold\n"),
        ),
        ("2>&-", "echo told; echo lost >&2", (1, "told\n", "")),
        ("<&- >&- 2>&-", "exit 6", (6, "", "")),
    ],
)
def test_input_and_outputs_that_are_closed(
    stdin: str, script: str, told: tuple[int, str, str], atoll_command: list[str]
) -> None:
    tool = Tool(atoll_command)
    words = " ".join(f"'{word}'" for word in [*tool.words, "run", "--", "sh", "-c", script])
    done = subprocess.run(
        ["sh", "-c", f"{words} {stdin}"], capture_output=True, text=True, check=False, timeout=30,
        env=tool.environment, stdin=subprocess.PIPE if "<" not in stdin else subprocess.DEVNULL,
    )  # fmt: skip
    if "head" in script:  # the file's offset is shared: what one reader leaves the next one gets
        assert done.stdout.startswith("root:")
        assert len(done.stdout) == 7
    else:
        assert (done.returncode, done.stdout, done.stderr) == told
    tool.unchanged()


def test_ten_megabytes_each_way(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    data = os.urandom(1 << 16) * (MEGABYTES >> 16)
    process = tool.start("run", "--", "sh", "-c", "tee /dev/stderr", stdin=subprocess.PIPE)
    out, err = process.communicate(data, timeout=60)
    assert process.returncode == 0
    assert out == data
    assert err == data
    tool.unchanged()


def test_a_reader_that_goes_away_ends_it(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    process = tool.start("run", "--", "yes", stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert line_of(process.stdout) == b"y\n"
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE
    tool.unchanged()


@pytest.mark.parametrize(
    ("script", "signals", "status"),
    [
        ("echo up; exec sleep 1000", ["SIGINT"], 130),
        ("echo up; exec sleep 1000", ["SIGTERM"], 143),
        (
            "echo up; exec sleep 1000",
            ["SIGHUP"],
            143,
        ),  # as liblxc's monitor: a hang-up is a request to end
        ("echo up; exec sleep 1000", ["SIGQUIT"], 131),
        ("trap 'echo caught; exit 3' INT; echo up; while :; do sleep 0.02; done", ["SIGINT"], 3),
        ("trap 'echo caught; exit 4' USR1; echo up; while :; do sleep 0.02; done", ["SIGUSR1"], 4),
        ("trap 'echo caught' INT; echo up; while :; do sleep 0.02; done", ["SIGINT"] * 3, 137),
    ],
)
def test_signals_reach_the_command(
    script: str, signals: list[str], status: int, atoll_command: list[str]
) -> None:
    tool = Tool(atoll_command)
    process = tool.start("run", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert line_of(process.stdout) == b"up\n"
    for number, name in enumerate(signals, 1):
        process.send_signal(signal.Signals[name])
        if "caught" in script and number < 3:
            assert line_of(process.stdout) == b"caught\n"
    assert process.wait(20) == status
    assert process.communicate()[1] == b""
    tool.unchanged()


def test_the_command_dies_with_a_killed_tool_and_the_next_one_cleans_up(
    atoll_command: list[str],
) -> None:
    tool = Tool(atoll_command)
    process = tool.start("run", "--name", "victim", "--", "sh", "-c", "echo up; exec sleep 1000")
    assert process.stdout is not None
    assert line_of(process.stdout) == b"up\n"
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert process.stdout.read() == b""  # whoever held the other end is gone
    assert tool.shell("hostname", "--name", "victim") == (0, "victim\n", "")
    process.communicate()
    tool.unchanged()


# -------------------------------------------------------------------------------------- a terminal
def test_an_interactive_shell_with_job_control(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    with tool.terminal("run", "--env", "PS1=ready: ", "--", "dash") as child:
        child.expect("ready: ")
        during = termios.tcgetattr(child.child_fd)
        assert not during[3] & (termios.ICANON | termios.ECHO)  # the container's terminal does that
        child.sendline("tty; stty size; echo $TERM; ps -o pid,sid,tty,comm | tail -3")
        child.expect(r"/dev/pts/0\r\n30 91\r\nvt100\r\n +2 +2 pts/0 +dash\r\n")
        child.expect("ready: ")
        child.sendline("echo started; sleep 1000")
        child.expect("\r\nstarted\r\n")
        child.sendcontrol("c")
        child.expect(r"\^C")
        child.expect("ready: ")
        child.sendline("echo status $?")
        child.expect("status 130")
        child.expect("ready: ")
        child.sendline("echo started; sleep 1000")
        child.expect("\r\nstarted\r\n")
        child.sendcontrol("z")
        child.expect("Stopped")
        child.expect("ready: ")
        child.sendline("jobs; bg; jobs")
        child.expect("Stopped +sleep 1000")
        child.expect("Running +sleep 1000")
        child.expect("ready: ")
        child.sendline("fg")
        child.expect("\r\nsleep 1000\r\n")
        child.sendcontrol("c")
        child.expect("ready: ")
        child.sendline("exit 42")
        assert ended(child) == 42
    tool.unchanged()


def test_ctrl_c_and_ctrl_d_without_a_shell(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    with tool.terminal("run", "--", "sh", "-c", "echo up; exec sleep 1000") as child:
        child.expect("up\r\n")
        child.sendcontrol("c")
        assert ended(child) == 130
    with tool.terminal("run", "--", "cat") as child:
        child.sendline("abc")
        child.expect("abc\r\nabc\r\n")
        child.sendcontrol("d")
        assert ended(child) == 0
    tool.unchanged()


def test_the_terminal_is_resized(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    script = "trap 'stty size' WINCH; trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done"
    with tool.terminal("run", "--", "sh", "-c", script) as child:
        child.expect("up\r\n")
        child.setwinsize(41, 103)
        child.expect("41 103\r\n")
        os.kill(child.pid, signal.SIGTERM)
        assert ended(child) == 5


@pytest.mark.parametrize("how", ["exit", "SIGTERM", "SIGINT", "error"])
def test_the_terminal_is_as_before(how: str, atoll_command: list[str]) -> None:
    """A shell keeps the terminal open, as users have it: the attributes are looked at when the tool has ended."""
    tool = Tool(atoll_command)
    command = "/nosuch" if how == "error" else "sh -c 'echo up; read x; exit 7'"
    words = " ".join(tool.words)
    with tool.terminal("run") as unused:
        unused.expect("no command to run")
    child = pexpect.spawn(
        "sh", ["-c", f"stty -a | md5sum; {words} run -- {command}; echo status $?; stty -a | md5sum"],
        encoding="utf-8", timeout=20, env={**tool.environment, "TERM": "vt100"},
    )  # fmt: skip
    try:
        child.expect("([0-9a-f]{32})  -")
        before = child.match[1]
        if how != "error":
            child.expect("up\r\n")
            assert not termios.tcgetattr(child.child_fd)[3] & termios.ICANON
        if how == "exit":
            child.sendline("x")
        elif how != "error":
            (pid,) = [p for p in children(child.pid) if "run" in arguments(p)]
            os.kill(pid, signal.Signals[how])
        child.expect(r"status (\d+)")
        assert (
            child.match[1] == {"exit": "7", "SIGTERM": "143", "SIGINT": "130", "error": "127"}[how]
        )
        child.expect("([0-9a-f]{32})  -")
        assert child.match[1] == before
        assert ended(child) == 0
    finally:
        child.close(force=True)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def arguments(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")


def test_only_what_is_a_terminal_is_one(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    words = " ".join(tool.words)
    script = f"{words} run -- sh -c 'echo out; echo err >&2; read x; echo got $x' > /mnt/out"
    with contextlib.closing(
        pexpect.spawn("sh", ["-c", script], encoding="utf-8", timeout=20, env=tool.environment)
    ) as child:
        child.expect("err\r\n")
        child.sendline("typed")
        assert ended(child) == 0
        assert "out" not in child.before
    with open("/mnt/out") as file:
        assert file.read() == "out\ngot typed\n"
    script = f"echo data | {words} run -- sh -c 'tty; tty <&1; cat'"
    with contextlib.closing(
        pexpect.spawn("sh", ["-c", script], encoding="utf-8", timeout=20, env=tool.environment)
    ) as child:
        child.expect("not a tty\r+\n/dev/pts/0\r+\ndata\r+\n")  # two terminals, each ends the line
        assert ended(child) == 0


def test_in_the_background_it_leaves_the_terminal_alone(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    words = " ".join(tool.words)
    environment = {**tool.environment, "PS1": "ready: "}
    child = pexpect.spawn("dash", ["-i"], encoding="utf-8", timeout=20, env=environment)
    try:
        child.expect("ready: ")
        child.sendline(f"{words} run -- sh -c 'echo u\"\"p; read x; echo got $x; exit 5' &")
        child.expect("up\r+\n")
        assert termios.tcgetattr(child.child_fd)[3] & termios.ICANON
        child.sendline('echo for the sh""ell')
        child.expect("for the shell\r\n")
        child.sendline("fg")
        child.expect('exit 5"?\r\n')
        child.sendline("for the command")
        child.expect("got for the command\r\n")
        child.expect("ready: ")
        child.sendline("echo status $?; exit")
        child.expect("status 5\r\n")
        ended(child)
    finally:
        child.close(force=True)
    tool.unchanged()


# ------------------------------------------------------------------------------------------ options
def test_options_end_at_the_command(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    assert tool.run("echo", "-n", "--name", "x", "--") == (0, "--name x --", "")
    assert tool.run("-q", "--", "echo", "--", "-q") == (0, "-- -q\n", "")


def test_name_environment_workdir(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    tool.environment["PASSED"] = "from here"
    told = tool.shell(
        'hostname; echo "$A/$B/$PASSED/$NONE/$PATH"; pwd',
        "--name=n-1", "-e", "A=1 = one", "--env", "B=", "-e", "PASSED", "-e", "NONE", "-e", "PATH=/bin", "-w", "/usr/lib",
    )  # fmt: skip
    assert told == (0, "n-1\n1 = one//from here//" + "/bin\n/usr/lib\n", "")


@pytest.mark.parametrize(
    ("user", "told"),
    [
        ("nobody", "65534:65534: /nonexistent"),
        ("1", "1:1: /usr/sbin"),
        ("daemon:tty", "1:5: /usr/sbin"),
        ("1234", "1234:0: /"),
        ("1234:5678", "1234:5678: /"),
        ("member", "5001:5001:5 20 /mnt/member"),
    ],
)
def test_user(user: str, told: str, atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    with open("/etc/passwd") as file:
        content = file.read()
    with open("/mnt/passwd", "w") as file:
        file.write(f"{content}member:x:5001:5001::/mnt/member:/bin/sh\n")
    with open("/mnt/group", "w") as file:
        file.write("tty:x:5:member\ndialout:x:20:other,member\nelse:x:21:other\n")
    script = 'groups=$(id -G | tr " " "\\n" | grep -vx "$(id -g)" | tr "\\n" " "); echo "$(id -u):$(id -g):${groups% }" $HOME'
    words = ("--bind", "/mnt/passwd:/etc/passwd:ro", "--bind", "/mnt/group:/etc/group:ro")
    for name in ("passwd", "group"):  # the image is the machine, so its files are the machine's
        kernel.mount(f"/mnt/{name}", f"/etc/{name}", None, kernel.MS_BIND)
    status, out, err = tool.shell(script, "--user", user, *words)
    assert (status, " ".join(out.split()), err) == (0, told, "")


def test_bind(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    os.makedirs("/mnt/a dir/sub")
    os.mkdir("/mnt/a dir/mounted")
    kernel.mount("tmpfs", "/mnt/a dir/mounted", "tmpfs")
    for path in ("/mnt/a dir/f", "/mnt/a dir/mounted/g"):
        with open(path, "w") as file:
            file.write("of the host\n")
    told = tool.shell(
        "cat /data/f /data/mounted/g /etc/one-file; ls /rel; echo new > /data/made; echo x > /etc/one-file; echo x > /ro/y",
        "--bind", "/mnt/a dir:/data", "--bind", "/mnt/a dir/f:/etc/one-file", "--bind", "a dir/sub/..:/rel:ro", "--bind",
        "/mnt/a dir:/ro:ro", cwd="/mnt",
    )  # fmt: skip
    assert told == (
        2,
        "of the host\nof the host\nof the host\nf\nmounted\nsub\n",
        "sh: 1: cannot create /ro/y: Read-only file system\n",
    )
    with open("/mnt/a dir/made") as made, open("/mnt/a dir/f") as file:
        assert (made.read(), file.read()) == ("new\n", "x\n")
    assert not os.path.exists("/data")


def test_read_only(atoll_command: list[str]) -> None:
    """Places for what is mounted are made all the same, and what is mounted stays writable."""
    tool = Tool(atoll_command)
    os.mkdir("/mnt/data")
    script = "for f in /x /usr/x /etc/x /data/x /dev/shm/x; do echo x 2>/dev/null > $f && echo $f; done; true"
    told = tool.shell(script, "--read-only", "--bind", "/mnt/data:/data")
    assert told == (0, "/data/x\n/dev/shm/x\n", "")
    assert tool.shell(script)[1] == "/x\n/usr/x\n/etc/x\n/dev/shm/x\n"


def test_config_and_keys(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    with open("/mnt/c.conf", "w") as file:
        file.write(
            "lxc.uts.name = from-file\nlxc.environment = A=file\nlxc.sysctl.net.ipv4.ip_forward = 1\n"
        )
    script = "hostname; echo $A; cat /proc/sys/net/ipv4/ip_forward; ls /sys/class/net"
    told = tool.shell(script, "--config", "c.conf", cwd="/mnt")
    assert told == (0, "from-file\nfile\n1\nlo\n", "")
    told = tool.shell(
        script,
        "--config",
        "/mnt/c.conf",
        "-s",
        "lxc.uts.name=wins",
        "-s",
        "lxc.environment = A=key",
    )
    assert told[1].splitlines()[:2] == ["wins", "key"]
    status, out, _err = tool.shell("readlink /proc/self/ns/net", "-s", "lxc.net.0.type=none")
    assert (status, out.strip()) == (0, os.readlink("/proc/self/ns/net"))


@needs("busybox")
def test_another_image(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    tiny_image("/mnt/image")
    told = tool.shell("ls /; touch /made; ls -a /proc/1/cmdline", "--image", "image", cwd="/mnt")
    assert told == (0, "bin\ndev\nproc\nsys\n/proc/1/cmdline\n", "")
    assert os.listdir("/mnt/image") == ["bin"]
    told = tool.shell("ls /; touch /made", "--image", "/mnt/image", "--read-only")
    assert told == (1, "bin\ndev\nproc\nsys\n", "touch: /made: Read-only file system\n")


@needs("busybox")
@pytest.mark.parametrize("image", ["host", "/mnt/image"])
def test_keep(image: str, atoll_command: list[str]) -> None:
    """What the command changed stays, as a container that every tool knows, until lxc-destroy."""
    tool = Tool(atoll_command)
    tiny_image("/mnt/image")
    os.mkdir("/mnt/data")
    before = snapshot.HostSnapshot.take("/mnt")
    option = ("--image", image, "--keep")
    told = tool.shell("echo one > /bin/kept", "--name", "k1", "--bind", "/mnt/data:/data", *option)
    assert told == (0, "", "")
    assert sorted(os.listdir("/var/lib/lxc/k1")) == ["config", "overlay"]
    assert not os.path.exists("/bin/kept")
    assert tool.shell("cat /bin/kept; echo two > /bin/kept", "--name", "k1", *option) == (
        0,
        "one\n",
        "",
    )
    assert tool.tool("lxc-ls", "-1") == (0, "k1\n", "")
    told = tool.tool("lxc-execute", "-n", "k1", "--", "/bin/sh", "-c", "cat /bin/kept; ls -d /data")
    assert told == (0, "two\n/data\n", "")
    assert tool.tool("lxc-start", "-n", "k1", "--", "/bin/sleep", "1000") == (0, "", "")
    told = tool.tool("lxc-attach", "-n", "k1", "--", "/bin/cat", "/bin/kept")
    assert told == (0, "two\n", "")
    told = tool.run("--name", "k1", *option, "--", "true")
    assert told[::2] == (
        125,
        "atoll run: k1: container k1 is already running\n  fix    stop it first: lxc-stop -n k1 -P /var/lib/lxc\n",
    )
    assert tool.tool("lxc-stop", "-k", "-n", "k1")[0] == 0
    assert tool.tool("lxc-destroy", "-n", "k1") == (0, "", "")
    assert snapshot.settled(before, "/mnt") == []


def test_a_kept_container_without_a_name_is_told(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    status, _out, err = tool.run("--keep", "--", "true")
    (name,) = os.listdir("/var/lib/lxc")
    assert (status, err) == (0, f"atoll run: what it changes is kept as container {name}\n")
    assert tool.tool("lxc-destroy", "-n", name) == (0, "", "")
    tool.unchanged()


def test_explain_changes_nothing(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    status, out, err = tool.run(
        "--keep", "--name", "plan", "--explain", "--json", "--", "rm", "-rf", "/"
    )
    assert (status, err) == (0, "")
    assert "be init, and run rm -rf /" in [step["text"] for step in json.loads(out)]
    tool.unchanged()


# ------------------------------------------------------------------------------------------- errors
RESTORED = "  host   restored, ALL changes taken back\n"
ERRORS = {
    "missing program": (
        ["--", "/nosuch", "x"], 127,
        "atoll run: cannot execute /nosuch: it does not exist in the container\n"
        "  step   NUMBER, RunCommand, init side, phase ready\n" + RESTORED +
        "  fix    install it in the root file system, or name another program\n",
    ),
    "not in PATH": (
        ["--", "nosuch"], 127,
        "atoll run: cannot execute nosuch: the container has no such program in PATH\n"
        "  step   NUMBER, RunCommand, init side, phase ready\n" + RESTORED +
        "  fix    install it in the root file system, or name another program\n",
    ),
    "below a file": (
        ["--", "/etc/passwd/x"], 127,
        "atoll run: cannot execute /etc/passwd/x: it does not exist in the container\n"
        "  step   NUMBER, RunCommand, init side, phase ready\n" + RESTORED +
        "  fix    install it in the root file system, or name another program\n",
    ),
    "a directory": (
        ["--", "/etc"], 126,
        "atoll run: cannot execute /etc: it is a directory\n"
        "  step   NUMBER, RunCommand, init side, phase ready\n" + RESTORED +
        "  fix    name a program\n",
    ),
    "not executable": (
        ["--", "/etc/passwd"], 126,
        "atoll run: cannot execute /etc/passwd: it is not executable (mode 0644)\n"
        "  step   NUMBER, RunCommand, init side, phase ready\n" + RESTORED +
        "  fix    chmod +x /etc/passwd in the root file system\n",
    ),
    "no image": (
        ["--image", "/nosuch", "--", "true"], 125,
        "atoll run: the image /nosuch is not a directory\n  fix    give a directory or `host`\n",
    ),
    "no configuration": (
        ["--config", "/nosuch", "--", "true"], 125,
        ("atoll run: cannot read the configuration /nosuch: no such file or directory\n"
        "  from   lxc.include = /nosuch                    --config\n"),
    ),
    "unknown key": (
        ["-s", "lxc.net.0.typ=none", "--", "true"], 125,
        ("atoll run: unknown key lxc.net.0.typ\n"
        "  from   lxc.net.0.typ=none                       -s\n"
        "  fix    the nearest known key is lxc.net.0.type\n"),
    ),
    "no working directory": (
        ["-w", "/nosuch", "--", "true"], 125,
        "atoll run: cannot enter working directory /nosuch: it does not exist in the container\n"
        "  from   lxc.init.cwd = /nosuch                   --workdir\n"
        "  step   NUMBER, EnterDirectory, init side, phase mounts\n" + RESTORED,
    ),
    "nothing to bind": (
        ["--bind", "/nosuch:/x", "--", "true"], 125,
        "atoll run: cannot bind /nosuch with what is mounted in it on /x: there is no /nosuch\n"
        "  from   lxc.mount.entry = /nosuch x none rbind,create=dir 0 0 --bind\n"
        "  step   NUMBER, MountEntry, init side, phase rootfs\n" + RESTORED +
        "  fix    make it, or add optional to the entry's options\n",
    ),
    "no user": (
        ["-u", "nosuch", "--", "true"], 125,
        "atoll run: the image has no user nosuch\n  fix    give numbers: --user UID[:GID]\n",
    ),
    "no group": (
        ["-u", "0:nosuch", "--", "true"], 125,
        "atoll run: the image has no group nosuch\n  fix    give numbers: --user UID[:GID]\n",
    ),
    "a bind of one part": (
        ["--bind", "/mnt", "--", "true"], 125,
        "atoll run: --bind wants SRC:DST[:ro] with an absolute DST, not '/mnt'\n",
    ),
    "a timeline nowhere": (
        ["--timeline", "/nosuch/t", "--", "true"], 125,
        "atoll run: cannot write the timeline /nosuch/t: no such file or directory\n",
    ),
    "a bad name": (
        ["--name", "a/b", "--", "true"], 125, "atoll run: 'a/b' cannot be a container's name: it is a path\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors(name: str, atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    words, status, text = ERRORS[name]
    told = tool.run(*words)
    assert (told[0], told[1], normal(told[2])) == (status, "", text)
    tool.unchanged()


def normal(text: str) -> str:
    text = re.sub(r"step   \d+ of \d+", "step   NUMBER", text)
    text = re.sub(r"restored, (\d+) of \1 changes", "restored, ALL changes", text)
    return "".join(line for line in text.splitlines(True) if not line.startswith("  call   "))


def test_usage_errors_show_the_help(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    for words, message in (
        ([], "there is no command to run"),
        (["--nosuch", "true"], "unrecognized option '--nosuch'"),
        (["--name"], "option '--name' requires an argument"),
    ):
        status, out, err = tool.run(*words)
        assert (status, out) == (125, "")
        assert err.startswith(
            f"atoll run: {message}\nUsage: atoll run [OPTION…] [--] COMMAND [ARGUMENT…]\n"
        )


# -------------------------------------------------------------------------------- an ordinary user
@needs("userns")
def test_an_ordinary_user_without_subordinate_ids(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command, user=USER)
    script = (
        "id -u; cat /proc/self/uid_map | tr -s ' '; hostname; ls /sys/class/net; cat /sys/class/net/lo/operstate;"
        " echo x > /usr/x && echo x > /root/x && echo x > /x && cat /usr/x; touch /sys/x 2>/dev/null || echo ro;"
        " ls /proc | grep -c '^[0-9]'; echo x > /dev/null && head -c 2 /dev/zero | od -An -tx1; ls -a / | grep '^[.][a-z]'"
    )
    status, out, err = tool.shell(script, "--name", "mine")
    assert (status, err) == (
        1,
        "",
    )  # of the last one, which finds nothing: the layers are not to be seen
    assert out.splitlines() == [
        "0", f" 0 {USER} 1", "mine", "lo", "unknown", "x", "ro", "4", " 00 00",
    ]  # fmt: skip
    status, out, _err = tool.shell(
        "for n in /proc/self/ns/*; do echo ${n##*/} $(readlink $n); done"
    )
    own = [
        name
        for name, link in map(str.split, out.splitlines())
        if link != os.readlink(f"/proc/self/ns/{name}")
    ]
    assert own == ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"]
    assert tool.shell("kill -9 $$")[0] == 137
    assert tool.run("--", "/nosuch")[0] == 127
    assert tool.run("--", "wc", "-c", data=bytes(MEGABYTES)) == (0, f"{MEGABYTES}\n", "")
    os.mkdir("/mnt/home/data")
    os.chown("/mnt/home/data", USER, USER)
    words = ("--read-only", "--bind", "/mnt/home/data:/usr/data")
    assert tool.shell("echo x > /usr/data/x; echo x > /usr/x; echo x > /x", *words)[::2] == (
        2,
        "sh: 1: cannot create /usr/x: Read-only file system\nsh: 1: cannot create /x: Read-only file system\n",
    )
    assert os.stat("/mnt/home/data/x").st_uid == USER
    shutil.rmtree("/mnt/home/data")
    tool.unchanged()


@needs("userns")
def test_an_ordinary_user_sees_no_more_than_before(atoll_command: list[str]) -> None:
    """The merged directory has the upper one's mode: a lower one of 0700 must not open by that."""
    os.mkdir("/srv/private", 0o700)
    os.chmod("/srv", 0o700)
    try:
        tool = Tool(atoll_command, user=USER)
        status, out, err = tool.shell("stat -c %a /srv; ls /srv; cat /etc/shadow")
        assert (status, out) == (1, "700\n")
        assert err.splitlines() == [
            "ls: reading directory '/srv': Permission denied",
            "cat: /etc/shadow: Permission denied",
        ]
    finally:
        os.chmod("/srv", 0o755)
        os.rmdir("/srv/private")


@needs("userns")
def test_an_ordinary_user_is_told_what_is_different(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command, user=USER)
    note = (
        "atoll run: without root: you are root only inside (your own id is the only one mapped), no limits by cgroups,"
        " no network but loopback, device nodes and ids of others are shown as the host's\r\n"
    )
    with tool.terminal("run", "--", "echo", "hello") as child:
        child.expect("hello\r\n")
        assert child.before == note
        assert ended(child) == 0
    with tool.terminal("run", "-q", "--", "echo", "hello") as child:
        child.expect("hello\r\n")
        assert child.before == ""
    assert tool.run("--", "true") == (0, "", "")  # nothing between the lines of a script
    status, _out, err = tool.run("--user", "5", "--", "true")
    assert (status, normal(err)) == (
        125,
        (
            "atoll run: cannot use lxc.init.uid = 5: lxc.idmap maps no id 5 of this kind\n"
            "  from   lxc.init.uid = 5                         --user\n"
            "  fix    add a line lxc.idmap = u 5 FIRST COUNT, or take another id\n"
        ),
    )


@needs("userns", "busybox")
def test_an_ordinary_user_keeps(atoll_command: list[str]) -> None:
    tiny = tiny_image("/var/lib/tiny")
    try:
        tool = Tool(atoll_command, user=USER)
        assert tool.run("--keep", "--", "true") == (
            125,
            "",
            "atoll run: --keep needs root with the image `host`\n  fix    give a directory with --image\n",
        )
        words = ("--image", tiny, "--keep", "--name", "k1")
        assert tool.shell("echo one > /kept", *words) == (0, "", "")
        told = tool.tool("lxc-execute", "-n", "k1", "--", "/bin/cat", "/kept")
        assert told == (0, "one\n", "")
        assert tool.tool("lxc-destroy", "-n", "k1") == (0, "", "")
        assert os.listdir("/mnt/home/.local/share/lxc") == []
        tool.environment["HOME"] = "/nosuch"
        status, _out, err = tool.shell("true", *words)
        assert (status, err) == (
            125,
            (
                "atoll run: k1: cannot keep the container in /nosuch/.local/share/lxc/k1: permission denied\n"
                "  fix    give a directory that you may write with -P\n"
            ),
        )
    finally:
        shutil.rmtree(tiny)


# --------------------------------------------------------------------------------- odd circumstances
@pytest.mark.parametrize("user", [0, USER])
def test_from_a_directory_that_is_gone_and_without_a_home(
    user: int, atoll_command: list[str]
) -> None:
    tool = Tool(atoll_command, user=user)
    del tool.environment["HOME"]
    words = " ".join(tool.words)
    script = f"mkdir /mnt/gone; cd /mnt/gone; rmdir /mnt/gone; exec {words} run -- sh -c 'pwd; echo $HOME'"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=False, timeout=30, env=tool.environment,
    )  # fmt: skip
    shutil.rmtree(
        f"/tmp/atoll-{user}", ignore_errors=True
    )  # where its journals have no better place
    assert (done.returncode, done.stdout, done.stderr) == (0, "/\n/root\n", "")


def test_the_same_name_twice_at_once(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    first = tool.start("run", "--name", "same", "--", "cat", stdin=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdin is not None
    first.stdin.write(b"up\n")
    first.stdin.flush()
    assert line_of(first.stdout) == b"up\n"
    assert tool.run("--name", "same", "--", "true") == (
        125,
        "",
        (
            "atoll run: same: container same is already running\n"
            "  fix    stop it first: lxc-stop -n same -P /var/lib/lxc\n"
        ),
    )
    assert first.communicate(b"still here\n", timeout=20) == (b"still here\n", b"")
    assert tool.run("--name", "same", "--", "hostname") == (0, "same\n", "")
    tool.unchanged()


def test_a_race_for_one_name_has_one_winner(atoll_command: list[str]) -> None:
    """All begin at the same moment; the winner goes on until the others have ended, and nobody disturbs it."""
    tool = Tool(atoll_command)
    starting = [
        tool.start("run", "--name", "same", "--", "cat", stdin=subprocess.PIPE) for _ in range(8)
    ]
    losers: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + 30
    while len(losers) < len(starting) - 1:
        losers = [process for process in starting if process.poll() is not None]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (winner,) = [process for process in starting if process not in losers]
    assert winner.communicate(b"mine\n", timeout=20) == (b"mine\n", b"")
    assert winner.returncode == 0
    for process in losers:
        out, err = process.communicate()
        assert (process.returncode, out) == (125, b"")
        assert re.match(
            rb"atoll run: same: container same is (being started or is )?already running\n", err
        ), err
    tool.unchanged()


def test_twenty_in_parallel(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    running = [
        tool.start("run", "--", "sh", "-c", f"echo {number}; exit {number}") for number in range(20)
    ]
    told = [(process.communicate(timeout=60), process.returncode) for process in running]
    assert told == [((f"{number}\n".encode(), b""), number) for number in range(20)]
    tool.unchanged()


def test_one_in_another(atoll_command: list[str]) -> None:
    tool = Tool(atoll_command)
    inner = [*atoll_command, "run", "--name", "inner", "--"]
    assert tool.run("--", *inner, "hostname") == (0, "inner\n", "")
    assert tool.run("--", *inner, "sh", "-c", "exit 9") == (9, "", "")
    status, out, err = tool.run("--", *inner, *inner, "hostname")
    assert (status, out, normal(err)) == (
        125,
        "",
        (
            "atoll run: inner: cannot mount an overlay above /: it is on overlays already, and the kernel stacks only two\n"
            "  from   lxc.rootfs.path = overlay:/:tmpfs        atoll run:2\n"
            "  step   NUMBER, MountOverlay, init side, phase rootfs\n"
            "  host   restored, ALL changes taken back\n"
            "  fix    use a directory that is on no overlay as the lower one\n"
        ),
    )
    tool.unchanged()


@needs("userns")
def test_one_in_another_of_users(atoll_command: list[str], repository: str) -> None:
    inner = [*atoll_command, "run", "--name", "inner"]
    shown = (
        "--bind",
        f"{repository}:{repository}:ro",
    )  # a checkout below /tmp is not in the image of a user
    tool = Tool(atoll_command, user=USER)
    script = ("sh", "-c", "hostname; id -u; ls /usr/bin/env")
    assert tool.run(*shown, "--", *inner, "--", *script) == (0, "inner\n0\n/usr/bin/env\n", "")
    tool.unchanged()


@needs("userns")
def test_a_user_in_a_container_of_root(atoll_command: list[str]) -> None:
    """Its /proc is masked, so the kernel refuses; the message tells a way, which works."""
    inner = [*atoll_command, "run", "--name", "inner"]
    tool = Tool(atoll_command)
    status, out, err = tool.run("--user", str(USER), "--", *inner, "--", "hostname")
    assert (status, out) == (125, "")
    assert normal(err) == (
        "atoll run: inner: cannot mount proc on /proc: the outer container masks parts of /proc, and the kernel lets a"
        " user namespace mount a new proc only where nothing of the old one is hidden\n"
        "  from   lxc.mount.auto = proc:mixed sys:ro       atoll run:5\n"
        "  step   NUMBER, MountProc, init side, phase rootfs\n"
        "  host   restored, ALL changes taken back\n"
        "  fix    start the outer container with its /proc unmasked (docker, podman: --security-opt unmask=/proc/*; LXC:"
        " lxc.mount.auto = proc:rw), or share it: lxc.mount.entry = /proc proc none rbind,create=dir 0 0 instead of proc"
        " in lxc.mount.auto\n"
    )
    shared = (
        "-s", "lxc.mount.auto=", "-s", "lxc.mount.auto=sys:ro", "-s",
        "lxc.mount.entry=/proc proc none rbind,create=dir 0 0",
    )  # fmt: skip
    told = tool.run("--user", str(USER), "--", *inner, *shared, "--", "hostname")
    assert told == (0, "inner\n", "")


def test_the_network_is_nobodys(atoll_command: list[str]) -> None:
    """A server of the host is not reached over the container's loopback."""
    tool = Tool(atoll_command)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = ("--", "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}")
        status, _out, err = tool.run(*words)
        assert (status, "Connection refused" in err) == (1, True)
        assert tool.run("-s", "lxc.net.0.type=none", *words)[0] == 0
