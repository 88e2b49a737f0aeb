"""Which pixels a restored patch was made from: gradients gathered along a path from a blurred picture to the real one.

Source: Gu and Dong 2021, "Interpreting super-resolution networks with local attribution maps", arXiv 2011.11256,
sections 3.1 (the patch's gradients as what is explained), 3.2 (the blurring path, equation 6) and 3.4 (diffusion index:
100 times one minus the Gini coefficient).

C channels, (H, W) the picture that came in, s scale, n steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .draw import Tile, enlarged, overlay, sheet

STEPS = 20
SIGMA = 4.0
"""Standard deviation, in pixels, of the blur that the path begins with; the paper's."""
SHOWN = 384
"""Pixels of a side of each tile of the drawing, about."""


@dataclass(frozen=True)
class LocalAttribution:
    """What a patch of a restored picture was made from.

    Attributes:
        heat: float32 (H, W), 0..1, how much each pixel of the picture contributed.
        picture: uint8 (H, W, 3), the picture.
        restored: uint8 (s H, s W, 3).
        box: (x0, y0, x1, y1) of the patch, in pixels of the picture.
        diffusion: 0 (one pixel did all) to 100 (all alike).
        half: pixels from the patch's middle within which half of the contributions lie.
    """

    heat: NDArray[np.float32]
    picture: NDArray[np.uint8]
    restored: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    diffusion: float
    half: float

    def plot(self, path: str | None = None) -> Image.Image:
        """Draw the picture with the patch framed, the patch restored, and the map; also save it if asked."""
        factor = max(1, SHOWN // max(self.picture.shape[:2]))
        scale = self.restored.shape[0] // self.picture.shape[0]
        framed = enlarged(self.picture, factor)
        x0, y0, x1, y1 = (factor * v for v in self.box)
        for rows, columns in (
            (slice(y0, y1), [x0, x0 + 1, x1 - 2, x1 - 1]),
            ([y0, y0 + 1, y1 - 2, y1 - 1], slice(x0, x1)),
        ):
            framed[rows, columns] = (213, 94, 0)
        patch = self.restored[scale * self.box[1] : scale * self.box[3], scale * self.box[0] : scale * self.box[2]]
        zoom = enlarged(patch, max(1, framed.shape[0] // patch.shape[0]))
        strength = np.sqrt(self.heat)  # small contributions are many: shown by their root
        map_ = overlay(framed, strength.repeat(factor, 0).repeat(factor, 1))
        tiles = [Tile(framed, "the patch"), Tile(zoom, "restored"), Tile(map_, "what it was made from")]
        note = f"diffusion index {self.diffusion:.1f} of 100; half of the map lies within {self.half:.0f} pixels"
        drawn = sheet(tiles, columns=3, note=note)
        if path is not None:
            drawn.save(path)
        return drawn


def local_attribution(
    run: Callable[[Tensor], Tensor], picture: Tensor, box: tuple[int, int, int, int], *, scale: int, steps: int = STEPS
) -> LocalAttribution:
    """Attribute the contrast within a patch of the restored picture to the pixels of the picture that came.

    Args:
        run: the network with gradients: (1, C, H, W) in 0..1 -> (1, C, s H, s W).
        picture: float (C, H, W) in 0..1.
        box: (x0, y0, x1, y1) of the patch, in pixels of ``picture``.
        scale: s.
        steps: n of the path.

    Raises ValueError for a patch outside the picture.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= picture.shape[2] and 0 <= y0 < y1 <= picture.shape[1]):
        raise ValueError(f"expected a patch within {picture.shape[2]} x {picture.shape[1]} pixels, got {box}")
    path = [_blurred(picture, SIGMA * (1 - i / steps)) for i in range(steps + 1)]
    total = torch.zeros_like(picture)
    for before, after in pairwise(path):
        x = after[None].detach().requires_grad_()
        made = run(x)[0]
        (slope,) = torch.autograd.grad(contrast(made[:, scale * y0 : scale * y1, scale * x0 : scale * x1]), x)
        total += slope[0].detach() * (after - before)
    heat = total.abs().sum(0)
    with torch.no_grad():
        restored = run(picture[None])[0]
    weight = heat / heat.sum().clamp_min(1e-12)
    return LocalAttribution(
        heat=(heat / heat.max().clamp_min(1e-12)).numpy().astype(np.float32),
        picture=_eight(picture),
        restored=_eight(restored),
        box=box,
        diffusion=100 * (1 - gini(weight)),
        half=_half_radius(weight, ((x0 + x1) / 2, (y0 + y1) / 2)),
    )


def patch_at(
    picture: Tensor, at: tuple[float, float], side: int, context: int
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Return what lies around a pixel (x, y) of (C, H, W), and the box of a patch of ``side`` pixels at it therein."""
    x0, y0 = (
        int(min(max(v - side / 2, 0), max(n - side, 0)))
        for v, n in zip(at, (picture.shape[2], picture.shape[1]), strict=True)
    )
    left, top = max(0, x0 - context), max(0, y0 - context)
    crop = picture[:, top : y0 + side + context, left : x0 + side + context]
    x1, y1 = min(x0 - left + side, crop.shape[2]), min(y0 - top + side, crop.shape[1])
    return crop.contiguous(), (x0 - left, y0 - top, x1, y1)


def sharpest(picture: Tensor, side: int) -> tuple[float, float]:
    """Return the middle (x, y) of the patch of (C, H, W) with the most contrast."""
    edges = F.pad(picture.diff(dim=1).abs().sum(0), (0, 0, 0, 1)) + F.pad(picture.diff(dim=2).abs().sum(0), (0, 1))
    side = min(side, *edges.shape)
    sums = F.avg_pool2d(edges[None, None], side, stride=1)[0, 0]
    best = int(sums.argmax())
    return best % sums.shape[1] + side / 2, best // sums.shape[1] + side / 2


def contrast(patch: Tensor) -> Tensor:
    """Return the sum of the absolute differences between neighbours of (C, h, w): what edges a patch has."""
    return patch.diff(dim=1).abs().sum() + patch.diff(dim=2).abs().sum()


def gini(weights: Tensor) -> float:
    """Return the Gini coefficient of non-negative numbers: 0 if all are alike, towards 1 if one has all."""
    values = weights.flatten().double().sort().values
    count = len(values)
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    return float((2 * ranks - count - 1) @ values / (count * values.sum()))


def _half_radius(weight: Tensor, middle: tuple[float, float]) -> float:
    y, x = torch.meshgrid(torch.arange(weight.shape[0]), torch.arange(weight.shape[1]), indexing="ij")
    far = ((x + 0.5 - middle[0]) ** 2 + (y + 0.5 - middle[1]) ** 2).sqrt().flatten()
    order = far.argsort()
    inside = weight.flatten()[order].cumsum(0)
    return float(far[order][int((inside < 0.5).sum().clamp(max=len(far) - 1))])


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return picture
    reach = min(int(3 * sigma + 1), *(n - 1 for n in picture.shape[1:]))
    steps = torch.arange(-reach, reach + 1, dtype=picture.dtype)
    line = torch.exp(-(steps**2) / (2 * sigma**2))
    line = line / line.sum()
    padded = F.pad(picture[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, line[None, None, :, None]), line[None, None, None])[:, 0]


def _eight(picture: Tensor) -> NDArray[np.uint8]:
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
