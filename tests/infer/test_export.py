"""A file that was exported gives the numbers of its network, in whatever way it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vitrail
from vitrail.errors import ExportError, UsageError, WeightsError
from vitrail.infer import export as export_module
from vitrail.infer.bench import bench
from vitrail.infer.export import export
from vitrail.infer.restorer import load_restorer
from vitrail.models import create_model
from vitrail.weights import Card, save_folder

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(folder_of, tmp_path_factory):
    """A tiny ViT and a tiny Swin, each exported once: name -> (folder, file)."""
    out = tmp_path_factory.mktemp("exported")
    found = {}
    for name in ("test_vit", "test_swin"):
        folder = folder_of(name, out / name)
        found[name] = (folder, export(folder, out / f"{name}.onnx"))
    return found


@pytest.fixture(scope="module")
def folder_of():
    def make(name, path):
        torch.manual_seed(0)
        model = create_model(name)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
        return save_folder(path, model, card=Card(name=name, input_size=model.config.img_size))

    return make


@pytest.mark.parametrize("name", ["test_vit", "test_swin"])
def test_a_file_predicts_what_its_folder_predicts(exported, name, tmp_path):
    folder, receipt = exported[name]
    for i, shape in enumerate([(40, 60), (32, 32), (9, 50)]):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    ours, theirs = vitrail.load(folder), vitrail.load(receipt.path)
    for mine, its in zip(ours(tmp_path), theirs(tmp_path), strict=True):
        np.testing.assert_allclose(its.scores, mine.scores, atol=1e-6)
        assert its.labels == mine.labels


def test_the_receipt_says_what_was_compared(exported):
    _, receipt = exported["test_vit"]
    told = json.loads(Path(receipt.path + ".receipt.json").read_text())
    assert told["largest"] == receipt.largest <= 1e-5
    assert [check["batch"] for check in told["checks"]] == [1, 2, 5]
    assert (told["inputs"], told["outputs"], told["img_size"]) == (["images"], ["logits"], [32, 32])


def test_another_size_is_refused_with_the_way_out(exported):
    _, receipt = exported["test_vit"]
    with pytest.raises(UsageError, match=r"32 x 32, the size the file was exported for, got 48 x 48.*--img-size"):
        vitrail.load(receipt.path, img_size=48)


def test_a_file_can_be_made_for_another_size(folder_of, tmp_path):
    folder = folder_of("test_vit", tmp_path / "model")
    receipt = export(folder, tmp_path / "wide.onnx", img_size=(32, 48))
    assert vitrail.load(receipt.path).img_size == receipt.img_size == (32, 48)


def test_a_program_of_torch_gives_the_same(folder_of, tmp_path):
    folder = folder_of("test_vit", tmp_path / "model")
    receipt = export(folder, format="torch")
    assert receipt.path == str(folder / "exported" / "test_vit.pt2")
    program = torch.export.load(receipt.path).module()
    images = torch.randn(3, 3, 32, 32)
    model = vitrail.load(folder).model
    torch.testing.assert_close(program(images), model(images), atol=1e-6, rtol=1e-5)


def test_a_file_that_gives_other_numbers_is_not_left_behind(folder_of, tmp_path, monkeypatch):
    folder = folder_of("test_vit", tmp_path / "model")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="gives other numbers than the network: logits at a batch of"):
        export(folder, tmp_path / "out" / "model.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_restores_takes_pictures_of_any_size_in_its_tiles(folder_of, tmp_path):
    """Whole tiles come out as from the run; what is mirrored up to one may differ near its right and lower edge."""
    folder = folder_of("test_swinir", tmp_path / "swinir")
    file = export(folder, tmp_path / "swinir.onnx", img_size=(24, 24))
    ours, theirs = load_restorer(folder, tile=24), vitrail.load(file.path)
    side, scale = theirs.tiling().side, theirs.scale
    for shape in [(24, 24), (30, 50), (7, 3)]:
        picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        mine, its = ours(picture).image.astype(int), theirs(picture).image.astype(int)
        assert its.shape == mine.shape == (scale * shape[0], scale * shape[1], 3)
        whole = [scale * (n - n % side) for n in shape]
        assert np.abs(its - mine)[: whole[0] // 2, : whole[1] // 2].max(initial=0) <= 1
    with pytest.raises(UsageError, match="tile has no effect on a file exported for 24 x 24"):
        load_restorer(file.path, tile=16)
    with pytest.raises(UsageError, match="gives no gradients"):
        theirs.with_gradients(torch.rand(1, 3, 24, 24))


def test_what_cannot_be_exported_is_said(exported, tmp_path):
    folder, receipt = exported["test_vit"]
    with pytest.raises(UsageError, match="an exported file already"):
        export(receipt.path)
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export(folder, tmp_path / "model.pt2")
    with pytest.raises(UsageError, match="unknown format 'onx'"):
        export(folder, format="onx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightsError, match="no network that onnxruntime can run"):
        vitrail.load(tmp_path / "broken.onnx")
    with pytest.raises(WeightsError, match="No such file"):
        vitrail.load(tmp_path / "missing.onnx")


def test_engines_take_turns_and_are_compared_with_the_first(exported):
    folder, receipt = exported["test_vit"]
    found = bench(folder, engines=("float32", "onnx"), batch=2, rounds=3)
    assert [speed.engine for speed in found] == ["float32", "onnx"]
    assert found[0].ratio == 1.0
    assert all(speed.images_per_s == pytest.approx(2 / speed.seconds) for speed in found)
    assert [speed.engine for speed in bench(receipt.path, rounds=3)] == ["onnx"]
    assert [speed.engine for speed in bench("test_vit", engines=["bfloat16"], rounds=3)] == ["bfloat16"]
    with pytest.raises(UsageError, match="unknown engine 'onix'"):
        bench(folder, engines=["onix"])
