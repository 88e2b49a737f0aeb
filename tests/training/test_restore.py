"""A run on pairs of pictures from end to end: what is settled, resumed = uninterrupted, what comes out of it."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vitrail.errors import DataError, UsageError
from vitrail.infer import load
from vitrail.training import train
from vitrail.training.baserecipe import BaseRecipe, task_of
from vitrail.training.restorerecipe import RestoreRecipe
from vitrail.training.run import resume
from vitrail.training.signals import Interrupted
from vitrail.weights import load_folder, open_folder

TINY = {
    "task": "restore",
    "model.name": "test_swinir",
    "model.img_size": 8,
    "patches.visits": 2,
    "patches.val_crop": 12,
    "data.val_fraction": 0.2,
    "data.workers": 0,
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "train.threads": 1,
}


def waves(seed, side=40):
    y, x = np.mgrid[:side, :side]
    phase = np.random.default_rng(seed).random(6) * 4
    channels = [np.sin(y / 3 + phase[c]) + np.cos(x / 4 + phase[c + 3]) for c in range(3)]
    return Image.fromarray((127 + 60 * np.stack(channels, -1)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i in range(10):
        waves(i).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("runs"), []
    found = train({**TINY, "data.source": str(photos), "out": str(out)}, say=said.append)
    return found, "\n".join(said)


def test_a_run_says_decibels_and_keeps_what_it_undoes(run):
    found, said = run
    assert "PSNR in dB" in said
    assert "val psnr" in said
    folder = open_folder(found.folder)
    assert folder.extra["degrade"] == {"kind": "downscale", "scale": 2, "sigma": None, "quality": None}
    assert folder.extra["measure"] == {"border": 2, "channel": "y"}
    recipe = BaseRecipe.load(found.folder / "recipe.yaml", environment={})
    assert isinstance(recipe, RestoreRecipe)
    assert [key for key, value in recipe.flat().items() if value == "auto"] == ["data.cache"]
    assert recipe.train.loss == "l1"


def test_what_a_run_made_restores(run, photos):
    restorer = load(run[0].folder)
    result = restorer(photos / "0.png")
    assert result.image.shape == (80, 80, 3)
    assert restorer.measure == (2, "y")


def test_a_resumed_run_is_the_uninterrupted_one(run, photos, tmp_path):
    def stop(text):
        if text.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    whole = load_file(run[0].folder / "last" / "model.safetensors")
    with pytest.raises(Interrupted):
        train({**TINY, "data.source": str(photos), "out": str(tmp_path), "name": "cut"}, say=stop)
    again = resume(tmp_path / "restore" / "cut", say=str)
    parts = load_file(again.folder / "last" / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[n], parts[n]) for n in whole)


def test_training_lowers_the_loss(photos, tmp_path):
    how = {"model.name": "test_swinir_denoise", "degrade.kind": "noise", "degrade.sigma": 50, "train.epochs": 8}
    found = train({**TINY, **how, "data.source": str(photos), "out": str(tmp_path)}, say=str)
    folder = open_folder(found.folder)
    assert folder.extra["measure"] == {"border": 0, "channel": "rgb"}
    assert folder.extra["degrade"]["sigma"] == 50
    rows = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    psnrs = [row["psnr"] for row in rows if row["kind"] == "val"]
    assert psnrs[-1] > psnrs[0] + 1


def test_grey_networks_train_on_luminance(photos, tmp_path):
    how = {"model.name": "test_swinir_jpeg", "model.img_size": 9, "train.epochs": 1}
    found = train({**TINY, **how, "data.source": str(photos), "out": str(tmp_path)}, say=str)
    model, _, _ = load_folder(found.folder)
    assert model.config.in_chans == 1
    assert open_folder(found.folder).extra["degrade"]["quality"] == [10, 40]
    assert load(found.folder)(photos / "1.png").image.shape == (40, 40)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"degrade.scale": 3}, UsageError, "degrade.scale 2 of test_swinir"),
        ({"degrade.kind": "noise"}, UsageError, "got noise for test_swinir"),
        ({"degrade.sigma": 25}, UsageError, "sigma has no effect"),
        ({"model.name": "test_swin"}, UsageError, "a model for restoration"),
        ({"model.backbone": "x"}, UsageError, "backbone has no effect"),
        ({"model.options": {"upscale": 4}}, UsageError, "expected upscale as degrade.scale"),
        ({"model.img_size": [8, 16]}, UsageError, "square"),
        ({"model.img_size": 64}, DataError, "smaller ones"),
        ({"data.source": "/nowhere"}, DataError, "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_said_before(photos, tmp_path, changes, error, words):
    recipe = {**TINY, "data.source": str(photos), "out": str(tmp_path), **changes}
    with pytest.raises(error, match=words):
        train(recipe, say=str)
    assert not list(tmp_path.iterdir())


def test_pairs_are_seen_to_be_for_restoration(tmp_path):
    for name in ("HR", "LR"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert task_of(str(tmp_path)) == task_of(str(tmp_path / "train")) == "restore"
    assert task_of(str(tmp_path / "train" / "HR")) != "restore"


def test_pretrained_weights_go_on(run, photos, tmp_path):
    said = []
    how = {"model.name": "auto", "model.pretrained": str(run[0].folder), "train.epochs": 1}
    train({**TINY, **how, "data.source": str(photos), "out": str(tmp_path)}, say=said.append)
    assert any("pretrained: " in line for line in said)
