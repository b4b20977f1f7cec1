"""Tools that make, start, stop and remove containers, and `atoll run`, `explain`, `recover`, `install-tools`.

Each parses what is its own, calls the library, prints. Exit statuses and messages: reference of LXC sections 11.3, 11.4, 11.7.
"""

from __future__ import annotations

import os

from atoll import api, errors, log
from atoll.cli.options import TOOLS, UsageError
from atoll.config.text import Config, warnings_for
from atoll.errors import (
    EXIT_CANNOT_EXECUTE,
    EXIT_FAILURE,
    EXIT_NOT_FOUND,
    EXIT_NOT_RUNNING,
    EXIT_OK,
    EXIT_RUNTIME,
    AtollError,
    HostError,
    StateError,
    StepError,
)
from atoll.executor import Timing
from atoll.lifecycle import init
from atoll.linux import files, proc
from atoll.plan import explain_data, explain_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.cli.options import Call
    from atoll.lifecycle.sequence import Wish

logger = log.get_logger(__name__)

EXIT_NO_EXEC = 255
"""lxc-execute: the command could not be executed."""
SHARES = ("net", "ipc", "uts", "pid")
LATER_STORES = ("btrfs", "loop", "lvm", "nbd", "rbd", "zfs", "overlay", "overlayfs")


# -- start, execute, explain ----------------------------------------------------------------------------------------


def lxc_start(call: Call) -> int:
    """lxc-start: start a container, in the background unless -F."""
    container = _container(call)
    argv = call.operands
    if not call.text("rcfile") and not container.defined:
        raise StateError(
            f"no container config specified: {container.config_file} does not exist",
            now="undefined",
            wanted="defined",
            fix="create the container, or give its configuration with -f or its lxcpath with -P",
        )
    daemon = not call.flag("foreground")
    wish = container.wish(argv, daemon=daemon, close_inherited=call.flag("close-all-fds"))
    if call.flag("explain"):
        return _explain(call, container, wish)
    try:
        return _start(call, container, wish, pidfile=call.file("pidfile"))
    except StateError as error:
        if error.wanted == "STOPPED":  # LXC's tool counts this as done
            call.complain(f"{call.name}: Container is already running")
            return EXIT_OK
        raise


def lxc_execute(call: Call) -> int:
    """lxc-execute: run one command under a small init, and return its status."""
    container = _container(call)
    if not call.text("rcfile") and not container.defined:
        raise StateError(
            "executing a container with no configuration file may crash the host",
            now="undefined",
            wanted="defined",
            fix="give a configuration with -f",
        )
    daemon = call.flag("daemon")
    wish = container.wish(
        call.operands,
        init_loop=True,
        linger=True,
        daemon=daemon,
        stdio=None if daemon else (call.stdin, call.stdout, call.stderr),
        console=_has_terminal(call) and not daemon,
    )
    if call.flag("explain"):
        return _explain(call, container, wish)
    try:
        return _start(call, container, wish)
    except StepError as error:
        if error.step == init.RunCommand.__name__ and not daemon:
            _complain(call, error)
            return EXIT_NO_EXEC
        raise


def explain(call: Call) -> int:
    """atoll explain: every step of a start."""
    if not call.name and not call.text("rcfile"):
        raise UsageError("give a container's name, or -f FILE")
    container = _container(call, name=call.name or "explained")
    if not call.text("rcfile") and not container.defined:
        api.load_config(container.name, container.lxcpath)  # says what is wrong
    return _explain(call, container, container.wish(call.operands, daemon=True))


def _explain(call: Call, container: api.Container, wish: Wish) -> int:
    plan = container.plan(wish)
    if call.flag("json"):
        from json import dumps

        call.out.line(dumps(explain_data(plan), indent=1))
    else:
        call.out.line(explain_text(plan))
    return EXIT_OK


