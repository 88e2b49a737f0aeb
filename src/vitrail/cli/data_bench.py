"""`vitrail data bench`: how fast a data set is read, by stage and number of threads."""

from __future__ import annotations

from typing import Annotated

import typer

from vitrail.errors import UsageError

from .console import Json, result, say, table
from .settings import gather


def bench(
    source: Annotated[str, typer.Argument(metavar="DATA", help="Anything that training reads.")],
    model: Annotated[str | None, typer.Option(help="Also time a few training steps of this model.")] = None,
    workers: Annotated[str, typer.Option(metavar="N,N,...", help="Numbers of reading threads to try.")] = "0,1,2",
    batch: Annotated[int, typer.Option(help="Images a batch.")] = 32,
    img_size: Annotated[str | None, typer.Option(help="224, or height x width: 224x192.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the model is timed: auto, cpu, cuda.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Measure reading alone: bytes from the disk, decoding and cropping, augmenting; and whether that feeds a model."""
    if device is not None and model is None:
        raise UsageError("--device has no effect without --model: reading is the CPU's work; mend: leave it out")
    from vitrail.training.databench import STAGES, bench_data, verdict
    from vitrail.training.recipe import Recipe

    options = {"data": source, "model": model, "img-size": img_size, "device": device}
    found = bench_data(
        Recipe.load({}, gather(options, [])),
        workers=_numbers(workers),
        batch=batch,
        seconds=seconds,
        with_model=model is not None,
    )
    say(
        f"{found.images:,} training images, batches of {found.batch}, crops of {found.size[0]} x {found.size[1]}; "
        "images/s:"
    )
    rows = []
    for count in dict.fromkeys(pace.workers for pace in found.paces):
        paces = {pace.stage: pace for pace in found.paces if pace.workers == count}
        cells = [f"{paces[stage].images_per_s:,.0f}" for stage in STAGES]
        rows.append([count, f"{paces['read'].mib_per_s:,.1f}", *cells])
    heads = ["workers", "MiB/s", "read bytes", "+ decode, crop", "+ augment"]
    table(heads, rows, right=heads)
    if model is not None:
        say(verdict(found))
    result(
        "data bench",
        as_json,
        images=found.images,
        batch=found.batch,
        img_size=list(found.size),
        paces=list(found.paces),
        model=found.model,
        device=found.device,
        model_images_per_s=found.model_images_per_s,
        workers_that_feed_it=found.fed() if model is not None else None,
    )


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise UsageError(f"expected --workers as numbers like 0,1,2, got {text!r}")
    return [int(word) for word in words]
