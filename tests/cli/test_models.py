"""`vitrail models`."""

from __future__ import annotations

import dataclasses

import pytest

from vitrail.cli.models import _cost, _count
from vitrail.models import config_of, list_models


def test_the_table_has_every_model_that_matches(vitrail):
    ran = vitrail("models", "deit_*224")
    names = [line.split()[0] for line in ran.out.splitlines() if line.startswith("deit")]
    assert names == list_models("deit_*224")
    row = next(line for line in ran.out.splitlines() if line.startswith("deit_small_patch16_224")).split()
    assert row[1:3] == ["22.1", "M"]
    assert "224x224" in row


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "deit_tiny_distilled_patch16_224", "vit_base_patch16_map_224"]
)
def test_the_short_way_of_counting_gives_the_true_cost(name):
    whole = _count(config_of(name))
    params, gflops = _cost(name)
    assert params == whole.params
    assert gflops == pytest.approx(whole.gflops, rel=1e-12)


def test_one_model_in_detail(vitrail):
    ran = vitrail("models", "vit_base_patch16_224")
    assert ran.code == 0
    assert "86,567,656" in ran.out
    assert "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k" in ran.out
    for field in dataclasses.fields(config_of("vit_base_patch16_224")):
        assert field.name in ran.out


def test_json_holds_what_the_table_shows(vitrail):
    found = vitrail("models", "vit_pico*", "--json").json["models"]
    assert [model["name"] for model in found] == list_models("vit_pico*")
    assert all(model["params"] > 0 and model["gflops"] > 0 for model in found)


@pytest.mark.parametrize("pattern", ["vit_bse_patch16_224", "swim_*"])
def test_an_unknown_name_is_a_weights_error(vitrail, pattern):
    ran = vitrail("models", pattern)
    assert ran.code == 4
    assert pattern in ran.err
