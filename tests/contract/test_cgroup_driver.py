"""check_driver on a directory that acts as a cgroup file system."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from atoll.linux import files
from atoll.resources.cgroup import legacy
from atoll.resources.cgroup.driver import driver
from contract.cgroup_driver import FakeCgroups, World, check_driver

if TYPE_CHECKING:
    import pathlib


class PaperLife:
    """A process that exists only in the fake's files."""

    numbers = itertools.count(1_000_001)

    def __init__(self, fake: FakeCgroups) -> None:
        self.fake = fake
        self.pid = next(self.numbers)

    def alive(self) -> bool:
        return self.pid not in self.fake.killed

    def end(self) -> None:
        self.fake.signal(self.pid)


@pytest.mark.parametrize("version", [1, 2])
def test_driver_on_a_directory(
    version: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCgroups(str(tmp_path), version)
    monkeypatch.setattr(files, "mkdir", fake.mkdir)
    monkeypatch.setattr(files, "rmdir", fake.rmdir)
    monkeypatch.setattr(files, "write_text", fake.write)
    monkeypatch.setattr(legacy, "signal", fake.signal)
    controllers = ("cpuset", "freezer") if version == 1 else ("memory",)
    check_driver(
        lambda: World(driver(version), str(tmp_path), controllers, lambda: PaperLife(fake))
    )
