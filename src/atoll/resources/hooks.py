"""Hooks: the programs that the user has run at the points of a container's life, with their environment and arguments.

Not the network's own scripts (network/), which share the environment through the slot HOOK_ENVIRONMENT. Source: reference
of LXC, section 8; lxc.container.conf(5), "CONTAINER HOOKS".
"""

from __future__ import annotations

import os
from stat import S_ISREG

from atoll import script
from atoll.config.keys import Kind, Section, key, many, text
from atoll.errors import HostError
from atoll.linux import files
from atoll.log import DEBUG
from atoll.plan import CHILD, HOOK_ENVIRONMENT, NAMESPACES, ROOTFS, HostStep, InitStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

    from atoll.config.text import Config
    from atoll.host import Host
    from atoll.plan import Handler, Slot, Start

POINTS = (
    "pre-start",
    "pre-mount",
    "mount",
    "autodev",
    "start",
    "start-host",
    "stop",
    "post-stop",
    "clone",
    "destroy",
)
"""In the order of a life."""
INSIDE = ("pre-mount", "mount", "autodev", "start")
"""Run by init, in the container's namespaces."""
NAMESPACE_ORDER = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time")
NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""Exit statuses of a shell that could not execute a program."""


def _parse_version(value: str) -> int:
    if value not in ("0", "1"):
        raise ValueError("invalid hook version: only 0 (legacy) and 1 are supported")
    return int(value)


def _hook(point: str, when: str, *, later: str | None = None) -> tuple[str, ...]:
    """The declaration of one point's key. A start need not warn of what is `later`: it runs no such hook."""
    declared: tuple[str, ...] = key(
        f"lxc.hook.{point}",
        many(text),
        doc=f"Command to run {when}.",
        later=later,
        later_on=lambda _host: False,
        example=f"/usr/local/lib/lxc/{point}",
        since="5.0.2" if point in ("start-host", "stop", "destroy") else "1.x",
    )
    return declared


class Hooks(Section, group="lxc.hook"):
    """lxc.hook.*: command lines, run in their order; the first failure ends the chain."""

    pre_start: tuple[str, ...] = _hook("pre-start", "on the host before anything is set up")
    pre_mount: tuple[str, ...] = _hook(
        "pre-mount", "in the container's namespaces before its rootfs is mounted"
    )
    mount: tuple[str, ...] = _hook(
        "mount", "in the container's namespaces when all is mounted, before pivot_root"
    )
    autodev: tuple[str, ...] = _hook(
        "autodev", "after the mount hooks when lxc.autodev is 1, to fill /dev"
    )
    start: tuple[str, ...] = _hook(
        "start", "inside the container's rootfs right before init; its path is one in the rootfs"
    )
    start_host: tuple[str, ...] = _hook(
        "start-host", "on the host when the container is set up, before init is executed"
    )
    stop: tuple[str, ...] = _hook(
        "stop", "on the host after init died, with its namespaces still there"
    )
    post_stop: tuple[str, ...] = _hook("post-stop", "on the host when everything was taken back")
    clone: tuple[str, ...] = _hook(
        "clone", "for a copied container, its new rootfs mounted", later="commands"
    )
    destroy: tuple[str, ...] = _hook("destroy", "before the container's storage is removed")
    version: int = key(
        "lxc.hook.version",
        Kind(_parse_version, name="0 or 1", values=("0", "1")),
        default=0,
        doc="0: hooks get name, section and type as arguments; 1: in LXC_NAME, LXC_HOOK_SECTION"
        " and LXC_HOOK_TYPE.",
        example="1",
        since="5.0.2",
    )

    def at(self, point: str) -> tuple[str, ...]:
        """The commands of a point: at("pre-start")."""
        commands: tuple[str, ...] = getattr(self, point.replace("-", "_"))
        return commands


def environment(
    config: Config, host: Host, start: Start, *, environ: Mapping[str, str]
) -> tuple[HostStep, ...]:
    """Before the pre-start hooks: fill HOOK_ENVIRONMENT from the caller's `environ` and what LXC adds.

    Init begins with a copy of it (credentials.hook_environment extends that one).
    """
    level = config.get("lxc.log.level")
    added = {
        "LXC_NAME": start.name,
        "LXC_CONFIG_FILE": config.file or f"{start.directory}/config",
        "LXC_ROOTFS_MOUNT": start.rootfs or config.get("lxc.rootfs.mount") or host.rootfs_mount,
        "LXC_ROOTFS_PATH": config.get("lxc.rootfs.path"),
        "LXC_CONSOLE": config.get("lxc.console.path"),
        "LXC_CONSOLE_LOGPATH": config.get("lxc.console.logfile"),
        "LXC_LOG_LEVEL": "ERROR" if level in ("", "NOTSET") else level,
        "LXC_HOOK_VERSION": str(config[Hooks].version),
        "LXC_CGNS_AWARE": "1" if "cgroup" in host.namespaces else "",
    }
    entries = tuple((name, value) for name, value in added.items() if value)
    return (PrepareHookEnvironment(environ=tuple(environ.items()), entries=entries),)


