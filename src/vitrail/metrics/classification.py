"""Classification metrics in one pass: O(K^2) memory however many images are seen.

Calibration error: Guo et al. 2017, arXiv 1706.04599, section 3 (equal-width bins of the top score).
B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # the floor of a probability under the logarithm


class ClassificationMetrics:
    """Top-1, top-5, per-class precision/recall/F1, confusion matrix, calibration error and loss, streaming.

    Rows of :attr:`confusion` are the true classes, columns the predicted ones, as in scikit-learn. Equal scores
    are broken towards the lower index, so the numbers do not depend on the machine.
    """

    def __init__(self, num_classes: int, *, bins: int = 15) -> None:
        """Start empty. ``num_classes`` K >= 1; ``bins`` is the number of equal-width confidence bins."""
        if num_classes < 1 or bins < 1:
            raise ValueError(f"expected num_classes >= 1 and bins >= 1, got {num_classes} and {bins}")
        self.num_classes, self.bins = num_classes, bins
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._top5 = 0
        self._log_loss = 0.0
        self._bin_count = torch.zeros(bins, dtype=torch.float64)
        self._bin_hits = torch.zeros(bins, dtype=torch.float64)
        self._bin_score = torch.zeros(bins, dtype=torch.float64)

    def __len__(self) -> int:
        return int(self.confusion.sum())

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: ``scores`` (B, K) probabilities, ``labels`` (B,) integers in [0, K)."""
        if scores.ndim != 2 or scores.shape[1] != self.num_classes or labels.shape != scores.shape[:1]:
            raise ValueError(
                f"expected scores (B, {self.num_classes}) and labels (B,), "
                f"got {tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        if not len(labels):
            return
        scores, labels = scores.detach().double().cpu(), labels.detach().long().cpu()
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise ValueError(f"expected labels in [0, {self.num_classes}), got {labels.min()} to {labels.max()}")
        confidence, guess = scores.max(1)
        hit = guess == labels
        self.confusion += torch.bincount(labels * self.num_classes + guess, minlength=self.num_classes**2).view_as(
            self.confusion
        )
        own = scores.gather(1, labels[:, None])
        index = torch.arange(self.num_classes)
        ahead = (scores > own) | ((scores == own) & (index < labels[:, None]))
        self._top5 += int((ahead.sum(1) < 5).sum())
        self._log_loss -= float(own.clamp_min(TINY).log().sum())
        bin_ = (confidence * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)  # (lower, upper]
        self._bin_count += torch.bincount(bin_, minlength=self.bins)
        self._bin_hits += torch.bincount(bin_, hit.double(), minlength=self.bins)
        self._bin_score += torch.bincount(bin_, confidence, minlength=self.bins)

    def compute(self) -> dict[str, float]:
        """Return the numbers of the whole set, all in 0..1 except ``loss`` (nats) and ``count``.

        ``top5`` counts a hit among the five best of K, which for K <= 5 is every image. A class without any image
        is left out of the macro means, as it has no recall; ``macro_recall`` is also called balanced accuracy.
        """
        n = len(self)
        if n == 0:
            raise ValueError("expected at least one image, got none: call update() first")
        rows = [row for row in self.per_class() if row["support"]]
        return {
            "top1": float(self.confusion.trace()) / n,
            "top5": self._top5 / n,
            "loss": self._log_loss / n,
            "macro_precision": sum(row["precision"] for row in rows) / len(rows),
            "macro_recall": sum(row["recall"] for row in rows) / len(rows),
            "macro_f1": sum(row["f1"] for row in rows) / len(rows),
            "ece": self.calibration_error(),
            "count": float(n),
        }

    def per_class(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return one row a class: precision, recall, f1 (0 where undefined), support, and its name if given."""
        true = self.confusion.diagonal().double()
        predicted, support = self.confusion.sum(0).double(), self.confusion.sum(1).double()
        precision = torch.where(predicted > 0, true / predicted.clamp_min(1), 0.0)
        recall = torch.where(support > 0, true / support.clamp_min(1), 0.0)
        total = predicted + support
        f1 = torch.where(total > 0, 2 * true / total.clamp_min(1), 0.0)
        columns = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.long().tolist(), strict=True)
        rows: list[dict[str, Any]] = [{"precision": p, "recall": r, "f1": f, "support": s} for p, r, f, s in columns]
        if names is not None:
            rows = [{"name": name, **row} for name, row in zip(names, rows, strict=True)]
        return rows

    def calibration_error(self) -> float:
        """Return the expected calibration error: |accuracy - confidence| over the bins, weighted by their size."""
        return float((self._bin_hits - self._bin_score).abs().sum() / self._bin_count.sum().clamp_min(1))

    def reliability(self) -> list[dict[str, float]]:
        """Return, for each bin of the top score, its range, count, mean confidence and accuracy (0 if empty)."""
        count = self._bin_count.clamp_min(1)
        confidence, accuracy = (self._bin_score / count).tolist(), (self._bin_hits / count).tolist()
        return [
            {
                "low": i / self.bins,
                "high": (i + 1) / self.bins,
                "count": float(self._bin_count[i]),
                "confidence": confidence[i],
                "accuracy": accuracy[i],
            }
            for i in range(self.bins)
        ]
