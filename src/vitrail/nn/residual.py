"""Residual branches: stochastic depth, LayerScale, and the pre-norm block that uses them.

Sources: Huang et al. 2016, arXiv 1603.09382 (stochastic depth); Touvron et al. 2021, arXiv 2103.17239, equation 4
(LayerScale); Dosovitskiy et al. 2021, arXiv 2010.11929, equations 2 and 3 (the block).

B batch, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cache import KVCache


class DropPath(nn.Module):
    """In training, zero a sample's whole branch with probability ``drop_prob``; scale the others to keep the mean."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"expected a drop path rate in [0, 1), got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.drop_prob == 0.0:
            return x
        kept = 1.0 - self.drop_prob
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor that starts at ``init_value``."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return x * self.gamma


class PreNormBlock(nn.Module):
    """``x + path(scale(attn(norm1(x))))``, then ``x + path(scale(mlp(norm2(x))))``.

    Args:
        attn: token mixer (B, N, C) -> (B, N, C); with ``context=`` it mixes that into the tokens it is given.
        mlp: channel mixer (B, N, C) -> (B, N, C).
        dim: width C.
        eps: epsilon of both norms.
        drop_path: rate of stochastic depth of both branches.
        init_values: starting value of LayerScale; None leaves it out.
        norm: makes a norm of a width and an epsilon.
    """

    def __init__(
        self,
        attn: nn.Module,
        mlp: nn.Module,
        dim: int,
        *,
        eps: float,
        drop_path: float = 0.0,
        init_values: float | None = None,
        norm: Callable[..., nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim, eps=eps)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim, eps=eps)
        self.mlp = mlp
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path2 = DropPath(drop_path)

    def forward(
        self, x: Tensor, first: int | None = None, *, causal: bool = False, cache: KVCache | None = None
    ) -> Tensor:
        """(B, N, C) -> (B, N, C).

        Args:
            x: tokens.
            first: give only so many of them, (B, first, C): the same numbers for less work.
            causal: a token sees itself and earlier ones.
            cache: what the attention has read before ``x``; it then holds ``x`` too.
        """
        normed = self.norm1(x)
        if first is not None:
            mixed = self.attn(normed[:, :first], context=normed)
        elif causal or cache is not None:
            mixed = self.attn(normed, causal=causal, cache=cache)
        else:
            mixed = self.attn(normed)
        x = x[:, :first] + self.drop_path1(self.ls1(mixed))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return one rate a block, growing evenly from 0 to ``rate``: the last block gets all of it."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]
