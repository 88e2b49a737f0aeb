"""The doors: what a run folder holds, and how train and resume refuse, stop and go on."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.data.sources import open_dataset
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.models import create_model
from vitrail.tasks.classify import Classify
from vitrail.tasks.evaluate import evaluate
from vitrail.training import RunResult, resume, train
from vitrail.training import run as run_module
from vitrail.training.folder import locked
from vitrail.training.log import read_metrics
from vitrail.training.pipeline import eval_loader
from vitrail.training.session import Session
from vitrail.training.signals import Interrupted
from vitrail.weights import load_folder

QUICK = {
    "model": {"name": "test_vit", "img_size": 16, "options": {"patch_size": 8}},
    "augment": {"randaugment": None, "erasing": 0, "mixup": 0, "cutmix": 0},
    "train": {"epochs": 2, "batch_size": 6, "precision": "fp32", "device": "cpu", "log_every": 2},
}


def quick(data: Path, out: Path, **more: Any) -> RunResult:
    said: list[str] = more.pop("said", [])
    changes = {"data.source": str(data), "out": str(out), "data.workers": 0}
    return train(QUICK, {**changes, **more}, say=said.append)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return quick(photos, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_report", lambda *_: None)


def test_a_run_folder_holds_what_the_design_says(finished: RunResult) -> None:
    names = {p.name for p in finished.folder.iterdir()}
    assert names >= {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "best", "last", "summary.json",
        "predictions_val.npz", "predictions_test.npz", "details_test.json", "report.html",
    }  # fmt: skip
    assert "RESUMABLE" not in names
    assert not list(finished.folder.rglob("*.tmp"))
    assert finished.folder.name == "test_vit-1"
    assert "auto" not in (finished.folder / "recipe.yaml").read_text().replace("workers: auto", "").replace(
        "cache: auto", ""
    )


def test_the_best_folder_reaches_the_accuracy_that_was_reported(finished: RunResult, photos: Path) -> None:
    assert finished.split == "test"
    images = open_dataset(photos).test
    assert images is not None
    model, card, classes = load_folder(finished.folder / "best")
    assert classes == images.classes
    found = evaluate(Classify(2), model, eval_loader(images, card, batch_size=3).epoch())
    assert found.metrics == pytest.approx(finished.metrics)
    with np.load(finished.folder / "predictions_test.npz", allow_pickle=False) as stored:
        np.testing.assert_allclose(stored["scores"], found.scores.numpy(), rtol=1e-4, atol=1e-6)
        assert stored["labels"].tolist() == images.labels.tolist()
        assert stored["names"].tolist() == [images.name(i) for i in range(len(images))]


def test_the_best_of_the_evaluations_is_kept(finished: RunResult) -> None:
    lines = [line for line in read_metrics(finished.folder / "metrics.jsonl") if line["kind"] == "val"]
    assert [line["epoch"] for line in lines] == [1, 2]
    best = max(lines, key=lambda line: (line["top1"], -line["loss"]))
    assert finished.best["epoch"] == best["epoch"]
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary["results"]["val"]["top1"] == pytest.approx(best["top1"])
    assert summary["images"] == {"train": 24, "val": 8, "test": 8}


def test_names_count_up_and_nothing_is_overwritten(photos: Path, tmp_path: Path, no_report: None) -> None:
    first = quick(photos, tmp_path, **{"train.epochs": 1})
    before = (first.folder / "summary.json").read_bytes()
    second = quick(photos, tmp_path, **{"train.epochs": 1})
    assert (first.folder.name, second.folder.name) == ("test_vit-1", "test_vit-2")
    assert (first.folder / "summary.json").read_bytes() == before
    with pytest.raises(UsageError, match=r"expected a new run name.*vitrail resume"):
        quick(photos, tmp_path, name="test_vit-1")


def test_the_same_command_twice_gives_the_same_weights(photos: Path, tmp_path: Path, no_report: None) -> None:
    made = [quick(photos, tmp_path, **{"train.epochs": 1, "train.precision": "bf16"}) for _ in range(2)]
    a, b = ((m.folder / "last" / "model.safetensors").read_bytes() for m in made)
    assert a == b


def test_nothing_is_made_when_the_data_or_the_recipe_is_bad(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        quick(tmp_path / "none", tmp_path / "runs")
    with pytest.raises(UsageError, match=r"batch_size of at most 24"):
        quick(photos, tmp_path / "runs", **{"train.batch_size": 25})
    with pytest.raises(UsageError, match="validation split of their own"):
        quick(photos, tmp_path / "runs", **{"data.val_fraction": 0.2})
    with pytest.raises(UsageError, match="expected a device"):
        quick(photos, tmp_path / "runs", **{"train.device": "quantum"})
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_built_leaves_the_name_free(photos: Path, tmp_path: Path, no_report: None) -> None:
    with pytest.raises(UsageError, match="layers"):
        quick(photos, tmp_path / "runs", name="mine", **{"model.options": {"layers": 3}})
    assert not list((tmp_path / "runs").glob("*/*"))
    with pytest.raises(UsageError, match="pixels"):
        quick(photos, tmp_path / "runs", name="mine", **{"model.img_size": 1})
    assert not list((tmp_path / "runs").glob("*/*"))
    assert quick(photos, tmp_path / "runs", name="mine").folder.name == "mine"


def stop_at(session_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to ourselves once, after a step."""
    show = Session.show

    def shown(self: Session, **numbers: Any) -> None:
        show(self, **numbers)
        if numbers["step"] == session_step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Session, "show", shown)


