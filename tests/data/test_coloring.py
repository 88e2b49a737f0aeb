"""Colour jitter and 3-Augment against Pillow and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from tests.data.making import picture
from vitrail.data import rng
from vitrail.data.augment import Augment, Normalize, RandomErasing
from vitrail.data.coloring import ColorJitter, ThreeAugment, blur
from vitrail.data.randaugment import RandAugment
from vitrail.errors import UsageError

PLAIN = Normalize((0.5,) * 3, (0.25,) * 3)
IMAGES = torch.from_numpy(np.stack([picture(i, (20, 26)) for i in range(30)])).permute(0, 3, 1, 2).contiguous()
PICTURES = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in IMAGES]


def draws(part: ColorJitter | ThreeAugment, count: int = 30) -> np.ndarray:
    return rng.uniforms(0, 0, np.arange(count), part.draws)


def array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int).transpose(2, 0, 1)


def test_three_augment_is_grey_solarize_or_blur() -> None:
    three = ThreeAugment()
    d = draws(three)
    out, which = three(IMAGES, d).numpy().astype(int), (d[:, 0] * 3).astype(int)
    assert set(which) == {0, 1, 2}
    for i, kind in enumerate(which):
        if kind == 0:
            assert np.abs(out[i] - array(ImageOps.grayscale(PICTURES[i]))).max() <= 1
        elif kind == 1:
            assert np.array_equal(out[i], array(ImageOps.solarize(PICTURES[i])))
        else:
            sigma = 0.1 + 1.9 * d[i, 1]
            radius = int(np.ceil(3 * sigma))
            expected = [
                gaussian_filter(c.astype(float), sigma, mode="nearest", radius=radius) for c in IMAGES[i].numpy()
            ]
            assert np.abs(out[i] - np.stack(expected)).max() <= 0.5 + 1e-3
    assert torch.equal(IMAGES, torch.from_numpy(np.stack([array(p) for p in PICTURES])).to(torch.uint8))


def test_jitter_is_pillows_enhancers_in_the_drawn_sequence() -> None:
    jitter = ColorJitter(0.4)
    d = draws(jitter)
    out = jitter(IMAGES, d).numpy().astype(int)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    sequences = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for i, sequence in enumerate((d[:, 3] * 6).astype(int)):
        expected = PICTURES[i]
        for kind in sequences[sequence]:
            expected = kinds[kind](expected).enhance(1 + 0.4 * (2 * d[i, kind] - 1))
        # Pillow rounds the mean grey of a contrast change from its own rounded greys
        assert np.abs(out[i] - array(expected)).max() <= 2
    assert len(set((d[:, 3] * 6).astype(int))) == 6


@pytest.mark.parametrize("part", [ColorJitter(0.4), ThreeAugment()])
def test_company_changes_no_bit(part: ColorJitter | ThreeAugment) -> None:
    d = draws(part)
    together = part(IMAGES, d)
    alone = torch.cat([part(IMAGES[i : i + 1], d[i : i + 1]) for i in range(30)])
    assert torch.equal(together, alone)
    assert torch.equal(part(IMAGES.flip(0), d[::-1]), together.flip(0))


def test_blur_survives_images_smaller_than_its_reach() -> None:
    tiny = IMAGES[:2, :, :2, :3]
    out = blur(tiny, np.array([2.0, 0.1]))
    assert out.shape == tiny.shape
    assert torch.equal(out[1], tiny[1])


def test_new_parts_move_nobody_elses_numbers() -> None:
    """With a jitter too weak to be seen, flips, RandAugment and erasing are what they are without it."""
    old = {"vflip": 0.3, "randaugment": RandAugment(), "erasing": RandomErasing(1.0, mode="const")}
    plain, more = Augment(**old), Augment(**old, jitter=ColorJitter(1e-9))
    d = rng.uniforms(3, 1, np.arange(30), more.draws)
    assert (plain(IMAGES, d[:, : plain.draws], PLAIN) - more(IMAGES, d, PLAIN)).abs().max() <= 4 / 255 * 3 + 1e-6
    both = Augment(**old, three=ThreeAugment(), jitter=ColorJitter())
    assert both.draws == plain.draws + 2 + 4
    erased = (plain(IMAGES, d[:, : plain.draws], PLAIN) == 0).all(1)
    assert (both(IMAGES, rng.uniforms(3, 1, np.arange(30), both.draws), PLAIN) == 0).all(1)[erased].all()


@pytest.mark.parametrize("make", [lambda: ColorJitter(0), lambda: ColorJitter(1.1), lambda: ThreeAugment((0, 2))])
def test_impossible_settings(make: object) -> None:
    with pytest.raises(UsageError, match=r"expected .*got"):
        make()  # type: ignore[operator]
