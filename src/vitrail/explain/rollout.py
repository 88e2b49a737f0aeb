"""Attention rollout. Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3, equation 1.

A residual block passes its input on beside the attention, so layer l mixes tokens by ``0.5 * (A_l + I)``, rows
renormalised; the product over layers says how much of each input token reaches each output token.

B batch, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vitrail.errors import UsageError

HeadFusion = Literal["mean", "max", "min"]


def fuse_heads(attention: Tensor, head_fusion: HeadFusion = "mean") -> Tensor:
    """Reduce (B, H, N, M) weights over heads to (B, N, M)."""
    if head_fusion == "mean":
        return attention.mean(1)
    if head_fusion == "max":
        return attention.amax(1)
    if head_fusion == "min":
        return attention.amin(1)
    raise UsageError(f"expected head_fusion to be one of {get_args(HeadFusion)}, got {head_fusion!r}")


def drop_weakest(attention: Tensor, discard_ratio: float) -> Tensor:
    """Set the weakest ``discard_ratio`` of each (N, M) matrix to zero; ties at the threshold fall together."""
    if not 0 <= discard_ratio < 1:
        raise UsageError(f"expected discard_ratio in [0, 1), got {discard_ratio}")
    flat = attention.flatten(1)
    count = int(discard_ratio * flat.shape[1])
    if count == 0:
        return attention
    threshold = flat.kthvalue(count, dim=1).values[:, None, None]
    return attention.masked_fill(attention <= threshold, 0.0)


def rollout(attentions: Sequence[Tensor], *, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0) -> Tensor:
    """Multiply the layers' attention, residual included, from the first layer to the last.

    Args:
        attentions: (B, H, N, N) softmax weights of each layer, in the order the layers run.
        head_fusion: how the heads of a layer become one matrix.
        discard_ratio: share of the weakest fused weights set to zero in each layer, in [0, 1). The paper keeps all
            of them (0); 0.9 is common where maps look noisy.

    Returns (B, N, N): row i says how much of each input token is in output token i; rows sum to 1.
    """
    if not attentions:
        raise UsageError("expected the attention of at least one layer, got none")
    shapes = {tuple(a.shape[:1] + a.shape[2:]) for a in attentions}
    if len(shapes) > 1 or attentions[0].shape[-1] != attentions[0].shape[-2]:
        raise UsageError(
            f"expected (B, H, N, N) maps with one N in all layers, got {[tuple(a.shape) for a in attentions]}; "
            "rollout is defined for models whose every layer attends to all tokens"
        )
    identity = torch.eye(attentions[0].shape[-1], dtype=torch.float32, device=attentions[0].device)
    product = identity.expand(attentions[0].shape[0], -1, -1)
    for attention in attentions:
        mixed = drop_weakest(fuse_heads(attention.float(), head_fusion), discard_ratio)
        mixed = 0.5 * (mixed + identity)
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    return product
