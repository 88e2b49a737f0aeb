"""Attention: one door to the softmax, and one module for every use of it.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2 (equation 1, multi-head attention).

B batch, W windows, N queries, M keys, C width, H heads, D width of one head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import KVCache
from .dropout import Dropout
from .fused import Linear, linear
from .shortcuts import as_made, at_once

MOST_WEIGHTS = 2**27  # weights of one call that may be held for speed: 256 MiB in bf16
SHORT = 144  # tokens up to which the fused kernel reads views as fast as it would copies
FEW = 8  # queries that do not repay a copy of the keys: those of a step

Bias = Tensor | Callable[[Tensor], Tensor]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    tape: list[Tensor] | None = None,
) -> Tensor:
    """Return ``softmax(q kᵀ · scale + bias) v``: the only caller of the fused kernel in Vitrail.

    Args:
        q: queries (B, H, N, D), or (B, W, H, N, D) in windows; so with all that follows.
        k: keys (B, H, M, D).
        v: values (B, H, M, D).
        bias: added to the scores before the softmax; broadcasts to (B, H, N, M), in windows from five dimensions.
        keep: bool, True where a key may be attended: (B, M), (B, N, M) or broadcasting to (B, H, N, M).
        causal: a query sees its own key and earlier ones. The last query is aligned with the last key, so that
            N new queries may follow M - N cached keys.
        dropout_p: share of the weights that is dropped.
        scale: factor on the scores; default ``D ** -0.5``.
        tape: if a list, the weights (B, H, N, M) are computed explicitly and appended to it; same result.

    Returns:
        (B, H, N, D). A query whose keys are all masked gives zeros.

    Raises:
        ValueError: ``causal`` with more queries than keys, or a ``keep`` that is not bool.
    """
    products = tape is not None or _products_are_faster(q, k, bias)
    long = products or k.shape[-2] > SHORT
    if q.device.type == "cpu" and not torch.compiler.is_compiling() and long and q.shape[-2] > FEW:
        # the kernels are slower on views of one matrix; but few queries read their cached keys once, as they lie
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if causal and q.shape[-2] > k.shape[-2]:
        raise ValueError(f"causal attention expected at most {k.shape[-2]} queries (one a key), got {q.shape[-2]}")
    if not products and causal and bias is None and keep is None and q.shape[-2] == k.shape[-2]:
        # the one masked form that the fused kernels know without a mask
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True, scale=scale)
    keep = _merge_causal(_four_dims(keep), q.shape[-2], k.shape[-2], q.device) if causal else _four_dims(keep)
    empty = None if keep is None else ~keep.any(-1, keepdim=True)
    mask = bias
    if keep is not None and empty is not None:
        keep = keep | empty  # an empty row attends everywhere and is zeroed below: no kernel ever sees it
        mask = keep if bias is None else bias.masked_fill(~keep, float("-inf"))
    if not products:
        out = _fused(q, k, v, mask, dropout_p, scale)
    else:
        weights = _weights(q, k, mask, scale)
        if tape is not None:
            weights = weights if empty is None else weights.masked_fill(empty, 0.0)
            tape.append(weights)  # the very tensor that is used: gradients are asked of it
        out = F.dropout(weights, dropout_p, training=dropout_p > 0.0) @ v
    return out if empty is None else out.masked_fill(empty, 0.0)


def _products_are_faster(q: Tensor, k: Tensor, bias: Tensor | None) -> bool:
    """Whether plain products beat the fused kernel here.

    On a CPU in bf16 the fused kernel's backward runs at a few percent of the machine's matrix rate; two products and a
    softmax take a third to two thirds of its time (docs/benchmarks/speed.md), for B·H·N·M weights of memory, which is
    bounded here. A bias that is learned has no fused backward there at all. Compiled and exported graphs keep the fused
    kernel.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    return (learned or q.dtype == torch.bfloat16) and q.shape[:-1].numel() * k.shape[-2] <= MOST_WEIGHTS


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, scale: float | None) -> Tensor:
    """Call the fused kernel, which knows four dimensions."""
    if q.ndim == 4:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        # an exported graph must not build on the memory order of one kernel's results: others replace it
        return out.clone(memory_format=torch.contiguous_format) if torch.compiler.is_exporting() else out
    if mask is None or mask.shape[:-3].numel() == 1:  # windows alike: one batch of all
        flat = None if mask is None else mask.reshape(-1, *mask.shape[-3:])
        out = _fused(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), flat, dropout_p, scale)
        return out.view(q.shape[0], q.shape[1], *out.shape[1:])
    if q.device.type == "cpu" and at_once() and len(q):  # masks stay in the cache, nothing is copied
        masks = mask.expand(len(q), *mask.shape[1:])
        samples = [_fused(*parts, dropout_p, scale).transpose(1, 2) for parts in zip(q, k, v, masks, strict=True)]
        return torch.stack(samples).transpose(2, 3)  # in the memory order of the kernel's own results
    heads = mask.expand(-1, q.shape[1], q.shape[2], -1, -1).flatten(1, 2)  # windows as heads: any batch
    out = _fused(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), heads, dropout_p, scale)
    return out.view(q.shape)


