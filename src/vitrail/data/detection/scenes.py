"""The built-in set of scenes: scikit-learn's handwritten digits at many sizes and places, on painted backgrounds.

A scene is arithmetic: a function of (split, number) alone, drawn when it is read. The digits of train, val and test are
those of the built-in set ``digits`` and its fixed split, so no handwriting of test is ever trained on. A box is the
ink of its digit, to a fraction of a pixel; a digit never hides more than a part of another.
H rows, W columns; a digit is 8 x 8 shares of ink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.data import rng
from vitrail.data.builtin import read_builtin

from .layout import BoxLayout, BoxPart
from .sets import Annotations

NAME = "scenes"
COUNTS = {"train": 12000, "val": 250, "test": 500}
MOST = 8  # digits in a scene
SIDES = (96, 104, 112, 120, 128)
SMALLEST, LARGEST = 16.0, 56.0  # pixels of a digit's cell
INK = 0.3  # share from which on a pixel of a digit is ink: what the box goes around
FAINTEST = 0.7  # how much of a pixel its faintest ink covers: an edge of a box is there to be seen
SOFT = 0.3  # of a column of a digit: how wide its edge is
OVERLAP = 0.1  # share of the smaller of two boxes that may be hidden
TRIES = 12
_SEEDS = {"train": 11, "val": 12, "test": 13}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Placed:
    """A digit in a scene: which, where its cell begins (x, y), the cell's side in pixels."""

    row: int
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class SceneStore:
    """Scenes of one split, drawn when they are asked for."""

    split: str
    digits: NDArray[np.uint8]
    """(n, 8, 8) ink, 0..255."""
    labels: NDArray[np.int64]
    count: int

    def __len__(self) -> int:
        return self.count

    def name(self, row: int) -> str:
        return f"{NAME}/{self.split}#{row}"

    def path(self, row: int) -> None:
        return None

    def blob(self, row: int) -> bytes:
        return self.read(row).numpy().tobytes()

    def size(self, row: int) -> tuple[int, int]:
        """(H, W) of a scene."""
        height, width = self.sizes[row].tolist()
        return height, width

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) height and width."""
        draws = rng.uniforms(_SEEDS[self.split], 0, np.arange(self.count), 2, rng.SPLIT)
        return np.array(SIDES, dtype=np.int64)[(draws * len(SIDES)).astype(np.int64)]

    def _draws(self, row: int, count: int, stream: int) -> NDArray[np.float64]:
        return rng.uniforms(_SEEDS[self.split], stream, [row], count, rng.SPLIT)[0]

    @cached_property
    def placed(self) -> list[list[Placed]]:
        """The digits of each scene, the one behind all others first."""
        found: list[list[Placed]] = []
        for rows in np.array_split(np.arange(self.count), -(-self.count // 512)):
            draws = rng.uniforms(_SEEDS[self.split], 1, rows, 1 + MOST * TRIES * 4, rng.SPLIT)
            found += [self._place(size, u) for size, u in zip(self.sizes[rows].tolist(), draws.tolist(), strict=True)]
        return found

    def _place(self, size: list[int], draws: list[float]) -> list[Placed]:
        height, width = size
        found: list[Placed] = []
        boxes: list[Box] = []
        for number in range(1 + int(draws[0] * MOST)):
            for attempt in range(TRIES):
                at = 1 + 4 * (number * TRIES + attempt)
                u = draws[at : at + 4]
                side = SMALLEST * (LARGEST / SMALLEST) ** u[0]
                place = Placed(int(u[3] * len(self.digits)), u[1] * (width - side), u[2] * (height - side), side)
                box = self.box(place)
                if all(_hidden(box, other) <= OVERLAP for other in boxes):
                    found.append(place)
                    boxes.append(box)
                    break
        return found

    @cached_property
    def _ink(self) -> list[Box]:
        """The first and last column and row of ink of each digit as edges: left, top, right, bottom."""
        inked = self.digits > INK * 255
        across, down = inked.any(1), inked.any(2)
        left, top = across.argmax(1), down.argmax(1)
        right, bottom = 8 - across[:, ::-1].argmax(1), 8 - down[:, ::-1].argmax(1)
        return list(zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), strict=True))

    def box(self, place: Placed) -> Box:
        """The box around the ink of a digit: left, top, right, bottom in pixels."""
        left, top, right, bottom = self._ink[place.row]
        cell = place.side / 8
        return place.x + left * cell, place.y + top * cell, place.x + right * cell, place.y + bottom * cell

    def objects(self, row: int) -> Annotations:
        """Boxes and digits of a scene."""
        placed = self.placed[row]
        corners = np.array([self.box(p) for p in placed]).reshape(-1, 4)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(2)
        ids = row * (MOST + 1) + 1 + np.arange(len(placed))
        return Annotations.of(xywh, [self.labels[p.row] for p in placed], ids=ids)

    def read(self, row: int) -> Tensor:
        """uint8 (3, H, W)."""
        size = self.size(row)
        canvas = self._background(row, size)
        colours = self._draws(row, 3 * MOST, stream=3).reshape(MOST, 3)
        for place, colour in zip(self.placed[row], colours, strict=False):
            alpha = self._alpha(place, size)
            canvas = canvas * (1 - alpha) + _against(canvas, alpha, torch.from_numpy(colour).float()) * alpha
        return (canvas * 255).round().clamp(0, 255).to(torch.uint8)

    def _background(self, row: int, size: tuple[int, int]) -> Tensor:
        """A slope between two colours, soft clouds, fine noise and two bars: float (3, H, W) in 0..1."""
        draws = torch.from_numpy(self._draws(row, 24, stream=2)).float()
        height, width = size
        y = torch.linspace(0, 1, height)[:, None]
        x = torch.linspace(0, 1, width)[None]
        slope = (draws[0] * x + (1 - draws[0]) * y)[None]
        canvas = draws[1:4, None, None] * (1 - slope) + draws[4:7, None, None] * slope
        noise = torch.from_numpy(self._draws(row, 3 * 25 + height * width, stream=4)).float()
        clouds = F.interpolate(noise[:75].view(1, 3, 5, 5), size=size, mode="bilinear", align_corners=False)[0]
        canvas = 0.7 * canvas + 0.3 * clouds + 0.06 * (noise[75:].view(1, height, width) - 0.5)
        for bar in range(2):
            angle, offset, thick, shade = draws[7 + 4 * bar : 11 + 4 * bar].tolist()
            distance = (x - 0.5) * np.cos(np.pi * angle) + (y - 0.5) * np.sin(np.pi * angle) - 0.8 * (offset - 0.5)
            canvas = torch.where((distance.abs() < 0.01 + 0.02 * thick)[None], 0.5 * canvas + 0.5 * shade, canvas)
        return canvas

    def _alpha(self, place: Placed, size: tuple[int, int]) -> Tensor:
        """How much of each pixel a digit covers: float (1, H, W). What is no ink is not drawn, so that the box ends
        where the digit does.
        """
        height, width = size
        ink = torch.from_numpy(self.digits[place.row].astype(np.float32) / 255)
        drawn = FAINTEST + (1 - FAINTEST) * (ink / INK - 1)
        ink = torch.where(ink > INK, drawn.clamp(max=1), 0.0)
        across = _weights(width, place.x, place.side)
        down = _weights(height, place.y, place.side)
        return (down @ ink @ across.T)[None]


def _weights(length: int, start: float, side: float) -> Tensor:
    """How much each of the 8 columns of a digit counts at each of ``length`` pixels, (length, 8): columns with soft
    edges, half of it where they end.
    """
    at = (torch.arange(length) + 0.5 - start) * (8 / side) - 0.5
    away = (at[:, None] - torch.arange(8)).abs()
    return ((0.5 - away) / SOFT + 0.5).clamp(0, 1)


def _hidden(a: Box, b: Box) -> float:
    """The share of the smaller of two boxes that the other covers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0.0) * max(height, 0.0) / smaller


def _against(canvas: Tensor, alpha: Tensor, colour: Tensor) -> Tensor:
    """A colour as drawn, moved to the other end of the scale where it would not stand out from what is behind it."""
    behind = (canvas * alpha).sum((1, 2)) / alpha.sum().clamp_min(1e-6)
    light = float(behind.mean()) > 0.5
    shade = 0.4 * colour + (0.0 if light else 0.6)
    return shade[:, None, None]


def read_scenes() -> BoxLayout:
    """Return the built-in scenes with their fixed train, val and test parts."""
    digits = read_builtin("digits")
    parts = {}
    for split, count in COUNTS.items():
        part = digits.parts[split]
        store = SceneStore(split, part.store.pixels[..., 0], part.labels, count)  # type: ignore[attr-defined]
        rows = range(count)
        parts[split] = BoxPart(store, tuple(rows), store.sizes, [store.objects(row) for row in rows])
    return BoxLayout("built-in", NAME, parts, ClassMap.of([str(i) for i in range(10)]))
