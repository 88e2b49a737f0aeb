"""The verbs on a detector: predict, val, explain, data check; and the check of bad boxes."""

from __future__ import annotations

import json

import pytest

from tests.data.boxed import annotation, usual, write_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(write_coco(tmp_path_factory.mktemp("data")), split="val")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    from vitrail.training import train

    recipe = {
        "model.name": "test_deformable_detr_small",
        "model.img_size": 48,
        "data.source": str(data),
        "data.workers": 0,
        "out": str(tmp_path_factory.mktemp("runs")),
        "name": "tiny",
        "train.epochs": 1,
        "train.batch_size": 2,
        "train.threads": 1,
        "train.precision": "fp32",
    }
    return train(recipe, say=str).folder


def test_val_shows_the_figures_and_the_classes(vitrail, run):
    ran = vitrail("val", run)
    assert ran.code == 0, ran.err
    for words in ("AP (mean over overlaps", "AP at an overlap of 0.50", "the val split of", "cat"):
        assert words in ran.out
    told = vitrail("val", run, "--split", "train", "--json").json
    assert told["split"] == "train"
    assert told["metrics"]["count"] == 4
    assert [row["name"] for row in told["per_class"]] == ["cat", "dog"]


def test_val_on_other_data_wants_the_same_classes(vitrail, run, tmp_path):
    other = write_coco(tmp_path)
    assert vitrail("val", run, "--data", other).code == 0
    path = other / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace('"cat"', '"lion"'))
    ran = vitrail("val", run, "--data", other)
    assert ran.code == 3
    assert "lion" in ran.err


def test_predict_writes_pictures_and_coco_json(vitrail, run, data, tmp_path):
    ran = vitrail("predict", run, data / "val2017", "--out", tmp_path / "found", "--threshold", "0")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in (tmp_path / "found").glob("*.png")) == ["1.png", "2.png", "3.png", "4.png"]
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert {row["category_id"] for row in rows} <= {3, 7}
    told = vitrail("predict", run, data / "val2017" / "1.png", "--threshold", "0.999", "--json").json
    assert told["predictions"][0]["objects"] == []


def test_masks_are_measured_and_written_where_the_network_gives_them(vitrail, tmp_path):
    from vitrail.training import train

    outlined = [{**one, "segmentation": [outline(one["bbox"])]} for one in usual() if not one["iscrowd"]]
    data = write_coco(write_coco(tmp_path / "data", outlined), outlined, split="val")
    options = {"model.name": "test_detr_masks", "model.img_size": 48, "data.source": str(data), "train.epochs": 1}
    options |= {"data.workers": 0, "train.batch_size": 2, "train.threads": 1, "out": str(tmp_path / "runs")}
    run = train({**options, "name": "masks"}, say=str).folder
    ran = vitrail("val", run, "--json")
    assert ran.code == 0, ran.err
    assert 0 <= ran.json["masks"]["ap"] <= 1
    assert "masks:" in vitrail("val", run).out
    out = tmp_path / "found"
    assert vitrail("predict", run, data / "val2017", "--out", out, "--threshold", "0").code == 0
    rows = json.loads((out / "detections.json").read_text())
    assert rows
    assert {tuple(row["segmentation"]["size"]) for row in rows} == {(30, 40)}


def outline(xywh):
    x, y, w, h = xywh
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def test_predict_refuses_what_has_no_effect(vitrail, run, data, tmp_path):
    ran = vitrail("predict", run, data / "val2017" / "1.png", "--csv", tmp_path / "x.csv")
    assert ran.code == 2
    assert "--csv has no effect" in ran.err


def test_explain_draws_what_a_query_read(vitrail, run, data, tmp_path):
    ran = vitrail("explain", run, data / "val2017" / "1.png", "--out", tmp_path, "--json")
    assert ran.code == 0, ran.err
    (told,) = ran.json["explanations"]
    assert told["name"] in ("cat", "dog")
    assert list(tmp_path.glob("query-0-1.png"))
    assert vitrail("explain", run, "--out", tmp_path / "own").code == 0
    assert len(list((tmp_path / "own").glob("*.png"))) == 4


def test_data_check_counts_objects_and_names_what_is_wrong(vitrail, data, tmp_path):
    ran = vitrail("data", "check", data)
    assert ran.code == 0, ran.err
    for words in ("COCO json", "cat", "with holes", "vitrail train"):
        assert words in ran.out
    told = vitrail("data", "check", data, "--json").json
    assert told["report"]["objects"]["train"] == {"cat": 3, "dog": 1}
    root = write_coco(tmp_path / "bad", [*usual(), annotation(8, 10, [1, 1, 5, 5], 1)])
    ran = vitrail("data", "check", root, "--csv", tmp_path / "all.csv")
    assert ran.code == 3
    assert "annotation 8: category_id 1" in ran.out
    assert "unknown_class" in (tmp_path / "all.csv").read_text()


def test_train_finds_the_task_by_the_data_and_refuses_bad_boxes(vitrail, tmp_path):
    root = write_coco(tmp_path / "bad", [annotation(1, 10, [100, 100, 5, 5])])
    ran = vitrail("train", root, "--out", tmp_path / "runs", "--epochs", "1")
    assert ran.code == 3
    assert "1.png: annotation 1" in ran.err or "more than one in ten" in ran.err
