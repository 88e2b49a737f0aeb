"""Cards: the table of public weights against timm's own, and what a card refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.peers import timm
from vitrail.errors import WeightsError
from vitrail.models import config_of, variants
from vitrail.weights import Card, card_for, cards


@pytest.mark.parametrize("name", [n for n, c in cards().items() if str(c.hub_id).startswith("timm/")])
def test_cards_equal_timm(name):
    theirs, ours = timm.models.get_pretrained_cfg(name), card_for(name)
    assert theirs.hf_hub_id == ours.hub_id
    assert theirs.input_size[1:] == ours.input_size
    if theirs.fixed_input_size:  # other models take any size, and weights of one name were made for several
        assert ours.input_size == config_of(name).img_size
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.crop_mode) == (ours.crop_pct, ours.crop_mode)
    assert (theirs.interpolation, theirs.num_classes) == (ours.interpolation, ours.num_classes)
    assert theirs.license == ours.licence


def test_the_default_tag_is_timms():
    """``pretrained=True`` gives what timm gives, wherever timm's default is on our list."""
    ours = {n.partition(".")[0] for n, c in cards().items() if str(c.hub_id).startswith("timm/")}
    assert ours <= variants().keys()
    for name in ours:
        default = timm.models.get_pretrained_cfg(name)
        if default is not None and f"{name}.{default.tag}" in cards():
            assert card_for(name).name == f"{name}.{default.tag}"


def test_lookup():
    assert card_for("vit_base_patch16_224").hub_id == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert card_for("vit_base_patch16_224.augreg_in21k").num_classes == 21843
    assert card_for("google/vit-base-patch16-224").crop_mode == "squash"
    plain = card_for("vit_pico_patch4_32")
    assert (plain.input_size, plain.hub_id, plain.mean) == ((32, 32), None, (0.5, 0.5, 0.5))
    with pytest.raises(WeightsError, match="Did you mean 'augreg_in21k'"):
        card_for("vit_base_patch16_224.augreg_in22k")
    with pytest.raises(WeightsError, match="no public weights"):
        card_for("vit_gigantic_patch14_224", with_weights=True)
    with pytest.raises(WeightsError, match="unknown model"):
        card_for("vit_bse_patch16_224")


def test_json_round_trip():
    card = card_for("google/vit-base-patch16-224")
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    with pytest.raises(WeightsError, match="Did you mean 'crop_pct'"):
        Card.from_json({"crop_pc": 1})


@pytest.mark.parametrize(
    "bad",
    [
        {"interpolation": "lanczos"},
        {"crop_mode": "border"},
        {"crop_pct": 0.0},
        {"crop_pct": 1.5},
        {"std": (0.0, 0.5, 0.5)},
        {"mean": (0.5,)},
    ],
)
def test_impossible_cards(bad):
    with pytest.raises(WeightsError, match="expected"):
        dataclasses.replace(Card(), **bad)
