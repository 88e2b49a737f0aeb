"""The verbs on data of several labels an image: one training, then all that reads it."""

from __future__ import annotations

import csv

import pytest

from tests.data.making import write_image

from .conftest import tiny

SETS = ["cat", "cat;dog", "", "dog", "owl;cat", "owl"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    rows = [("path", "labels", "split")]
    for i in range(36):
        write_image(folder / f"{i:02d}.png", i, size=(24, 24))
        rows.append((f"{i:02d}.png", SETS[i % 6], ("train", "train", "val", "test")[i // 6 % 4]))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_train_val_predict_explain_and_check(vitrail, scenes, tmp_path):
    ran = vitrail(*tiny("train", scenes / "labels.csv", "--out", tmp_path, "--name", "one"))
    assert ran.code == 0
    assert "several labels an image (separated by ';')" in ran.err
    assert "mean average precision" in ran.out
    run = tmp_path / "multilabel" / "one"
    assert (run / "explain" / "attention.png").exists()

    ran = vitrail("val", run)
    assert ran.code == 0
    for words in ("mAP", "at each class's threshold", "owl", "AP"):
        assert words in ran.out
    said = vitrail("val", run, "--json").json
    assert [row["name"] for row in said["per_class"]] == ["cat", "dog", "owl"]
    assert said["metrics"] == pytest.approx(
        vitrail("val", run, "--data", scenes / "labels.csv", "--json").json["metrics"]
    )

    ran = vitrail("predict", run, scenes / "00.png", "--json")
    assert ran.json["predictions"][0]["task"] == "multilabel"
    assert vitrail("predict", run, scenes / "00.png", "--top", "1").code == 0
    assert vitrail("explain", run, scenes / "00.png", "--out", tmp_path / "e").code == 0

    ran = vitrail("data", "check", scenes / "labels.csv", "--json")
    assert ran.json["report"]["multi_label"] is True
    ran = vitrail("data", "check", scenes / "labels.csv", "--labels", "single")
    assert ran.code == 3  # then an empty cell is no label


def test_other_data_must_be_of_the_same_kind(vitrail, scenes, photos, trained, tmp_path):
    ran = vitrail("val", trained, "--data", scenes / "labels.csv")
    assert ran.code == 3
    assert "expected one label an image" in ran.err
