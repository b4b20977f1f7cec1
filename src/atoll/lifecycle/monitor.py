"""The monitor: the process that owns containers. Event loop, states, signals, stop, reboot, taking back.

One process may own one container (a tool's default) or several. Not the order of steps (sequence.py), not the two sides of
the clone (spawn.py), not how an idle one becomes small (park.py): because of that one, what only starting or stopping needs
is imported where it is used. Sources: reference of LXC sections 1.3 F-G, 1.5, 1.6 (lxc_end, signals).
"""

from __future__ import annotations

import os

from atoll import errors, executor
from atoll.errors import AtollError, Interrupted, Restored, StepError
from atoll.executor import Journal
from atoll.lifecycle import commands
from atoll.lifecycle.saved import LiveHandler
from atoll.lifecycle.server import CommandServer
from atoll.linux import files, process
from atoll.log import get_logger
from atoll.plan import CHILD
from atoll.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from atoll.config.text import Config
    from atoll.executor import Observer
    from atoll.host import Host
    from atoll.lifecycle.sequence import Facts, Wish
    from atoll.linux.files import OwnedFd
    from atoll.linux.process import ExitStatus
    from atoll.loop import Loop
    from atoll.plan import Handler, Plan, Start
    from atoll.resources.terminal.carrier import Relay, TtyLeases

    class Asked(Protocol):
        """What a container was started with: a Request, or what a parked monitor kept of one."""

        @property
        def name(self) -> str:
            """The container's name."""

        @property
        def lxcpath(self) -> str:
            """The directory of its directory."""

        @property
        def config(self) -> Config:
            """Its configuration."""

        @property
        def host(self) -> Host:
            """The machine."""

        @property
        def wish(self) -> Wish:
            """What the caller wanted."""

        @property
        def observers(self) -> tuple[Observer, ...]:
            """Of its steps."""

        @property
        def journal(self) -> str | None:
            """The journal's path."""

        def gather(self) -> Facts:
            """Look up what a start depends on."""

    class Parking(Protocol):
        """How an idle monitor becomes small (park.py)."""

        def turn(self, container: Running, source: SignalSource) -> None:
            """One round of the loop; it may end in an exec."""


log = get_logger(__name__)

UNBLOCKED = ("SIGILL", "SIGSEGV", "SIGBUS")
IMPATIENCE = 3
"""So many SIGINTs to a foreground monitor without a terminal kill the container."""


class Request(Record):
    """All that is known of a container to be started: the wish, its configuration, the machine, the look-ups."""

    config: Config
    host: Host
    wish: Wish
    gather: Callable[[], Facts]
    """Looks up Facts; called again at each reboot."""
    observers: tuple[Observer, ...] = ()
    journal: str | None = None
    """The journal's path; None keeps it in memory only."""

    @property
    def name(self) -> str:
        """The container's name."""
        return self.wish.name

    @property
    def lxcpath(self) -> str:
        """The directory of its directory."""
        return self.wish.lxcpath


class Outcome(Record):
    """How a container ended: init's status, whether it asked for a reboot, what taking back did."""

    status: ExitStatus
    reboot: bool
    restored: Restored

    @property
    def exit_code(self) -> int:
        """As lxc-start -F: the exit code; 0 for a halt (SIGINT) or reboot (SIGHUP); 128+N for other signals."""
        if not self.status.exited and self.status.value in (process.SIGINT, process.SIGHUP):
            return 0
        return self.status.shell


