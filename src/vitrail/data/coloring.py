"""Colour jitter, and 3-Augment: grey, solarize or blur.

Sources: 3-Augment - Touvron et al. 2022 (DeiT III), arXiv 2204.07118, section 3; colour jitter - Howard 2013, arXiv
1312.5402, section 2, with the factors of torchvision. Works on any device; all chance comes from the draws.
Shapes: B batch, k images that drew one operation, (B, 3, H, W) uint8, D draws an image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError

from .randaugment import OPERATIONS, blend, luma, solarize

Draws = NDArray[np.float64]
_JITTERED = np.array([OPERATIONS.index(name) for name in ("brightness", "contrast", "color")])
_SEQUENCES = np.array(list(itertools.permutations(range(3))))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and colour, each by a factor in [1 - ``strength``, 1 + ``strength``], in random sequence."""

    strength: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UsageError(f"expected strength above 0 and at most 1, got {self.strength}")

    @property
    def draws(self) -> int:
        """Uniform numbers used by one image."""
        return 4  # three factors, the sequence

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, 3, H, W) and (B, D) -> uint8 (B, 3, H, W), a new tensor."""
        factors = 1 + self.strength * (2 * draws[:, :3] - 1)
        sequences = _SEQUENCES[(draws[:, 3] * len(_SEQUENCES)).astype(np.int64)]
        for which in sequences.T:
            images = blend(images, _JITTERED[which], factors[np.arange(len(which)), which])
        return images


@dataclass(frozen=True)
class ThreeAugment:
    """One of three, with equal chance: to grey, solarize at half brightness, Gaussian blur of ``sigma`` pixels."""

    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise UsageError(f"expected sigma above 0 as (low, high), got {self.sigma}")

    @property
    def draws(self) -> int:
        """Uniform numbers used by one image."""
        return 2  # which, how blurred

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, 3, H, W) and (B, D) -> uint8 (B, 3, H, W), a new tensor."""
        images, which = images.clone(memory_format=torch.contiguous_format), (draws[:, 0] * 3).astype(np.int64)
        low, high = self.sigma
        for kind in np.unique(which):
            chosen = np.flatnonzero(which == kind)
            where = torch.from_numpy(chosen).to(images.device)
            some = images.index_select(0, where)
            if kind == 0:
                images[where] = luma(some.float()).to(torch.uint8).expand_as(some)
            elif kind == 1:
                images[where] = solarize(some, np.full(len(chosen), 128.0))
            else:
                images[where] = blur(some, low + (high - low) * draws[chosen, 1])
        return images


def blur(images: Tensor, sigma: NDArray[np.float64]) -> Tensor:
    """Blur uint8 (k, 3, H, W) with a Gaussian of each image's ``sigma`` (k,) pixels; the border repeats outwards."""
    reach = max(1, math.ceil(3 * sigma.max()))
    # the weights of one image do not depend on how far its neighbours reach: beyond 3 sigma of its own they are zero
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma[:, None]) ** 2) * (np.abs(steps) <= np.ceil(3 * sigma[:, None]))
    kernel = torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32)).to(images.device)
    out = F.pad(images.float(), (reach,) * 4, mode="replicate")
    for axis in (-1, -2):
        length = out.shape[axis] - 2 * reach
        shifted = (out.narrow(axis, i, length) * kernel[:, i, None, None, None] for i in range(2 * reach + 1))
        total = next(shifted)
        for part in shifted:  # sums of single products in a fixed order, so that company changes no bit
            total = total + part
        out = total
    return out.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
