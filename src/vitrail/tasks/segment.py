"""Semantic segmentation: cross entropy of every labelled pixel, at the size of the masks.

Sources: Xiao et al. 2018, arXiv 1807.10221, and mmseg (cross entropy on logits resized to the mask, an auxiliary head
at 0.4 of Zhao et al. 2017, arXiv 1612.01105, section 3.3); Eigen and Fergus 2015, arXiv 1411.4734, section 6.3.2
(weights of classes: the median frequency over their own); Milletari et al. 2016, arXiv 1606.04797, section 3 (Dice).

The loss of an image is its sum over labelled pixels by the count of all of its pixels, so that a batch computed in
pieces has the gradient of the whole batch.
B batch, K classes, (h, w) logits, (H, W) masks; masks hold K or more where there is no class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vitrail.metrics.segmentation import SegmentationMetrics, confusion_of
from vitrail.nn.dense import resize_map
from vitrail.nn.sliding import slide

from .base import Losses
from .classify import mean_of_kept

NOTHING = -100
"""What cross entropy leaves out."""


class MaskedImages(Protocol):
    """The part of a batch this task reads (:class:`vitrail.data.masks.MaskBatch` has it)."""

    @property
    def images(self) -> Tensor:
        """(B, 3, h, w) normalised."""

    @property
    def masks(self) -> Sequence[Tensor]:
        """One uint8 (H, W) an image."""

    @property
    def keep(self) -> Tensor:
        """(B,) bool, False where the image could not be read."""


class Network(Protocol):
    """The part of a model this task calls beside ``model(images)``."""

    def training_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images -> logits (B, K, h, w), and those of an auxiliary head."""


@dataclass(frozen=True)
class Segmentation:
    """Of a batch: ``confusion`` int64 (B, K, K) of each image, rows true, and ``nll`` (B,), nats a labelled pixel."""

    confusion: Tensor
    nll: Tensor

    def rows(self, batch: MaskedImages) -> dict[str, Tensor]:
        """Return what is kept of each image: its pixel accuracy and its loss."""
        right = self.confusion.diagonal(dim1=1, dim2=2).sum(1)
        return {"accuracy": right / self.confusion.sum((1, 2)).clamp_min(1), "nll": self.nll}


class Segment:
    """Cross entropy of pixels, an auxiliary head, weights of classes, and the Dice loss beside it."""

    name = "segment"
    counted = "images"
    monitor = "miou"

    def __init__(
        self,
        num_classes: int,
        *,
        auxiliary_weight: float = 0.4,
        class_weights: ArrayLike | None = None,
        label_smoothing: float = 0.0,
        dice: float = 0.0,
        window: tuple[int, int] | None = None,
    ) -> None:
        """Set what is computed.

        Args:
            num_classes: K.
            auxiliary_weight: of the auxiliary head's loss, where the network has one.
            class_weights: (K,), what a pixel of each class counts in the cross entropy.
            label_smoothing: in [0, 1), the share of each target spread evenly over all classes.
            dice: weight of the Dice loss, one minus the overlap of each class an image shows; 0: none.
            window: (h, w): predict window by window (:mod:`vitrail.nn.sliding`), as large as the crops that were
                trained on; None: images whole.
        """
        if num_classes < 2:
            raise ValueError(f"expected num_classes >= 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label_smoothing in [0, 1), got {label_smoothing}")
        if auxiliary_weight < 0 or dice < 0:
            raise ValueError(f"expected weights of at least 0, got {auxiliary_weight} and {dice}")
        self.num_classes, self.auxiliary_weight, self.dice = num_classes, auxiliary_weight, dice
        self.label_smoothing, self.window = label_smoothing, window
        self.class_weights = None
        if class_weights is not None:
            self.class_weights = torch.from_numpy(np.asarray(class_weights, dtype=np.float32))
            if self.class_weights.shape != (num_classes,) or not bool((self.class_weights >= 0).all()):
                raise ValueError(f"expected class_weights of {num_classes} numbers >= 0, got {class_weights}")

    def step(self, model: nn.Module, batch: MaskedImages) -> Losses:
        """Return the mean loss over the kept images, under "loss"; its parts are named beside it."""
        masks = torch.stack(list(batch.masks))
        logits, auxiliary = cast(Network, model).training_logits(batch.images)
        parts = {"cross_entropy": self.cross_entropy(logits, masks, batch.keep)}
        total = parts["cross_entropy"]
        if auxiliary is not None:
            parts["auxiliary"] = self.cross_entropy(auxiliary, masks, batch.keep)
            total = total + self.auxiliary_weight * parts["auxiliary"]
        if self.dice:
            each = dice_loss(resize_map(logits.float(), _size(masks)), masks)
            parts["dice"] = mean_of_kept(each, batch.keep)
            total = total + self.dice * parts["dice"]
        return {"loss": total, **parts}

    def cross_entropy(self, logits: Tensor, masks: Tensor, keep: Tensor) -> Tensor:
        """Logits (B, K, h, w) and masks (B, H, W) -> the mean over the kept images."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device)
        target = masks.long()
        target = torch.where(target < self.num_classes, target, NOTHING)
        each = F.cross_entropy(
            resize_map(logits.float(), _size(masks)),
            target,
            weight=self.class_weights,
            ignore_index=NOTHING,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return mean_of_kept(each.mean((1, 2)), keep)

    def predict(self, model: nn.Module, batch: MaskedImages) -> Segmentation:
        """Answer every pixel of the masks: logits are resized to each mask's size."""
        with torch.no_grad():
            answers: Iterable[Tensor] = self._logits(model, batch.images)
        found, nll = [], []
        for one, mask in zip(answers, batch.masks, strict=True):
            whole = resize_map(one[None], _size(mask[None]))
            found.append(confusion_of(whole[0].argmax(0), mask, self.num_classes))
            target = mask.long()
            target = torch.where(target < self.num_classes, target, NOTHING)[None]
            lost = F.cross_entropy(whole, target, ignore_index=NOTHING, reduction="sum")
            nll.append(lost / found[-1].sum().clamp_min(1))
        return Segmentation(torch.stack(found), torch.stack(nll))

    def _logits(self, model: nn.Module, images: Tensor) -> Iterable[Tensor]:
        """Return the logits (K, h, w) of each image."""
        if self.window is None:
            whole: Tensor = model(images).float()
            return whole
        return [torch.cat([band for _, band in slide(model, image, self.window)], dim=1) for image in images]

    def metrics(self) -> SegmentMetrics:
        """Return a fresh accumulator over K classes."""
        return SegmentMetrics(self.num_classes)


