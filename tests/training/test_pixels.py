"""A run on pixels from end to end: folders with and without classes, resumed = uninterrupted, what comes after it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.cutting import require_resumed_equals_uninterrupted
from vitrail.errors import UsageError
from vitrail.infer import Painter, load
from vitrail.infer.pixels import load_painter
from vitrail.training import train
from vitrail.training.baserecipe import BaseRecipe
from vitrail.training.probing.layers import probe_layers
from vitrail.weights import load_folder, open_folder

TINY = {
    "task": "pixels",
    "model.name": "test_igpt",
    "model.img_size": 6,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.precision": "fp32",
    "train.threads": 1,
    "data.workers": 0,
}


def noise(seed, low=0, high=256, side=8):
    pixels = np.random.default_rng(seed).integers(low, high, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Dark and bright pictures, in folders of these names."""
    root = tmp_path_factory.mktemp("data")
    for name, low, high in (("dark", 0, 120), ("bright", 130, 256)):
        (root / name).mkdir()
        for i in range(14):
            noise(i, low, high).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(classes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    said = []
    found = train({**TINY, "pixels.colours": 12, "data.source": str(classes), "out": str(out)}, say=said.append)
    return found, "\n".join(said)


def test_a_run_says_bits_and_keeps_its_palette(run):
    found, said = run
    assert "palette: 12 colours by kmeans" in said
    assert "6 x 6 pixels of 12 colours" in said
    metrics = found.metrics
    assert metrics["bits_per_pixel"] == pytest.approx(-metrics["negative_bits"])
    assert 0 < metrics["bits_per_pixel"] < metrics["uniform_bits"] + 0.2
    palette = json.loads((found.folder / "palette.json").read_text())
    model, card, names = load_folder(found.folder)
    kept = torch.tensor(palette["colours"])
    torch.testing.assert_close((model.palette * 0.5 + 0.5), kept, atol=1e-6, rtol=0)
    assert names is None
    assert model.config.colours == 12
    assert card.input_size == (6, 6)
    assert open_folder(found.folder).extra["palette"]["error"] == pytest.approx(palette["error"], abs=1e-3)
    with Image.open(found.folder / "samples.png") as sheet:
        assert sheet.width > 100
    rows = np.load(found.folder / "predictions_val.npz")
    assert float(rows["bits"].mean()) == pytest.approx(metrics["bits_per_pixel"], rel=1e-4)


def test_pictures_without_classes_and_the_masked_form(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i in range(12):
        noise(i).save(tmp_path / "in" / ("deep" if i % 2 else ".") / f"{i}.png")
    options = {"pixels.objective": "masked", "pixels.colours": 8, "pixels.palette": "levels", "train.epochs": 1}
    found = train({**TINY, **options, "data.source": str(tmp_path / "in"), "out": str(tmp_path / "runs")}, say=str)
    assert found.metrics["uniform_bits"] == 3.0
    assert found.summary["images"] == {"train": 11, "val": 1}
    with pytest.raises(UsageError, match="masked model, which cannot paint"):
        load_painter(found.folder)


def test_resumed_equals_uninterrupted(classes, tmp_path):
    require_resumed_equals_uninterrupted({**TINY, "data.source": str(classes)}, tmp_path, at=4)


def test_a_run_starts_from_another_and_keeps_its_palette(run, tmp_path):
    """Pictures in other colours: the palette stays, and what that costs is said."""
    (tmp_path / "in").mkdir()
    for i in range(10):
        Image.fromarray(np.full((8, 8, 3), (255, 0, 25 * i), dtype=np.uint8)).save(tmp_path / "in" / f"{i}.png")
    said = []
    options = {"model.pretrained": str(run[0].folder), "data.source": str(tmp_path / "in"), "out": str(tmp_path)}
    content = {k: v for k, v in TINY.items() if not k.startswith("model.")}
    found = train({**content, **options, "train.epochs": 1, "train.batch_size": 4}, say=said.append)
    assert any(line.startswith("warning: palette:") and "other pictures" in line for line in said)
    assert torch.equal(load_folder(found.folder)[0].palette, load_folder(run[0].folder)[0].palette)
    assert found.summary["palette"]["kind"] == "pretrained"


@pytest.mark.parametrize("joint", [False, True])
def test_fine_tuning_on_classes(run, classes, tmp_path, joint):
    said = []
    options = {"model.pretrained": str(run[0].folder), "data.source": str(classes), "out": str(tmp_path)}
    options |= {"model.options": {"joint": True}} if joint else {}
    few = {k: v for k, v in TINY.items() if not k.startswith(("task", "model"))}
    found = train({**few, **options, "train.epochs": 1}, say=said.append)
    model, _, names = load_folder(found.folder)
    assert names.names == ("bright", "dark")
    assert (model.pixel_head is not None) == joint
    assert torch.equal(model.palette, load_folder(run[0].folder)[0].palette)
    assert any(line.startswith("palette: its 12 colours are") for line in said)
    assert 0 <= found.metrics["top1"] <= 1


def test_classes_from_nothing_fit_a_palette(classes, tmp_path):
    said = []
    few = {k: v for k, v in TINY.items() if not k.startswith("task")}
    options = {"data.source": str(classes), "out": str(tmp_path), "train.epochs": 1, "augment.hflip": 0.0}
    train({**few, **options}, say=said.append)
    assert any("palette: 24 colours by kmeans" in line for line in said)


def test_painting(run):
    painter = load(run[0].folder)
    assert isinstance(painter, Painter)
    found = painter.sample(5, temperature=0.9, top_k=4, seed=3)
    assert found.images.shape == (5, 3, 6, 6)
    assert torch.equal(found.tokens, painter.sample(5, temperature=0.9, top_k=4, seed=3).tokens)
    assert not torch.equal(found.tokens, painter.sample(5, temperature=0.9, top_k=4, seed=4).tokens)
    with torch.no_grad():  # what it says of its own pictures is what the model says of them
        logits = painter.model.pixels(found.tokens)
    likely = logits.log_softmax(-1).gather(2, found.tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(found.bits * 36 * np.log(2), -likely, atol=1e-3, rtol=1e-4)
    assert set(map(tuple, found.images.permute(0, 2, 3, 1).reshape(-1, 3).tolist())) <= {
        tuple(c) for c in (255 * (painter.model.palette * 0.5 + 0.5)).round().int().tolist()
    }


def test_completing(run, classes):
    painter = load_painter(run[0].folder)
    files = sorted((classes / "dark").glob("*.png"))[:2]
    found = painter.complete(files, keep=0.5, count=3)
    assert (found.given, len(found.images), len(found.originals)) == (18, 6, 2)
    for i in range(6):
        assert torch.equal(found.images[i].flatten(1)[:, :18], found.originals[i // 3].flatten(1)[:, :18])
    sheet = found.sheet()
    assert sheet.width > 5 * 96
    with pytest.raises(UsageError, match="above 0 and below 1"):
        painter.complete(files, keep=1.0)
    with pytest.raises(UsageError, match="at least one picture"):
        painter.sample(0)


def test_the_probe_by_layer(run, classes):
    report = probe_layers(run[0].folder, str(classes), images=20, say=str)
    names = ["raw pixels", "embeddings", "block 0", "block 1", "all layers"]
    assert [entry["layer"] for entry in report.results] == names
    assert [entry["width"] for entry in report.results] == [108, 32, 32, 32, 96]
    assert report.images["train"] == 20
    assert all(0 <= entry["val"]["top1"] <= 1 for entry in report.results)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels.hidden": 0.3}, "no effect with objective: autoregressive"),
        ({"model.options": {"num_classes": 3}}, "this task has none"),
        ({"model.options": {"colours": 3}}, "pixels.colours"),
        ({"pixels.colours": None}, "without pretrained weights, got null"),
        ({"train.label_smoothing": 0.1}, "counted as bits"),
        ({"pixels.colour": 3}, "pixels.colours"),
        ({"augment.hflip": 0.5}, "unknown recipe key"),
    ],
)
def test_recipes_that_do_not_hold_together(changes, words):
    with pytest.raises(UsageError, match=words):
        BaseRecipe.load({**TINY, **changes}, environment={})


def test_a_model_that_reads_no_pixels_is_refused(classes, tmp_path):
    options = {"model.name": "test_vit", "data.source": str(classes), "out": str(tmp_path)}
    with pytest.raises(UsageError, match="igpt_nano_8, got test_vit"):
        train({**TINY, **options}, say=str)
