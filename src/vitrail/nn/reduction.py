"""Reduction: keys and values are made of fewer tokens than queries are.

Sources: Wang et al. 2021, arXiv 2102.12122, section 3.3 (PVT, spatial reduction attention: equations 2 and 3); Wang et
al. 2022, arXiv 2106.13797, section 3.1 (PVT v2: linear spatial reduction attention, by pooling).

Tokens stay on their grid here, (B, h, w, C): the memory of (B, N, C), and of a channels-last map. M reduced tokens, R
ratio.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .fused import linear
from .patches import SquareEmbed
from .residual import PreNormBlock
from .shortcuts import plain


class StridedReduction(SquareEmbed):
    """Each square of R x R tokens becomes one: a convolution with kernel and stride R, and a norm.

    Args:
        dim: width C.
        ratio: side R of a square.
        eps: epsilon of the norm.
    """

    def __init__(self, dim: int, ratio: int, *, eps: float) -> None:
        super().__init__(ratio, dim, dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, h, w, C) -> (B, M, C) with M = (h // R) · (w // R), at least 1."""
        return super().forward(x).flatten(1, 2)


class PooledReduction(nn.Module):
    """Average pooling to a fixed grid, a linear layer, a norm, a GELU: the cost of attention is linear in the pixels.

    Args:
        dim: width C.
        eps: epsilon of the norm.
        side: side of the grid that is pooled to; a smaller grid is stretched to it.
    """

    def __init__(self, dim: int, *, eps: float, side: int = 7) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, h, w, C) -> (B, M, C) with M = side · side."""
        pooled = self.pool(x.permute(0, 3, 1, 2))
        if plain(self.proj, nn.Conv2d):
            rows = linear(pooled.flatten(2).transpose(1, 2), self.proj.weight.flatten(1), self.proj.bias)
        else:
            rows = self.proj(pooled).flatten(2).transpose(1, 2)
        return F.gelu(self.norm(rows))


class ReducedBlock(PreNormBlock):
    """The pre-norm block on tokens that stay on their grid, with keys and values made of ``reduce(tokens)``.

    Args:
        attn: the attention.
        mlp: channel mixer (B, h, w, C) -> (B, h, w, C).
        dim: width C.
        reduce: (B, h, w, C) -> (B, M, C); None leaves all tokens.
        eps: epsilon of both layer norms.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(
        self,
        attn: Attention,
        mlp: nn.Module,
        dim: int,
        *,
        reduce: nn.Module | None,
        eps: float,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(attn, mlp, dim, eps=eps, drop_path=drop_path)
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, h, w, C) -> (B, h, w, C)."""
        normed = self.norm1(x)
        context = None if self.reduce is None else self.reduce(normed)
        mixed = self.attn(normed.flatten(1, 2), context=context).view(x.shape)
        x = x + self.drop_path1(mixed)
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out
