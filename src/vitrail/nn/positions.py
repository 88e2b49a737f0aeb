"""Positions: learned tables with resizing, and fixed sine-cosine tables in one and two dimensions.

Sources: Vaswani et al. 2017, arXiv 1706.03762, section 3.5 (1d); Dosovitskiy et al. 2021, arXiv 2010.11929,
section 3.2 (resizing); He et al. 2022, arXiv 2111.06377 (2d table); Carion et al. 2020, arXiv 2005.12872, appendix A.4
(positions within each image of a padded batch).

B batch, P = h · w positions of a grid (h, w), C width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]
PositionResize = Literal["bicubic_antialias", "bicubic", "bilinear", "bilinear_aligned"]
Layout = Literal["interleaved", "halves", "tensor2tensor"]

ROWS = 256  # of a table of sines and cosines before it has to grow


def resize_positions(table: Tensor, old: Grid, new: Grid, mode: PositionResize = "bicubic_antialias") -> Tensor:
    """Resize a position table (1, P, C) from grid ``old`` to grid ``new``; rows are in raster order.

    Published models were resized in different ways, which differ visibly on real tables:
    ``bicubic_antialias`` (timm), ``bicubic`` (transformers, DeiT, MAE), ``bilinear`` (timm's reader of ``.npz``),
    ``bilinear_aligned`` (the original JAX code: ``scipy.ndimage.zoom`` of order 1, corners aligned).

    Returns (1, P', C) in the table's dtype. Raises ValueError if the table does not hold ``old``.
    """
    if table.shape[1] != old[0] * old[1]:
        raise ValueError(f"expected {old[0]}x{old[1]} = {old[0] * old[1]} positions, got {table.shape[1]}")
    if old == new:
        return table
    grid = table.float().reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    interpolation, _, variant = mode.partition("_")
    grid = F.interpolate(
        grid,
        size=new,
        mode=interpolation,
        align_corners=variant == "aligned",
        antialias=variant == "antialias",
    )
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(table.dtype)


def sincos_1d(length: int, dim: int, *, layout: Layout = "interleaved", temperature: float = 10000.0) -> Tensor:
    """Return the sine-cosine table (length, dim) of 'Attention is all you need'.

    ``layout``: "interleaved", sine and cosine of one frequency side by side, as the paper writes it; "halves", all
    sines, then all cosines, of the same frequencies (Marian); "tensor2tensor", halves whose slowest frequency is
    exactly 1 / ``temperature`` (the paper's own code, fairseq). Raises ValueError if ``dim`` is odd.
    """
    steps = torch.arange(length, dtype=torch.float64)
    if layout == "tensor2tensor":
        _require_even(dim)
        rates = temperature ** (-torch.arange(dim // 2, dtype=torch.float64) / max(dim // 2 - 1, 1))
        angles = steps[:, None] * rates
    else:
        angles = _angles(steps, dim, temperature)
    pair = (angles.sin(), angles.cos())
    table = torch.stack(pair, -1).flatten(1) if layout == "interleaved" else torch.cat(pair, -1)
    return table.float()


class SinusoidalPositions(nn.Module):
    """The rows of :func:`sincos_1d` for any stretch of a sequence; the table grows as needed and is no weight.

    Args:
        dim: width C.
        layout: see :func:`sincos_1d`.
        first: number of the first position: 0, or what fairseq starts at, its padding index + 1.
    """

    table: Tensor

    def __init__(self, dim: int, *, layout: Layout = "interleaved", first: int = 0) -> None:
        super().__init__()
        self.layout: Layout = layout
        self.first = first
        self.register_buffer("table", sincos_1d(ROWS, dim, layout=layout), persistent=False)

    def forward(self, start: int, length: int) -> Tensor:
        """Return the rows (length, C) of the positions from ``start`` on."""
        begin = self.first + start
        if begin + length > self.table.shape[0]:
            rows = max(begin + length, 2 * self.table.shape[0])
            self.table = sincos_1d(rows, self.table.shape[1], layout=self.layout).to(self.table)
        return self.table[begin : begin + length]


def sincos_2d(grid: Grid, dim: int, *, base: Grid | None = None, temperature: float = 10000.0) -> Tensor:
    """Return the fixed table (1, h·w, dim): [sin x | cos x | sin y | cos y], x counting columns.

    With ``base``, the coordinates of ``grid`` are stretched over those of ``base``: the exact counterpart of resizing
    a learned table. Raises ValueError unless ``dim`` is a multiple of four.
    """
    if dim % 4:
        raise ValueError(f"expected a width that is a multiple of 4 for a 2d sine-cosine table, got {dim}")
    y, x = (_centres(n, b) for n, b in zip(grid, base or grid, strict=True))
    halves = []
    for steps in (x[None, :].expand(grid), y[:, None].expand(grid)):
        angles = _angles(steps.flatten(), dim // 2, temperature)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, -1).float()[None]


def sines_within(grid: Grid, dim: int, keep: Tensor | None = None, *, before: float = 0.0) -> Tensor:
    """Return where each cell lies in its own image, as sines and cosines: (B or 1, h·w, dim) float32, [y | x].

    Rows and columns are counted over the cells that are no padding, from 1 on, and stretched to the circle: the last
    one is at 2π. Sine and cosine of a frequency stand side by side.

    Args:
        grid: (h, w).
        dim: width, a multiple of four.
        keep: (B, h, w) bool, False where a batch was padded; None if it is not.
        before: taken off the count: 0.5 measures from the middle of a cell.
    """
    if keep is None:
        y, x = (torch.arange(1, n + 1, dtype=torch.float32) for n in grid)
        places = [y.view(1, -1, 1).expand(1, *grid), x.view(1, 1, -1).expand(1, *grid)]
    else:
        places = [keep.cumsum(axis, dtype=torch.float32) for axis in (1, 2)]
    parts = []
    for axis, steps in enumerate(places, 1):
        last = steps.narrow(axis, steps.shape[axis] - 1, 1)
        parts.append(sines_of((steps - before) / (last + 1e-6), dim // 2))
    return torch.cat(parts, -1).flatten(1, 2)


def sines_of(share: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Return shares of a circle (...) as sines and cosines of ``dim / 2`` frequencies, side by side: (..., dim)."""
    _require_even(dim)
    rates = temperature ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=share.device) / dim)
    angles = share[..., None] * (2 * math.pi) * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def _centres(count: int, base: int) -> Tensor:
    """Return ``count`` cell centres spread over the cells 0 .. base - 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (base / count) - 0.5


def _angles(steps: Tensor, dim: int, temperature: float) -> Tensor:
    """Return (len(steps), dim / 2): each step times ``temperature ** (-2 i / dim)``."""
    _require_even(dim)
    frequencies = temperature ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return steps[:, None] * frequencies


def _require_even(dim: int) -> None:
    if dim % 2:
        raise ValueError(f"expected an even width for a sine-cosine table, got {dim}")
