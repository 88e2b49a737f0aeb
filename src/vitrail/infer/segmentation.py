"""What a segmenter gives: a class for every pixel of the user's image, and pictures and files of it.

H·W pixels of the image as the user gave it, K classes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vitrail.errors import DataError
from vitrail.explain.colors import INK, MUTED, PAPER
from vitrail.explain.draw import as_picture, fit_text, font

from .results import SCHEMA

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentationResult:
    """The class of every pixel of one image.

    Attributes:
        name: path of the file, or "image 3" for the fourth of several arrays.
        classes: the K class names, in index order.
        values: what a mask of this data set holds for each class: the ids of the classes where these are numbers.
        labels: (H, W) uint8 class indices; empty if the image could not be used.
        scores: (H, W) float32, the probability of that class.
        error: what went wrong with this image, or None; ``reason`` is its stable code.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]
    labels: NDArray[np.uint8]
    scores: NDArray[np.float32]
    error: str | None = None
    reason: str | None = None
    _read: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.error is None

    def shares(self) -> dict[str, float]:
        """Return class name -> share of the pixels, of the classes that occur, the largest first."""
        if not self.ok:
            return {}
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.classes))
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda i: -int(counts[i]))
        return {self.classes[i]: float(counts[i]) / self.labels.size for i in order}

    def to_json(self) -> dict[str, Any]:
        """Return plain data: schema, task, name, size, shares and mean scores of the classes, error; no pixels."""
        height, width = self.labels.shape
        found = []
        for name, share in self.shares().items():
            own = self.labels == self.classes.index(name)
            found.append({"label": name, "share": share, "score": float(self.scores[own].mean())})
        return {
            "schema": SCHEMA,
            "task": "segment",
            "name": self.name,
            "size": [height, width],
            "classes": found,
            "error": None if self.ok else {"reason": self.reason, "message": self.error},
        }

    def save_mask(self, path: str | Path) -> Path:
        """Write the classes as a PNG of the image's size: values as in the masks it learned from, colours as palette.

        Raises :class:`DataError` for an image that could not be used.
        """
        self._require_answer()
        table = np.array(self.values, dtype=np.uint8)
        drawn = Image.fromarray(table[self.labels], mode="P")
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[table] = class_colors(len(self.classes))
        drawn.putpalette(palette.reshape(-1).tolist())
        drawn.save(path, format="PNG")
        return Path(path)

    def colored(self) -> Picture:
        """Return the classes as colours, (H, W, 3) uint8."""
        self._require_answer()
        return class_colors(len(self.classes))[self.labels]

    def overlay(self, strength: float = 0.55) -> Picture:
        """Return the colours laid over the image, (H, W, 3) uint8."""
        self._require_answer()
        if self._read is None:
            raise DataError(f"expected an image to draw, got {self.name!r}: its pixels are not kept")
        return blend(as_picture(self._read()), self.colored(), strength)

    def plot(self, path: str | Path | None = None, *, most: int = 640) -> Image.Image:
        """Draw the colours over the image beside a legend of the classes and their shares; also save it."""
        drawn = with_legend(self.overlay(), Path(self.name).name, self.shares(), self.classes, most=most)
        if path is not None:
            drawn.save(path)
        return drawn

    def _require_answer(self) -> None:
        if not self.ok:
            raise DataError(f"expected an image that could be used, got {self.name!r}: {self.error}")

    def cells(self, top: int) -> list[str]:
        """Return the largest class, its share, and the next ones, as a table for people shows them."""
        (best, share), *others = self.shares().items()
        return [best, f"{share:.1%}", ", ".join(f"{name} {part:.1%}" for name, part in others[: top - 1])]

    def csv_columns(self, top: int) -> list[str]:
        """Return a column a class: its share of the pixels."""
        return list(self.classes)

    def csv_cells(self, top: int) -> list[str]:
        """Return the share of every class; nothing after an error."""
        shares = self.shares()
        return [f"{shares.get(name, 0.0):.6f}" for name in self.classes] if self.ok else []


def class_colors(count: int) -> Picture:
    """Return a colour for each class, (K, 3) uint8: hues a golden angle apart, in three strengths."""
    strengths = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.8))
    found = [
        colorsys.hsv_to_rgb((0.58 + i * 0.618034) % 1.0, *strengths[i // 5 % len(strengths)]) for i in range(count)
    ]
    colours: Picture = np.rint(np.array(found).reshape(count, 3) * 255).astype(np.uint8)
    return colours


def blend(picture: Picture, colours: Picture, strength: float) -> Picture:
    """Lay colours over a photograph turned towards grey, both (H, W, 3)."""
    photo = picture.astype(np.float32)
    grey = photo.mean(2, keepdims=True)
    mixed = (1 - strength) * (0.4 * photo + 0.6 * grey) + strength * colours.astype(np.float32)
    rounded: Picture = np.rint(mixed.clip(0, 255)).astype(np.uint8)
    return rounded


def with_legend(
    picture: Picture, title: str, shares: dict[str, float], classes: Sequence[str], *, most: int
) -> Image.Image:
    """Return a picture with a legend at its right: a square of each class's colour, its name, its share."""
    factor = most / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    shown = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST)
    wide, line, margin = 230, 24, 16
    height = max(size[1], 30 + line * len(shares))
    canvas = Image.new("RGB", (size[0] + wide + 3 * margin, height + 2 * margin), PAPER)
    canvas.paste(shown, (margin, margin))
    pen, colours = ImageDraw.Draw(canvas), class_colors(len(classes))
    x, y = size[0] + 2 * margin, margin
    pen.text((x, y), fit_text(title, 14, wide), fill=MUTED, font=font(14))
    for name, share in shares.items():
        y += line
        red, green, blue = colours[list(classes).index(name)].tolist()
        pen.rectangle((x, y + 3, x + 14, y + 17), fill=(red, green, blue))
        pen.text((x + 22, y + 2), fit_text(name, 14, wide - 90), fill=INK, font=font(14))
        pen.text((x + wide, y + 2), f"{100 * share:.1f} %", fill=INK, font=font(14), anchor="ra")
    return canvas
