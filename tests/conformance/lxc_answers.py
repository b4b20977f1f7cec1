"""Debian's LXC as an oracle: questions about a configuration, one JSON list a line, answered through python3-lxc.

Run by /usr/bin/python3, which has the binding; test_config_parity.py is at the other end. A question is [verb, argument…]; an
answer is true, false, a text, or null for "there is no such key". After "load" all questions are about that file.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import _lxc


class Oracle:
    """One configuration after the other; each is loaded into a fresh container object."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.number = 0
        self.container: Any = None

    def load(self, path: str) -> bool:
        """Read a file into a new container; whether LXC takes it."""
        self.number += 1
        self.container = _lxc.Container(f"c{self.number}", self.directory)
        return bool(self.container.load_config(path))

    def get(self, key: str) -> str | None:
        """What get_config_item says before the Python layer splits it into a list."""
        try:
            return str(self.container.get_config_item(key))
        except KeyError:
            return None
        except UnicodeDecodeError:
            return "not UTF-8"

    def keys(self, prefix: str = "") -> str | None:
        """get_keys."""
        try:
            found = self.container.get_keys(prefix) if prefix else self.container.get_keys()
        except KeyError:
            return None
        return "\n".join(found) if isinstance(found, (list, tuple)) else str(found)

    def set(self, key: str, value: str) -> bool:
        """The library's set_config_item, which adds to lists."""
        return bool(self.container.set_config_item(key, value))

    def clear(self, key: str) -> bool:
        """clear_config_item."""
        return bool(self.container.clear_config_item(key))

    def save(self) -> str | None:
        """What save_config writes."""
        path = f"{self.directory}/saved"
        if not self.container.save_config(path):
            return None
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")


def main() -> None:
    """Answer until the questions end."""
    os.umask(0o022)
    oracle = Oracle(sys.argv[1])
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        print(json.dumps(getattr(oracle, verb)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
