"""Atoll, a Linux container runtime: LXC's configuration, commands and protocol, in Python.

Public names are resolved on first use, because a command-line tool that needs one of them must not pay for all.
"""

from __future__ import annotations

__version__ = "0.1.0"

_PUBLIC = {
    "Container": "atoll.api",
    "Result": "atoll.api",
    "run": "atoll.api",
    "AtollError": "atoll.errors",
    "ConfigError": "atoll.errors",
    "HostError": "atoll.errors",
    "StateError": "atoll.errors",
    "StepError": "atoll.errors",
    "CommandError": "atoll.errors",
    "StorageError": "atoll.errors",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - the table is the one list of public names


def __getattr__(name: str) -> object:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