class Running:
    """One container that this process owns, from STARTING to STOPPED. Satisfies states.Owner and server.Container."""

    def __init__(self, loop: Loop, request: Asked) -> None:
        self.loop = loop
        self.request = request
        self.name = request.name
        self.lxcpath = request.lxcpath
        self.state = commands.STOPPED
        self.outcome: Outcome | None = None
        self.restored = Restored(total=0, undone=0)
        self.server: CommandServer | None = None
        self.handler = LiveHandler()
        self.journal = Journal()
        self.start: Start | None = None
        self._relay: Relay | None = None
        self._asleep: Callable[[], Relay] | None = None
        self._leases: TtyLeases | None = None
        self.starting = False
        self._late: list[int] = []  # signals for a command that may be running already
        self._sent: tuple[OwnedFd, ...] = ()
        self.extra_fds: tuple[int, ...] = ()
        """More descriptors of the monitor's that init must not keep (signals)."""

    # -- from STARTING to RUNNING ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Run the start plan. Raises StepError, ConfigError, HostError or Interrupted; the host is then as before."""
        from atoll.lifecycle import sequence, spawn, states

        request = self.request
        facts = request.gather()
        self.start = start = sequence.decide(request.config, request.host, request.wish, facts)
        plan = sequence.start(request.config, request.host, start, facts, request.wish)
        self.handler = LiveHandler(report=report, wait=self.loop.wait)
        self.handler[states.OWNER] = self
        self.handler[spawn.MONITOR_FDS] = self._private_fds
        self.journal = self._open_journal(start)
        self.starting = True
        try:
            spawn.conduct(plan, self.handler, journal=self.journal, observers=request.observers)
            self.starting = False
            self._serve()
            late, self._late = self._late, []
            for number in late:
                self.signal(number)
        except BaseException as error:
            self.starting = False
            self._abort(error)
            raise

    def _open_journal(self, start: Start) -> Journal:
        path = self.request.journal
        if path is None:
            return Journal()
        header: dict[str, object] = {
            "name": self.name,
            "lxcpath": self.lxcpath,
            "start_id": start.start_id,
            "began": start.began,
            "pid": os.getpid(),
        }
        try:
            _make_run_directory(os.path.dirname(path))
            return Journal(path, header=header)
        except BlockingIOError as error:
            raise errors.StateError(
                f"container {self.name} is being started or is already running",
                now="RUNNING",
                wanted="STOPPED",
            ) from error
        except OSError as error:
            what = f"cannot keep a journal of the start in {path}: {errors.reason(error)}"
            raise errors.HostError(what, errno=error.errno) from error

    def _private_fds(self) -> tuple[int, ...]:
        """What the monitor holds that must not live on in init."""
        served = self.server.filenos() if self.server is not None else ()
        mine = (self.journal.fileno(), self.loop.fileno(), *served, *self.extra_fds)
        return tuple(fd for fd in mine if fd >= 0)

    def _serve(self) -> None:
        """RUNNING: watch init and the terminals."""
        self.loop.watch(self.handler[CHILD].pidfd.fileno(), self.init_ended)
        self._leases = None
        self._relay = _console_relay(self.request, self.handler, self.loop)

    @property
    def relay(self) -> Relay | None:
        """The console's; one that is asleep is made now."""
        if self._asleep is not None:
            make, self._asleep = self._asleep, None
            self._relay = make()
        return self._relay

    def sleep_relay(self, make: Callable[[], Relay] | None) -> None:
        """The relay is to be made when somebody needs it."""
        self._asleep = make

    @property
    def relay_sleeps(self) -> bool:
        """Nobody has needed it yet."""
        return self._asleep is not None

    def _abort(self, error: BaseException) -> None:
        """A start failed: say so, take everything back, and note in the error what that did."""
        if self.server is not None:
            self.set_state(commands.ABORTING)
        from atoll.lifecycle import spawn

        try:
            spawn.KillInit().apply(self.handler)
        except OSError as problem:  # taking back tries again
            log.warn("cannot kill init: %s", errors.reason(problem))
        self._end("stop")
        if isinstance(error, StepError):
            error.restored = self.restored

    # -- RUNNING to STOPPED ------------------------------------------------------------------------------------------

    def init_ended(self, _events: int) -> None:
        """Init's pidfd says so: take back, and say how it ended."""
        child = self.handler.get(CHILD)
        if child is None:
            return
        status = process.wait_pidfd(child.pidfd.fileno(), block=False)
        if status is None:
            return
        self.loop.forget(child.pidfd.fileno())
        reboot = not status.exited and status.value == process.SIGHUP
        log.info("init %d of %s %s", child.pid, self.name, _ending(status))
        self._close_relay()
        self.handler.take(CHILD)
        child.pidfd.close()
        reboot = self._end("reboot" if reboot else "stop")
        self.outcome = Outcome(status=status, reboot=reboot, restored=self.restored)

    def _close_relay(self) -> None:
        if self.relay is not None:
            self.relay.finish()
            self.relay.close()
            self._relay = None

    def _end(self, target: str) -> bool:
        """Stop hooks, take back, STOPPED, post-stop hooks. Never raises for what a hook or taking back does.

        True when it is to start again: `target` is reboot, and no post-stop hook has failed.
        """
        from atoll.lifecycle import sequence

        request, start = self.request, self.start
        if start is None:
            return False
        self._close_relay()
        announced = self.server is not None  # else no hook has run either
        if announced:
            self._run(sequence.stopping(request.config, request.host, start, target=target))
        self.restored = self.journal.unwind(self.handler)
        if self.restored.undone == self.restored.total:
            self.journal.discard()
        self.journal.close()
        self.state = commands.STOPPED
        if self.server is not None and target == "reboot":
            self.server.notify(commands.STOPPED)
            self.server.reboot()
        elif self.server is not None:
            self.server.close()  # this is how those who wait learn of STOPPED
            self.server = None
        fine = True
        if announced:
            fine = self._run(sequence.stopped(request.config, request.host, start, target=target))
        self._answered()
        self.handler.close()
        again = target == "reboot" and fine
        if self.server is not None and not again:
            self.server.close()
            self.server = None
        return again

    def _run(self, plan: Plan) -> bool:
        """Run host steps whose failure is only logged; False when one failed."""
        places = plan.placed()
        fine = True
        for place in places:
            try:
                executor.run(
                    [place], self.handler, total=len(places), observers=self.request.observers
                )
            except AtollError as error:
                fine = False
                log.error("%s", error.message)
        return fine

    # -- what signals ask --------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Forward a signal to init through its pidfd; a hang-up becomes SIGTERM. During a start it ends the start."""
        if self.starting:
            from atoll.lifecycle import spawn

            if spawn.may_be_executed(self.handler) and not self._late:
                self._late.append(number)
                return
            what = f"the start of {self.name} was interrupted by signal {number}"
            raise Interrupted(what, signal=number)
        child = self.handler.get(CHILD)
        if child is None:
            return
        if number == process.SIGHUP:
            number = process.SIGTERM
        try:
            process.pidfd_send_signal(child.pidfd.fileno(), number)
        except ProcessLookupError:
            log.debug("signal %d came after init had ended", number)

    # -- states.Owner ------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Open the command socket, unless a reboot kept it."""
        if self.server is None:
            self.server = CommandServer.listen(self.lxcpath, self.name)
            self.server.serve(self.loop, self)

    def set_state(self, state: int) -> None:
        """Enter a state and tell those who wait for it."""
        self.state = commands.RUNNING if state == commands.THAWED else state
        log.info("%s is %s", self.name, commands.STATES[state])
        if self.server is not None:
            self.server.notify(state)

    # -- server.Container --------------------------------------------------------------------------------------------

    @property
    def init_pid(self) -> int:
        """Init's pid as the monitor sees it; 0 before the clone and after the end."""
        child = self.handler.get(CHILD)
        return child.pid if child is not None else 0

    @property
    def clone_flags(self) -> int:
        """CLONE_NEW* of the namespaces that are its own."""
        return self.start.namespaces if self.start is not None else 0

    def init_pidfd(self) -> int | None:
        """A pidfd of init."""
        child = self.handler.get(CHILD)
        return child.pidfd.fileno() if child is not None else None

    def config_item(self, key: str) -> str | None:
        """The text of a key as LXC's getter gives it; None for an unknown one."""
        start = self.start
        if start is not None and key.startswith("lxc.net.") and key.endswith(".veth.pair"):
            index = key.split(".")[2]
            if index.isdigit():
                from atoll.resources import network

                return network.running_pair_name(self.request.config, start, int(index))
        try:
            return self.request.config.get(key)
        except AtollError:
            return None

    def stop(self) -> None:
        """lxc.signal.stop to init, SIGKILL by default, and a thaw of what is frozen. Raises OSError."""
        child = self.handler.get(CHILD)
        if child is not None:
            from atoll.resources import cgroup
            from atoll.resources.lifetime import Signals

            number = self.request.config[Signals].stop or process.SIGKILL
            process.pidfd_send_signal(child.pidfd.fileno(), number)
            cgroup.thaw(self.handler)

    def console(self, ttynum: int) -> tuple[int, int] | None:
        """Lease a tty."""
        if self.init_pid == 0 or self.server is None:
            return None
        if self._leases is None:
            from atoll.resources.terminal.carrier import TtyLeases

            self._leases = TtyLeases(self.handler, self.server.leased())
        try:
            return self._leases.acquire(ttynum)
        except errors.CommandError as error:
            log.info("%s", error.message)
            return None

    def release_console(self, tty: int) -> None:
        """Its client has gone."""
        if self._leases is not None:
            self._leases.release(tty)

    def console_log(self, *, clear: bool, read: bool, limit: int, write_file: bool) -> bytes | None:
        """The ring buffer; None when there is none."""
        ring = self.relay.ring if self.relay is not None else None
        if ring is None or self.relay is None:
            return None
        if write_file and self.relay.log_file is not None:
            self.relay.log_file.replace(ring)
        data = ring.read(limit) if read else b""
        if clear:
            ring.clear()
        return data

    def cgroup_path(self, controller: str, *, limit: bool) -> str | None:
        """Path of the payload's (limit: of the limits') cgroup below the root of the controller's hierarchy."""
        from atoll.resources import cgroup

        return cgroup.get_cgroup(self.handler, controller, limits=limit)

    def cgroup_context(self) -> commands.CgroupContext:
        """Layout and the payload's directories."""
        from atoll.resources import cgroup

        fds = self._answered(*cgroup.payload_fds(self.handler))
        layout = cgroup.layout_number(self.handler)
        return commands.CgroupContext(layout=layout, utilities=0, fds=fds)

    def cgroup_fd(self, controller: str, kind: int, *, limit: bool) -> int | None:
        """One hierarchy's directory."""
        from atoll.resources import cgroup

        found = cgroup.controller_fd(self.handler, controller, limits=limit)
        if found is None:
            return None
        (fd,) = self._answered(found[1])
        return fd if kind in (0, found[0]) else None

    def cgroup2_fd(self, *, limit: bool) -> int | None:
        """The directory in a pure unified layout."""
        from atoll.resources import cgroup

        found = cgroup.cgroup2_fd(self.handler, limits=limit)
        return self._answered(found)[0] if found is not None else None

    def _answered(self, *fds: OwnedFd) -> tuple[int, ...]:
        """Keep descriptors open until the next answer: the server sends them when we have returned."""
        for fd in self._sent:
            fd.close()
        self._sent = fds
        return tuple(fd.fileno() for fd in fds)

    def devpts_fd(self) -> int | None:
        """Root of the container's devpts."""
        from atoll.resources import terminal

        fd = self.handler.get(terminal.DEVPTS)
        return fd.fileno() if fd is not None else None


