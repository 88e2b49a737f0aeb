"""A mask for each query: where it attends, drawn finer with the help of earlier maps.

Source: Carion et al. 2020, arXiv 2005.12872, section 4.3 and figure 8 (the panoptic head).

B batch, Q queries, C width, H heads, (h, w) the coarsest map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .fused import Linear


class QueryMaps(nn.Module):
    """How much each query attends to each cell in each head, as maps; the weights of all heads add up to 1.

    Args:
        dim: width C.
        num_heads: H.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        for layer in (self.q, self.k):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, memory: Tensor, grid: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        """Queries (B, Q, C), cells (B, h·w, C) -> (B, Q, H, h, w); ``keep`` (B, h·w) is False on padding."""
        q, k = (p(t).view(*t.shape[:2], self.num_heads, -1) for p, t in ((self.q, queries), (self.k, memory)))
        scores: Tensor = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (B, H, Q, h·w)
        scores = scores.transpose(1, 2)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], float("-inf"))
        return scores.flatten(2).softmax(-1).view(*scores.shape[:3], *grid)


class ConvNormRelu(nn.Module):
    """A 3 x 3 convolution, a group norm and ReLU: (B, C, h, w) -> (B, C', h, w)."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(8, out_chans), out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        return F.relu(self.norm(self.conv(x)))


class MaskHead(nn.Module):
    """Masks of queries (B, Q, h', w'), as large as the finest map it is given.

    Args:
        dim: width C of the coarsest map.
        num_heads: H.
        channels: of the finer maps, the coarsest of them first.
    """

    def __init__(self, dim: int, num_heads: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.maps = QueryMaps(dim, num_heads)
        widths = [dim // 2 ** (i + 1) for i in range(len(channels) + 1)]
        self.first = ConvNormRelu(dim + num_heads, dim + num_heads)
        self.second = ConvNormRelu(dim + num_heads, widths[0])
        self.adapters = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths, strict=False))
        self.refine = nn.ModuleList(ConvNormRelu(i, o) for i, o in itertools.pairwise(widths))
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self, queries: Tensor, memory: Tensor, projected: Tensor, finer: Sequence[Tensor], keep: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, Q, h', w').

        Args:
            queries: (B, Q, C).
            memory: what the encoder made of the cells, (B, h·w, C).
            projected: the coarsest map before the encoder, (B, C, h, w).
            finer: maps (B, C', h', w'), the coarsest of them first.
            keep: (B, h·w) bool, False on padding.
        """
        grid = (projected.shape[2], projected.shape[3])
        maps = self.maps(queries, memory, grid, keep)
        count = maps.shape[1]
        x = self.second(self._first(projected, maps))
        for adapter, refine, fine in zip(self.adapters, self.refine, finer, strict=True):
            larger = F.interpolate(x, size=fine.shape[-2:], mode="nearest")
            larger = larger.view(-1, count, *larger.shape[1:])
            x = refine((larger + adapter(fine)[:, None]).flatten(0, 1))
        logits: Tensor = self.out(x)
        return logits.view(-1, count, *logits.shape[-2:])

    def _first(self, projected: Tensor, maps: Tensor) -> Tensor:
        """The first convolution of each query's maps behind the image's: the image's part is computed once."""
        conv = self.first.conv
        image = F.conv2d(projected, conv.weight[:, : self.dim], conv.bias, padding=1)
        own = F.conv2d(maps.flatten(0, 1), conv.weight[:, self.dim :], padding=1)
        both = own.view(*maps.shape[:2], *own.shape[1:]) + image[:, None]
        return F.relu(self.first.norm(both.flatten(0, 1)))
