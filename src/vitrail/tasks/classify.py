"""Image classification: one label an image.

Soft targets and label smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7. Two heads (class and distillation
token): Touvron et al. 2021, arXiv 2012.12877, section 4, trained here without a teacher; with one: ``distil``.
Weights and shifts for unequal classes: :mod:`.imbalance`.
B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vitrail.errors import require_known
from vitrail.metrics.classification import ClassificationMetrics

from .base import Losses
from .losses import binary_cross_entropy


class LabelledImages(Protocol):
    """The part of a data batch this task reads (``vitrail.data.loader.Batch`` has it)."""

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W) normalised."""

    @property
    def labels(self) -> Tensor:
        """(B,) int64."""

    @property
    def targets(self) -> Tensor | None:
        """(B, K) soft targets of mixed images, or None."""

    @property
    def keep(self) -> Tensor:
        """(B,) bool, False where the image could not be read."""


@dataclass(frozen=True)
class Classification:
    """Class probabilities of a batch: ``scores`` (B, K) float32, rows sum to 1."""

    scores: Tensor

    def rows(self, batch: LabelledImages) -> dict[str, Tensor]:
        """Return what is kept of each image."""
        return {"labels": batch.labels, "scores": self.scores}

    def top(self, k: int = 5) -> tuple[Tensor, Tensor]:
        """Return the ``k`` best scores and their class indices, both (B, min(k, K)), best first."""
        best, index = self.scores.topk(min(k, self.scores.shape[1]), dim=1)
        return best, index


MONITORS = ("top1", "macro_recall", "macro_f1")


class Classify:
    """Cross entropy (or one yes-or-no question a class) over one label an image, with soft targets and smoothing."""

    name = "classify"
    counted = "images"

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        loss: Literal["ce", "bce"] = "ce",
        bce_threshold: float | None = None,
        class_weights: ArrayLike | None = None,
        logit_shift: ArrayLike | None = None,
        monitor: str = "top1",
    ) -> None:
        """Set what is computed.

        Args:
            num_classes: K.
            label_smoothing: in [0, 1), the share of each target spread evenly over all K classes.
            loss: "ce" is cross entropy, "bce" :func:`~vitrail.tasks.losses.binary_cross_entropy`.
            bce_threshold: the latter's ``threshold``.
            class_weights: (K,), what an image of each class counts in the loss; one mixed from two classes counts the
                mean of both. Smoothing changes no weight.
            logit_shift: (K,), added to the logits in training only (tau times the log prior: logit adjustment).
            monitor: the metric that chooses the best weights, of :data:`MONITORS`.
        """
        if num_classes < 1:
            raise ValueError(f"expected num_classes >= 1, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label_smoothing in [0, 1), got {label_smoothing}")
        require_known([monitor], MONITORS, "metric to monitor")
        if loss not in ("ce", "bce"):
            raise ValueError(f"expected loss 'ce' or 'bce', got {loss!r}")
        if loss != "bce" and bce_threshold is not None:
            raise ValueError(f"bce_threshold has no effect with loss={loss!r}; mend: leave it out")
        if loss == "bce" and logit_shift is not None:
            raise ValueError("logit_shift is for loss 'ce', where the classes compete; mend: leave it out")
        self.num_classes, self.label_smoothing, self.monitor = num_classes, label_smoothing, monitor
        self.loss_kind, self.bce_threshold = loss, bce_threshold
        self.class_weights = _vector(class_weights, num_classes, "class_weights")
        self.logit_shift = _vector(logit_shift, num_classes, "logit_shift")

    def step(self, model: nn.Module, batch: LabelledImages) -> Losses:
        """Return the mean cross entropy over the kept images; both heads of a distilled model are named."""
        out = model(batch.images)
        if isinstance(out, tuple):
            heads = {name: self.loss(o, batch) for name, o in zip(("cls", "dist"), out, strict=True)}
            return {"loss": (heads["cls"] + heads["dist"]) / 2, **heads}
        return {"loss": self.loss(out, batch)}

    def loss(self, logits: Tensor, batch: LabelledImages) -> Tensor:
        """Return the mean cross entropy of ``logits`` (B, K) over the kept images."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"expected logits (B, {self.num_classes}), got {tuple(logits.shape)}")
        target = batch.labels if batch.targets is None else batch.targets.float()
        logits = logits.float()
        if self.logit_shift is not None:
            self.logit_shift = self.logit_shift.to(logits.device)
            logits = logits + self.logit_shift
        each = self._each(logits, target)
        if self.class_weights is not None:
            self.class_weights = weights = self.class_weights.to(logits.device)
            each = each * (weights[target] if batch.targets is None else target @ weights)
        return mean_of_kept(each, batch.keep)

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each image, (B,)."""
        smooth = self.label_smoothing
        if self.loss_kind == "bce":
            return binary_cross_entropy(logits, target, label_smoothing=smooth, threshold=self.bce_threshold)
        return F.cross_entropy(logits, target, label_smoothing=smooth, reduction="none")

    def predict(self, model: nn.Module, batch: LabelledImages) -> Classification:
        """Return softmax scores (B, K) in float32. The model's mode (train or eval) is the caller's choice."""
        with torch.no_grad():
            out = model(batch.images)
        if isinstance(out, tuple):
            out = sum(o.float() for o in out) / len(out)
        return Classification(out.float().softmax(1))

    def metrics(self) -> ClassifyMetrics:
        """Return a fresh accumulator over K classes."""
        return ClassifyMetrics(self.num_classes)


def _vector(values: ArrayLike | None, count: int, what: str) -> Tensor | None:
    if values is None:
        return None
    found = torch.from_numpy(np.asarray(values, dtype=np.float32))
    if found.shape != (count,) or not bool(found.isfinite().all()):
        raise ValueError(f"expected {what} of {count} finite numbers, got {found.tolist()}")
    return found


def mean_of_kept(each: Tensor, keep: Tensor) -> Tensor:
    """Return the mean of ``each`` (B,) where ``keep`` (B,) is True; 0 where nothing is kept."""
    # what stands in the place of an image that could not be read must reach neither the mean nor the gradient
    kept = keep.to(each.device)
    return torch.where(kept, each, 0.0).sum() / kept.sum().clamp_min(1)


class ClassifyMetrics:
    """Feeds :class:`ClassificationMetrics` with the images that could be read."""

    def __init__(self, num_classes: int) -> None:
        self.numbers = ClassificationMetrics(num_classes)

    def update(self, result: Classification, batch: LabelledImages) -> None:
        """Add a batch; images that could not be read are left out."""
        keep = batch.keep.to(result.scores.device)
        self.numbers.update(result.scores[keep], batch.labels.to(keep.device)[keep])

    def compute(self) -> dict[str, float]:
        """Return top1, top5, loss, the macro means, calibration error and count."""
        return self.numbers.compute()

    def thresholds(self) -> None:
        """The class of the highest score is the answer."""

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the confusion matrix (rows true), the per-class table and the reliability bins."""
        return {
            "confusion": self.numbers.confusion.tolist(),
            "per_class": self.numbers.per_class(names),
            "reliability": self.numbers.reliability(),
        }
