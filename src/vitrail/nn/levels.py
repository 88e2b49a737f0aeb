"""Maps of several strides, brought to one width and laid out as one row of cells.

Source: Zhu et al. 2021, arXiv 2010.04159, section 4.1 and appendix A.4.

B batch, M maps (levels), (h, w) a map, S cells of all maps, C width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from .positions import Grid
from .queries import keep_cells, places
from .shortcuts import at_once
from .tokens import as_tokens


@dataclass(frozen=True)
class Maps:
    """Cells of all maps.

    Attributes:
        tokens: (B, S, C), the maps one after the other, each in raster order.
        grids: (h, w) of each.
        keep: (B, S) bool, False on padding; None if there is none.
        ratios: (B, M, 2), the share of each map's width and height that is image; None if all.
    """

    tokens: Tensor
    grids: tuple[Grid, ...]
    keep: Tensor | None
    ratios: Tensor | None

    def with_tokens(self, tokens: Tensor) -> Maps:
        """Return the same maps with other contents."""
        return replace(self, tokens=tokens)

    def on_maps(self, reference: Tensor) -> Tensor:
        """Return points or boxes of each image (B, Q, 2 or 4), relative to each padded map: (B, Q, M or 1, 2 or 4)."""
        at = reference[:, :, None]
        return at if self.ratios is None else at * self.ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]

    def own_places(self) -> Tensor:
        """Return where each cell lies on each map, relative to it: (1, S, 1, 2), or (B, S, M, 2) if some is padding."""
        sides, level = cell_sides(self.grids, self.tokens.device)
        own = cell_centres(self.grids, self.tokens.device) / sides
        if self.ratios is None:
            return own[None, :, None]
        return (own / self.ratios[:, level])[:, :, None] * self.ratios[:, None]


class Level(nn.Module):
    """A map brought to the width of the network: a convolution and a group norm."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, kernel_size, stride, kernel_size // 2)
        self.norm = nn.GroupNorm(math.gcd(32, dim), dim)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', h, w) -> (B, C, ⌈h/s⌉, ⌈w/s⌉)."""
        out: Tensor = self.norm(self.conv(x))
        return out


class Levels(nn.Module):
    """A backbone's maps at one width, and further ones made of its last by convolutions of stride 2.

    Args:
        channels: of the backbone's maps, the finest first.
        dim: width C.
        count: maps that are given, M.
    """

    def __init__(self, channels: Sequence[int], dim: int, count: int) -> None:
        super().__init__()
        self.given = len(channels)
        further = [channels[-1], *[dim] * count][: count - self.given]
        self.projs = nn.ModuleList(
            [Level(width, dim) for width in channels] + [Level(width, dim, 3, 2) for width in further]
        )
        self.level_embed = nn.Parameter(torch.empty(count, dim))
        nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[Tensor], keep: Tensor | None) -> tuple[Maps, Tensor]:
        """Maps (B, C', h, w), pixels that are image (B, H, W) -> cells, and their positions (B or 1, S, C)."""
        made: list[Tensor] = []
        for i, proj in enumerate(self.projs):
            made.append(proj(maps[i] if i < self.given else maps[-1] if i == self.given else made[-1]))
        grids = tuple((m.shape[2], m.shape[3]) for m in made)
        cells = None if keep is None else [keep_cells(keep, grid) for grid in grids]
        tokens = [as_tokens(m) for m in made]
        placed = [
            places(grid, x, None if cells is None else cells[i], 0.5) + self.level_embed[i]
            for i, (grid, x) in enumerate(zip(grids, tokens, strict=True))
        ]
        flat = None if cells is None else torch.cat([c.flatten(1) for c in cells], 1)
        ratios = None if cells is None else torch.stack([_ratio(c) for c in cells], 1)
        return Maps(torch.cat(tokens, 1), grids, flat, ratios), torch.cat(placed, 1)


def _ratio(cells: Tensor) -> Tensor:
    """Return the share of a map's (width, height) that is image: (B, h, w) bool -> (B, 2)."""
    return torch.stack((cells[:, 0].float().mean(1), cells[:, :, 0].float().mean(1)), -1)


def cell_centres(grids: Sequence[Grid], device: torch.device) -> Tensor:
    """Return the centre of each cell of all maps, in cells from the corner of its map: (S, 2) float32, x and y."""
    if not at_once():
        return _make_centres(tuple(grids), device)
    with torch.inference_mode(False):  # what is kept must serve training too
        return _centres(tuple(grids), device)


def _make_centres(grids: tuple[Grid, ...], device: torch.device) -> Tensor:
    steps = [[torch.arange(n, dtype=torch.float32, device=device) + 0.5 for n in grid] for grid in grids]
    return torch.cat([torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1) for y, x in steps])


_centres = lru_cache(maxsize=32)(_make_centres)


def cell_sides(grids: Sequence[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for each cell the (width, height) of its map in cells (S, 2), and the number of its map (S,)."""
    sides = torch.tensor([(w, h) for h, w in grids], dtype=torch.float32, device=device)
    level = torch.cat([torch.full((h * w,), i, device=device) for i, (h, w) in enumerate(grids)])
    return sides[level], level
