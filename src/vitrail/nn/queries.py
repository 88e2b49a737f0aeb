"""Layers of networks that find objects by queries: over the cells of maps, and over queries that read them.

Sources: Carion et al. 2020, arXiv 2005.12872, section 3.2 and appendix A.3 (positions are added to queries and keys of
every layer, never to values; a perceptron gives the box); Zhu et al. 2021, arXiv 2010.04159, section 4.

All layers are post-norm. B batch, S cells, Q queries, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .decoder import AddedLayer
from .fused import Linear
from .positions import Grid, sines_within
from .shortcuts import at_once

Call = Callable[[nn.Module, Tensor], Tensor]
"""Calls an attention on tokens (B, N, C) with all that it needs besides, and returns what comes out."""


class MapLayer(AddedLayer):
    """What mixes the cells, then the feed-forward network.

    Args:
        attn: mixes cells; :meth:`forward` is told how to call it.
        mlp: what each cell goes through by itself.
        dim: width C.
        drop: dropout of both branches.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module, dim: int, *, drop: float = 0.0) -> None:
        super().__init__(drop, norm_first=False)
        self.attn = attn
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mix: Call) -> Tensor:
        """(B, S, C) -> (B, S, C); ``mix(attn, x)`` calls the attention with all it needs."""
        x = self._add(x, self.norm1, lambda y: mix(self.attn, y))
        return self._add(x, self.norm2, self.mlp)


class QueryLayer(AddedLayer):
    """Self-attention among the queries, reading of the maps, then the feed-forward network.

    Args:
        attn: self-attention.
        cross: what reads the maps; :meth:`forward` is told how to call it.
        mlp: what each query goes through by itself.
        dim: width C.
        drop: dropout of each branch.
    """

    def __init__(self, attn: Attention, cross: nn.Module, mlp: nn.Module, dim: int, *, drop: float = 0.0) -> None:
        super().__init__(drop, norm_first=False)
        self.attn = attn
        self.norm1 = nn.LayerNorm(dim)
        self.cross = cross
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        read: Call,
        seen: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, C) -> (B, Q, C).

        Args:
            x: queries.
            positions: theirs, (B or 1, Q, C).
            read: ``read(cross, x + positions)`` calls what reads the maps with all it needs.
            seen: which query sees which, bool, broadcasting to (B, H, Q, Q).
        """
        x = self._add(x, self.norm1, lambda y: attend_placed(self.attn, y, positions, keep=seen))
        x = self._add(x, self.norm2, lambda y: read(self.cross, y + positions))
        return self._add(x, self.norm3, self.mlp)


def attend_placed(attn: nn.Module, x: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
    """Self-attention (B, N, C) -> (B, N, C) whose queries and keys, but not its values, know their positions."""
    placed = x + positions
    out: Tensor = attn(placed, context=x, keys=placed, keep=keep)
    return out


class Perceptron(nn.Module):
    """Linear layers with ReLU between them: (..., C) -> (..., widths[-1]).

    Args:
        dim: width C.
        widths: what each layer gives.
    """

    def __init__(self, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(i, o) for i, o in zip((dim, *widths), widths, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., widths[-1])."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.relu(x))
        return x


def keep_cells(keep: Tensor, grid: Grid) -> Tensor:
    """Return which cells of a map hold image: the pixel nearest to each says so; (B, H, W) -> (B, h, w), bool."""
    return F.interpolate(keep[:, None].float(), size=grid)[:, 0] > 0.5


def real_padding(images: Tensor, keep: Tensor | None) -> Tensor | None:
    """Return ``keep`` (B, H, W) bool, True on real pixels, or None if nothing is padded, where that can be told.

    Raises ValueError for a ``keep`` that does not belong to ``images`` (B, I, H, W).
    """
    if keep is None:
        return None
    if keep.dtype != torch.bool or keep.shape != (images.shape[0], *images.shape[2:]):
        wanted = (images.shape[0], *images.shape[2:])
        raise ValueError(f"expected keep as bool {wanted}, True on real pixels, got {keep.dtype} {tuple(keep.shape)}")
    known = keep.device.type == "cpu" and at_once()  # elsewhere the answer would have to be waited for
    return None if known and bool(keep.all()) else keep


def places(grid: Grid, like: Tensor, keep: Tensor | None, before: float = 0.0) -> Tensor:
    """Return :func:`~vitrail.nn.positions.sines_within` for tokens ``like`` (B, h·w, C), in their type."""
    dim = like.shape[-1]
    if keep is None and at_once():
        with torch.inference_mode(False):  # what is kept must serve training too
            return _places(grid, dim, before, like.device, like.dtype)
    return sines_within(grid, dim, keep, before=before).to(like)


@lru_cache(maxsize=32)
def _places(grid: Grid, dim: int, before: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    return sines_within(grid, dim, before=before).to(device, dtype)