def _start(call: Call, container: api.Container, wish: Wish, *, pidfile: str | None = None) -> int:
    for warning in warnings_for(container.config, container.host):
        logger.warn("%s", warning)
    _log_as_configured(call, container.config)
    timing, path = Timing(), call.file("timeline")
    observers = (timing,) if path else ()

    def note() -> None:
        if path:
            _write_timeline(path, timing)

    note()  # a path that cannot be written is found out before the start
    if wish.daemon:
        container.start(wish, observers=observers, pidfile=pidfile, running=note)
        return EXIT_OK
    try:
        outcome = container.start_here(wish, observers=observers, ready=note, pidfile=pidfile)
    except AtollError:
        note()  # how far it came
        raise
    return outcome.exit_code


def _container(call: Call, name: str | None = None) -> api.Container:
    """The container of this call: its configuration or -f, then -s, then options that stand for keys."""
    found = api.Container(name or call.name, lxcpath=call.lxcpath, environ=call.environ)
    rcfile = call.file("rcfile")
    if rcfile is None and api.is_missing(found.config_file):
        config = Config.empty()
    else:
        config = api.load_config(found.name, found.lxcpath, rcfile=rcfile)
    for line in (*call.texts("define"), *_keys_of_options(call)):
        config = config.define(line)
    found.use(config)
    return found


def _keys_of_options(call: Call) -> list[str]:
    values = call.values
    lines = [
        f"lxc.namespace.share.{name} = {values[f'share-{name}']}"
        for name in SHARES
        if values.get(f"share-{name}")
    ]
    for option, key in (
        ("console", "lxc.console.path"),
        ("console-log", "lxc.console.logfile"),
        ("uid", "lxc.init.uid"),
        ("gid", "lxc.init.gid"),
    ):
        if values.get(option):
            lines.append(f"{key} = {values[option]}")
    return lines


def _log_as_configured(call: Call, config: Config) -> None:
    """lxc.log.file and lxc.log.level, which never override -o and -l."""
    if not config.mentions("lxc.log"):
        return
    from atoll.resources.lifetime import Log

    section = config[Log]
    file = call.file("logfile") or section.file
    if call.text("logfile") is None and call.text("logpriority") is None and section.file:
        level = log.ERROR if section.level is None else section.level
        stderr = -1 if call.quiet else call.stderr
        log.configure(
            program=call.program, name=call.name or None, file=file, level=level, stderr_fd=stderr
        )


def _has_terminal(call: Call) -> bool:
    return any(os.isatty(fd) for fd in (call.stdin, call.stdout, call.stderr))


def _complain(call: Call, error: AtollError) -> None:
    if not call.quiet:
        call.err.line(errors.describe(error, tool=call.program, name=call.name or None))


def _write_timeline(path: str, timing: Timing) -> None:
    """A Chrome trace (chrome://tracing, Perfetto): one row a side, phases around steps, microseconds."""
    from json import dumps

    rows = {"monitor": 1, "init": 2}
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": side}}
        for side, tid in rows.items()
    ]
    phases: dict[tuple[str, str], tuple[int, int]] = {}
    for number, begin, end in timing.spans:
        place = timing.places[number - 1]
        key = (place.phase, place.side)
        first, last = phases.get(key, (begin, end))
        phases[key] = (min(first, begin), max(last, end))
        name, step = place.step.explain(), type(place.step).__name__
        events.append(
            _span(name, "step", rows[place.side], begin, end, {"number": number, "step": step})
        )
    for (phase, side), (begin, end) in phases.items():
        events.append(_span(phase, "phase", rows[side], begin, end, {}))
    data = dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)
    try:
        files.write_atomic(path, data.encode(), 0o644)
    except OSError as error:
        raise HostError(
            f"cannot write the timeline {path}: {errors.reason(error)}", errno=error.errno
        ) from error


def _span(
    name: str, category: str, row: int, begin: int, end: int, more: dict[str, object]
) -> dict[str, object]:
    begin_us, duration = begin / 1000, (end - begin) / 1000
    return {
        "ph": "X", "name": name, "cat": category, "pid": 1, "tid": row, "ts": begin_us, "dur": duration, "args": more,
    }  # fmt: skip


# -- run ------------------------------------------------------------------------------------------------------------


