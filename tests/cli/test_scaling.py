"""`vitrail scaling`: trains a family or reads one, and answers in words and numbers."""

from __future__ import annotations

import json

import pytest

from vitrail.training import run as run_module

SHARES = ["--shares", "0.25,0.5,1", "--epochs", "3", "--models", "test_vit"]
TINY = ["model.img_size=8", "model.options={patch_size: 2}", "batch=16", "device=cpu", "lr=4e-3", "augment.mixup=0.0"]


def test_trains_reads_again_and_answers(vitrail, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_report", lambda *_: None)
    out = tmp_path / "family"
    first = vitrail("scaling", "digits", *TINY, *SHARES, "--out", out, "--json")
    assert first.code == 0, first.err
    assert [run["images"] for run in first.json["runs"]] == [324, 647, 1294]
    assert len(list((out / "classify").iterdir())) == 3
    before = {p: p.stat().st_mtime_ns for p in out.rglob("summary.json")}
    again = vitrail("scaling", out, "--out", tmp_path / "read", "--json")
    assert again.json["laws"] == first.json["laws"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("summary.json")} == before
    refused = vitrail("scaling", out, *SHARES, "--out", out)
    assert refused.code == 2
    assert "leave the options out" in refused.err


def synthetic(tmp_path, monkeypatch, points):
    """Let the reading of runs return given points."""
    import vitrail.training.points as points_module

    monkeypatch.setattr(points_module, "find_runs", lambda paths: list(paths))
    monkeypatch.setattr(points_module, "read_points", lambda folders: (points, ["left out: a run"]))
    return ["scaling", tmp_path, "--out", tmp_path / "out"]


def test_words_files_and_one_json_line(vitrail, tmp_path, monkeypatch):
    from tests.metrics.test_laws import SHARES as AMOUNTS
    from tests.metrics.test_laws import point

    words = synthetic(tmp_path, monkeypatch, [point(d) for d in AMOUNTS])
    ran = vitrail(*words)
    assert ran.code == 0
    for text in ("twice the training images", "exponent b", "model: no answer", "left out: a run", "scaling.html"):
        assert text in ran.out
    said = vitrail(*words, "--times", "4", "--json").json
    assert said["ok"] is True
    assert said["laws"][0]["then"]["amount"] == 64_000
    assert said["notes"] == ["left out: a run"]
    written = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert written["laws"] == said["laws"]
    assert (tmp_path / "out" / "scaling.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "out" / "scaling-data.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["digits"], 3, "holds none"),
        (["a", "b", "--shares", "0.5,1"], 2, "expected one data set"),
        (["digits", "--seeds", "2"], 2, "needs what is to vary"),
        (["digits", "--shares", "half"], 2, "expected --shares as numbers"),
        (["digits", "--epochs", "1.5"], 2, "expected --epochs as whole numbers"),
        (["digits", "--models", "vit_picco_patch2_8"], 4, "vit_pico_patch2_8"),
        (["digits", "--shares", "0.5,1", "--set", "train.epoch=1"], 2, "train.epochs"),
        (["digits", "--shares", "0.5,1", "--set", "optim.lr=1", "--set", "optim.lr=2"], 2, "given twice"),
        (["digits", "--times", "1"], 2, "--times above 1"),
    ],
)
def test_bad_input(vitrail, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    ran = vitrail("scaling", *words)
    assert ran.code == code, ran.err
    assert said in ran.err
    assert not (tmp_path / "runs").exists()
