"""`vitrail export`: a trained model as one file for other runtimes, compared with the model it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from vitrail.errors import require_known

from .console import Json, result, say, table
from .settings import size_option
from .source import existing


def export(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hf-hub:org/name.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file; default: in exported/ of RUN.")] = None,
    format: Annotated[str, typer.Option(help="onnx, or torch (a program of torch.export).")] = "onnx",
    img_size: Annotated[str | None, typer.Option(help="224 or 224x192: the size it takes; default: its own.")] = None,
    as_json: Json = False,
) -> None:
    """Write a model as one file for other runtimes, and compare it with the model."""
    require_known([format], ("onnx", "torch"), "format")
    from vitrail.infer.export import TOLERANCE
    from vitrail.infer.export import export as run

    receipt = run(existing(model), out, format=cast(Literal["onnx", "torch"], format), img_size=size_option(img_size))
    height, width = receipt.img_size
    say(f"{receipt.path}  ({receipt.bytes / 1e6:.1f} MB; images of {height} x {width}, any batch)\n")
    rows = [(c.batch, c.output, f"{c.difference:.1e}", f"{c.scale:.3g}", f"{c.relative:.1e}") for c in receipt.checks]
    heads = ("batch", "output", "largest difference", "largest number", "ratio")
    table(heads, rows, right=("batch", "largest difference", "largest number", "ratio"))
    say(f"\nthe same numbers as the model, up to rounding (at most {TOLERANCE:g} of the scale)")
    result("export", as_json, **receipt.to_json())