def run(call: Call) -> int:
    """atoll run: a command in a new container, and its exit status; 125, 126 and 127 as docker and podman."""
    if not call.operands:
        raise UsageError("there is no command to run", help=True)
    try:
        container = _run_container(call)
        if not container.host.privileged and call.err.isatty() and not call.quiet:
            call.err.line(ROOTLESS_NOTE)
        wish = container.wish(
            call.operands,
            init_loop=True,
            stdio=(call.stdin, call.stdout, call.stderr),
            console=_has_terminal(call),
            monitor_cgroup=False,  # it stays where it was started: moving it there and back costs 20 ms
            environment=_environment(call),
        )
        if call.flag("explain"):
            return _explain(call, container, wish)
        return _start(call, container, wish)
    except StepError as error:
        _complain(call, error)
        if error.step != init.RunCommand.__name__:
            return EXIT_RUNTIME
        return EXIT_NOT_FOUND if error.errno in (None, 2) else EXIT_CANNOT_EXECUTE


ROOTLESS_NOTE = (
    "atoll run: without root: you are root only inside (your own id is the only one mapped), no limits by cgroups,"
    " no network but loopback, device nodes and ids of others are shown as the host's"
)


def _run_container(call: Call) -> api.Container:
    name = call.name or f"run-{api.new_name()}"
    container = api.Container(
        name, lxcpath=call.lxcpath, environ=call.environ, made_up=not call.name
    )
    host = container.host
    image = call.text("image") or api.HOST_IMAGE
    if image != api.HOST_IMAGE:
        image = os.path.join(call.cwd, image)
    config = api.run_config(host, name=name, image=image, file=call.file("config"))
    for line, option in _run_keys(call, image):
        config = config.define(line, option)
    if call.flag("keep"):
        config = _keep(call, container, config, image)
    elif not os.path.isdir(container.lxcpath):  # an ordinary user may not have one
        container.lxcpath = host.run_directory
    container.use(config)
    return container


def _keep(call: Call, container: api.Container, config: Config, image: str) -> Config:
    """--keep: what changes goes to LXCPATH/NAME/overlay/delta, and the container is defined from now on."""
    if not container.host.privileged and image == api.HOST_IMAGE:
        raise HostError(
            "--keep needs root with the image `host`", fix="give a directory with --image"
        )
    directory = f"{container.lxcpath}/{container.name}"
    lower = "/" if image == api.HOST_IMAGE else image
    config = config.define(f"lxc.rootfs.path = overlay:{lower}:{directory}/overlay/delta", "--keep")
    if not call.flag("explain") and not os.path.exists(f"{directory}/config"):
        kept = [line for line in config.assignments if line.key != "lxc.rootfs.path"]
        text = "".join(f"{line.key} = {line.value}\n" for line in (*kept, config.assignments[-1]))
        try:
            files.make_directories(None, f"{directory}/overlay/delta", 0o755)
            files.write_atomic(
                f"{directory}/config", text.encode("utf-8", "surrogateescape"), 0o640
            )
        except OSError as error:
            raise HostError(
                f"cannot keep the container in {directory}: {errors.reason(error)}",
                fix="give a directory that you may write with -P",
                errno=error.errno,
            ) from error
        if not call.name:
            call.complain(f"what it changes is kept as container {container.name}")
    return config


def _run_keys(call: Call, image: str) -> list[tuple[str, str]]:
    """The keys that options stand for, each with its option; -s comes last, and wins."""
    lines = [(_bind_line(bind, call.cwd), "--bind") for bind in call.texts("bind")]
    if call.flag("read-only"):
        lines.append(("lxc.rootfs.options = ro", "--read-only"))
    workdir = call.text("workdir")
    if workdir:
        lines.append((f"lxc.init.cwd = {workdir}", "--workdir"))
    user = call.text("user")
    if user:
        root = "/" if image == api.HOST_IMAGE else image
        lines += [(line, "--user") for line in _user_lines(user, root)]
    return [*lines, *((line, "-s") for line in call.texts("define"))]


