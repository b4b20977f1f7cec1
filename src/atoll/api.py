"""Containers for programs and tools: define, start, run, stop, wait, attach, explain, destroy.

The tools in cli/ parse and print; what they do is here. Nothing here prints, exits or reads global state: environment and
descriptors are arguments. Sources: reference of LXC sections 11 and 12.
"""

from __future__ import annotations

import os
import time

from atoll import host as host_module
from atoll.config.system import read_system, system_file, system_value
from atoll.config.text import Config
from atoll.errors import HostError, StateError
from atoll.executor import Trace
from atoll.lifecycle import commands, monitor, sequence
from atoll.linux import process
from atoll.log import TRACE, get_logger, wanted
from atoll.loop import Loop
from atoll.records import Record
from atoll.resources import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from atoll.executor import Observer
    from atoll.host import Host
    from atoll.lifecycle.client import CommandClient
    from atoll.plan import Plan

log = get_logger(__name__)

HOST_IMAGE = "host"
RUN_CONFIG = """\
lxc.uts.name = {name}
lxc.rootfs.path = {rootfs}
lxc.net.0.type = empty
lxc.net.0.flags = up
lxc.mount.auto = proc:mixed sys:ro
lxc.mount.entry = tmpfs dev/shm tmpfs nosuid,nodev,create=dir,mode=1777 0 0
lxc.mount.entry = mqueue dev/mqueue mqueue nosuid,nodev,noexec,optional,create=dir 0 0
lxc.pty.max = 64
"""
DEFAULT_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}


