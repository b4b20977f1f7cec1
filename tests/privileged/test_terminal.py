"""Devpts, console and ttys in real namespaces."""

from __future__ import annotations

import os

import pytest
from abilities import needs
from atoll.config.text import Config
from atoll.errors import AtollError
from atoll.host import probe
from atoll.linux import files
from atoll.linux.proc import IdMapping
from atoll.plan import SYNC, Handler
from atoll.resources import terminal

from privileged import test_mounts as driver

pytestmark = needs("root")


def steps_of(text, start):
    config = Config.parse(text, file="config")
    c = (config, probe(), start)
    return (
        *driver.steps_of(config, start),
        *terminal.devpts(*c),
        *terminal.console(*c),
        *terminal.ttys(*c),
    )


def run(tmp_path, text, *, id_map=(), host_console=(), then=None, **fields):
    rootfs = driver.make_rootfs(tmp_path / "rootfs", id_map[0].outside if id_map else 0)
    start = driver.make_start(rootfs, id_map=id_map, **fields)
    config = Config.parse(text, file="config")
    steps = steps_of(text, start)
    h = Handler()
    for step in terminal.host_console(config, probe(), start):
        step.apply(h)

    def body():
        answer = driver.apply_all(rootfs, steps, h)
        if then is not None:
            answer["then"] = then(h)
        return answer

    answer = driver.in_child(body, id_map=id_map)
    h.close()
    return answer
