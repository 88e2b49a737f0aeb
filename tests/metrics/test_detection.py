"""COCO's figures against numbers that pycocotools 2.0.11 gave for the same made-up set, and against arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitrail.data import rng
from vitrail.metrics.detection import FIGURES, DetectionMetrics, Image, evaluator

CLASSES = 4  # of which the last has no object

# pycocotools 2.0.11 on made_up(): COCOeval(gt, gt.loadRes(results), "bbox").stats, in its order
GOLDEN = (
    0.10166251057154398,
    0.23196143143726136,
    0.07491749174917493,
    0.1547854785478548,
    0.09964985784292714,
    0.2691419141914191,
    0.13882783882783883,
    0.26556776556776557,
    0.26556776556776557,
    0.20555555555555557,
    0.3458333333333333,
    0.35833333333333334,
)


def made_up() -> list[Image]:
    """Twelve images: objects of all sizes, crowds, one empty, equal scores, boxes nearly right, wrong or twice."""
    images = []
    for number in range(12):
        u = rng.uniforms(7, number, np.arange(40), 12)
        count = 0 if number == 5 else 1 + int(u[0, 0] * 6)
        side = 8 * (25.0 ** u[:count, 1])
        xywh = np.stack([300 * u[:count, 2], 200 * u[:count, 3], side, side * (0.5 + u[:count, 4])], 1).round(2)
        labels = (u[:count, 5] * 3).astype(np.int64)
        crowd = u[:count, 6] < 0.15
        area = (0.8 * xywh[:, 2] * xywh[:, 3]).round(2)
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        found, classes = [], []
        for i in range(count):
            for again in range(int(3 * u[i, 7])):
                move = (u[20 + i, 4 * again : 4 * again + 4] - 0.5) * 0.4 * xywh[i, [2, 3, 2, 3]]
                found.append(corners[i] + move)
                classes.append(labels[i] if u[i, 8] < 0.85 else (labels[i] + 1) % CLASSES)
        for i in range(4):
            left, top, wide, high = 300 * u[30 + i, :4]
            found.append(np.array([left, top, left + 5 + wide / 3, top + 5 + high / 3]))
            classes.append(int(u[30 + i, 5] * CLASSES))
        scores = (u[: len(found), 11] * 20).round() / 20  # so coarse that many are equal
        boxes = np.array(found).reshape(-1, 4).round(3)
        images.append(Image(xywh, labels, crowd, area, boxes, scores, np.array(classes, dtype=np.int64)))
    return images


def test_the_figures_are_those_of_pycocotools() -> None:
    run = evaluator(made_up(), CLASSES)
    np.testing.assert_allclose(run.stats, GOLDEN, rtol=0, atol=1e-15)


def test_names_follow_the_order_of_coco() -> None:
    metrics = DetectionMetrics(CLASSES)
    metrics.images = made_up()
    metrics.positions = list(range(12))
    numbers = metrics.compute()
    assert [numbers[name] for name in FIGURES] == pytest.approx(list(GOLDEN))
    table = metrics.per_class(["a", "b", "c", "d"])
    assert np.mean([row["ap"] for row in table[:3]]) == pytest.approx(numbers["ap"])
    assert math.isnan(table[3]["ap"])
    assert metrics.describe()["per_class"][3]["ap"] is None
    assert numbers["count"] == 12


def test_order_of_the_images_is_that_of_the_set() -> None:
    images = made_up()
    metrics = DetectionMetrics(CLASSES)
    order = [3, 0, 2, 1, *range(11, 3, -1)]
    metrics.images, metrics.positions = [images[i] for i in order], order
    assert metrics.compute()["ap"] == pytest.approx(GOLDEN[0], abs=1e-15)


def test_a_crowd_makes_no_detection_wrong() -> None:
    xywh = np.array([[0.0, 0, 20, 20], [100, 100, 80, 80]])
    boxes = np.array([[0.0, 0, 20, 20], [110, 110, 130, 130], [140, 140, 160, 160]])
    area = xywh[:, 2] * xywh[:, 3]

    def ap(crowd: bool) -> float:
        image = Image(
            xywh, np.zeros(2, dtype=np.int64), np.array([False, crowd]), area, boxes, np.array([0.5, 0.9, 0.8]),
            np.zeros(3, dtype=np.int64),
        )  # fmt: skip
        return float(evaluator([image], 1).stats[0])

    assert ap(True) == 1.0
    assert ap(False) < 0.3


def test_no_detection_and_no_object_are_no_faults() -> None:
    none = np.zeros(0, dtype=np.int64)
    empty = Image(np.zeros((0, 4)), none, none.astype(bool), np.zeros(0), np.zeros((0, 4)), np.zeros(0), none)
    metrics = DetectionMetrics(2)
    metrics.images, metrics.positions = [empty], [0]
    numbers = metrics.compute()
    assert numbers["ap"] == 0
    assert "ap_small" not in numbers
