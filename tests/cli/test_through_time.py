"""`vitrail explain gradients`: the measurement, its picture, its numbers; and what has no effect beside it."""

import xml.etree.ElementTree as ElementTree

import pytest


def test_measures_draws_and_says(vitrail, tmp_path):
    ran = vitrail("explain", "gradients", "--length", 12, "--out", tmp_path, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["length"] == 12
    assert found["plain"]["identity"]["0.5"][11] == pytest.approx(0.5**11)
    assert set(found["plain"]) == {"identity", "tanh", "relu"}
    assert len(found["models"]["Transformer"]) == 12
    assert found["pictures"] == [str(tmp_path / "gradients.svg")]
    ElementTree.parse(tmp_path / "gradients.svg")
    said = vitrail("explain", "gradients", "--length", 12, "--out", tmp_path)
    assert "plain, tanh, radius 1.5" in said.out
    assert "11 back" in said.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gradients", "--length", 1], "--length from 2"),
        (["gradients", "--figures"], "--figures has no effect"),
        (["gradients", "cat.png"], "an image has no effect"),
        (["gradients", "--device", "cuda"], "--device has no effect"),
        (["some-run", "--length", 5], "--length has no effect on some-run"),
    ],
)
def test_what_has_no_effect_is_refused(vitrail, tmp_path, words, told):
    ran = vitrail("explain", *words, "--out", tmp_path)
    assert ran.code == 2
    assert told in ran.err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_a_run(vitrail, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gradients").mkdir()
    ran = vitrail("explain", "gradients")
    assert ran.code == 4
    assert not (tmp_path / "explain").exists()
