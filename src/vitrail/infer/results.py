"""What predictions come back as: typed, with names, scores, a picture, JSON of a stable schema, CSV and table rows.

K classes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vitrail.errors import DataError, UsageError

SCHEMA = 1


@dataclass(frozen=True)
class Guess:
    """One class of a prediction: its name, index and probability."""

    label: str
    index: int
    score: float


class Result(Protocol):
    """What every kind of prediction has, for tables and files."""

    @property
    def name(self) -> str: ...

    @property
    def error(self) -> str | None: ...

    @property
    def ok(self) -> bool: ...

    @property
    def _read(self) -> Callable[[], Tensor] | None: ...

    def cells(self, top: int) -> list[str]:
        """Return label, score and what comes next."""

    def csv_columns(self, top: int) -> list[str]:
        """Return the heads of :meth:`csv_cells`."""

    def csv_cells(self, top: int) -> list[str]:
        """Return the cells of one row; nothing after an error."""


@dataclass(frozen=True)
class ClassificationResult:
    """The classes of one image.

    Attributes:
        name: path of the file, or "image 3" for the fourth of several arrays.
        labels: the K class names, in index order.
        scores: (K,) float32 softmax probabilities in the same order; empty if the image could not be used.
        error: what went wrong with this image, or None; ``reason`` is its stable code.
    """

    name: str
    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    error: str | None = None
    reason: str | None = None
    _read: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.error is None

    @property
    def index(self) -> int | None:
        """Index of the best class; None after an error. Equal scores go to the lower index."""
        return int(self.scores.argmax()) if self.ok else None

    @property
    def label(self) -> str | None:
        """Name of the best class; None after an error."""
        return None if self.index is None else self.labels[self.index]

    @property
    def score(self) -> float | None:
        """Probability of the best class, in 0..1; None after an error."""
        return None if self.index is None else float(self.scores[self.index])

    def top(self, k: int = 5) -> list[Guess]:
        """Return the ``k`` best classes (all, if there are fewer), best first; an empty list after an error."""
        return top_guesses(self.labels, self.scores, k)

    def to_json(self, *, top: int = 5) -> dict[str, Any]:
        """Return plain data for ``json.dumps``: schema, task, name, label, index, score, top, error."""
        return {
            "schema": SCHEMA,
            "task": "classify",
            "name": self.name,
            "label": self.label,
            "index": self.index,
            "score": self.score,
            "top": [asdict(guess) for guess in self.top(top)],
            "error": None if self.ok else {"reason": self.reason, "message": self.error},
        }

    def plot(self, path: str | Path | None = None, *, top: int = 5) -> Image.Image:
        """Draw the image with its best classes beside it; also save it if ``path`` is given.

        The image is read again from its source. Raises :class:`DataError` if it could not be used.
        """
        return draw_result(self, self.top(top), path)

    def cells(self, top: int) -> list[str]:
        """Return label, score and the next classes as a table for people shows them."""
        best, *others = self.top(top)
        return [best.label, f"{best.score:.1%}", ", ".join(f"{g.label} {g.score:.1%}" for g in others)]

    @staticmethod
    def csv_columns(top: int) -> list[str]:
        """Return the heads of :meth:`csv_cells`."""
        return [f"{c}{'' if i == 0 else f'_{i + 1}'}" for i in range(top) for c in ("label", "index", "score")]

    def csv_cells(self, top: int) -> list[str]:
        """Return label, index and score of each of the ``top`` classes; nothing after an error."""
        return [cell for g in self.top(top) for cell in (g.label, str(g.index), f"{g.score:.6f}")]


def top_guesses(labels: Sequence[str], scores: NDArray[np.float32], k: int) -> list[Guess]:
    """Return the ``k`` highest scores (all, if there are fewer); equal ones by index."""
    if k < 1:
        raise UsageError(f"expected top k of at least 1, got {k}")
    order = np.argsort(-scores, kind="stable")[:k]
    return [Guess(labels[i], int(i), float(scores[i])) for i in order]


def draw_result(result: Result, guesses: Sequence[Guess], path: str | Path | None) -> Image.Image:
    """Draw the image of a result with classes beside it; also save it if ``path`` is given."""
    if not result.ok or result._read is None:
        raise DataError(f"expected an image to draw, got {result.name!r}: {result.error or 'its pixels are not kept'}")
    drawn = _draw_guesses(result._read(), guesses, Path(result.name).name)
    if path is not None:
        drawn.save(path)
    return drawn


def _draw_guesses(image: Tensor, guesses: Sequence[Guess], title: str) -> Image.Image:
    from vitrail.explain.colors import BLUE, FAINT, INK, MUTED, PAPER, SKY
    from vitrail.explain.draw import as_picture, fit_text, font, resized

    picture = resized(as_picture(image), most=420)
    wide, line, margin = 300, 44, 20
    height = max(picture.shape[0], 40 + line * max(1, len(guesses)))
    canvas = Image.new("RGB", (picture.shape[1] + wide + 3 * margin, height + 2 * margin), PAPER)
    canvas.paste(Image.fromarray(picture), (margin, margin))
    pen = ImageDraw.Draw(canvas)
    x, y = picture.shape[1] + 2 * margin, margin
    pen.text((x, y), fit_text(title, 14, wide), fill=MUTED, font=font(14))
    y += 34
    if not guesses:
        pen.text((x, y), "no class", fill=MUTED, font=font(16))
    for i, guess in enumerate(guesses):
        pen.text((x, y), fit_text(guess.label, 16, wide - 70), fill=INK, font=font(16))
        pen.text((x + wide, y), f"{100 * guess.score:.1f} %", fill=INK, font=font(16), anchor="ra")
        pen.rectangle((x, y + 23, x + wide, y + 29), fill=FAINT)
        pen.rectangle((x, y + 23, x + max(1, round(wide * guess.score)), y + 29), fill=SKY if i else BLUE)
        y += line
    return canvas


def table_rows(results: Iterable[Result], *, top: int = 3) -> tuple[list[str], list[list[str]]]:
    """Return column heads and one row of text an image: name, best class, score, the next classes, or the error.

    With several labels an image: name, all that are present, their scores, the next classes.
    """
    heads = ["image", "label", "score", *(["then"] if top > 1 else [])]
    rows = []
    for result in results:
        if not result.ok:
            rows.append([result.name, "error", "", *([str(result.error)] if top > 1 else [])])
            continue
        rows.append([result.name, *result.cells(top)[: 3 if top > 1 else 2]])
    return heads, rows


def results_to_csv(results: Iterable[Result], path: str | Path, *, top: int = 1) -> Path:
    """Write one row an image as it comes: name, label, index, score (``_2``... for the next ``top`` ones), error.

    With several labels an image there are name, labels, scores (both with ``;`` between them), error, and ``top`` says
    nothing: all that is present is written. An empty cell is an image of no class, so training can read the file.
    Names that are not valid UTF-8 are written byte for byte as the disk has them. Returns the path.
    """
    if top < 1:
        raise UsageError(f"expected top of at least 1, got {top}")
    results = iter(results)
    first = next(results, None)
    columns = ClassificationResult.csv_columns(top) if first is None else first.csv_columns(top)
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *columns, "error"])
        for result in chain(() if first is None else (first,), results):
            cells = result.csv_cells(top)
            cells += [""] * (len(columns) - len(cells))
            writer.writerow([result.name, *cells, result.error or ""])
    return path
