"""The project's own files, for the contract tests: read once."""

from __future__ import annotations

import ast
import functools
import os
from typing import NamedTuple

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SRC = f"{REPOSITORY}/src"


class Module(NamedTuple):
    """One file of the package: dotted name, path, source and syntax tree."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> bool:
        return self.path.endswith("/__init__.py")


@functools.cache
def modules() -> tuple[Module, ...]:
    found = []
    for directory, _names, files in os.walk(f"{SRC}/atoll"):
        for file in sorted(files):
            if file.endswith(".py"):
                path = f"{directory}/{file}"
                with open(path, encoding="utf-8") as source:
                    text = source.read()
                dotted = path.removeprefix(f"{SRC}/").removesuffix(".py").replace("/", ".")
                name = dotted.removesuffix(".__init__")
                found.append(Module(name, path, text, ast.parse(text, path)))
    return tuple(found)


def imports(module: Module, *, for_types: bool) -> list[tuple[int, str]]:
    """(line, dotted name) of everything the module imports, lazily too; `for_types`: TYPE_CHECKING blocks too."""
    known = {m.name for m in modules()}
    found = []
    for node in _walk(module.tree, for_types=for_types):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.append((node.lineno, submodule if submodule in known else base))
    return found


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    keep = len(parts) - node.level + (1 if module.package else 0)
    return ".".join([*parts[:keep], *([node.module] if node.module else [])])


def _walk(node: ast.AST, *, for_types: bool) -> list[ast.AST]:
    found = [node]
    for child in ast.iter_child_nodes(node):
        if not for_types and isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                found += _walk(other, for_types=for_types)
        else:
            found += _walk(child, for_types=for_types)
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