def _four_dims(keep: Tensor | None) -> Tensor | None:
    if keep is None:
        return None
    if keep.dtype != torch.bool:
        raise ValueError(f"expected keep to be bool (True where a key may be attended), got {keep.dtype}")
    if keep.ndim == 2:
        return keep[:, None, None, :]
    return keep[:, None] if keep.ndim == 3 else keep


def _merge_causal(keep: Tensor | None, n: int, m: int, device: torch.device) -> Tensor | None:
    if n == 1:
        return keep
    seen = torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)
    return seen[None, None] if keep is None else keep & seen


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return the softmax weights (B, H, N, M); a row of nothing but -inf gives zeros, as the fused kernel does."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    if mask is None:
        return scores.softmax(-1)
    masked = ~mask if mask.dtype == torch.bool else mask == float("-inf")
    dead = masked.all(-1, keepdim=True)
    scores = scores.masked_fill(masked, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if not torch.compiler.is_compiling() and not bool(dead.any()):  # as a rule: spare the scores two passes
        return scores.softmax(-1)
    return scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)


class Attention(nn.Module):
    """Multi-head attention: self, cross, causal, biased and cached.

    ``attn(x)`` self-attention · ``attn(x, causal=True, cache=cache)`` decoder · ``attn(x, context=reduced)`` cross ·
    ``attn(x, bias=table)`` relative positions · ``attn(x + q_pos, context=memory, keys=memory + k_pos)`` DETR.

    The projections of q, k and v are one matrix (3 · inner, C), rows in the order q, k, v, then head, then channel:
    self-attention is one product; cross-attention slices views of it.

    Args:
        dim: width C of the tokens.
        num_heads: number of heads H; must divide ``inner_dim``.
        inner_dim: width of all heads together; default ``dim``.
        out_dim: width of the result; default ``dim``.
        qkv_bias: whether the projections of q, k and v have a bias.
        proj_bias: whether the output projection has one.
        attn_drop: dropout on the attention weights.
        proj_drop: dropout after the output projection.

    Attributes:
        tape: None (fused kernel), or a list to which each call appends its weights (B, H, N, M).
            :func:`vitrail.explain.record` sets it.
    """

    tape: list[Tensor] | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        inner_dim: int | None = None,
        out_dim: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        inner = dim if inner_dim is None else inner_dim
        if inner % num_heads:
            raise ValueError(f"expected num_heads to divide the width {inner}, got {num_heads}")
        self.num_heads = num_heads
        self.inner_dim = inner
        self.attn_drop = attn_drop
        self.tape = None
        self.qkv = Linear(dim, 3 * inner, bias=qkv_bias)
        self.proj = Linear(inner, dim if out_dim is None else out_dim, bias=proj_bias)
        self.proj_drop = Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        bias: Bias | None = None,
        keep: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Attend from ``x`` (B, N, C) to itself or to ``context`` (B, M, C); returns (B, N, C), or (B, N, out_dim).

        All of them may have windows as their second dimension, (B, W, N, C), and the bias then too.

        Args:
            x: tokens the queries are made of.
            context: tokens the values (and keys) are made of; default ``x``.
            keys: tokens the keys are made of; default ``context``.
            bias: added to the scores, (B, H, N, M) or broadcasting to it; or a function of q (B, H, N, D).
            keep: see :func:`attend`.
            causal: see :func:`attend`.
            cache: self-attention appends its keys and values; cross-attention fills it once and then reads it.
        """
        q, k, v = self._project(x, context, keys, cache)
        out = attend(
            q,
            k,
            v,
            bias=bias(q) if callable(bias) else bias,
            keep=keep,
            causal=causal,
            dropout_p=self.attn_drop if self.training else 0.0,
            tape=self.tape,
        )
        mixed: Tensor = self.proj_drop(self.proj(out.transpose(-3, -2).flatten(-2)))
        return mixed

    def _project(
        self, x: Tensor, context: Tensor | None, keys: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, H, N, D), k and v (B, H, M, D)."""
        if context is None and keys is None:
            q, k, v = self._split(self.qkv(x), 3)
            return (q, k, v) if cache is None else (q, *cache.append(k, v))
        if cache is not None and cache.filled:
            return (self._split(self._part(x, 0, 1), 1)[0], *cache.read())
        context = x if context is None else context
        if keys is None:
            q = self._split(self._part(x, 0, 1), 1)[0]
            k, v = self._split(self._part(context, 1, 3), 2)
        elif keys is x:
            q, k = self._split(self._part(x, 0, 2), 2)
            v = self._split(self._part(context, 2, 3), 1)[0]
        else:
            q, k, v = (self._split(self._part(t, i, i + 1), 1)[0] for i, t in enumerate((x, keys, context)))
        return (q, k, v) if cache is None else (q, *cache.append(k, v))

    def _part(self, x: Tensor, first: int, last: int) -> Tensor:
        """Project ``x`` with the rows of q (0), k (1), v (2) from ``first`` up to ``last``."""
        rows = slice(first * self.inner_dim, last * self.inner_dim)
        if not as_made(self.qkv, Linear, nn.Linear):
            whole: Tensor = self.qkv(x)
            return whole[..., rows]
        return linear(x, self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows])

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, N, parts · H · D) -> ``parts`` views (B, H, N, D)."""
        width = self.inner_dim // self.num_heads
        heads = x.view(*x.shape[:-1], parts, self.num_heads, width).transpose(-4, -2)  # (B, H, parts, N, D)
        return heads.unbind(-3)
