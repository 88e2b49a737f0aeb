"""Training from shards: windows in the recipe, refusals, and a run that is stopped and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrail.data.pack import pack
from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError
from vitrail.training import resume, train
from vitrail.training.checkpoint import Checkpoints
from vitrail.training.recipe import Recipe
from vitrail.weights import load_folder

QUICK: dict[str, Any] = {
    "model": {"name": "test_vit", "img_size": 16, "options": {"patch_size": 8}},
    "augment": {"randaugment": None, "erasing": 0, "mixup": 0, "cutmix": 0},
    "train": {"epochs": 2, "batch_size": 6, "precision": "fp32", "device": "cpu", "save_every_steps": 1, "keep": 50},
    "data": {"workers": 0},
}


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(photos, tmp_path_factory.mktemp("packed") / "out", shard_bytes=30_000, workers=0).folder


def run(source: Path, out: Path, **more: Any) -> Path:
    changes = {"data.source": str(source), "out": str(out), **more}
    return train(Recipe.load(QUICK, changes), say=lambda _: None).folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_folder(folder / "last")[0].state_dict().items()}


def test_a_run_on_windows_of_shards_resumes_to_the_bit(shards: Path, tmp_path: Path) -> None:
    folder = run(shards, tmp_path, **{"data.window": 2, "name": "whole"})
    whole = weights(folder)
    found = Checkpoints(folder / "checkpoints", warn=lambda _: None).latest()
    assert found is not None
    import shutil

    steps = sorted((int(p.name.split("-")[1]), p) for p in (folder / "checkpoints").glob("step-*"))
    for step, path in steps:
        if step > steps[len(steps) // 2][0]:
            shutil.rmtree(path)  # as if it had been killed in the middle of an epoch
    resume(folder, say=lambda _: None)
    again = weights(folder)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    plain = weights(run(shards, tmp_path, name="plain"))
    assert any(not np.array_equal(whole[name], plain[name]) for name in whole)


def test_windows_that_would_do_nothing_are_refused(shards: Path, photos: Path, tmp_path: Path) -> None:
    count = len(np.unique(open_dataset(shards).train.shards()))
    with pytest.raises(UsageError, match=f"between 1 and {count - 1}"):
        run(shards, tmp_path, **{"data.window": count})
    with pytest.raises(UsageError, match="in no shards"):
        run(photos, tmp_path, **{"data.window": 1})
    with pytest.raises(UsageError, match="window and balance"):
        Recipe.load(QUICK, {"data.window": 1, "data.balance": "equal"})
    assert list(tmp_path.rglob("recipe.yaml")) == [], "nothing was trained: the name stays free"
