"""Tools that enter a running container: lxc-attach.

Options, exit statuses and environment: reference of LXC section 11.5.
"""

from __future__ import annotations

import os

from atoll import host as host_module
from atoll.cli.options import UsageError
from atoll.config.text import Config
from atoll.lifecycle import attach as entering
from atoll.linux import files, proc, process
from atoll.loop import Loop
from atoll.resources import limits
from atoll.resources.namespaces import NAMES
from atoll.resources.terminal.carrier import ConsoleLog, Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.cli.options import Call
    from atoll.linux.process import Child, ExitStatus

ALIASES = {"mount": "mnt", "utsname": "uts", "network": "net"}
PRIVILEGES = ("CGROUP", "CAP", "LSM")


def lxc_attach(call: Call) -> int:
    """lxc-attach: a command (or the user's shell) inside, with its exit status."""
    chosen, privileges = _namespaces(call), _privileges(call)
    _check_architecture(call)
    if "LSM" in privileges and call.flag("context"):
        raise UsageError("Cannot combine elevated LSM privileges while requesting LSM profile")
    host = host_module.probe()
    rcfile = call.file("rcfile")
    config = None if rcfile is None else Config.read(rcfile)
    target = entering.find(call.lxcpath, call.name, config)
    with target.pidfd:
        entry = entering.Entry(
            namespaces=chosen,
            uid=call.number("uid"),
            gid=call.number("gid"),
            clear_environment=call.flag("clear-env"),
            keep_variables=call.texts("keep-var"),
            set_variables=call.texts("set-var"),
            keep_capabilities="CAP" in privileges,
            keep_cgroup="CGROUP" in privileges,
            architecture=call.text("arch"),
            stdio=(call.stdin, call.stdout, call.stderr),
            caller=call.program,
            cwd=call.cwd,
        )
        argv = call.operands or (_shell(target.pid, entry.uid or 0),)
        if not any(os.isatty(fd) for fd in entry.stdio):
            status = _wait(entering.attach(host, target, entry, argv, call.environ))
        else:
            status = _with_terminal(host, target, entry, argv, call)
    return status.shell


def _namespaces(call: Call) -> int | None:
    text = call.text("namespaces")
    if text is None:
        return None
    mask = 0
    for word in text.split("|"):
        name = word.strip().lower()
        name = ALIASES.get(name, name)
        if name not in NAMES:
            raise UsageError(f"unknown namespace '{word}'; there are {' '.join(NAMES)}")
        mask |= NAMES[name]
    return mask


def _check_architecture(call: Call) -> None:
    text = call.text("arch")
    if text is None:
        return
    try:
        limits.parse_personality(text)
    except ValueError as error:
        raise UsageError(f"--arch: {error}") from None


def _privileges(call: Call) -> tuple[str, ...]:
    text = call.text("elevated-privileges")
    if call.text("namespaces") is not None or text == "":
        return PRIVILEGES
    words = tuple(word.strip().upper() for word in text.split("|")) if text else ()
    for word in words:
        if word not in PRIVILEGES:
            raise UsageError(f"unknown privilege '{word}'; there are {' '.join(PRIVILEGES)}")
    return words


def _shell(pid: int, uid: int) -> str:
    """The login shell of `uid` in the container's own /etc/passwd, /bin/sh without one."""
    try:
        with (
            files.open_fd(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY) as root,
            files.open_beneath(root.fileno(), "etc/passwd", os.O_RDONLY) as passwd,
        ):
            text = os.read(passwd.fileno(), 1 << 20).decode("utf-8", "surrogateescape")
    except OSError:
        return "/bin/sh"
    return next((e.shell for e in proc.parse_passwd(text) if e.uid == uid and e.shell), "/bin/sh")


def _wait(child: Child) -> ExitStatus:
    """Wait, with keyboard signals left to the attached program, which has them from the same terminal."""
    process.ignore_signal(process.SIGINT)
    process.ignore_signal(process.SIGQUIT)
    try:
        return entering.wait(child)
    finally:
        process.default_signal(process.SIGINT)
        process.default_signal(process.SIGQUIT)


def _with_terminal(
    host: host_module.Host,
    target: entering.Target,
    entry: entering.Entry,
    argv: tuple[str, ...],
    call: Call,
) -> ExitStatus:
    """Give the program a pty of its own in place of our terminals: it must not get ours (TIOCSTI)."""
    ptmx, peer = _pty(target)
    log_path = call.file("pty-log")
    log_file = ConsoleLog(log_path) if log_path else None
    loop = Loop()
    with ptmx:
        with peer:
            number = peer.fileno()
            replaced = [number if os.isatty(fd) else fd for fd in entry.stdio]
            inside = entry.replace(stdio=tuple(replaced), terminal=number)
            child = entering.attach(host, target, inside, argv, call.environ)
        relay = Relay(loop, ptmx.fileno(), log_file=log_file, lasting=False)
        mask = process.signal_bits(process.SIGWINCH, process.SIGTERM, process.SIGHUP)
        old = process.block_signals(mask)
        with relay, process.signalfd(mask) as signals, child.pidfd:
            shown = next((fd for fd in (1, 2, 0) if os.isatty(entry.stdio[fd])), 0)
            typed = entry.stdio[0] if os.isatty(entry.stdio[0]) else -1
            relay.attach(typed, entry.stdio[shown])
            loop.watch(signals.fileno(), lambda _events: _signal(signals.fileno(), relay, child))
            loop.wait(child.pidfd.fileno())
            status = process.wait_pidfd(child.pidfd.fileno())
            relay.finish()
        process.set_signal_mask(old)
    loop.close()
    if status is None:
        raise ChildProcessError("the attached program's status was taken by somebody else")
    return status


def _signal(signals: int, relay: Relay, child: Child) -> None:
    while (info := process.read_signal(signals)) is not None:
        if info.signal == process.SIGWINCH:
            relay.resize()
        else:
            process.pidfd_send_signal(child.pidfd.fileno(), info.signal)


def _pty(target: entering.Target) -> tuple[files.OwnedFd, files.OwnedFd]:
    """A pty of the container's devpts where it has one, so that ttyname(3) works inside; else of the host's."""
    try:
        with (
            files.open_fd(f"/proc/{target.pid}/root", os.O_PATH | os.O_DIRECTORY) as root,
            files.open_beneath(root.fileno(), "dev/pts", os.O_PATH | os.O_DIRECTORY) as devpts,
        ):
            ptmx, peer, _name = files.openpty_in(devpts.fileno())
            return ptmx, peer
    except OSError:
        ptmx, peer, _name = files.openpty()
        return ptmx, peer
