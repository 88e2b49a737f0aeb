"""Losses of one image each.  B batch, K classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def binary_cross_entropy(
    logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, threshold: float | None = None
) -> Tensor:
    """Return the mean over the K classes of "is it this one?", (B,).

    Sources: Beyer et al. 2020, arXiv 2006.07159, section 3 (sigmoid loss on ImageNet); Wightman et al. 2021, arXiv
    2110.00476, section 3 (with mixed targets made whole: ``threshold``); Touvron et al. 2022, arXiv 2204.07118.

    Args:
        logits: (B, K) float.
        target: (B,) int64 labels, or (B, K) soft targets.
        label_smoothing: the share of each target spread evenly over the classes, after ``threshold``.
        threshold: targets above it count as 1, all others as 0; None leaves them as they are.
    """
    count = logits.shape[1]
    if target.ndim == 1:
        target = F.one_hot(target, count)
    soft = target.to(logits.dtype)
    if threshold is not None:
        soft = (soft > threshold).to(logits.dtype)
    soft = soft * (1 - label_smoothing) + label_smoothing / count
    loss: Tensor = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1)
    return loss