def _console_relay(request: Asked, h: Handler, loop: Loop) -> Relay | None:
    """The console's relay; with given standard descriptors it is shown on those of them that are terminals."""
    from atoll.resources import terminal

    if h.get(terminal.CONSOLE) is None:
        return None
    from atoll.resources.terminal import carrier

    stdio = request.wish.stdio
    relay = carrier.relay(request.config, h, loop, stdio)
    if relay is None or stdio is None:
        return relay
    stdin = stdio[0] if os.isatty(stdio[0]) else -1
    stdout = next((fd for fd in stdio[1:] if os.isatty(fd)), stdin)
    if stdout >= 0:
        try:
            relay.attach(stdin, stdout)
        except BaseException:
            relay.close()
            raise
    return relay


def report(level: int, text: str) -> None:
    """What steps report goes to the log."""
    log.log(level, "%s", text)


def _ending(status: ExitStatus) -> str:
    return f"exited with {status.value}" if status.exited else f"was ended by signal {status.value}"


class SignalSource:
    """Signals of this process as events: blocked, read from a signalfd, handed to the containers owned."""

    def __init__(
        self,
        loop: Loop,
        containers: Sequence[Running],
        *,
        before: tuple[OwnedFd, int] | None = None,
    ) -> None:
        """`before`: signalfd and former mask of the source that this process had before an exec, which kept the mask."""
        mask = ~process.signal_bits(*(process.SIGNALS[name] for name in UNBLOCKED))
        self.loop = loop
        self.containers = containers
        self.interrupts = 0
        if before is None:
            former = process.block_signals(mask & ((1 << 64) - 1))
            before = process.signalfd(mask & ((1 << 64) - 1)), former
        self.fd, self.old_mask = before
        loop.watch(self.fd.fileno(), self._arrived)

    def _arrived(self, _events: int) -> None:
        while (info := process.read_signal(self.fd.fileno())) is not None:
            if info.signal == process.SIGCHLD:
                continue  # init has a pidfd; a stopped, continued or foreign child is nobody's end
            for container in list(self.containers):
                self._deliver(container, info.signal)

    def _deliver(self, container: Running, number: int) -> None:
        if number == process.SIGWINCH:
            if container.relay is not None:
                container.relay.resize()
            return
        if number == process.SIGPIPE:
            return
        if number == process.SIGNALS["SIGCONT"] and container.relay is not None:
            container.relay.come_forward()
        if number == process.SIGINT and container.request.wish.init_loop:
            self.interrupts += 1
            if self.interrupts >= IMPATIENCE:
                container.signal(process.SIGKILL)
                return
        container.signal(number)

    def close(self) -> None:
        """Give the signals back as they were."""
        self.loop.forget(self.fd.fileno())
        self.fd.close()
        process.set_signal_mask(self.old_mask)


