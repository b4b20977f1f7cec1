"""A block device as root file system, with and without an id map: mounted by init, or by the monitor before the clone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from abilities import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

MAP = ["-s", "lxc.idmap=u 0 100000 65536", "-s", "lxc.idmap=g 0 100000 65536"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the mapped root can reach, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="atoll-block-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def device(place: Path, atoll_command: list[str]) -> Iterator[str]:
    """A loop device with an ext4 file system that holds a busybox root."""
    make = [*atoll_command, "lxc-create", "-n", "b", "-t", "busybox", "-P", str(place)]
    subprocess.run(make, check=True)
    image = place / "image"
    root = place / "b" / "rootfs"
    subprocess.run(["mkfs.ext4", "-q", "-d", root, image, "64M"], check=True, capture_output=True)
    found = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    )
    yield found.stdout.strip()
    subprocess.run(["losetup", "-d", found.stdout.strip()], check=True)


def execute(
    atoll: list[str], path: Path, device: str, *more: str
) -> subprocess.CompletedProcess[str]:
    """Run `mount` on the device's root."""
    config = path / "config"
    config.write_text(
        f"lxc.rootfs.path = {device}\nlxc.net.0.type = empty\nlxc.mount.auto = proc\n"
    )
    command = [*atoll, "lxc-execute", "-n", "x", "-P", str(path), "-f", str(config), *more]
    return subprocess.run(
        [*command, "--", "sh", "-c", "id -u; cat /proc/self/uid_map; mount"],
        check=False,
        capture_output=True,
        text=True,
    )


@needs("busybox", "loop")
@pytest.mark.parametrize("mapped", [False, True], ids=["identity", "mapped"])
def test_device_is_the_root(
    place: Path, atoll_command: list[str], device: str, *, mapped: bool
) -> None:
    ran = execute(atoll_command, place, device, *(MAP if mapped else []))
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[0] == "0"
    assert lines[1].split() == (["0", "100000", "65536"] if mapped else ["0", "0", "4294967295"])
    assert any(line.startswith(f"{device} on / type ext4") for line in lines)


@needs("busybox", "loop")
def test_device_without_a_file_system(place: Path, atoll_command: list[str]) -> None:
    image = place / "empty"
    image.write_bytes(bytes(1 << 20))
    found = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    )
    empty = found.stdout.strip()
    try:
        ran = execute(atoll_command, place, empty)
    finally:
        subprocess.run(["losetup", "-d", empty], check=True)
    assert ran.returncode == 1
    first = ran.stderr.splitlines()[0]
    assert first.startswith(f"lxc-execute: x: cannot mount {empty} on ")
    assert first.endswith(": it holds no file system that this kernel knows")
