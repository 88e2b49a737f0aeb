"""Options, --set and key=value become one dictionary of recipe keys."""

from __future__ import annotations

import pytest

from vitrail.cli.settings import SHORT, gather, parse_pair, parse_size, split_pairs
from vitrail.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("2E4", 20000.0),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ("[224, 192]", [224, 192]),
        ("word", "word"),
        ("'3'", "3"),
        ("a: b", {"a": "b"}),
        ("", None),
    ],
)
def test_values_are_read_as_yaml(text, value):
    assert parse_pair(f"optim.lr={text}") == ("optim.lr", value)


@pytest.mark.parametrize("text", ["lr", "=3", "1a=3", "a..b=3", "a.=3"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(UsageError, match="key=value"):
        parse_pair(text)


@pytest.mark.parametrize(("text", "size"), [("224", 224), ("224x192", [224, 192]), (" 32,48 ", [32, 48])])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "224x", "-3", "1x2x3", "2.5"])
def test_wrong_sizes_are_refused(text):
    with pytest.raises(UsageError, match="224x192"):
        parse_size(text)


def test_paths_and_pairs_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert split_pairs(["a=b", "c=d", "photos/x=y", "e.f=1", "img-size=32"]) == (
        ["a=b", "photos/x=y"],
        ["c=d", "e.f=1", "img-size=32"],
    )


def test_short_and_long_names_mean_the_same():
    wanted = {"train.epochs": 3, "optim.lr": 0.01, "model.img_size": [32, 48]}
    assert gather({"epochs": 3, "lr": 0.01, "img-size": "32x48", "seed": None}, []) == wanted
    assert gather({}, ["epochs=3", "lr=1e-2", "img_size=32x48"]) == wanted
    assert gather({}, ["train.epochs=3", "optim.lr=0.01", "model.img_size=32x48"]) == wanted


@pytest.mark.parametrize("pairs", [["epochs=4"], ["train.epochs=4"]])
def test_a_setting_given_twice_is_refused(pairs):
    with pytest.raises(UsageError, match="given twice"):
        gather({"epochs": 3}, pairs)


def test_every_short_name_is_a_key_of_the_recipe():
    from vitrail.training.baserecipe import known_keys
    from vitrail.training.recipe import Recipe

    assert set(SHORT.values()) <= set(known_keys(Recipe))