@pytest.fixture
def stopped(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> Path:
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Interrupted, match="vitrail resume") as caught:
            quick(photos, tmp_path / "runs")
    assert caught.value.exit_code == 143
    folder = tmp_path / "runs" / "classify" / "test_vit-1"
    assert "vitrail resume" in (folder / "RESUMABLE").read_text()
    return folder


def test_a_stopped_run_ends_as_the_whole_one(stopped: Path, finished: RunResult) -> None:
    said: list[str] = []
    result = resume(stopped, say=said.append)
    assert "going on from step 3" in said[0]
    assert not (stopped / "RESUMABLE").exists()
    assert result.metrics == finished.metrics
    for name in ("best", "last"):
        a, b = ((f / name / "model.safetensors").read_bytes() for f in (stopped, finished.folder))
        assert a == b


def test_resume_refuses_another_recipe_and_prints_the_difference(stopped: Path) -> None:
    text = (stopped / "recipe.yaml").read_text()
    (stopped / "recipe.yaml").write_text(text.replace("clip_norm: 1.0", "clip_norm: 2.0").replace("keep: 2", "keep: 1"))
    with pytest.raises(UsageError, match=r"optim\.clip_norm: 1\.0 then, 2\.0 now") as caught:
        resume(stopped)
    assert "train.keep" not in str(caught.value)
    with pytest.raises(UsageError, match=r"force has no effect on train\.keep"):
        resume(stopped, force=["train.keep"])
    assert resume(stopped, force=["optim.clip_norm"], say=lambda s: None).summary["steps"] == 8


