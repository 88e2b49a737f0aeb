"""Windows: a grid cut into squares, shifted or not, and attention within them.

Sources: Liu et al. 2021, arXiv 2103.14030, section 3.2 and figure 4 (cyclic shift and mask, relative position bias);
the padding of other grids is that of its detection code.

B batch, (h, w) grid, (m, n) window, W windows of a padded grid, N = m · n tokens of a window, C width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .positions import Grid
from .relative import RelativePositionBias, resize_bias_table
from .shortcuts import at_once

MASKED = -100.0  # what the published networks add between tokens that are no neighbours; they were trained with it

Shift = Literal["never", "between", "always"]


@dataclass(frozen=True)
class Windows:
    """How a grid is cut: padded with zeros at its right and bottom to whole windows, then rolled, then cut.

    Attributes:
        grid: (h, w).
        window: (m, n).
        shift: rows and columns that the grid is rolled up and to the left by.
    """

    grid: Grid
    window: Grid
    shift: Grid = (0, 0)

    @property
    def counts(self) -> Grid:
        """Windows along each side."""
        return -(-self.grid[0] // self.window[0]), -(-self.grid[1] // self.window[1])

    @property
    def padded(self) -> Grid:
        """The grid with its padding."""
        return self.counts[0] * self.window[0], self.counts[1] * self.window[1]

    def partition(self, x: Tensor) -> Tensor:
        """Tokens on their grid (B, h, w, C) -> tokens of each window (B, W, N, C)."""
        height, width = self.padded
        if self.padded != self.grid:
            x = F.pad(x, (0, 0, 0, width - self.grid[1], 0, height - self.grid[0]))
        x = roll(x, (-self.shift[0], -self.shift[1]))
        (rows, columns), (m, n) = self.counts, self.window
        cut = x.reshape(-1, rows, m, columns, n, x.shape[-1]).transpose(2, 3)
        return cut.reshape(-1, rows * columns, m * n, x.shape[-1])

    def merge(self, x: Tensor) -> Tensor:
        """Tokens of each window (B, W, N, C) -> tokens on their grid (B, h, w, C): undoes :meth:`partition`."""
        (rows, columns), (m, n) = self.counts, self.window
        whole = x.reshape(-1, rows, columns, m, n, x.shape[-1]).transpose(2, 3).reshape(-1, *self.padded, x.shape[-1])
        return roll(whole, self.shift)[:, : self.grid[0], : self.grid[1]]

    def mask(self, like: Tensor) -> Tensor | None:
        """Return what the scores of each window get so that only neighbours attend: (W, 1, N, N), or None if all do.

        Rolled windows at the right and bottom hold tokens from both ends of the grid. Padding counts as the end it
        stands at, and takes part.
        """
        if not any(self.shift):
            return None
        if not at_once():
            return _make_mask(self, like.device, like.dtype)
        with torch.inference_mode(False):  # what is kept must serve training too
            return _mask(self, like.device, like.dtype)


def roll(x: Tensor, steps: Grid) -> Tensor:
    """Roll tokens on their grid (B, h, w, C) down and to the right by ``steps``; what falls off comes in again."""
    down, right = steps[0] % x.shape[1], steps[1] % x.shape[2]
    if not down and not right:
        return x
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.roll(x, steps, (1, 2))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)  # one pass over the memory; torch.roll makes two
    for to, of in ((slice(down, None), slice(-down or None)), (slice(down), slice(x.shape[1] - down, None))):
        out[:, to, right:] = x[:, of, : x.shape[2] - right]
        out[:, to, :right] = x[:, of, x.shape[2] - right :]
    return out


def _make_mask(windows: Windows, device: torch.device, dtype: torch.dtype) -> Tensor:
    sides = []
    for length, m, shift in zip(windows.padded, windows.window, windows.shift, strict=True):
        step = torch.arange(length, device=device)
        sides.append((step >= length - m).long() + (step >= length - shift).long())
    regions = 3 * sides[0][:, None] + sides[1][None]
    tokens = Windows(windows.padded, windows.window).partition(regions[None, :, :, None])[0, :, :, 0]
    apart = tokens[:, None, :, None] != tokens[:, None, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, MASKED)


_mask = lru_cache(maxsize=32)(_make_mask)


class WindowAttention(Attention):
    """Attention within windows of a grid, with a relative position bias (W-MSA), and shifted (SW-MSA).

    Args:
        dim: width C of the tokens.
        num_heads: number of heads H.
        window: (m, n).
        shift: whether windows are moved by half their size: "never"; "between": along a side that has more than one
            window, since there is nothing to bridge within a single one; "always".
        qkv_bias: whether the projections of q, k and v have a bias.
        proj_drop: dropout after the output projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Grid,
        *,
        shift: Shift = "never",
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, proj_drop=proj_drop)
        self.shift = shift
        self.positions = RelativePositionBias(num_heads, window)

    @property
    def window(self) -> Grid:
        """The window (m, n)."""
        return self.positions.grid

    def set_window(self, window: Grid) -> None:
        """Change the window, in place; the table of relative positions is resized bicubically."""
        positions = self.positions
        with torch.no_grad():
            table = resize_bias_table(positions.table, positions.grid, window, positions.resize)
        positions.table = nn.Parameter(table, requires_grad=positions.table.requires_grad)
        positions.grid = window

    def windows(self, grid: Grid) -> Windows:
        """Return how ``grid`` is cut."""
        down, right = (
            m // 2 if self.shift == "always" or (self.shift == "between" and side > m) else 0
            for side, m in zip(grid, self.window, strict=True)
        )
        return Windows(grid, self.window, (down, right))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens on their grid (B, h, w, C) -> (B, h, w, C)."""
        windows = self.windows((x.shape[1], x.shape[2]))
        bias, mask = self.positions(), windows.mask(x)
        bias = bias if mask is None else bias + mask
        return windows.merge(super().forward(windows.partition(x), bias=bias[None]))
