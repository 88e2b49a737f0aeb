"""Bicubic scaling as MATLAB's ``imresize`` does it, which the field makes its low-resolution pictures with.

Source: Keys 1981, "Cubic convolution interpolation", a = -1/2, widened by the scale when a picture shrinks (that is
what "antialiasing" means here); pixels beyond an edge are those before it, mirrored with the edge. Unlike Pillow and
torch, which leave such pixels out and share their weight.

C channels, (H, W) size, (h, w) size wanted.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .resample import cubic

Matrix = NDArray[np.float64]


def bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale (C, H, W) to (C, h, w): rows first, then columns, in float64.

    uint8 is rounded and clamped after each of the two, as MATLAB does: the public low-resolution files of Set5 (x2, x3,
    x4) come out bit by bit. Floats are not rounded, and may leave 0..1 a little.
    """
    pixels = image.to(torch.float64)
    for axis, length in ((1, size[0]), (2, size[1])):
        pixels = _along(pixels, axis, length)
        if image.dtype == torch.uint8:
            pixels = (pixels + 0.5).floor_().clamp_(0, 255)
    return pixels.to(image.dtype)


def _along(pixels: Tensor, axis: int, length: int) -> Tensor:
    taps, weights = (torch.from_numpy(a) for a in _taps(pixels.shape[axis], length))
    out = torch.zeros(*pixels.shape[:axis], length, *pixels.shape[axis + 1 :], dtype=pixels.dtype)
    shape = [length if i == axis else 1 for i in range(pixels.ndim)]
    for k in range(taps.shape[1]):
        out.addcmul_(pixels.index_select(axis, taps[:, k].contiguous()), weights[:, k].reshape(shape))
    return out


@lru_cache(maxsize=64)
def _taps(size: int, length: int) -> tuple[NDArray[np.int64], Matrix]:
    """Return for each of ``length`` new pixels the old ones it is made of, and their shares: both (length, taps)."""
    scale = length / size
    narrow = min(scale, 1.0)
    width = 4.0 / narrow
    centre = (np.arange(1, length + 1) / scale) + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - width / 2)
    index = first[:, None] + np.arange(int(np.ceil(width)) + 2)[None]
    distance = torch.from_numpy(np.abs(centre[:, None] - index) * narrow)
    weights = cubic(distance).numpy() * narrow
    weights /= weights.sum(1, keepdims=True)
    there = np.any(weights != 0, axis=0)
    mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    return mirror[(index[:, there].astype(np.int64) - 1) % (2 * size)], np.ascontiguousarray(weights[:, there])
