"""Relative position bias: one learned number for each offset between two cells of a grid, and each head.

Sources: Liu et al. 2021, arXiv 2103.14030, equation 4 (Swin: within windows); Dai et al. 2021, arXiv 2106.04803,
equation 3 and appendix A.1 (CoAtNet: over the whole grid, resized for other grids); Liu et al. 2022, arXiv 2111.09883,
section 3.3 (a small network on logarithms of the offset).

(h, w) grid, N = h · w cells in raster order, H heads, T = (2h - 1) · (2w - 1) offsets.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from .positions import Grid, resize_positions
from .shortcuts import at_once

MOST_KEPT = 2**20  # entries of an index that is kept

BiasResize = Literal["bicubic", "bilinear"]


class RelativePositionBias(nn.Module):
    """Bias (1, H, N, N) to add to attention scores, read from a table of offsets.

    Args:
        num_heads: heads H.
        grid: (h, w) the table is made for.
        resize: how the table is stretched for another grid.
    """

    def __init__(self, num_heads: int, grid: Grid, *, resize: BiasResize = "bicubic") -> None:
        super().__init__()
        self.grid, self.resize = grid, resize
        self.table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), num_heads))
        nn.init.trunc_normal_(self.table, std=0.02, a=-2.0, b=2.0)

    def forward(self, grid: Grid | None = None) -> Tensor:
        """Return the bias (1, H, N, N) of ``grid`` (default: its own); query first, key second."""
        grid = grid or self.grid
        return spread(resize_bias_table(self.table, self.grid, grid, self.resize), grid)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, resize={self.resize}"


class LogRelativePositionBias(nn.Module):
    """Bias (1, H, N, N) that a two-layer network makes of ``sign(d) · log(1 + |d|)`` of both offsets: of any grid.

    Args:
        num_heads: heads H.
        grid: (h, w) that ``forward`` takes by default.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, num_heads: int, grid: Grid, *, hidden_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = nn.Linear(2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, num_heads)

    def forward(self, grid: Grid | None = None) -> Tensor:
        """Return the bias (1, H, N, N) of ``grid`` (default: its own); query first, key second."""
        grid = grid or self.grid
        steps = [torch.arange(1 - n, n, dtype=torch.float32, device=self.fc1.weight.device) for n in grid]
        offsets = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1).view(-1, 2)
        logs = (offsets.sign() * offsets.abs().log1p()).to(self.fc1.weight.dtype)
        return spread(self.fc2(self.fc1(logs).relu()), grid)


def spread(table: Tensor, grid: Grid) -> Tensor:
    """Return the bias (1, H, N, N) that a table (T, H) of the offsets in ``grid`` holds."""
    n = grid[0] * grid[1]
    return table.t()[:, relative_index(grid, table.device)].view(1, -1, n, n)


def resize_bias_table(table: Tensor, old: Grid, new: Grid, mode: BiasResize = "bicubic") -> Tensor:
    """Resize a table (T, H) of offsets in grid ``old`` to one for grid ``new``; corners stay corners of the table.

    Raises ValueError if the table does not hold the offsets of ``old``.
    """
    if old == new:
        return table
    spans = [(2 * g[0] - 1, 2 * g[1] - 1) for g in (old, new)]
    return resize_positions(table[None], spans[0], spans[1], mode)[0]


def relative_index(grid: Grid, device: torch.device) -> Tensor:
    """Return (N · N,) int64: for each query and key, the row ``(dy + h - 1)(2w - 1) + dx + w - 1`` of the table."""
    if not at_once() or (grid[0] * grid[1]) ** 2 > MOST_KEPT:
        return _make_index(*grid, device)
    with torch.inference_mode(False):  # what is kept must serve training too
        return _index(*grid, device)


def _make_index(h: int, w: int, device: torch.device) -> Tensor:
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    dy = y.flatten()[:, None] - y.flatten()[None] + h - 1
    dx = x.flatten()[:, None] - x.flatten()[None] + w - 1
    return (dy * (2 * w - 1) + dx).flatten()


_index = lru_cache(maxsize=16)(_make_index)
