"""What happens to an image and its mask alike: scale, crop, flip, colours; sizes to evaluate at; batches.

Source of the training recipe: mmseg's (random scale 0.5 to 2, crop without a class that covers nearly all of it, flip,
photometric distortion). All chance comes from the draws. Images are resized smoothly, masks to the nearest pixel; what
a crop lacks is filled up with the mean colour and is ignored.

B batch, H·W pixels of the image, (h, w) of the crop, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vitrail.errors import UsageError

from .augment import Normalize
from .coloring import ColorJitter
from .maskrules import IGNORED
from .masks import MaskBatch, Masked
from .resample import resize

Draws = NDArray[np.float64]
Size = tuple[int, int]
_TRIES = 5


@dataclass(frozen=True)
class Prepared:
    """A normalised image float32 (3, h, w), and the mask uint8 it is compared with."""

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TrainCrop:
    """Crops to train on.

    Attributes:
        size: (h, w) of the crop.
        normalize: as the network wants images.
        short_side: images are first brought to this shorter side; None: as they are.
        scale: (low, high): factor on that, drawn evenly on a logarithmic scale.
        hflip: chance of a left-right flip.
        jitter: brightness, contrast and colour; None: none.
        most: share of the crop that one class may cover before another place is tried, five in all.
    """

    size: Size
    normalize: Normalize
    short_side: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    hflip: float = 0.5
    jitter: ColorJitter | None = None
    most: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(f"expected scale as (low, high) above 0, got {self.scale}")
        if not 0 <= self.hflip <= 1 or not 0 < self.most <= 1:
            raise UsageError(f"expected hflip in 0..1 and most above 0, at most 1, got {self.hflip} and {self.most}")

    @property
    def draws(self) -> int:
        """Uniform numbers used by one sample."""
        return 2 + 2 * _TRIES + (self.jitter.draws if self.jitter else 0)

    def __call__(self, sample: Masked, draws: Draws) -> Prepared:
        """An image and its mask of any size -> both of the crop's."""
        low, high = self.scale
        factor = low * (high / low) ** draws[0] * _to_short_side(sample.mask, self.short_side)
        image, mask = self._cut(sample, factor, draws[2 : 2 + 2 * _TRIES].reshape(_TRIES, 2))
        if draws[1] < self.hflip:
            image, mask = image.flip(-1), mask.flip(-1)
        if self.jitter:
            image = self.jitter(image[None], draws[None, 2 + 2 * _TRIES :])[0]
        out = self.normalize(image[None])[0]
        missing = (0, self.size[1] - mask.shape[1], 0, self.size[0] - mask.shape[0])
        return Prepared(F.pad(out, missing), F.pad(mask, missing, value=IGNORED))

    def _cut(self, sample: Masked, factor: float, places: Draws) -> tuple[Tensor, Tensor]:
        """Cut what becomes the crop, or as much of it as there is, and resize it by ``factor``."""
        sides = sample.mask.shape
        taken = [max(1, min(n, round(out / factor))) for n, out in zip(sides, self.size, strict=True)]
        to = [max(1, min(out, round(n * factor))) for n, out in zip(taken, self.size, strict=True)]
        for place in places:
            top, left = (int(p * (n - t + 1)) for p, n, t in zip(place, sides, taken, strict=True))
            mask = sample.mask[top : top + taken[0], left : left + taken[1]]
            if self.most == 1 or _largest_share(mask) < self.most:
                break
        image = sample.image[:, top : top + taken[0], left : left + taken[1]]
        return resize(image, (to[0], to[1]), "bilinear"), resize_mask(mask, (to[0], to[1]))


def _to_short_side(mask: Tensor, short_side: int | None) -> float:
    return 1.0 if short_side is None else short_side / min(mask.shape)


def _largest_share(mask: Tensor) -> float:
    """Return the share of the labelled pixels that the commonest class has; 1 without any."""
    counts = torch.bincount(mask.flatten().int(), minlength=IGNORED + 1)[:IGNORED]
    return float(counts.max() / counts.sum()) if int(counts.sum()) else 1.0


def resize_mask(mask: Tensor, size: Size) -> Tensor:
    """Mask (H, W) -> (h, w), each pixel that of the nearest centre."""
    if tuple(mask.shape) == tuple(size):
        return mask
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long() for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[rows[:, None], columns[None]]


@dataclass(frozen=True)
class Whole:
    """The whole image, to evaluate on: its shorter side brought to ``short_side`` (None: as it is), the mask as it is.

    Where a network was trained on whole pictures and one answers are wanted for.
    """

    normalize: Normalize
    short_side: int | None = None

    draws = 0

    def __call__(self, sample: Masked, draws: Draws) -> Prepared:
        """An image and its mask -> the image at the size the network sees, and the mask at its own."""
        image = to_short_side(sample.image, self.short_side)
        return Prepared(self.normalize(image[None])[0], sample.mask)


def to_short_side(image: Tensor, short_side: int | None) -> Tensor:
    """Resize uint8 (3, H, W) so that its shorter side is ``short_side``; None leaves it as it is."""
    height, width = image.shape[1:]
    if short_side is None or short_side == min(height, width):
        return image
    factor = short_side / min(height, width)
    return resize(image, (max(1, round(height * factor)), max(1, round(width * factor))), "bilinear")


@dataclass(frozen=True)
class CollateMasks:
    """Make a batch: images of several sizes are filled up at the right and bottom with the mean colour.

    ``size`` is what stands for an image of a batch in which none could be read.
    """

    size: Size

    def __call__(self, found: Sequence[Prepared | None], indices: Tensor) -> MaskBatch:
        """Prepared samples (None: unreadable) and positions (B,) -> a batch."""
        real = [f for f in found if f is not None]
        height = max([f.image.shape[1] for f in real], default=self.size[0])
        width = max([f.image.shape[2] for f in real], default=self.size[1])
        images = torch.zeros(len(found), 3, height, width)
        for row, one in enumerate(found):
            if one is not None:
                images[row, :, : one.image.shape[1], : one.image.shape[2]] = one.image
        nothing = torch.full((height, width), IGNORED, dtype=torch.uint8)
        masks = tuple(nothing if one is None else one.mask for one in found)
        return MaskBatch(images, torch.tensor([one is not None for one in found]), indices, masks)
