"""Figures of semantic segmentation, from one confusion matrix of all pixels.

Source: Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective", section 4.3 (intersection
over union of a class over all pixels of all images). A class that no mask shows has no figure and is left out of means;
mmseg and torchmetrics do the same where the class is not answered either.

K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def confusion_of(answer: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix int64 (K, K), rows true, of two maps of indices; truth of K or more is left out."""
    truth, answer = truth.flatten().long(), answer.flatten().long()
    known = truth < num_classes
    pairs = truth[known] * num_classes + answer[known]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


class SegmentationMetrics:
    """Pixel accuracy, mean accuracy and intersection over union of the classes, streaming: K² numbers."""

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"expected num_classes >= 1, got {num_classes}")
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, confusion: Tensor) -> None:
        """Add a matrix of :func:`confusion_of`."""
        if confusion.shape != self.confusion.shape:
            raise ValueError(f"expected {tuple(self.confusion.shape)}, got {tuple(confusion.shape)}")
        self.confusion += confusion.cpu()

    def compute(self) -> dict[str, float]:
        """Return miou, pixel_accuracy, mean_accuracy, all in 0..1, and pixels; means over the classes that occur."""
        rows = [row for row in self.per_class() if row["pixels"]]
        total = int(self.confusion.sum())
        if not total:
            raise ValueError("expected at least one pixel with a class, got none")
        return {
            "miou": sum(row["iou"] for row in rows) / len(rows),
            "pixel_accuracy": float(self.confusion.trace()) / total,
            "mean_accuracy": sum(row["accuracy"] for row in rows) / len(rows),
            "pixels": float(total),
        }

    def per_class(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return one row a class: iou, accuracy (recall), precision, 0 where undefined, pixels, its name if given."""
        hit = self.confusion.diagonal().double()
        truth, answered = self.confusion.sum(1).double(), self.confusion.sum(0).double()
        iou = hit / (truth + answered - hit).clamp_min(1)
        accuracy, precision = hit / truth.clamp_min(1), hit / answered.clamp_min(1)
        columns = zip(iou.tolist(), accuracy.tolist(), precision.tolist(), truth.long().tolist(), strict=True)
        rows: list[dict[str, Any]] = [{"iou": i, "accuracy": a, "precision": p, "pixels": n} for i, a, p, n in columns]
        return rows if names is None else [{"name": name, **row} for name, row in zip(names, rows, strict=True)]
