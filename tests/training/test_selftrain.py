"""Self-training: a teacher's labels enter the training set, are accounted for, and stay the same after a stop."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import stripes
from vitrail.data.sources import open_dataset
from vitrail.errors import DataError, UsageError
from vitrail.infer import load
from vitrail.training import resume, selftrain, train
from vitrail.training import run as run_module
from vitrail.training.recipe import Recipe
from vitrail.training.selftrain import FILE
from vitrail.training.signals import Interrupted
from vitrail.weights import load_folder, save_folder

from .test_run import QUICK, stop_at
from .test_teacher import save_teacher


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_report", lambda *_: None)


@pytest.fixture(scope="module")
def teacher(unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that calls about half of the pictures the one class and half the other."""
    made = save_teacher(tmp_path_factory.mktemp("teacher") / "one", seed=5)
    answers = load(made, device="cpu")(str(unlabelled))
    scores = torch.from_numpy(np.stack([a.scores for a in answers if a.ok])).log()
    model, card, classes = load_folder(made)
    model.head.bias.data[0] += (scores[:, 1] - scores[:, 0]).median()  # type: ignore[union-attr, operator]
    return str(save_folder(made, model, card=card, classes=classes))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nineteen pictures in two folders that mean nothing, one of them broken."""
    root, rng = tmp_path_factory.mktemp("unlabelled"), np.random.default_rng(3)
    for i in range(19):
        folder = root / ("x" if i % 2 else "y")
        folder.mkdir(exist_ok=True)
        Image.fromarray(stripes(rng, i % 3)).save(folder / f"{i:02d}.png")
    broken = root / "x" / "01.png"
    broken.write_bytes(broken.read_bytes()[:90])
    return root


def noisy(data: Path, out: Path, teacher: str, unlabelled: Path, **more: Any) -> Any:
    said = more.pop("said", [])
    changes = {"data.source": str(data), "out": str(out), "data.workers": 0, "train.epochs": 1}
    changes |= {"distill.teacher": teacher, "distill.unlabelled": str(unlabelled), "distill.confidence": 0.0}
    return train(QUICK, {**changes, **more}, say=said.append)


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "pseudo_labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_labels_are_what_predict_says_of_the_folder(
    photos: Path, tmp_path: Path, teacher: str, unlabelled: Path
) -> None:
    said: list[str] = []
    result = noisy(photos, tmp_path, teacher, unlabelled, said=said, **{"train.precision": "fp32"})
    rows = table(result.folder)
    answers = {str(Path(a.name).relative_to(unlabelled)): a for a in load(teacher, device="cpu")(str(unlabelled))}
    assert len(rows) == 19
    for row in rows:
        answer = answers[row["image"]]
        assert row["readable"] == ("yes" if answer.ok else "no")
        if answer.ok:
            assert row["label"] == answer.label
            assert float(row["score"]) == pytest.approx(answer.score, abs=1e-3)
    assert len({row["label"] for row in rows if row["label"]}) == 2, "a teacher of one opinion would prove little"
    account = json.loads((result.folder / "pseudo_labels.json").read_text())
    assert (account["images"], account["used"], account["unreadable"]) == (19, 18, 1)
    assert sum(c["used"] for c in account["classes"].values()) == 18
    note = next(line for line in said if "images without labels:" in line)
    assert "18 used with soft labels" in note
    assert "1 unreadable" in note
    assert result.summary["images"]["train"] == 24 + 18
    assert note in result.summary["notes"]


def test_only_sure_images_are_used_and_classes_balanced(
    photos: Path, tmp_path: Path, teacher: str, unlabelled: Path
) -> None:
    every = table(noisy(photos, tmp_path, teacher, unlabelled).folder)
    scores = sorted(float(row["score"]) for row in every if row["score"])
    middle = scores[len(scores) // 2]
    some = noisy(photos, tmp_path, teacher, unlabelled, **{"distill.confidence": middle - 1e-4})
    used = [row for row in table(some.folder) if row["shown_an_epoch"] != "0"]
    assert len(used) == sum(score >= middle - 1e-4 for score in scores) < 18
    assert all(float(row["score"]) >= middle - 1e-3 for row in used)
    even = noisy(photos, tmp_path, teacher, unlabelled, **{"distill.balance": 5})
    counts = json.loads((even.folder / "pseudo_labels.json").read_text())["classes"]
    assert [c["shown_an_epoch"] for c in counts.values()] == [5, 5]
    assert even.summary["images"]["train"] == 24 + 10


def test_hard_and_soft_labels_and_their_temperature_differ(
    photos: Path, tmp_path: Path, teacher: str, unlabelled: Path
) -> None:
    bits, tables = set(), []
    for more in ({"distill.how": "hard"}, {}, {"distill.temperature": 4.0}):
        folder = noisy(photos, tmp_path, teacher, unlabelled, **more).folder
        bits.add((folder / "last" / "model.safetensors").read_bytes())
        tables.append(load_file(folder / FILE).get("soft"))
    assert len(bits) == 3
    assert tables[0] is None
    torch.testing.assert_close(tables[1].sum(1), torch.ones(18))
    logits = tables[1].log()
    torch.testing.assert_close(tables[2], (logits / 4).softmax(1), rtol=1e-3, atol=1e-4)


def test_images_of_the_labelled_data_are_left_out(
    tmp_path: Path, photo_folder: Callable[..., Path], teacher: str
) -> None:
    data = photo_folder(tmp_path / "data", splits={"train": 12, "val": 4})
    for i in range(3):
        (data / "more").mkdir(exist_ok=True)
        shutil.copy(data / "val" / "down" / f"{i:03d}.png", data / "more" / f"{i}.png")
    said: list[str] = []
    result = noisy(data, tmp_path / "runs", teacher, data, said=said)
    assert {row["image"] for row in table(result.folder)} == {f"more/{i}.png" for i in range(3)}
    assert any("32 images" in line and "in the labelled data already" in line for line in said)
    with pytest.raises(DataError, match="not in the labelled data, got none"):
        noisy(data, tmp_path / "runs", teacher, data / "train")


def test_the_student_is_the_next_teacher(photos: Path, tmp_path: Path, teacher: str, unlabelled: Path) -> None:
    first = noisy(photos, tmp_path, teacher, unlabelled)
    second = noisy(photos, tmp_path, str(first.folder), unlabelled)
    recipes = [Recipe.load(r.folder / "recipe.yaml", environment={}).distill for r in (first, second)]
    assert recipes[0] is not None
    assert recipes[1] is not None
    assert recipes[0].sha256 != recipes[1].sha256


@pytest.fixture
def stopped(photos: Path, tmp_path: Path, teacher: str, unlabelled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Interrupted):
            noisy(photos, tmp_path / "runs", teacher, unlabelled, name="stopped", **NOISE)
    return tmp_path / "runs" / "classify" / "stopped"


NOISE = {"augment.mixup": 0.5, "augment.mix_prob": 0.8, "model.drop_rate": 0.2,
         "model.drop_path_rate": 0.3, "train.precision": "bf16"}  # fmt: skip


def test_a_stopped_run_ends_as_the_whole_one_without_asking_again(
    photos: Path, tmp_path: Path, teacher: str, unlabelled: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = noisy(photos, tmp_path / "runs", teacher, unlabelled, name="whole", **NOISE).folder
    with monkeypatch.context() as patch:
        patch.setattr(selftrain, "_ask", lambda *_: pytest.fail("the labels lie in the run's folder"))
        resume(stopped, say=lambda _: None)
    for name in ("best", "last"):
        a, b = ((f / name / "model.safetensors").read_bytes() for f in (whole, stopped))
        assert a == b


@pytest.mark.parametrize("lost", [True, False])
def test_lost_or_damaged_labels_are_asked_for_again(stopped: Path, lost: bool) -> None:
    (stopped / FILE).unlink() if lost else (stopped / FILE).write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    said: list[str] = []
    resume(stopped, say=said.append)
    assert any("asking the teacher" in line for line in said)


def test_other_unlabelled_images_are_other_data(stopped: Path, unlabelled: Path, tmp_path: Path, teacher: str) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(unlabelled, fewer)
    (fewer / "y" / "00.png").unlink()
    text = (stopped / "recipe.yaml").read_text()
    (stopped / "recipe.yaml").write_text(text.replace(str(unlabelled), str(fewer)))
    with pytest.raises(UsageError, match="data: other images, labels or file sizes in train"):
        resume(stopped, say=lambda _: None)
    shutil.copy(unlabelled / "y" / "00.png", fewer / "y" / "00.png")
    resume(stopped, say=lambda _: None)  # the same images in another place


def test_bad_input(photos: Path, tmp_path: Path, teacher: str, unlabelled: Path) -> None:
    with pytest.raises(DataError, match=r"none of 19 with a score of 1 \(the best has .*lower distill\.confidence"):
        noisy(photos, tmp_path / "runs", teacher, unlabelled, **{"distill.confidence": 1.0})
    with pytest.raises(DataError, match="folder of images without labels"):
        noisy(photos, tmp_path / "runs", teacher, tmp_path / "nowhere")
    assert not (tmp_path / "runs").exists()
    for idle in ({"distill.weight": 0.5}, {"distill.cache": "on"}):
        with pytest.raises(UsageError, match="has no effect with unlabelled"):
            noisy(photos, tmp_path / "runs", teacher, unlabelled, **idle)
    with pytest.raises(UsageError, match=r"data\.window and distill\.unlabelled exclude each other"):
        noisy(photos, tmp_path / "runs", teacher, unlabelled, **{"data.window": 2})
    for idle in ({"distill.confidence": 0.5}, {"distill.balance": 5}):
        with pytest.raises(UsageError, match="has no effect without unlabelled"):
            Recipe.load({}, {"distill.teacher": "x", **idle}, {})


def test_the_labelled_images_keep_their_labels(photos: Path, tmp_path: Path, teacher: str, unlabelled: Path) -> None:
    from vitrail.training.selftrain import with_unlabelled

    settings = {"distill.teacher": teacher, "distill.unlabelled": str(unlabelled), "train.device": "cpu"}
    splits = open_dataset(photos)
    joined = with_unlabelled(Recipe.load({}, settings, {}), splits, None, lambda _: None)
    n = len(splits.train)
    assert np.array_equal(joined.train.labels[:n], splits.train.labels)
    assert [joined.train.name(i) for i in range(n)] == [splits.train.name(i) for i in range(n)]
    assert joined.val is splits.val
    assert with_unlabelled(Recipe.load({}, {}, {}), splits, None, lambda _: None) is splits
    assert load_folder(teacher)[2] == splits.classes


def test_two_processes_ask_and_learn_what_one_does(
    photos: Path, tmp_path: Path, teacher: str, unlabelled: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.taught", photos, unlabelled, teacher, tmp_path],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    for name in ("asked", "kept", "labelled"):
        assert found[name]["difference"] < 2e-5, name
    one, two = found["labelled"]["tables"]
    assert one == two
    assert len(one.splitlines()) == 20
