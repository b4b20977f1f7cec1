"""The clone and the two sides after it: frames on the sync socket, init's loop over its steps, the monitor's conducting.

Not what the steps do, nor what happens once init is executed (monitor.py). The protocol is charted in
docs/sync-protocol.md. Sources: clone(2), unix(7), docs/design.md.
"""

from __future__ import annotations

import gc
import os
import sys

from atoll.errors import AtollError, HostError, StepError, reason
from atoll.executor import Timing, blame, run
from atoll.linux import files, process
from atoll.log import get_logger
from atoll.plan import CHILD, INIT, MONITOR, SYNC, HostStep, Slot, readable, wait_readable
from atoll.records import Record
from atoll.resources import cgroup, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from atoll.executor import Journal, Observer
    from atoll.linux.files import OwnedFd
    from atoll.linux.process import Child, ExitStatus
    from atoll.plan import Handler, Placed, Plan

log = get_logger(__name__)

PROGRAM: Slot[Program] = Slot("program")
"""What init has to run; filled before the plan runs."""
MONITOR_FDS: Slot[Callable[[], tuple[int, ...]]] = Slot("monitor's descriptors")
"""Names the descriptors that init closes first: they must not live on in the container (command socket, journal, signals)."""

FAILURE: Slot[Callable[[BaseException], None]] = Slot("failure")
"""Init side: tells the monitor why the last step failed, for a process that init made."""
EXECUTING: Slot[bool] = Slot("executing")
"""Init has done all but its last step, and may be executed at any moment: what comes for it now can wait so long."""
LAST_STRETCH: Slot[bool] = Slot("last stretch")
"""Init meets the monitor no more before it is executed."""
EXECUTED_PLACES: Slot[tuple[Placed, ...]] = Slot("places")
"""All places of the plan, for blaming what init reports last."""

REACHED, GO, FDS, LOG, FAILED = "reached", "go", "fds", "log", "failed"


class Frame(Record):
    """One message: kind, the phase or name that it is about, text, descriptors. An empty kind is end of file."""

    kind: str
    name: str = ""
    text: str = ""
    fds: tuple[OwnedFd, ...] = ()


class Link:
    """One end of the sync socket. Satisfies plan.Sync."""

    def __init__(self, channel: files.Channel) -> None:
        self.channel = channel
        self._waiting: dict[str, Frame] = {}

    def send(self, kind: str, name: str, text: str = "", fds: Sequence[int] = ()) -> None:
        """Send one frame."""
        data = f"{kind}\0{name}\0{text}".encode("utf-8", "surrogateescape")
        self.channel.send(data[:60000], fds)

    def receive(self) -> Frame:
        """The next frame; blocks. Raises HostError for what is not a frame."""
        data, fds = self.channel.receive()
        if not data:
            return Frame(kind="")
        kind, _, rest = data.decode("utf-8", "surrogateescape").partition("\0")
        name, separator, text = rest.partition("\0")
        if not separator or kind not in (REACHED, GO, FDS, LOG, FAILED):
            raise HostError(f"the other side of the clone sent {data[:40]!r}, which is not a frame")
        return Frame(kind=kind, name=name, text=text, fds=tuple(fds))

    def send_fds(self, name: str, fds: Sequence[int], text: str = "") -> None:
        """Send descriptors under a name."""
        self.send(FDS, name, text, fds)

    def keep(self, frame: Frame) -> None:
        """Hold an fds frame until the step that wants it asks."""
        self._waiting[frame.name] = frame

    def receive_fds(self, name: str) -> tuple[str, list[OwnedFd]]:
        """The text and descriptors sent under `name`. Raises HostError when something else comes."""
        frame = self._waiting.pop(name, None) or self.receive()
        if frame.kind != FDS or frame.name != name:
            raise HostError(
                f"expected the descriptors of {name}, got {frame.kind or 'end of file'} {frame.name}"
            )
        return frame.text, list(frame.fds)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.channel.fileno()

    def close(self) -> None:
        """Close the socket and descriptors that nobody asked for."""
        for frame in self._waiting.values():
            for fd in frame.fds:
                fd.close()
        self._waiting.clear()
        self.channel.close()


class Part(Record):
    """One phase from one side: its steps there. `meets`: the monitor has steps in it too, which init waits for."""

    phase: str
    places: tuple[Placed, ...]
    meets: bool


class Program(Record):
    """What init runs: its steps by phase, the observers, the plan's length."""

    parts: tuple[Part, ...]
    observers: tuple[Observer, ...]
    total: int


def parts(plan: Plan, places: Sequence[Placed], side: str) -> tuple[Part, ...]:
    """One side of a plan."""
    return tuple(
        Part(
            phase=phase.name,
            places=tuple([p for p in places if p.phase == phase.name and p.side == side]),
            meets=bool(phase.monitor),
        )
        for phase in plan.phases
    )


