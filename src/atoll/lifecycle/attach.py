"""Entering a running container: its namespaces, cgroups, capabilities and environment, with one program's exit status.

Not lxc-console. The container may be liblxc's or ours: everything is asked over the command socket or read from /proc of
its init. Source: reference of LXC section 11.5 (processes, steps, environment).
"""

from __future__ import annotations

import os

from atoll.errors import HostError, StateError, reason
from atoll.lifecycle.client import CommandClient
from atoll.lifecycle.init import execute_program
from atoll.linux import files, proc, process
from atoll.log import get_logger
from atoll.records import Record
from atoll.resources import cgroup, limits, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.linux.process import Child, ExitStatus

log = get_logger(__name__)

ATTACH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Entry(Record):
    """How to enter. `namespaces` is a CLONE_NEW* mask, None for the container's own; ids are inside the container."""

    namespaces: int | None = None
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    cwd: str | None = None
    clear_environment: bool = False
    keep_variables: tuple[str, ...] = ()
    set_variables: tuple[str, ...] = ()
    keep_capabilities: bool = False
    keep_cgroup: bool = False
    architecture: str | None = None
    stdio: tuple[int, int, int] = (0, 1, 2)
    caller: str = "atoll"
    """Begins the message about a program that cannot be executed, which only the program's process can write."""
    terminal: int | None = None
    """Peer of a pty of the container that becomes the controlling terminal."""


class Target(Record):
    """What was learned of the container."""

    name: str
    lxcpath: str
    pid: int
    pidfd: OwnedFd
    flags: int
    status: Mapping[str, str]
    variables: tuple[str, ...]
    no_new_privileges: bool
    personality: str


def find(lxcpath: str, name: str, config: Config | None = None) -> Target:
    """Ask the container's monitor and /proc. Raises StateError when it is not running.

    `config` answers in the monitor's place what the configuration says (lxc-attach -f).
    """
    client = CommandClient(lxcpath, name)
    pidfd = client.get_init_pidfd()
    pid = client.get_init_pid()
    flags = client.get_clone_flags()
    if pid <= 0:
        pidfd.close()
        raise StateError(f"container {name} is not running", now="STARTING", wanted="RUNNING")
    status = proc.parse_status(files.read_text(f"/proc/{pid}/status"))
    item = client.get_config_item if config is None else config.get
    environment = item("lxc.environment") or ""
    return Target(
        name=name,
        lxcpath=lxcpath,
        pid=pid,
        pidfd=pidfd,
        flags=flags,
        status=status,
        variables=tuple(line for line in environment.split("\n") if line),
        no_new_privileges=item("lxc.no_new_privs") == "1",
        personality=item("lxc.arch") or "",
    )


def attach(
    host: Host, target: Target, entry: Entry, argv: tuple[str, ...], environ: Mapping[str, str]
) -> Child:
    """Start a program in the container and return it as our child (the caller waits for it and closes its pidfd).

    An intermediate process joins cgroup and namespaces and clones the program as our child (CLONE_PARENT), because a pid
    namespace holds only for children. Raises HostError with what went wrong on the way in, except for a program that cannot
    be executed: then the child exits with 127 (missing) or 126 and says so on its standard error.
    """
    ours, theirs = files.seqpacket_pair()
    plan = _Joining(
        host=host,
        target=target,
        entry=entry,
        argv=argv,
        environment=_environment(target, entry, environ),
    )
    fds = plan.namespace_fds()
    try:
        joiner = process.clone(lambda: plan.join(fds, theirs, ours))
    finally:
        theirs.close()
        for fd, _flag in fds:
            fd.close()
    try:
        with joiner.pidfd:
            if not entry.keep_cgroup:
                _enter_cgroup(host, target, joiner.pid)
            ours.send(b"go")
            data, received = ours.receive()
            if not data.isdigit():
                process.wait_pidfd(joiner.pidfd.fileno())
                message = (
                    data.decode("utf-8", "surrogateescape")
                    or "the process that was to enter it died"
                )
                raise HostError(f"cannot attach to {target.name}: {message}")
            child = process.Child(pid=int(data), pidfd=received[0])
            process.wait_pidfd(joiner.pidfd.fileno())
        problem, _none = ours.receive()
    finally:
        ours.close()
    if problem:
        process.wait_pidfd(child.pidfd.fileno())
        child.pidfd.close()
        raise HostError(
            f"cannot attach to {target.name}: {problem.decode('utf-8', 'surrogateescape')}"
        )
    return child


def _enter_cgroup(host: Host, target: Target, pid: int) -> None:
    try:
        cgroup.attach(host, cgroup.payload_paths(host, target.pid), pid)
    except OSError as error:
        raise HostError(
            f"cannot enter the cgroup of {target.name}: {reason(error)}", errno=error.errno
        ) from error


