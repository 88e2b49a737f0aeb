"""Finished runs, read from their folders as the points of a scaling law; runs that cannot be compared are refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.errors import DataError
from vitrail.explain.runfolder import Run, read_run
from vitrail.metrics.cost import cost
from vitrail.metrics.laws import Point
from vitrail.metrics.scale import train_flops
from vitrail.models import build
from vitrail.weights import open_folder

from .baserecipe import flatten

DEEPEST = 3  # folders below the one given in which runs are looked for: family/classify/run


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run folders among and below ``paths``, each once. :class:`DataError` where there is none."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        below = list(_runs_in(path, DEEPEST))
        if not below:
            raise DataError(
                f"expected a run folder or a folder of runs, got {path}, which holds none; "
                "mend: train a family first: vitrail scaling DATA --shares 0.1,0.2,0.5,1"
            )
        found |= dict.fromkeys(run.resolve() for run in below)
    return list(found)


def _runs_in(path: Path, depth: int) -> Iterator[Path]:
    if (path / "recipe.yaml").is_file():
        yield path
    elif depth and path.is_dir():
        for inner in sorted(path.iterdir()):
            if inner.is_dir():
                yield from _runs_in(inner, depth - 1)


def read_points(folders: Sequence[Path]) -> tuple[list[Point], list[str]]:
    """Return the finished runs, and a sentence for each folder that was left out.

    Raises :class:`DataError`: a damaged run, or runs that were not measured on the same images.
    """
    points: list[Point] = []
    notes: list[str] = []
    first: Run | None = None
    seen: dict[str, Path] = {}
    costs: dict[Any, int] = {}
    for folder in folders:
        run = read_run(folder)
        if not run.summary or run.predictions is None:
            notes.append(f"left out: {folder} is not finished; mend: vitrail resume {folder}")
            continue
        first = first or run
        _require_same_test(first, run)
        settings = flatten(run.recipe)
        twin = repr(sorted((k, repr(v)) for k, v in settings.items() if k not in ("name", "out", "data.source")))
        if twin in seen:
            notes.append(f"left out: {folder} is the same run as {seen[twin]}: same settings, same seed")
            continue
        seen[twin] = folder
        points.append(_point(run, settings, costs))
    return points, notes


def _point(run: Run, settings: dict[str, Any], costs: dict[Any, int]) -> Point:
    predictions, summary = run.predictions, run.summary
    assert predictions is not None, "the caller has looked"
    config = open_folder(run.folder / "best").config
    if config not in costs:
        costs[config] = cost(lambda: build(config), config.img_size, config.in_chans, training=False).macs
    labels = predictions.labels
    try:
        return Point(
            run=str(run.folder),
            model=str(summary["model"]),
            kind=type(config).__name__.removesuffix("Config"),
            params=int(summary["params"]),
            images=int(summary["images"]["train"]),
            epochs=int(summary["epochs"]),
            flops=train_flops(costs[config], int(summary["steps"]) * int(settings["train.batch_size"])),
            seed=int(settings["train.seed"]),
            wrong=int((predictions.guesses != labels).sum()),
            count=len(labels),
            chance=1 - float(np.bincount(labels).max()) / len(labels),
            settings=settings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"expected {run.folder} as vitrail train writes it, got no {error}; mend: train it again"
        ) from None


def _require_same_test(one: Run, other: Run) -> None:
    """Refuse runs that were not measured on the same images with the same classes, and name the difference."""
    a, b = one.predictions, other.predictions
    assert a is not None, "only measured runs come here"
    assert b is not None, "only measured runs come here"
    what = ""
    if one.classes.names != other.classes.names:
        what = f"classes {_few(one.classes.names)} against {_few(other.classes.names)}"
    elif a.split != b.split:
        what = f"measured on {a.split} against {b.split}"
    elif len(a.names) != len(b.names):
        what = f"{len(a.names):,} {a.split} images against {len(b.names):,}"
    else:
        here, there = ({(n, int(k)) for n, k in zip(p.names, p.labels, strict=True)} for p in (a, b))
        if here != there:
            name, label = min(there - here)
            shown = f"such as {name} as {one.classes.names[label]}"
            what = f"other {a.split} images: {len(there - here):,} of {len(there):,}, {shown}"
    if what:
        raise DataError(
            f"expected runs measured on the same images, got {one.folder} and {other.folder}: {what}; "
            "mend: compare runs of one data set with the same held-out split"
        )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)})" if len(names) > 1 else names[0]
