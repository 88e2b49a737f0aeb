"""The size budgets of the design, section 8."""

from __future__ import annotations

import ast
import statistics

import pytest

from .source import PACKAGE, classes, files, functions, length, shown, tree

FILES = files()


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_file_fits(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{shown(path)} has {lines} lines, more than 400: split it"


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_each_function_fits(path):
    long = [f"{node.name} ({length(node)} lines)" for node in functions(path) if length(node) > 80]
    assert not long, f"{shown(path)}: functions over 80 lines: {', '.join(long)}"


def test_functions_are_short_on_the_whole():
    lengths = [length(node) for path in FILES for node in functions(path)]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=20)[-1] <= 45, "the longest twentieth of all functions is over 45 lines"


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=shown)
def test_file_opens_with_a_docstring(path):
    assert ast.get_docstring(tree(path)), f"{shown(path)} does not say what it holds"


def test_configs_stay_small():
    for path in files(PACKAGE / "models"):
        for node in classes(path):
            if node.name.endswith("Config"):
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                assert len(fields) <= 16, f"{shown(path)}: {node.name} has {len(fields)} fields, more than 16"


def test_block_constructors_stay_small():
    for path in files(PACKAGE / "nn"):
        for node in classes(path):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    arguments = method.args
                    count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1
                    assert count <= 8, f"{shown(path)}: {node.name} takes {count} parameters, more than 8"


def test_models_swallow_no_keywords():
    """Two module-level helpers take free keywords; both refuse unknown ones. No class does."""
    for path in [*files(PACKAGE / "models"), *files(PACKAGE / "nn")]:
        taking = {node.name for node in functions(path) if node.args.kwarg}
        assert taking <= {"create_model", "sized"}, f"{shown(path)}: **kwargs in {taking}"
    from vitrail.errors import UsageError
    from vitrail.models import create_model
    from vitrail.models.vit import sized

    with pytest.raises(UsageError, match="drop_path_rate"):
        create_model("test_vit", drop_path=0.1)
    with pytest.raises(TypeError, match="drop_path"):
        sized("tiny", 16, 224, drop_path=0.1)


def test_attention_is_written_once():
    """No `class Attention` and no call of the fused kernel outside nn/attention.py."""
    for path in FILES:
        if path == PACKAGE / "nn" / "attention.py":
            continue
        assert "Attention" not in {node.name for node in classes(path)}, f"{shown(path)} defines its own Attention"
        called = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        assert "scaled_dot_product_attention" not in called, f"{shown(path)} calls the fused kernel itself"