def _size(masks: Tensor) -> tuple[int, int]:
    return masks.shape[1], masks.shape[2]


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits (B, K, H, W) and masks (B, H, W) -> one minus the mean overlap of the classes an image shows, (B,).

    The overlap of a class is ``2 Σ p t / (Σ p² + Σ t)`` over the labelled pixels, t being 1 where the class is.
    """
    count = logits.shape[1]
    known = masks < count
    target = F.one_hot(torch.where(known, masks, 0).long(), count).movedim(3, 1) * known[:, None]
    p = logits.softmax(1) * known[:, None]
    truth = target.sum((2, 3))
    overlap = 2 * (p * target).sum((2, 3)) / (p.square().sum((2, 3)) + truth).clamp_min(1)
    shown = truth > 0
    return 1 - (overlap * shown).sum(1) / shown.sum(1).clamp_min(1)


def median_frequency(pixels: ArrayLike, of_images: ArrayLike, most: float = 10.0) -> NDArray[np.float64]:
    """Return a weight for each class, (K,): the median of all classes' frequencies by its own, ``most`` at the most.

    Args:
        pixels: (K,) pixels of each class.
        of_images: (K,) labelled pixels of the images that show it; a class's frequency is the one by the other.
        most: a class that is hardly ever seen would rule the gradient.
    """
    own, there = np.asarray(pixels, dtype=np.float64), np.asarray(of_images, dtype=np.float64)
    seen = own > 0
    if not seen.any():
        raise ValueError("expected pixels of at least one class, got none")
    frequency = own[seen] / there[seen]
    weights = np.ones_like(own)
    weights[seen] = np.minimum(np.median(frequency) / frequency, most)
    return weights


class SegmentMetrics:
    """Gathers confusion matrices and losses of the images that could be read."""

    def __init__(self, num_classes: int) -> None:
        self.numbers = SegmentationMetrics(num_classes)
        self.images, self.nats = 0, 0.0

    def update(self, result: Segmentation, batch: MaskedImages) -> None:
        """Add a batch; images that could not be read are left out."""
        keep = batch.keep.to(result.nll.device)
        self.numbers.add(result.confusion[keep].sum(0))
        self.nats += float(result.nll[keep].double().sum())
        self.images += int(keep.sum())

    def compute(self) -> dict[str, float]:
        """Return miou, pixel_accuracy, mean_accuracy, pixels, loss (nats a pixel, the mean of the images), count."""
        return {**self.numbers.compute(), "loss": self.nats / max(1, self.images), "count": float(self.images)}

    def thresholds(self) -> None:
        """The class of the highest score is the answer."""

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the confusion matrix (rows true) and the table of classes."""
        return {"confusion": self.numbers.confusion.tolist(), "per_class": self.numbers.per_class(names)}
