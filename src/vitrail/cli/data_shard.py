"""`vitrail data shard`: any data set as tar shards, made smaller if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Json, counter, result, say


def shard(
    source: Annotated[str, typer.Argument(metavar="DATA", help="Anything that training reads.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    size: Annotated[str, typer.Option(metavar="SIZE", help="Of a shard, at most: 500M, 1G.")] = "1G",
    resize: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Make images smaller whose short side is longer than this.")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Reading threads; one a core if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Write a data set as tar shards (webdataset's layout) with class names and an index.

    The same data give the same bytes. Training reads OUT like any other data set, at any image, without unpacking.
    """
    from vitrail.data.pack import pack, parse_bytes

    made = pack(
        source,
        out,
        shard_bytes=parse_bytes(size),
        short_side=resize,
        workers=workers,
        progress=counter("packed"),
    )
    for note in made.notes:
        say(note)
    images = ", ".join(f"{n:,} {split}" for split, n in made.images.items())
    smaller = f", {made.shrunk:,} of them made smaller" if resize is not None else ""
    say(f"{images} images{smaller} in {len(made.shards)} shards, {made.size / 2**20:,.1f} MiB: {out.resolve()}")
    for name, message in made.broken[:20]:
        say(f"left out: {name}: {message}")
    if len(made.broken) > 20:
        say(f"left out: {len(made.broken) - 20} more, which `vitrail data check` lists")
    say(f"\nTrain on it:  vitrail train {out}")
    result(
        "data shard",
        as_json,
        folder=str(out.resolve()),
        images=made.images,
        shards=made.shards,
        bytes=made.size,
        smaller=made.shrunk,
        left_out=[{"name": name, "message": message} for name, message in made.broken],
    )
