"""Which file has the verbs of a model's task: predict.py, val.py and explain.py hand over what does not classify.

detect.py, segment.py and restore.py each have the functions of :class:`Verbs`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from vitrail.errors import DataError, UsageError

from .console import partial_result, result
from .source import existing
from .translate import reads_text

FILES = {"boxes": "detect", "masks": "segment", "pictures": "restore"}
"""What a model answers (:func:`vitrail.models.answers`) -> the file here that has its verbs."""


@dataclass(frozen=True)
class PredictOptions:
    """What was asked of `predict`: ``out`` is a folder for pictures and files, ``threshold`` a least score, ``tile``
    pixels, ``csv`` a file, ``img_size`` as it was written, ``batch`` images at once.
    """

    out: Path | None
    threshold: float | None
    tile: int | None
    csv: Path | None
    img_size: str | None
    batch: int
    device: str
    as_json: bool


@dataclass(frozen=True)
class ValOptions:
    """What was asked of `val`: other ``data`` than the run's own, a ``split`` of it, ``batch`` images at once."""

    data: str | None
    split: str | None
    batch: int
    device: str
    as_json: bool


@dataclass(frozen=True)
class ExplainOptions:
    """What was asked of `explain`: the answer ``at`` a pixel (x, y) of the user's image (None: the surest one),
    ``data`` where no images are named, ``out`` a folder for pictures.
    """

    at: tuple[float, float] | None
    data: str | None
    out: Path | None
    device: str
    as_json: bool

    def folder(self, model: str) -> Path:
        """Return the folder for pictures, made: ``out``, or one in the run."""
        found = self.out or (Path(model) / "explain" if Path(model).is_dir() else Path("explain"))
        found.mkdir(parents=True, exist_ok=True)
        return found


class Verbs(Protocol):
    """The verbs of a task whose answers are drawn on images."""

    def predict(self, model: str, images: list[str], options: PredictOptions) -> None:
        """Answer images."""

    def val(self, model: str, options: ValOptions) -> None:
        """Measure on held-out data."""

    def explain(self, model: str, images: list[str], options: ExplainOptions) -> None:
        """Draw what an answer was read from."""


class Answer(Protocol):
    """What a model said of an image, or what was wrong with the image."""

    @property
    def name(self) -> str: ...
    @property
    def error(self) -> str | None: ...


def verbs_of(model: str) -> Verbs | None:
    """Return the verbs of a model that answers with boxes, masks or pictures; None for any other."""
    if reads_text(model):
        return None
    from vitrail.infer.network import config_at
    from vitrail.models import answers

    file = FILES.get(answers(config_at(existing(model))))
    return None if file is None else cast(Verbs, importlib.import_module(f"vitrail.cli.{file}"))


def refuse_options(model: str, why: str, **options: Any) -> None:
    """Raise :class:`UsageError` if an option was given that has no effect on ``model``; ``why``: what it does."""
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        option = given[0].replace("_", "-")
        raise UsageError(f"--{option} has no effect on {model}, which {why}; mend: leave it out")


def parse_point(text: str | None) -> tuple[float, float] | None:
    """Read a pixel written ``x,y``; :class:`UsageError` for anything else."""
    if text is None:
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"expected a pixel as x,y, got {text!r}; mend: for example --at 120,80") from None
    return x, y


def free_stem(name: str, taken: set[str]) -> str:
    """Return the stem of a file that no other answer has yet, and take it: images of two folders may share a name."""
    own = Path(name).stem
    found, number = own, 2
    while found in taken:
        found, number = f"{own}-{number}", number + 1
    taken.add(found)
    return found


def give_predictions(
    broken: Sequence[Answer], predictions: list[dict[str, Any]], as_json: bool, **fields: object
) -> None:
    """Give the result of `predict`; with ``broken`` images, which could not be used, say so and leave with an error."""
    if broken:
        words = f"{len(broken)} of {len(predictions)} images could not be used, the first: {broken[0].name}"
        error = DataError(f"{words}: {broken[0].error}")
        partial_result("predict", as_json, error, predictions=predictions, **fields)
    result("predict", as_json, predictions=predictions, **fields)
