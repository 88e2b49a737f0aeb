"""Runs on text: they learn, end with what they promise, go on bit for bit, and say what is wrong with their data."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vitrail
from tests.house.source import REPOSITORY
from vitrail.data.paralleltext import open_text
from vitrail.data.tokenbatches import Encoded, TokenBatches
from vitrail.data.tokenizer import SPECIALS, Tokenizer
from vitrail.errors import DataError, UsageError
from vitrail.tasks.evaluate import evaluate
from vitrail.tasks.translate import Translate, until_end
from vitrail.training import resume, train
from vitrail.training.baserecipe import BaseRecipe
from vitrail.training.batches import pieces
from vitrail.training.recipe import Recipe
from vitrail.training.signals import Interrupted
from vitrail.training.textrecipe import TranslateRecipe

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EINS = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
SMALL = {"model.name": "test_transformer", "tokenizer.vocab_size": 300, "train.batch_tokens": 128, "train.threads": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits spelled in English and German."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for split, count in (("train", 120), ("val", 12), ("test", 12)):
        rows = [rng.integers(0, 10, rng.integers(3, 9)) for _ in range(count)]
        for language, words in (("en", ONES), ("de", EINS)):
            lines = "".join(" ".join(words[n] for n in row) + "\n" for row in rows)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
    return folder


def run(text: Path, out: Path, **more: Any) -> Any:
    settings = {**SMALL, "out": str(out), "train.epochs": 2, **more}
    return train({"data.source": str(text)}, settings, say=lambda line: None)


def test_the_task_is_seen_from_the_data(text: Path) -> None:
    assert isinstance(Recipe.load({"data.source": str(text)}, environment={}), TranslateRecipe)
    assert isinstance(Recipe.load({"data.source": "numbers"}, environment={}), TranslateRecipe)
    assert type(Recipe.load({"data.source": "digits"}, environment={})) is Recipe
    again: BaseRecipe = Recipe.load(Recipe.load({"task": "translate"}, environment={}))
    assert isinstance(again, TranslateRecipe)
    with pytest.raises(UsageError, match=r"unknown recipe key 'augment"):
        Recipe.load({"data.source": str(text), "augment.mixup": 0.2}, environment={})


def test_a_run_leaves_what_a_user_needs(text: Path, tmp_path: Path) -> None:
    found = run(text, tmp_path)
    assert found.split == "test"
    assert {"bleu", "chrf", "loss", "accuracy", "count"} == found.metrics.keys()
    assert found.metrics["count"] == 12
    names = {path.name for path in found.folder.iterdir()}
    assert {"recipe.yaml", "tokenizer.json", "best", "last", "summary.json", "translations_test.tsv"} <= names
    rows = (found.folder / "translations_test.tsv").read_text().splitlines()
    assert len(rows) == 13
    assert {len(row.split("\t")) for row in rows} == {3}
    details = json.loads((found.folder / "details_test.json").read_text())
    assert "version:" in details["signature"]
    assert sum(bucket["sentences"] for bucket in details["by_length"]) == 12
    assert "auto" not in (found.folder / "recipe.yaml").read_text().replace("# ", "")
    translator = vitrail.load(found.folder)
    with pytest.raises(UsageError, match="img_size has no effect"):
        vitrail.load(found.folder, img_size=32)
    answer = translator("one two")
    assert isinstance(answer.text, str)
    assert translator(["", "one two"])[0].text == ""


BY_HEART = {
    "train.epochs": 30, "optim.lr": 3e-3, "model.drop_rate": 0.0, "model.name": "test_transformer_pre_norm",
    "model.options": {"embed_dim": 48, "hidden_dim": 96}, "train.eval_every": 15, "decoding.beam": 2,
    "train.label_smoothing": 0.0,
}  # fmt: skip


def test_a_small_set_is_learnt_by_heart(text: Path, tmp_path: Path) -> None:
    found = run(text, tmp_path, **BY_HEART)
    assert found.metrics["accuracy"] > 0.75  # by chance 0.1
    assert found.metrics["bleu"] > 40


def test_a_stopped_run_goes_on_bit_for_bit(text: Path, tmp_path: Path) -> None:
    whole = run(text, tmp_path / "whole", name="run")

    def stop(line: str) -> None:
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train({"data.source": str(text)}, {**SMALL, "out": str(tmp_path), "train.epochs": 2, "name": "run"}, say=stop)
    again = resume(tmp_path / "translate" / "run", say=lambda line: None)
    for name in ("best", "last"):
        one, other = (f.folder / name / "model.safetensors" for f in (whole, again))
        assert one.read_bytes() == other.read_bytes()
    assert again.metrics == whole.metrics


def test_other_sentences_are_no_resumption(text: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in text.iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    folder = run(data, tmp_path).folder
    (data / "val.de").write_text((data / "val.de").read_text().replace("eins", "einz", 1))
    with pytest.raises(UsageError, match="in val"):
        resume(folder, say=lambda line: None)


def test_pretrained_weights_bring_their_tokenizer(text: Path, tmp_path: Path) -> None:
    first = run(text, tmp_path).folder
    said: list[str] = []
    settings = {**SMALL, "out": str(tmp_path), "train.epochs": 1, "model.pretrained": str(first)}
    del settings["tokenizer.vocab_size"], settings["model.name"]
    second = train({"data.source": str(text)}, settings, say=said.append)
    assert any(line.startswith("pretrained: test_transformer") for line in said)
    assert (second.folder / "tokenizer.json").read_text() == (first / "tokenizer.json").read_text()


TEXTS = [path for path in sorted((REPOSITORY / "recipes").glob("*.yaml")) if "task: translate" in path.read_text()]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_shipped_recipe_learns(text: Path, tmp_path: Path, path: Path) -> None:
    changes = {**SMALL, "data.source": str(text), "out": str(tmp_path), "train.epochs": 1, "train.precision": "fp32"}
    found = train(path, {**changes, "model.name": "test_transformer_pre_norm"}, say=lambda line: None)
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("model", ["test_gru_attention", "test_rnn_seq2seq", "test_retnet_seq2seq"])
def test_every_kind_of_model_trains(text: Path, tmp_path: Path, model: str) -> None:
    found = run(text, tmp_path, **{"model.name": model, "train.epochs": 1, "train.precision": "fp32"})
    assert np.isfinite(found.metrics["loss"])


def test_what_is_wrong_is_said_before_training(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a model that translates"):
        run(text, tmp_path, **{"model.name": "test_vit"})
    with pytest.raises(UsageError, match=r"vocab_size as tokenizer\.vocab_size"):
        run(text, tmp_path, **{"model.options": {"vocab_size": 3}})
    with pytest.raises(DataError, match="at least 260"):
        run(text, tmp_path, **{"tokenizer.vocab_size": 10})
    assert not list(tmp_path.glob("translate/*"))


class Fixed(nn.Module):
    """A network whose logits say the token after the last but one of the vocabulary."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, size)

    def hidden(self, source: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        found: Tensor = self.table(target)
        return found

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def test_pieces_of_a_batch_weigh_by_their_tokens(text: Path) -> None:
    pairs = open_text(str(text)).val
    tokenizer = Tokenizer.train([*pairs.source, *pairs.target], 300)
    (batch, *_) = TokenBatches(Encoded.of(pairs, tokenizer, 64), SPECIALS, tokens=10_000).epoch()
    torch.manual_seed(0)
    model = Fixed(tokenizer.vocab_size)
    task = Translate(tokenizer, lambda m, s, k: s, sources=pairs.source, references=pairs.target)
    model.requires_grad_(False)
    whole = task.step(model, batch)["loss"]
    parts = sum(task.step(model, piece)["loss"] * piece.count / batch.count for piece in pieces(batch, 5))
    torch.testing.assert_close(parts, whole)
    assert float(task.step(model, next(pieces(batch, 1)))["loss"]) == float(whole)


def test_the_likelihood_and_the_translations_are_those_of_the_network(text: Path) -> None:
    pairs = open_text(str(text)).val
    tokenizer = Tokenizer.train([*pairs.source, *pairs.target], 300)
    encoded = Encoded.of(pairs, tokenizer, 64)
    torch.manual_seed(0)
    model = Fixed(tokenizer.vocab_size).requires_grad_(False)
    answers = {tuple(row.tolist()): encoded.target[i][1:] for i, row in enumerate(encoded.source)}

    def oracle(_: nn.Module, source: Tensor, keep: Tensor) -> Tensor:
        out = torch.zeros(len(source), 80, dtype=torch.int64)
        for i, row in enumerate(source):
            found = answers[tuple(row[keep[i]].tolist())]
            out[i, : len(found)] = torch.from_numpy(found)
        return out

    task = Translate(tokenizer, oracle, sources=pairs.source, references=pairs.target)
    found = evaluate(task, model, TokenBatches(encoded, SPECIALS, tokens=60).epoch())
    assert found.metrics["bleu"] == pytest.approx(100)
    total = sum(
        float(-model.table.weight[row[:-1]].log_softmax(-1)[range(len(row) - 1), row[1:]].sum())
        for row in map(torch.from_numpy, encoded.target)
    )
    tokens = sum(len(row) - 1 for row in encoded.target)
    assert found.metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert float(found.rows["nll"].sum()) == pytest.approx(total, rel=1e-5)
    assert until_end([5, 6, SPECIALS.eos, 7], SPECIALS) == [5, 6]
