"""Boxes in their forms, and how much two of them overlap: plain tensors in, plain tensors out.

Forms, always in the name: ``xyxy`` left, top, right, bottom; ``xywh`` left, top, width, height (COCO's files);
``cxcywh`` centre, width, height. A trailing ``01`` means shares of the image's sides, else pixels. Overlap: the usual
intersection over union; generalised: Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1.
N, M boxes; leading dimensions are free where nothing else is said.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre form -> (..., 4) corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre form."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) corner and size -> (..., 4) corners."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) corner and size."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def scale(boxes: Tensor, size: Tensor | tuple[int, int]) -> Tensor:
    """Multiply boxes (..., 4) of any form by (W, H, W, H); ``size`` is (H, W), or (..., 2) of each box."""
    size = torch.as_tensor(size, dtype=boxes.dtype, device=boxes.device)
    return boxes * size[..., [1, 0, 1, 0]]


def clip(boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) off at the borders of an image of ``size`` (H, W)."""
    high = boxes_xyxy.new_tensor([size[1], size[0], size[1], size[0]])
    return boxes_xyxy.clamp(min=0).minimum(high)


def area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...,); nothing where a box is turned inside out."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each of ``a`` (N, 4) with each of ``b`` (M, 4), corners: (N, M)."""
    return _overlap(a[:, None], b[None])[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of each of ``a`` (N, 4) with each of ``b`` (M, 4), corners: (N, M) in (-1, 1]."""
    return paired_giou(a[:, None], b[None])


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of ``a`` with ``b`` (..., 4), row by row: (...,)."""
    return _overlap(a, b)[0]


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of ``a`` with ``b`` (..., 4), row by row: (...,)."""
    found, union = _overlap(a, b)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return found - (hull - union) / hull.clamp_min(1e-12)


def repeated(boxes: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Tell which answers say again what a surer one of the same class said: greedy non-maximum suppression.

    Args:
        boxes: (B, k, 4), corners, the surest first.
        labels: (B, k).
        overlap: intersection over union from which on two boxes are of the same thing.

    Returns:
        (B, k) bool, True for those to leave out.
    """
    same = (paired_iou(boxes[:, :, None], boxes[:, None]) > overlap) & (labels[:, :, None] == labels[:, None])
    gone = torch.zeros_like(labels, dtype=torch.bool)
    for i in range(boxes.shape[1] - 1):
        gone[:, i + 1 :] |= same[:, i, i + 1 :] & ~gone[:, i, None]
    return gone


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and union of boxes that broadcast against each other; two empty boxes overlap by nothing."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    union = area(a) + area(b) - inner
    return inner / union.clamp_min(1e-12), union
