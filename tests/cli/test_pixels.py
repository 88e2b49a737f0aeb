"""The verbs on a run on pixels: val, sample, probe --layers, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from vitrail.training import train

    root = tmp_path_factory.mktemp("pixels")
    for name, low in (("dark", 0), ("bright", 130)):
        (root / "in" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(low, low + 120, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "in" / name / f"{i}.png")
    recipe = {
        "task": "pixels",
        "model.name": "test_igpt",
        "model.img_size": 6,
        "pixels.colours": 10,
        "data.source": str(root / "in"),
        "data.workers": 0,
        "out": str(root / "runs"),
        "name": "tiny",
        "train.epochs": 1,
        "train.batch_size": 6,
        "train.threads": 1,
        "train.precision": "fp32",
    }
    train(recipe, say=str)
    return root / "runs" / "pixels" / "tiny"


def test_val_measures_bits(vitrail, run):
    ran = vitrail("val", run)
    assert ran.code == 0, ran.err
    for words in ("bits a pixel", "bits a dimension", "all colours alike", "palette: its 10 colours"):
        assert words in ran.out
    told = vitrail("val", run, "--json").json
    assert told["metrics"]["bits_per_pixel"] > 0
    assert told["split"] == "val"


def test_val_on_pictures_of_other_colours_warns(vitrail, run, tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), (255, 0, 200), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    told = vitrail("val", run, "--data", tmp_path, "--json").json
    assert told["metrics"]["count"] == 3
    assert told["palette"].startswith("warning: palette:")
    assert "other pictures" in told["palette"]


def test_sample_paints_a_sheet(vitrail, run, tmp_path):
    told = vitrail("sample", run, "--count", 3, "--top-k", 5, "--seed", 1, "--out", tmp_path / "s.png", "--json").json
    assert len(told["bits"]) == 3
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 2 * 96
    ran = vitrail("sample", run, "--count", 2)
    assert "painted 2 pictures, 36 pixels each" in ran.out
    assert (run / "samples.png").exists()


def test_sample_completes_pictures(vitrail, run, tmp_path):
    picture = run.parents[2] / "in" / "dark" / "1.png"
    told = vitrail("sample", run, picture, "--keep", 0.34, "--count", 2, "--out", tmp_path / "c.png", "--json").json
    assert (told["given"], len(told["bits"])) == (12, 2)
    ran = vitrail("sample", run, "--held-out", 2, "--count", 1)
    assert "painted 2 completions of 2 pictures, 18 pixels each" in ran.out
    assert (run / "completions.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--keep", 0.5), 2, "no effect without images"),
        (("--held-out", 2, "IMAGE"), 2, "got both"),
        (("--out", "a.jpg"), 2, "ends in .png"),
        (("--out", "nowhere/a.png"), 2, "folder that exists"),
        (("--temperature", 0), 2, "temperature above 0"),
        (("nothing.png",), 3, "nothing"),
    ],
)
def test_sample_refuses(vitrail, run, words, code, message):
    words = tuple(str(run.parents[2] / "in" / "dark" / "1.png") if word == "IMAGE" else word for word in words)
    ran = vitrail("sample", run, *words)
    assert (ran.code, message in ran.err) == (code, True), ran.err


def test_sample_of_a_classifier_is_refused(vitrail, model_folder):
    ran = vitrail("sample", model_folder)
    assert ran.code == 2
    assert "expected an image GPT, got ViT" in ran.err


def test_probe_by_layer(vitrail, run):
    ran = vitrail("probe", run, "--layers", "--images", 12)
    assert ran.code == 0, ran.err
    rows = [line.split()[0] for line in ran.out.splitlines() if line.startswith(("raw", "embeddings", "block", "all"))]
    assert rows[-5:] == ["raw", "embeddings", "block", "block", "all"]
    assert vitrail("probe", run, "--images", 3).code == 2
    assert "--draws has no effect with --layers" in vitrail("probe", run, "--layers", "--draws", 3).err


def test_probe_by_layer_of_any_network(vitrail, run, model_folder):
    ran = vitrail("probe", model_folder, run.parents[2] / "in", "--layers")
    assert ran.code == 0, ran.err
    assert "block 1" in ran.out
