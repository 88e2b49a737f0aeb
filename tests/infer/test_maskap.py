"""Figures of masks, with a network that answers what it is told."""

import numpy as np
import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.data.detection.masks import to_rle
from vitrail.data.detection.sets import Annotations, DetectionSet
from vitrail.data.imageset import ArrayStore
from vitrail.infer.detector import Detector
from vitrail.infer.maskap import has_outlines, mask_figures
from vitrail.models import config_of
from vitrail.nn.detection import Detections
from vitrail.weights import Card

SIDE = 64


def masks_of(shift=0):
    found = np.zeros((2, SIDE, SIDE), dtype=bool)
    found[0, 8:24, 8 + shift : 24 + shift] = True
    found[1, 32:56, 40 - shift : 60 - shift] = True
    return found


def boxes_of(masks):
    rows = []
    for mask in masks:
        y, x = np.nonzero(mask)
        rows.append([x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()])
    return np.array(rows, dtype=np.float64)


def told(masks):
    """A detector that finds these masks, each with its class, in any image."""

    class Told(torch.nn.Module):
        config = config_of("test_detr_masks")

        def forward(self, images, keep):
            xywh = torch.from_numpy(boxes_of(masks)).float() / SIDE
            logits = torch.full((2, self.config.num_classes + 1), -9.0)
            logits[0, 1] = logits[1, 0] = 9.0
            boxes = torch.cat([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], 1)
            return Detections(
                logits[None, None], boxes[None, None], masks=torch.from_numpy(masks).float()[None] * 2 - 1
            )

    card = Card(name="test_detr_masks", input_size=(SIDE, SIDE))
    return Detector(Told(), card, device="cpu", threshold=0.0)


def images_with(masks, shapes):
    objects = Annotations.of(boxes_of(masks), [1, 0], area=masks.sum((1, 2)), shapes=shapes)
    store = ArrayStore("made", np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8))
    names = ClassMap.of([str(i) for i in range(config_of("test_detr_masks").num_classes)])
    return DetectionSet(store, np.array([0]), (1,), np.array([[SIDE, SIDE]]), (objects,), names)


@pytest.mark.parametrize(("shift", "ap"), [(0, 1.0), (2, 0.6), (40, 0.0)])
def test_shifted_masks_have_the_average_precision_of_their_overlap(shift, ap):
    """By 2 of 16 columns the overlap is 14/18 = 0.78, by 2 of 20 it is 18/22 = 0.82: thresholds up to 0.75 and 0.80."""
    truth = masks_of()
    images = images_with(truth, [to_rle(mask) for mask in truth])
    assert has_outlines(images)
    found = mask_figures(told(masks_of(shift) if shift < 40 else np.roll(truth, 40, 2)), images)
    expected = (0.6 + 0.7) / 2 if shift == 2 else ap
    assert found["ap"] == pytest.approx(expected, abs=1e-3)


def test_an_object_without_an_outline_counts_as_its_box():
    truth = masks_of()
    images = images_with(truth, [to_rle(truth[0]), None])
    assert mask_figures(told(truth), images)["ap"] == pytest.approx(1.0, abs=1e-6)
    assert not has_outlines(images_with(truth, [None, None]))
