"""`vitrail bench`: how fast a model answers, in each engine there is for it."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, result, say, table
from .settings import size_option


def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN | NAME", help="Run, folder, hub id, .onnx file, or a name of `vitrail models`."),
    ],
    engines: Annotated[
        str, typer.Option(help="Of float32, bfloat16, compiled, onnx; the first is what the others are compared with.")
    ] = "float32,bfloat16",
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 1,
    img_size: Annotated[str | None, typer.Option(help="224 or 224x192; default: the model's own.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each engine is measured.", min=3)] = 11,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure how fast a model answers: its engines take turns in one process."""
    from vitrail.infer.bench import bench as run

    names = [name.strip() for name in engines.split(",") if name.strip()]
    found = run(model, engines=names, batch=batch, img_size=size_option(img_size), device=device, rounds=rounds)
    rows = [
        (
            speed.engine,
            f"{1000 * speed.seconds:.1f}",
            f"{speed.images_per_s:,.1f}",
            f"{speed.ratio:.2f} ({speed.low:.2f} to {speed.high:.2f})",
        )
        for speed in found
    ]
    heads = ("engine", "ms a batch", "images/s", "times as fast")
    table(heads, rows, right=heads[1:])
    say("\nthe network alone, on images that are ready; the last column is what holds on other days too")
    result("bench", as_json, model=model, batch=batch, rounds=rounds, engines=[speed.to_json() for speed in found])
