"""A family of tiny real runs: trained once, gone on with after a stop, read back as points, refused where unlike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vitrail.errors import DataError, UsageError
from vitrail.metrics.cost import cost
from vitrail.metrics.laws import study
from vitrail.metrics.scale import train_flops
from vitrail.models import create_model
from vitrail.training import family as family_module
from vitrail.training import run as run_module
from vitrail.training.family import Family, run_family
from vitrail.training.points import find_runs, read_points
from vitrail.training.signals import Interrupted

TINY = {
    "model.img_size": 8, "model.options": {"patch_size": 2}, "train.batch_size": 16, "train.device": "cpu",
    "train.precision": "fp32", "train.threads": 1, "optim.lr": 4e-3, "augment.mixup": 0.0,
}  # fmt: skip


def tiny(out: Path, **changes) -> Family:
    return replace(Family("digits", out, ("test_vit",), (0.25, 0.5, 1.0), (3,), 1, TINY), **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a family that really trained: three shares of digits."""
    out = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_report", lambda *_: None)
        run_family(tiny(out), say=lambda _: None)
    return out


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "family")
    return tmp_path / "family"


def test_runs_differ_in_what_varies_and_nothing_else(tmp_path: Path) -> None:
    recipes = list(tiny(tmp_path, models=("test_vit", "auto"), epochs=(1, "auto"), seeds=2).members())
    assert len(recipes) == len({r.name for r in recipes}) == 3 * 2 * 2 * 2
    assert recipes[0].data.train_fraction == 0.25
    shared = [{k: v for k, v in r.flat().items() if k not in family_module.VARIED} for r in recipes]
    assert all(s == shared[0] for s in shared)


def test_finished_runs_are_not_run_again(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_module, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(family_module, "resume", lambda *_, **__: pytest.fail("trained again"))
    said: list[str] = []
    folders = run_family(tiny(trained), say=said.append)
    assert [f.name for f in folders] == [f"test_vit-d{s}-e3-s0" for s in ("0.25", "0.5", "1")]
    assert sum("finished before" in line for line in said) == 3


def test_a_stopped_family_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_report", lambda *_: None)
    family, real = tiny(tmp_path, shares=(0.25,)), run_module.Session.log
    stops = iter([True])

    def stopping(session, kind, step, values):
        real(session, kind, step, values)
        if kind == "val" and next(stops, False):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run_module.Session, "log", stopping)
    with pytest.raises(Interrupted, match="command of the whole family"):
        run_family(family, say=lambda _: None)
    folder = tmp_path / "classify" / "test_vit-d0.25-e3-s0"
    assert not (folder / "summary.json").exists()
    assert run_family(family, say=lambda _: None) == [folder]
    other = trained / "classify" / folder.name
    assert (folder / "last" / "model.safetensors").read_bytes() == (other / "last" / "model.safetensors").read_bytes()


def test_a_folder_killed_before_its_first_line_is_made_anew(trained: Path, copied: Path) -> None:
    folder = copied / "classify" / "test_vit-d0.25-e3-s0"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".lock").touch()
    run_family(tiny(copied, shares=(0.25,)), say=lambda _: None)
    assert (folder / "summary.json").is_file()


def test_other_settings_are_refused_and_named(copied: Path) -> None:
    with pytest.raises(UsageError, match=r"optim.lr: 0.004 then, 0.001 now"):
        run_family(tiny(copied, settings={**TINY, "optim.lr": 1e-3}), say=lambda _: None)
    with pytest.raises(UsageError, match=r"data.source: 'digits' then"):
        run_family(tiny(copied, source="elsewhere"), say=lambda _: None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shares": (0.5, 0.5)}, "different values"),
        ({"models": ()}, "one or more"),
        ({"seeds": 0}, "at least 1"),
        ({"settings": {"train.seed": 3}}, "train.seed has no effect in a family; mend: give it as its seeds"),
        ({"settings": {"model": {"name": "x"}}}, "give it as its models"),
        ({"models": ("test_vitt",)}, "test_vit"),
    ],
)
def test_families_that_make_no_sense(tmp_path: Path, changes, words: str) -> None:
    with pytest.raises((UsageError, DataError, ValueError), match=words):
        tiny(tmp_path, **changes)


def test_bad_shares_stop_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train_fraction"):
        run_family(tiny(tmp_path / "new", shares=(0.5, 1.5)), say=lambda _: None)
    assert not (tmp_path / "new").exists()


def test_points_are_what_the_runs_did(trained: Path) -> None:
    points, notes = read_points(find_runs([trained]))
    assert notes == []
    whole = max(points, key=lambda p: p.images)
    summary = json.loads((Path(whole.run) / "summary.json").read_text())
    assert whole.images == 1294
    assert whole.count == 359
    assert 1 - whole.wrong / whole.count == pytest.approx(summary["results"]["test"]["top1"])
    model = create_model("test_vit", num_classes=10, img_size=8, patch_size=2)
    forward = cost(model, 8, training=False).macs
    assert whole.flops == train_flops(forward, summary["steps"] * 16) == 6 * forward * summary["steps"] * 16
    assert whole.chance == pytest.approx(0.9, abs=0.01)
    assert whole.kind == "ViT"


def test_a_law_comes_of_real_runs_whatever_their_order(trained: Path) -> None:
    points, _ = read_points(find_runs([trained]))
    (series,) = study(points).series
    assert series.question == "data"
    (again,) = study(points[::-1]).series
    assert again.law.b == series.law.b
    assert again.points == series.points
    first = points[0].run
    assert find_runs([first, trained, first])[0] == Path(first)
    assert len(find_runs([first, trained])) == 3


def test_unfinished_and_copied_runs_are_left_out(copied: Path) -> None:
    runs = copied / "classify"
    shutil.copytree(runs / "test_vit-d0.5-e3-s0", runs / "twin")
    (runs / "test_vit-d1-e3-s0" / "summary.json").unlink()
    points, notes = read_points(find_runs([copied]))
    assert len(points) == 2
    assert any("not finished; mend: vitrail resume" in n for n in notes)
    assert any("same settings, same seed" in n for n in notes)


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which holds none"):
        find_runs([tmp_path])
    with pytest.raises(DataError, match="which holds none"):
        find_runs([tmp_path / "nowhere"])


def test_runs_on_other_images_are_refused_and_the_difference_named(copied: Path) -> None:
    import numpy as np

    folder = copied / "classify" / "test_vit-d1-e3-s0"
    path = folder / "predictions_test.npz"
    with np.load(path, allow_pickle=False) as stored:
        kept = dict(stored)

    def written(**changes) -> None:
        np.savez(path, **{**kept, **changes})

    written(labels=np.roll(kept["labels"], 1))
    with pytest.raises(DataError, match=r"other test images: \d+ of 359, such as "):
        read_points(find_runs([copied]))
    written(**{k: v[:100] for k, v in kept.items()})
    with pytest.raises(DataError, match="359 test images against 100"):
        read_points(find_runs([copied]))
    path.unlink()
    with pytest.raises(DataError, match="measured on test against val"):
        read_points(find_runs([copied]))
    classes = folder / "best" / "classes.json"
    classes.write_text(classes.read_text().replace('"0"', '"null"'))
    with pytest.raises(DataError, match="classes"):
        read_points(find_runs([copied]))
