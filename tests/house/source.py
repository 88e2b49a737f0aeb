"""Reads the package's own source for the house tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "vitrail"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(under: Path = PACKAGE) -> list[Path]:
    """Return every Python file below a folder, sorted."""
    return sorted(under.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """Return the parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def shown(path: Path) -> str:
    """Return a path as the repository names it."""
    return str(path.relative_to(REPOSITORY))


def functions(path: Path) -> Iterator[Function]:
    """Yield every function and method of a file, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def classes(path: Path) -> Iterator[ast.ClassDef]:
    """Yield every class of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            yield node


def length(node: Function) -> int:
    """Return how many lines a function takes, docstring and nested functions included."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1
