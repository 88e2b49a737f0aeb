"""Classification with any number of labels an image: each class is a question of yes or no.

Binary cross entropy with logits, meaned over classes and images. Asymmetric loss: Ridnik et al. 2021, arXiv 2009.14119,
section 2 (focusing of the negatives with gamma 4, their probability shifted by 0.05; positives as they are). Unequal
frequencies: each class is a problem of two classes, so weights and logit adjustment are those of :mod:`.imbalance`.
B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vitrail.errors import require_known
from vitrail.metrics.multilabel import MultiLabelMetrics

from .base import Losses
from .classify import LabelledImages, mean_of_kept
from .imbalance import BETA, class_weights

MONITORS = ("map", "micro_f1", "macro_f1")
LOSSES = ("bce", "asymmetric")
GAMMA, MARGIN = 4.0, 0.05


@dataclass(frozen=True)
class Labels:
    """Of a batch, the probability of each class by itself: ``scores`` (B, K) float32 in 0..1."""

    scores: Tensor

    def rows(self, batch: LabelledImages) -> dict[str, Tensor]:
        """Return what is kept of each image."""
        return {"labels": batch.labels, "scores": self.scores}


@dataclass(frozen=True)
class Balance:
    """What the loss is told of unequal frequencies; each is (K,) float32.

    ``yes`` and ``no`` weigh positives and negatives of each class; ``shift`` is added to the logits in training.
    """

    yes: Tensor
    no: Tensor
    shift: Tensor

    def to(self, device: torch.device) -> Balance:
        """Return it on another device."""
        return Balance(self.yes.to(device), self.no.to(device), self.shift.to(device))


def balance_of(counts: ArrayLike, images: int, *, kind: str = "none", beta: float = BETA, tau: float = 0.0) -> Balance:
    """Return the balance of classes with ``counts`` (K,) positives among ``images``.

    Each class is weighted as a problem of two classes: the mean weight over the images is 1 in every class. ``tau``
    times the log odds of a class is the shift of its logit.
    """
    yes = np.asarray(counts, dtype=np.float64)
    pairs = np.stack([images - yes, yes], axis=1)
    weights = np.array([class_weights(pair, kind, beta=beta) for pair in pairs])
    seen = np.maximum(pairs, 1)
    shift = tau * np.log(seen[:, 1] / seen[:, 0])
    return Balance(_tensor(weights[:, 1]), _tensor(weights[:, 0]), _tensor(shift))


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


class MultiLabel:
    """Binary cross entropy (or the asymmetric loss) over K classes, each by itself."""

    name = "multilabel"
    counted = "images"

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        base_rate: ArrayLike | None = None,
        balance: Balance | None = None,
        loss: str = "bce",
        monitor: str = "map",
        thresholds: Sequence[float] | None = None,
    ) -> None:
        """Set what is computed.

        Args:
            num_classes: K.
            label_smoothing: in [0, 1), how far each target is moved towards ``base_rate``.
            base_rate: (K,) share of images that have each class, default a half. Towards it a smoothed target keeps
                its mean: smoothing a rare class towards a half would teach that it is not rare.
            balance: weights and shifts for unequal frequencies.
            loss: of :data:`LOSSES`.
            monitor: the metric that chooses the best weights, of :data:`MONITORS`.
            thresholds: (K,), from which score on a class is present, for the metrics; default the best ones.
        """
        if num_classes < 1:
            raise ValueError(f"expected num_classes >= 1, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label_smoothing in [0, 1), got {label_smoothing}")
        require_known([monitor], MONITORS, "metric to monitor")
        require_known([loss], LOSSES, "loss")
        rate = np.full(num_classes, 0.5) if base_rate is None else np.asarray(base_rate, dtype=np.float64)
        if rate.shape != (num_classes,):
            raise ValueError(f"expected base_rate ({num_classes},), got {rate.shape}")
        self.num_classes, self.label_smoothing, self.monitor = num_classes, label_smoothing, monitor
        self.kind, self.balance, self.base_rate, self.thresholds = loss, balance, _tensor(rate), thresholds

    def step(self, model: nn.Module, batch: LabelledImages) -> Losses:
        """Return the mean loss over classes and kept images; both heads of a distilled model are named."""
        out = model(batch.images)
        if isinstance(out, tuple):
            heads = {name: self.loss(o, batch) for name, o in zip(("cls", "dist"), out, strict=True)}
            return {"loss": (heads["cls"] + heads["dist"]) / 2, **heads}
        return {"loss": self.loss(out, batch)}

    def loss(self, logits: Tensor, batch: LabelledImages) -> Tensor:
        """Return the mean loss of ``logits`` (B, K) over the kept images."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or batch.labels.shape != logits.shape:
            raise ValueError(
                f"expected logits and labels (B, {self.num_classes}), got {tuple(logits.shape)} and "
                f"{tuple(batch.labels.shape)}"
            )
        target = batch.labels.float() if batch.targets is None else batch.targets.float()
        logits = logits.float()
        if self.balance is not None:
            self.balance = self.balance.to(logits.device)
            logits = logits + self.balance.shift
        return mean_of_kept(self._each(logits, target).mean(1), batch.keep)

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each answer, (B, K); weights go by the target as it was before smoothing."""
        smooth = target
        if self.label_smoothing:
            self.base_rate = self.base_rate.to(logits.device)
            smooth = torch.lerp(target, self.base_rate.expand_as(target), self.label_smoothing)
        if self.kind == "asymmetric":
            each = asymmetric(logits, smooth)
        else:
            each = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return each if self.balance is None else each * torch.lerp(self.balance.no, self.balance.yes, target)

    def predict(self, model: nn.Module, batch: LabelledImages) -> Labels:
        """Return sigmoid scores (B, K) in float32. The model's mode (train or eval) is the caller's choice."""
        with torch.no_grad():
            out = model(batch.images)
        if isinstance(out, tuple):
            out = sum(o.float() for o in out) / len(out)
        return Labels(out.float().sigmoid())

    def metrics(self) -> LabelMetrics:
        """Return a fresh accumulator over K classes."""
        return LabelMetrics(MultiLabelMetrics(self.num_classes, thresholds=self.thresholds))


def asymmetric(logits: Tensor, target: Tensor, gamma: float = GAMMA, margin: float = MARGIN) -> Tensor:
    """Return the asymmetric loss of each answer, (B, K): -t log p - (1 - t) q^gamma log(1 - q), q = max(p - margin, 0).

    An easy negative (p below the margin) costs nothing; a hard one weighs more, the surer the mistake.
    """
    shifted = (logits.sigmoid() - margin).clamp_min(0)
    negative = -(shifted**gamma) * torch.log1p(-shifted)
    return -target * F.logsigmoid(logits) + (1 - target) * negative


class LabelMetrics:
    """Feeds :class:`MultiLabelMetrics` with the images that could be read."""

    def __init__(self, numbers: MultiLabelMetrics) -> None:
        self.numbers = numbers

    def update(self, result: Labels, batch: LabelledImages) -> None:
        """Add a batch; images that could not be read are left out."""
        keep = batch.keep.to(result.scores.device)
        self.numbers.update(result.scores[keep], batch.labels.to(keep.device)[keep])

    def compute(self) -> dict[str, float]:
        """Return map, F1 (micro, macro; at 0.5 and tuned), exact matches, loss and count."""
        return self.numbers.compute()

    def thresholds(self) -> list[float]:
        """Return the thresholds given to the task, or the best ones on the images seen."""
        return self.numbers.thresholds()

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the per-class table and the thresholds it is made at."""
        return {"per_class": self.numbers.per_class(names), "thresholds": self.thresholds()}
