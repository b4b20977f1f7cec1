"""The warm process of the bench: a bare interpreter with the library imported. One word a line in, seconds a line out.

    python3 -IS warm.py SOURCES CONFIG LONG_CONFIG

It imports nothing that a program which uses the library would not have.
"""

from __future__ import annotations

import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from atoll import api, host
from atoll.config.text import Config

clock = time.perf_counter
TRUE = ("/bin/true",)
CONFIG = Config.read(sys.argv[2])
HOST = host.probe()


def run(known: host.Host | None, *, init: bool = True) -> float:
    """One life; `known`: the machine was looked at before."""
    began = clock()
    result = api.run(TRUE, config=CONFIG, host=known, init=init)
    seconds = clock() - began
    assert result.exit_code == 0, result
    return seconds


def timed(action: object, count: int = 20) -> float:
    """Seconds that one of `count` calls takes."""
    began = clock()
    for _ in range(count):
        action()  # type: ignore[operator]  # a callable
    return (clock() - began) / count


def plan() -> object:
    """The plan of a start."""
    container = api.Container("bench", config=CONFIG, host=HOST, lxcpath="/run/bench")
    return container.plan(container.wish(TRUE, init_loop=True))


ACTIONS = {
    "run": lambda: run(None),
    "run-known-host": lambda: run(HOST),
    "run-as-init": lambda: run(HOST, init=False),
    "read": lambda: timed(lambda: Config.read(sys.argv[3])),
    "plan": lambda: timed(plan),
    "probe": lambda: timed(host.probe),
}

while line := os.read(0, 4096):
    os.write(1, f"{ACTIONS[line.decode().strip()]()!r}\n".encode())
