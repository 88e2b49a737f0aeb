"""The verbs on a run that segments: train, predict, val, explain, and what they refuse."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    root = tmp_path_factory.mktemp("fields")
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 90, (32, 40, 3), dtype=np.uint8)
        pixels[:, 20:] += 120
        mask = np.zeros((32, 40), dtype=np.uint8)
        mask[:, 20:] = 5
        for kind, values in (("images", pixels), ("masks", mask)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(root / kind / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
    from vitrail.cli.main import main

    out = tmp_path_factory.mktemp("runs")
    words = ["train", fields, "--out", out, "--name", "tiny", "--model", "test_segmenter_mlp", "--epochs", "1"]
    words += ["--batch", "4", "--device", "cpu", "--set", "train.precision=fp32", "--set", "train.threads=1"]
    assert main([str(w) for w in words]) == 0
    return out / "segment" / "tiny"


def test_predict_writes_masks_and_pictures(vitrail, run, fields, tmp_path):
    out = tmp_path / "out"
    ran = vitrail("predict", run, fields / "images", "--out", out, "--csv", tmp_path / "shares.csv", "--json")
    assert ran.code == 0, ran.err
    answers = ran.json["predictions"]
    assert len(answers) == 8
    with Image.open(answers[0]["mask"]) as mask:
        assert mask.size == (40, 32)
        assert set(np.unique(np.asarray(mask))) <= {0, 5}
    with Image.open(answers[0]["overlay"]) as overlay:
        assert overlay.width > 600
    with (tmp_path / "shares.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(float(rows[0][name]) for name in ("0", "5")) == pytest.approx(1, abs=1e-5)


def test_predict_names_what_cannot_be_used(vitrail, run, fields, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no")
    ran = vitrail("predict", run, tmp_path / "x.png", fields / "images" / "0.png")
    assert ran.code == 3
    assert "1 of 2 images could not be used" in ran.err


@pytest.mark.parametrize(
    "option", [("--threshold", 0.5), ("--tile", 64), ("--top", 2)], ids=lambda o: o[0].removeprefix("--")
)
def test_options_without_effect_are_refused(vitrail, run, fields, option):
    ran = vitrail("predict", run, fields / "images", *option)
    assert ran.code == 2
    assert f"{option[0]} has no effect" in ran.err


def test_val_shows_a_table_of_classes(vitrail, run, fields):
    ran = vitrail("val", run)
    assert ran.code == 0, ran.err
    for words in ("mean IoU", "pixel accuracy", "of the pixels"):
        assert words in ran.out
    told = vitrail("val", run, "--json").json
    assert 0 <= told["metrics"]["miou"] <= 1
    assert len(told["per_class"]) == 2
    whole = vitrail("val", run, "--data", fields, "--split", "train", "--json").json
    assert whole["metrics"]["count"] == 7  # of its own data, the split it was trained on


def test_val_on_other_data(vitrail, run, fields, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            shutil.copy(fields / kind / f"{i}.png", tmp_path / kind)
    assert vitrail("val", run, "--data", tmp_path, "--json").json["metrics"]["count"] == 3
    Image.fromarray(np.full((32, 40), 9, dtype=np.uint8)).save(tmp_path / "masks" / "0.png")
    ran = vitrail("val", run, "--data", tmp_path)
    assert ran.code == 3
    assert "are not those of the model" in ran.err


def test_explain_draws_pixels(vitrail, run, fields, tmp_path):
    told = vitrail("explain", run, fields / "images" / "0.png", "--at", "30,10", "--out", tmp_path, "--json").json
    assert told["explanations"][0]["method"] == "grad_cam"
    with Image.open(told["pictures"][0]) as drawn:
        assert drawn.width > 100
    assert len(vitrail("explain", run, "--out", tmp_path, "--json").json["pictures"]) == 1  # the one that was held out
    ran = vitrail("explain", run, fields / "images" / "0.png", "--at", "300,10", "--out", tmp_path)
    assert ran.code == 2
    assert "inside the image" in ran.err
    assert vitrail("explain", run, fields / "images" / "0.png", "--figures").code == 2
