"""How a process knows that it runs in the outer isolation: a file that only exists there.

An environment variable would be inherited by what leaves the isolation, or be set by mistake.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

DIRECTORY = "/run/atoll-isolation"
UPPER = f"{DIRECTORY}/upper"


class Marker(NamedTuple):
    """What the outer isolation made: cgroup layout, directories under overlays, private network and /tmp."""

    layout: str
    overlays: list[str]
    network: bool
    tmp: bool

    def write(self) -> None:
        with open(f"{DIRECTORY}/marker.json", "w", encoding="utf-8") as file:
            json.dump(self._asdict(), file)


def inside() -> Marker | None:
    """The marker of the isolation that this process is in, or None."""
    try:
        with open(f"{DIRECTORY}/marker.json", encoding="utf-8") as file:
            values = json.load(file)
    except FileNotFoundError:
        return None
    # The file on a real /run would be a lie: the isolation's /run is a tmpfs of its own pid namespace.
    return Marker(**values) if os.path.ismount("/run") else None
