"""Runs that learn to find objects, from end to end: tiny, resumed = uninterrupted, bad data named, what is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.data.boxed import annotation, usual, write_coco
from tests.training.cutting import require_resumed_equals_uninterrupted
from vitrail.errors import DataError, UsageError
from vitrail.metrics.detection import DetectionMetrics, Image
from vitrail.metrics.diagnosis import signs_of, why_nothing
from vitrail.training import train
from vitrail.training.baserecipe import BaseRecipe
from vitrail.weights import load_folder

TINY = {
    "task": "detect",
    "model.name": "test_deformable_detr_small",
    "model.img_size": 32,
    "train.epochs": 2,
    "train.batch_size": 2,
    "train.precision": "fp32",
    "train.threads": 1,
    "data.workers": 0,
    "augment.crop": 0.0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_coco(write_coco(tmp_path_factory.mktemp("data")), split="val"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    said = []
    options = {"data.source": data, "out": str(tmp_path_factory.mktemp("runs")), "train.selftest": True}
    options["matching.denoising"] = 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrail.training.selftest.selftest.__defaults__", (3,))
        found = train({**TINY, **options}, say=said.append)
    return found, "\n".join(said)


def test_a_run_measures_and_keeps_the_ids_of_its_data(run):
    found, said = run
    assert "4 training images, 4 val; 2 classes" in said
    assert "with holes" in said
    assert 0 <= found.metrics["ap"] <= found.metrics["ap50"] <= 1
    assert "ap_large" not in found.metrics  # no object is so large
    model, card, classes = load_folder(found.folder)
    assert classes.ids == (3, 7)
    assert model.config.num_classes == 2
    assert card.input_size == (32, 32)
    results = json.loads((found.folder / "predictions_val.json").read_text())
    assert {row["image_id"] for row in results} == {10, 20, 30, 40}
    assert {row["category_id"] for row in results} <= {3, 7}
    details = json.loads((found.folder / "details_val.json").read_text())
    assert [row["objects"] for row in details["per_class"]] == [3, 1]


def test_the_selftest_says_what_came_of_eight_images(run):
    assert "self-test: 3 images, 3 steps: the loss went from" in run[1]


def test_resumed_equals_uninterrupted(data, tmp_path):
    require_resumed_equals_uninterrupted({**TINY, "data.source": data, "matching.denoising": 8}, tmp_path, at=3)


def test_detr_and_a_batch_in_pieces(data, tmp_path):
    options = {"model.name": "test_detr_pvt", "train.epochs": 1, "train.accumulation": 2, "data.source": data}
    found = train({**TINY, **options, "out": str(tmp_path)}, say=str)
    assert found.summary["classes"] == 2


def test_masks_are_trained_where_the_network_has_them(data, tmp_path):
    options = {"model.name": "test_detr_masks", "train.epochs": 1, "data.source": data, "out": str(tmp_path)}
    assert train({**TINY, **options}, say=str).metrics["count"] == 4


def test_bad_data_are_named_before_training(tmp_path):
    root = write_coco(tmp_path / "data", [*usual(), annotation(8, 10, [1, 1, 5, 5], 90)])
    with pytest.raises(DataError, match="annotation 8: category_id 90"):
        train({**TINY, "data.source": str(root), "out": str(tmp_path / "runs")}, say=str)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.name": "test_detr", "matching.denoising": 10}, "matching.denoising has no effect on test_detr"),
        ({"model.name": "test_vit"}, "a model that finds objects"),
        ({"train.label_smoothing": 0.1}, "no effect on the losses of detection"),
        ({"augment.scales": [2.0, 1.0]}, "expected scales as"),
        ({"matching.los": "ce"}, "loss"),
    ],
)
def test_options_without_effect_are_refused(data, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        train({**TINY, **options, "data.source": data, "out": str(tmp_path)}, say=str)


def test_the_defaults_are_whole_for_a_user_with_photographs(data):
    from vitrail.training.detectjob import DetectJob

    recipe = BaseRecipe.load({"task": "detect", "data.source": data}, environment={})
    job = DetectJob.open(recipe, None, str)
    settled, made = job.resolve(torch.device("cpu"))
    assert {key for key, value in settled.flat().items() if value == "auto"} == {"data.cache"}
    assert settled.model.name.startswith("deformable_detr")
    assert settled.matching.denoising > 0
    assert all(d.reason for d in made)


def evaluated(move=(0, 0), swap=False, score=0.9):
    """Detections that are the truth, moved, with other classes, or hardly said."""
    metrics = DetectionMetrics(3)
    for number in range(4):
        xywh = np.array([[10.0, 10, 20, 20], [50, 40, 30, 20]])
        labels = np.array([number % 3, (number + 1) % 3])
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) + np.tile(move, 2)
        found = (labels + 1) % 3 if swap else labels
        area = xywh[:, 2] * xywh[:, 3]
        none = np.zeros(2, dtype=bool)
        metrics.images.append(Image(xywh, labels, none, area, corners, np.full(2, score), found))
        metrics.positions.append(number)
    return signs_of(metrics)


def test_why_nothing_is_found_is_told_apart():
    assert why_nothing(evaluated(), [3.0, 2.0], 1e-3) == []
    assert "classes wrong: AP50 would be 100 %" in why_nothing(evaluated(swap=True), [3.0, 2.0], 1e-3)[0]
    assert "the boxes off" in why_nothing(evaluated(move=(13, 12)), [3.0, 2.0], 1e-3)[0]
    assert "neither boxes nor classes" in why_nothing(evaluated((300, 300), swap=True), [3.0, 2.0], 1e-3)[0]
    assert "no answer has a score above" in why_nothing(evaluated((300, 0), score=0.01), [3.0, 2.0], 1e-3)[0]
    assert "the loss has not fallen" in why_nothing(evaluated((300, 0)), [3.0, 3.1], 1e-3)[0]
