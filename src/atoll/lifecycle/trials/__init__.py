"""What this machine lets this user do, found out by doing it: lxc-checkconfig's answers.

Not facts that can be read (host.py), and no plan. Every trial runs in a forked child, in namespaces of its own where it would
change something; what it makes dies with them. One trace may stay: the kernel loads a module when somebody asks for what is in
it, as the first container would. Sources: the man page of each call; reference of LXC, section 11.9.
"""

from __future__ import annotations

import os
import select
from errno import (
    EACCES,
    EAFNOSUPPORT,
    ECANCELED,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    ETIMEDOUT,
    EUSERS,
)

from atoll.errors import reason
from atoll.linux import files, mount, process
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Final

    from atoll.host import Host

ENABLED: Final = "enabled"
DISABLED: Final = "disabled"
MISSING: Final = "missing"

PATIENCE: Final = 10.0  # seconds for one child: a helper may ask a directory service about users
ABSENT: Final = frozenset(
    (EAFNOSUPPORT, EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPROTONOSUPPORT)
)


class Trial(Record):
    """One thing that was tried: its name, enabled, disabled (there, but not for us) or missing, and why in few words."""

    item: str
    state: str
    reason: str = ""


def attempt(item: str, action: Callable[[], object], success: str = "") -> Trial:
    """Do it here and say how it went; `success` is the reason of an enabled one."""
    try:
        action()
    except OSError as error:
        return Trial(item=item, state=_state(error), reason=_why(error))
    return Trial(item=item, state=ENABLED, reason=success)


def _state(error: OSError) -> str:
    return MISSING if error.errno in ABSENT else DISABLED


def _why(error: OSError) -> str:
    if error.errno in ABSENT:
        return "not in this kernel"
    if error.errno in (EPERM, EACCES):
        return "not permitted"
    if error.errno in (ENOSPC, EUSERS):
        return "limit reached"
    return str(error.strerror) if error.errno == ECANCELED else reason(error)


def everything(host: Host, environ: Mapping[str, str]) -> tuple[tuple[str, tuple[Trial, ...]], ...]:
    """All trials as (section, items), in LXC's order and with its names where it has them."""
    from atoll.lifecycle.trials import machine, namespaces, network

    links = (*network.links(host), *network.netfilter(host, environ))
    return (
        ("Namespaces", namespaces.namespaces(host)),
        ("Control groups", machine.cgroups(host)),
        ("Misc", (*links, *machine.fuse())),
        ("Storage", machine.storage(host)),
        ("Kernel calls", machine.calls()),
        ("Security", machine.security(host)),
        ("Checkpoint/Restore", machine.checkpoint(host, environ)),
    )


def when(item: str, there: bool, otherwise: str = "not in this kernel", how: str = "") -> Trial:  # noqa: FBT001 - the finding itself
    """A finding that needed no trial; `otherwise` is the reason of what is missing, `how` of what is there."""
    return Trial(item=item, state=ENABLED if there else MISSING, reason=how if there else otherwise)


def text_of(path: str) -> str:
    """A small file's text without blanks around it; "" when it cannot be read."""
    try:
        return files.read_text(path).strip()
    except OSError:
        return ""


# -------------------------------------------------------------------------------------- a child
def in_child(work: Callable[[], Iterable[Trial]], items: Sequence[str]) -> tuple[Trial, ...]:
    """What `work` finds out in a forked child. When that dies or hangs, `items` are disabled, with how it ended."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()  # not clone3: it is one of the things to be tried
    if pid == 0:
        _work_and_exit(work, items, writer, parent)
    os.close(writer)
    try:
        text = _read_all(reader)
    except TimeoutError:
        os.kill(pid, process.SIGKILL)
        text = ""
    finally:
        os.close(reader)
        status = os.waitpid(pid, 0)[1]
    if text:
        from ast import literal_eval

        return tuple([Trial(item=i, state=s, reason=r) for i, s, r in literal_eval(text)])
    how = f"ended by signal {status & 127}" if status & 127 else "it did not say why"
    return tuple([Trial(item=item, state=DISABLED, reason=how) for item in items])


def _work_and_exit(
    work: Callable[[], Iterable[Trial]], items: Sequence[str], writer: int, parent: int
) -> None:
    try:
        process.set_death_signal(process.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        try:
            found = [(trial.item, trial.state, trial.reason) for trial in work()]
        except OSError as error:  # what comes before every one of them failed
            found = [(item, DISABLED, f"no scratch namespace: {_why(error)}") for item in items]
        os.write(writer, repr(found).encode())  # a few lines: less than a pipe holds
    finally:
        os._exit(0)


def _read_all(reader: int) -> str:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    chunks: list[bytes] = []
    while True:
        if not poll.poll(PATIENCE * 1000):
            raise TimeoutError(ETIMEDOUT, "the trial hangs")
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(chunks).decode()
        chunks.append(chunk)


def own_namespaces(host: Host, flags: int) -> None:
    """In the child: leave for new namespaces; who is not root gets them from a user namespace of his own."""
    if not host.privileged:
        become_root_inside(os.geteuid(), os.getegid())
    process.unshare(flags)
    if flags & process.CLONE_NEWNS:
        mount.mount(None, "/", flags=mount.MS_REC | mount.MS_PRIVATE)


def become_root_inside(uid: int, gid: int) -> None:
    """Leave for a new user namespace whose root is the caller, and where nobody else exists."""
    process.unshare(process.CLONE_NEWUSER)
    map_root(uid, gid)


def map_root(uid: int, gid: int) -> None:
    """In a new user namespace: be its root."""
    files.write_text("/proc/self/setgroups", "deny")
    files.write_text("/proc/self/uid_map", f"0 {uid} 1\n")
    files.write_text("/proc/self/gid_map", f"0 {gid} 1\n")


def run(*argv: str) -> int:
    """Run a program without its output; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    return os.waitpid(pid, 0)[1]


def program(name: str, environ: Mapping[str, str]) -> str | None:
    """The path of a program: in PATH, or where system programs are."""
    for directory in (
        *environ.get("PATH", "").split(":"),
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ):
        path = f"{directory}/{name}"
        if directory and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None
