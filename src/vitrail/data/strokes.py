"""The built-in set for segmentation: strokes of scanned digits on textured ground, made by arithmetic from a seed.

A picture of 48 x 64 pixels has a ground of slow waves and grain, cut in two by a horizon (two classes: sky and ground),
and one to three digits of scikit-learn's ``digits``, enlarged, in colours of their own: even digits are one class, odd
ones another. Pixels along the horizon are ignored. Which digits go to which split is fixed, so no stroke of a test
picture was trained on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.classes import ClassMap
from vitrail.errors import require_extra

from . import rng
from .masks import IGNORED, MaskArrays
from .samples import SampleSplits

SIZES = {"train": 256, "val": 48, "test": 64}
CLASSES = ClassMap.of(["sky", "ground", "even digit", "odd digit"])
HEIGHT, WIDTH = 48, 64


def open_strokes(seed: int = 0) -> SampleSplits:
    """Return the three splits; needs scikit-learn for the digits."""
    require_extra("sklearn", "demo", "the built-in set 'strokes'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = rng.permutation(seed, 0, len(digits.target))
    shares = dict(zip(SIZES, np.split(order, [1200, 1400]), strict=True))
    made = {split: _split(digits.images, digits.target, shares[split], seed, split) for split in SIZES}
    return SampleSplits(made["train"], made["val"], made["test"], CLASSES)


def _split(
    pictures: NDArray[np.float64], labels: NDArray[np.int64], rows: NDArray[np.int64], seed: int, split: str
) -> MaskArrays:
    count, number = SIZES[split], list(SIZES).index(split)
    draws = rng.uniforms(seed, number, np.arange(count), 40)
    grain = rng.uniforms(seed, 10 + number, np.arange(count), 3 * HEIGHT * WIDTH).reshape(count, HEIGHT, WIDTH, 3)
    images, masks = np.empty((count, HEIGHT, WIDTH, 3)), np.empty((count, HEIGHT, WIDTH), dtype=np.uint8)
    for i in range(count):
        images[i], masks[i] = _ground(draws[i])
        for j in range(1 + int(3 * draws[i, 10])):
            own = draws[i, 11 + 6 * j : 17 + 6 * j]
            row = rows[int(own[0] * len(rows))]
            _draw(images[i], masks[i], pictures[row], int(labels[row]), own[1:])
    images += 40 * (grain - 0.5)
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    return MaskArrays(f"strokes/{split}", pixels, torch.from_numpy(masks))


def _ground(draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return pixels (H, W, 3) and the mask of a picture without digits."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    horizon = HEIGHT * (0.35 + 0.3 * draws[0]) + 3 * np.sin(2 * np.pi * (x / WIDTH + draws[1]))
    below = (y > horizon).astype(np.float64)
    waves = np.sin(2 * np.pi * (y * (0.1 + 0.1 * draws[2]) + x * 0.05 * draws[3]))
    colours = np.where(below[..., None], 60 + 60 * draws[4:7], 150 + 60 * draws[7:10])
    mask = below.astype(np.uint8)
    mask[np.abs(y - horizon) < 0.75] = IGNORED
    return colours + 15 * (waves * below)[..., None], mask


def _draw(
    image: NDArray[np.float64],
    mask: NDArray[np.uint8],
    digit: NDArray[np.float64],
    label: int,
    draws: NDArray[np.float64],
) -> None:
    """Lay a digit of 8 x 8 values 0..16, three times as large, over a picture, in place."""
    ink = np.kron(digit / 16, np.ones((3, 3)))
    top, left = int(draws[0] * (HEIGHT - 24)), int(draws[1] * (WIDTH - 24))
    window = (slice(top, top + 24), slice(left, left + 24))
    colour = np.array([255 * draws[2], 255 * draws[3], 255 * draws[4]])
    image[window] = image[window] * (1 - ink[..., None]) + colour * ink[..., None]
    mask[window][ink > 0.4] = 2 + label % 2
