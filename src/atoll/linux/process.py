"""Processes: clone, pidfds, namespaces, prctl, ids, capabilities, signals, resource limits, the process title.

Not about what a container needs of these: that is in resources and lifecycle. Sources of truth: the man page of each call
in section 2, capabilities(7), signal(7), linux/sched.h, linux/prctl.h, linux/capability.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from atoll.linux import libc
from atoll.linux.files import OwnedFd, read_text
from atoll.linux.libc import entering, note
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final

CLONE_NEWTIME: Final = 0x80
CLONE_PIDFD: Final = 0x1000
CLONE_PARENT: Final = 0x8000
CLONE_NEWNS: Final = 0x20000
CLONE_NEWCGROUP: Final = 0x2000000
CLONE_NEWUTS: Final = 0x4000000
CLONE_NEWIPC: Final = 0x8000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

NAMESPACES: Final = {
    "cgroup": CLONE_NEWCGROUP,
    "ipc": CLONE_NEWIPC,
    "mnt": CLONE_NEWNS,
    "net": CLONE_NEWNET,
    "pid": CLONE_NEWPID,
    "time": CLONE_NEWTIME,
    "user": CLONE_NEWUSER,
    "uts": CLONE_NEWUTS,
}
"""Clone flags by the name of the namespace below /proc/PID/ns."""

SIGHUP: Final = 1
SIGINT: Final = 2
SIGQUIT: Final = 3
SIGILL: Final = 4
SIGTRAP: Final = 5
SIGABRT: Final = 6
SIGIOT: Final = 6
SIGBUS: Final = 7
SIGFPE: Final = 8
SIGKILL: Final = 9
SIGUSR1: Final = 10
SIGSEGV: Final = 11
SIGUSR2: Final = 12
SIGPIPE: Final = 13
SIGALRM: Final = 14
SIGTERM: Final = 15
SIGSTKFLT: Final = 16
SIGCHLD: Final = 17
SIGCLD: Final = 17
SIGCONT: Final = 18
SIGSTOP: Final = 19
SIGTSTP: Final = 20
SIGTTIN: Final = 21
SIGTTOU: Final = 22
SIGURG: Final = 23
SIGXCPU: Final = 24
SIGXFSZ: Final = 25
SIGVTALRM: Final = 26
SIGPROF: Final = 27
SIGWINCH: Final = 28
SIGIO: Final = 29
SIGPOLL: Final = 29
SIGPWR: Final = 30
SIGSYS: Final = 31
SIGRTMIN: Final = 34  # 32 and 33 belong to the C library's threads
SIGRTMAX: Final = 64

SIGNALS: Final[dict[str, int]] = {
    name: value for name, value in globals().items() if name.startswith("SIG")
}
"""Signal numbers by name, with "SIG". The kernel's numbers for x86 and arm."""

PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
PR_SCHED_CORE: Final = 62
PR_SCHED_CORE_GET: Final = 0
PR_SCHED_CORE_CREATE: Final = 1
PR_SCHED_CORE_SHARE_TO: Final = 2
PR_SCHED_CORE_SHARE_FROM: Final = 3

RB_AUTOBOOT: Final = 0x1234567
RB_HALT_SYSTEM: Final = 0xCDEF0123
RB_ENABLE_CAD: Final = 0x89ABCDEF
RB_DISABLE_CAD: Final = 0
RB_POWER_OFF: Final = 0x4321FEDC

CAPABILITIES: Final[tuple[str, ...]] = (
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
)
"""Names by number, without "cap_"."""

RLIM_INFINITY: Final = -1
RLIMITS: Final = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
"""Resource numbers by name, as in asm-generic/resource.h (x86 and arm)."""

_ALL_SIGNALS: Final = (1 << 64) - 1
_RESETTABLE: Final = tuple(s for s in range(1, SIGRTMAX + 1) if s not in {SIGKILL, SIGSTOP, 32, 33})
_SIG_BLOCK: Final = 0
_SIG_UNBLOCK: Final = 1
_SIG_SETMASK: Final = 2
_SIG_DFL: Final = 0
_SIG_IGN: Final = 1
_WALL: Final = 0x40000000
_CLOSE_RANGE_CLOEXEC: Final = 4
_TIOCSCTTY: Final = 0x540E
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_CAPABILITY_VERSION_3: Final = 0x20080522
_SFD_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
_SIGNALFD_INFO: Final = struct.Struct("=IiiIIiIIIIi84x")


