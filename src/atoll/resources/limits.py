"""Limits and kernel settings of a container: prlimit, /proc/PID files, sysctls, personality, core scheduling.

Not cgroup limits (cgroup/). Sources: prlimit(2), proc(5), sysctl(8), personality(2), the kernel's core-scheduling.rst;
reference of LXC, sections 2.2, 9.6 and 9.7.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISREG

from atoll.config.keys import REFUSED, Kind, Section, flag, key, pairs, text
from atoll.errors import ConfigError, HostError
from atoll.linux import files, process
from atoll.linux.process import CLONE_NEWPID, RLIM_INFINITY, RLIMITS
from atoll.plan import CHILD, ROOTFS, HostStep, InitStep
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from atoll.config.text import Config
    from atoll.errors import Origin
    from atoll.host import Host
    from atoll.plan import Handler, Slot, Start

PER_LINUX = 0x0000
PER_LINUX32 = 0x0008
_32_BIT = (
    "arm armel armhf armv7l athlon i386 i486 i586 i686 linux32 mips mipsel ppc powerpc x32 x86"
)
_64_BIT = (
    "aarch64 amd64 arm64 linux64 loong64 loongarch64 mips64 mips64el ppc64 ppc64el ppc64le powerpc64 riscv64"
    " s390x x86_64"
)
PERSONALITIES = {
    **dict.fromkeys(_32_BIT.split(), PER_LINUX32),
    **dict.fromkeys(_64_BIT.split(), PER_LINUX),
}
_PIDTYPE_TGID = 1  # linux/prctl.h: the whole process
_MOST = (1 << 64) - 1


class Limit(Record):
    """A resource limit; RLIM_INFINITY (-1) for none. Units as in prlimit(2): bytes, seconds or a count."""

    soft: int
    hard: int

    def __str__(self) -> str:
        soft, hard = _show_bound(self.soft), _show_bound(self.hard)
        return soft if soft == hard else f"{soft}:{hard}"


def parse_limit(value: str) -> Limit:
    """`SOFT[:HARD]`, each a decimal number or `unlimited`; one value is both. Raises ValueError."""
    soft, colon, hard = value.partition(":")
    first = _parse_bound(soft)
    return Limit(soft=first, hard=_parse_bound(hard) if colon and hard.strip() else first)


def _parse_bound(value: str) -> int:
    word = value.strip()
    if word in ("unlimited", "-1"):
        return RLIM_INFINITY
    digits = word.removeprefix("+") or "0"  # LXC reads ":5" as 0:5
    if not (digits.isascii() and digits.isdigit()) or int(digits) > _MOST:
        raise ValueError(f"not a resource limit: {value!r} (a number or unlimited)")
    return RLIM_INFINITY if int(digits) == _MOST else int(digits)


def _show_bound(value: int) -> str:
    return "unlimited" if value == RLIM_INFINITY else str(value)


def parse_personality(value: str) -> int:
    """The name of an architecture as PER_LINUX or PER_LINUX32. Raises ValueError."""
    persona = PERSONALITIES.get(value)
    if persona is None:
        raise ValueError(f'unsupported personality "{value}"')
    return persona


def show_personality(persona: int) -> str:
    """LXC's getter knows two names only."""
    return "i686" if persona == PER_LINUX32 else "x86_64"


class Limits(Section):
    """lxc.prlimit.*, lxc.sysctl.*, lxc.proc.*, lxc.arch, lxc.sched.core."""

    resources: tuple[tuple[str, Limit], ...] = key(
        "lxc.prlimit.*",
        pairs(Kind(parse_limit, name="limit"), unique=True),
        doc="Resource limit of init, SOFT[:HARD], each a number (bytes, seconds or a count:"
        " prlimit(2)) or `unlimited`; one value is both. The resource as in getrlimit(2),"
        " lower case without RLIMIT_, or its number.",
        example="nofile = 1024:4096",
        since="2.x",
    )
    sysctls: tuple[tuple[str, str], ...] = key(
        "lxc.sysctl.*",
        pairs(text, unique=True),
        doc="Kernel setting by its name in sysctl(8), set inside the container before init runs.",
        example="net.ipv4.ip_forward = 1",
        since="5.0.2",
    )
    proc_files: tuple[tuple[str, str], ...] = key(
        "lxc.proc.*",
        pairs(text, unique=True),
        doc="File below /proc/PID of init, with dots for slashes, and what the monitor writes to"
        " it.",
        example="oom_score_adj = 500",
        since="5.0.2",
    )
    architecture: int | None = key(
        "lxc.arch",
        Kind(parse_personality, show_personality, name="word", values=tuple(PERSONALITIES)),
        empty=REFUSED,
        doc="Architecture that uname(2) shows inside: a 32-bit one (i686, armhf …) or a 64-bit one"
        " (x86_64, arm64 …). Unset: the host's. Programs of it must run on the host's"
        " processor.",
        example="i686",
        since="1.x",
    )
    core_scheduling: bool = key(
        "lxc.sched.core",
        flag,
        default=False,
        doc="1: tasks of others never run at the same time on a core of the processor as tasks of"
        " the container.",
        example="1",
        since="5.0.2",
    )


