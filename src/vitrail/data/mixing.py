"""MixUp and CutMix on a finished batch, with soft targets.

Sources: MixUp - Zhang et al. 2018, arXiv 1710.09412; CutMix - Yun et al. 2019, arXiv 1905.04899. Image ``b`` is mixed
with image ``b - 1`` of its batch, which shuffling has made a random one.
Shapes: B batch, K classes, images (B, 3, H, W) float, targets (B, K) float32 with rows that sum to 1
(with several labels an image: each class in 0..1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from vitrail.errors import UsageError

from . import rng

_DRAWS = 5  # whether, which, lambda, centre y, centre x


@dataclass(frozen=True)
class Mix:
    """MixUp (Beta(``mixup_alpha``)) or CutMix (Beta(``cutmix_alpha``)), an alpha of 0 switches that one off.

    With ``prob`` a batch (``per_sample``: an image) is mixed; where both are on, CutMix comes with ``switch_prob``.
    ``label_smoothing`` is in the targets already: use plain cross entropy on them.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    per_sample: bool = False
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UsageError(f"expected two classes or more, got {self.num_classes}")
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or max(self.mixup_alpha, self.cutmix_alpha) == 0:
            raise UsageError(
                "expected mixup_alpha and cutmix_alpha >= 0 and one of them above 0, "
                f"got {self.mixup_alpha} and {self.cutmix_alpha}. mend: leave mixing out altogether"
            )
        if not (0 < self.prob <= 1 and 0 <= self.switch_prob <= 1 and 0 <= self.label_smoothing < 1):
            raise UsageError(
                "expected prob in (0, 1], switch_prob in [0, 1] and label_smoothing in [0, 1), "
                f"got {self.prob}, {self.switch_prob} and {self.label_smoothing}"
            )

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        keep: Tensor,
        *,
        own: Tensor | None = None,
        seed: int,
        epoch: int,
        batch_index: int,
        rows: NDArray[np.int64] | None = None,
        whole: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets (B, K). An image that could not be read (``keep`` False) touches no other.

        ``own`` (B, K) are the targets before mixing; None: the labels. Where the images are a part of a batch of
        ``whole``, ``rows`` (B,) are their places in it, and all but the first come out as if it had been mixed in one.
        """
        rows, whole = np.arange(len(labels)) if rows is None else rows, len(labels) if whole is None else whole
        size = (images.shape[-2], images.shape[-1])
        usable = (keep & keep.roll(1)).numpy(force=True)
        draws = rng_of(seed, epoch, batch_index, max(whole, int(rows.max()) + 1))
        chosen = draws[rows] if self.per_sample else draws[np.zeros(len(rows), dtype=np.int64)]
        share, boxes = self.plan(whole, size, usable, chosen)
        device = images.device
        partner = images.roll(1, 0)
        cut = torch.from_numpy(boxes).to(device)
        is_cut = boxes[:, 2] > 0
        lerp = np.where(is_cut, 1.0, share)
        if (lerp < 1).any():
            images = torch.lerp(partner, images, _column(lerp, device))
        if is_cut.any():
            rows, columns = torch.arange(size[0], device=device), torch.arange(size[1], device=device)
            tall = (rows >= cut[:, :1]) & (rows < (cut[:, :1] + cut[:, 2:3]))
            wide = (columns >= cut[:, 1:2]) & (columns < (cut[:, 1:2] + cut[:, 3:4]))
            images = torch.where((tall[:, :, None] & wide[:, None, :])[:, None], partner, images)
        return images, self.targets(labels, torch.from_numpy(share.astype(np.float32)).to(labels.device), own)

    def plan(
        self, batch: int, size: tuple[int, int], usable: NDArray[np.bool_], draws: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return each image's own share (B,) and its CutMix box (B, 4) top, left, height, width (0 high: none).

        ``draws`` (B, 5) holds the uniform numbers of each; ``batch`` is the size of the whole batch: one image
        alone has nobody to be mixed with.
        """
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cutmix = draws[:, 1] < self.switch_prob if both else np.full(batch, self.cutmix_alpha > 0)
        alpha = np.where(cutmix, self.cutmix_alpha, self.mixup_alpha)
        share = betaincinv(alpha, alpha, draws[:, 2])
        share = np.where(usable & (draws[:, 0] < self.prob) & (batch > 1), share, 1.0)
        height, width = size
        side = np.sqrt(1 - share) * cutmix
        tall, wide = np.rint(side * height), np.rint(side * width)
        top = np.floor(draws[:, 3] * height - tall / 2 + 0.5)
        left = np.floor(draws[:, 4] * width - wide / 2 + 0.5)
        bottom, right = np.clip(top + tall, 0, height), np.clip(left + wide, 0, width)
        top, left = np.clip(top, 0, height), np.clip(left, 0, width)
        boxes = np.stack([top, left, bottom - top, right - left], axis=1).astype(np.int64)
        boxes[(boxes[:, 2] == 0) | (boxes[:, 3] == 0)] = 0
        # A box cut off at the edge is smaller than it was meant to be: the labels follow what is seen.
        seen = 1 - boxes[:, 2] * boxes[:, 3] / (height * width)
        return np.where(cutmix, seen, share), boxes

    def targets(self, labels: Tensor, share: Tensor, own: Tensor | None = None) -> Tensor:
        """float32 (B, K): ``share`` of each image's own class (or of ``own``), the rest its partner's, smoothed.

        Of ``labels`` bool (B, K) each class is blended by itself; they are smoothed by their task alone.
        """
        if labels.ndim == 2:
            if self.label_smoothing:
                raise UsageError("label_smoothing of Mix is for one label an image; mend: label_smoothing=0")
            own = labels.float()
        off = self.label_smoothing / self.num_classes
        if own is None:
            own = torch.full((len(labels), self.num_classes), off, device=labels.device)
            own.scatter_(1, labels[:, None], 1 - self.label_smoothing + off)
        else:
            own = own * (1 - self.label_smoothing) + off
        return torch.lerp(own.roll(1, 0), own, share[:, None])


def rng_of(seed: int, epoch: int, batch_index: int, batch: int) -> NDArray[np.float64]:
    """(B, draws) for one batch: row 0 alone serves a whole batch, so it does not depend on the batch's size."""
    return rng.uniforms(seed, epoch, [batch_index], batch * _DRAWS, rng.MIX).reshape(batch, _DRAWS)


def _column(values: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]