def _bind_line(bind: str, cwd: str) -> str:
    parts = bind.split(":")
    mode = parts.pop() if parts[-1] in ("ro", "rw") and len(parts) > 2 else "rw"
    if len(parts) != 2 or not all(parts) or not parts[1].startswith("/"):
        raise UsageError(f"--bind wants SRC:DST[:ro] with an absolute DST, not '{bind}'")
    source = os.path.join(cwd, parts[0])
    kind = "dir" if os.path.isdir(source) or not os.path.exists(source) else "file"
    options = f"rbind,create={kind}" + (",ro" if mode == "ro" else "")
    return f"lxc.mount.entry = {_field(source)} {_field(parts[1].lstrip('/'))} none {options} 0 0"


def _field(text: str) -> str:
    """A path as fstab(5) writes it."""
    escapes = {"\\": "\\134", " ": "\\040", "\t": "\\011", "\n": "\\012"}
    return "".join(escapes.get(character, character) for character in text)


def _user_lines(user: str, image: str) -> list[str]:
    """lxc.init.* and HOME for UID[:GID] or names of the image's /etc/passwd and group; a number need not be in there."""
    uid, _, gid = user.partition(":")
    with files.open_fd(image, os.O_PATH | os.O_DIRECTORY) as root:
        accounts = proc.parse_passwd(_inside(root.fileno(), "etc/passwd"))
        groups = proc.parse_group(_inside(root.fileno(), "etc/group"))
    fix = "give numbers: --user UID[:GID]"
    account = next((a for a in accounts if uid in (a.name, str(a.uid))), None)
    if account is None and not uid.isdigit():
        raise HostError(f"the image has no user {uid}", missing=uid, fix=fix)
    group = next((g for g in groups if gid in (g.name, str(g.gid))), None)
    if gid and group is None and not gid.isdigit():
        raise HostError(f"the image has no group {gid}", missing=gid, fix=fix)
    primary = account.gid if account else 0
    chosen = group.gid if group else int(gid) if gid else primary
    lines = [
        f"lxc.init.uid = {account.uid if account else uid}",
        f"lxc.init.gid = {chosen}",
        f"lxc.environment.runtime = HOME={account.home if account else '/'}",
    ]
    members = [str(g.gid) for g in groups if account and account.name in g.members]
    return [*lines, f"lxc.init.groups = {','.join(members)}"] if members else lines


def _inside(root: int, path: str) -> str:
    try:
        with files.open_beneath(root, path, os.O_RDONLY) as file:
            return os.read(file.fileno(), 1 << 20).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def _environment(call: Call) -> tuple[str, ...]:
    variables = dict(api.DEFAULT_ENVIRONMENT)
    if call.text("user"):
        del variables["HOME"]  # the user's own is in the configuration
    if _has_terminal(call) and "TERM" in call.environ:
        variables["TERM"] = call.environ["TERM"]
    for entry in call.texts("env"):
        name, equals, value = entry.partition("=")
        if equals:
            variables[name] = value
        elif name in call.environ:
            variables[name] = call.environ[name]
    return tuple(f"{name}={value}" for name, value in variables.items())


# -- stop, create, destroy ------------------------------------------------------------------------------------------


def lxc_stop(call: Call) -> int:
    """lxc-stop: halt signal, wait, kill; -r, -k, -W, -t."""
    kill, reboot = call.flag("kill"), call.flag("reboot")
    timeout = _stop_timeout(call, kill=kill, reboot=reboot)
    container = api.Container(call.name, lxcpath=call.lxcpath, environ=call.environ)
    if container.state == "STOPPED":
        call.complain(f"{call.name} is not running")
        return EXIT_NOT_RUNNING
    if kill:
        container.kill()
        return EXIT_OK
    if reboot:
        return EXIT_OK if container.reboot(timeout) else EXIT_FAILURE
    if container.shutdown(timeout) or timeout == 0:
        return EXIT_OK
    if call.flag("nokill"):
        return EXIT_FAILURE
    container.kill()
    return EXIT_OK


