"""What auto becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError
from vitrail.models import list_models
from vitrail.training.defaults import PRESETS, Facts, measure, resolve, sentences
from vitrail.training.precision import use_threads
from vitrail.training.recipe import Recipe

CPU = torch.device("cpu")


def settle(facts: Facts, has_val: bool = False, **given: Any) -> Recipe:
    return resolve(Recipe.load({}, given, {}), facts, CPU, has_val=has_val)[0]


def autos(recipe: Recipe) -> list[str]:
    return [k for k, v in recipe.flat().items() if v == "auto" and k not in ("data.cache", "data.workers")]


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 100, 224, 3000])
@pytest.mark.parametrize("count", [12, 300, 50_000])
def test_nothing_stays_auto_and_every_value_has_a_reason(side: int, count: int) -> None:
    recipe, made = resolve(Recipe.load({}, {}, {}), Facts(side, side + 5, count, 10), CPU, has_val=False)
    assert autos(recipe) == []
    assert all(d.reason for d in made)
    assert all(line.endswith(")") for line in sentences(made))
    assert recipe.train.batch_size <= count
    assert Recipe.check(recipe.model_dump(mode="json")) == recipe
    again, nothing = resolve(recipe, Facts(side, side + 5, count, 10), CPU, has_val=False)
    assert again == recipe
    assert nothing == []


def test_presets_name_models_that_exist_and_fit() -> None:
    for preset in PRESETS:
        assert {preset.model, preset.gpu_model} <= set(list_models())
        assert f"patch{preset.patch}_" in preset.model
        assert preset.largest % preset.patch == 0


def test_the_image_size_is_whole_patches_near_the_images() -> None:
    sizes = {side: settle(Facts(side, side, 1000, 10)).model.img_size for side in (8, 28, 32, 64, 100, 500)}
    assert sizes == {8: 8, 28: 28, 32: 32, 64: 64, 100: 64, 500: 224}


def test_a_model_that_is_named_keeps_its_size() -> None:
    recipe = settle(Facts(500, 400, 1000, 10), **{"model.name": "vit_tiny_patch16_384"})
    assert recipe.model.img_size == (384, 384)


def test_options_given_stay() -> None:
    recipe = settle(Facts(32, 32, 1000, 10), **{"train.epochs": 7, "augment.crop": "resized", "optim.lr": 0.5})
    assert (recipe.train.epochs, recipe.augment.crop, recipe.optim.lr) == (7, "resized", 0.5)
    assert recipe.augment.padding is None
    assert recipe.augment.scale is not None
    assert recipe.schedule.warmup_epochs < 7


def test_mixing_is_consistent() -> None:
    facts = Facts(32, 32, 1000, 10)
    off = settle(facts, **{"augment.mixup": 0, "augment.cutmix": 0})
    assert off.augment.mix_prob is None
    assert settle(facts, **{"augment.mixup": 0}).augment.mix_prob == 0.5
    large = Facts(32, 32, 50_000, 10)  # a short run, which is not mixed of itself
    assert settle(large).augment.mix_prob is None
    assert settle(large, **{"augment.mixup": 0.3}).augment.mix_prob == 0.5
    asked = settle(large, **{"augment.mix_prob": 0.7}).augment
    assert asked.mix_prob == 0.7
    assert asked.cutmix > 0


def test_fine_tuning_is_shorter_and_slower(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    facts, weights = Facts(300, 300, 2000, 10), str(tmp_path / "model.safetensors")
    scratch = settle(facts, **{"model.name": "vit_tiny_patch16_224"})
    tuned = settle(facts, **{"model.name": "vit_tiny_patch16_224", "model.pretrained": weights})
    assert tuned.train.epochs < scratch.train.epochs
    assert tuned.optim.lr < scratch.optim.lr
    for few in ({"model.lora": {}}, {"model.freeze": "backbone"}):
        given = {"model.name": "vit_tiny_patch16_224", "model.pretrained": weights, **few}
        assert settle(facts, **given).optim.lr == pytest.approx(10 * tuned.optim.lr)
    with pytest.raises(UsageError, match=r"expected model\.name with model\.pretrained"):
        settle(facts, **{"model.pretrained": weights})


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "lion", "adafactor"])
@pytest.mark.parametrize("tuned", [False, True])
def test_every_optimizer_gets_values_of_its_own(name: str, tuned: bool, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    pretrained = str(tmp_path / "model.safetensors") if tuned else None
    given = {"optim.name": name, "model.pretrained": pretrained, "model.name": "test_vit"}
    recipe, made = resolve(Recipe.load({}, given, {}), Facts(32, 32, 1000, 10), CPU, has_val=False)
    o, same = recipe.optim, settle(Facts(32, 32, 1000, 10), **{**given, "optim.name": "adamw"}).optim
    assert autos(recipe) == []
    assert {d.key for d in made if d.key.startswith("optim.")} >= {"optim.lr", "optim.weight_decay"}
    if name == "lion":
        assert 3 <= same.lr / o.lr <= 10
        assert 3 <= o.weight_decay / same.weight_decay <= 10
        assert o.lr * o.weight_decay == pytest.approx(same.lr * same.weight_decay, rel=0.05)
        assert (o.betas, o.eps, o.momentum) == ((0.9, 0.99), None, None)
    elif name == "sgd":
        assert o.lr > 10 * same.lr
        assert (o.betas, o.eps, o.momentum, o.nesterov) == (None, None, 0.9, False)
        assert o.weight_decay < same.weight_decay
    else:
        assert (o.lr, o.weight_decay, o.betas) == (same.lr, same.weight_decay, same.betas)
        assert (o.momentum == 0.95) == (name == "muon")


def test_schedules_without_an_end_cool_down() -> None:
    facts = Facts(32, 32, 1000, 10)
    rsqrt = settle(facts, **{"schedule.name": "rsqrt", "train.epochs": 20}).schedule
    assert (rsqrt.warmup_epochs, rsqrt.cooldown_epochs, rsqrt.timescale_epochs, rsqrt.min_lr) == (2.0, 4.0, 2.0, 0.0)
    flat = settle(facts, **{"schedule.name": "constant"}).schedule
    assert (flat.cooldown_epochs, flat.min_lr) == (None, None)
    cooled = settle(facts, **{"schedule.name": "constant", "schedule.cooldown_epochs": 1}).schedule
    assert (cooled.cooldown_epochs, cooled.min_lr) == (1, 0.0)
    with pytest.raises(UsageError, match="min_lr has no effect with name: constant without a cooldown"):
        settle(facts, **{"schedule.name": "constant", "schedule.min_lr": 0.1})


def test_facts_of_a_folder(photos: Path) -> None:
    assert measure(open_dataset(photos).train) == Facts(24, 24, 24, 2)


def test_narrow_networks_get_one_thread() -> None:
    assert settle(Facts(8, 8, 1000, 10)).train.threads == 1
    assert settle(Facts(32, 32, 1000, 10)).train.threads == torch.get_num_threads()
    assert settle(Facts(8, 8, 1000, 10), **{"model.options": {"embed_dim": 256}}).train.threads > 0


def test_threads_are_set_inside_and_put_back() -> None:
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with use_threads("auto"):
        assert torch.get_num_threads() == before
