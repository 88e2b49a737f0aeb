"""Imports go one way: nn <- models <- tasks <- training, infer <- cli; data, weights, metrics, explain at the side."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .source import PACKAGE, files, shown, tree

BASE = {"errors", "classes", "fields", "specials"}
MAY_IMPORT: dict[str, set[str]] = {
    "nn": set(),
    "models": {"nn"},
    "metrics": set(),
    "data": set(),
    "weights": {"models", "nn"},
    "explain": {"nn", "models", "metrics", "weights", "data"},
    "tasks": {"nn", "data", "metrics"},
    "infer": {"nn", "models", "tasks", "weights", "data", "metrics", "explain"},
    "training": {"nn", "models", "tasks", "data", "weights", "metrics", "explain", "infer"},
}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
HEAVY = {"torch", "numpy", "rich", "PIL", "pydantic", "yaml", "scipy", "safetensors"}  # never at the top of a CLI file
LAZY = {  # extras and slow packages: only inside the function that needs them
    "huggingface_hub", "pyarrow", "sklearn", "matplotlib", "tensorboard", "tokenizers", "sacrebleu", "num2words",
    "timm", "transformers", "torchvision", "cv2", "faster_coco_eval",
}  # fmt: skip
MODULES = [path for path in files() if path.parent != PACKAGE]


def imported(node: ast.AST, path: Path) -> list[str]:
    """Return the absolute names of the modules (and the names taken from them) that one statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if not node.level:
        start = node.module or ""
    else:
        package = ("vitrail", *path.relative_to(PACKAGE).parts[:-1])
        start = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
    return [f"{start}.{alias.name}" for alias in node.names]


def at_module_level(path: Path) -> list[ast.stmt]:
    """Return the statements that run when the file is imported (not those under TYPE_CHECKING)."""
    found, todo = [], list(tree(path).body)
    while todo:
        node = todo.pop()
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            todo += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            todo += node.body
    return found


def test_relative_imports_are_understood():
    path = PACKAGE / "models" / "vit.py"
    statement = ast.parse("from ..nn.attention import Attention").body[0]
    assert imported(statement, path) == ["vitrail.nn.attention.Attention"]
    assert imported(ast.parse("from . import deit").body[0], path) == ["vitrail.models.deit"]


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_imports_go_one_way(path):
    area = path.relative_to(PACKAGE).parts[0]
    allowed = MAY_IMPORT[area] | BASE | {area, "__version__"}
    for node in ast.walk(tree(path)):
        for name in imported(node, path):
            parts = name.split(".")
            if parts[0] == "vitrail" and len(parts) > 1:
                assert parts[1] in allowed, f"{shown(path)}:{node.lineno}: {area} must not import {name}"


@pytest.mark.parametrize("name", sorted(BASE))
def test_base_modules_stand_alone(name):
    for node in ast.walk(tree(PACKAGE / f"{name}.py")):
        for target in imported(node, PACKAGE / f"{name}.py"):
            if target.startswith("vitrail"):
                assert target.split(".")[1] in BASE, f"vitrail.{name} must not import {target}"


@pytest.mark.parametrize("path", files(), ids=shown)
def test_slow_packages_load_only_when_used(path):
    refused = LAZY | (HEAVY if "cli" in path.relative_to(PACKAGE).parts else set())
    for node in at_module_level(path):
        for name in imported(node, path):
            assert name.split(".")[0] not in refused, f"{shown(path)}:{node.lineno}: import {name} inside a function"


def test_every_area_is_in_the_table():
    areas = {path.relative_to(PACKAGE).parts[0] for path in MODULES}
    assert areas <= set(MAY_IMPORT), f"say in this test what {areas - set(MAY_IMPORT)} may import"
