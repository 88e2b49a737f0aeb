"""Small batches of images with boxes, made for tests."""

from __future__ import annotations

from typing import Any

import torch

from vitrail.data.detection.batches import DetectionBatch
from vitrail.nn.detection import Detections

CLASSES = 5


def boxes(g: torch.Generator, *shape: int) -> torch.Tensor:
    """Random boxes (..., 4), centre form, inside the image."""
    size = 0.1 + 0.4 * torch.rand(*shape, 2, generator=g)
    centre = size / 2 + (1 - size) * torch.rand(*shape, 2, generator=g)
    return torch.cat([centre, size], -1)


def batch_of(counts: list[int], *, seed: int = 0, most: int = 4, keep: list[bool] | None = None) -> DetectionBatch:
    """A batch with so many objects on each image, at most ``most``."""
    g = torch.Generator().manual_seed(seed)
    total = len(counts)
    labels = torch.randint(CLASSES, (total, most), generator=g)
    for row, count in enumerate(counts):
        labels[row, count:] = -1
    found = boxes(g, total, most) * (labels >= 0)[..., None]
    kept = torch.tensor(keep or [True] * total)
    sizes = torch.tensor([[40, 60]] * total)
    corners = torch.cat([found[..., :2] - found[..., 2:] / 2, found[..., 2:]], -1).double()
    true = corners * torch.tensor([60.0, 40.0, 60.0, 40.0], dtype=torch.float64)
    return DetectionBatch(
        images=torch.randn(total, 3, 16, 24, generator=g),
        keep=kept,
        indices=torch.arange(total),
        pixels=torch.ones(total, 16, 24, dtype=torch.bool),
        labels=labels,
        boxes_cxcywh01=found,
        sizes=sizes,
        true_xywh=true,
        true_labels=labels.clone(),
        true_crowd=torch.zeros(total, most, dtype=torch.bool),
        true_area=true[..., 2] * true[..., 3],
        objects_an_image=sum(counts) / max(1, int(kept.sum())),
    )


def detections(layers: int, images: int, queries: int, classes: int, seed: int = 1, **more: Any) -> Detections:
    """What a network might say, with gradients."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, queries, classes, generator=g).requires_grad_()
    return Detections(logits, boxes(g, layers, images, queries).requires_grad_(), **more)
