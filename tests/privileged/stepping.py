"""Running init's steps in a real child, as lifecycle does, with a look at what they did."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from atoll import errors
from atoll.linux import process
from atoll.plan import CHILD, HOOK_ENVIRONMENT, ROOTFS, Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from atoll.plan import HostStep, InitStep, Slot

__all__ = ["CHILD", "HOOK_ENVIRONMENT", "ROOTFS", "in_child", "reports"]

reports: list[tuple[int, str]] = []
"""What steps on the monitor's side reported."""


def in_child(
    steps: Sequence[InitStep],
    look: Callable[[Handler], str],
    *,
    flags: int = 0,
    monitor: Sequence[HostStep] = (),
    before: Sequence[HostStep] = (),
    slots: dict[Slot[object], object] | None = None,
    watch: Callable[[Handler], None] | None = None,
) -> str:
    """Apply `before`, clone, apply `monitor` (and call `watch`) while the child waits, then in the child `steps` and `look`.

    The answer is what `look` returns, or "FAILED " and the message and fix of the error.
    """
    reader, writer = os.pipe()
    gate, opened = os.pipe()
    handler = Handler(report=lambda level, text: reports.append((level, text)))
    for slot, value in (slots or {}).items():
        handler[slot] = value
    for step in before:
        step.apply(handler)

    def entry() -> None:
        os.close(opened)
        os.read(gate, 1)
        try:
            for step in steps:
                step.apply(handler)
            answer = look(handler)
        except errors.AtollError as error:
            answer = f"FAILED {error.message} | {error.fix}"
        except OSError as error:
            answer = f"FAILED {errors.reason(error)} | {getattr(error, '__notes__', [])}"
        os.write(writer, answer.encode())
        os._exit(0)

    child = process.clone(entry, flags=flags)
    os.close(writer)
    os.close(gate)
    try:
        handler[CHILD] = child
        for host_step in monitor:
            host_step.apply(handler)
        if watch is not None:
            watch(handler)
        os.write(opened, b"x")
        answer = b""
        while piece := os.read(reader, 65536):
            answer += piece
    finally:
        os.close(opened)  # also lets a waiting child go on, and end
        os.close(reader)
        process.wait_pidfd(child.pidfd.fileno())
        handler.close()
    return answer.decode()
