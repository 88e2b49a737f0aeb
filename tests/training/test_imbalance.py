"""From recipe and data to task and loader: what makes up for unequal classes arrives where it works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.data.making import picture
from vitrail.classes import ClassMap
from vitrail.data.imageset import ArrayStore, ImageSet
from vitrail.data.sources import Splits
from vitrail.tasks.classify import Classify
from vitrail.tasks.imbalance import class_weights, log_prior
from vitrail.training.build import about_imbalance, build_task
from vitrail.training.defaults import measure, resolve
from vitrail.training.pipeline import train_loader
from vitrail.training.recipe import Recipe
from vitrail.weights import Card

LABELS = np.array([0] * 33 + [1] * 6 + [2] * 3)


def splits() -> Splits:
    store = ArrayStore("made", np.stack([picture(i, (16, 16)) for i in range(len(LABELS))]))
    images = ImageSet(store, np.arange(len(LABELS)), LABELS, ClassMap.of(["a", "b", "c"]))
    return Splits(images, images, None, images.classes)


def settled(**given: Any) -> Recipe:
    asked = Recipe.load({}, {"model.name": "test_vit", "model.img_size": 16, "data.workers": 0, **given}, {})
    return resolve(asked, measure(splits().train), torch.device("cpu"), has_val=True)[0]


def task(**given: Any) -> Classify:
    made = build_task(settled(**given), splits(), Card(name="test_vit", input_size=(16, 16)), torch.device("cpu"))
    assert isinstance(made, Classify)
    return made


def test_weights_and_shifts_come_from_the_training_counts() -> None:
    counts = [33, 6, 3]
    plain = task()
    assert plain.class_weights is plain.logit_shift is None
    assert plain.monitor == "top1"
    balanced = task(**{"train.class_weights": "balanced", "train.monitor": "macro_recall"})
    np.testing.assert_allclose(balanced.class_weights, class_weights(counts, "balanced"), rtol=1e-6)
    assert balanced.monitor == "macro_recall"
    effective = task(**{"train.class_weights": "effective", "train.effective_beta": 0.9})
    np.testing.assert_allclose(effective.class_weights, class_weights(counts, "effective", beta=0.9), rtol=1e-6)
    default = task(**{"train.class_weights": "effective"})
    np.testing.assert_allclose(default.class_weights, class_weights(counts, "effective", beta=0.999), rtol=1e-6)
    shifted = task(**{"train.logit_adjustment": 1.5})
    np.testing.assert_allclose(shifted.logit_shift, 1.5 * log_prior(counts), rtol=1e-6)


@pytest.mark.parametrize(("balance", "share"), [("none", [33, 6, 3]), ("equal", [14, 14, 14])])
def test_balance_reaches_the_loader(balance: str, share: list[int]) -> None:
    card = Card(name="test_vit", input_size=(16, 16))
    loader = train_loader(settled(**{"data.balance": balance, "train.batch_size": 6}), splits().train, card)
    labels = torch.cat([batch.labels for batch in loader.epoch(2)])
    assert torch.bincount(labels).tolist() == share


def test_imbalance_is_said_until_something_is_done_about_it() -> None:
    words = about_imbalance(settled(), splits())
    assert words is not None
    assert (
        "(a: 33) has 11 times the images of the smallest (c: 3): to make up for it, set one of train.logit_adj" in words
    )
    assert "train.monitor=macro_recall" in words
    done = about_imbalance(settled(**{"data.balance": "sqrt", "train.monitor": "macro_recall"}), splits())
    assert done is not None
    assert done.endswith(": corrected by data.balance=sqrt")
    even = splits()
    even.train = even.train.subset(np.arange(30, 42))
    assert about_imbalance(settled(), even) is None
