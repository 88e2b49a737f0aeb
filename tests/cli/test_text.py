"""The verbs on a model that reads text."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from vitrail.training import train

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on counting."""
    work = tmp_path_factory.mktemp("spoken")
    data, names = work / "data", list(WORDS)
    data.mkdir()
    lines = [" ".join(names[(i + j) % 5] for j in range(2 + i % 5)) for i in range(60)]
    for language, convert in (("en", str), ("de", lambda line: " ".join(WORDS[w] for w in line.split()))):
        (data / f"train.{language}").write_text("".join(f"{convert(line)}\n" for line in lines), encoding="utf-8")
        (data / f"test.{language}").write_text("".join(f"{convert(line)}\n" for line in lines[:9]), encoding="utf-8")
    settings = {
        "data.source": str(data), "model.name": "test_transformer", "tokenizer.vocab_size": 280, "out": str(work),
        "train.epochs": 2, "train.batch_tokens": 100, "train.threads": 1, "data.max_tokens": 20, "decoding.extra": 5,
    }  # fmt: skip
    return train({}, settings, say=lambda line: None).folder


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_predict_translates_standard_input_line_by_line(vitrail, spoken, monkeypatch):
    feed(monkeypatch, b"one two\n\nthree four five\n")
    ran = vitrail("predict", spoken, "--json")
    assert ran.code == 0
    assert [p["source"] for p in ran.json["predictions"]] == ["one two", "", "three four five"]
    assert ran.json["predictions"][1]["text"] == ""
    feed(monkeypatch, b"one two\n\nthree four five\n")
    ran = vitrail("predict", spoken)
    assert len(ran.out.split("\n")) == 4  # one line of output a line of input


def test_predict_takes_files_and_a_beam(vitrail, spoken, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("one two\nthree\n")
    greedy = vitrail("predict", spoken, file, "--beam", 1, "--json").json["predictions"]
    alone = vitrail("predict", spoken, file, "--beam", 1, "--batch", 1, "--json").json["predictions"]
    assert [p["text"] for p in greedy] == [p["text"] for p in alone]


def test_a_line_that_is_not_utf8_costs_no_other_line(vitrail, spoken, monkeypatch):
    feed(monkeypatch, "one\nfünf\ntwo\n".encode("latin1"))
    ran = vitrail("predict", spoken, "--json")
    assert ran.code == 3
    assert "line 2" in ran.json["message"]
    assert [p["source"] for p in ran.json["predictions"]] == ["one", "", "two"]


def test_a_line_of_thousands_of_words_is_cut_and_said(vitrail, spoken, monkeypatch):
    feed(monkeypatch, b"one " * 5000 + b"\nunheard of: \xe2\x98\x83\n")
    ran = vitrail("predict", spoken, "--json")
    assert ran.code == 0
    assert "only the first 20 of" in ran.json["predictions"][0]["notes"][0]
    assert not [note for note in ran.json["predictions"][1]["notes"] if "first" in note]


def test_val_measures_and_tells_by_length(vitrail, spoken):
    ran = vitrail("val", spoken, "--json")
    assert ran.code == 0
    assert ran.json["split"] == "test"
    assert ran.json["metrics"]["count"] == 9
    assert "signature" in ran.json
    said = vitrail("val", spoken, "--split", "val")
    assert "sacreBLEU" in said.out
    assert vitrail("val", spoken, "--split", "nope").code == 2


def test_explain_draws_an_alignment(vitrail, spoken, tmp_path):
    ran = vitrail("explain", spoken, "one two three", "--out", tmp_path, "--json")
    assert ran.code == 0
    (found,) = ran.json["explanations"]
    assert Path(found["picture"]).stat().st_size > 1000
    assert "cross" in found["layer"]


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "{run}", "--img-size", 32),
        ("explain", "{run}", "--figures"),
        ("soup", "{run}", "{run}", "--out", "soup"),
        ("plan", "numbers"),
        ("scaling", "numbers", "--out", "family", "--models", "transformer_tiny", "--shares", "0.5"),
        ("models", "transformer_tiny", "--cost"),
        ("train", "digits", "--model", "transformer_tiny"),
    ],
)
def test_what_is_for_images_says_so(vitrail, spoken, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    ran = vitrail(*(str(word).format(run=spoken) for word in words))
    assert ran.code in (2, 4)
    assert "text" in ran.err or "translate" in ran.err


def test_models_lists_what_reads_text(vitrail):
    ran = vitrail("models", "gru_*", "--json")
    assert {row["name"] for row in ran.json["models"]} >= {"gru_attention", "gru_seq2seq", "gru_lm"}
    assert "vocabulary" in vitrail("models", "gru_attention").out
