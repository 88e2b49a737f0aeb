"""The stage that runs on whole batches, after the crop: flips, distortions, normalisation, random erasing.

Sources: RandAugment - see ``randaugment``; 3-Augment and colour jitter - see ``coloring``; random erasing - Zhong et
al. 2017, arXiv 1708.04896. No stage has state or touches a global generator: row ``b`` of ``draws`` holds the uniform
numbers of image ``b``. Works on any device.
Shapes: B batch, images (B, 3, H, W), uint8 before :class:`Normalize` and float32 after it, D draws an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError

from .coloring import ColorJitter, ThreeAugment
from .randaugment import RandAugment
from .transforms import sample_boxes

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Normalize:
    """uint8 to float32: (image / 255 - mean) / std, ``mean`` and ``std`` in 0..1 a channel, from the weights' card."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UsageError(f"expected three means and three positive stds, got {self.mean} and {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 3, H, W), contiguous."""
        mean, std = self._constants(images.device)
        return images.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)

    def undo(self, images: Tensor) -> Tensor:
        """float (B, 3, H, W) -> uint8 (B, 3, H, W), for pictures in reports."""
        mean, std = self._constants(images.device)
        return (images.float() * std + mean).round().clamp(0, 255).to(torch.uint8)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        both = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device) * 255
        return both[0, :, None, None], both[1, :, None, None]


@dataclass(frozen=True)
class RandomErasing:
    """With ``prob``, cover one box of an image (``area`` share, aspect ``ratio``) with noise or with the mean.

    ``mode``: ``pixel`` is standard normal noise, ``const`` zero (the mean colour, for normalised images).
    """

    prob: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mode: str = "pixel"

    def __post_init__(self) -> None:
        if (
            not 0 < self.prob <= 1
            or not 0 < self.area[0] <= self.area[1] <= 1
            or not 0 < self.ratio[0] <= self.ratio[1]
        ):
            raise UsageError(
                "expected prob and area (low, high) above 0 and at most 1, and ratio (low, high) above 0, "
                f"got {self.prob}, {self.area} and {self.ratio}"
            )
        if self.mode not in ("pixel", "const"):
            raise UsageError(f"expected mode 'pixel' or 'const', got {self.mode!r}")

    @property
    def draws(self) -> int:
        return 24  # whether, noise seed, and ten tries for a box

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """float (B, 3, H, W), changed in place and returned."""
        boxes, found = sample_boxes(
            images.shape[-2], images.shape[-1], draws[:, 2:24], self.area, self.ratio, strict=True
        )
        for i in np.flatnonzero(found & (draws[:, 0] < self.prob)):
            top, left, tall, wide = boxes[i].tolist()
            cover = images[i, :, top : top + tall, left : left + wide]
            if self.mode == "const":
                cover.zero_()
            else:
                # One generator an image, on the CPU: the noise is the same on every device.
                noise = torch.Generator().manual_seed(int(draws[i, 1] * 2**53))
                cover.copy_(torch.randn(cover.shape, generator=noise))
        return images


@dataclass(frozen=True)
class Augment:
    """Everything random that happens to a training batch after the crop, in order; parts left out cost nothing."""

    hflip: float = 0.5
    vflip: float = 0.0
    randaugment: RandAugment | None = None
    erasing: RandomErasing | None = None
    three: ThreeAugment | None = None
    jitter: ColorJitter | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.hflip <= 1 and 0 <= self.vflip <= 1):
            raise UsageError(f"expected flip chances between 0 and 1, got hflip={self.hflip} and vflip={self.vflip}")

    @property
    def draws(self) -> int:
        """Uniform numbers used by one image."""
        # the order here is that of the numbers, not of the work: what came later to this class draws last, so that
        # it moves nobody else's numbers
        return 2 + sum(part.draws for part in (self.randaugment, self.erasing, self.three, self.jitter) if part)

    def __call__(self, images: Tensor, draws: Draws, normalize: Normalize) -> Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 3, H, W), augmented and normalised. The input is not changed."""
        images = flip(images, draws[:, 0] < self.hflip, -1)
        images = flip(images, draws[:, 1] < self.vflip, -2)
        own, after = {}, 2
        for part in (self.randaugment, self.erasing, self.three, self.jitter):
            if part:
                own[part] = draws[:, after : after + part.draws]
                after += part.draws
        for distort in (self.randaugment, self.three, self.jitter):
            if distort:
                images = distort(images, own[distort])
        out = normalize(images)
        return self.erasing(out, own[self.erasing]) if self.erasing else out


def flip(images: Tensor, chosen: NDArray[np.bool_], axis: int) -> Tensor:
    """Mirror the chosen images of (B, 3, H, W) along an axis; the input is not changed."""
    if not chosen.any():
        return images
    where = torch.from_numpy(np.flatnonzero(chosen)).to(images.device)
    return images.index_copy(0, where, images.index_select(0, where).flip(axis))
