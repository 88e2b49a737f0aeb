"""Boxes and masks go through every transform with their pixels; batches hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.data import rng
from vitrail.data.augment import Normalize
from vitrail.data.coloring import ColorJitter
from vitrail.data.detection.batches import BoxCollate
from vitrail.data.detection.masks import to_rle
from vitrail.data.detection.sets import Annotations, DetectionSet, Scene
from vitrail.data.detection.transforms import BoxPrepare, Fit, Prepared
from vitrail.data.imageset import ArrayStore
from vitrail.data.samples import SampleLoader
from vitrail.errors import UsageError

NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SIZE = (60, 80)


def scene(seed: int = 0) -> Scene:
    """White boxes on black, each with its mask: wherever they go, the white must go too."""
    draws = np.random.default_rng(seed)
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    boxes, shapes = [], []
    for left, top in ((5, 6), (45, 30)):
        w, h = draws.integers(12, 28, 2)
        image[:, top : top + h, left : left + w] = 255
        mask = np.zeros(SIZE, dtype=bool)
        mask[top : top + h, left : left + w] = True
        boxes.append([left, top, w, h])
        shapes.append(to_rle(mask))
    return Scene(image, Annotations.of(boxes, [0, 1], shapes=shapes))


def corners(sample: Prepared) -> np.ndarray:
    height, width = sample.image.shape[-2:]
    centre = sample.boxes_cxcywh01.double().numpy()
    return np.concatenate([centre[:, :2] - centre[:, 2:] / 2, centre[:, :2] + centre[:, 2:] / 2], 1) * [
        width, height, width, height,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "prepare",
    [
        BoxPrepare(Fit(60, 80), masks=True),
        BoxPrepare(Fit(90, 300), masks=True),
        BoxPrepare(Fit(60, 80), hflip=1.0, masks=True),
        BoxPrepare(Fit(60, 80), crop=1.0, crop_share=0.4, masks=True),
        BoxPrepare(Fit(60, 80), scales=(0.5, 0.6), masks=True),
        BoxPrepare(Fit(60, 80), scales=(1.5, 2.0), masks=True),
        BoxPrepare(Fit(64, 64), hflip=0.5, crop=0.5, scales=(0.6, 1.8), masks=True),
    ],
)
def test_boxes_and_masks_stay_around_what_they_were_around(prepare: BoxPrepare) -> None:
    for number in range(8):
        made = prepare(scene(number), rng.uniforms(0, 0, [number], prepare.draws)[0])
        height, width = made.image.shape[-2:]
        assert made.masks is not None
        for box, mask in zip(corners(made), made.masks.numpy(), strict=True):
            assert (box >= -1e-4).all()
            assert (box <= np.array([width, height, width, height]) + 1e-4).all()
            inner = np.rint(box + np.array([1.5, 1.5, -1.5, -1.5])).astype(int)
            if (inner[2:] > inner[:2]).all():
                assert (made.image[0, inner[1] : inner[3], inner[0] : inner[2]] > 200).all()
                assert mask[inner[1] : inner[3], inner[0] : inner[2]].all()
            assert abs(mask.sum() - (box[2:] - box[:2]).prod()) <= 0.2 * mask.sum() + 40


def test_the_size_follows_the_shorter_side_unless_the_longer_is_too_long() -> None:
    assert Fit(800, 1333).target((480, 640)) == (800, 1067)
    assert Fit(800, 1333).target((300, 900)) == (444, 1333)
    assert Fit(128, 128).target((96, 120)) == (102, 128)


def test_a_cut_keeps_an_object_only_if_enough_of_it_is_left() -> None:
    whole = BoxPrepare(Fit(60, 80), crop=1.0, crop_share=0.3, min_visible=1.0)
    some = BoxPrepare(Fit(60, 80), crop=1.0, crop_share=0.3, min_visible=0.0)
    counts = [[len(p(scene(), rng.uniforms(0, 0, [n], p.draws)[0]).labels) for n in range(30)] for p in (whole, some)]
    assert sum(counts[0]) < sum(counts[1])


def test_crowds_and_boxes_without_area_are_measured_but_not_learned() -> None:
    objects = Annotations.of([[5, 5, 10, 10], [0, 0, 0, 4], [90, 0, 5, 5], [20, 20, 10, 10]], [0, 1, 1, 0],
                             crowd=[False, False, False, True])  # fmt: skip
    made = BoxPrepare(Fit(60, 80))(Scene(torch.zeros(3, *SIZE, dtype=torch.uint8), objects), np.zeros(0))
    assert made.labels.tolist() == [0]
    assert len(made.objects) == 4


def loader(workers: int = 0, start_seed: int = 0, **more: float) -> SampleLoader:
    scenes = [scene(i) for i in range(6)]
    pixels = np.stack([s.image.permute(1, 2, 0).numpy() for s in scenes])
    images = DetectionSet(
        ArrayStore("made", pixels), np.arange(6), tuple(range(6)), np.full((6, 2), SIZE),
        tuple(s.objects for s in scenes), ClassMap.of(["a", "b"]),
    )  # fmt: skip
    prepare = BoxPrepare(Fit(60, 80), hflip=0.5, crop=0.5, scales=(0.7, 1.3), jitter=ColorJitter(0.2))
    return SampleLoader(
        images, batch_size=3, prepare=prepare, collate=BoxCollate(images.most, NORMALIZE), seed=start_seed,
        shuffle=True, workers=workers,
    )  # fmt: skip


def test_batches_are_a_function_of_seed_epoch_and_number() -> None:
    here, threaded = list(loader().epoch(3)), list(loader(workers=2).epoch(3, start=1))
    for name in ("images", "pixels", "labels", "boxes_cxcywh01", "true_xywh", "indices"):
        assert torch.equal(getattr(here[1], name), getattr(threaded[0], name)), name
    other = next(iter(loader(start_seed=1).epoch(3)))
    assert here[0].indices.tolist() != other.indices.tolist() or not torch.equal(here[0].labels, other.labels)


def test_a_batch_is_padded_and_says_where() -> None:
    images = [torch.full((3, 4, 6), 255, dtype=torch.uint8), torch.full((3, 5, 3), 255, dtype=torch.uint8)]
    one = Annotations.of([[1, 1, 2, 2]], [1], crowd=[True], area=[3.5])
    made = [Prepared(image, torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), one, (40, 60)) for image in images]
    batch = BoxCollate(2, NORMALIZE)([*made, None], torch.arange(3))
    assert batch.images.shape == (3, 3, 5, 6)
    assert batch.pixels.sum((1, 2)).tolist() == [24, 15, 30]  # the unreadable one has none that is padding
    assert float(batch.images[0, :, 4:].abs().max()) == 0
    assert float(batch.images[0, 0, 0, 0]) == 2.0
    assert batch.keep.tolist() == [True, True, False]
    assert batch.labels.tolist() == [[1, -1], [1, -1], [-1, -1]]
    assert batch.true_crowd.tolist() == [[True, False], [True, False], [False, False]]
    assert batch.true_area[0].tolist() == [3.5, 0.0]
    assert batch.sizes[1].tolist() == [40, 60]
    assert batch.objects_an_image == 1.0
    assert batch.count == 2


def test_parts_of_a_batch_learn_how_many_objects_the_whole_has() -> None:
    """What losses are divided by must not depend on how many processes share a batch."""
    none = Annotations.of([], [])
    made = [
        Prepared(
            torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), torch.rand(n, 4), none, (4, 4)
        )
        for n in (1, 0, 5)
    ]
    collate = BoxCollate(5, NORMALIZE)
    whole = collate([*made, None], torch.arange(4))
    parts = [collate(made[:2], torch.arange(2)), collate([made[2], None], torch.arange(2))]
    told: list[list[float]] = []
    for part in parts:
        part.joined(lambda values: told.append(values) or values)  # type: ignore[func-returns-value]
    total = [sum(column) for column in zip(*told, strict=True)]
    assert [part.joined(lambda _: total).objects_an_image for part in parts] == [whole.objects_an_image] * 2
    assert [part.objects_an_image for part in parts] == [0.5, 5.0]


@pytest.mark.parametrize("bad", [{"hflip": 2.0}, {"scales": (2.0, 1.0)}, {"crop_share": 0.0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        BoxPrepare(Fit(10, 10), **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Fit(10, 5)
