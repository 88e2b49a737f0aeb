"""One explained prediction: where in the user's image the answer was read from, and its pictures.

h, w patch rows and columns; H, W pixels of the image the user gave; boxes are (x0, y0, x1, y1) in those pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.explain.draw import Bar, Box, Tile, as_picture, overlay, place, resized, scaled, sheet
from vitrail.explain.maps import ONE_CELL, Method, scale01

NAMES = {
    "rollout": "attention rollout",
    "class_token": "last-layer attention",
    "gradient": "gradient-weighted attention",
    "grad_cam": "Grad-CAM",
}


def measure_of(method: str) -> str:
    """Return what the colours of a method's map say."""
    return "importance" if method == "grad_cam" else "attention"


@dataclass(frozen=True)
class Explanation:
    """A map over one image, scaled so that its smallest value is 0 and its largest 1.

    Attributes:
        name: of the image.
        method: "rollout", "class_token", "gradient" or "grad_cam".
        label: the class explained; score: its probability.
        grid_map: (h, w) the map a value a patch, 0..1.
        per_head: (heads, h, w) each head's map scaled by itself, for "class_token"; else None.
        head: the head that ``map`` shows, or None for all of them together.
        box: the part of the image that the model's patches cover; the last cells of a feature map may reach beyond.
        seen: the part of it that the model saw.
    """

    name: str
    method: Method
    label: str
    score: float
    grid_map: Tensor
    per_head: Tensor | None
    head: int | None
    box: Box
    seen: Box
    image: Tensor = field(repr=False)

    @property
    def map(self) -> NDArray[np.float32]:
        """(H, W) float32 in 0..1 at the image's own size: bicubic between patches, 0 where the model saw nothing."""
        return place(self.grid_map, (self.image.shape[1], self.image.shape[2]), self.box, self.seen)

    @property
    def remark(self) -> str:
        """What has to be known to read the map, or ""."""
        return ONE_CELL if self.grid_map.numel() == 1 else ""

    def overlay(self, *, most: int = 640, grid_map: Tensor | None = None) -> NDArray[np.uint8]:
        """Return the map over the image, whole and in its own aspect ratio, ``most`` pixels at its longer side."""
        picture = resized(as_picture(self.image), most=most)
        fy, fx = picture.shape[0] / self.image.shape[1], picture.shape[1] / self.image.shape[2]
        heat = self.grid_map if grid_map is None else grid_map
        seen = scaled(self.seen, fx, fy)
        return overlay(picture, place(heat, picture.shape[:2], scaled(self.box, fx, fy), seen), seen)

    def plot(self, path: str | Path | None = None, *, most: int = 480) -> Image.Image:
        """Draw the image and the map over it side by side, with a colour bar; save it if ``path`` is given."""
        which = NAMES[self.method] + ("" if self.head is None else f", head {self.head}")
        tiles = [
            Tile(resized(as_picture(self.image), most=most), Path(self.name).name),
            Tile(self.overlay(most=most), which),
        ]
        drawn = sheet(
            tiles,
            columns=2,
            title=f"{self.label}  {100 * self.score:.1f} %",
            note=self.remark,
            bar=Bar("low", "high", measure_of(self.method), "ember"),
            gap=16,
            size=16,
        )
        if path is not None:
            drawn.save(path)
        return drawn

    def plot_heads(self, path: str | Path | None = None, *, most: int = 240) -> Image.Image:
        """Draw a titled tile for each head, and their mean first; save it if ``path`` is given.

        Raises :class:`UsageError` for methods that fuse the heads.
        """
        if self.per_head is None:
            raise UsageError(f"method {self.method!r} fuses the heads; mend: explain with method='class_token'")
        mean = scale01(self.per_head.mean(0)) if self.head is not None else self.grid_map
        tiles = [Tile(resized(as_picture(self.image), most=most), "image")]
        tiles.append(Tile(self.overlay(most=most, grid_map=mean), "mean of heads"))
        tiles += [Tile(self.overlay(most=most, grid_map=one), f"head {i}") for i, one in enumerate(self.per_head)]
        drawn = sheet(
            tiles,
            columns=min(7, max(3, round(len(tiles) ** 0.5 * 1.3))),
            title=f"{self.label}  {100 * self.score:.1f} %: {NAMES[self.method]} by head",
            note="Each map is scaled to its own range.",
            bar=Bar("low", "high", "attention", "ember"),
            gap=12,
            size=16,
        )
        if path is not None:
            drawn.save(path)
        return drawn

    def to_json(self) -> dict[str, Any]:
        """Return plain data: schema, name, method, label, score, head, box, grid and the (h, w) map, 4 digits."""
        return {
            "schema": 1,
            "name": self.name,
            "method": self.method,
            "label": self.label,
            "score": self.score,
            "head": self.head,
            "box": [round(v, 2) for v in self.box],
            "grid": list(self.grid_map.shape),
            "map": [[round(float(v), 4) for v in row] for row in self.grid_map],
        }
