"""What a model of several labels an image gives back: every class that is present, with its score.  K classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .results import SCHEMA, Guess, draw_result, top_guesses


@dataclass(frozen=True)
class MultiLabelResult:
    """The classes of one image, any number of them.

    Attributes:
        name: path of the file, or "image 3" for the fourth of several arrays.
        labels: the K class names, in index order.
        scores: (K,) float32 probabilities, each class by itself; empty if the image could not be used.
        thresholds: (K,) float32, from which score on a class is present.
        error: what went wrong with this image, or None; ``reason`` is its stable code.
    """

    name: str
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    error: str | None = None
    reason: str | None = None
    _read: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether there is a prediction (which may be that no class is present)."""
        return self.error is None

    @property
    def present(self) -> list[Guess]:
        """The classes at or above their threshold, highest score first; empty after an error."""
        return [guess for guess in self.top(max(1, len(self.scores))) if guess.score >= self.thresholds[guess.index]]

    def top(self, k: int = 5) -> list[Guess]:
        """Return the ``k`` highest scores (all, if there are fewer), present or not; an empty list after an error."""
        return top_guesses(self.labels, self.scores, k)

    def to_json(self, *, top: int = 5) -> dict[str, Any]:
        """Return plain data for ``json.dumps``: schema, task, name, labels (present, with threshold), top, error."""
        return {
            "schema": SCHEMA,
            "task": "multilabel",
            "name": self.name,
            "labels": [{**asdict(g), "threshold": float(self.thresholds[g.index])} for g in self.present],
            "top": [asdict(guess) for guess in self.top(top)],
            "error": None if self.ok else {"reason": self.reason, "message": self.error},
        }

    def plot(self, path: str | Path | None = None, *, top: int = 5) -> Image.Image:
        """Draw the image with what is present (at most ``top`` classes) beside it; also save it if ``path`` is given.

        The image is read again from its source. Raises :class:`DataError` if it could not be used.
        """
        return draw_result(self, self.present[:top], path)

    def cells(self, top: int) -> list[str]:
        """Return label, score and the rest as a table for people shows them: here everything present."""
        found = self.present
        others = [g for g in self.top(len(found) + top) if g not in found][: max(0, top - 1)]
        return [
            ", ".join(g.label for g in found) or "none",
            ", ".join(f"{g.score:.1%}" for g in found),
            ", ".join(f"{g.label} {g.score:.1%}" for g in others),
        ]

    @staticmethod
    def csv_columns(top: int) -> list[str]:
        """Return the heads of :meth:`csv_cells`; there are as many classes as are present, whatever ``top`` is."""
        return ["labels", "scores"]

    def csv_cells(self, top: int) -> list[str]:
        """Return what is present and its scores, ``;`` between them; nothing after an error."""
        return [";".join(g.label for g in self.present), ";".join(f"{g.score:.6f}" for g in self.present)]
