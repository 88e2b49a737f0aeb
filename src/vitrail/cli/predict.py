"""`vitrail predict`: classify, detect, segment or restore images, or translate lines, as the model has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.errors import DataError, UsageError

from .answers import PredictOptions, refuse_options, verbs_of
from .console import Json, partial_result, result, say, table
from .source import open_predictor
from .translate import reads_text, refuse, translate


def predict(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hf-hub:org/name.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE | TEXT]...",
            help="Images: files, folders, patterns like 'x/*.png'. Text: files of lines; none: standard input.",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(help="How many classes to show for each image: 3.", min=1)] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the answers as CSV.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of boxes, masks, restored images: where files and pictures go.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Of boxes: the least score shown.", min=0, max=1)] = None,
    tile: Annotated[
        int | None, typer.Option(help="Of restoration: pixels of a tile; default: what fits.", min=8)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch: Annotated[int, typer.Option(help="Images or lines through the model at once.", min=1)] = 32,
    img_size: Annotated[str | None, typer.Option(help="224 or 224x192; default: the model's own.")] = None,
    beam: Annotated[int | None, typer.Option(help="Of a translation: hypotheses kept; 1: greedy.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Classify, detect, segment or restore images, or translate lines, with a trained model."""
    if reads_text(model):
        refuse(model, csv=csv, top=top, out=out, threshold=threshold, tile=tile, **{"img-size": img_size})
        translate(model, images or [], beam=beam, device=device, batch=batch, as_json=as_json)
        return
    verbs = verbs_of(model)
    if not images:
        raise UsageError("expected images, got none; mend: vitrail predict RUN IMAGE...")
    refuse_options(model, "does not translate", beam=beam)
    _require_images(images)
    if csv is not None:
        _require_folder_of(csv)
    if verbs is not None:
        refuse_options(model, "gives no list of classes", top=top)
        options = PredictOptions(out, threshold, tile, csv, img_size, batch, device, as_json)
        return verbs.predict(model, images, options)
    refuse_options(model, "classifies", out=out, threshold=threshold, tile=tile)
    _classify(model, images, top=top or 3, csv=csv, device=device, batch=batch, img_size=img_size, as_json=as_json)


def _classify(
    model: str,
    images: list[str],
    *,
    top: int,
    csv: Path | None,
    device: str,
    batch: int,
    img_size: str | None,
    as_json: bool,
) -> None:
    from vitrail.infer import results_to_csv, table_rows

    predictor = open_predictor(model, device=device, batch=batch, img_size=img_size)
    answers = list(predictor.stream(images))
    if csv is not None:
        say(f"wrote {results_to_csv(answers, csv, top=top).resolve()}")
    else:
        heads, rows = table_rows(answers, top=top)
        table(heads, rows, right=("score",))
    broken = [answer for answer in answers if not answer.ok]
    predictions = [answer.to_json(top=top) for answer in answers]
    if broken:
        error = DataError(
            f"{len(broken)} of {len(answers)} images could not be used, the first: {broken[0].name}: {broken[0].error}"
        )
        partial_result("predict", as_json, error, predictions=predictions)
    result("predict", as_json, predictions=predictions)


def _require_images(images: list[str]) -> None:
    """Refuse a path that is not there before a model is loaded; patterns are the reader's business."""
    for path in images:
        if not Path(path).exists() and not any(c in path for c in "*?["):
            raise DataError(
                f"expected an image, a folder or a pattern, got {path!r}, which does not exist; mend: check the path"
            )


def _require_folder_of(csv: Path) -> None:
    if not csv.absolute().parent.is_dir():
        raise UsageError(f"expected a folder that exists for --csv, got {str(csv.parent)!r}; mend: make it first")
