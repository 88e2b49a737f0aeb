"""The door: figures of a model that is known to be good, and the refusals."""

import json

import pytest
import torch

import vitrail
from vitrail.classes import ClassMap
from vitrail.errors import UsageError, WeightsError
from vitrail.models import create_model
from vitrail.training.probing import features
from vitrail.weights import Card, save_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("test_vit", num_classes=2)
    card = Card(name="test_vit", input_size=(32, 32), num_classes=2)
    return save_folder(tmp_path_factory.mktemp("m") / "small", model, card=card, classes=ClassMap.of(["a", "b"]))


@pytest.fixture(scope="module")
def photos30(tmp_path_factory, photo_folder):
    root = tmp_path_factory.mktemp("data") / "photos"
    return photo_folder(root, classes=("across", "down", "both"), splits={"train": 20, "val": 10, "test": 10})


def test_every_method_finds_what_is_in_the_features(folder, photos30, tmp_path):
    """Stripes across, down and both are told apart by the features of a network that was never trained."""
    said = []
    report = vitrail.probe(folder, photos30, device="cpu", draws=3, out=tmp_path, say=said.append)
    assert report.images == {"train": 60, "val": 30, "test": 30}
    assert (report.width, report.classes, report.layer) == (32, 3, None)
    by = {(entry["method"], entry["setting"]): entry for entry in report.results}
    assert {method for method, _ in by} == {"linear", "knn", "few-shot"}
    for entry in report.results:
        for split in ("val", "test"):
            assert 0 <= entry[split]["low"] <= entry[split]["top1"] <= entry[split]["high"] <= 1
    linear = next(entry for entry in report.results if entry["method"] == "linear")
    assert linear["test"]["top1"] > 0.8
    assert sum("best_on_val" in entry for entry in report.results if entry["method"] == "knn") == 1
    assert len(list((tmp_path / "features").iterdir())) == 3
    line = json.loads((tmp_path / "results.jsonl").read_text())
    assert line["results"] == json.loads(json.dumps(report.to_dict()))["results"]


def test_the_second_probe_runs_no_model(folder, photos30, tmp_path, monkeypatch):
    first = vitrail.probe(folder, photos30, device="cpu", methods=["knn"], out=tmp_path, say=lambda _: None)
    monkeypatch.setattr(features.Reader, "__call__", lambda *_: pytest.fail("features were computed again"))
    again = vitrail.probe(folder, photos30, device="cpu", methods=["knn"], out=tmp_path, say=lambda _: None)
    assert first.results == again.results
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    with pytest.raises(pytest.fail.Exception):
        vitrail.probe(folder, photos30, device="cpu", img_size=40, methods=["knn"], out=tmp_path, say=lambda _: None)


def test_another_size_and_layer(folder, photos30, tmp_path):
    report = vitrail.probe(
        folder, photos30, device="cpu", img_size=(40, 24), layer=0, methods=["knn"], out=tmp_path, say=lambda _: None
    )
    assert (report.img_size, report.layer) == ((40, 24), 0)


def test_without_a_test_split_the_report_says_what_that_means(folder, tmp_path, photo_folder):
    data = photo_folder(tmp_path / "photos", each=10)
    quiet = {"device": "cpu", "methods": ["linear"], "out": tmp_path / "o", "say": lambda _: None}
    report = vitrail.probe(folder, data, **quiet)
    assert set(report.images) == {"train", "val"}
    assert any("no test split" in note for note in report.notes)
    report = vitrail.probe(folder, data, test_fraction=0.2, **quiet)
    assert report.images["test"] == 4
    assert not any("no test split" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ["liner"]}, "linear"),
        ({"methods": ["linear"], "neighbours": [5]}, "no effect without the method knn"),
        ({"methods": ["knn"], "shots": [5]}, "no effect without the method few-shot"),
        ({"methods": ["knn"], "neighbours": [61]}, "at most 60 neighbours"),
        ({"methods": ["few-shot"], "shots": [21]}, "at most 20"),
        ({"methods": ["few-shot"], "draws": 1}, "two draws or more"),
        ({"title": "x"}, "no effect"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(folder, photos30, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        vitrail.probe(folder, photos30, device="cpu", out=tmp_path, say=lambda _: None, **options)


def test_an_architecture_without_weights_is_refused_with_advice(photos30, tmp_path):
    with pytest.raises(WeightsError, match="random features say nothing; mend: a run folder"):
        vitrail.probe("vit_tiny_patch16_224", photos30, out=tmp_path)
