"""Several labels an image, from the table to the answer: one run, and everything that reads it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.making import write_image
from vitrail.classes import ClassMap
from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError, WeightsError
from vitrail.infer import MultiLabelResult, load, results_to_csv, table_rows
from vitrail.models import create_model
from vitrail.tasks.evaluate import evaluate
from vitrail.tasks.multilabel import MultiLabel, balance_of
from vitrail.training import RunResult, train
from vitrail.training.build import build_task
from vitrail.training.defaults import measure, resolve
from vitrail.training.pipeline import eval_loader
from vitrail.training.recipe import Recipe
from vitrail.weights import Card, load_folder, save_folder

QUICK = {
    "model": {"name": "test_vit", "img_size": 16, "options": {"patch_size": 8}},
    "augment": {"randaugment": None, "erasing": 0, "mixup": 0.4, "cutmix": 0},
    "train": {"epochs": 2, "batch_size": 6, "precision": "fp32", "device": "cpu", "log_every": 2},
    "data": {"workers": 0},
}
SETS = ["red", "green;red", "", "blue", "blue;green", "red;blue"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    rows = [("path", "labels", "split")]
    for i in range(48):
        write_image(folder / f"{i:02d}.png", i)
        rows.append((f"{i:02d}.png", SETS[i % 6], "test" if i % 4 == 3 else "train"))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    out = tmp_path_factory.mktemp("runs")
    return train(QUICK, {"data.source": str(source), "out": str(out)}, say=lambda line: None)


def test_the_run_says_what_it_is_and_reaches_what_it_reports(run: RunResult, source: Path) -> None:
    assert run.folder.parent.name == "multilabel"
    recipe = Recipe.load(run.folder / "recipe.yaml", environment={})
    assert (recipe.task, recipe.data.labels, recipe.train.monitor) == ("multilabel", "multi", "map")
    assert (recipe.train.loss, recipe.train.label_smoothing) == ("bce", 0.0)
    model, card, classes = load_folder(run.folder / "best")
    assert card.multi_label
    assert card.thresholds is not None
    assert classes == ClassMap.of(["blue", "green", "red"])
    splits = open_dataset(source)
    assert splits.test is not None
    task = MultiLabel(3, thresholds=card.thresholds)
    found = evaluate(task, model, eval_loader(splits.test, card, batch_size=5).epoch())
    assert found.metrics == pytest.approx(run.metrics)
    val = evaluate(MultiLabel(3), model, eval_loader(splits.val, card, batch_size=5).epoch())
    assert val.accumulator.thresholds() == pytest.approx(card.thresholds)  # they were found there
    with np.load(run.folder / "predictions_test.npz", allow_pickle=False) as stored:
        assert stored["labels"].tolist() == splits.test.labels.tolist()


def test_the_saved_folder_knows_its_problem_as_transformers_writes_it(run: RunResult, tmp_path: Path) -> None:
    config = json.loads((run.folder / "best" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    one = save_folder(tmp_path / "one", create_model("test_vit", num_classes=2), card=Card(name="test_vit"))
    assert "problem_type" not in json.loads((one / "config.json").read_text())
    # another head forgets thresholds, not the kind; wrong counts are refused
    _, card, classes = load_folder(run.folder / "best", num_classes=5)
    assert card.thresholds is classes is None
    with pytest.raises(WeightsError, match="thresholds of several labels an image"):
        Card(num_classes=2, problem_type="multi_label_classification", thresholds=(0.1,))
    with pytest.raises(WeightsError, match="expected problem_type of"):
        Card(problem_type="regression")


def test_the_predictor_gives_all_labels_above_threshold(run: RunResult, source: Path, tmp_path: Path) -> None:
    predictor = load(run.folder, device="cpu")
    paths = [str(source.parent / f"{i:02d}.png") for i in range(6)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    results = predictor([*paths, str(broken)])
    assert isinstance(results, list)
    card = load_folder(run.folder / "best")[1]
    for result in results[:-1]:
        assert isinstance(result, MultiLabelResult)
        want = {i for i, (s, t) in enumerate(zip(result.scores, card.thresholds or (), strict=True)) if s >= t}
        assert {guess.index for guess in result.present} == want
        scores = [guess.score for guess in result.present]
        assert scores == sorted(scores, reverse=True)
        said = result.to_json()
        assert said["task"] == "multilabel"
        assert [row["label"] for row in said["labels"]] == [guess.label for guess in result.present]
        assert json.loads(json.dumps(said)) == said
    assert not results[-1].ok
    assert results[-1].present == []
    heads, rows = table_rows(results, top=2)
    assert heads == ["image", "label", "score", "then"]
    assert rows[0][1] == (", ".join(g.label for g in results[0].present) or "none")
    with results_to_csv(results, tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["name", "labels", "scores", "error"]
    assert lines[1][1] == ";".join(g.label for g in results[0].present)
    assert lines[-1][3]
    drawn = results[0].plot(tmp_path / "p.png")
    assert drawn.size[0] > 300
    assert predictor.explain(paths[0], method="rollout").score == pytest.approx(float(results[0].scores.max()))


def test_a_confident_head_is_read_by_sigmoid(tmp_path: Path) -> None:
    """Two classes can be sure at once: no softmax is left anywhere on the way."""
    model = create_model("test_vit", num_classes=3)
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([4.0, 4.0, -4.0]))
    card = Card(name="test_vit", input_size=model.config.img_size, problem_type="multi_label_classification")
    save_folder(tmp_path / "m", model, card=card, classes=ClassMap.of(["a", "b", "c"]))
    result = load(tmp_path / "m", device="cpu")(np.zeros((20, 20, 3), dtype=np.uint8))
    assert isinstance(result, MultiLabelResult)
    np.testing.assert_allclose(result.scores, torch.tensor([4.0, 4.0, -4.0]).sigmoid().numpy(), rtol=1e-5)
    assert [g.label for g in result.present] == ["a", "b"]
    assert result.thresholds.tolist() == [0.5, 0.5, 0.5]


def test_the_report_has_classes_and_no_confusion(run: RunResult) -> None:
    page = (run.folder / "report.html").read_text()
    assert "mean average precision" in page
    assert "Confusion matrix" not in page
    assert "Best and worst" in page
    details = json.loads((run.folder / "details_test.json").read_text())
    assert [row["name"] for row in details["per_class"]] == ["blue", "green", "red"]


def settled(source: Path, **given: Any) -> Recipe:
    asked = Recipe.load(QUICK, {"data.source": str(source), **given}, {})
    return resolve(asked, measure(open_dataset(source).train), torch.device("cpu"), has_val=False)[0]


def test_options_reach_the_task_and_misfits_are_refused(source: Path) -> None:
    splits, card = open_dataset(source), Card(name="test_vit")
    weighted = settled(source, **{"train.class_weights": "balanced", "train.monitor": "micro_f1"})
    task = build_task(weighted, splits, card, torch.device("cpu"))
    assert isinstance(task, MultiLabel)
    want = balance_of(splits.train.counts(), len(splits.train), kind="balanced")
    assert task.balance is not None
    torch.testing.assert_close(task.balance.yes, want.yes)
    assert task.monitor == "micro_f1"
    asymmetric = build_task(settled(source, **{"train.loss": "asymmetric"}), splits, card, torch.device("cpu"))
    assert isinstance(asymmetric, MultiLabel)
    assert asymmetric.kind == "asymmetric"
    for given, message in (
        ({"task": "classify"}, "expected task multilabel, because the data have several labels an image"),
        ({"data.balance": "sqrt"}, r"data\.balance: sqrt has no meaning"),
        ({"train.monitor": "top1"}, r"train\.monitor of map, micro_f1, macro_f1, got 'top1'"),
        ({"train.loss": "ce"}, r"train\.loss of bce, asymmetric with multilabel, got 'ce'"),
        ({"train.loss": "asymmetric", "train.class_weights": "balanced"}, "correct twice"),
    ):
        with pytest.raises(UsageError, match=message):
            settled(source, **given)
    with pytest.raises(UsageError, match=r"train\.loss of ce, bce with classify"):
        Recipe.load({}, {"task": "classify", "train.loss": "asymmetric"}, {})


def test_a_teacher_is_for_one_label_an_image(run: RunResult, source: Path, photos: Path, tmp_path: Path) -> None:
    best = str(run.folder / "best")
    with pytest.raises(UsageError, match="one label an image with a teacher"):
        settled(source, **{"distill.teacher": best})
    given = {"data.source": str(photos), "out": str(tmp_path), "distill.teacher": best}
    with pytest.raises(WeightsError, match="a teacher of one label an image"):
        train(QUICK, given, say=lambda line: None)