def test_resume_refuses_other_data_and_other_classes(
    tmp_path: Path, photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    data = photo_folder(tmp_path / "data", splits={"train": 12, "val": 4})
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        with pytest.raises(Interrupted):
            quick(data, tmp_path / "runs")
    folder = tmp_path / "runs" / "classify" / "test_vit-1"
    lost = data / "val" / "across" / "000.png"
    lost.rename(tmp_path / "kept.png")
    with pytest.raises(UsageError, match="data: other images, labels or file sizes in val"):
        resume(folder)
    (tmp_path / "kept.png").rename(lost)
    for split in ("train", "val"):
        (data / split / "down").rename(data / split / "up")
    with pytest.raises(UsageError, match="classes: across, down then, across, up now"):
        resume(folder, force=["data"])


def test_resume_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a run folder with a recipe\.yaml"):
        resume(tmp_path)


def test_a_folder_in_use_is_refused(stopped: Path) -> None:
    with locked(stopped), pytest.raises(UsageError, match=f"in use by process {os.getpid()} on"):
        resume(stopped)


def test_resuming_a_finished_run_only_ends_it_again(photos: Path, tmp_path: Path, no_report: None) -> None:
    first = quick(photos, tmp_path, **{"train.epochs": 1})
    lines = (first.folder / "metrics.jsonl").read_bytes()
    again = resume(first.folder, say=lambda s: None)
    assert again.metrics == first.metrics
    assert len(read_metrics(first.folder / "metrics.jsonl")) == len(lines.splitlines())


def test_a_full_disk_does_not_end_the_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    write, said, room = os.write, [], [6]

    def full(descriptor: int, data: Any) -> int:
        """The first few megabytes written are refused, as while somebody clears a disk up."""
        if len(data) > 500 and room[0] > 0:
            room[0] -= 3
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    result = quick(photos, tmp_path, said=said, **{"train.save_every_steps": 1})
    warnings = [line for line in said if "No space left" in line]
    assert len(warnings) == 2
    assert "training goes on and tries again at the next interval (2 of 3)" in warnings[1]
    assert result.summary["steps"] == 8
    assert len(list((result.folder / "checkpoints").iterdir())) == 2


def test_a_disk_that_stays_full_is_an_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(VitrailError, match="3 times in a row"):
        quick(photos, tmp_path, **{"train.save_every_steps": 1})


def test_a_fault_in_the_report_does_not_undo_a_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitrail.explain.report as report

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("drawing failed")

    said: list[str] = []
    monkeypatch.setattr(report, "write_report", broken)
    result = quick(photos, tmp_path, said=said, **{"train.epochs": 1})
    assert any("ZeroDivisionError: drawing failed" in line for line in said)
    assert (result.folder / "summary.json").exists()


def test_unreadable_images_are_left_out_and_named(
    tmp_path: Path, photo_folder: Callable[..., Path], no_report: None
) -> None:
    data = photo_folder(tmp_path / "data", splits={"train": 12, "val": 4})
    for broken in (data / "train" / "down" / "003.png", data / "val" / "across" / "001.png"):
        broken.write_bytes(broken.read_bytes()[:100])
    result = quick(data, tmp_path / "runs")
    assert len(result.summary["unreadable"]) == 2
    assert [line for line in result.summary["unreadable"] if "003.png" in line]
    assert [line for line in result.summary["unreadable"] if "001.png" in line], "held-out ones too"
    assert result.split == "val"


def test_tensorboard_events(photos: Path, tmp_path: Path, no_report: None) -> None:
    pytest.importorskip("tensorboard")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not ours
        result = quick(photos, tmp_path, **{"train.epochs": 1, "train.track": "tensorboard"})
    assert list((result.folder / "tensorboard").glob("events.*"))


def test_fine_tuning_starts_from_the_weights(
    finished: RunResult, photos: Path, tmp_path: Path, no_report: None
) -> None:
    source = str(finished.folder / "best")
    tuned = quick(photos, tmp_path, **{"model.pretrained": source, "train.epochs": 1, "optim.lr": 1e-7})
    a, b = (load_folder(f / "best")[0].state_dict() for f in (finished.folder, tuned.folder))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


def test_a_distilled_model_trains_both_heads(photos: Path, tmp_path: Path, no_report: None) -> None:
    result = quick(photos, tmp_path, **{"model.name": "test_deit_distilled", "train.epochs": 1, "model.options": {}})
    state = load_folder(result.folder / "last")[0].state_dict()
    assert state["head_dist.weight"].abs().sum() > 0
    assert state["head.weight"].abs().sum() > 0


def test_fixed_positions_survive_bf16(tmp_path: Path) -> None:
    """A fixed table is part of the architecture: working in bf16 must not round what is saved."""
    options = {"pos_embed": "sincos2d", "global_pool": "gap", "class_token": False}
    result = train(
        {
            "out": str(tmp_path),
            "data.source": "digits",
            "model.name": "test_vit",
            "model.img_size": 16,
            "model.options": options,
            "train.epochs": 1,
            "train.precision": "bf16",
            "augment.crop": "none",
        },
        say=lambda _line: None,
    )
    assert result.metrics["count"] > 0
    model, _card, _classes = load_folder(result.folder / "best")
    fresh = create_model("test_vit", img_size=16, **options)
    torch.testing.assert_close(model.get_buffer("pos_embed"), fresh.get_buffer("pos_embed"), rtol=0, atol=0)


def test_the_best_weights_are_chosen_by_the_metric_asked_for(photos: Path, tmp_path: Path, no_report: None) -> None:
    found = quick(photos, tmp_path, **{"train.monitor": "macro_f1", "train.epochs": 3})
    lines = [line for line in read_metrics(found.folder / "metrics.jsonl") if line["kind"] == "val"]
    best = max(lines, key=lambda line: (line["macro_f1"], -line["loss"]))
    assert found.best["metrics"]["macro_f1"] == best["macro_f1"]
