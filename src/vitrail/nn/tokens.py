"""Extra tokens, pooling of tokens, and what a backbone hands to a dense head.

Sources: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1 (class token); Zhai et al. 2022, arXiv 2106.04560,
section 3.3 and Lee et al. 2019, arXiv 1810.00825 (MAP: multi-head attention pooling).

B batch, N tokens, C width, (h, w) grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import Attention
from .feedforward import ACTS, FeedForward, Gelu


@dataclass(frozen=True)
class Features:
    """What ``model.features(images)`` returns.

    Attributes:
        tokens: patch tokens (B, N, C) in raster order, N = h · w; None for models without tokens.
        grid: (h, w) of the tokens.
        maps: stride in pixels -> feature map (B, C, h, w).
    """

    tokens: Tensor | None
    grid: tuple[int, int]
    maps: dict[int, Tensor]


def prepend(x: Tensor, *tokens: Tensor) -> Tensor:
    """Put learned tokens (1, 1, C) before ``x`` (B, N, C): (B, len(tokens) + N, C)."""
    return torch.cat([*(t.expand(x.shape[0], -1, -1) for t in tokens), x], dim=1)


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, h·w, C) in raster order -> map (B, C, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def as_tokens(x: Tensor) -> Tensor:
    """Map (B, C, h, w) -> tokens (B, h·w, C) in raster order; no copy if the map is in channels-last memory."""
    return x.flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """MAP: one learned query attends all tokens, then passes a residual feed-forward network.

    Args:
        dim: width C.
        num_heads: number of heads.
        hidden_dim: hidden width of the feed-forward network.
        eps: epsilon of its layer norm.
        gelu: see :class:`~vitrail.nn.feedforward.FeedForward`.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, *, eps: float, gelu: Gelu = "erf") -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.attn = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = FeedForward(dim, hidden_dim, act=ACTS[gelu])

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) -> (B, C)."""
        pooled: Tensor = self.attn(self.latent.expand(x.shape[0], -1, -1), context=x)
        pooled = pooled + self.mlp(self.norm(pooled))
        return pooled[:, 0]
