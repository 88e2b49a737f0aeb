"""A run that segments from end to end: what is said before it starts, resumed = uninterrupted, what comes after it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.cutting import require_resumed_equals_uninterrupted
from vitrail.errors import DataError, UsageError
from vitrail.infer import load
from vitrail.training import train
from vitrail.training.baserecipe import BaseRecipe
from vitrail.training.recipe import Recipe
from vitrail.training.segmentrecipe import SegmentRecipe
from vitrail.weights import load_folder, open_folder

TINY = {
    "model.name": "test_segmenter_fpn",
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "train.threads": 1,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Bright squares on dark ground, twelve pictures of 36 x 44 to train on and four to validate on."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            draws = np.random.default_rng(i + 100 * (split == "val"))
            pixels = draws.integers(0, 90, (36, 44, 3), dtype=np.uint8)
            mask = np.zeros((36, 44), dtype=np.uint8)
            top, left = draws.integers(0, 20, 2)
            pixels[top : top + 14, left : left + 18] += 140
            mask[top : top + 14, left : left + 18] = 1
            mask[0] = 255
            for kind, values in (("images", pixels), ("masks", mask)):
                path = root / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    (root / "classes.txt").write_text("ground\nsquare\n")
    return root


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("runs"), []
    more = {"segment.class_weights": "root", "segment.dice": 0.5, "train.epochs": 8, "train.eval_every": 4}
    found = train({**TINY, **more, "data.source": str(fields), "out": str(out)}, say=said.append)
    return found, "\n".join(said)


def test_the_meaning_of_values_is_shown_before_training(run):
    _, said = run
    table, _, rest = said.partition("run folder")
    assert "0  ground" in table
    assert "255  (ignored)" in table
    assert "weights of the classes: ground" in table
    assert "epoch 4/8" in rest


def test_a_run_learns_and_leaves_what_others_read(run):
    found, _ = run
    assert found.folder.parent.name == "segment"  # seen from the data
    assert found.metrics["miou"] > 0.5
    assert found.metrics["count"] == 4
    model, card, classes = load_folder(found.folder)
    assert classes.names == ("ground", "square")
    assert classes.ids == (0, 1)
    assert card.input_size == (32, 32)
    assert open_folder(found.folder).extra["short_side"] is None
    details = json.loads((found.folder / "details_val.json").read_text())
    assert details["per_class"][1]["name"] == "square"
    assert np.array(details["confusion"]).sum() == found.metrics["pixels"]
    with Image.open(found.folder / "answers_val.png") as sheet:
        assert sheet.width > 600
    assert model.config.num_classes == 2


def test_the_best_weights_answer_as_the_run_measured(run, fields):
    """What is predicted of a file, against its mask, gives the pixel accuracy of the summary."""
    found, _ = run
    segmenter = load(found.folder)
    right = known = 0
    for i in range(4):
        answer = segmenter(fields / "val" / "images" / f"{i}.png", how="whole")
        with Image.open(fields / "val" / "masks" / f"{i}.png") as mask:
            truth = np.asarray(mask)
        right += int((answer.labels == truth)[truth < 2].sum())
        known += int((truth < 2).sum())
    assert right / known == pytest.approx(found.metrics["pixel_accuracy"], abs=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_equals_uninterrupted(fields, tmp_path, precision):
    settings = {**TINY, "train.precision": precision, "data.source": str(fields)}
    require_resumed_equals_uninterrupted(settings, tmp_path, at=4)


def test_a_run_starts_from_another_one_or_from_a_classifier(run, fields, tmp_path):
    settings = {k: v for k, v in TINY.items() if k != "model.name"}
    settings |= {"data.source": str(fields), "out": str(tmp_path), "train.epochs": 1, "optim.lr": 1e-9}
    said = []
    found = train({**settings, "model.pretrained": str(run[0].folder), "name": "again"}, say=said.append)
    assert found.metrics["miou"] == pytest.approx(run[0].metrics["miou"], abs=0.02)
    backbone = tmp_path / "backbone"
    from vitrail.models import create_model
    from vitrail.weights import Card, save_folder

    save_folder(backbone, create_model("test_pvt_v2"), card=Card(name="test_pvt_v2", input_size=(32, 32)))
    train({**settings, **TINY, "train.epochs": 1, "model.backbone": str(backbone), "name": "on"}, say=said.append)
    assert any(line.startswith("backbone:") for line in said)


def test_the_recipe_is_settled_from_the_data():
    from vitrail.data.masks import MaskArrays
    from vitrail.training.segmentrecipe import resolve_segment

    large = MaskArrays("x", torch.zeros(9, 3, 700, 900, dtype=torch.uint8), torch.zeros(9, 700, 900, dtype=torch.uint8))
    recipe = Recipe.load({"task": "segment", "data.source": "x"})
    assert isinstance(recipe, SegmentRecipe)
    settled, made = resolve_segment(recipe, large, torch.device("cpu"))
    assert settled.model.name == "fpn_pvt_v2_b0"
    assert settled.data.short_side == 256
    assert settled.model.img_size == (256, 256)
    assert [key for key, value in settled.flat().items() if value == "auto"] == ["data.cache"]
    assert {d.key for d in made} >= {"optim.lr", "train.epochs", "data.short_side"}
    again = BaseRecipe.check(settled.model_dump(mode="json"))
    assert again == settled


def test_what_a_run_refuses(fields, tmp_path):
    settings = {**TINY, "data.source": str(fields), "out": str(tmp_path)}
    with pytest.raises(UsageError, match="two images at least, for batch norm"):
        train({**settings, "train.accumulation": 4}, say=str)
    with pytest.raises(UsageError, match="a model for the task segment"):
        train({**settings, "model.name": "test_vit"}, say=str)
    with pytest.raises(DataError, match="neither one of the 2 named classes"):
        train({**settings, "data.classes": ["a", "b"], "data.ignore": [7]}, say=str)
    assert not (tmp_path / "segment").exists()