def _environment(target: Target, entry: Entry, environ: Mapping[str, str]) -> dict[str, str]:
    """LXC's rules: all of the caller's or only what is kept, then container=lxc, lxc.environment, then -v."""
    if entry.clear_environment:
        result = {name: environ[name] for name in entry.keep_variables if name in environ}
        result.setdefault("PATH", ATTACH_PATH)
    else:
        result = dict(environ)
    result["container"] = "lxc"
    for assignment in (*target.variables, *entry.set_variables):
        name, equals, value = assignment.partition("=")
        if equals:
            result[name] = value
        else:
            result.pop(name, None)  # putenv(3) of a bare name removes it
    return result


class _Joining(Record):
    """The way in, on the side of the child processes."""

    host: Host
    target: Target
    entry: Entry
    argv: tuple[str, ...]
    environment: dict[str, str]

    def namespace_fds(self) -> list[tuple[OwnedFd, int]]:
        """Descriptors of the namespaces to join, the user namespace first: the wanted ones that differ from ours."""
        found: list[tuple[OwnedFd, int]] = []
        wanted = self.entry.namespaces
        for name, flag in namespaces.NAMES.items():
            if wanted is not None and not wanted & flag:
                continue
            path = f"/proc/{self.target.pid}/ns/{name}"
            try:
                if os.stat(path).st_ino == os.stat(f"/proc/self/ns/{name}").st_ino:
                    continue
                found.append((files.open_fd(path, os.O_RDONLY), flag))
            except FileNotFoundError:
                continue
            except OSError as error:
                for fd, _flag in found:
                    fd.close()
                raise HostError(
                    f"cannot open the {name} namespace of {self.target.name}: {reason(error)}",
                    errno=error.errno,
                ) from error
        return found

    def join(
        self, fds: list[tuple[OwnedFd, int]], channel: files.Channel, other: files.Channel
    ) -> None:
        """The intermediate process."""
        other.close()
        try:
            data, _fds = channel.receive()
            if data != b"go":
                os._exit(1)
            process.set_dumpable(False)
            cwd = self.entry.cwd or os.getcwd()
            for fd, flag in fds:
                process.setns(fd.fileno(), flag)
            program = process.clone(
                lambda: self.become(channel, cwd), flags=process.CLONE_PARENT, exit_signal=0
            )
            channel.send(str(program.pid).encode(), (program.pidfd.fileno(),))
        except BaseException as error:  # noqa: BLE001 - the caller must hear whatever it was
            channel.send(_told(error))
        os._exit(0)

    def become(self, channel: files.Channel, cwd: str) -> None:
        """The program's process, inside."""
        try:
            self._settle(cwd)
        except BaseException as error:  # noqa: BLE001 - the caller must hear whatever it was
            channel.send(_told(error))
            os._exit(1)
        try:
            process.close_range(3, ~0 & 0xFFFFFFFF, cloexec=True)
            process.reset_signals()
            process.set_signal_mask(0)
            execute_program(self.argv, self.environment)
        except HostError as error:
            os.write(
                2,
                f"{self.entry.caller}: {self.target.name}: {error.message}\n".encode(
                    "utf-8", "surrogateescape"
                ),
            )
            os._exit(127 if error.errno in (None, 2) else 126)
        os._exit(127)

    def _settle(self, cwd: str) -> None:
        target, entry = self.target, self.entry
        _change_directory(cwd)
        architecture = entry.architecture or target.personality
        if architecture:
            process.personality(limits.parse_personality(architecture))
        if not entry.keep_capabilities:
            bounding = int(target.status["CapBnd"], 16)
            for capability in range(self.host.last_capability + 1):
                if not bounding & (1 << capability):
                    process.bounding_drop(capability)
        self._take_stdio()
        joined_user = process.CLONE_NEWUSER & target.flags and (
            entry.namespaces is None or entry.namespaces & process.CLONE_NEWUSER
        )
        uid, gid = entry.uid, entry.gid
        if joined_user:
            uid, gid = uid or 0, gid or 0
        elif uid is None and gid is None:
            uid, gid = 0 if self.host.uid == 0 else None, 0 if self.host.uid == 0 else None
        _set_ids(uid, gid, entry.groups)
        if target.no_new_privileges:
            process.no_new_privs()

    def _take_stdio(self) -> None:
        entry = self.entry
        if entry.terminal is not None:
            os.setsid()
        held = [os.dup(fd) for fd in entry.stdio]
        for number, fd in enumerate(held):
            os.dup2(fd, number)
            os.close(fd)
        if entry.terminal is not None:
            process.set_controlling_terminal(entry.terminal)


def _set_ids(uid: int | None, gid: int | None, groups: tuple[int, ...] | None) -> None:
    try:
        process.set_ids(None, None, groups or ())
    except PermissionError:
        groups = None  # setgroups is denied in a user namespace whose gid map was written without privilege
    process.set_ids(uid, gid, None)


def _change_directory(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError:
        os.chdir("/")


def _told(error: BaseException) -> bytes:
    notes = getattr(error, "__notes__", None)
    call = f" ({notes[0]})" if notes else ""
    return f"{reason(error)}{call}".encode("utf-8", "surrogateescape")


def wait(child: Child) -> ExitStatus:
    """Wait for an attached program."""
    with child.pidfd:
        status = process.wait_pidfd(child.pidfd.fileno())
    if status is None:
        raise HostError("the attached program's status was taken by somebody else")
    return status
