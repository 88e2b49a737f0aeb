"""Resizing and crops: near Pillow, exact among themselves, and independent of company, threads and order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.making import picture
from vitrail.data import resample as resample_module
from vitrail.data import rng
from vitrail.data.resample import SMALL, resample, resize
from vitrail.data.transforms import Crop, EvalCrop, PadCrop, TrainCrop, crop_images
from vitrail.errors import UsageError

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def photos(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.stack([tensor(picture(i, size)) for i in range(count)])


def pillow(image: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return tensor(np.array(pixels.resize(size[::-1], PILLOW[interpolation])))


def worst(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("before", "after"),
    [((200, 300), (64, 64)), ((40, 30), (80, 90)), ((97, 61), (32, 48)), ((8, 8), (32, 32)), ((5, 200), (7, 33))],
)
def test_resize_is_pillows_within_one_level(
    interpolation: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    for image in photos(3, before):
        assert worst(resize(image, after, interpolation), pillow(image, after, interpolation)) <= 1


def test_resize_keeps_what_has_the_size_and_takes_batches() -> None:
    images = photos(3, (20, 30))
    assert resize(images, (20, 30)) is images
    assert torch.equal(resize(images, (9, 11)), torch.stack([resize(image, (9, 11)) for image in images]))
    flat = torch.full((3, 50, 70), 93, dtype=torch.uint8)
    assert (resize(flat, (13, 200)) == 93).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_matrices_are_pillow_on_each_crop(interpolation: str, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40))
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    # kept off black and white: Pillow also cuts off what overshoots between its two passes, we only at the end
    images = (photos(3, (height, width)) * 0.6 + 50).to(torch.uint8)
    boxes = []
    for _ in range(3):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        boxes.append((data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w))
    out = resample(images, np.array(boxes), size, interpolation)
    for image, (top, left, h, w), ours in zip(images, boxes, out, strict=True):
        theirs = pillow(image[:, top : top + h, left : left + w], size, interpolation)
        # Pillow may go rows first, and rounds between the two: half a level, times at most 1.25 by the second pass.
        assert worst(ours, theirs) <= 2


def test_matrices_are_exact_whatever_the_company_and_the_threads() -> None:
    images = photos(37, (32, 32))
    draws = rng.uniforms(0, 0, np.arange(37), TrainCrop((32, 32)).draws)
    crop = TrainCrop((32, 32))
    together = crop(images, draws)
    alone = torch.cat([crop(images[i : i + 1], draws[i : i + 1]) for i in range(37)])
    assert torch.equal(together, alone)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert torch.equal(crop(images, draws), together)
    finally:
        torch.set_num_threads(before)
    # Sums of multiples of 2**-15 below 2**9 fit float32 exactly: float64 gives the same.
    assert torch.equal(crop(images.flip(0), draws[::-1].copy()).flip(0), together)


def test_the_table_of_weights_is_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(20, (20, 28))
    crop = TrainCrop((17, 30))
    draws = rng.uniforms(0, 0, np.arange(20), crop.draws)
    with_table = crop(images, draws)
    monkeypatch.setattr(resample_module, "_TABLE", 0)
    assert torch.equal(crop(images, draws), with_table)


def test_a_flat_image_stays_flat() -> None:
    flat = torch.full((4, 3, 30, 20), 201, dtype=torch.uint8)
    draws = rng.uniforms(3, 0, range(4), 22)
    assert (TrainCrop((17, 50))(flat, draws) == 201).all()


@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_boxes_lie_inside_and_keep_their_promise(height: int, width: int, seed: int) -> None:
    crop = TrainCrop((8, 8), scale=(0.2, 0.9), ratio=(0.5, 2.0))
    boxes = crop.boxes(height, width, rng.uniforms(seed, 0, np.arange(200), crop.draws))
    top, left, h, w = boxes.T
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    if min(height, width) > 60:
        share = h * w / (height * width)
        assert share.min() > 0.15
        ratio = w / h
        assert ratio.min() > 0.45
        assert ratio.max() < 2.2


def test_boxes_are_spread_over_scale_ratio_and_place() -> None:
    boxes = TrainCrop((8, 8)).boxes(1000, 1000, rng.uniforms(0, 0, np.arange(4000), 22))
    share = boxes[:, 2] * boxes[:, 3] / 1e6
    assert abs(share.mean() - 0.5) < 0.05  # near the middle of 0.08..1: a few large wide ones do not fit
    assert abs(np.log(boxes[:, 3] / boxes[:, 2]).mean()) < 0.02
    assert abs((boxes[:, 0] + boxes[:, 2] / 2).mean() - 500) < 15


def test_fallback_is_a_centred_box() -> None:
    crop = TrainCrop((8, 8), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert crop.boxes(100, 40, rng.uniforms(0, 0, [0], 22)).tolist() == [[30, 0, 40, 40]]


def test_large_images_go_through_the_same_boxes() -> None:
    crop = TrainCrop((32, 32))
    image = tensor(picture(1, (90, 120)))
    assert max(image.shape) > SMALL
    draws = rng.uniforms(0, 0, [5], crop.draws)
    ((top, left, h, w),) = crop.boxes(90, 120, draws)
    expected = pillow(image[:, top : top + h, left : left + w], (32, 32), "bicubic")
    assert worst(crop(image[None], draws)[0], expected) <= 1


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_crop_is_a_shift(mode: str) -> None:
    images = photos(50, (16, 16))
    crop = PadCrop((16, 16), 3, mode)
    draws = rng.uniforms(0, 0, np.arange(50), crop.draws)
    out = crop(images, draws)
    edge = ((0, 0), (3, 3), (3, 3))
    places = set()
    for image, ours, (y, x) in zip(images, out, (draws * 7).astype(int), strict=True):
        padded = np.pad(image.numpy(), edge, mode=mode)  # type: ignore[call-overload]
        assert np.array_equal(ours.numpy(), padded[:, y : y + 16, x : x + 16])
        places.add((int(y), int(x)))
    assert len(places) > 25
    assert out.is_contiguous()


@pytest.mark.parametrize(("size", "crop_pct"), [((224, 224), 0.875), ((32, 48), 0.9), ((64, 64), 1.0), ((48, 32), 0.7)])
@pytest.mark.parametrize("shape", [(250, 333), (333, 250), (64, 64), (40, 200)])
def test_eval_crop_covers_and_keeps_the_aspect(size: tuple[int, int], crop_pct: float, shape: tuple[int, int]) -> None:
    crop = EvalCrop(size, crop_pct)
    height, width = crop.resized(*shape)
    assert height >= math.floor(size[0] / crop_pct)
    assert width >= math.floor(size[1] / crop_pct)
    assert abs(height / shape[0] - width / shape[1]) <= 1.0 / min(shape)
    image = tensor(picture(0, shape))
    out = crop(image[None], np.empty((1, 0)))[0]
    whole = pillow(image, (height, width), "bicubic")
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    assert worst(out, whole[:, top : top + size[0], left : left + size[1]]) <= 2


def test_eval_crop_is_what_timm_does_for_squares() -> None:
    # timm: short side to floor(224 / 0.875) = 256, long side truncated, centre 224.
    assert EvalCrop((224, 224), 0.875).resized(300, 401) == (256, 342)
    assert EvalCrop((224, 224), 0.9).resized(401, 300) == (331, 248)


@pytest.mark.parametrize("crop", [TrainCrop((24, 16)), PadCrop((24, 16), 2), EvalCrop((24, 16))])
def test_any_sizes_together(crop: Crop) -> None:
    images = [
        tensor(picture(i, size)) for i, size in enumerate([(30, 30), (24, 16), (90, 70), (30, 30), (8, 99), (24, 16)])
    ]
    draws = rng.uniforms(0, 0, np.arange(6), crop.draws)
    out = crop_images(crop, images, draws)
    assert out.shape == (6, 3, 24, 16)
    assert out.dtype == torch.uint8
    for i, image in enumerate(images):
        assert torch.equal(out[i], crop(image[None], draws[i : i + 1])[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainCrop((0, 8)),
        lambda: TrainCrop((8, 8), scale=(0.5, 1.5)),
        lambda: TrainCrop((8, 8), interpolation="lanczos"),
        lambda: PadCrop((8, 8), 8),
        lambda: PadCrop((8, 8), mode="edge"),
        lambda: EvalCrop((8, 8), crop_pct=0),
        lambda: resize(torch.zeros(3, 4, 4), (2, 2)),
    ],
)
def test_impossible_settings(make: object) -> None:
    with pytest.raises(UsageError, match=r"expected .*got"):
        make()  # type: ignore[operator]
