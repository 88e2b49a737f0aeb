"""Loaders from recipes: every option of the augment section reaches the pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError
from vitrail.training.defaults import Facts, resolve
from vitrail.training.pipeline import eval_crop, eval_loader, open_data, train_loader
from vitrail.training.recipe import Recipe
from vitrail.weights import Card

CARD = Card(name="test_vit", input_size=(16, 16))
PLAIN = {
    "augment.crop": "none", "augment.hflip": 0, "augment.randaugment": None, "augment.erasing": 0,
    "augment.mixup": 0, "augment.cutmix": 0, "train.batch_size": 4, "model.name": "test_vit", "data.workers": 0,
}  # fmt: skip


def first_batch(photos: Path, **changes: Any) -> Any:
    asked = Recipe.load({}, {**PLAIN, **changes}, {})
    recipe, _ = resolve(asked, Facts(24, 24, 24, 2), torch.device("cpu"), has_val=True)
    return next(iter(train_loader(recipe, open_dataset(photos).train, CARD).epoch(0)))


@pytest.mark.parametrize(
    "change",
    [
        {"augment.crop": "resized"},
        {"augment.crop": "resized", "augment.scale": [0.1, 0.2]},
        {"augment.crop": "resized", "augment.ratio": [0.2, 0.3]},
        {"augment.crop": "padded"},
        {"augment.crop": "padded", "augment.padding": 7},
        {"augment.hflip": 1},
        {"augment.vflip": 1},
        {"augment.randaugment.num_ops": 1},
        {"augment.randaugment.num_ops": 3},
        {"augment.randaugment": {"num_ops": 1, "magnitude": 2}},
        {"augment.randaugment": {"num_ops": 1, "magnitude": 20}},
        {"augment.erasing": 1},
        {"augment.three_augment": True},
        {"augment.color_jitter": 0.4},
        {"augment.crop": "resized", "augment.interpolation": "bilinear"},
        {"augment.mixup": 1, "augment.mix_prob": 1},
        {"augment.cutmix": 1, "augment.mix_prob": 1},
        {"train.seed": 5},
    ],
)
def test_every_option_changes_the_images(photos: Path, change: dict[str, Any]) -> None:
    plain, changed = first_batch(photos), first_batch(photos, **change)
    assert not torch.equal(plain.images, changed.images)
    assert changed.images.shape == (4, 3, 16, 16)
    assert (changed.targets is not None) == ("augment.mix_prob" in change)
    if "augment.crop" in change:  # and what the crop is told makes a difference too
        only_crop = first_batch(photos, **{"augment.crop": change["augment.crop"]})
        assert len(change) == 1 or not torch.equal(changed.images, only_crop.images)


@pytest.mark.parametrize(
    ("common", "change"),
    [
        ({"augment.randaugment": {"num_ops": 1, "magnitude": 5}}, {"augment.randaugment.noise": 3}),
        ({"augment.erasing": 1}, {"augment.erasing_mode": "const"}),
        ({"augment.cutmix": 1, "augment.mixup": 1, "augment.mix_prob": 1}, {"augment.mix_switch": 0}),
        ({"augment.cutmix": 1, "augment.mixup": 1, "augment.mix_prob": 1}, {"augment.mix_switch": 1}),
        ({"augment.mixup": 1, "augment.mix_prob": 1}, {"augment.mix_by": "image"}),
    ],
)
def test_options_of_options_change_the_images(photos: Path, common: dict[str, Any], change: dict[str, Any]) -> None:
    batches = [
        first_batch(photos, **common, **{"train.seed": seed}, **extra) for seed in range(3) for extra in ({}, change)
    ]
    assert any(not torch.equal(a.images, b.images) for a, b in zip(batches[::2], batches[1::2], strict=True))


def test_copies_of_an_image_stand_in_one_batch_and_differ(photos: Path) -> None:
    twice = {"augment.crop": "resized", "augment.repeats": 2}
    batch = first_batch(photos, **twice)
    a, b = batch.indices.reshape(2, 2)
    assert torch.equal(a, b)
    assert not torch.equal(batch.images[0], batch.images[2])
    assert torch.equal(batch.images, first_batch(photos, **twice).images)
    once = first_batch(photos, **{"augment.crop": "resized"})
    assert torch.equal(once.images[:2], batch.images[:2])  # first copies draw as they always did


def test_three_augment_stands_for_randaugment() -> None:
    def settled(**given: Any) -> Recipe:
        asked = Recipe.load({}, {"train.epochs": 99, **given}, {})
        return resolve(asked, Facts(32, 32, 9000, 2), torch.device("cpu"), has_val=True)[0]

    assert settled().augment.randaugment is not None
    assert settled(**{"augment.three_augment": True}).augment.randaugment is None


def test_evaluation_sees_every_image_once_in_order(photos: Path) -> None:
    images = open_dataset(photos).val
    batches = list(eval_loader(images, CARD, batch_size=3).epoch())
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(len(images)))
    assert all(b.targets is None for b in batches)


def test_a_squashed_card_keeps_the_whole_image() -> None:
    image = torch.zeros(1, 3, 20, 40, dtype=torch.uint8)
    image[..., :10] = 255  # the left quarter, which a centre crop would cut off
    squashed = eval_crop(replace(CARD, crop_mode="squash"))(image, np.zeros((1, 0)))
    centred = eval_crop(CARD)(image, np.zeros((1, 0)))
    assert squashed.shape == centred.shape == (1, 3, 16, 16)
    assert squashed[0, 0, 8, :3].min() > 200
    assert centred.max() < 20


def test_weights_that_are_not_for_colour_are_refused(photos: Path) -> None:
    with pytest.raises(UsageError, match="3 colour channels"):
        eval_loader(open_dataset(photos).val, replace(CARD, mean=(0.5,), std=(0.5,)), batch_size=2)


def test_data_looked_at_again_are_cut_as_the_run_cut_them() -> None:
    from vitrail.cli.heldout import _own

    recipe = Recipe.load({}, {"data.train_fraction": 0.25, "data.source": "digits"}, {})
    run, again = open_data(recipe), _own(recipe, "train").images
    assert len(run.train) < 400
    assert again.rows.tolist() == run.train.rows.tolist()
