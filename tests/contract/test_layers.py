"""Imports point rightwards only (docs/design.md, layout). Change LAYERS only together with an ADR."""

from __future__ import annotations

import ast
import sys

import pytest

from contract import sources

# Left may use right.  A group on one line may use each other.
LAYERS = (
    ("__main__",),
    ("cli", "oci"),
    ("api", "lxc"),
    ("lifecycle",),
    ("resources",),
    ("config",),
    ("executor",),
    ("plan",),
    ("host",),
    ("loop", "script"),
    ("linux",),
    ("log",),
    ("errors",),
    ("records",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Only types are named against the arrow: nothing is imported when the program runs.
TYPES_ONLY = True


def layer(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def inner(module: sources.Module) -> list[tuple[int, str]]:
    return [
        (line, name)
        for line, name in sources.imports(module, for_types=not TYPES_ONLY)
        if name == "atoll" or name.startswith("atoll.")
    ]


@pytest.mark.parametrize("module", sources.modules(), ids=lambda module: module.name)
def test_imports_point_rightwards(module: sources.Module) -> None:
    own = layer(module.name)
    if not own:
        return  # atoll/__init__ resolves its names lazily, from any layer
    assert own in RANK, f"{module.name} stands in no layer: name it in LAYERS"
    wrong = [
        f"{module.path}:{line} imports {name}"
        for line, name in inner(module)
        if layer(name) and RANK.get(layer(name), -1) < RANK[own]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module",
    [m for m in sources.modules() if m.name.startswith("atoll.resources.")],
    ids=lambda module: module.name,
)
def test_resources_do_not_know_each_other(module: sources.Module) -> None:
    own = module.name.split(".")[2]  # the resource: a module, or a package with all its members
    wrong = []
    for line, name in inner(module):
        if not name.startswith("atoll.resources."):
            continue
        parts = name.split(".")
        member_of_own = parts[2] == own
        if not member_of_own:  # the members of one package are one resource (docs/adr/0004)
            wrong.append(f"{module.path}:{line} imports {name}")
    assert wrong == []


def test_only_libc_knows_ctypes() -> None:
    users = {
        module.name
        for module in sources.modules()
        for _line, name in sources.imports(module, for_types=False)
        if name.split(".")[0] in ("ctypes", "_ctypes")
    }
    assert users <= {"atoll.linux.libc"}


def test_nothing_foreign_is_imported_at_the_top() -> None:
    """Third-party packages are lazy, in the one function that uses them."""
    wrong = []
    for module in sources.modules():
        lazy = {
            line
            for node in ast.walk(module.tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        for line, name in sources.imports(module, for_types=False):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "atoll" and line not in lazy:
                wrong.append(f"{module.path}:{line} imports {name}")
    assert wrong == []
