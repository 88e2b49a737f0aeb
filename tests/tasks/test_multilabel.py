"""The task of several labels an image against its definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tasks.test_classify import FakeBatch, TwoHeads, batch, linear
from vitrail.errors import UsageError
from vitrail.tasks import create_task, headline
from vitrail.tasks.evaluate import evaluate
from vitrail.tasks.imbalance import class_weights
from vitrail.tasks.multilabel import Balance, MultiLabel, asymmetric, balance_of


def several(n: int = 6, soft: bool = False) -> FakeBatch:
    b = batch(n)
    g = torch.Generator().manual_seed(3)
    labels = torch.rand(n, 4, generator=g) < 0.4
    targets = torch.rand(n, 4, generator=g) if soft else None
    return replace(b, labels=labels, targets=targets)


def test_loss_is_binary_cross_entropy_of_labels_and_of_mixed_targets() -> None:
    model, task = linear(), MultiLabel(4)
    for b in (several(), several(soft=True)):
        target = b.labels.float() if b.targets is None else b.targets
        want = F.binary_cross_entropy(model(b.images).sigmoid(), target)
        torch.testing.assert_close(task.step(model, b)["loss"], want)


def test_unread_images_change_neither_loss_nor_gradient() -> None:
    model, b = linear(), several()
    keep = torch.tensor([True, False, True, True, False, True])
    only = FakeBatch(b.images[keep], b.labels[keep], None, keep[keep], b.indices[keep])
    images = torch.where(keep[:, None, None, None], b.images, 1e3)
    found = []
    for part in (replace(b, images=images, keep=keep), only):
        loss = MultiLabel(4).step(model, part)["loss"]
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(found[0], found[1])


def test_smoothing_keeps_the_mean_of_each_class() -> None:
    b = several(600)
    rate = b.labels.float().mean(0)
    model = linear()
    got = MultiLabel(4, label_smoothing=0.2, base_rate=rate.numpy()).step(model, b)["loss"]
    smooth = b.labels.float() * 0.8 + 0.2 * rate
    torch.testing.assert_close(smooth.mean(0), rate)
    torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(model(b.images), smooth))


def test_balanced_weights_are_those_of_two_classes_and_mean_one() -> None:
    counts, n = np.array([50, 5, 1, 0]), 100
    balance = balance_of(counts, n, kind="balanced")
    for c, k in enumerate(counts):
        no, yes = class_weights([n - k, k], "balanced")
        assert float(balance.yes[c]) == pytest.approx(yes)
        assert float(balance.no[c]) == pytest.approx(no)
        if k:
            assert k * yes == pytest.approx((n - k) * no)  # both answers weigh the same
    mean = (balance.yes * torch.from_numpy(counts) + balance.no * torch.from_numpy(n - counts)) / n
    torch.testing.assert_close(mean, torch.ones(4, dtype=mean.dtype), check_dtype=False)


def test_a_weighted_positive_counts_like_so_many_images() -> None:
    model, b = linear(), several()
    weights = torch.tensor([1.0, 3.0, 2.0, 1.0])
    task = MultiLabel(4, balance=Balance(weights, torch.ones(4), torch.zeros(4)))
    logits = model(b.images)
    want = F.binary_cross_entropy_with_logits(logits, b.labels.float(), pos_weight=weights)
    torch.testing.assert_close(task.step(model, b)["loss"], want)


def test_logit_adjustment_shifts_by_the_log_odds_in_training_only() -> None:
    model, b = linear(), several()
    balance = balance_of([30, 10, 1, 50], 100, tau=1.0)
    torch.testing.assert_close(balance.yes, torch.ones(4))
    odds = torch.tensor([30 / 70, 10 / 90, 1 / 99, 1.0])
    torch.testing.assert_close(balance.shift, odds.log())
    task, logits = MultiLabel(4, balance=balance), model(b.images)
    want = F.binary_cross_entropy_with_logits(logits + odds.log(), b.labels.float())
    torch.testing.assert_close(task.step(model, b)["loss"], want)
    torch.testing.assert_close(task.predict(model, b).scores, logits.sigmoid())


def test_asymmetric_loss_is_the_papers() -> None:
    logits = torch.linspace(-9, 9, 40).view(10, 4).requires_grad_()
    yes = torch.arange(40).view(10, 4) % 3 == 0
    p = logits.sigmoid()
    q = (p - 0.05).clamp_min(0)
    want = torch.where(yes, -p.log(), -(q**4) * (1 - q).log())
    got = asymmetric(logits, yes.float())
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (got[(~yes) & (p < 0.05)] == 0).all()  # easy negatives cost nothing
    (slope,) = torch.autograd.grad(got.sum(), logits)
    assert slope.isfinite().all()
    torch.testing.assert_close(asymmetric(logits, yes.float(), 0.0, 0.0), F.binary_cross_entropy_with_logits(
        logits, yes.float(), reduction="none"), atol=1e-4, rtol=1e-4)  # fmt: skip


def test_two_heads_and_evaluation() -> None:
    b, model = several(40), TwoHeads(4)
    losses = MultiLabel(4).step(model.train(), b)
    torch.testing.assert_close(losses["loss"], (losses["cls"] + losses["dist"]) / 2)
    found = evaluate(MultiLabel(4), model, [b])
    assert found.labels.shape == found.scores.shape == (40, 4)
    assert found.metrics["count"] == 40
    told = found.accumulator.thresholds()
    assert told is not None
    again = evaluate(MultiLabel(4, thresholds=told), model, [b])
    assert again.metrics == found.metrics
    assert again.accumulator.describe(list("abcd"))["thresholds"] == told
    assert headline(found.metrics) == ("mean average precision", found.metrics["map"])


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="Did you mean 'multilabel'"):
        create_task("multi_label", num_classes=3)
    with pytest.raises(UsageError, match="Did you mean 'asymmetric'"):
        create_task("multilabel", num_classes=3, options={"loss": "asymetric"})
    with pytest.raises(UsageError, match="unknown metric to monitor 'top1'"):
        MultiLabel(3, monitor="top1")
    with pytest.raises(ValueError, match=r"logits and labels \(B, 4\)"):
        MultiLabel(4).step(linear(), batch())
    with pytest.raises(ValueError, match="base_rate"):
        MultiLabel(4, base_rate=[0.1])
