"""`vitrail soup` on runs and folders, and the soup in Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError
from vitrail.models import create_model
from vitrail.training.soup import cook
from vitrail.weights import Card, load_folder, open_folder, save_folder
from vitrail.weights.soup import average

from .conftest import Ran

Runner = Callable[..., Ran]


def shaken(trained: Path, folder: Path, seed: int, size: float = 0.02) -> Path:
    """Return a run like ``trained`` whose best weights were moved at random, as another fine-tuning moves them."""
    model, card, classes = load_folder(trained)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += size * torch.randn(p.shape, generator=g)
    folder.mkdir()
    shutil.copy(trained / "recipe.yaml", folder)
    save_folder(folder / "best", model, card=card, classes=classes)
    return folder


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("members")
    return [trained, *(shaken(trained, root / f"run-{seed}", seed) for seed in range(3))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_folder(folder)[0].state_dict()


def test_uniform_is_the_mean_of_all(vitrail: Runner, runs: list[Path], tmp_path: Path) -> None:
    ran = vitrail("soup", *runs, "--out", tmp_path / "soup", "--uniform", "--json")
    assert ran.code == 0, ran.err
    want = average(weights(run) for run in runs)
    found = weights(tmp_path / "soup")
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert [m["kept"] for m in ran.json["members"]] == [True] * 4
    assert ran.json["test"]["count"] == 8
    folder = open_folder(tmp_path / "soup")
    assert folder.card.origin.startswith("uniform soup of 4 of 4 models")
    assert all(str(run) in folder.card.origin for run in runs)
    assert folder.extra["soup"]["val"] == ran.json["val"]
    assert "uniform soup" in (tmp_path / "soup" / "README.md").read_text()


def test_greedy_is_not_below_its_best_member_and_is_what_val_measures(
    vitrail: Runner, runs: list[Path], photos: Path, tmp_path: Path
) -> None:
    ran = vitrail("soup", *runs, "--out", tmp_path / "soup", "--json")
    assert ran.code == 0, ran.err
    said = ran.json
    alone = [member["val"]["top1"] for member in said["members"]]
    assert said["val"]["top1"] >= max(alone) == said["best"]["val"]["top1"]
    kept = [run for run, member in zip(runs, said["members"], strict=True) if member["kept"]]
    want = average(weights(run) for run in kept)
    assert all(torch.allclose(weights(tmp_path / "soup")[n], want[n]) for n in want)
    for split in ("val", "test"):
        again = vitrail("val", tmp_path / "soup", "--data", photos, "--split", split, "--json").json["metrics"]
        assert again["top1"] == said[split]["top1"]
        assert again["loss"] == pytest.approx(said[split]["loss"], rel=1e-5)


def test_a_soup_of_one_is_that_member_bit_for_bit(vitrail: Runner, runs: list[Path], tmp_path: Path) -> None:
    ran = vitrail("soup", runs[1], "--out", tmp_path / "soup")
    assert ran.code == 0, ran.err
    assert "best member" in ran.out
    first, second = (p / "model.safetensors" for p in (runs[1] / "best", tmp_path / "soup"))
    assert first.read_bytes() == second.read_bytes()


def test_what_cannot_be_souped_is_refused(
    vitrail: Runner, runs: list[Path], model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "soup"
    other = shaken(runs[0], tmp_path / "other", 9)
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace("test_fraction: 0.0\n  train_fraction: 1.0\n  seed: 0", "seed: 5"))
    _, card, classes = load_folder(runs[0])
    deeper = create_model("test_vit", num_classes=2, img_size=card.input_size, depth=3)
    deep = tmp_path / "deep"
    deep.mkdir()
    shutil.copy(runs[0] / "recipe.yaml", deep)
    save_folder(deep / "best", deeper, card=card, classes=classes)
    cases = [
        (("soup", runs[0], other, "--out", out, "--data", f"{photos}/."), 2, "held out the same images"),
        (("soup", model_folder, runs[0], "--out", out, "--data", photos), 2, "expected --data that no member"),
        (("soup", runs[0], other, "--out", out), 2, r"held out the same images, got data.seed 0 in"),
        (("soup", runs[0], runs[0], "--out", out), 2, "expected different members"),
        (("soup", model_folder, "--out", out), 2, "expected --data"),
        (("soup", runs[0], model_folder, "--out", out), 2, "is not a run, so it does not say"),
        (("soup", runs[0], "--out", runs[1]), 2, "a folder that does not exist yet"),
        (("soup", runs[0], deep, "--out", out), 4, "depth: 2 in "),
    ]
    for words, code, message in cases:
        ran = vitrail(*words)
        assert ran.code == code, ran.err
        assert message in ran.err
        assert not out.exists()


def test_folders_are_souped_on_data_that_is_named(
    vitrail: Runner, model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    ran = vitrail("soup", model_folder, "--data", photos, "--out", tmp_path / "soup", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["val"]["count"] == 8
    unsplit = vitrail("soup", model_folder, "--data", photos / "train", "--out", tmp_path / "all", "--json")
    assert (unsplit.json["val"]["count"], unsplit.json["test"]) == (24, None)


def test_batch_norms_are_measured_anew(photos: Path, tmp_path: Path) -> None:
    splits = open_dataset(photos)
    card = Card(name="test_coatnet", input_size=(32, 32), num_classes=2)
    sources = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = create_model("test_coatnet", num_classes=2, img_size=32)
        sources.append(str(save_folder(tmp_path / str(seed), model, card=card, classes=splits.classes)))
    made = cook(sources, val=splits.val, train=splits.train, method="uniform")
    plain = average(load_folder(s)[0].state_dict() for s in sources)
    moved = [n for n, t in made.model.state_dict().items() if not torch.equal(t, plain[n])]
    assert moved
    assert all(n.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for n in moved)
    again = cook(sources, val=splits.val, train=splits.train, method="uniform")
    assert all(torch.equal(t, made.model.state_dict()[n]) for n, t in again.model.state_dict().items())
    with pytest.raises(UsageError, match="expected training images, got none: CoAtNet has batch norms"):
        cook(sources, val=splits.val, method="uniform")