def child_environment(config: Config, host: Host, start: Start) -> tuple[HostStep, ...]:
    """After the clone: LXC_PID for network scripts and all later hooks of the host."""
    del config, host, start
    return (NameInitToHooks(),)


def stop_environment(
    config: Config, host: Host, start: Start, *, target: str
) -> tuple[HostStep, ...]:
    """When init died: LXC_*_NS for network scripts and the hooks stop and post-stop; `target` is stop or reboot.

    LXC exports LXC_*_NS with hook version 1, or when a network was torn down; a superset hurts nobody.
    """
    del config, host, start
    return (NameNamespacesToHooks(target=target),)


def verify(config: Config, host: Host, start: Start) -> tuple[InitStep, ...]:
    """In init when all is mounted: every start hook must be an executable file of the rootfs (LXC looks at the first)."""
    del host, start
    origins = config.origins("lxc.hook.start")
    return tuple(
        VerifyStartHook(command=command, origin=origin)
        for command, origin in zip(config[Hooks].start, origins, strict=True)
    )


def run(
    config: Config,
    host: Host,
    start: Start,
    point: str,
    *,
    extra_arguments: Sequence[str] = (),
    target: str | None = None,
) -> tuple[RunHook, ...]:
    """The hooks of a point that the host runs, in the monitor (or for clone and destroy, in the tool).

    `extra_arguments` come last (the words after `--` of lxc-copy); `target` is LXC_TARGET, stop or reboot.
    """
    del host
    origins = config.origins(f"lxc.hook.{point}")
    if not origins:
        return ()
    section = config[Hooks]
    return tuple(
        RunHook(
            point=point,
            command=command,
            version=section.version,
            name=start.name,
            arguments=tuple(extra_arguments),
            target=target,
            origin=origin,
        )
        for command, origin in zip(section.at(point), origins, strict=True)
    )


def run_inside(config: Config, host: Host, start: Start, point: str) -> tuple[RunHookInside, ...]:
    """The hooks of a point that init runs: pre-mount, mount, autodev, start."""
    del host
    origins = config.origins(f"lxc.hook.{point}")
    if not origins:
        return ()
    section = config[Hooks]
    return tuple(
        RunHookInside(
            point=point,
            command=command,
            version=section.version,
            name=start.name,
            origin=origin,
        )
        for command, origin in zip(section.at(point), origins, strict=True)
    )


class PrepareHookEnvironment(HostStep):
    """The environment that hooks begin with: the caller's own, and LXC's variables over it."""

    environ: tuple[tuple[str, str], ...]
    entries: tuple[tuple[str, str], ...]
    fills: ClassVar[tuple[Slot[Any], ...]] = (HOOK_ENVIRONMENT,)

    def apply(self, h: Handler) -> None:
        """Fill the slot."""
        h[HOOK_ENVIRONMENT] = {**dict(self.environ), **dict(self.entries)}

    def explain(self) -> str:
        """Names only: values may be secrets."""
        return f"prepare the hooks' environment: {' '.join(name for name, _ in self.entries)}"


class NameInitToHooks(HostStep):
    """LXC_PID: the pid of init in the monitor's pid namespace."""

    needs: ClassVar[tuple[Slot[Any], ...]] = (HOOK_ENVIRONMENT, CHILD)

    def apply(self, h: Handler) -> None:
        """Extend the environment."""
        h[HOOK_ENVIRONMENT]["LXC_PID"] = str(h[CHILD].pid)

    def explain(self) -> str:
        """In words."""
        return "tell hooks the pid of init: LXC_PID"


class NameNamespacesToHooks(HostStep):
    """LXC_NET_NS and its like: paths of the descriptors that the monitor keeps; LXC_TARGET."""

    target: str
    needs: ClassVar[tuple[Slot[Any], ...]] = (HOOK_ENVIRONMENT,)

    def apply(self, h: Handler) -> None:
        """Extend the environment."""
        variables = h[HOOK_ENVIRONMENT]
        for name, path in kept_namespaces(h):
            variables[f"LXC_{name.upper()}_NS"] = path
        variables["LXC_TARGET"] = self.target

    def explain(self) -> str:
        """In words."""
        return f"tell hooks the container's namespaces, LXC_*_NS, and LXC_TARGET={self.target}"


class VerifyStartHook(InitStep):
    """The program of a start hook is an executable file beneath the container's root."""

    command: str
    needs: ClassVar[tuple[Slot[Any], ...]] = (ROOTFS,)

    def apply(self, h: Handler) -> None:
        """Look. Raises HostError."""
        _check_inside(h, self.command)

    def explain(self) -> str:
        """In words."""
        return f"check that the container has the start hook {self.command}"


