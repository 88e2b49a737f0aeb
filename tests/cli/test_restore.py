"""The verbs on a run of restoration: predict, val, explain, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.training.test_restore import TINY, waves
from vitrail.data.sixteen import read_deep, save_picture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from vitrail.training import train

    root = tmp_path_factory.mktemp("restore")
    (root / "in").mkdir()
    for i in range(8):
        waves(i).save(root / "in" / f"{i}.png")
    recipe = {**TINY, "data.source": str(root / "in"), "out": str(root / "runs"), "name": "tiny", "train.epochs": 1}
    train(recipe, say=str)
    return root / "runs" / "restore" / "tiny"


def size(path):
    with Image.open(path) as image:
        return image.size


def test_predict_writes_pictures_and_before_and_after(vitrail, run, tmp_path):
    (tmp_path / "a").mkdir()
    waves(1, side=30).save(tmp_path / "x.png")
    waves(2, side=21).save(tmp_path / "a" / "x.png")
    told = vitrail("predict", run, tmp_path / "x.png", tmp_path / "a", "--out", tmp_path / "out", "--json").json
    sizes = [size(found["file"]) for found in told["predictions"]]
    assert sizes == [(60, 60), (42, 42)]
    assert [found["width_height"] for found in told["predictions"]] == [[60, 60], [42, 42]]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "x-2.png", "x-2_before_after.png", "x.png", "x_before_after.png",
    ]  # fmt: skip


def test_predict_keeps_sixteen_bits_and_cuts_tiles(vitrail, run, tmp_path):
    picture = (np.array(waves(3, side=50)).astype(np.uint16) * 257)[:, :44]
    save_picture(tmp_path / "deep.tif", picture)
    ran = vitrail("predict", run, tmp_path / "deep.tif", "--out", tmp_path, "--tile", "32", "--json")
    found = ran.json["predictions"][0]
    assert found["bits"] == 16
    assert found["tiles"] > 1
    assert found["tile"] == 32
    assert read_deep(found["file"]).shape == (100, 88, 3)


def test_predict_tells_of_pictures_it_cannot_use(vitrail, run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    waves(1, side=30).save(tmp_path / "good.png")
    ran = vitrail("predict", run, tmp_path / "bad.png", tmp_path / "good.png", "--out", tmp_path / "out", "--json")
    assert ran.code == 3
    assert [found["error"] is None for found in ran.json["predictions"]] == [False, True]


@pytest.mark.parametrize("option", ["--threshold=0.5", "--img-size=32", "--top=3", "--tile=9"])
def test_predict_refuses_what_has_no_effect(vitrail, run, tmp_path, option):
    waves(1).save(tmp_path / "x.png")
    if option == "--tile=9":
        option = "--tile=7"
    ran = vitrail("predict", run, tmp_path / "x.png", option, "--out", tmp_path)
    assert ran.code == 2, ran.err


def test_val_measures_the_held_out_part_and_any_set_beside_bicubic(vitrail, run, tmp_path):
    ran = vitrail("val", run)
    assert ran.code == 0, ran.err
    assert "luminance (BT.601)" in ran.out
    assert "bicubic PSNR" in ran.out
    for name in ("b", "a"):
        (tmp_path / name / "HR").mkdir(parents=True)
        waves(7, side=40).save(tmp_path / name / "HR" / "1.png")
    sets = vitrail("val", run, "--data", tmp_path, "--json").json["sets"]
    assert [found["name"] for found in sets] == ["a", "b"]
    assert sets[0]["psnr"] == sets[1]["psnr"]
    assert sets[0]["base_psnr"] > 20
    assert -1 < sets[0]["ssim"] < 1
    json.dumps(sets)


def test_explain_draws_what_a_patch_was_made_from(vitrail, run, tmp_path):
    waves(1, side=40).save(tmp_path / "x.png")
    ran = vitrail("explain", run, tmp_path / "x.png", "--at", "12,20", "--out", tmp_path, "--json")
    found = ran.json["explanations"][0]
    assert 0 < found["diffusion_index"] < 100
    assert size(found["file"])[0] > 300
    assert vitrail("explain", run, tmp_path / "x.png", "--at", "50,20", "--out", tmp_path).code == 2
    assert vitrail("explain", run, tmp_path / "x.png", "--method", "rollout").code == 2
