"""Sweeps with ctrl-C and SIGTERM: they hit the foreground tool at every step of either side and at every kernel call.

The tool ends with 130 or 143, says so in one line, and leaves nothing. Up to RUNNING the start is what ends; after it
the signal is the command's.
"""

from __future__ import annotations

import os
import signal
from ast import literal_eval
from functools import partial
from typing import TYPE_CHECKING, Any

from atoll import api
from atoll.cli import options
from fault import world
from fault.faults import AFTER_THE_START, Call, Calls, in_child, judged
from fault.kills import Killer

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.executor import Observer
    from atoll.plan import Placed

SIGNALS = {"before": signal.SIGINT, "after": signal.SIGTERM}


class Tool:
    """A foreground tool in a child process: its exit status, and what it wrote to standard error."""

    def __init__(self, kind: str, command: tuple[str, ...]) -> None:
        self.kind = kind
        self.command = command
        if kind != "run":
            with open(f"{world.LXCPATH}/{kind}/config", "w", encoding="ascii") as file:
                file.write(world.text(kind))

    @property
    def words(self) -> tuple[str, ...]:
        common = ("-P", world.LXCPATH, "-n", self.kind)
        if self.kind == "run":
            return (*common, "--image", f"{world.LXCPATH}/plain/rootfs", "--", *self.command)
        return (*common, "-F")

    def run(self, prepare: Callable[[], object] = str) -> tuple[int, str]:
        errors = os.memfd_create("stderr")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

        def tool() -> int:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            prepare()
            name = "run" if self.kind == "run" else "lxc-start"
            return options.run(
                name, self.words, stdin=null, stdout=null, stderr=errors, environ={"PATH": "/bin"}
            )

        try:
            status = in_child(tool)
            text = os.pread(errors, 100000, 0).decode()
        finally:
            os.close(errors)
            os.close(null)
        return status, text

    def judge(self, status: int, text: str, number: int, also: tuple[int, ...] = ()) -> list[str]:
        """What is wrong with how it ended after signal `number`."""
        wanted = (
            128 + number,
            -number,
            *also,
        )  # -N: before the tool handles signals, there is nothing to take back
        found = [] if status in wanted else [f"exit status {status}, not {wanted}: {text}"]
        if "Traceback" in text or len(text.splitlines()) > 1:
            found.append(text)
        return found


def observe(observer: Observer) -> None:
    """Have it take part in the start that this process, a child, is going to make."""
    request = api.Container.request

    def observed(made: api.Container, wish: Any, **given: Any) -> Any:
        return request(made, wish, observers=(*given.pop("observers"), observer), **given)

    api.Container.request = observed  # type: ignore[method-assign, assignment]  # in a child process, for its one start


class Steps:
    """Observer that writes down the steps of a start; both sides share its file."""

    def __init__(self) -> None:
        self.file = os.memfd_create("steps")

    def before(self, place: Placed) -> None:
        if place.phase not in AFTER_THE_START:
            what = (place.number, place.phase, type(place.step).__name__, place.step.explain())
            os.write(self.file, f"{what!r}\n".encode())

    def after(self, place: Placed) -> None:
        pass

    def read(self) -> list[tuple[int, str, str, str]]:
        data = os.pread(self.file, 1 << 20, 0)
        os.close(self.file)
        return [literal_eval(line) for line in data.decode().splitlines()]


class InterruptAt:
    """Observer: the monitor gets a signal before or after step `number`, whichever side has it."""

    def __init__(self, killer: Killer, number: int, when: str) -> None:
        self.killer = killer
        self.number = number
        self.when = when
        self.monitor = 0

    def watch(self) -> None:
        """This process is the monitor."""
        self.monitor = os.getpid()
        observe(self)

    def before(self, place: Placed) -> None:
        self._strike(place, "before")

    def after(self, place: Placed) -> None:
        self._strike(place, "after")

    def _strike(self, place: Placed, when: str) -> None:
        if (place.number, when) != (self.number, self.when) or place.phase in AFTER_THE_START:
            return
        if place.side == "monitor":
            os.kill(self.monitor, SIGNALS[when])
        else:
            token = 2 * self.number + (when == "after")
            self.killer.kill(self.monitor, token, SIGNALS[when])


def steps(kind: str) -> list[str]:
    """SIGINT before each step, SIGTERM after it."""
    world.make()
    tool = Tool(kind, ("/bin/true",))
    killer, recorder = Killer(), Steps()
    tool.run(lambda: observe(recorder))
    recorded = recorder.read()
    tool.command = ("/bin/sleep", "1000")
    look = world.Look()
    problems = []
    for number, phase, step, text in recorded:
        for when in SIGNALS:
            if step in ("ExecInit", "RunCommand") and when == "after":
                continue  # nothing comes after an exec
            work = partial(_interrupted, tool, InterruptAt(killer, number, when), phase)
            found = judged(work) or look.differences()
            problems += [f"{when} step {number}, {text}: {line}" for line in found]
    killer.end()
    return problems


def _interrupted(tool: Tool, observer: InterruptAt, phase: str) -> list[str]:
    status, text = tool.run(observer.watch)
    # lxc-start's init is /bin/true here: it may have ended before the signal was seen.
    ended = (0,) if tool.kind != "run" and phase == "ready" else ()
    return tool.judge(status, text, SIGNALS[observer.when], ended)


def calls(part: str = "0/1") -> list[str]:
    """SIGINT at each kernel call of the tool up to RUNNING."""
    world.make()
    tool = Tool("run", ("/bin/true",))
    tool.run()
    look = world.Look()
    observer = Calls()
    recorded = observer.record(lambda: tool.run(observer.restart))
    mine = [call for call in recorded if call.process == "monitor"]
    running = max(number for number, call in enumerate(mine) if call.name == "recvmsg")
    tool.command = ("/bin/sleep", "1000")
    first, step = map(int, part.split("/"))
    problems = []
    for call in mine[: running + 1][first::step]:
        found = judged(partial(_interrupted_at, tool, observer, call)) or look.differences()
        problems += [f"at {' '.join(map(str, call))}: {line}" for line in found]
    return problems


def _interrupted_at(tool: Tool, observer: Calls, call: Call) -> list[str]:
    def prepare() -> None:
        observer.begin(call, lambda: os.kill(os.getpid(), signal.SIGINT))

    status, text = tool.run(prepare)
    if not observer.struck[0]:
        return ["the call was not made"]
    return tool.judge(status, text, signal.SIGINT)


def hooks(kind: str) -> list[str]:
    """SIGTERM while a program of the user's runs on the host: it ends with the start."""
    world.make()
    with open(f"{world.LXCPATH}/slow", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nkill -TERM $PPID\nexec sleep 1000\n")
    os.chmod(f"{world.LXCPATH}/slow", 0o755)
    tool = Tool(kind, ())
    tool.run()
    look = world.Look()
    problems = []
    for key in ("lxc.hook.pre-start", "lxc.hook.start-host", "lxc.net.0.script.up"):
        with open(f"{world.LXCPATH}/{kind}/config", "w", encoding="ascii") as file:
            file.write(
                world.text(kind).replace(f"{key} = {world.TRUE}", f"{key} = {world.LXCPATH}/slow")
            )
        found = judged(lambda: tool.judge(*tool.run(), signal.SIGTERM))
        file_back(kind)
        problems += [f"in {key}: {line}" for line in found or look.differences()]
    return problems


def file_back(kind: str) -> None:
    with open(f"{world.LXCPATH}/{kind}/config", "w", encoding="ascii") as file:
        file.write(world.text(kind))