# ------------------------------------------------------------------------------- clone and wait
class Child(Record):
    """A process that clone made. `pid` is in the caller's pid namespace."""

    pid: int
    pidfd: OwnedFd


class ExitStatus(Record):
    """How a process ended: `value` is its exit status, or the signal that killed it when not `exited`."""

    exited: bool
    value: int

    @property
    def shell(self) -> int:
        """The status a shell shows: 128 + the signal for a killed process."""
        return self.value if self.exited else 128 + self.value

    @property
    def wait_status(self) -> int:
        """The status as wait(2) encodes it, without the core flag."""
        return self.value << 8 if self.exited else self.value


def clone(
    entry: Callable[[], object],
    *,
    flags: int = 0,
    cgroup_fd: int | None = None,
    exit_signal: int = SIGCHLD,
) -> Child:
    """Start a process that runs `entry` and never comes back: it execs, calls os._exit, or ends with exit status 1.

    `flags` are CLONE_NEW* and CLONE_PARENT (with which the child has the caller's own exit signal). `cgroup_fd` is a
    cgroup2 directory in which the child begins. Raises RuntimeError in a process with threads, whose locks the child
    would inherit locked for ever; OSError as clone(2) says, EBADF when `cgroup_fd` is of no cgroup2.
    """
    threads = thread_count()
    if threads != 1:
        raise RuntimeError(f"cannot clone: this process has {threads} threads")
    flags |= CLONE_PIDFD | (0 if cgroup_fd is None else CLONE_INTO_CGROUP)
    if flags & CLONE_PARENT:
        exit_signal = 0  # clone(2): EINVAL otherwise
    libc.resolve()
    pidfd = libc.buffer(4)
    fields = (flags, libc.address(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup_fd or 0)
    try:
        libc.number("clone3")
        entering("clone3", flags, cgroup_fd)
        pid = _clone(struct.pack("=11Q", *fields), entry)
    except OSError as error:
        text = f"clone3(2): flags={flags:#x} exit_signal={exit_signal} cgroup={cgroup_fd}"
        note(error, text)
        raise
    return Child(pid=pid, pidfd=OwnedFd(*struct.unpack("=i", pidfd.raw)))


def _clone(arguments: bytes, entry: Callable[[], object]) -> int:
    """The part that two processes leave, each in its own way.

    Signals are blocked across the call: a Python handler that raised in the child, before it is inside the
    `try`, would send the child through the parent's clean-up.
    """
    mask = _change_signal_mask(_SIG_BLOCK, _ALL_SIGNALS)
    libc.before_fork()
    pid = -errno.EAGAIN
    try:
        pid = libc.clone3(arguments)
        if pid == 0:
            libc.after_fork_child()
            _change_signal_mask(_SIG_SETMASK, mask)
            entry()
    except BaseException as error:
        if pid != 0:
            raise
        _last_words(error)
    finally:
        if pid == 0:
            os._exit(1)
        libc.after_fork_parent()
        _change_signal_mask(_SIG_SETMASK, mask)
    if pid < 0:
        raise libc.errno_error(-pid)
    return pid


def _last_words(error: BaseException) -> None:
    """Write a traceback to fd 2, by hand: the interpreter's own opens source files, which here may be a container's."""
    try:
        lines = [f"process {os.getpid()}, between clone and exec:"]
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
            trace = trace.tb_next
        lines.append(f"{type(error).__name__}: {error}")
        lines.extend(f"  {text}" for text in getattr(error, "__notes__", ()))
        os.write(2, "\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))
    except BaseException:  # noqa: BLE001, S110 - the process ends either way, and has nobody left to tell
        pass


def spawn(path: str, argv: Sequence[str], environment: Mapping[str, str], *, mask: int = 0) -> int:
    """Start a program in a session of its own, with this signal mask, and return its pid; posix_spawn(3).

    Nothing of this process is copied: it waits until the program is executed, so it is told why one cannot be, and a
    process of our size comes to run it in half the time of a fork. Ignored signals stay ignored. Raises OSError.
    """
    try:
        entering("posix_spawn", path)
        blocked = [sig for sig in range(1, SIGRTMAX + 1) if mask >> (sig - 1) & 1] if mask else []
        return os.posix_spawn(path, list(argv), environment, setsid=True, setsigmask=blocked)
    except OSError as error:
        note(error, f"posix_spawn(3): path={path!r} argv={list(argv)}", path)
        raise


def thread_count() -> int:
    """The number of threads of this process; where /proc is missing, of those that run Python."""
    try:
        count = os.stat("/proc/self/task").st_nlink - 2  # a directory for each
        return count if count > 0 else len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return len(sys._current_frames())  # noqa: SLF001 - documented, CPython only


def pidfd_open(pid: int) -> OwnedFd:
    """Open a descriptor of a process. Raises ProcessLookupError when there is none; pidfd_open(2)."""
    try:
        entering("pidfd_open", pid)
        return OwnedFd(libc.syscall("pidfd_open", pid, 0))
    except OSError as error:
        note(error, f"pidfd_open(2): pid={pid}")
        raise


def pidfd_send_signal(pidfd: int, sig: int) -> None:
    """Send a signal; 0 only asks whether the process is there. Raises ProcessLookupError when it was reaped."""
    try:
        entering("pidfd_send_signal", pidfd, sig)
        libc.syscall("pidfd_send_signal", pidfd, sig, None, 0)
    except OSError as error:
        note(error, f"pidfd_send_signal(2): pidfd={pidfd} sig={sig}")
        raise


def pidfd_getfd(pidfd: int, fd: int) -> OwnedFd:
    """Duplicate descriptor `fd` of another process. Needs the right to trace it; pidfd_getfd(2)."""
    try:
        entering("pidfd_getfd", pidfd, fd)
        return OwnedFd(libc.syscall("pidfd_getfd", pidfd, fd, 0))
    except OSError as error:
        note(error, f"pidfd_getfd(2): pidfd={pidfd} targetfd={fd}")
        raise


def wait_pidfd(pidfd: int, *, block: bool = True, reap: bool = True) -> ExitStatus | None:
    """Wait for the end of a child; None only when not `block` and it still runs. Without `reap` it stays a zombie.

    Raises ChildProcessError when the process is no child of ours or was reaped; waitid(2).
    """
    options = os.WEXITED | _WALL | (0 if block else os.WNOHANG) | (0 if reap else os.WNOWAIT)
    try:
        result = os.waitid(os.P_PIDFD, pidfd, options)
    except OSError as error:
        note(error, f"waitid(2): idtype=P_PIDFD id={pidfd} options={options:#x}")
        raise
    if result is None:
        return None
    return ExitStatus(exited=result.si_code == os.CLD_EXITED, value=result.si_status)


# ----------------------------------------------------------------------------------- namespaces
def namespace_names(flags: int) -> str:
    """CLONE_NEW* flags by name: "CLONE_NEWNS|CLONE_NEWPID"; "0" for none."""
    known = {"mnt": "ns"}
    names = [
        f"CLONE_NEW{known.get(name, name).upper()}"
        for name, bit in NAMESPACES.items()
        if flags & bit
    ]
    return "|".join(names) or "0"


def unshare(flags: int) -> None:
    """Leave the caller's namespaces for new ones; for pid and time those of its children. unshare(2)."""
    try:
        entering("unshare", flags)
        libc.call("unshare", flags)
    except OSError as error:
        note(error, f"unshare(2): flags={namespace_names(flags)}")
        raise


def setns(fd: int, flags: int = 0) -> None:
    """Enter a namespace by its descriptor, or those in `flags` of the process of a pidfd. setns(2)."""
    try:
        entering("setns", fd, flags)
        libc.call("setns", fd, flags)
    except OSError as error:
        note(error, f"setns(2): fd={fd} nstype={namespace_names(flags)}")
        raise


def sethostname(name: str) -> None:
    """Set the host name of the uts namespace, at most 64 bytes; sethostname(2)."""
    _set_uts_name("sethostname", name)


def setdomainname(name: str) -> None:
    """Set the NIS domain name of the uts namespace, at most 64 bytes; setdomainname(2)."""
    _set_uts_name("setdomainname", name)


def _set_uts_name(call: str, name: str) -> None:
    data = os.fsencode(name)
    try:
        entering(call, name)
        libc.call(call, data, len(data))
    except OSError as error:
        note(error, f"{call}(2): name={name!r}")
        raise


# ---------------------------------------------------------------------------------------- prctl
def prctl(option: int, *args: int) -> int:
    """Operate on the calling thread; arguments that are not given are 0. prctl(2)."""
    words = (*args, 0, 0, 0, 0)[:4]
    try:
        entering("prctl", option, *args)
        return libc.call("prctl", option, *words)
    except OSError as error:
        note(error, f"prctl(2): option={option} args={args}")
        raise


def set_death_signal(sig: int) -> None:
    """Have this signal when the parent *thread* ends; 0 for none. A change of credentials clears it."""
    prctl(PR_SET_PDEATHSIG, sig)


def get_death_signal() -> int:
    """The signal that the death of the parent brings; 0 for none."""
    memory = libc.buffer(4)
    prctl(PR_GET_PDEATHSIG, libc.address(memory))
    sig: int = struct.unpack("=i", memory.raw)[0]
    return sig


def set_name(name: str) -> None:
    """Name the thread, as ps shows it in COMM; what is beyond 15 bytes is cut off."""
    memory = libc.buffer(os.fsencode(name)[:15].ljust(16, b"\0"))
    prctl(PR_SET_NAME, libc.address(memory))


def set_dumpable(dumpable: bool) -> None:  # noqa: FBT001 - it is the value, not a mode
    """Let others of the same user trace this process and read its /proc files, or not. An exec makes it dumpable."""
    prctl(PR_SET_DUMPABLE, int(dumpable))


def set_subreaper(subreaper: bool) -> None:  # noqa: FBT001 - it is the value, not a mode
    """Become the parent of orphaned descendants, or not."""
    prctl(PR_SET_CHILD_SUBREAPER, int(subreaper))


def no_new_privs() -> None:
    """Make exec unable to grant privileges, for ever."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def bounding_drop(cap: int) -> None:
    """Take a capability (its number) out of the bounding set. Needs CAP_SETPCAP; EINVAL for an unknown number."""
    prctl(PR_CAPBSET_DROP, cap)


def bounding_has(cap: int) -> bool:
    """Whether the bounding set has a capability. Raises OSError(EINVAL) for a number that this kernel does not know."""
    return prctl(PR_CAPBSET_READ, cap) == 1


def ambient_raise(cap: int) -> None:
    """Add a capability to the ambient set. EPERM unless it is permitted and inheritable."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap)


def ambient_clear() -> None:
    """Empty the ambient set."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


# ---------------------------------------------------------------------------------- credentials
class Capabilities(Record):
    """Capability sets of a thread, as masks with bit `number`."""

    effective: int
    permitted: int
    inheritable: int


def capabilities() -> Capabilities:
    """The capability sets of the calling thread; capget(2)."""
    data = libc.buffer(24)
    libc.syscall("capget", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data)
    words = struct.unpack("=6I", data.raw)
    low, high = words[:3], words[3:]
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return Capabilities(effective=effective, permitted=permitted, inheritable=inheritable)


def set_capabilities(sets: Capabilities) -> None:
    """Set the capability sets of the calling thread; capset(2)."""
    masks = (sets.effective, sets.permitted, sets.inheritable)
    words = [m & 0xFFFFFFFF for m in masks] + [m >> 32 for m in masks]
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    try:
        entering("capset", *masks)
        libc.syscall("capset", header, struct.pack("=6I", *words))
    except OSError as error:
        e, p, i = masks
        note(error, f"capset(2): effective={e:#x} permitted={p:#x} inheritable={i:#x}")
        raise


def set_ids(uid: int | None, gid: int | None, groups: tuple[int, ...] | None) -> None:
    """Become a user: supplementary groups, then all group ids, then all user ids; None leaves as it is.

    A change from uid 0 to another drops the capabilities and the death signal; setresuid(2), capabilities(7).
    """
    if groups is not None:
        try:
            entering("setgroups", groups)
            os.setgroups(groups)
        except OSError as error:
            note(error, f"setgroups(2): groups={groups}")
            raise
    if gid is not None:
        try:
            entering("setresgid", gid)
            os.setresgid(gid, gid, gid)
        except OSError as error:
            note(error, f"setresgid(2): gid={gid}")
            raise
    if uid is not None:
        try:
            entering("setresuid", uid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            note(error, f"setresuid(2): uid={uid}")
            raise


def join_session_keyring() -> int:
    """Replace the session keyring by a new anonymous one, and return its serial number; keyctl(2)."""
    try:
        entering("keyctl", "KEYCTL_JOIN_SESSION_KEYRING")
        return libc.syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)
    except OSError as error:
        note(error, "keyctl(2): operation=KEYCTL_JOIN_SESSION_KEYRING name=NULL")
        raise


def personality(persona: int) -> int:
    """Set the execution domain and return the former one; 0xffffffff only asks. personality(2)."""
    try:
        entering("personality", persona)
        return libc.call("personality", persona)
    except OSError as error:
        note(error, f"personality(2): persona={persona:#x}")
        raise


def reboot(cmd: int) -> None:
    """Reboot the machine, or end the pid namespace the caller is in: RB_AUTOBOOT by SIGHUP, RB_POWER_OFF by SIGINT.

    reboot(2), pid_namespaces(7).
    """
    try:
        entering("reboot", cmd)
        libc.call("reboot", cmd)
    except OSError as error:
        note(error, f"reboot(2): cmd={cmd:#x}")
        raise


# -------------------------------------------------------------------------------------- signals
class SignalInfo(Record):
    """A signal from a signalfd. `code` is si_code; `status` is a child's exit status or signal, for SIGCHLD."""

    signal: int
    pid: int
    uid: int
    code: int
    status: int


def signal_bits(*sigs: int) -> int:
    """The mask of some signals: bit `sig - 1` each."""
    mask = 0
    for sig in sigs:
        mask |= 1 << (sig - 1)
    return mask


def _change_signal_mask(how: int, mask: int) -> int:
    old = libc.buffer(8)
    libc.syscall("rt_sigprocmask", how, struct.pack("=Q", mask), old, 8)
    former: int = struct.unpack("=Q", old.raw)[0]
    return former


def _signal_mask(how: int, mask: int) -> int:
    try:
        entering("rt_sigprocmask", how, mask)
        return _change_signal_mask(how, mask)
    except OSError as error:
        note(error, f"rt_sigprocmask(2): how={how} set={mask:#x}")
        raise


def block_signals(mask: int) -> int:
    """Block the signals in a mask, besides those that are; return the former mask. sigprocmask(2)."""
    return _signal_mask(_SIG_BLOCK, mask)


def unblock_signals(mask: int) -> int:
    """Unblock the signals in a mask; return the former mask. sigprocmask(2)."""
    return _signal_mask(_SIG_UNBLOCK, mask)


def set_signal_mask(mask: int) -> int:
    """Block exactly the signals in a mask; return the former mask. An exec keeps it. sigprocmask(2)."""
    return _signal_mask(_SIG_SETMASK, mask)


def _set_handler(sig: int, handler: int) -> None:
    try:
        entering("signal", sig, handler)
        libc.call("signal", sig, handler)
    except OSError as error:
        note(error, f"signal(2): signum={sig} handler={'SIG_IGN' if handler else 'SIG_DFL'}")
        raise


def default_signal(sig: int) -> None:
    """Give a signal its default action, behind the back of Python's signal module; signal(2)."""
    _set_handler(sig, _SIG_DFL)


def ignore_signal(sig: int) -> None:
    """Ignore a signal, behind the back of Python's signal module; signal(2)."""
    _set_handler(sig, _SIG_IGN)


def reset_signals() -> None:
    """Give every signal its default action before an exec, which keeps ignored ones: Python ignores SIGPIPE, SIGXFSZ."""
    set_handler = libc.function("signal")
    try:
        entering("signal", "all", _SIG_DFL)
        for sig in _RESETTABLE:
            if set_handler(sig, _SIG_DFL) == -1:
                raise libc.last_error()
    except OSError as error:
        note(error, "signal(2): all signals, handler=SIG_DFL")
        raise


def signalfd(mask: int, fd: int | None = None) -> OwnedFd:
    """A non-blocking descriptor of the signals in a mask, which should be blocked as well; signalfd(2).

    With `fd`, an existing one gets this mask, and a duplicate of it is returned.
    """
    try:
        entering("signalfd4", mask, fd)
        target = -1 if fd is None else fd
        result = libc.syscall("signalfd4", target, struct.pack("=Q", mask), 8, _SFD_FLAGS)
        return OwnedFd(result if fd is None else os.dup(fd))
    except OSError as error:
        note(error, f"signalfd(2): fd={fd} mask={mask:#x}")
        raise


def read_signal(fd: int) -> SignalInfo | None:
    """The next signal of a signalfd, or None when there is none."""
    try:
        entering("read", fd)
        data = os.read(fd, _SIGNALFD_INFO.size)
    except BlockingIOError:
        return None
    except OSError as error:
        note(error, f"read(2): signalfd={fd}")
        raise
    sig, _, code, pid, uid, _, _, _, _, _, status = _SIGNALFD_INFO.unpack(data)
    return SignalInfo(signal=sig, pid=pid, uid=uid, code=code, status=status)


# --------------------------------------------------------------------------- limits and the rest
def get_prlimit(pid: int, resource_number: int) -> tuple[int, int]:
    """Soft and hard limit of a process (0: this one); RLIM_INFINITY for none. prlimit(2)."""
    old = libc.buffer(16)
    try:
        libc.syscall("prlimit64", pid, resource_number, None, old)
    except OSError as error:
        note(error, f"prlimit(2): pid={pid} resource={resource_number}")
        raise
    soft, hard = struct.unpack("=qq", old.raw)
    return soft, hard


def prlimit(pid: int, resource_number: int, soft: int, hard: int) -> None:
    """Set soft and hard limit of a process (0: this one); RLIM_INFINITY for none. prlimit(2)."""
    mask = (1 << 64) - 1
    try:
        entering("prlimit", pid, resource_number, soft, hard)
        new = struct.pack("=QQ", soft & mask, hard & mask)
        libc.syscall("prlimit64", pid, resource_number, new, None)
    except OSError as error:
        note(error, f"prlimit(2): pid={pid} resource={resource_number} soft={soft} hard={hard}")
        raise


def close_range(first: int, last: int, *, cloexec: bool = False) -> None:
    """Close the descriptors from `first` to `last` inclusive, or make them close on exec; close_range(2).

    Linux before 5.9 (before 5.11 for `cloexec`) lacks the call: then one by one, from /proc/self/fd.
    """
    flags = _CLOSE_RANGE_CLOEXEC if cloexec else 0
    try:
        entering("close_range", first, last, flags)
        libc.syscall("close_range", first, last, flags)
    except OSError as error:
        if error.errno == errno.ENOSYS or (cloexec and error.errno == errno.EINVAL):
            _close_one_by_one(first, last, cloexec=cloexec)
            return
        note(error, f"close_range(2): first={first} last={last} flags={flags}")
        raise


def _close_one_by_one(first: int, last: int, *, cloexec: bool) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if not first <= fd <= last:
            continue
        try:
            if cloexec:
                os.set_inheritable(fd, False)
            else:
                os.close(fd)
        except OSError as error:  # the listing's own descriptor is gone by now
            if error.errno != errno.EBADF:
                raise


def set_controlling_terminal(fd: int) -> None:
    """Make a terminal the controlling one of this session, of which the caller is leader; ioctl_tty(2)."""
    try:
        entering("ioctl", fd, "TIOCSCTTY")
        fcntl.ioctl(fd, _TIOCSCTTY, 0)
    except OSError as error:
        note(error, f"ioctl(2): fd={fd} request=TIOCSCTTY arg=0")
        raise


def set_process_title(title: str) -> None:
    """Show a title as the command line in ps, as far as it fits over the original arguments and environment.

    Best effort: without /proc nothing happens. The kernel ends the title at its first zero byte when the last byte of
    the arguments is not zero (fs/proc/base.c, get_mm_cmdline); PR_SET_MM would need CAP_SYS_RESOURCE.
    """
    try:
        fields = read_text("/proc/self/stat").rpartition(")")[2].split()
        arg_start, arg_end, env_start, env_end = (int(field) for field in fields[45:49])
    except (OSError, ValueError):
        return
    if not 0 < arg_start < arg_end:
        return
    end = env_end if env_start == arg_end and env_end > arg_end else arg_end
    data = os.fsencode(title)[: end - arg_start - 1] + b"\0"
    room = arg_end - arg_start
    if len(data) > room:
        # The C library's environment still points to what is overwritten: setenv(3) copies each to the heap.
        for name, value in list(os.environ.items()):
            os.environ[name] = value
    elif len(data) < room:
        data = data.ljust(room - 1, b"\0") + b"."
    libc.poke(arg_start, data)
