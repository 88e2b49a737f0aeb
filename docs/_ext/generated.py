"""Directives that write tables from the code itself, so that the pages cannot drift from it.

``{recipe-reference}``: every setting of a training recipe, from its model; an argument names another task.
``{command-reference}``: every verb and option of the command line.
``{model-table}``: every model with its parameters and multiply-adds; ``{model-table} vit deit``: those of two families.
``{exit-codes}``: the errors and their codes.
"""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """Parses the MyST lines that :meth:`lines` returns in place."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        return self.parse_content_to_nodes(self.lines())

    def parse_content_to_nodes(self, lines: list[str]) -> list[nodes.Node]:
        holder = nodes.section()
        holder.document = self.state.document
        self.state.nested_parse(StringList(lines, source="generated"), 0, holder)
        return holder.children


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").strip()


def type_name(annotation: Any) -> str:
    """Return a type as a user would write it: ``int``, ``"a" | "b"``, ``list of float``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin in (list, tuple):
        return f"{origin.__name__} of {', '.join(dict.fromkeys(type_name(a) for a in arguments if a is not ...))}"
    if origin is dict:
        return "mapping"
    if annotation is type(None):
        return "nothing"
    return getattr(annotation, "__name__", str(annotation))


def settings(model: Any, prefix: str = "") -> typing.Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every field, nested ones with their dotted key."""
    from pydantic import BaseModel
    from pydantic_core import PydanticUndefined

    for name, field in model.model_fields.items():
        nested = [a for a in (field.annotation, *typing.get_args(field.annotation)) if inspect.isclass(a)]
        nested = [a for a in nested if issubclass(a, BaseModel)]
        if nested:
            yield from settings(nested[0], f"{prefix}{name}.")
            continue
        default = field.default_factory() if field.default_factory else field.default
        shown = "needed" if default is PydanticUndefined else f"`{default!r}`"
        yield f"{prefix}{name}", type_name(field.annotation), shown, field.description or ""


class RecipeReference(Generated):
    """Every setting of a recipe; of images with labels, or of the task named."""

    optional_arguments = 1

    def lines(self) -> list[str]:
        from vitrail.training.baserecipe import kind_of

        chosen = kind_of({"task": self.arguments[0] if self.arguments else "classify"})
        rows = [
            f"| `{key}` | {cell(kind)} | {cell(default)} | {cell(text)} |"
            for key, kind, default, text in settings(chosen)
        ]
        return ["| setting | value | default | meaning |", "| --- | --- | --- | --- |", *rows]


class ModelTable(Generated):
    """Models with what they cost: all, or those of the families named."""

    optional_arguments = 1
    final_argument_whitespace = True

    def lines(self) -> list[str]:
        import torch

        from vitrail.cli.models import describe, table_of
        from vitrail.models import config_of, list_models

        torch.set_num_threads(1)
        families = self.arguments[0].split() if self.arguments else []
        names = [n for n in list_models() if not families or type(config_of(n)).__module__.split(".")[-1] in families]
        columns, rows = table_of([describe(name) for name in names])
        if not families:  # shapes of different families have little in common
            columns, rows = columns[:4], [row[:4] for row in rows]
        head = [f"| {' | '.join(columns)} |", "| --- " + "| ---: " * (len(columns) - 1) + "|"]
        return head + [f"| `{name}` | {' | '.join(cells)} |" for name, *cells in rows]


class ExitCodes(Generated):
    """The error classes, their codes and what they mean."""

    def lines(self) -> list[str]:
        from vitrail import errors

        kinds = [errors.VitrailError, errors.UsageError, errors.DataError, errors.WeightsError, errors.ExportError]
        rows = ["| code | raised in Python as | meaning |", "| ---: | --- | --- |", "| 0 | | fine |"]
        for kind in kinds:
            meaning = (kind.__doc__ or "").split(" (exit code")[0].splitlines()[0]
            rows.append(f"| {kind.exit_code} | `vitrail.errors.{kind.__name__}` | {cell(meaning)} |")
        return [
            *rows,
            "| 130 | `KeyboardInterrupt` | you pressed Ctrl-C |",
            "| 143 | | the process was told to terminate |",
        ]


class CommandReference(Generated):
    """Every verb with its arguments and options, as `--help` has them."""

    def lines(self) -> list[str]:
        import typer
        from typer.main import get_command

        from vitrail.cli.main import app

        lines: list[str] = []

        def walk(command: Any, name: str) -> None:
            inner = getattr(command, "commands", {})
            if not inner:
                lines.extend([f"## vitrail {name}", "", inspect.cleandoc(command.help or ""), ""])
                lines.extend(["| | | |", "| --- | --- | --- |"])
                for item in command.get_params(typer.Context(command)):
                    words = ", ".join(f"`{word}`" for word in item.opts) if item.opts[0][:1] == "-" else "argument"
                    shown = f"`{item.metavar}`" if item.metavar else ""
                    lines.append(f"| {words} | {cell(shown)} | {cell(getattr(item, 'help', '') or '')} |")
                lines.append("")
            for word, found in inner.items():
                walk(found, f"{name} {word}".strip())

        walk(get_command(app), "")
        return lines


def as_written(app: Sphinx, what: str, name: str, subject: object, options: object, lines: list[str]) -> None:
    """Show what a file says of itself line by line, as it stands in the file; a bar is a bar, not a substitution."""
    lines[:] = [line.replace("|", "\\|") if "``" not in line else line for line in lines]
    if what == "module":
        lines[:] = [f"| {line}" if line.strip() else "" for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("recipe-reference", RecipeReference)
    app.add_directive("command-reference", CommandReference)
    app.add_directive("model-table", ModelTable)
    app.add_directive("exit-codes", ExitCodes)
    app.connect("autodoc-process-docstring", as_written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