class CloneInit(HostStep):
    """Make init: one clone3 into the new namespaces, with a pidfd, and into its cgroup where cgroup2 is alone."""

    flags: int
    shared: bool = False
    needs = (PROGRAM,)
    fills = (CHILD, SYNC)

    def explain(self) -> str:
        """Name the namespaces."""
        names = [name for name, flag in namespaces.NAMES.items() if self.flags & flag] or ["none"]
        joined = ", joining the shared ones" if self.shared else ""
        return f"clone init into new namespaces: {' '.join(names)}{joined}"

    def inverse(self) -> HostStep:
        """Kill it."""
        return KillInit()

    def apply(self, h: Handler) -> None:
        """Clone. In the child this never returns."""
        ours, theirs = files.seqpacket_pair()
        try:
            child = self._clone(h, Link(theirs), ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        h[CHILD] = child
        h[SYNC] = Link(ours)

    def _clone(self, h: Handler, link: Link, ours: files.Channel) -> Child:
        def entry() -> None:
            ours.close()
            init_main(h, link)

        if self.shared:
            return _clone_in_shared(h, self.flags, entry)
        cgroup_fd = cgroup.clone_fd(h)
        if cgroup_fd is not None:
            h[cgroup.CLONED_INTO] = True
            try:
                return process.clone(entry, flags=self.flags, cgroup_fd=cgroup_fd)
            except OSError as error:  # an older kernel, or a cgroup that cannot take processes: `enter` moves it then
                h.take(cgroup.CLONED_INTO)
                log.debug("cannot clone into the cgroup: %s", reason(error))
        return process.clone(entry, flags=self.flags)


def _clone_in_shared(h: Handler, flags: int, entry: object) -> Child:
    """Clone from a helper that has joined the shared namespaces; CLONE_PARENT makes init our child all the same."""
    ours, theirs = files.seqpacket_pair()

    def helper() -> None:
        ours.close()
        for shared in h[namespaces.SHARED_FDS]:
            process.setns(shared.fd.fileno())
        init = process.clone(entry, flags=flags | process.CLONE_PARENT, exit_signal=0)  # type: ignore[arg-type]  # entry is the closure above
        theirs.send(str(init.pid).encode(), (init.pidfd.fileno(),))
        os._exit(0)

    try:
        joiner = process.clone(helper)
    finally:
        theirs.close()
    with joiner.pidfd:
        data, fds = ours.receive()
        process.wait_pidfd(joiner.pidfd.fileno())
    ours.close()
    if not data:
        raise HostError(
            "cannot join the shared namespaces: the helper process failed (its message stands above)"
        )
    return process.Child(pid=int(data), pidfd=fds[0])


class KillInit(HostStep):
    """Take a clone back: kill init and everything in its pid namespace, and reap it."""

    def explain(self) -> str:
        """Say who dies."""
        return "kill init and reap it"

    def apply(self, h: Handler) -> None:
        """Harmless when it was reaped already or, after a crash, when the kernel killed it with its monitor."""
        child = h.get(CHILD)
        if child is None:
            return
        try:
            process.pidfd_send_signal(child.pidfd.fileno(), process.SIGKILL)
        except ProcessLookupError:
            log.debug("init %d was dead already", child.pid)
        process.wait_pidfd(child.pidfd.fileno())
        h.take(CHILD)
        child.pidfd.close()

    def recognise(self, began: float) -> bool:
        """Nothing to find by name."""
        del began
        return True


# -- init's side ----------------------------------------------------------------------------------------------------


class _Sealed:
    """A finder that refuses: after the container's root is entered an import would execute the container's file."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Refuse."""
        raise ImportError(f"import of {name} between clone and exec")


def init_main(h: Handler, link: Link) -> None:
    """Run init's half of the plan. Never returns: the last step executes, or the process exits."""
    gc.disable()
    sys.meta_path.insert(0, _Sealed())
    private = h.take(MONITOR_FDS)
    for fd in private() if private is not None else ():
        os.close(fd)
    h[SYNC] = link
    h.report = lambda level, text: link.send(LOG, str(level), text)
    h.wait = wait_readable
    work = h[PROGRAM]
    last = work.parts[-1].places[-1]
    h[FAILURE] = lambda error: _say_failed(link, blame(error, last, total=work.total))
    _spans(work)  # those of the monitor, of which this process is a copy
    try:
        for part in work.parts:
            process.set_name(f"atoll:{part.phase}")
            _run_phase(h, link, part, work)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the monitor must hear of it
        _say_failed(link, error)
    os._exit(127)


def _run_phase(h: Handler, link: Link, part: Part, work: Program) -> None:
    last, places = part is work.parts[-1], part.places
    before = places[:-1] if last else places
    run(before, h, total=work.total, observers=work.observers)
    if last:  # the step that executes: on success nothing of us is left to say so but the end of the socket
        observers = (*work.observers, _Announcing(link, part.phase, _spans(work)))
        run(places[-1:], h, total=work.total, observers=observers)
    elif part.meets:
        link.send(REACHED, part.phase, _spans(work))
        _await_go(link, part.phase)


def _spans(work: Program) -> str:
    """When this side's steps began and ended, of those that were not told yet."""
    for observer in work.observers:
        if isinstance(observer, Timing):
            told = " ".join([f"{n}:{b}:{e}" for n, b, e in observer.spans])
            observer.spans.clear()
            return told
    return ""


class _Announcing:
    """Observer that says `reached` when the other ones have seen the step begin: what the monitor does then comes after it."""

    def __init__(self, link: Link, phase: str, spans: str) -> None:
        self.link, self.phase, self.spans = link, phase, spans

    def before(self, place: Placed) -> None:
        """Say it."""
        del place
        self.link.send(REACHED, self.phase, self.spans)

    def after(self, place: Placed) -> None:
        """Not reached."""


def _await_go(link: Link, phase: str) -> None:
    frame = link.receive()
    if frame.kind != GO or frame.name != phase:
        os._exit(1)  # the monitor is gone or gave up; it knows why, and nobody hears us


def _say_failed(link: Link, error: BaseException) -> None:
    fields = {
        "number": getattr(error, "number", 0),
        "message": error.message if isinstance(error, AtollError) else reason(error),
        "call": getattr(error, "call", None),
        "fix": getattr(error, "fix", None),
        "errno": getattr(error, "errno", None),
    }
    try:
        link.send(FAILED, str(fields["number"]), repr(fields))
    except OSError:
        os._exit(1)  # nobody listens any more


# -- the monitor's side ---------------------------------------------------------------------------------------------


class _InitFailure(AtollError):
    """What a failed frame says, on its way to blame."""

    def __init__(self, fields: dict[str, object]) -> None:
        fix = fields["fix"]
        super().__init__(str(fields["message"]), fix=str(fix) if fix is not None else None)
        self.errno = fields["errno"]
        call = fields["call"]
        if call is not None:
            self.add_note(str(call))


def conduct(
    plan: Plan, h: Handler, *, journal: Journal, observers: Sequence[Observer] = ()
) -> None:
    """Run a start plan, both sides, to the end of its last phase.

    Raises StepError for the first step that fails on either side, Interrupted when a signal ended it. The caller unwinds.
    """
    places = plan.placed()
    total = len(places)
    init = parts(plan, places, INIT)[1:]  # none of it comes before the clone
    h[PROGRAM] = Program(parts=init, observers=tuple(observers), total=total)
    h[EXECUTED_PLACES] = places
    for observer in observers:
        if isinstance(observer, Timing):
            observer.places = places
    before, *after = parts(plan, places, MONITOR)
    meeting = [part for part in after if part.meets]
    run(before.places, h, total=total, observers=observers, journal=journal)
    for part in meeting:
        _await_init(h, part, places, observers)
        if part is meeting[-1]:
            h[EXECUTING] = True
        try:
            run(part.places, h, total=total, observers=observers, journal=journal)
        except StepError as error:
            if part is meeting[-1]:  # init may have been executed, and have ended
                raise
            raise _cause(h, error, part, places) from error
        if part in meeting[-2:-1]:
            h[LAST_STRETCH] = True
        _let_go(h, part, places)
    for observer in observers:
        if isinstance(observer, Timing):
            observer.infer_exec()


def may_be_executed(h: Handler) -> bool:
    """Init has said that it goes to its last step, or has said something that we have not read: it may be that."""
    if EXECUTING in h:
        return True
    link = h.get(SYNC)
    return LAST_STRETCH in h and link is not None and readable(link.fileno())  # type: ignore[attr-defined]  # the monitor's own Link


def _await_init(
    h: Handler, part: Part, places: Sequence[Placed], observers: Sequence[Observer]
) -> None:
    """Let init do its part of a phase, and of those before in which the monitor has nothing to do."""
    try:
        await_reached(h, part.phase, places, observers)
    except OSError as error:
        raise _deaf(error, part, places) from error


def _deaf(error: OSError, part: Part, places: Sequence[Placed]) -> AtollError:
    what = f"cannot talk to init in phase {part.phase}: {reason(error)}"
    return _blame_init(HostError(what, errno=error.errno), part.phase, places)


def _let_go(h: Handler, part: Part, places: Sequence[Placed]) -> None:
    link = h.get(SYNC)
    if link is None:  # init was executed
        return
    try:
        link.send(GO, part.phase)  # type: ignore[attr-defined]  # the monitor's own Link
    except BrokenPipeError:
        log.debug("init is gone after phase %s; what it said last tells why", part.phase)
    except OSError as error:
        raise _deaf(error, part, places) from error


def _cause(h: Handler, error: StepError, part: Part, places: Sequence[Placed]) -> AtollError:
    """Why a step of the monitor failed: when init is dead by then, that is why, and what it said last tells more."""
    link: Link = h[SYNC]  # type: ignore[assignment]  # the monitor's own Link
    try:
        if process.wait_pidfd(h[CHILD].pidfd.fileno(), block=False, reap=False) is None:
            return error
        while (frame := link.receive()).kind not in ("", FAILED):
            for fd in frame.fds:
                fd.close()
    except OSError:
        return error
    return _failure(frame, places) if frame.kind else _silence(h, part.phase, places)


def next_frame(h: Handler) -> Frame:
    """The next frame from init, serving everything else meanwhile; end of file when init closed its end or died."""
    link: Link = h[SYNC]  # type: ignore[assignment]  # the monitor's own Link
    pidfd = h[CHILD].pidfd.fileno()
    ready = h.wait(link.fileno(), pidfd)
    if link.fileno() not in ready and not process.wait_pidfd(pidfd, block=False, reap=False):
        return next_frame(h)
    return link.receive()


def await_reached(
    h: Handler, phase: str, places: Sequence[Placed], observers: Sequence[Observer]
) -> None:
    """Take init's frames until it has reached the end of `phase`."""
    while True:
        frame = next_frame(h)
        if frame.kind == REACHED and frame.name == phase:
            _take_spans(frame.text, observers)
            return
        handle_frame(h, frame, phase, places)


def handle_frame(h: Handler, frame: Frame, phase: str, places: Sequence[Placed]) -> None:
    """Log, keep descriptors, or raise what init's failure or silence means."""
    if frame.kind == LOG:
        log.log(int(frame.name), "init: %s", frame.text)
    elif frame.kind == FDS:
        h[SYNC].keep(frame)  # type: ignore[attr-defined]  # the monitor's own Link
    elif frame.kind == FAILED:
        raise _failure(frame, places)
    elif not frame.kind:
        raise _silence(h, phase, places)
    else:
        raise HostError(f"init said {frame.kind} {frame.name} in phase {phase}")


def _failure(frame: Frame, places: Sequence[Placed]) -> AtollError:
    from ast import literal_eval

    fields = literal_eval(frame.text)
    failure = _InitFailure(fields)
    number = int(frame.name)
    if not 1 <= number <= len(places):
        return HostError(f"init failed outside of any step: {failure.message}")
    return blame(failure, places[number - 1], total=len(places))


def _silence(h: Handler, phase: str, places: Sequence[Placed]) -> AtollError:
    status = process.wait_pidfd(h[CHILD].pidfd.fileno(), reap=False)
    what = _death(status)
    phase = _last_phase(h[CHILD].pid) or phase
    error = HostError(f"init {what} in phase {phase} without saying why")
    return _blame_init(error, phase, places)


def _blame_init(error: HostError, phase: str, places: Sequence[Placed]) -> AtollError:
    """As far as it is known: init's last step in the phase."""
    mine = [p for p in places if p.phase == phase and p.side == INIT]
    return blame(error, mine[-1], total=len(places)) if mine else error


def _last_phase(pid: int) -> str:
    """The phase that a dead init, not reaped yet, was in: init is named for it. Empty when that cannot be told."""
    try:
        name = files.read_text(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""
    return name.removeprefix("atoll:") if name.startswith("atoll:") else ""


def _death(status: ExitStatus | None) -> str:
    if status is None:
        return "went away"
    return (
        f"exited with {status.value}" if status.exited else f"was killed by signal {status.value}"
    )


def _take_spans(text: str, observers: Sequence[Observer]) -> None:
    for observer in observers:
        if isinstance(observer, Timing):
            observer.spans.extend(
                (int(n), int(b), int(e)) for n, b, e in (span.split(":") for span in text.split())
            )


class AwaitExec(HostStep):
    """Wait until init's end of the sync socket closes, which execve does, and see that init was not killed instead."""

    needs = (CHILD, SYNC)

    def explain(self) -> str:
        """Say what is awaited."""
        return "wait until init is executed"

    def apply(self, h: Handler) -> None:
        """Take frames to the end. End of file is believed only after the pidfd shows that init was not killed."""
        places = h[EXECUTED_PLACES]
        while (frame := next_frame(h)).kind:
            handle_frame(h, frame, "ready", places)
        status = process.wait_pidfd(h[CHILD].pidfd.fileno(), block=False, reap=False)
        if status is not None and not status.exited:
            raise HostError(
                f"init was killed by signal {status.value} before or while it was executed"
            )
        link = h.take(SYNC)
        if link is not None:
            link.close()  # type: ignore[attr-defined]  # the monitor's own Link
