"""Credentials of init: ids, capabilities, no_new_privs, keyring, environment, working directory, death signal; path access.

Not id maps (idmap.py), LSM labels (lsm.py) nor seccomp (seccomp.py). Sources: capabilities(7), credentials(7), prctl(2),
session-keyring(7), reboot(2); reference of LXC, sections 1.6, 2.6, 9.1 and 9.2.
"""

from __future__ import annotations

import errno
import os
import select
from stat import S_IMODE, S_ISDIR

from atoll.config import keys
from atoll.config.keys import Kind, Section, flag, key, many, parse_integer, within
from atoll.errors import ConfigError, HostError
from atoll.linux import files, process
from atoll.linux.process import CAPABILITIES, CLONE_NEWPID, CLONE_NEWUSER, SIGKILL
from atoll.log import DEBUG, WARN
from atoll.plan import HOOK_ENVIRONMENT, ROOTFS, HostStep, InitStep, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, ClassVar

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.linux.files import OwnedFd
    from atoll.plan import Handler, Start

MONITOR_PIDFD: Slot[OwnedFd] = Slot("monitor pidfd")
"""The monitor, for init to see whether it still lives: getppid() is 0 in a new pid namespace."""
REBOOT_SUPPORTED = Slot[bool]("reboot supported")
"""reboot(2) in a pid namespace ends that namespace, not the machine."""
PATH_OWNERS: Slot[dict[str, tuple[int, int]]] = Slot("path owners")
"""Mode and owner, as the host sees them, of each directory that the container's root must pass."""
INIT_ENVIRONMENT: Slot[dict[str, str]] = Slot("init environment")
"""The whole environment that init is executed with."""

REBOOT_SINCE = (3, 4)
"""Linux whose reboot(2) knows pid namespaces."""
_SYS_BOOT = CAPABILITIES.index("sys_boot")
_CAPABILITY_NUMBER_MAX = 63
NONE = "none"


# ------------------------------------------------------------------------------------------- keys
def _parse_capability(value: str) -> str:
    """A name or number as typed, which is what LXC's getter gives back."""
    if value not in CAPABILITIES:
        try:
            parse_integer(value, 0, _CAPABILITY_NUMBER_MAX)
        except ValueError:
            raise ValueError(f"invalid capability specified: {value}") from None
    return value


def _parse_dropped(value: str) -> str:
    if value == NONE:
        raise ValueError('the "none" keyword is only valid when keeping caps')
    return _parse_capability(value)


def _parse_kept(value: str) -> str:
    return value if value == NONE else _parse_capability(value)


def _exclude_kept(values: dict[str, object], _new: object) -> None:
    if values.get("keep"):
        raise ValueError("keeping and dropping capabilities are mutually exclusive")


def _exclude_dropped(values: dict[str, object], _new: object) -> None:
    if values.get("drop"):
        raise ValueError("keeping and dropping capabilities are mutually exclusive")


def after_none(names: Sequence[str]) -> tuple[str, ...]:
    """lxc.cap.keep without what stands before its last `none`, which empties the list."""
    kept: list[str] = []
    for name in names:
        if name == NONE:
            kept.clear()
        else:
            kept.append(name)
    return tuple(kept)


class Capabilities(Section):
    """lxc.cap.*: the bounding set of the container."""

    drop: tuple[str, ...] = key(
        "lxc.cap.drop",
        many(Kind(_parse_dropped, name="capability", values=CAPABILITIES), split=str.split),
        clears=("keep",),
        check=_exclude_kept,
        doc="Capabilities that the container never gets: names of capabilities(7) in lower case"
        " without cap_, or numbers, with blanks between. Not together with lxc.cap.keep.",
        example="sys_module sys_time mac_admin",
        since="1.x",
    )
    keep: tuple[str, ...] = key(
        "lxc.cap.keep",
        many(Kind(_parse_kept, name="capability", values=(*CAPABILITIES, NONE)), split=str.split),
        clears=("drop",),
        check=_exclude_dropped,
        show=lambda names: "".join(f"{name}\n" for name in after_none(names)),
        doc="The only capabilities that the container may have, written like lxc.cap.drop; `none`"
        " forgets those before it, and alone leaves none.",
        example="chown kill net_bind_service",
        since="1.x",
    )


