"""Losses of matched queries: class, box, overlap, mask. Sums over a batch; what divides them is the caller's.

Sources: Carion et al. 2020, arXiv 2005.12872, section 3.1 (cross entropy with "no object" at a tenth, L1, generalised
IoU) and 4.3 (masks: focal and dice loss); Lin et al. 2017, arXiv 1708.02002, equation 5 (focal loss); Zhang et al.
2021, arXiv 2008.13367, equation 2 (varifocal: the class's score is to be the overlap).
B batch, Q queries, K classes, P pairs, M places for objects, (h, w) map of masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.data.boxes import cxcywh_to_xyxy, paired_giou, paired_iou

from .matching import ALPHA, GAMMA, Matches

NO_OBJECT = 0.1  # weight of "no object" in the cross entropy
VARIFOCAL_ALPHA = 0.75


def of_pairs(values: Tensor, matches: Matches) -> Tensor:
    """What (B, Q, ...) holds of each pair's query: (P, ...)."""
    return values[matches.image, matches.query]


def targets_of(values: Tensor, matches: Matches) -> Tensor:
    """What (B, M, ...) holds of each pair's object: (P, ...)."""
    return values[matches.image, matches.place]


def softmax_loss(logits: Tensor, labels: Tensor, matches: Matches, keep: Tensor) -> Tensor:
    """Sum of the cross entropy over queries, "no object" (the last class) counting :data:`NO_OBJECT`.

    Logits (B, Q, K), labels (B, M), keep (B,): images that count.
    """
    none = logits.shape[-1] - 1
    target = torch.full(logits.shape[:2], none, device=logits.device)
    target[matches.image, matches.query] = targets_of(labels, matches)
    weight = logits.new_ones(none + 1)
    weight[none] = NO_OBJECT
    each = F.cross_entropy(logits.transpose(1, 2), target, weight, reduction="none")
    return (each * keep[:, None]).sum()


def yes_or_no(logits: Tensor, labels: Tensor, matches: Matches) -> Tensor:
    """Targets (B, Q, K) of yes-or-no questions: 1 at the class of a matched query; one question is "is anything?"."""
    target = torch.zeros_like(logits)
    which = targets_of(labels, matches) if logits.shape[-1] > 1 else torch.zeros_like(matches.query)
    target[matches.image, matches.query, which] = 1.0
    return target


def focal_loss(logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Sum of the focal loss of logits (B, Q, K) against targets 0 or 1."""
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    prob = logits.sigmoid()
    right = prob * target + (1 - prob) * (1 - target)
    weight = ALPHA * target + (1 - ALPHA) * (1 - target)
    return (weight * (1 - right) ** GAMMA * each * keep[:, None, None]).sum()


def varifocal_loss(logits: Tensor, target: Tensor, quality: Tensor, keep: Tensor) -> Tensor:
    """Sum of the varifocal loss: where ``target`` (B, Q, K) is 1 the score is to be ``quality`` (B, Q), elsewhere 0."""
    score = target * quality[..., None]
    weight = VARIFOCAL_ALPHA * logits.detach().sigmoid() ** GAMMA * (1 - target) + score
    each = F.binary_cross_entropy_with_logits(logits, score, weight, reduction="none")
    return (each * keep[:, None, None]).sum()


def qualities(boxes: Tensor, targets: Tensor, matches: Matches) -> Tensor:
    """The overlap of each matched query with its object, (B, Q); 0 for the others. No gradient."""
    found = boxes.new_zeros(boxes.shape[:2])
    with torch.no_grad():
        mine, true = of_pairs(boxes, matches), targets_of(targets, matches)
        found[matches.image, matches.query] = paired_iou(cxcywh_to_xyxy(mine), cxcywh_to_xyxy(true)).clamp(min=0)
    return found


def box_losses(boxes: Tensor, targets: Tensor, matches: Matches) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of L1 and of 1 - generalised IoU: boxes (B, Q, 4), targets (B, M, 4), both centre form."""
    mine, true = of_pairs(boxes, matches), targets_of(targets, matches)
    overlap = paired_giou(cxcywh_to_xyxy(mine), cxcywh_to_xyxy(true))
    return (mine - true).abs().sum(), (1 - overlap).sum()


def mask_losses(masks: Tensor, targets: Tensor, matches: Matches) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of focal and dice loss: logits (B, Q, h, w) are resized to targets (B, M, H, W)."""
    mine = of_pairs(masks, matches)[:, None]
    if not len(mine):
        return mine.sum(), mine.sum()
    mine = F.interpolate(mine, size=targets.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
    true = targets_of(targets, matches).flatten(1).to(mine.dtype)
    each = F.binary_cross_entropy_with_logits(mine, true, reduction="none")
    prob = mine.sigmoid()
    right = prob * true + (1 - prob) * (1 - true)
    weight = ALPHA * true + (1 - ALPHA) * (1 - true)
    focal = (weight * (1 - right) ** GAMMA * each).mean(1).sum()
    dice = 1 - (2 * (prob * true).sum(1) + 1) / (prob.sum(1) + true.sum(1) + 1)
    return focal, dice.sum()