class RunHook(HostStep):
    """Run one hook on the host and wait for it; the monitor goes on serving its command socket meanwhile."""

    point: str
    command: str
    version: int
    name: str
    arguments: tuple[str, ...] = ()
    target: str | None = None
    needs: ClassVar[tuple[Slot[Any], ...]] = (HOOK_ENVIRONMENT,)

    def apply(self, h: Handler) -> None:
        """Run it. Raises HostError when it is missing or fails."""
        extra = list(self.arguments)
        if self.point == "stop" and self.version == 0:
            extra += [f"{name}:{path}" for name, path in kept_namespaces(h)]
        added = {} if self.target is None else {"LXC_TARGET": self.target}
        _run(h, self, extra, added)

    def explain(self) -> str:
        """In words."""
        return f"run the {self.point} hook {self.command}"


class RunHookInside(InitStep):
    """Run one hook in the container's namespaces; for `start` in its root as well."""

    point: str
    command: str
    version: int
    name: str
    needs: ClassVar[tuple[Slot[Any], ...]] = (HOOK_ENVIRONMENT,)

    def apply(self, h: Handler) -> None:
        """Run it. Raises HostError when it is missing or fails."""
        if self.point == "start":
            _check_inside(h, self.command)
        _run(h, self, (), {})

    def explain(self) -> str:
        """In words."""
        return f"run the {self.point} hook {self.command}"


def kept_namespaces(h: Handler) -> list[tuple[str, str]]:
    """(name, /proc/MONITOR/fd/N) of each namespace descriptor that the monitor keeps, in LXC's order."""
    kept = h.get(NAMESPACES) or {}
    pid = os.getpid()
    return [
        (name, f"/proc/{pid}/fd/{kept[name].fileno()}") for name in NAMESPACE_ORDER if name in kept
    ]


def _run(
    h: Handler,
    hook: RunHook | RunHookInside,
    extra: Sequence[str],
    added: Mapping[str, str],
) -> None:
    """Run through /bin/sh as LXC does, report the output line by line, and judge how it ended."""
    common = h[HOOK_ENVIRONMENT]
    variables = {**common, **added}
    if hook.version == 0:
        arguments = [hook.name, "lxc", hook.point, *extra]
    else:
        arguments = list(extra)
        variables |= {"LXC_HOOK_TYPE": hook.point, "LXC_HOOK_SECTION": "lxc"}
    output = script.shell(h, hook.command, environment=variables, arguments=arguments)
    for line in output.text.splitlines():
        h.report(DEBUG, f"{hook.point} hook {hook.command} says: {line}")
    if output.success:
        return
    why, fix = None, None
    if output.status.exited and output.status.value in (NOT_EXECUTABLE, NOT_FOUND):
        why, fix = _why_not(_program(hook.command), variables)
    raise HostError(f"cannot {hook.explain()}: {why or f'it {output.failure()}'}", fix=fix)


def _program(command: str) -> str:
    """The first word, when it is what it looks like to the shell; else an empty string."""
    word = command.split(maxsplit=1)[0] if command.strip() else ""
    return "" if set(word) & set("\"'\\$`=~*?[;&|<>(){}") else word


def _why_not(program: str, environment: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(why, fix) when the shell could not execute `program`, as far as a look at the file tells."""
    if not program:
        return None, None
    if "/" not in program:
        directories = environment.get("PATH", "/bin:/usr/bin").split(":")
        if any(os.path.exists(f"{directory}/{program}") for directory in directories):
            return None, None
        return f"there is no program {program} in PATH", "write the hook with its whole path"
    if not os.path.exists(program):
        return f"there is no file {program}", "make it, or take the hook out of the configuration"
    if not os.access(program, os.X_OK):
        return f"{program} is not executable", f"chmod +x {program}"
    interpreter = _interpreter(program)
    if interpreter and not os.path.exists(interpreter):
        return f"the interpreter {interpreter} in its first line does not exist", None
    return None, None


def _interpreter(program: str) -> str:
    try:
        with files.open_fd(program, os.O_RDONLY) as file:
            line = os.read(file.fileno(), 256).split(b"\n", 1)[0]
    except OSError:
        return ""
    words = line[2:].split() if line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _check_inside(h: Handler, command: str) -> None:
    """Raise HostError unless the program of a start hook is an executable file beneath the container's root."""
    program = _program(command)
    if not program:
        return
    what = f"cannot run the start hook {command}: the container has"
    if not program.startswith("/"):
        raise HostError(f"{what} to be told its whole path", fix="write a path that begins with /")
    try:
        with files.open_beneath(h[ROOTFS].fileno(), program, os.O_PATH) as file:
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError as error:
        raise HostError(
            f"{what} no file {program}",
            missing=program,
            fix="start hooks run inside the container: put the file into its rootfs",
            errno=error.errno,
        ) from error
    if not S_ISREG(mode) or not mode & 0o111:
        raise HostError(f"{what} {program}, but not as an executable file", missing=program)