class Result(Record):
    """What a command run in a container left: exit code (128+N for signal N), captured output, seconds taken."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0.0


class Container:
    """One container by name and lxcpath, running or not, ours or liblxc's.

    `lxcpath` defaults to LXC's own. `config` replaces LXCPATH/NAME/config. `host` and `environ` are what this process sees
    unless given. `made_up`: the name is new and random, so nobody need be asked whether it is taken.
    """

    def __init__(
        self,
        name: str,
        *,
        lxcpath: str | None = None,
        config: Config | None = None,
        host: Host | None = None,
        environ: Mapping[str, str] | None = None,
        made_up: bool = False,
    ) -> None:
        self.name = name
        self.made_up = made_up
        self.environ = os.environ if environ is None else environ
        self._host = host
        self._config = config
        self.lxcpath = lxcpath or str(system_value(self.host, "lxc.lxcpath", self.environ))

    @property
    def host(self) -> Host:
        """Facts about this machine, looked at once."""
        if self._host is None:
            self._host = host_module.probe()
        return self._host

    @property
    def config_file(self) -> str:
        """LXCPATH/NAME/config."""
        return f"{self.lxcpath}/{self.name}/config"

    @property
    def defined(self) -> bool:
        """Is there a configuration file that can be read?"""
        return os.access(self.config_file, os.R_OK)

    @property
    def config(self) -> Config:
        """The configuration, read once. Raises ConfigError, or StateError when the container is not defined."""
        if self._config is None:
            self._config = load_config(self.name, self.lxcpath)
        return self._config

    def use(self, config: Config) -> None:
        """Take this configuration instead of the file's."""
        self._config = config

    @property
    def client(self) -> CommandClient:
        """A client of its command socket."""
        from atoll.lifecycle.client import CommandClient

        return CommandClient(self.lxcpath, self.name)

    @property
    def state(self) -> str:
        """STOPPED STARTING RUNNING STOPPING ABORTING FREEZING FROZEN THAWED."""
        return commands.STATES[self.client.get_state()]

    # -- start -------------------------------------------------------------------------------------------------------

    def wish(self, argv: Sequence[str] = (), **changes: object) -> sequence.Wish:
        """A start wish for this container; `changes` are fields of sequence.Wish."""
        return sequence.Wish(name=self.name, lxcpath=self.lxcpath, argv=tuple(argv), **changes)  # type: ignore[arg-type]  # checked by Wish itself

    def request(
        self, wish: sequence.Wish, *, observers: Sequence[Observer] = ()
    ) -> monitor.Request:
        """All that a monitor needs to start it."""
        config = self.config
        settings = read_system(system_file(self.host, self.environ))
        system = cgroup.CgroupSystem.parse(
            settings.get("lxc.cgroup.use"), settings.get("lxc.cgroup.pattern")
        )

        def gather() -> sequence.Facts:
            return sequence.gather(
                config, self.host, wish, environ=self.environ, system=system, pid_of=self._pid_of
            )

        return monitor.Request(
            config=config,
            host=self.host,
            wish=wish,
            gather=gather,
            observers=(Trace(), *observers) if wanted(TRACE) else tuple(observers),
            journal=monitor.journal_path(self.host, self.lxcpath, self.name),
        )

    def plan(self, wish: sequence.Wish) -> Plan:
        """The start plan; looks at the machine, changes nothing."""
        request = self.request(wish)
        facts = request.gather()
        start = sequence.decide(self.config, self.host, wish, facts)
        return sequence.start(self.config, self.host, start, facts, wish)

    def start(
        self,
        wish: sequence.Wish,
        *,
        observers: Sequence[Observer] = (),
        pidfile: str | None = None,
        running: Callable[[], None] | None = None,
    ) -> None:
        """Start it in a daemon; returns when it is RUNNING. Raises the daemon's own error.

        `running` is called in the daemon, once, when the container is RUNNING.
        """
        from atoll.lifecycle import daemon

        self._refuse_running()
        request = self.request(wish, observers=observers)

        def work(ready: Callable[[], None]) -> None:
            def announce() -> None:
                if running is not None:
                    running()
                ready()

            self._finish(monitor.own(Loop(), request, signals=True, ready=announce))

        daemon.detach(work, title=f"[lxc monitor] {self.lxcpath} {self.name}", pidfile=pidfile)

    def start_here(
        self,
        wish: sequence.Wish,
        *,
        observers: Sequence[Observer] = (),
        signals: bool = True,
        ready: Callable[[], None] | None = None,
        loop: Loop | None = None,
        pidfile: str | None = None,
    ) -> monitor.Outcome:
        """Start it with this process as its monitor; returns when it has stopped."""
        self._refuse_running()
        if pidfile is not None:
            from atoll.lifecycle.daemon import write_pidfile

            write_pidfile(pidfile)
        request = self.request(wish, observers=observers)
        own_loop = loop or Loop()
        try:
            outcome = monitor.own(own_loop, request, signals=signals, ready=ready)
        finally:
            if loop is None:
                own_loop.close()
            if pidfile is not None:
                os.unlink(pidfile)
        self._finish(outcome)
        return outcome

    def _finish(self, outcome: monitor.Outcome) -> None:
        del outcome
        if not self.config.mentions("lxc.ephemeral"):
            return
        from atoll.resources.lifetime import Lifetime

        if self.config[Lifetime].ephemeral and self.defined:
            self.destroy()

    def _refuse_running(self) -> None:
        """Running already; or left over from a killed monitor, which is taken back first."""
        if process.thread_count() > 1:
            raise StateError(
                f"cannot start {self.name} from a process with threads: the clone would copy one of them and the locks of all",
                now="threads",
                wanted="one thread",
                fix="start it before the threads, or with the command lxc-start",
            )
        if self.made_up:
            return
        if self.state != "STOPPED":
            raise StateError(
                f"container {self.name} is already running",
                now=self.state,
                wanted="STOPPED",
                fix=f"stop it first: lxc-stop -n {self.name} -P {self.lxcpath}",
            )
        journal = monitor.journal_path(self.host, self.lxcpath, self.name)
        if not os.path.lexists(journal):
            return
        from atoll.lifecycle import recover

        found = recover.one(journal)
        if found is not None:
            log.notice("an earlier start of %s was killed; host %s", self.name, found.restored)

    def _pid_of(self, name: str) -> int | None:
        """Init's pid of a running container, which may be given as LXCPATH/NAME; None when it does not run."""
        path, slash, last = name.rpartition("/")
        from atoll.lifecycle.client import CommandClient

        client = CommandClient(path if slash else self.lxcpath, last)
        try:
            return client.get_init_pid() or None
        except StateError:
            return None

    # -- stop --------------------------------------------------------------------------------------------------------

    def kill(self, timeout: float | None = None) -> None:
        """Ask the monitor to stop it at once (lxc.signal.stop, SIGKILL by default), and wait for the monitor's end.

        Raises CommandError when that takes longer than `timeout` seconds (None: no limit).
        """
        self._need_running()
        self.client.stop(timeout=timeout)

    def shutdown(self, timeout: float | None = 60) -> bool:
        """Send the halt signal and wait `timeout` seconds (None: for ever, 0: not at all); False when it still runs."""
        self._need_running()
        client = self.client
        wanted = [int(state == "STOPPED") for state in commands.STATES]
        with client.get_init_pidfd() as pidfd, client.add_state_client(wanted) as waiter:
            process.pidfd_send_signal(pidfd.fileno(), self._halt_signal())
            return timeout != 0 and waiter.wait(timeout) == commands.STOPPED

    def reboot(self, timeout: float | None = 60) -> bool:
        """Send the reboot signal and wait until it runs again; False on timeout."""
        self._need_running()
        client = self.client
        wanted = [0] * len(commands.STATES)
        wanted[commands.RUNNING] = 2  # kept across the reboot
        with client.get_init_pidfd() as pidfd, client.add_state_client(wanted) as waiter:
            number = int(client.get_config_item("lxc.signal.reboot") or 0) or process.SIGINT
            process.pidfd_send_signal(pidfd.fileno(), number)
            return timeout == 0 or waiter.wait(timeout) == commands.RUNNING

    def _halt_signal(self) -> int:
        """lxc.signal.halt; else SIGRTMIN+3 where init blocks it, as systemd does; else SIGPWR."""
        if self.defined and self.config.origin("lxc.signal.halt"):
            from atoll.resources.lifetime import Signals

            return self.config[Signals].halt
        from atoll.linux import files, proc

        text = files.read_text(f"/proc/{self.client.get_init_pid()}/status")
        blocked = int(proc.parse_status(text)["SigBlk"], 16)
        systemd = process.SIGNALS["SIGRTMIN"] + 3
        return systemd if blocked & process.signal_bits(systemd) else process.SIGNALS["SIGPWR"]

    def wait(self, states: Sequence[str], timeout: float | None = None) -> bool:
        """Wait until it is in one of `states`; False on timeout."""
        from atoll.lifecycle.client import wait_states

        wanted = tuple(commands.STATES.index(state) for state in states)
        return wait_states(self.lxcpath, self.name, wanted, timeout) in wanted

    def _need_running(self) -> None:
        if self.state == "STOPPED":
            raise StateError(f"{self.name} is not running", now="STOPPED", wanted="RUNNING")

    # -- create and destroy ------------------------------------------------------------------------------------------

    def create(
        self,
        template: str,
        *,
        config: Config | None = None,
        rootfs: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        """Create it, or leave nothing. `config` is the base that the template completes."""
        from atoll.lifecycle import create

        create.create(
            create.Creation(
                name=self.name,
                lxcpath=self.lxcpath,
                template=template,
                config=config or Config.empty(),
                rootfs=rootfs,
                arguments=tuple(arguments),
            ),
            environ=self.environ,
        )
        self._config = None

    def destroy(self) -> None:
        """Remove it. Raises StateError when it runs, is not defined, or others depend on it."""
        from atoll.lifecycle import create

        if not self.defined:
            raise StateError("Container is not defined", now="undefined", wanted="defined")
        if self.state != "STOPPED":
            raise StateError(
                f"{self.name} is running",
                now=self.state,
                wanted="STOPPED",
                fix="stop it, or use lxc-destroy -f",
            )
        reason = create.dependents(f"{self.lxcpath}/{self.name}")
        if reason is not None:
            raise StateError(
                f"Destroying {self.name} failed: {self.name} has {reason}",
                now=reason,
                wanted="none",
            )
        wish = self.wish(start_id="0" * 8)
        facts = sequence.Facts()
        start = sequence.decide(self.config, self.host, wish, facts)
        create.destroy(self.config, self.host, start, environ=self.environ)
        self._config = None


def is_missing(path: str) -> bool:
    """There is no such file; False also where only the permission to see it is missing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def load_config(name: str, lxcpath: str, *, rcfile: str | None = None) -> Config:
    """Read a container's configuration. Raises StateError when there is none, ConfigError when it cannot be used."""
    path = rcfile or f"{lxcpath}/{name}/config"
    if rcfile is None and is_missing(path):
        raise StateError(
            f"container {name} is not defined: {path} does not exist",
            now="undefined",
            wanted="defined",
            fix=f"create it (lxc-create -n {name} -t busybox), give -f FILE, or give its lxcpath with -P",
        )
    return Config.read(path)


def run_config(
    host: Host, *, name: str, image: str = HOST_IMAGE, file: str | None = None
) -> Config:
    """The configuration of `atoll run`: an image, six namespaces, /proc, /sys read-only, /dev, loopback up.

    `image` is "host" (an overlay above the machine's own / whose upper layer is a tmpfs) or a directory, likewise. An
    ordinary user gets a user namespace that maps only himself, to root. `file` is a configuration whose keys come on top.
    """
    if image != HOST_IMAGE and not os.path.isdir(image):
        raise HostError(
            f"the image {image} is not a directory", missing=image, fix="give a directory or `host`"
        )
    lower = "/" if image == HOST_IMAGE else os.path.abspath(image)
    text = RUN_CONFIG.format(name=name, rootfs=f"overlay:{lower}:tmpfs")
    config = Config.parse(text, file="atoll run")
    if file is not None:
        config = config.define(f"lxc.include = {file}", "--config")
    if not host.privileged:
        from atoll.resources.idmap import rootless_mapping

        for mapping in rootless_mapping(host):
            line = f"lxc.idmap = {mapping.kind} {mapping.inside} {mapping.outside} {mapping.count}"
            config = config.define(line, origin_file="atoll run (no root)")
    return config


def run(
    argv: Sequence[str],
    *,
    name: str | None = None,
    image: str = HOST_IMAGE,
    config: Config | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = None,
    host: Host | None = None,
    capture: bool = True,
    init: bool = True,
) -> Result:
    """Run a command in a new container and return what it left, when everything is taken back.

    The calling process becomes the monitor meanwhile, so it must have one thread; its signals and cgroup stay as they are.
    `stdin` is a descriptor (None: /dev/null). With `capture` false the output goes to the caller's own 1 and 2. `host`: what
    host.probe() said before, which spares half a millisecond. With `init` false the command is process 1 itself, as under
    `docker run`: nobody reaps its orphans, and the kernel ignores every signal that it has no handler for.
    Raises AtollError when the container or the command cannot be started.
    """
    began = time.monotonic()
    facts = host or host_module.probe()
    chosen = name or f"run-{sequence.new_start_id()}"
    whole = config or run_config(facts, name=chosen, image=image)
    container = Container(
        chosen,
        config=whole,
        host=facts,
        lxcpath=f"{facts.run_directory}/run",
        made_up=name is None,
    )
    variables = {**DEFAULT_ENVIRONMENT, **(environment or {})}
    loop = Loop()
    collector = _Collector(loop) if capture else None
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) if stdin is None else stdin
    stdio = (null, *collector.writers) if collector is not None else (null, 1, 2)
    wish = container.wish(
        argv,
        init_loop=init,
        stdio=stdio,
        console=False,
        monitor_cgroup=False,
        environment=tuple(f"{key}={value}" for key, value in variables.items()),
    )
    try:
        outcome = container.start_here(
            wish,
            signals=False,
            loop=loop,
            ready=collector.close_writers if collector is not None else None,
        )
        output = collector.result() if collector is not None else (b"", b"")
    finally:
        if collector is not None:
            collector.close()
        if stdin is None:
            os.close(null)
        loop.close()
    seconds = time.monotonic() - began
    return Result(exit_code=outcome.exit_code, stdout=output[0], stderr=output[1], seconds=seconds)


