"""Gradient-weighted attention relevance. Chefer, Gur & Wolf 2021, arXiv 2103.15679, equations 5 and 6.

Attention alone does not depend on the class asked about. Here each layer's map is weighted by the gradient of the
class score, negative products are dropped, heads are averaged, and the relevance runs through the residual stream:
``R <- R + mean_h(relu(dA * A)) R`` with R = I at the start.

B batch, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relevance(attentions: Sequence[Tensor], scores: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return each map's (B, N, M) gradient-weighted form and the (B, N, N) relevance of the square ones.

    Args:
        attentions: (B, H, N, N) maps of the layers in order, with their autograd history; a last map with another
            number of queries (the pooling attention) is weighted but not rolled in.
        scores: (B,) the class scores (logits) to explain, one an image.

    The identity that R starts from is taken out again: only what flows through attention is left.
    """
    gradients = torch.autograd.grad(scores.sum(), list(attentions))
    weighted = [
        (g.float() * a.detach().float()).clamp(min=0).mean(1) for a, g in zip(attentions, gradients, strict=True)
    ]
    identity = torch.eye(attentions[0].shape[-1], device=scores.device)
    total = identity.expand(scores.shape[0], -1, -1)
    for layer in weighted:
        if layer.shape[-1] == layer.shape[-2] == identity.shape[0]:
            total = total + layer @ total
    return weighted, total - identity