def _split_commas(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _parse_group(value: str) -> int:
    try:
        return parse_integer(value, 0, keys.UINT_MAX - 1)
    except ValueError:
        raise ValueError(f"failed to parse group {value}") from None


class Init(Section):
    """lxc.init.*: what is run as the container's first process, and as whom."""

    cmd: str | None = key(
        "lxc.init.cmd",
        keys.text,
        doc="Command line of init, split at single blanks. Unset: /sbin/init.",
        example="/sbin/init --log-level=debug",
        since="2.x",
    )
    uid: int = key(
        "lxc.init.uid",
        within(0, keys.UINT_MAX - 1),
        default=0,
        doc="User id of init, as the container numbers it.",
        example="1000",
        since="2.x",
    )
    gid: int = key(
        "lxc.init.gid",
        within(0, keys.UINT_MAX - 1),
        default=0,
        doc="Group id of init, as the container numbers it.",
        example="1000",
        since="2.x",
    )
    groups: tuple[int, ...] = key(
        "lxc.init.groups",
        many(Kind(_parse_group, name="number"), split=_split_commas, separator=",", end=""),
        doc="Further group ids of init, with commas between.",
        example="5,27",
        since="5.0.2",
    )
    cwd: str | None = key(
        "lxc.init.cwd",
        keys.path,
        doc="Directory in the container that init starts in. Unset: /.",
        example="/srv",
        since="5.0.2",
    )


def _parse_variable(value: str) -> str:
    """NAME=value, or NAME for the caller's value at this moment."""
    if "=" in value:
        return value
    inherited = os.environ.get(value)
    if inherited is None:
        raise ValueError(f"{value} is not set in the caller's environment")
    return f"{value}={inherited}"


class Environment(Section):
    """lxc.environment*: variables for hooks inside and for init."""

    entries: tuple[str, ...] = key(
        "lxc.environment",
        many(Kind(_parse_variable, name="variable")),
        doc="NAME=VALUE, or NAME for what the caller has, which must have it: for init, and for"
        " the hooks that init runs.",
        example="LANG=C.UTF-8",
        since="1.x",
    )
    runtime: tuple[str, ...] = key(
        "lxc.environment.runtime",
        many(Kind(_parse_variable, name="variable")),
        doc="The same for init alone.",
        example="SERVICE=web",
        since="HEAD",
    )
    hooks: tuple[str, ...] = key(
        "lxc.environment.hooks",
        many(Kind(_parse_variable, name="variable")),
        doc="The same for those hooks alone.",
        example="DEBUG=1",
        since="HEAD",
    )


class NoNewPrivs(Section):
    """lxc.no_new_privs."""

    wanted: bool = key(
        "lxc.no_new_privs",
        flag,
        default=False,
        doc="1: no program in the container can gain privileges by being executed (set-uid, file"
        " capabilities).",
        example="1",
        since="5.0.2",
    )


class Keyring(Section):
    """lxc.keyring.session. LXC's manual has it the other way round; its code, and this, do what is said here."""

    inherit: bool = key(
        "lxc.keyring.session",
        flag,
        default=False,
        doc="1: keep the caller's session keyring; 0: begin with a new one. LXC's manual has it"
        " the other way round than LXC.",
        example="1",
        since="5.0.2",
    )


# ------------------------------------------------------------------------------------------ plans
def kept_mask(config: Config, host: Host) -> int:
    """The bounding set of init as a mask: all that the kernel knows, less lxc.cap.drop, or only lxc.cap.keep.

    Raises ConfigError for a number above /proc/sys/kernel/cap_last_cap.
    """
    section = config[Capabilities]
    everything = (1 << (host.last_capability + 1)) - 1
    if section.keep:
        origins = config.origins("lxc.cap.keep")
        return _mask(section.keep, origins, host, "lxc.cap.keep") & everything
    origins = config.origins("lxc.cap.drop")
    return everything & ~_mask(section.drop, origins, host, "lxc.cap.drop")


def monitor_pidfd(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone: a descriptor of the monitor, by which init sees that it lives."""
    del config, host, start
    return (OpenMonitorPidfd(),)


def death_signal(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, first of all: die with the monitor, also if that died before this was set."""
    del config, host, start
    return (DieWithMonitor(), VerifyMonitorAlive())


def ambient_capabilities(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, right after the clone: what a monitor that is not root can do, its programs for init can do too."""
    del config, start
    return () if host.uid == 0 else (RaiseAmbientCapabilities(),)


def signal_mask(config: Config, host: Host, start: Start, *, mask: int = 0) -> tuple[InitStep, ...]:
    """In init, right after the clone: default actions, and the signal mask that the caller had (0: nothing blocked)."""
    del config, host, start
    return (RestoreSignals(mask=mask),)


def reboot_support(host: Host, *, user_namespace: bool = False) -> tuple[HostStep, ...]:
    """Before the clone: find out into REBOOT_SUPPORTED whether reboot(2) in the container ends only the container.

    It does since Linux 3.4; asking the kernel (LXC's ctrl-alt-del probe, a clone) is left to older ones.
    """
    release = _release(host.release)
    if release >= REBOOT_SINCE:
        return (TrustReboot(release=host.release),)
    return (ProbeReboot(release=host.release, user_namespace=user_namespace),)


def drop_reboot(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: without CAP_SYS_BOOT where a reboot would be the machine's. Nothing to do since Linux 3.4."""
    del config, start
    return () if _release(host.release) >= REBOOT_SINCE else (DropRebootUnlessSupported(),)


def path_owners(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Before the clone, with an id map: note owners as the host sees them, for a failing check_traversable to tell."""
    del host
    paths = _paths(config, start)
    return (NotePathOwners(paths=paths),) if start.id_map and paths else ()


def check_traversable(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init as the container's root, before anything is mounted: may it pass lxcpath and the way to its rootfs?

    The host's own root may.
    """
    if host.uid == 0 and not start.id_map:
        return ()
    origin = config.origin("lxc.rootfs.path")
    return tuple(
        CheckPath(path=path, uid=start.root_uid, origin=None if path == start.lxcpath else origin)
        for path in _paths(config, start)
    )


def hook_environment(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: lxc.environment and lxc.environment.hooks for the hooks that it runs."""
    del host, start
    section = config[Environment]
    entries = _variables((*section.entries, *section.hooks))
    return (ExtendHookEnvironment(entries=entries),) if entries else ()


def keyring(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, after the host name: a new session keyring."""
    del host, start
    if config[Keyring].inherit:
        return ()
    return (JoinSessionKeyring(origin=config.origin("lxc.keyring.session")),)


def drop_capabilities(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, after pivot and sysctls: reduce the bounding set to start.kept_capabilities."""
    everything = (1 << (host.last_capability + 1)) - 1
    dropped = everything & ~start.kept_capabilities
    if not dropped:
        return ()
    which = "lxc.cap.keep" if config[Capabilities].keep else "lxc.cap.drop"
    origins = config.origins(which)
    numbers = tuple(n for n in range(host.last_capability + 1) if dropped & (1 << n))
    return (DropCapabilities(numbers=numbers, origin=origins[0] if origins else None),)


def no_new_privileges(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, after the LSM label and before seccomp."""
    del host, start
    if not config[NoNewPrivs].wanted:
        return ()
    return (ForbidNewPrivileges(origin=config.origin("lxc.no_new_privs")),)


def working_directory(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, after setsid: lxc.init.cwd."""
    del host, start
    cwd = config[Init].cwd
    return (EnterDirectory(path=cwd, origin=config.origin("lxc.init.cwd")),) if cwd else ()


def final(
    config: Config,
    host: Host,
    start: Start,
    *,
    death_signal: int = SIGKILL,
    ttys: Slot[str] | None = None,
) -> tuple[InitStep, ...]:
    """In init, last before exec: environment, ids, ambient capabilities, death signal.

    `death_signal` is lxc.monitor.signal.pdeath (0: none). `ttys` is a slot on init's side with the names of the
    container's ttys, space separated, for container_ttys.
    """
    section, init = config[Environment], config[Init]
    entries = (*section.entries, *section.runtime, "container=lxc")
    groups: tuple[int, ...] | None = init.groups
    if not groups and (start.id_map or host.setgroups_denied or not host.can("setgid")):
        groups = None  # become_root dropped them, or nobody may
    ids_origin = (
        config.origin("lxc.init.uid")
        or config.origin("lxc.init.gid")
        or next(iter(config.origins("lxc.init.groups")), None)
    )
    change = groups is not None or not start.id_map or init.uid or init.gid
    return (
        SetEnvironment(
            entries=_variables(entries), extra=_variables(start.extra_environment), ttys=ttys
        ),
        *(
            (SetIds(uid=init.uid, gid=init.gid, groups=groups, origin=ids_origin),)
            if change
            else ()
        ),
        *(() if host.uid == 0 else (ClearAmbientCapabilities(),)),
        SetDeathSignal(signal=death_signal, origin=config.origin("lxc.monitor.signal.pdeath")),
    )


# ------------------------------------------------------------------------------------------ steps
class OpenMonitorPidfd(HostStep):
    """Fill MONITOR_PIDFD; init inherits it, and exec closes it."""

    fills: ClassVar[tuple[Slot[Any], ...]] = (MONITOR_PIDFD,)

    def apply(self, h: Handler) -> None:
        """pidfd_open(2) on ourselves."""
        h[MONITOR_PIDFD] = process.pidfd_open(os.getpid())

    def explain(self) -> str:
        """In words."""
        return "open a descriptor of the monitor, by which init sees that it lives"


class DieWithMonitor(InitStep):
    """SIGKILL for init when the monitor dies."""

    def apply(self, h: Handler) -> None:
        """PR_SET_PDEATHSIG."""
        del h
        process.set_death_signal(SIGKILL)

    def explain(self) -> str:
        """In words."""
        return "die when the monitor dies"


class VerifyMonitorAlive(InitStep):
    """A monitor that died between the clone and PR_SET_PDEATHSIG would never send its signal."""

    needs: ClassVar[tuple[Slot[Any], ...]] = (MONITOR_PIDFD,)

    def apply(self, h: Handler) -> None:
        """A pidfd is readable when its process is dead; it works across pid namespaces, getppid() does not."""
        poll = select.poll()
        poll.register(h[MONITOR_PIDFD].fileno(), select.POLLIN)
        if poll.poll(0):
            raise HostError("cannot start: the monitor died")

    def explain(self) -> str:
        """In words."""
        return "see that the monitor is alive"


class RaiseAmbientCapabilities(InitStep):
    """Make every permitted capability inheritable and ambient, so that an exec by a user who is not root keeps it."""

    def apply(self, h: Handler) -> None:
        """capset(2), then PR_CAP_AMBIENT_RAISE for each."""
        del h
        sets = process.capabilities()
        process.set_capabilities(sets.replace(inheritable=sets.permitted))
        for number in range(sets.permitted.bit_length()):
            if sets.permitted & (1 << number):
                process.ambient_raise(number)

    def explain(self) -> str:
        """In words."""
        return "pass capabilities on to the programs of the set-up"


class RestoreSignals(InitStep):
    """Default actions and the caller's mask: exec keeps both ignored and blocked signals."""

    mask: int = 0

    def apply(self, h: Handler) -> None:
        """sigaction(2) for each, then sigprocmask(2)."""
        del h
        process.reset_signals()
        process.set_signal_mask(self.mask)

    def explain(self) -> str:
        """In words."""
        return f"restore signal actions and mask{f' {self.mask:#x}' if self.mask else ''}"


class TrustReboot(HostStep):
    """Linux 3.4 and later: reboot(2) in a pid namespace ends that namespace."""

    release: str
    fills: ClassVar[tuple[Slot[Any], ...]] = (REBOOT_SUPPORTED,)

    def apply(self, h: Handler) -> None:
        """Fill the slot."""
        h[REBOOT_SUPPORTED] = True

    def explain(self) -> str:
        """Which way it was decided."""
        return f"take reboot in a pid namespace as supported: Linux {self.release} is 3.4 or later"


class ProbeReboot(HostStep):
    """Call reboot(2) in a pid namespace of its own with what changes nothing: EINVAL shows that the namespace counts.

    LXC's probe: the command sets ctrl-alt-del to what it is already. `user_namespace`: the container will have one.
    """

    release: str
    user_namespace: bool = False
    fills: ClassVar[tuple[Slot[Any], ...]] = (REBOOT_SUPPORTED,)

    def apply(self, h: Handler) -> None:
        """Fill the slot; whatever goes wrong counts as not supported."""
        try:
            enabled = int(files.read_text("/proc/sys/kernel/ctrl-alt-del"))
            flags = CLONE_NEWPID | (CLONE_NEWUSER if self.user_namespace else 0)
            command = process.RB_ENABLE_CAD if enabled else process.RB_DISABLE_CAD
            child = process.clone(lambda: _try_reboot(command), flags=flags)
        except (OSError, ValueError) as error:
            h.report(DEBUG, f"cannot ask the kernel for reboot in a pid namespace: {error}")
            h[REBOOT_SUPPORTED] = False
            return
        with child.pidfd:
            status = process.wait_pidfd(child.pidfd.fileno())
        h[REBOOT_SUPPORTED] = status is not None and status.exited and status.value == 0

    def explain(self) -> str:
        """Which way it is decided."""
        return f"ask the kernel whether reboot in a pid namespace is supported: Linux {self.release} is older than 3.4"


class DropRebootUnlessSupported(InitStep):
    """Take CAP_SYS_BOOT from the container where its reboot would be the machine's."""

    needs: ClassVar[tuple[Slot[Any], ...]] = (REBOOT_SUPPORTED,)

    def apply(self, h: Handler) -> None:
        """PR_CAPBSET_DROP, and out of the inheritable set."""
        if not h[REBOOT_SUPPORTED]:
            _drop((_SYS_BOOT,))

    def explain(self) -> str:
        """In words."""
        return "drop capability sys_boot unless reboot in a pid namespace is supported"


class NotePathOwners(HostStep):
    """Look at each directory on the way to `paths`: in a user namespace the host's owners cannot be seen any more."""

    paths: tuple[str, ...]
    fills: ClassVar[tuple[Slot[Any], ...]] = (PATH_OWNERS,)

    def apply(self, h: Handler) -> None:
        """stat(2) each; what is missing or closed to us is left out."""
        owners: dict[str, tuple[int, int]] = {}
        for path in self.paths:
            for directory in _prefixes(path):
                if directory not in owners:
                    try:
                        status = os.stat(directory)
                    except OSError:
                        break
                    owners[directory] = (S_IMODE(status.st_mode), status.st_uid)
        h[PATH_OWNERS] = owners

    def explain(self) -> str:
        """In words."""
        return f"note the owners of directories on the way to {', '.join(self.paths)}"


class CheckPath(InitStep):
    """Every directory on the way to `path` has x for the container's root. `uid` is that root's id on the host."""

    path: str
    uid: int

    def apply(self, h: Handler) -> None:
        """access(2), and where it says no the first directory that is to blame. What is missing is another step's find."""
        if os.access(self.path, os.X_OK):
            return
        for directory in _prefixes(self.path):
            if os.access(directory, os.X_OK):
                continue
            try:
                status = os.stat(directory)
            except OSError:
                return
            if not S_ISDIR(status.st_mode):
                return
            known = h.get(PATH_OWNERS) or {}
            mode, owner = known.get(directory, (S_IMODE(status.st_mode), status.st_uid))
            raise HostError(
                f"cannot enter {self.path} as the container's root: {directory} (mode {mode:04o}, owner {owner}) lacks x"
                f" for uid {self.uid}",
                fix=f"setfacl -m u:{self.uid}:x {directory}   (chmod o+x {directory} where there are no ACLs)",
                errno=errno.EACCES,
            )

    def explain(self) -> str:
        """In words."""
        return f"check that the container's root may enter {self.path}"


class ExtendHookEnvironment(InitStep):
    """Add variables to the environment of the hooks that init runs; the monitor's copy stays as it is."""

    entries: tuple[tuple[str, str], ...]
    needs: ClassVar[tuple[Slot[Any], ...]] = (HOOK_ENVIRONMENT,)

    def apply(self, h: Handler) -> None:
        """Extend what the slot holds."""
        h[HOOK_ENVIRONMENT].update(self.entries)

    def explain(self) -> str:
        """Names only: values may be secrets."""
        return f"give hooks inside also {' '.join(name for name, _ in self.entries)}"


class JoinSessionKeyring(InitStep):
    """A new anonymous session keyring, so that the container cannot read the caller's keys."""

    def apply(self, h: Handler) -> None:
        """keyctl(2). As in LXC no failure ends the start: kernels without keyrings and seccomp around us are usual."""
        try:
            process.join_session_keyring()
        except OSError as error:
            usual = error.errno in (errno.ENOSYS, errno.EACCES, errno.EPERM)
            level = DEBUG if usual else WARN
            h.report(level, f"cannot {self.explain()}: {os.strerror(error.errno or 0).lower()}")

    def explain(self) -> str:
        """In words."""
        return "begin a new session keyring"


class DropCapabilities(InitStep):
    """Take capabilities (by number) out of the bounding set and the inheritable one.

    The bounding set does not bound what an exec by root takes over from the inheritable set (capabilities(7)): a caller
    with inheritable capabilities would hand dropped ones to the container, as in CVE-2022-24769.
    """

    numbers: tuple[int, ...]

    def apply(self, h: Handler) -> None:
        """PR_CAPBSET_DROP each. It bites when init is executed; until then we keep what the set-up needs."""
        del h
        _drop(self.numbers)

    def explain(self) -> str:
        """By name: the shorter list of the two."""
        names = [_capability_name(number) for number in self.numbers]
        kept = [name for name in CAPABILITIES if name not in names]
        if len(kept) < len(names):
            return f"keep only the capabilities {' '.join(kept) or NONE}"
        return f"drop the capabilities {' '.join(names)}"


class ForbidNewPrivileges(InitStep):
    """PR_SET_NO_NEW_PRIVS."""

    def apply(self, h: Handler) -> None:
        """For ever, and for all that init starts."""
        del h
        process.no_new_privs()

    def explain(self) -> str:
        """In words."""
        return "forbid new privileges for good"


class EnterDirectory(InitStep):
    """The working directory of init, a path inside the container."""

    path: str
    needs: ClassVar[tuple[Slot[Any], ...]] = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Open it beneath the root, so that it cannot be a directory of the host (CVE-2024-21626), and enter it."""
        try:
            flags = os.O_PATH | os.O_DIRECTORY
            with files.open_beneath(h[ROOTFS].fileno(), self.path, flags) as directory:
                os.fchdir(directory.fileno())
        except (FileNotFoundError, NotADirectoryError) as error:
            why = "is not a directory" if error.errno == errno.ENOTDIR else "does not exist"
            raise HostError(
                f"cannot {self.explain()}: it {why} in the container", errno=error.errno
            ) from error

    def explain(self) -> str:
        """In words."""
        return f"enter working directory {self.path}"


class SetEnvironment(InitStep):
    """Decide the environment of init, which has nothing of the monitor's. Later entries win."""

    entries: tuple[tuple[str, str], ...]
    extra: tuple[tuple[str, str], ...] = ()
    ttys: Slot[str] | None = None
    fills: ClassVar[tuple[Slot[Any], ...]] = (INIT_ENVIRONMENT,)

    def apply(self, h: Handler) -> None:
        """Fill the slot."""
        environment = dict(self.entries)
        names = h.get(self.ttys) if self.ttys is not None else None
        if names:
            environment["container_ttys"] = names
        environment.update(self.extra)
        h[INIT_ENVIRONMENT] = environment

    def explain(self) -> str:
        """Names only: values may be secrets."""
        names = dict.fromkeys(name for name, _ in (*self.entries, *self.extra))
        ttys = " container_ttys" if self.ttys is not None else ""
        return f"set init's environment: {' '.join(names)}{ttys}"


class SetIds(InitStep):
    """Become the user that init runs as; `groups` None leaves the supplementary groups as they are."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None = None

    def apply(self, h: Handler) -> None:
        """setgroups, setresgid, setresuid. EINVAL: the id is not mapped."""
        del h
        try:
            process.set_ids(self.uid, self.gid, self.groups)
        except OSError as error:
            if error.errno == errno.EINVAL:
                why, fix = "an id has no mapping in lxc.idmap", "use ids that lxc.idmap maps"
            elif error.errno == errno.EPERM and self.groups:
                why, fix = "setgroups is denied in this user namespace", "take lxc.init.groups out"
            else:
                raise
            message = f"cannot {self.explain()}: {why}"
            raise HostError(message, fix=fix, errno=error.errno) from error

    def explain(self) -> str:
        """With the ids in the container."""
        if self.groups is None:
            groups = ""
        else:
            groups = (
                f" and groups {','.join(map(str, self.groups))}"
                if self.groups
                else " and no other groups"
            )
        return f"become uid {self.uid}, gid {self.gid}{groups}"


class ClearAmbientCapabilities(InitStep):
    """Init gets what its ids and files give it, and no capabilities of the set-up."""

    def apply(self, h: Handler) -> None:
        """Empty the inheritable set; the kernel then empties the ambient one, which is never more (capabilities(7))."""
        del h
        sets = process.capabilities()
        if sets.inheritable:
            process.set_capabilities(sets.replace(inheritable=0))

    def explain(self) -> str:
        """In words."""
        return "clear ambient and inheritable capabilities"


class SetDeathSignal(InitStep):
    """What init gets when the monitor dies, set again because a change of ids clears it."""

    signal: int

    def apply(self, h: Handler) -> None:
        """PR_SET_PDEATHSIG."""
        del h
        process.set_death_signal(self.signal)

    def explain(self) -> str:
        """In words."""
        if self.signal == 0:
            return "outlive the monitor"
        return f"take signal {self.signal} when the monitor dies"


# ---------------------------------------------------------------------------------------- private
def _mask(names: Iterable[str], origins: Sequence[Origin | None], host: Host, key_name: str) -> int:
    mask = 0
    for name, origin in zip(names, origins, strict=True):
        if name == NONE:
            mask = 0
            continue
        if name in CAPABILITIES:
            number = CAPABILITIES.index(name)
        else:
            number = parse_integer(name, 0, _CAPABILITY_NUMBER_MAX)
            if number > host.last_capability:
                raise ConfigError(
                    f"invalid capability specified: {name}, this kernel's last is {host.last_capability}",
                    key=key_name,
                    origin=origin,
                )
        mask |= 1 << number
    return mask


def _drop(numbers: Iterable[int]) -> None:
    mask = 0
    for number in numbers:
        process.bounding_drop(number)
        mask |= 1 << number
    sets = process.capabilities()
    if sets.inheritable & mask:
        process.set_capabilities(sets.replace(inheritable=sets.inheritable & ~mask))


def _capability_name(number: int) -> str:
    return CAPABILITIES[number] if number < len(CAPABILITIES) else str(number)


def _variables(entries: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """NAME=value texts as pairs; an entry without a name cannot be in an environment and is left out."""
    pairs = (entry.partition("=") for entry in entries)
    return tuple((name, value) for name, _equals, value in pairs if name)


def _release(release: str) -> tuple[int, int]:
    """6.1.0-13-amd64 -> (6, 1)."""
    major, _, rest = release.partition(".")
    minor = ""
    for character in rest:
        if not character.isdigit():
            break
        minor += character
    return int(major), int(minor or 0)


def _try_reboot(command: int) -> None:
    """In the probe's child: exit status 0 when the call is refused with EINVAL, as in a pid namespace that counts."""
    try:
        process.reboot(command)
    except OSError as error:
        os._exit(0 if error.errno == errno.EINVAL else 1)
    os._exit(1)


def _paths(config: Config, start: Start) -> tuple[str, ...]:
    """lxcpath and the directories of lxc.rootfs.path (an overlay has several, colon separated); no devices."""
    parts = config.get("lxc.rootfs.path").split(":")
    ways = (part for part in parts if part.startswith("/") and not part.startswith("/dev/"))
    return (start.lxcpath, *ways)


def _prefixes(path: str) -> list[str]:
    """/a/b -> / /a /a/b."""
    found = ["/"]
    for part in path.split("/"):
        if part:
            found.append(f"{found[-1].rstrip('/')}/{part}")
    return found