def resource_limits(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """After the clone: lxc.prlimit.* on init. Raises ConfigError for a resource that prlimit(2) does not know."""
    del host, start
    origins = config.origins("lxc.prlimit.*")
    return tuple(
        SetResourceLimit(
            resource=name,
            number=_resource_number(name, origin),
            soft=limit.soft,
            hard=limit.hard,
            origin=origin,
        )
        for (name, limit), origin in zip(config[Limits].resources, origins, strict=True)
    )


def proc_files(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """After the clone: lxc.proc.* on init."""
    del host, start
    origins = config.origins("lxc.proc.*")
    return tuple(
        WriteProcFile(file=name.replace(".", "/"), value=value, origin=origin)
        for (name, value), origin in zip(config[Limits].proc_files, origins, strict=True)
    )


def sysctls(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init, after the pivot: lxc.sysctl.*."""
    del host, start
    origins = config.origins("lxc.sysctl.*")
    return tuple(
        SetSysctl(name=name, value=value, origin=origin)
        for (name, value), origin in zip(config[Limits].sysctls, origins, strict=True)
    )


def personality(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init: lxc.arch."""
    del host, start
    persona = config[Limits].architecture
    if persona is None:
        return ()
    return (SetPersonality(persona=persona, origin=config.origin("lxc.arch")),)


def core_scheduling(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """Right after the clone: lxc.sched.core. Raises ConfigError when init shares its pid namespace (LXC's rule)."""
    del host
    if not config[Limits].core_scheduling:
        return ()
    origin = config.origin("lxc.sched.core")
    if not start.namespaces & CLONE_NEWPID:
        raise ConfigError(
            "cannot use core scheduling: the container has no pid namespace of its own",
            key="lxc.sched.core",
            origin=origin,
            fix="let the container have its own pid namespace, or take lxc.sched.core out",
        )
    return (UseCoreScheduling(origin=origin),)


class SetResourceLimit(HostStep):
    """prlimit(2) on init. `number` is the kernel's RLIMIT_*; -1 is no limit."""

    resource: str
    number: int
    soft: int
    hard: int
    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)

    def apply(self, h: Handler) -> None:
        """Set it."""
        pid = h[CHILD].pid
        try:
            process.prlimit(pid, self.number, self.soft, self.hard)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            why, fix = self._why(pid)
            raise HostError(
                f"cannot {self.explain()}: {why or os.strerror(error.errno).lower()}",
                fix=fix,
                errno=error.errno,
            ) from error

    def explain(self) -> str:
        """In the configuration's words."""
        return f"limit {self.resource} of init to {Limit(soft=self.soft, hard=self.hard)}"

    def _why(self, pid: int) -> tuple[str, str | None]:
        """What prlimit(2) objects to: soft above hard, more than fs.nr_open, or a hard limit that may not be raised."""
        if _exceeds(self.soft, self.hard):
            return "the soft limit is above the hard one", "write SOFT:HARD with SOFT at most HARD"
        if self.number == RLIMITS["nofile"]:
            most = int(files.read_text("/proc/sys/fs/nr_open"))
            if _exceeds(self.hard, most):
                return f"fs.nr_open of this machine is {most}", f"use at most {most}"
        present = process.get_prlimit(pid, self.number)[1]
        if _exceeds(self.hard, present):
            bound = _show_bound(present)
            why = f"the hard limit here is {bound} and only CAP_SYS_RESOURCE of the machine may raise it"
            return why, f"use at most {bound}, or start the container as root"
        return "", None


class WriteProcFile(HostStep):
    """Write a file below /proc/PID of init; `file` is relative to that directory."""

    file: str
    value: str
    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)

    def apply(self, h: Handler) -> None:
        """Write it in one call, as these files want."""
        path = f"/proc/{h[CHILD].pid}/{self.file}"
        try:
            files.write_text(path, self.value)
        except FileNotFoundError as error:
            raise HostError(
                f"cannot {self.explain()}: the kernel has no such file", errno=error.errno
            ) from error

    def explain(self) -> str:
        """With the pid left open."""
        return f"write {self.value} to /proc/PID/{self.file} of init"


class SetSysctl(InitStep):
    """Write a file below the container's /proc/sys. `name` has dots, as in sysctl(8)."""

    name: str
    value: str
    needs: ClassVar[tuple[Slot[Any], ...]] = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Open it beneath the root, following no link: only the kernel's own /proc/sys is meant."""
        root = h[ROOTFS].fileno()
        path = f"proc/sys/{self.name.replace('.', '/')}"
        directory, _, name = path.rpartition("/")
        try:
            with files.open_beneath(root, path, os.O_PATH, no_symlinks=True) as file:
                if not S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise HostError(f"cannot {self.explain()}: /{path} is no file")
            with files.open_beneath(root, directory, os.O_PATH, no_symlinks=True) as parent:
                files.write_text(name, self.value, dir_fd=parent.fileno())
        except OSError as error:
            why, fix = self._why(root, error)
            if not why:
                raise
            message = f"cannot {self.explain()}: {why}"
            raise HostError(message, fix=fix, errno=error.errno) from error

    def explain(self) -> str:
        """As sysctl(8) prints it."""
        return f"set sysctl {self.name} = {self.value}"

    def _why(self, root: int, error: OSError) -> tuple[str, str | None]:
        mounted = files.exists_beneath(root, "proc/sys")
        if error.errno == errno.ENOENT and not mounted:
            return "proc is not mounted in the container", "add lxc.mount.auto = proc:mixed"
        if error.errno == errno.ENOENT:
            return "the kernel has no such setting in these namespaces", None
        if error.errno == errno.EROFS:
            return "/proc/sys is mounted read-only in the container", None
        if error.errno == errno.EINVAL:
            return f"the kernel refuses the value {self.value!r}", None
        return "", None


class SetPersonality(InitStep):
    """personality(2): what uname shows, and with PER_LINUX32 the 32-bit address space rules."""

    persona: int

    def apply(self, h: Handler) -> None:
        """Set it; exec keeps it."""
        del h
        process.personality(self.persona)

    def explain(self) -> str:
        """32-bit or 64-bit."""
        return f"run as on a {'32' if self.persona == PER_LINUX32 else '64'}-bit machine"


class UseCoreScheduling(HostStep):
    """Give init a core scheduling cookie of its own, which its children inherit (core-scheduling.rst)."""

    needs: ClassVar[tuple[Slot[Any], ...]] = (CHILD,)

    def apply(self, h: Handler) -> None:
        """Make the cookie. ENODEV: no SMT; EINVAL: a kernel without CONFIG_SCHED_CORE."""
        pid = h[CHILD].pid
        try:
            process.prctl(process.PR_SCHED_CORE, process.PR_SCHED_CORE_CREATE, pid, _PIDTYPE_TGID)
        except OSError as error:
            if error.errno == errno.ENODEV:
                why = "this machine has no cores with several threads"
            elif error.errno == errno.EINVAL:
                why = "the kernel does not support core scheduling"
            else:
                raise
            raise HostError(
                f"cannot {self.explain()}: {why}",
                missing="core scheduling",
                fix="take lxc.sched.core out of the configuration",
                errno=error.errno,
            ) from error

    def explain(self) -> str:
        """In words."""
        return "give the container a core scheduling cookie of its own"


def _resource_number(name: str, origin: Origin | None) -> int:
    number = RLIMITS.get(name)
    if number is None and name.isascii() and name.isdigit():
        number = int(name)
    if number is None or number > max(RLIMITS.values()):
        raise ConfigError(
            f"unknown resource {name}",
            key=f"lxc.prlimit.{name}",
            origin=origin,
            fix=f"use one of {' '.join(sorted(RLIMITS))}",
        )
    return number


def _exceeds(value: int, bound: int) -> bool:
    """Is a limit above another? RLIM_INFINITY is above every number."""
    if bound == RLIM_INFINITY:
        return False
    return value == RLIM_INFINITY or value > bound
