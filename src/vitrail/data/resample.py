"""Resizing uint8 images on torch, antialiased as Pillow does it.

Two exact integer paths: torch's own uint8 kernel for one size at a time, and matrices for many different crops of small
images at once. Source of the filter: Keys 1981, "Cubic convolution interpolation", a = -1/2, widened by the scale when
shrinking. The matrices hold multiples of 2**-15 and the picture is rounded to whole grey levels between the two, so
every sum is exact in float32: the result depends on no thread count, batch size or order of summation.
Shapes: B batch, H x W input, h x w output; boxes (B, 4) are top, left, height, width in pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError, did_you_mean

INTERPOLATIONS = ("bicubic", "bilinear")
SMALL = 64  # sides up to here go through matrices; the rule is by image, so a batch's company changes nothing
_UNIT = 2.0**15
_TABLE = 4_000_000  # numbers in a table of weights: 16 MB, images up to 44 pixels


def require_interpolation(name: str) -> str:
    """Return the name if it is one of ``INTERPOLATIONS``, else raise :class:`UsageError`."""
    if name not in INTERPOLATIONS:
        raise UsageError(
            f"expected interpolation {' or '.join(INTERPOLATIONS)}, got {name!r}.{did_you_mean(name, INTERPOLATIONS)}"
        )
    return name


def resize(image: Tensor, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Resize uint8 (3, H, W) or (B, 3, H, W) to (h, w), antialiased; about one grey level from Pillow at most."""
    if image.dtype != torch.uint8 or image.ndim not in (3, 4):
        raise UsageError(f"expected uint8 (3, H, W) or (B, 3, H, W), got {image.dtype} {tuple(image.shape)}")
    require_interpolation(interpolation)
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    batch = image if image.ndim == 4 else image[None]
    batch = batch.contiguous(memory_format=torch.channels_last)  # torch's fast uint8 path
    out = F.interpolate(batch, size=tuple(size), mode=interpolation, antialias=True, align_corners=False)
    return out if image.ndim == 4 else out[0]


def resample(images: Tensor, boxes: NDArray[np.int64], size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Cut one box out of each uint8 (B, 3, H, W) and resize it to (h, w): uint8 (B, 3, h, w), by two products."""
    batch, channels, height, width = images.shape
    require_interpolation(interpolation)
    box = torch.from_numpy(np.ascontiguousarray(boxes)).to(images.device)
    rows = _looked_up(box[:, 0], box[:, 2], height, size[0], interpolation)
    columns = _looked_up(box[:, 1], box[:, 3], width, size[1], interpolation)
    # Columns first, as Pillow does; with (B, H, 3, W) in memory both products are plain batches of matrices.
    pixels = images.permute(0, 2, 1, 3).float().reshape(batch, height * channels, width)
    narrow = _grey_levels(torch.bmm(pixels, columns.transpose(1, 2))).view(batch, height, channels * size[1])
    out = _grey_levels(torch.bmm(rows, narrow)).view(batch, size[0], channels, size[1])
    return out.to(torch.uint8).transpose(1, 2).contiguous()


def _grey_levels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _looked_up(start: Tensor, length: Tensor, size_in: int, size_out: int, interpolation: str) -> Tensor:
    """``_weights`` from a table of all boxes of small images, which is several times faster than working them out."""
    if size_in**3 * size_out > _TABLE or start.device.type != "cpu":
        return _weights(start, length, size_in, size_out, interpolation)
    return _table(size_in, size_out, interpolation).index_select(0, start * size_in + length - 1)


@functools.lru_cache(maxsize=4)
def _table(size_in: int, size_out: int, interpolation: str) -> Tensor:
    """(in * in, out, in): row ``start * in + length - 1``; boxes that would stick out are cut."""
    start = torch.arange(size_in).repeat_interleave(size_in)
    length = torch.minimum(torch.arange(1, size_in + 1).repeat(size_in), size_in - start)
    return _weights(start, length, size_in, size_out, interpolation)


def _weights(start: Tensor, length: Tensor, size_in: int, size_out: int, interpolation: str) -> Tensor:
    """(B, out, in): how much each input pixel adds to each output pixel; rows sum to exactly 1."""
    scale = (length.float() / size_out)[:, None]
    centre = start[:, None] + (torch.arange(size_out, device=start.device) + 0.5) * scale
    position = torch.arange(size_in, device=start.device)
    distance = ((position + 0.5) - centre[:, :, None]).abs_().div_(scale.clamp(min=1.0)[:, :, None])
    weight = cubic(distance) if interpolation == "bicubic" else (1.0 - distance).clamp_(min=0.0)
    inside = (position >= start[:, None]) & (position < (start + length)[:, None])
    weight.mul_(inside[:, None, :])
    weight.mul_(_UNIT / weight.sum(-1, keepdim=True)).round_()
    # What rounding took or gave goes to the heaviest tap.
    missing = _UNIT - weight.sum(-1, keepdim=True)
    weight.scatter_add_(-1, weight.argmax(-1, keepdim=True), missing)
    return weight.div_(_UNIT)


def cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 for distances d >= 0: (2 - d)+^2 (1 - d) / 2 + (1 - d)+^2 (2 d - 1)."""
    far = (2.0 - distance).clamp_(min=0.0).square_().mul_(0.5)
    near = (1.0 - distance).clamp_(min=0.0).square_()
    slope = torch.sub(near, far, alpha=0.5).mul_(2.0)
    return far.sub_(near).addcmul_(distance, slope)  # (1 - d) far + (2 d - 1) near
