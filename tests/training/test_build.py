"""From a recipe to the network and the task: what the fields ask for is in them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError
from vitrail.training.build import build_model, build_task
from vitrail.training.defaults import Facts, resolve
from vitrail.training.recipe import Recipe


def build(photos: Path, **given: Any) -> tuple[nn.Module, Any, Any]:
    asked = Recipe.load({}, {"model.name": "test_vit", "model.drop_path_rate": 0.0, "train.batch_size": 4, **given}, {})
    recipe, _ = resolve(asked, Facts(24, 24, 24, 2), torch.device("cpu"), has_val=True)
    splits = open_dataset(photos)
    model, card = build_model(recipe, splits, print)
    return model, card, build_task(recipe, splits, card, torch.device("cpu"))


@pytest.mark.parametrize("name", ["test_vit", "test_swin", "test_coatnet", "test_pvt", "test_pvt_v2"])
def test_attention_dropout_acts_in_training_alone(photos: Path, name: str) -> None:
    plain, _, _ = build(photos, **{"model.name": name})
    dropped, _, _ = build(photos, **{"model.name": name, "model.attn_drop_rate": 0.5})
    for model in (plain, dropped):
        torch.manual_seed(1)
        nn.init.normal_(model.head.weight)  # zero at first in some networks
    kept = copy.deepcopy(dropped.state_dict())
    images = torch.randn(2, 3, *dropped.config.img_size)
    with torch.no_grad():
        assert not torch.equal(dropped.train()(images), dropped(images))
        dropped.load_state_dict(kept)  # batch norms have averaged
        assert torch.equal(dropped.eval()(images), plain.eval()(images))


def test_dropout_reaches_the_model(photos: Path) -> None:
    model, _, _ = build(photos, **{"model.drop_rate": 0.25})
    assert model.config.drop_rate == 0.25
    assert build(photos)[0].config.drop_rate == 0.0


def test_no_attention_to_drop_is_an_error(photos: Path) -> None:
    with pytest.raises(UsageError, match="no attention"):
        build(photos, **{"model.name": "test_resnet", "model.attn_drop_rate": 0.1})


def test_the_evaluation_crop_is_the_cards(photos: Path) -> None:
    assert build(photos, **{"data.crop_pct": 0.8})[1].crop_pct == 0.8
    assert build(photos)[1].crop_pct == 1.0


def test_the_loss_is_the_recipes(photos: Path) -> None:
    task = build(photos, **{"train.loss": "bce", "train.bce_threshold": 0.2})[2]
    assert (task.loss_kind, task.bce_threshold) == ("bce", 0.2)
    assert build(photos)[2].loss_kind == "ce"