def own(
    loop: Loop,
    request: Request,
    *,
    signals: bool,
    ready: Callable[[], None] | None = None,
    parking: Parking | None = None,
) -> Outcome:
    """Start one container and serve it until it has stopped, through any number of reboots.

    `signals`: take this process's signals (a tool's monitor does, a library call does not). `ready` is called once, when it
    is RUNNING. `parking`: become small when idle; for a process that is nothing but this monitor. Raises what Running.begin
    raises.
    """
    container = Running(loop, request)
    source = SignalSource(loop, [container]) if signals else None
    return keep(container, source, ready=ready, parking=parking)


def keep(
    container: Running,
    source: SignalSource | None,
    *,
    ready: Callable[[], None] | None = None,
    parking: Parking | None = None,
    running: bool = False,
) -> Outcome:
    """own(), of a container that is to be started or, with `running`, runs."""
    if source is not None:
        container.extra_fds = (source.fd.fileno(),)
    try:
        while True:
            if not running:
                container.outcome = None
                container.begin()
            running = False
            if ready is not None:
                ready()
                ready = None
            outcome = serve(container, source, parking)
            if not outcome.reboot:
                return outcome
            log.notice("%s reboots", container.name)
    except BaseException:
        if container.handler.get(CHILD) is not None:
            container.signal(process.SIGKILL)
            serve(container)
        raise
    finally:
        if container.server is not None:
            container.server.close()
        if source is not None:
            source.close()


def serve(
    container: Running, source: SignalSource | None = None, parking: Parking | None = None
) -> Outcome:
    """Run the loop until the container has stopped."""
    while (outcome := container.outcome) is None:
        if parking is None or source is None:
            container.loop.run_once()
        else:
            parking.turn(container, source)
    return outcome


def _make_run_directory(journals: str) -> None:
    """The run directory, which a mapped root may have to pass on its way to the mount point, and the journals in it.

    Raises HostError when somebody else has it: without a run directory of the user's own it is below /tmp.
    """
    run = os.path.dirname(journals)
    files.make_directories(None, run, 0o755)
    files.make_directories(None, journals, 0o700)
    for directory in (run, journals):
        owner = os.stat(directory, follow_symlinks=False).st_uid
        if owner not in (os.geteuid(), 0):
            raise errors.HostError(
                f"the run directory {directory} belongs to uid {owner}",
                fix="set XDG_RUNTIME_DIR to a directory of your own",
            )


def journal_path(host: Host, lxcpath: str, name: str) -> str:
    """Where the journal of a container is kept: one file a container, named by path and name."""
    return f"{host.run_directory}/journal/{commands.fnv1a(os.fsencode(lxcpath)):016x}-{name}"
