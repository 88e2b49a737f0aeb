"""Losses against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tasks.test_classify import batch, linear
from vitrail.tasks.classify import Classify
from vitrail.tasks.losses import binary_cross_entropy

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(5, 4, generator=G)
LABELS = torch.tensor([0, 3, 2, 2, 1])


def test_it_is_one_question_a_class() -> None:
    by_hand = [
        sum(-F.logsigmoid(x if k == label else -x) for k, x in enumerate(row)) / 4
        for row, label in zip(LOGITS, LABELS.tolist(), strict=True)
    ]
    assert torch.allclose(binary_cross_entropy(LOGITS, LABELS), torch.stack(by_hand))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"threshold": 0.2}])
def test_labels_are_one_hot_targets(options: dict[str, float]) -> None:
    one_hot = F.one_hot(LABELS, 4).float()
    hard = binary_cross_entropy(LOGITS, LABELS, **options)
    assert torch.equal(hard, binary_cross_entropy(LOGITS, one_hot, **options))


def test_the_threshold_makes_both_halves_of_a_mix_whole() -> None:
    mixed = torch.tensor([[0.7, 0.3, 0.0, 0.0]]).expand(5, 4)
    both = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(5, 4)
    assert torch.equal(binary_cross_entropy(LOGITS, mixed, threshold=0.0), binary_cross_entropy(LOGITS, both))
    first = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(5, 4)
    assert torch.equal(binary_cross_entropy(LOGITS, mixed, threshold=0.3), binary_cross_entropy(LOGITS, first))


@pytest.mark.parametrize("soft", [False, True])
def test_the_task_uses_it(soft: bool) -> None:
    data, model = batch(soft=soft), linear()
    target = data.targets if data.targets is not None else data.labels
    expected = binary_cross_entropy(model(data.images), target, label_smoothing=0.1, threshold=0.2)
    task = Classify(4, loss="bce", label_smoothing=0.1, bce_threshold=0.2)
    assert torch.allclose(task.step(model, data)["loss"], expected.mean())
    assert not torch.allclose(Classify(4, label_smoothing=0.1).step(model, data)["loss"], expected.mean())


@pytest.mark.parametrize("options", [{"loss": "mse"}, {"bce_threshold": 0.1}])
def test_wrong_use_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected loss|no effect"):
        Classify(4, **options)
