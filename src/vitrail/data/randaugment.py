"""RandAugment on whole batches: Cubuk et al. 2020, arXiv 1909.13719; magnitudes and their spread as timm has them.

Fourteen operations; each image draws its own. All geometric ones of a round are one ``grid_sample``; the four blends
are one pass; the others go by group. Works on any device; all chance comes from the draws.
Shapes: B batch, k images that drew one operation, (B, 3, H, W) uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from vitrail.errors import UsageError

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("color", "contrast", "brightness", "sharpness")
POINTWISE = ("autocontrast", "equalize", "solarize", "posterize")
OPERATIONS = ("identity", *POINTWISE, *BLENDS, *GEOMETRIC)

_DEGREES, _SHEAR, _SHIFT, _BLEND, _BITS = 30.0, 0.3, 0.45, 0.9, 4
STRONGEST = 30
_DRAWS = 4  # operation, whether, magnitude, sign


@dataclass(frozen=True)
class RandAugment:
    """``num_ops`` rounds; in each, with ``prob``, one of :data:`OPERATIONS` at ``magnitude`` (0..10).

    The magnitude spreads by a normal of ``magnitude_std``, clipped to 0..10. ``fill`` (grey level) stands where a
    geometric operation looks outside the image. At magnitude 10: rotate 30 degrees, shear 0.3, translate 0.45 of the
    side, colour, contrast, brightness and sharpness by a factor of 0.1 or 1.9, solarize all, posterize to 4 bits. Above
    10 (to 30: AugReg has 15 and 20) the geometric operations and the blends grow on, the last two stay where they are.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    prob: float = 1.0
    fill: int = 128

    def __post_init__(self) -> None:
        if self.num_ops < 1 or not 0 <= self.magnitude <= STRONGEST or self.magnitude_std < 0:
            raise UsageError(
                f"expected num_ops >= 1, magnitude 0..{STRONGEST} and magnitude_std >= 0, "
                f"got {self.num_ops}, {self.magnitude} and {self.magnitude_std}"
            )
        if not 0 < self.prob <= 1 or not 0 <= self.fill <= 255:
            raise UsageError(f"expected prob above 0 and at most 1, and fill 0..255, got {self.prob} and {self.fill}")

    @property
    def draws(self) -> int:
        """Uniform numbers used by one image."""
        return _DRAWS * self.num_ops

    def __call__(self, images: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """uint8 (B, 3, H, W) and (B, D) -> uint8 (B, 3, H, W), a new tensor."""
        images = images.clone(memory_format=torch.contiguous_format)
        for part in np.split(draws[:, : self.draws], self.num_ops, axis=1):
            operation = (part[:, 0] * len(OPERATIONS)).astype(np.int64)
            operation[part[:, 1] >= self.prob] = 0
            spread = ndtri(np.clip(part[:, 2], 1e-12, 1 - 1e-12)) * self.magnitude_std
            level = np.clip(self.magnitude + spread, 0, 10 if self.magnitude <= 10 else STRONGEST) / 10
            sign = np.where(part[:, 3] < 0.5, -1.0, 1.0)
            self._round(images, operation, level, sign)
        return images

    def _round(
        self, images: Tensor, operation: NDArray[np.int64], level: NDArray[np.float64], sign: NDArray[np.float64]
    ) -> None:
        """Apply one operation to each image, in place."""
        at = OPERATIONS.index
        groups: list[tuple[NDArray[np.bool_], Callable[[Tensor, NDArray[np.bool_]], Tensor]]] = [
            (
                operation >= at(GEOMETRIC[0]),
                lambda x, m: warp(x, matrices(operation[m], level[m] * sign[m], x.shape[-2:]), self.fill),
            ),
            (
                (operation >= at(BLENDS[0])) & (operation < at(GEOMETRIC[0])),
                lambda x, m: blend(x, operation[m], 1 + _BLEND * level[m] * sign[m]),
            ),
            (operation == at("autocontrast"), lambda x, m: autocontrast(x)),
            (operation == at("equalize"), lambda x, m: equalize(x)),
            (operation == at("solarize"), lambda x, m: solarize(x, 256 * (1 - np.minimum(level[m], 1)))),
            (operation == at("posterize"), lambda x, m: posterize(x, 8 - np.rint(_BITS * np.minimum(level[m], 1)))),
        ]
        for mask, apply in groups:
            if mask.any():
                where = torch.from_numpy(np.flatnonzero(mask)).to(images.device)
                images[where] = apply(images.index_select(0, where), mask)


def matrices(operation: NDArray[np.int64], amount: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """(k, 2, 3): where each output point (x, y, 1), in pixels from the top left corner, looks in the input."""
    height, width = size
    out = np.tile(np.eye(2, 3), (len(operation), 1, 1))
    chosen = {name: operation == OPERATIONS.index(name) for name in GEOMETRIC}
    angle = np.where(chosen["rotate"], -np.radians(_DEGREES * amount), 0.0)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2  # turn about the centre
    out[:, 0, 0], out[:, 0, 1], out[:, 0, 2] = cos, sin, x - cos * x - sin * y
    out[:, 1, 0], out[:, 1, 1], out[:, 1, 2] = -sin, cos, y + sin * x - cos * y
    out[:, 0, 1] += chosen["shear_x"] * _SHEAR * amount
    out[:, 1, 0] += chosen["shear_y"] * _SHEAR * amount
    out[:, 0, 2] += chosen["translate_x"] * _SHIFT * amount * width
    out[:, 1, 2] += chosen["translate_y"] * _SHIFT * amount * height
    return out


def warp(images: Tensor, matrix: NDArray[np.float64], fill: int) -> Tensor:
    """Look up uint8 (k, 3, H, W) through (k, 2, 3), bilinear; ``fill`` stands outside."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + 0.5
    y = (torch.arange(height, device=images.device) + 0.5)[:, None]
    # To grid_sample's -1..1 across the image; sums of single products, so that company changes no bit.
    scale = np.array([2 / width, 2 / height])[:, None]
    look = torch.from_numpy((matrix * scale).astype(np.float32)).to(images.device)
    over, down, offset = (look[:, None, None, :, i] for i in range(3))
    grid = (over * x[:, None] + (offset - 1)) + down * y[:, :, None]
    # Fill becomes zero, which is what grid_sample reads outside.
    out = F.grid_sample(images.float() - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.add_(fill + 0.5).floor_().clamp_(0, 255).to(torch.uint8)


def blend(images: Tensor, operation: NDArray[np.int64], factor: NDArray[np.float64]) -> Tensor:
    """Move uint8 (k, 3, H, W) away from (factor > 1) or towards (< 1) grey, mean grey, black or blur."""
    pixels = images.float()
    plain = torch.zeros_like(pixels)
    for name, make in (("color", luma), ("contrast", _mean_grey), ("sharpness", _smooth)):
        mask = operation == OPERATIONS.index(name)
        if mask.any():
            where = torch.from_numpy(np.flatnonzero(mask)).to(images.device)
            plain[where] = make(pixels.index_select(0, where)).expand(-1, 3, -1, -1)
    share = torch.from_numpy(factor.astype(np.float32)).to(images.device)[:, None, None, None]
    return torch.lerp(plain, pixels, share).clamp_(0, 255).to(torch.uint8)


def luma(pixels: Tensor) -> Tensor:
    """ITU-R 601 luma, whole grey levels: (k, 1, H, W)."""
    red, green, blue = pixels.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).round_()[:, None]


def _mean_grey(pixels: Tensor) -> Tensor:
    return (luma(pixels).mean((2, 3), keepdim=True) + 0.5).floor().expand(-1, -1, *pixels.shape[2:])


def _smooth(pixels: Tensor) -> Tensor:
    """Pillow's SMOOTH: 3 x 3, centre 5, the rest 1, over 13; the border stays."""
    if min(pixels.shape[-2:]) < 3:
        return pixels
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    out = pixels.clone()
    out[..., 1:-1, 1:-1] = nine.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return out


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of uint8 (k, 3, H, W) to 0..255; a flat channel stays."""
    pixels = images.float()
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high <= low
    scale = 255.0 / torch.where(flat, torch.ones_like(high), high - low)
    stretched = ((pixels - low) * scale + 1e-3).clamp_(0, 255)  # 254.9999 is 255
    return torch.where(flat, pixels, stretched).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Flatten the histogram of each channel of uint8 (k, 3, H, W), by Pillow's integer rule."""
    flat = images.reshape(-1, images.shape[-2] * images.shape[-1]).long()
    offset = torch.arange(len(flat), device=images.device)[:, None] * 256
    counts = torch.bincount((flat + offset).view(-1), minlength=256 * len(flat)).view(-1, 256)
    last = (counts * torch.arange(256, device=images.device)).ne(0).long()
    last_index = (last * torch.arange(256, device=images.device)).amax(1, keepdim=True)
    step = (flat.shape[1] - counts.gather(1, last_index)) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(1, flat).view(images.shape).to(torch.uint8)


def solarize(images: Tensor, threshold: NDArray[np.float64]) -> Tensor:
    """Invert the pixels at or above each image's threshold (0..256)."""
    limit = torch.from_numpy(threshold.astype(np.float32)).to(images.device)[:, None, None, None]
    return torch.where(images >= limit, 255 - images, images)


def posterize(images: Tensor, bits: NDArray[np.float64]) -> Tensor:
    """Keep the highest ``bits`` bits (0..8) of each image's pixels."""
    mask = np.array([256 - (1 << (8 - int(b))) for b in bits], dtype=np.uint8)
    return images & torch.from_numpy(mask).to(images.device)[:, None, None, None]
