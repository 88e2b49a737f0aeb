"""`vitrail sample`: pictures painted by an image GPT, from nothing or from the upper part of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.errors import DataError, UsageError

from .console import Json, result, say
from .heldout import held_out
from .samples import in_turn
from .source import existing


def sample(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run on pixels, model folder or hf-hub:org/name.")],
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Complete these; none: paint from nothing.")
    ] = None,
    held: Annotated[
        int | None, typer.Option("--held-out", help="Complete so many held-out images of the run.", min=1)
    ] = None,
    count: Annotated[int | None, typer.Option(help="Pictures; of each image given. Default 16, or 4.", min=1)] = None,
    keep: Annotated[float | None, typer.Option(help="Share of the rows that is given; default 0.5.")] = None,
    temperature: Annotated[float, typer.Option(help="Below 1: plainer pictures.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only so many of the likeliest colours a pixel.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of chance.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The sheet, a PNG; default: in the run.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures painted at once.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Paint pictures pixel by pixel, or complete given ones, on one sheet."""
    if images and held:
        raise UsageError("expected images or --held-out, got both; mend: leave one out")
    if keep is not None and not images and not held:
        raise UsageError("--keep has no effect without images to complete; mend: name some, or --held-out 8")
    from vitrail.infer.pixels import load_painter

    path = _place(model, out, completed=bool(images or held))
    painter = load_painter(existing(model), device=device)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "seed": seed, "batch_size": batch}
    given = images or (_of_the_run(model, held) if held else [])
    if given:
        found = painter.complete(given, keep=0.5 if keep is None else keep, count=count or 4, **options)
    else:
        found = painter.sample(count or 16, **options)
    found.sheet().save(path)
    pixels = found.tokens.shape[1] - found.given
    what = f"completions of {len(given)} pictures" if given else "pictures"
    say(f"painted {len(found.images)} {what}, {pixels} pixels each, {float(found.bits.mean()):.2f} bits a pixel")
    say(f"wrote {path.resolve()}")
    result("sample", as_json, model=model, out=path.resolve(), bits=found.bits, given=found.given)


def _place(model: str, out: Path | None, *, completed: bool) -> Path:
    """Return the file to write; refuse it before anything is painted."""
    folder = Path(model) if Path(model).is_dir() else Path()
    path = folder / ("completions.png" if completed else "samples.png") if out is None else out
    if path.suffix.lower() != ".png":
        raise UsageError(f"expected a file that ends in .png for --out, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"expected a folder that exists for --out, got {str(path.parent)!r}; mend: make it first")
    return path


def _of_the_run(model: str, count: int) -> list[Any]:
    """Return held-out images of a run: the first of each class, then the second of each, and so on."""
    chosen = held_out(model)
    found: list[Any] = []
    for i in in_turn(chosen.images):
        if len(found) == count:
            break
        try:
            found.append(chosen.images.read(i))
        except DataError:
            continue
    if not found:
        raise DataError(f"expected images that can be read in {chosen.words}, got none")
    return found
