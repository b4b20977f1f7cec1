"""A start explains itself: what is printed is what is done, nothing is done by printing, and how long it took is told."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from typing import Any, NamedTuple

import pytest

import snapshot
from abilities import needs
from isolation import kernel

pytestmark = [needs("root", "busybox", "pidns", "veth"), pytest.mark.isolated(cgroup=True)]

LXCPATH = "/mnt/lxc"
USER = 4711
POINTS = "pre-start pre-mount mount autodev start start-host stop post-stop".split()


# ------------------------------------------------------------------------------------- the scene
def write(path: str, content: str, mode: int = 0o644) -> None:
    with open(path, "w") as file:
        file.write(content)
    os.chmod(path, mode)


def make(name: str, config: str, init: str = "/bin/sleep 1000") -> str:
    """A container of busybox; the path of its configuration."""
    rootfs = f"{LXCPATH}/{name}/rootfs"
    for directory in ("bin", "dev", "proc", "sys", "etc"):
        os.makedirs(f"{rootfs}/{directory}")
    shutil.copy("/bin/busybox", f"{rootfs}/bin/busybox")
    for applet in ("sh", "sleep", "true"):
        os.symlink("busybox", f"{rootfs}/bin/{applet}")
    write(
        f"{LXCPATH}/{name}/config",
        f"lxc.uts.name = {name}\nlxc.rootfs.path = dir:{rootfs}\nlxc.init.cmd = {init}\n{config}",
    )
    return f"{LXCPATH}/{name}/config"


def scene() -> None:
    for place in ("/mnt", "/run"):
        kernel.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    os.makedirs("/run/atoll/journal", 0o700)
    os.makedirs("/mnt/home/.cache/atoll/run/journal")
    os.mkdir(LXCPATH)
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)


def tool(command: list[str], *words: str, user: int = 0, status: int = 0) -> str:
    """The output of a tool."""
    environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    environment["HOME"] = "/mnt/home"
    ids = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"] if user else []
    done = subprocess.run(
        [*ids, *command, *words], capture_output=True, text=True, check=False, timeout=30, env=environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    if status == 0:
        assert done.stderr == ""
        return done.stdout
    return done.stderr


# ------------------------------------------------------------------------------- five configurations
class Started(NamedTuple):
    """The words of a start that ends by itself, or is stopped (`container`), and its user."""

    words: list[str]
    container: bool = False
    user: int = 0


def plain_run() -> Started:
    return Started(["run", "--name", "c1", "--read-only", "--", "true"])


VETH = """\
lxc.net.0.type = veth
lxc.net.0.link = br0
lxc.net.0.flags = up
lxc.net.0.ipv4.address = 10.0.3.7/24
lxc.net.1.type = veth
lxc.net.1.veth.ipv4.route = 10.9.0.0/24
lxc.tty.max = 2
lxc.cap.drop = sys_time sys_module
lxc.sysctl.net.ipv4.ip_forward = 1
lxc.prlimit.nofile = 100
lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed:force
lxc.mount.entry = tmpfs opt tmpfs create=dir 0 0
lxc.environment = A=1
"""


def busybox_with_veth() -> Started:
    make("c1", VETH)
    return Started(["lxc-start", "-P", LXCPATH, "-n", "c1"], container=True)


def id_mapped() -> Started:
    mapped = "lxc.idmap = u 0 1000000 65536\nlxc.idmap = g 0 1000000 65536\n"
    make("c1", f"{mapped}lxc.mount.auto = proc sys\nlxc.net.0.type = empty\n", init="/bin/true")
    return Started(["lxc-start", "-F", "-P", LXCPATH, "-n", "c1"])


def hooks_of_all_points() -> Started:
    hooks = "".join(f"lxc.hook.{point} = /mnt/hook\n" for point in POINTS if point != "start")
    make("c1", f"{hooks}lxc.hook.start = /bin/true\nlxc.hook.version = 1\n", init="/bin/true")
    write("/mnt/hook", '#!/bin/sh\necho "$LXC_HOOK_TYPE" >> /mnt/hooks-that-ran\n', 0o755)
    return Started(["lxc-start", "-F", "-P", LXCPATH, "-n", "c1"])


def ordinary_user() -> Started:
    make("c1", f"lxc.idmap = u 0 {USER} 1\nlxc.idmap = g 0 {USER} 1\nlxc.net.0.type = empty\n")
    subprocess.run(["chown", "-R", f"{USER}:{USER}", LXCPATH, "/mnt/home"], check=True)
    return Started(["lxc-execute", "-P", LXCPATH, "-n", "c1", "--", "/bin/true"], user=USER)


CONFIGURATIONS = [plain_run, busybox_with_veth, id_mapped, hooks_of_all_points, ordinary_user]


def insert(words: list[str], *options: str) -> list[str]:
    return [words[0], *options, *words[1:]]


def same(text: str) -> str:
    """Without the link names, of which each start has its own."""
    return re.sub(r"\bveth[0-9a-z]{8}(\d)", r"VETH\1", text)


def planned(command: list[str], started: Started) -> list[dict[str, Any]]:
    words = insert(started.words, "--explain", "--json")
    found: list[dict[str, Any]] = json.loads(tool(command, *words, user=started.user))
    return found


@needs("userns")
@pytest.mark.parametrize("made", CONFIGURATIONS)
def test_what_is_printed_is_what_is_done(made: Any, atoll_command: list[str]) -> None:
    scene()
    started = made()
    plan = planned(atoll_command, started)
    assert not os.path.exists("/mnt/hooks-that-ran")
    log = "/mnt/home/log"
    tool(atoll_command, *insert(started.words, "-l", "TRACE", "-o", log), user=started.user)
    if started.container:
        tool(atoll_command, "lxc-stop", "-k", "-P", LXCPATH, "-n", "c1")
    with open(log) as file:
        found = re.findall(r" - step (\d+) ([\w-]+) (monitor|init): (.*)", file.read())
    ending = next(n for n, step in enumerate(found) if step[1] == "stop")
    done = [(int(number), phase, side, same(text)) for number, phase, side, text in found[:ending]]
    wanted = [(step["number"], step["phase"], step["side"], same(step["text"])) for step in plan]
    assert done == wanted
    if made is hooks_of_all_points:
        with open("/mnt/hooks-that-ran") as file:
            assert file.read().split() == [point for point in POINTS if point != "start"]


@needs("userns")
@pytest.mark.parametrize("made", CONFIGURATIONS)
def test_the_text_and_the_data_say_the_same(made: Any, atoll_command: list[str]) -> None:
    scene()
    started = made()
    plan = planned(atoll_command, started)
    text = tool(atoll_command, *insert(started.words, "--explain"), user=started.user)
    head, *lines = text.splitlines()
    phases = list(dict.fromkeys(step["phase"] for step in plan))
    known = re.fullmatch(
        r"c1: (\d+) steps in (\d+) phases, in this order; nothing is done now", head
    )
    assert known is not None
    assert int(known[1]) == len(plan) == len(lines) - len(phases)
    expected: list[str] = []
    for step in plan:
        if step["phase"] not in expected:
            expected.append(step["phase"])
        origin = step["origin"]
        source = ""
        if origin:
            place = f"{origin['file']}:{origin['line']}" if origin["line"] else origin["file"]
            source = f"    <- {origin['text']}  ({place})"
        expected.append(f"  {step['number']:3} {step['side']:<7} {step['text']}{source}")
    assert [same(line) for line in lines] == [same(line) for line in expected]
    assert set(plan[0]) == {"number", "phase", "side", "step", "text", "origin"}
    assert [step["number"] for step in plan] == list(range(1, len(plan) + 1))


def test_each_line_of_the_configuration_is_at_its_steps(atoll_command: list[str]) -> None:
    scene()
    config = make("c1", VETH)
    plan = planned(atoll_command, Started(["lxc-start", "-P", LXCPATH, "-n", "c1"]))
    told = {step["origin"]["text"] for step in plan if step["origin"]}
    with open(config) as file:
        lines = [line.strip() for line in file]
    assert told <= set(lines)
    of_no_step = {"lxc.net.1.type = veth", "lxc.environment = A=1"}
    shown_elsewhere = {line for line in lines if line not in told}
    assert shown_elsewhere <= of_no_step, shown_elsewhere


def test_the_ways_to_ask(atoll_command: list[str]) -> None:
    scene()
    config = make("c1", VETH)
    ways = [
        ("explain", "-P", LXCPATH, "c1"),
        ("explain", "-P", LXCPATH, "-n", "c1", "-f", config),
        ("lxc-start", "-P", LXCPATH, "-n", "c1", "--explain"),
        ("lxc-start", "-P", LXCPATH, "-n", "c1", "-f", config, "--explain"),
    ]
    texts = {same(tool(atoll_command, *words)) for words in ways}
    assert len(texts) == 1
    (text,) = texts
    assert f"execute /bin/sleep 1000    <- lxc.init.cmd = /bin/sleep 1000  ({config}:3)\n" in text
    other = tool(
        atoll_command, *ways[0], "-s", "lxc.uts.name=other", "-s", "lxc.net=", "--", "/bin/sh", "-c", "x y"
    )  # fmt: skip
    assert "execute /bin/sh -c x y\n" in other
    assert "set the host name to other    <- lxc.uts.name=other  (-s)\n" in other
    assert "veth" not in other
    named = tool(atoll_command, "explain", "-f", config)
    assert named.startswith("explained: ")
    executed = tool(atoll_command, "lxc-execute", "-P", LXCPATH, "c1", "--explain", "--", "ls")
    assert "be init, and run ls\n" in executed


def test_what_cannot_be_explained(atoll_command: list[str]) -> None:
    scene()
    config = make("c1", "lxc.net.0.type = nosuch\n")
    asked = ("explain", "-P", LXCPATH, "c1")
    started = ("lxc-start", "-F", "-P", LXCPATH, "c1")
    told = tool(atoll_command, *asked, status=1)
    assert told == tool(atoll_command, *started, status=1).replace("lxc-start: ", "atoll explain: ")
    assert told.splitlines()[1] == f"  from   lxc.net.0.type = nosuch                  {config}:4"
    assert tool(atoll_command, "explain", "-P", LXCPATH, "none", status=1) == (
        f"atoll explain: none: container none is not defined: {LXCPATH}/none/config does not exist\n"
        "  fix    create it (lxc-create -n none -t busybox), give -f FILE, or give its lxcpath with -P\n"
    )
    assert tool(atoll_command, "explain", "-f", "/mnt/none", status=1) == (
        "atoll explain: cannot read the configuration /mnt/none: no such file or directory\n"
    )
    assert tool(atoll_command, "explain", status=1) == (
        "atoll explain: give a container's name, or -f FILE\n"
    )


# ------------------------------------------------------------------------------- it changes nothing
READING = set(
    "access arch_prctl brk capget close close_range epoll_create1 epoll_ctl execve exit exit_group faccessat faccessat2"
    " fcntl fstat futex getcwd getdents64 getegid geteuid getgid getpgrp getpid getppid getrandom getresgid getresuid"
    " getsockopt gettid getuid getxattr ioctl lgetxattr lseek lstat madvise mmap mprotect munmap newfstatat open openat openat2"
    " pipe2 poll ppoll pread64 prlimit64 read readlink readlinkat recvmsg rseq rt_sigaction rt_sigprocmask"
    " set_robust_list set_tid_address setsockopt sigaltstack socket connect sendmsg sendto stat statfs statx sysinfo"
    " uname write".split()
)
"""System calls that change nothing but the process itself; of some the arguments are looked at too."""
OPENING = {"O_RDONLY", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_PATH", "O_NOCTTY", "O_NONBLOCK", "O_LARGEFILE"}  # fmt: skip


def mutations(trace: str, sockets: bool) -> list[str]:
    """The lines of a trace that are not known to change nothing."""
    found = []
    for line in trace.splitlines():
        call = re.match(r"\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)(.*)", line)
        if call is None:
            if not re.match(r"\d+ +(\+\+\+|---) ", line):
                found.append(line)
        elif call[1] not in READING or not harmless(call[1], call[2], sockets):
            found.append(line)
    return found


def harmless(name: str, rest: str, sockets: bool) -> bool:
    if name in ("open", "openat", "openat2"):
        flags = re.search(r"\bO_\w+(\|O_\w+)*", rest)
        return flags is not None and set(flags[0].split("|")) <= OPENING
    if name == "ioctl":
        return re.search(r", (TCGETS|TIOCGWINSZ|TIOCGPGRP|FIOCLEX|FIONBIO)\b", rest) is not None
    if name == "fcntl":
        return re.search(r", F_(GETFD|GETFL|SETFD|SETFL|DUPFD_CLOEXEC)\b", rest) is not None
    if name == "write":
        return rest.startswith(("1, ", "2, "))
    if name == "prlimit64":
        return ", NULL, " in rest
    if name == "socket":
        return sockets and rest.startswith("AF_UNIX")
    if name == "connect":
        return sockets and 'sun_path=@"/mnt/lxc/' in rest
    return name not in ("sendmsg", "sendto", "recvmsg", "setsockopt") or sockets


@needs("strace")
@pytest.mark.parametrize(
    "words",
    [
        ["explain", "-P", LXCPATH, "c1"],
        ["explain", "-P", LXCPATH, "c1", "--json"],
        ["explain", "-f", f"{LXCPATH}/c1/config", "-s", "lxc.hook.pre-start=/bin/rm -rf /mnt"],
        ["lxc-start", "-P", LXCPATH, "-n", "c1", "--explain"],
        ["lxc-start", "-P", LXCPATH, "-n", "c1", "-F", "-p", "/mnt/pid", "--explain", "--json"],
        ["lxc-execute", "-P", LXCPATH, "-n", "c1", "--explain", "--", "true"],
        ["run", "--explain", "--keep", "--bind", "/mnt:/mnt", "--", "true"],
        ["lxc-start", "-P", LXCPATH, "-n", "c1", "--share-net=other", "--explain"],
    ],
)
def test_no_system_call_changes_anything(words: list[str], atoll_command: list[str]) -> None:
    scene()
    make(
        "c1",
        VETH
        + "lxc.hook.mount = /bin/false\nlxc.mount.fstab = /mnt/fstab\nlxc.log.file = /mnt/log\n",
    )
    write("/mnt/fstab", "tmpfs mnt tmpfs create=dir 0 0\n")
    shared = "--share-net=other" in words
    if shared:
        make("other", "lxc.net.0.type = empty\n")
        tool(atoll_command, "lxc-start", "-P", LXCPATH, "-n", "other")
    tool(atoll_command, *words)  # Python writes its cache
    before = snapshot.HostSnapshot.take("/mnt")
    with open("/run/trace", "wb") as trace:
        done = subprocess.run(
            ["strace", "-f", "-o", f"/proc/self/fd/{trace.fileno()}", *atoll_command, *words],
            capture_output=True, text=True, check=False, timeout=60, pass_fds=(trace.fileno(),),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "enter state RUNNING" in done.stdout
    with open("/run/trace") as file:
        text = file.read()
    os.unlink("/run/trace")
    assert text.count("openat(") > 20  # it is a trace of the tool
    assert ("connect(" in text) == shared
    assert mutations(text, shared) == []
    assert snapshot.settled(before, "/mnt") == []
    if shared:
        tool(atoll_command, "lxc-stop", "-k", "-P", LXCPATH, "-n", "other")


def test_the_judge_of_traces_sees_changes() -> None:
    """A judge that lets everything pass proves nothing."""
    for line in (
        'mkdir("/x", 0777) = 0', 'openat(AT_FDCWD, "/x", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 3',
        'openat(AT_FDCWD, "/x", O_RDWR|O_CLOEXEC) = 3', "clone3({flags=CLONE_NEWNS}, 88) = 7",
        'mount("a", "b", "c", 0, NULL) = 0', "socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) = 3",
        "socket(AF_UNIX, SOCK_STREAM, 0) = 3", 'write(3, "x", 1) = 1', 'unlink("/x") = 0', "ioctl(3, TCSETS, {}) = 0",
        "fcntl(3, F_SETLK, {}) = 0", "prlimit64(0, RLIMIT_NOFILE, {}, NULL) = 0", "<... mkdir resumed>) = 0",
        "bind(3, {}, 8) = 0", "prctl(PR_SET_NAME, x) = 0", "kill(1, 9) = 0", "vfork() = 9",
    ):  # fmt: skip
        assert mutations(f"12345 {line}", sockets=False) == [f"12345 {line}"]
    assert (
        mutations(
            '1 openat(AT_FDCWD, "/x", O_RDONLY|O_CLOEXEC) = 3\n1 +++ exited with 0 +++', False
        )
        == []
    )
    assert mutations('1 bind(3, {sa_family=AF_UNIX, sun_path=@"/mnt/lxc/x"}, 9) = 0', True) != []


# ------------------------------------------------------------------------------------ the timeline
def timed(name: str) -> tuple[list[str], bool]:
    if name == "run":
        return ["run", "--name", "c1", "--", "true"], False
    if name == "lxc-execute":
        return ["lxc-execute", "-P", LXCPATH, "-n", "c1", "--", "/bin/true"], False
    if name == "-F":
        return ["lxc-start", "-P", LXCPATH, "-n", "c1", "-F", "--", "/bin/true"], False
    return ["lxc-start", "-P", LXCPATH, "-n", "c1", name], True


@pytest.mark.parametrize("name", ["-d", "-F", "run", "lxc-execute"])
def test_timeline(name: str, atoll_command: list[str]) -> None:
    scene()
    make("c1", VETH)
    words, stop = timed(name)
    plan = planned(atoll_command, Started(words))
    tool(atoll_command, *insert(words, "--timeline", "/mnt/trace.json"))
    if stop:
        tool(atoll_command, "lxc-stop", "-k", "-P", LXCPATH, "-n", "c1")
    with open("/mnt/trace.json") as file:
        trace = json.load(file)
    check_chrome(trace)
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    steps = sorted((e for e in events if e["cat"] == "step"), key=lambda e: e["args"]["number"])
    rows = {e["args"]["name"]: e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert [(e["args"]["number"], e["args"]["step"], same(e["name"]), e["tid"]) for e in steps] == [
        (step["number"], step["step"], same(step["text"]), rows[step["side"]]) for step in plan
    ]
    for side in ("monitor", "init"):  # one after another on each side
        own = [e for e in steps if e["tid"] == rows[side]]
        assert all(a["ts"] + a["dur"] <= b["ts"] + 0.01 for a, b in itertools.pairwise(own))
    phases = {(e["name"], e["tid"]): e for e in events if e["cat"] == "phase"}
    assert set(phases) == {(step["phase"], rows[step["side"]]) for step in plan}
    for event, step in zip(steps, plan, strict=True):
        around = phases[step["phase"], rows[step["side"]]]
        assert around["ts"] - 0.01 <= event["ts"]
        assert event["ts"] + event["dur"] <= around["ts"] + around["dur"] + 0.01
    total = max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events)
    assert 0 < total < 30e6  # microseconds


def check_chrome(trace: dict[str, Any]) -> None:
    """What chrome://tracing and Perfetto want of the JSON object format."""
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] > 0
            assert isinstance(event["args"], dict)


def test_a_start_that_fails_has_a_timeline_that_can_be_read(atoll_command: list[str]) -> None:
    scene()
    make("c1", "lxc.hook.mount = /bin/false\n")
    words = ("lxc-start", "-F", "-P", LXCPATH, "-n", "c1", "--timeline", "/mnt/trace.json")
    assert "hook /bin/false" in tool(atoll_command, *words, status=1)
    with open("/mnt/trace.json") as file:
        trace = json.load(file)
    check_chrome(trace)
    done = {e["args"].get("step") for e in trace["traceEvents"]}
    assert "CloneInit" in done  # how far it came
    assert "RunHookInside" not in done


def test_explain_is_readable_through_a_pipe_that_closes(atoll_command: list[str]) -> None:
    scene()
    make("c1", VETH)
    words = " ".join([*atoll_command, "explain", "-P", LXCPATH, "c1"])
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    first, status = done.stdout.splitlines()
    assert first.startswith("c1: ")
    assert int(status) in (0, 128 + signal.SIGPIPE)  # whether head was quicker
    assert done.stderr == ""
