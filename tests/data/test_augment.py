"""Augmentation: each operation is Pillow's, chance comes from the draws alone, and company changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tests.data.making import picture
from vitrail.data import randaugment as ra
from vitrail.data import rng
from vitrail.data.augment import Augment, Normalize, RandomErasing, flip
from vitrail.data.randaugment import OPERATIONS, RandAugment
from vitrail.errors import UsageError

PLAIN = Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def photos(count: int, size: tuple[int, int] = (24, 20)) -> torch.Tensor:
    return torch.stack([torch.from_numpy(picture(i, size)).permute(2, 0, 1) for i in range(count)]).contiguous()


def pillows(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]


def difference(ours: torch.Tensor, theirs: list[Image.Image], inner: int = 0) -> float:
    stack = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in theirs])
    cut = slice(inner, -inner or None)
    return float((ours.int() - stack.int())[..., cut, cut].abs().max())


def code(name: str, count: int) -> np.ndarray:
    return np.full(count, OPERATIONS.index(name))


def test_autocontrast_and_equalize_are_pillows() -> None:
    images = photos(8)
    images[3] = 77  # flat
    images[4] = (images[4] // 8) + 100
    assert difference(ra.autocontrast(images), [ImageOps.autocontrast(p) for p in pillows(images)]) <= 1
    assert difference(ra.equalize(images), [ImageOps.equalize(p) for p in pillows(images)]) == 0
    noise = torch.randint(0, 256, (4, 3, 33, 31), dtype=torch.uint8)
    assert difference(ra.equalize(noise), [ImageOps.equalize(p) for p in pillows(noise)]) == 0


def test_solarize_and_posterize_are_pillows() -> None:
    images = photos(6)
    thresholds = np.array([0.0, 25, 128, 200, 255, 256])
    expected = [ImageOps.solarize(p, int(t)) for p, t in zip(pillows(images), thresholds, strict=True)]
    assert difference(ra.solarize(images, thresholds), expected) == 0
    bits = np.array([1.0, 3, 4, 5, 7, 8])
    expected = [ImageOps.posterize(p, int(b)) for p, b in zip(pillows(images), bits, strict=True)]
    assert difference(ra.posterize(images, bits), expected) == 0
    assert (ra.posterize(images, np.zeros(6)) == 0).all()


@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("brightness", ImageEnhance.Brightness),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_blends_are_pillows(name: str, enhance: type) -> None:
    images = photos(5)
    factors = np.array([0.1, 0.5, 1.0, 1.4, 1.9])
    expected = [enhance(p).enhance(f) for p, f in zip(pillows(images), factors, strict=True)]
    assert difference(ra.blend(images, code(name, 5), factors), expected) <= 2


def test_different_blends_in_one_call_do_not_mix() -> None:
    images = photos(8)
    operation = np.array([OPERATIONS.index(name) for name in (*ra.BLENDS, *ra.BLENDS[::-1])])
    together = ra.blend(images, operation, np.full(8, 1.7))
    for i in range(8):
        assert torch.equal(together[i], ra.blend(images[i : i + 1], operation[i : i + 1], np.array([1.7]))[0])


@pytest.mark.parametrize("amount", [-1.0, -0.3, 0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", ra.GEOMETRIC)
def test_geometry_is_pillows(name: str, amount: float) -> None:
    size = (40, 32)
    images = photos(2, size)
    ours = ra.warp(images, ra.matrices(code(name, 2), np.full(2, amount), size), 128)
    matrix = {
        "shear_x": (1, 0.3 * amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * amount, 1, 0),
        "translate_x": (1, 0, 0.45 * amount * size[1], 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * amount * size[0]),
    }.get(name)
    options = {"resample": Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)}
    theirs = [
        p.rotate(30 * amount, **options)
        if matrix is None
        else p.transform(p.size, Image.Transform.AFFINE, matrix, **options)
        for p in pillows(images)
    ]
    stack = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in theirs])
    # Pillow cuts the border hard, grid_sample blends it with the fill: all but a thin line must agree.
    close = (ours.int() - stack.int()).abs() <= 2
    assert close.float().mean() > 0.93
    if amount == 0.0:
        assert torch.equal(ours, images)


def test_every_operation_is_drawn_about_equally() -> None:
    operation = (rng.uniforms(0, 0, np.arange(14_000), 1)[:, 0] * len(OPERATIONS)).astype(int)
    assert stats.chisquare(np.bincount(operation, minlength=14)).pvalue > 1e-3


def test_rand_augment_is_a_function_of_the_draws_alone() -> None:
    images = photos(40)
    policy = RandAugment(num_ops=3)
    draws = rng.uniforms(0, 0, np.arange(40), policy.draws)
    before = images.clone()
    torch.manual_seed(1)
    together = policy(images, draws)
    assert torch.equal(images, before)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002 - nothing global may matter
    for i in range(40):
        assert torch.equal(policy(images[i : i + 1], draws[i : i + 1])[0], together[i])
    assert sum(not torch.equal(a, b) for a, b in zip(together, images, strict=True)) > 30
    assert together.dtype == torch.uint8


def test_prob_and_magnitude_have_effect() -> None:
    images = photos(200, (12, 12))

    def changed(policy: RandAugment) -> float:
        out = policy(images, rng.uniforms(0, 0, np.arange(200), policy.draws))
        return float((out.float() - images.float()).abs().mean())

    mild, strong = RandAugment(magnitude=2, magnitude_std=0), RandAugment(magnitude=10, magnitude_std=0)
    assert changed(mild) < changed(strong)
    assert changed(RandAugment(prob=0.2)) < 0.6 * changed(RandAugment(prob=1.0))
    assert changed(RandAugment(num_ops=1)) < changed(RandAugment(num_ops=4))
    corner = [
        RandAugment(fill=f)(images, rng.uniforms(0, 0, np.arange(200), 8))[:, :, 0, 0].float().mean() for f in (0, 255)
    ]
    assert corner[0] < corner[1]


def test_magnitude_spread() -> None:
    images = photos(300, (8, 8))
    draws = rng.uniforms(0, 0, np.arange(300), 4)
    sharp, spread = (RandAugment(1, 5, std)(images, draws) for std in (0.0, 2.0))
    assert not torch.equal(sharp, spread)


def test_tiny_images_survive_everything() -> None:
    policy = RandAugment(num_ops=4)
    for size in ((1, 1), (2, 3), (3, 1)):
        images = photos(60, size)
        assert policy(images, rng.uniforms(0, 0, np.arange(60), policy.draws)).shape == images.shape


def test_normalize_and_undo() -> None:
    images = photos(3)
    out = PLAIN(images)
    expected = (images.float() / 255 - torch.tensor(PLAIN.mean)[:, None, None]) / torch.tensor(PLAIN.std)[:, None, None]
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.equal(PLAIN.undo(out), images)
    assert out.is_contiguous()
    assert PLAIN(images.contiguous(memory_format=torch.channels_last)).is_contiguous()


def test_flip_chooses_images_and_leaves_the_input() -> None:
    images = photos(6)
    before = images.clone()
    chosen = np.array([True, False, True, False, False, True])
    out = flip(images, chosen, -1)
    assert torch.equal(images, before)
    for i in range(6):
        assert torch.equal(out[i], images[i].flip(-1) if chosen[i] else images[i])
    assert flip(images, np.zeros(6, bool), -2) is images


def test_flip_chance() -> None:
    images = photos(400, (4, 4))
    draws = rng.uniforms(0, 0, np.arange(400), Augment().draws)
    plain = PLAIN(images)

    def same(augment: Augment) -> int:
        return sum(torch.equal(a, b) for a, b in zip(augment(images, draws, PLAIN), plain, strict=True))

    assert 150 < same(Augment(hflip=0.5)) < 250
    assert same(Augment(hflip=0.0)) == 400
    assert same(Augment(hflip=1.0)) == 0
    assert 320 < same(Augment(hflip=0.0, vflip=0.1)) < 390


@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_erasing_covers_one_box(mode: str) -> None:
    images = torch.full((300, 3, 20, 16), 9.0)
    erasing = RandomErasing(prob=0.5, mode=mode)
    draws = rng.uniforms(0, 0, np.arange(300), erasing.draws)
    out = erasing(images.clone(), draws)
    hit = (out != 9.0).any(1)
    share = hit.flatten(1).float().mean(1)
    assert 110 < (share > 0).sum() < 190
    assert share.max() <= 0.40
    assert share[share > 0].min() > 0.005
    for mask in hit[share > 0][:20]:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # a full rectangle
    covered = out[out != 9.0]
    assert (covered == 0).all() if mode == "const" else abs(covered.std() - 1) < 0.05
    alone = erasing(images[7:8].clone(), draws[7:8])
    assert torch.equal(alone[0], out[7])


def test_augment_parts_draw_independently() -> None:
    images = photos(50)
    full = Augment(randaugment=RandAugment(), erasing=RandomErasing(prob=1.0, mode="const"))
    draws = rng.uniforms(0, 0, np.arange(50), full.draws)
    out = full(images, draws, PLAIN)
    assert torch.equal(out[3], full(images[3:4], draws[3:4], PLAIN)[0])
    assert (out == 0).any()
    without = Augment(randaugment=RandAugment())(images, draws, PLAIN)
    assert torch.equal(out[out != 0], without[out != 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandAugment(magnitude=31),
        lambda: RandAugment(num_ops=0),
        lambda: RandAugment(prob=0),
        lambda: RandAugment(fill=300),
        lambda: RandomErasing(prob=0),
        lambda: RandomErasing(mode="noise"),
        lambda: Normalize((0.5,) * 3, (0.5, 0.5, 0.0)),
        lambda: Augment(hflip=1.5),
    ],
)
def test_impossible_settings(make: object) -> None:
    with pytest.raises(UsageError, match=r"expected .*got"):
        make()  # type: ignore[operator]
