"""From an image of any size to the size the model takes: crops for training and for evaluation, on uint8.

Sources: random resized crop - Szegedy et al. 2015 (arXiv 1409.4842, section 6), with torchvision's ten tries; padded
crop - He et al. 2016 (arXiv 1512.03385, section 4.2); evaluation crop - timm's ``crop_pct``.
A crop takes images and draws: row ``b`` of ``draws`` holds the uniform numbers of image ``b``, so a crop has no state.
Shapes: B batch, H x W input, h x w output, D draws an image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError

from .resample import SMALL, require_interpolation, resample, resize

Draws = NDArray[np.float64]
_TRIES = 10


class Crop(Protocol):
    """What the loader calls: images of one size in, images of ``size`` out."""

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of what comes out."""
        ...

    @property
    def draws(self) -> int:
        """Uniform numbers used by one image; 0 means that the crop is not random."""
        ...

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, 3, H, W) and (B, D) -> uint8 (B, 3, h, w)."""
        ...


@dataclass(frozen=True)
class TrainCrop:
    """Random resized crop: a box of random area (``scale``, share of the image) and aspect ``ratio``, resized."""

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _require_size(self.size)
        require_interpolation(self.interpolation)
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise UsageError(f"expected 0 < scale <= 1 and ratio > 0 as (low, high), got {self.scale} and {self.ratio}")

    @property
    def draws(self) -> int:
        return 2 * _TRIES + 2

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        boxes = self.boxes(height, width, draws)
        if max(height, width) <= SMALL:
            return resample(images, boxes, self.size, self.interpolation)
        cut = [
            resize(image[:, top : top + h, left : left + w], self.size, self.interpolation)
            for image, (top, left, h, w) in zip(images, boxes.tolist(), strict=True)
        ]
        return torch.stack(cut)

    def boxes(self, height: int, width: int, draws: Draws) -> NDArray[np.int64]:
        """int64 (B, 4) top, left, height, width; the largest centred box of a fair ratio where ten tries fail."""
        boxes, found = sample_boxes(height, width, draws, self.scale, self.ratio)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, max(1, round(height * ratio)))
        h = min(height, max(1, round(width / ratio)))
        boxes[~found] = ((height - h) // 2, (width - w) // 2, h, w)
        return boxes


@dataclass(frozen=True)
class PadCrop:
    """The crop of CIFAR: ``padding`` pixels on each side, then a box of the image's own size at a random place.

    ``mode`` is ``constant`` (black) or ``reflect``. Images of another size are resized and centre-cropped first.
    """

    size: tuple[int, int]
    padding: int = 4
    mode: str = "constant"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _require_size(self.size)
        require_interpolation(self.interpolation)
        if self.mode not in ("constant", "reflect"):
            raise UsageError(f"expected mode 'constant' or 'reflect', got {self.mode!r}")
        if not 0 < self.padding < min(self.size):
            raise UsageError(f"expected padding between 1 and {min(self.size) - 1} pixels, got {self.padding}")

    @property
    def draws(self) -> int:
        return 2

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        images = EvalCrop(self.size, 1.0, self.interpolation)(images, draws)
        edge = ((0, 0), (0, 0), (self.padding, self.padding), (self.padding, self.padding))
        padded = np.pad(images.numpy(force=True), edge, mode=self.mode)  # type: ignore[call-overload]
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=(2, 3))
        place = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64)
        cut = windows[np.arange(len(images)), :, place[:, 0], place[:, 1]]
        return torch.from_numpy(cut).to(images.device)


@dataclass(frozen=True)
class EvalCrop:
    """Resize so that the image just covers ``size / crop_pct``, then cut ``size`` out of the centre. Not random."""

    size: tuple[int, int]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _require_size(self.size)
        require_interpolation(self.interpolation)
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"expected crop_pct above 0 and at most 1, got {self.crop_pct}")

    @property
    def draws(self) -> int:
        return 0

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = self.resized(*images.shape[-2:])
        images = resize(images, (height, width), self.interpolation)
        top = round((height - self.size[0]) / 2)
        left = round((width - self.size[1]) / 2)
        return images[..., top : top + self.size[0], left : left + self.size[1]]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the whole image before the centre is cut out; the aspect ratio is kept."""
        target_h = max(self.size[0], math.floor(self.size[0] / self.crop_pct))
        target_w = max(self.size[1], math.floor(self.size[1] / self.crop_pct))
        if target_h * width >= target_w * height:  # the height decides
            return target_h, max(target_w, int(target_h * width / height))
        return max(target_h, int(target_w * height / width)), target_w


def crop_images(crop: Crop, images: Sequence[Tensor], draws: Draws) -> Tensor:
    """Crop images of any sizes: list of uint8 (3, H, W) -> uint8 (B, 3, h, w). Small ones of one size go together."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        # A large image is a group of its own: stacking would only copy it.
        groups[(*image.shape, i if max(image.shape) > SMALL else -1)].append(i)
    if len(groups) == 1:
        return crop(_stack(images), draws)
    out = torch.empty((len(images), 3, *crop.size), dtype=torch.uint8)
    for positions in groups.values():
        out[positions] = crop(_stack([images[i] for i in positions]), draws[positions])
    return out


def _stack(images: Sequence[Tensor]) -> Tensor:
    return images[0][None] if len(images) == 1 else torch.stack(list(images))


def sample_boxes(
    height: int, width: int, draws: Draws, scale: tuple[float, float], ratio: tuple[float, float], strict: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Boxes of random area (a share of the image, uniform) and aspect ratio (log-uniform) at a random place.

    ``draws`` is (B, 2 * tries + 2): areas, ratios, then top and left. Returns int64 (B, 4) and bool (B,), which is
    False where no try fitted (``strict``: had to be smaller than the image on both sides).
    """
    areas, ratios = draws[:, :_TRIES], draws[:, _TRIES : 2 * _TRIES]
    area = height * width * (scale[0] + areas * (scale[1] - scale[0]))
    aspect = np.exp(math.log(ratio[0]) + ratios * (math.log(ratio[1]) - math.log(ratio[0])))
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    slack = int(strict)
    fits = (w > 0) & (h > 0) & (w <= width - slack) & (h <= height - slack)
    found: NDArray[np.bool_] = np.any(fits, axis=1)
    first = fits.argmax(axis=1)
    every = np.arange(len(draws))
    h, w = np.where(found, h[every, first], 1), np.where(found, w[every, first], 1)
    top = (draws[:, 2 * _TRIES] * (height - h + 1)).astype(np.int64)
    left = (draws[:, 2 * _TRIES + 1] * (width - w + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1), found


def _require_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"expected a size (height, width) of positive whole numbers, got {size!r}")