class _Collector:
    """Two pipes read by the loop while the container runs."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.chunks: tuple[list[bytes], list[bytes]] = ([], [])
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
        self.readers = [pair[0] for pair in pairs]
        self.writers = (pairs[0][1], pairs[1][1])
        self.open_writers = list(self.writers)
        for number, reader in enumerate(self.readers):
            os.set_blocking(reader, False)
            loop.watch(reader, lambda _events, n=number: self._read(n))  # type: ignore[misc]  # the default binds the loop's variable

    def _read(self, number: int) -> None:
        reader = self.readers[number]
        while True:
            try:
                data = os.read(reader, 65536)
            except BlockingIOError:
                return
            if not data:
                self.loop.forget(reader)
                return
            self.chunks[number].append(data)

    def close_writers(self) -> None:
        """Our copies of the write ends, once init has its own."""
        for fd in self.open_writers:
            os.close(fd)
        self.open_writers = []

    def result(self) -> tuple[bytes, bytes]:
        """Everything written, after the container has ended."""
        for number in range(2):
            self._read(number)
        return b"".join(self.chunks[0]), b"".join(self.chunks[1])

    def close(self) -> None:
        """Close both pipes."""
        self.close_writers()
        for reader in self.readers:
            self.loop.forget(reader)
            os.close(reader)


def new_name() -> str:
    """Eight characters for the name of a container that nobody named."""
    return sequence.new_start_id()


def default_config(host: Host, environ: Mapping[str, str]) -> str | None:
    """lxc.default_config: with what lxc-create begins."""
    return system_value(host, "lxc.default_config", environ)


def this_program(environ: Mapping[str, str]) -> str:
    """The absolute path of the `atoll` command that runs. Raises HostError when it was not started by one."""
    import sys

    path = sys.argv[0]
    if "/" not in path:
        path = next(
            (
                f"{d}/{path}"
                for d in environ.get("PATH", "").split(":")
                if os.access(f"{d}/{path}", os.X_OK)
            ),
            path,
        )
    path = os.path.realpath(path)
    if not os.access(path, os.X_OK) or path.endswith(".py"):
        raise HostError(
            "the links need the installed command `atoll` to point to, and this is not one",
            fix="install the project (make run), and use its .venv/bin/atoll",
        )
    return path
