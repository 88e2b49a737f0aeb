"""Which file has the verbs of a model's task: predict.py, val.py and explain.py hand over what does not classify.

detect.py, segment.py and restore.py each have the functions of :class:`Verbs`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from vitrail.errors import UsageError

from .source import existing
from .translate import reads_text

FILES = {"boxes": "detect", "masks": "segment", "pictures": "restore"}
"""What a model answers (:func:`vitrail.models.answers`) -> the file here that has its verbs."""


class Verbs(Protocol):
    """The verbs of a task whose answers are drawn on images."""

    def predict(
        self,
        model: str,
        images: list[str],
        *,
        out: Path | None,
        threshold: float | None,
        tile: int | None,
        csv: Path | None,
        img_size: str | None,
        batch: int,
        device: str,
        as_json: bool,
    ) -> None:
        """Answer images; ``out`` is a folder for pictures and files, ``threshold`` a least score, ``tile`` pixels."""

    def val(self, model: str, data: str | None, split: str | None, *, batch: int, device: str, as_json: bool) -> None:
        """Measure on held-out data."""

    def explain(
        self,
        model: str,
        images: list[str],
        *,
        at: tuple[float, float] | None,
        data: str | None,
        out: Path | None,
        device: str,
        as_json: bool,
    ) -> None:
        """Draw what the answer at a pixel (x, y) of the user's image was read from; None: the surest one."""


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
