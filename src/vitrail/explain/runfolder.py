"""What a run folder holds, read for the report; ``training/run.py`` writes these files.

N images, K classes.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.classes import ClassMap
from vitrail.errors import DataError


@dataclass(frozen=True)
class Predictions:
    """What the best weights said about a split.

    Attributes:
        split: "test" or "val".
        names: how each image is called, N.
        labels: (N,) true class indices, or, with several labels an image, (N, K) bool.
        scores: (N, K) probabilities.
        indices: (N,) positions in the split's image set.
        thresholds: (K,) from which score on a class is present; only with several labels an image.
    """

    split: str
    names: list[str]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    scores: NDArray[np.float32]
    indices: NDArray[np.int64]
    thresholds: tuple[float, ...] | None = None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.labels.ndim == 2

    @property
    def answers(self) -> NDArray[np.int64] | NDArray[np.bool_]:
        """What was predicted, in the form of ``labels``."""
        if not self.multi_label:
            return self.guesses
        told = 0.5 if self.thresholds is None else self.thresholds
        found: NDArray[np.bool_] = self.scores >= np.asarray(told, dtype=np.float32)
        return found

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the answer is right; with several labels an image, whether all of it is."""
        same: NDArray[np.bool_] = np.asarray(self.answers == self.labels)
        return np.asarray(same.all(1)) if self.multi_label else same

    def kind_of(self, row: int) -> object:
        """Something equal for images of equal labels."""
        return self.labels[row].tobytes()

    @property
    def guesses(self) -> NDArray[np.int64]:
        """(N,) predicted class indices; equal scores go to the lower index."""
        guesses: NDArray[np.int64] = self.scores.argmax(1)
        return guesses

    def own_scores(self) -> NDArray[np.float32]:
        """(N,) the probability given to the true class; with several, the geometric mean over all true answers."""
        if self.multi_label:
            own = np.where(self.labels, self.scores, 1 - self.scores)
            mean: NDArray[np.float32] = np.exp(np.log(np.maximum(own, 1e-12)).mean(1))
            return mean
        scores: NDArray[np.float32] = self.scores[np.arange(len(self.labels)), self.labels]
        return scores


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run; what is missing in the folder is empty here."""

    folder: Path
    recipe: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    classes: ClassMap
    predictions: Predictions | None

    def curve(self, kind: str, key: str) -> list[tuple[float, float]]:
        """Return (epoch, value) of every line of a kind ("train", "val") that has the key."""
        return [
            (float(line["epoch"]), number_of(line[key]))
            for line in self.metrics
            if line.get("kind") == kind and line.get(key) is not None and line.get("epoch") is not None
        ]


def number_of(value: Any) -> float:
    """Return a logged number; "nan" and "inf", which JSON cannot hold as numbers, are logged as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def read_run(folder: Path) -> Run:
    """Read a run folder. :class:`DataError` if it is none, or a file in it is damaged."""
    if not (folder / "recipe.yaml").is_file():
        raise DataError(
            f"expected a run folder with recipe.yaml, got {folder}; mend: give the folder `vitrail train` named"
        )
    predictions = _read_predictions(folder)
    classes = _load(folder / "best" / "classes.json", json.loads)
    count = 0 if predictions is None else predictions.scores.shape[1]
    return Run(
        folder,
        _load(folder / "recipe.yaml", _yaml),
        _load(folder / "summary.json", json.loads),
        _load(folder / "environment.json", json.loads),
        _lines(folder / "metrics.jsonl"),
        ClassMap.from_json(classes) if classes else ClassMap.of([f"class {i}" for i in range(count)]),
        predictions,
    )


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def _load(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"expected {path} to be readable, got: {error}; mend: restore the file, or train again"
        ) from error
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a metrics file; a last line cut by a kill is left out."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _read_predictions(folder: Path) -> Predictions | None:
    for split in ("test", "val"):
        path = folder / f"predictions_{split}.npz"
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                names = [str(n) for n in found["names"]]
                told = _load(folder / f"details_{split}.json", json.loads).get("thresholds")
                thresholds = tuple(map(float, told)) if told else None
                return Predictions(split, names, found["labels"], found["scores"], found["indices"], thresholds)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"expected a readable {path}, got: {error}; mend: restore it, or train again") from error
    return None
