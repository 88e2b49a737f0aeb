"""Denoising queries: true boxes, moved and mislabelled, that the decoder sets right - or rejects.

Sources: Li et al. 2022, arXiv 2203.01305, section 4 (DN-DETR); Zhang et al. 2022, arXiv 2203.03605, section 3.3 (DINO:
contrastive, each object once moved a little, to be set right, and once moved far, to be rejected).
B batch, M places for objects, G groups, n objects of the fullest image; N = 2 n G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.data.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from vitrail.nn.detection import Noise

from .matching import Matches


@dataclass(frozen=True)
class Denoising:
    """How much noise: ``queries`` about so many a image; ``box`` share of half a side a corner moves at most (far ones
    up to twice that), ``label`` chance of another class.
    """

    queries: int = 100
    box: float = 1.0
    label: float = 0.25


def noised(labels: Tensor, boxes: Tensor, num_classes: int, how: Denoising) -> tuple[Noise, Matches] | None:
    """Make denoising queries of the objects of a batch, and pair the ones to set right with their objects.

    Args:
        labels: (B, M), -1 where there is no object.
        boxes: (B, M, 4), centre form, relative.
        num_classes: of the model.
        how: how much noise. Chance comes from torch's generator.

    Returns:
        The queries, G groups of n little and n far moved ones; None where there is no object in the batch.
    """
    labels, boxes = _packed(labels, boxes)
    count = labels.shape[1]
    if not count:
        return None
    groups = max(1, how.queries // (2 * count))
    keep = (labels >= 0).repeat(1, 2 * groups)
    classes = labels.clamp(min=0).repeat(1, 2 * groups)
    other = torch.randint(num_classes, classes.shape, device=labels.device)
    classes = torch.where(torch.rand(classes.shape, device=labels.device) < how.label, other, classes)
    far = torch.arange(2, device=labels.device).repeat_interleave(count).repeat(groups).bool()
    moved = moved_boxes(boxes.repeat(1, 2 * groups, 1), far, how.box)
    image, place = torch.nonzero(keep & ~far, as_tuple=True)
    return Noise(classes, moved, keep, groups), Matches(image, place, _place_of(labels, place % count, image))


def _packed(labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the places that no image of the batch uses; objects come first in each row."""
    count = int((labels >= 0).sum(1).max()) if len(labels) else 0
    return labels[:, :count], boxes[:, :count]


def _place_of(labels: Tensor, place: Tensor, image: Tensor) -> Tensor:
    assert bool((labels[image, place] >= 0).all()), "objects come first in their row"
    return place


def moved_boxes(boxes: Tensor, far: Tensor, strength: float) -> Tensor:
    """Move the corners of boxes (B, N, 4), centre form: each by a random share of ``strength`` times half the side,
    below 1 of it, or between 1 and 2 where ``far`` (N,) says so; what comes out lies in the image.
    """
    corners = cxcywh_to_xyxy(boxes)
    half = boxes[..., 2:].repeat(1, 1, 2) / 2
    share = torch.rand(corners.shape, device=boxes.device) + far[:, None].to(boxes.dtype)
    sign = torch.randint(2, corners.shape, device=boxes.device) * 2 - 1
    moved = (corners + sign * share * half * strength).clamp(0, 1)
    low, high = torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])
    return xyxy_to_cxcywh(torch.cat([low, high], -1))
