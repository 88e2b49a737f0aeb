"""PSNR and SSIM of restored pictures, as papers on restoration state them: border, channel, 8-bit rounding and all.

Sources: ITU-R BT.601 (luminance in 16..235); Wang et al. 2004, "Image quality assessment: from error visibility to
structural similarity", section III (Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03; windows that stick
out of the picture are left out, as in the authors' code).

Pictures are (C, H, W) of 0..1, C = 1 (grey) or 3 (RGB). Numbers are of 8-bit levels: both pictures are rounded to them
first, unless ``levels`` says otherwise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Channel = Literal["y", "rgb"]
_Y = (65.481, 128.553, 24.966)
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def luminance(picture: Tensor) -> Tensor:
    """RGB (3, H, W) in 0..1 -> Y of BT.601, (1, H, W), in levels of 0..255 (16..235), not rounded; grey only scaled."""
    if picture.shape[0] == 1:
        return picture * 255.0
    weights = torch.tensor(_Y, dtype=picture.dtype, device=picture.device)
    return 16.0 + torch.einsum("c,chw->hw", weights, picture)[None]


def prepared(picture: Tensor, *, border: int, channel: Channel, levels: int | None = 255) -> Tensor:
    """Return what both figures compare, float64 (C, H, W) in levels of 0..255: rounded, its border cut, Y or RGB."""
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise ValueError(f"expected a picture (1 or 3, H, W), got {tuple(picture.shape)}")
    if min(picture.shape[1:]) <= 2 * border:
        raise ValueError(f"expected a picture of more than {2 * border} pixels a side, got {tuple(picture.shape)}")
    picture = picture.double().clamp(0, 1)
    if levels is not None:
        picture = (picture * levels).round() / levels
    values = luminance(picture) if channel == "y" else picture * 255.0
    return values[:, border : values.shape[1] - border, border : values.shape[2] - border]


def psnr(restored: Tensor, target: Tensor, *, border: int, channel: Channel, levels: int | None = 255) -> float:
    """Return the peak signal-to-noise ratio in dB, inf for equal pictures.

    Args:
        restored: (C, H, W) in 0..1.
        target: the good picture, of the same shape.
        border: pixels cut off on every side; papers cut the scale for super-resolution, nothing for denoising.
        channel: "y": luminance; "rgb": all channels together. Grey pictures have but one.
        levels: what the pictures are rounded to first; None: not at all.
    """
    one, other = _both(restored, target, border, channel, levels)
    error = float((one - other).square().mean())
    return 10 * math.log10(255.0**2 / error) if error else math.inf


def ssim(restored: Tensor, target: Tensor, *, border: int, channel: Channel, levels: int | None = 255) -> float:
    """Return the structural similarity, the mean over pixels and channels; arguments as those of :func:`psnr`.

    Raises ValueError for pictures smaller than the window of 11 pixels.
    """
    one, other = _both(restored, target, border, channel, levels)
    if min(one.shape[1:]) < WINDOW:
        raise ValueError(f"expected at least {WINDOW} pixels a side inside the border, got {tuple(one.shape[1:])}")
    mean1, mean2 = _blur(one), _blur(other)
    var1 = _blur(one * one) - mean1 * mean1
    var2 = _blur(other * other) - mean2 * mean2
    both = _blur(one * other) - mean1 * mean2
    c1, c2 = (K1 * 255.0) ** 2, (K2 * 255.0) ** 2
    map_ = (2 * mean1 * mean2 + c1) * (2 * both + c2)
    return float((map_ / ((mean1 * mean1 + mean2 * mean2 + c1) * (var1 + var2 + c2))).mean())


def _both(restored: Tensor, target: Tensor, border: int, channel: Channel, levels: int | None) -> tuple[Tensor, Tensor]:
    if restored.shape != target.shape:
        raise ValueError(f"expected pictures of one shape, got {tuple(restored.shape)} and {tuple(target.shape)}")
    one = prepared(restored, border=border, channel=channel, levels=levels)
    return one, prepared(target, border=border, channel=channel, levels=levels)


def _blur(values: Tensor) -> Tensor:
    """(C, H, W) -> (C, H - 10, W - 10): the mean under a Gaussian window, one axis after the other."""
    steps = torch.arange(WINDOW, dtype=torch.float64, device=values.device) - WINDOW // 2
    weights = torch.exp(-(steps**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    rows = F.conv2d(values[:, None], weights[None, None, :, None])
    return F.conv2d(rows, weights[None, None, None])[:, 0]