def _stop_timeout(call: Call, *, kill: bool, reboot: bool) -> float | None:
    given = call.number("timeout")
    if kill and call.flag("nokill"):
        raise UsageError("-k can't be used with --nokill")
    if kill and reboot:
        raise UsageError("-k can't be used with -r")
    if kill and given is not None:
        raise UsageError("-k doesn't allow timeouts")
    if call.flag("nolock") and not kill:
        raise UsageError("--nolock may only be used with -k")
    if given is not None and given < -1:
        raise UsageError("Invalid timeout")
    if call.flag("nowait"):
        return 0
    if given is None:
        return 60
    return None if given == -1 else given


def lxc_create(call: Call) -> int:
    """lxc-create: a container from a template."""
    template = call.text("template")
    if template is None:
        raise UsageError(
            'A template must be specified. Use "none" if you really want a container without a rootfs.'
        )
    store = call.text("bdev") or "dir"
    _check_store(call, store)
    container = api.Container(call.name, lxcpath=call.lxcpath, environ=call.environ)
    config = Config.empty()
    given = call.file("config")
    path = given or api.default_config(container.host, call.environ)
    if path and (given or os.path.exists(path)):
        config = Config.read(path)
    container.create(template, config=config, rootfs=call.file("dir"), arguments=call.operands)
    return EXIT_OK


def _check_store(call: Call, store: str) -> None:
    if (call.flag("fstype") or call.flag("fssize")) and store not in ("lvm", "loop", "rbd"):
        raise UsageError("Filesystem type and size are only valid with block devices")
    if (call.flag("lvname") or call.flag("vgname") or call.flag("thinpool")) and store != "lvm":
        raise UsageError("--lvname, --vgname and --thinpool are only valid with -B lvm")
    if (call.flag("rbdname") or call.flag("rbdpool")) and store != "rbd":
        raise UsageError("--rbdname and --rbdpool are only valid with -B rbd")
    if call.flag("zfsroot") and store != "zfs":
        raise UsageError("zfsroot is only valid with -B zfs")
    if store in LATER_STORES:
        raise HostError(
            f"-B {store} is not there yet: it belongs to the storage part of the project",
            fix="leave -B out: the root file system is then a directory",
        )
    if store not in ("dir", "best", "none"):
        raise UsageError(f"{store} is not a valid backing storage type")


def lxc_destroy(call: Call) -> int:
    """lxc-destroy: remove a container; -f stops it first."""
    container = api.Container(call.name, lxcpath=call.lxcpath, environ=call.environ)
    if call.file("rcfile"):
        container.use(Config.read(str(call.file("rcfile"))))
    if container.state != "STOPPED" and call.flag("force"):
        container.kill()
    container.destroy()
    return EXIT_OK


# -- recover, install-tools -----------------------------------------------------------------------------------------


def recover(call: Call) -> int:
    """atoll recover: take back what killed monitors left; exit 1 when something could not be."""
    from atoll.lifecycle import recover as recovery

    host = api.Container("recover", environ=call.environ).host
    found = recovery.all_dead(host)
    if call.operands:
        found = [one for one in found if one.name in call.operands]
    for one in found:
        call.out.line(f"{one.name} ({one.lxcpath}): host {one.restored}")
    if not found and not call.quiet:
        call.out.line("nothing to take back")
    return EXIT_OK if all(not one.restored.problems for one in found) else EXIT_FAILURE


def install_tools(call: Call) -> int:
    """atoll install-tools DIR: a symbolic link to this program for each lxc-* command."""
    if len(call.operands) != 1:
        raise UsageError("give the one directory for the links")
    directory = os.path.join(call.cwd, call.operands[0])
    program = api.this_program(call.environ)
    files.make_directories(None, directory, 0o755)
    for name in TOOLS:
        if name.startswith("lxc-"):
            _link(program, f"{directory}/{name}", force=call.flag("force"))
            if not call.quiet:
                call.out.line(f"{directory}/{name}")
    return EXIT_OK


def _link(program: str, path: str, *, force: bool) -> None:
    if os.path.islink(path) and os.readlink(path) == program:
        return
    if os.path.lexists(path):
        if not force:
            raise HostError(
                f"{path} exists and is not a link of ours", fix="remove it, or use --force"
            )
        files.unlink(path)
    files.symlink(program, path)
