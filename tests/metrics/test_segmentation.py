"""Figures of segmentation equal their definitions, counted pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from vitrail.metrics.segmentation import SegmentationMetrics, confusion_of


def maps(seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    answer = torch.randint(0, classes, (9, 11), generator=generator)
    truth = torch.randint(0, classes, (9, 11), generator=generator)
    truth[0] = 255
    return answer, truth


def test_figures_equal_their_definitions():
    answer, truth = maps()
    numbers = SegmentationMetrics(4)
    numbers.add(confusion_of(answer, truth, 4))
    found, rows = numbers.compute(), numbers.per_class(["a", "b", "c", "d"])
    known = truth != 255
    ious = []
    for k in range(4):
        both = ((answer == k) & (truth == k) & known).sum()
        either = (((answer == k) | (truth == k)) & known).sum()
        ious.append(float(both / either))
        assert rows[k]["iou"] == pytest.approx(ious[-1])
        assert rows[k]["accuracy"] == pytest.approx(float(both / ((truth == k) & known).sum()))
        assert rows[k]["precision"] == pytest.approx(float(both / ((answer == k) & known).sum()))
    assert found["miou"] == pytest.approx(sum(ious) / 4)
    assert found["pixel_accuracy"] == pytest.approx(float((answer == truth)[known].float().mean()))
    assert found["pixels"] == int(known.sum())
    assert rows[2]["name"] == "c"


def test_parts_add_up_and_absent_classes_are_left_out():
    numbers, whole = SegmentationMetrics(5), SegmentationMetrics(5)
    for seed in (1, 2):
        numbers.add(confusion_of(*maps(seed), 5))
    answers, truths = zip(*(maps(seed) for seed in (1, 2)), strict=True)
    whole.add(confusion_of(torch.cat(answers), torch.cat(truths), 5))
    assert torch.equal(numbers.confusion, whole.confusion)
    assert numbers.compute()["miou"] == pytest.approx(sum(r["iou"] for r in numbers.per_class()[:4]) / 4)


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="at least one pixel"):
        SegmentationMetrics(3).compute()
    with pytest.raises(ValueError, match="num_classes"):
        SegmentationMetrics(0)
    with pytest.raises(ValueError, match="expected \\(3, 3\\)"):
        SegmentationMetrics(3).add(torch.zeros(2, 2, dtype=torch.int64))
