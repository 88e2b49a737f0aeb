"""What makes a good picture bad: the pairs that a restoration network learns from are made of photos on the fly.

Sources: Liang et al. 2021, arXiv 2108.10257, section 4 (bicubic downscaling; noise of sigma 15, 25, 50; JPEG of quality
10 to 40); for the real-world chain Zhang et al. 2021, arXiv 2103.14006, section 3 (BSRGAN), much simplified: one blur,
one downscaling, one noise and one JPEG in that order, where theirs has two of most and shuffles them.

A degradation is a function of the picture and of D uniform numbers, so what happens to a patch depends on (seed, epoch,
index) alone; :meth:`Degradation.fixed` is what evaluation takes, and uses the numbers of the authors' test script.
C channels (1 or 3), (H, W) size of the good picture, s scale.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError

from .bicubic import bicubic

Draws = NDArray[np.float64]
Range = tuple[float, float]
MCU = 16
"""Pixels of a JPEG's largest unit: what is cut along its grid comes out as in the whole picture, but at its edge."""


class Degradation(Protocol):
    """uint8 (C, H, W) -> float32 (C, H / s, W / s), in about 0..1."""

    scale: int
    draws: int
    """Uniform numbers it takes."""
    grid: int
    """Pixels of the good picture on whose multiples a patch is cut before it is degraded."""

    def __call__(self, picture: Tensor, draws: Draws) -> Tensor:
        """Return the bad picture for these numbers, (D,)."""
        ...

    def fixed(self, picture: Tensor) -> Tensor:
        """Return the bad picture that evaluation is given."""
        ...


@dataclass(frozen=True)
class Downscale:
    """Bicubic downscaling by ``scale``, rounded to 8 bits; sizes must be multiples of it."""

    scale: int
    draws = 0
    grid = 1

    def whole(self, picture: Tensor) -> Tensor:
        """uint8 -> uint8: the low-resolution file of a picture."""
        return bicubic(picture, (picture.shape[1] // self.scale, picture.shape[2] // self.scale))

    def __call__(self, picture: Tensor, draws: Draws) -> Tensor:
        return unit(self.whole(picture))

    def fixed(self, picture: Tensor) -> Tensor:
        return unit(self.whole(picture))


@dataclass(frozen=True)
class Noise:
    """White Gaussian noise of standard deviation ``sigma`` (of 255), one level or a range; neither rounded nor cut.

    Evaluation takes the highest level, and numpy's noise of seed 0 laid over (H, W, C) with the channels in the order
    blue, green, red: the numbers of the authors' test.
    """

    sigma: Range
    scale = 1
    draws = 2
    grid = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma[0] <= self.sigma[1] or self.sigma[1] <= 0:
            raise UsageError(f"expected sigma as a level above 0 or a range of them, got {self.sigma}")

    def __call__(self, picture: Tensor, draws: Draws) -> Tensor:
        level = self.sigma[0] + float(draws[0]) * (self.sigma[1] - self.sigma[0])
        return unit(picture) + gaussian(picture.shape, draws[1]) * (level / 255)

    def fixed(self, picture: Tensor) -> Tensor:
        drawn = np.random.RandomState(0).normal(0, self.sigma[1] / 255, (*picture.shape[1:], picture.shape[0]))
        noise = torch.from_numpy(drawn.astype(np.float32)).permute(2, 0, 1).flip(0)
        return unit(picture) + noise


@dataclass(frozen=True)
class Jpeg:
    """JPEG at a quality between two numbers, coded by Pillow; evaluation takes the lowest."""

    quality: tuple[int, int]
    scale = 1
    draws = 1
    grid = MCU

    def __post_init__(self) -> None:
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise UsageError(f"expected quality as a number of 1 to 100 or a range of them, got {self.quality}")

    def __call__(self, picture: Tensor, draws: Draws) -> Tensor:
        low, high = self.quality
        return unit(coded(picture, low + int(draws[0] * (high - low + 1))))

    def fixed(self, picture: Tensor) -> Tensor:
        return unit(coded(picture, self.quality[0]))


@dataclass(frozen=True)
class RealWorld:
    """Blur, downscaling, noise, JPEG, each of random strength: what happens to pictures outside of papers.

    Blur: a Gaussian of two widths (0.1 to 0.8 s + 1 pixels) and any direction. Downscaling: bicubic, bilinear or area.
    Noise: sigma up to 25, the same in all channels in two cases of five. JPEG: quality 30 to 95, in four cases of five.
    Evaluation takes the middle of everything.
    """

    scale: int
    draws = 10
    grid = 1

    def __call__(self, picture: Tensor, draws: Draws) -> Tensor:
        d = [float(x) for x in draws]
        wide = 0.8 * self.scale + 1
        x = blurred(unit(picture), (0.1 + d[0] * wide, 0.1 + d[1] * wide), d[2] * math.pi)
        size = (picture.shape[1] // self.scale, picture.shape[2] // self.scale)
        mode = ("bicubic", "bilinear", "area")[int(3 * d[3])]
        x = F.interpolate(x[None], size=size, mode=mode, **({} if mode == "area" else {"antialias": True}))[0]
        shape = x.shape if d[5] >= 0.4 else (1, *x.shape[1:])
        x = x + gaussian(shape, draws[6]) * (25 * d[4] / 255)
        eight = (x.clamp(0, 1) * 255).round().to(torch.uint8)
        return unit(coded(eight, 30 + int(66 * d[8])) if d[7] < 0.8 else eight)

    def fixed(self, picture: Tensor) -> Tensor:
        return self(picture, np.full(self.draws, 0.5))


def unit(picture: Tensor) -> Tensor:
    """uint8 -> float32 in 0..1."""
    return picture.to(torch.float32) / 255


def gaussian(shape: tuple[int, ...], draw: float) -> Tensor:
    """Return float32 normal numbers that one uniform number decides."""
    generator = np.random.Generator(np.random.PCG64(int(draw * 2**53)))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def coded(picture: Tensor, quality: int) -> Tensor:
    """Return uint8 (C, H, W) after JPEG of a quality, by Pillow (colour at half resolution, as it does by itself)."""
    from PIL import Image

    pixels = picture[0].numpy() if picture.shape[0] == 1 else picture.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        found = torch.from_numpy(np.array(image))
    return found[None] if found.ndim == 2 else found.permute(2, 0, 1).contiguous()


def blurred(picture: Tensor, widths: Range, angle: float) -> Tensor:
    """Blur float (C, H, W) by a Gaussian of two standard deviations along turned axes; edges are mirrored."""
    reach = max(1, math.ceil(2.5 * max(widths)))
    reach = min(reach, picture.shape[1] - 1, picture.shape[2] - 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / widths[0]) ** 2 + (across / widths[1]) ** 2))
    kernel = (kernel / kernel.sum())[None, None]
    padded = F.pad(picture[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(padded, kernel)[:, 0]
