"""`vitrail train`: a folder of images, a built-in set or a recipe in; a trained model and its report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.errors import UsageError

from .console import Json
from .finish import finish
from .settings import gather, split_pairs


def train(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA | RECIPE.yaml [KEY=VALUE]...",
            help="A folder, a table, parquet, tar shards, a built-in name (digits), or a recipe; then any settings.",
        ),
    ],
    data: Annotated[str | None, typer.Option(help="The data, where the argument is a recipe.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="classify, multilabel, detect, segment, restore, pixels, translate; default: seen."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A name of `vitrail models`.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times through the training images.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images an update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    img_size: Annotated[str | None, typer.Option(help="224, or height x width: 224x192.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder that holds all runs; default: runs.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of a recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on your images."""
    options = {
        "data": data,
        "task": task,
        "model": model,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "img-size": img_size,
        "device": device,
        "seed": seed,
        "name": name,
        "out": out,
    }
    recipe, changes = asked_for(words, options, settings or [])

    from vitrail.training.recipe import Recipe
    from vitrail.training.run import train as run

    finish("train", as_json, run(Recipe.load(recipe or {}, changes)))


def asked_for(
    words: list[str], options: dict[str, Any], settings: list[str], verb: str = "train"
) -> tuple[Path | None, dict[str, Any]]:
    """Return the recipe file, if one is named, and the settings laid over it, from the words and options of a verb."""
    paths, pairs = split_pairs(words)
    if len(paths) > 1:
        raise UsageError(f"expected one data set or recipe, got {len(paths)}: {', '.join(paths)}")
    recipe: Path | None = None
    if paths and Path(paths[0]).suffix.lower() in (".yaml", ".yml"):
        recipe = Path(paths[0])
    elif paths and options["data"] is not None:
        raise UsageError(f"the data is given twice: {paths[0]} and --data {options['data']}; mend: keep one")
    elif paths:
        options = {**options, "data": paths[0]}
    changes = gather(options, [*pairs, *settings])
    if recipe is None and "data.source" not in changes:
        raise UsageError(f"expected data to train on, got none; mend: vitrail {verb} FOLDER, or vitrail {verb} digits")
    return recipe, changes
