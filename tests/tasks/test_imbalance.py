"""Weights and shifts for unequal classes, against their definitions and against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tasks.test_classify import batch, linear
from vitrail.errors import UsageError
from vitrail.tasks.classify import Classify
from vitrail.tasks.imbalance import class_weights, log_prior

COUNTS = np.array([100, 20, 5, 1])


@pytest.mark.parametrize("kind", ["none", "balanced", "effective"])
def test_the_mean_weight_over_the_training_images_is_one(kind: str) -> None:
    weights = class_weights(COUNTS, kind, beta=0.99)
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    assert (np.diff(weights) > 0).all() or kind == "none"


def test_balanced_weights_make_every_class_weigh_the_same() -> None:
    np.testing.assert_allclose(class_weights(COUNTS, "balanced") * COUNTS, COUNTS.sum() / 4)


def test_effective_number_is_the_papers_and_has_its_two_limits() -> None:
    weights = class_weights(COUNTS, "effective", beta=0.9)
    effective = (1 - 0.9**COUNTS) / (1 - 0.9)
    np.testing.assert_allclose(weights[0] / weights, effective / effective[0])
    np.testing.assert_allclose(class_weights(COUNTS, "effective", beta=1e-9), np.ones(4), rtol=1e-6)
    balanced = class_weights(COUNTS, "balanced")
    np.testing.assert_allclose(class_weights(COUNTS, "effective", beta=1 - 1e-9), balanced, rtol=1e-6)


def test_a_class_without_images_divides_nothing_by_zero() -> None:
    counts = np.array([8, 0, 2])
    assert np.isfinite(log_prior(counts)).all()
    weights = class_weights(counts, "balanced")
    assert np.isfinite(weights).all()
    assert (weights * counts).sum() / 10 == pytest.approx(1)
    with pytest.raises(UsageError, match=r"balance.*Did you mean 'balanced'"):
        class_weights(counts, "balance")


def test_weighted_loss_equals_repeating_images() -> None:
    """A weight of 3 is the same as having the image three times, in loss and gradient."""
    b, model = batch(), linear()
    weights = torch.tensor([1.0, 3.0, 2.0, 1.0])
    times = weights[b.labels].long()
    repeated = type(b)(*(v.repeat_interleave(times, 0) for v in (b.images, b.labels)), None, *(
        v.repeat_interleave(times, 0) for v in (b.keep, b.indices)))  # fmt: skip
    found = []
    for task, one, count in ((Classify(4, class_weights=weights.tolist()), b, 6), (Classify(4), repeated, len(times))):
        loss = task.step(model, one)["loss"] * (count if one is b else int(times.sum()))
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(found[0], found[1])


def test_weights_follow_mixed_targets_and_smoothing_changes_no_weight() -> None:
    model, b = linear(), batch(soft=True)
    assert b.targets is not None
    weights = torch.tensor([0.5, 1.0, 4.0, 2.0])
    smooth = b.targets * 0.8 + 0.2 / 4
    want = (b.targets @ weights * -(smooth * model(b.images).log_softmax(1)).sum(1)).mean()
    task = Classify(4, label_smoothing=0.2, class_weights=weights.numpy())
    torch.testing.assert_close(task.step(model, b)["loss"], want)
    hard = replace(b, targets=None)
    soft = replace(b, targets=F.one_hot(b.labels, 4).float())
    torch.testing.assert_close(task.step(model, hard)["loss"], task.step(model, soft)["loss"])


def test_logit_adjustment_is_the_papers_loss_in_training_only() -> None:
    model, b = linear(), batch()
    shift = 1.5 * log_prior(COUNTS)
    task = Classify(4, logit_shift=shift)
    logits = model(b.images)
    # Menon et al. 2021, equation 10: log(1 + sum over y' != y of (pi_y' / pi_y)^tau * exp(f_y' - f_y))
    prior = torch.from_numpy(COUNTS / COUNTS.sum()).float()
    own = logits.gather(1, b.labels[:, None])
    ratio = (prior[None] / prior[b.labels][:, None]) ** 1.5 * (logits - own).exp()
    want = ratio.sum(1).log().mean()
    torch.testing.assert_close(task.step(model, b)["loss"], want)
    torch.testing.assert_close(task.predict(model, b).scores, logits.softmax(1))


def test_logit_adjustment_has_the_gradient_that_favours_rare_classes() -> None:
    """At zero logits the pull on a class is its share in the batch minus its prior: none if the batch is typical."""
    labels = torch.from_numpy(np.repeat(np.arange(4), COUNTS))
    logits = torch.zeros(len(labels), 4, requires_grad=True)
    b = replace(batch(), images=logits, labels=labels, keep=torch.ones_like(labels, dtype=torch.bool))
    plain, adjusted = (Classify(4, logit_shift=s) for s in (None, log_prior(COUNTS)))
    pulls = [torch.autograd.grad(t.step(torch.nn.Identity(), b)["loss"], logits)[0].sum(0) for t in (plain, adjusted)]
    torch.testing.assert_close(pulls[1], torch.zeros(4), atol=1e-6, rtol=0)
    assert pulls[0][3] > 0.2  # plain cross entropy pushes the rare class's logit down at once
    torch.testing.assert_close(pulls[0], torch.full((4,), 0.25) - torch.from_numpy(COUNTS / COUNTS.sum()).float())


def test_bad_vectors_and_monitors() -> None:
    with pytest.raises(ValueError, match="class_weights of 4 finite"):
        Classify(4, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="logit_shift of 2 finite"):
        Classify(2, logit_shift=[0.0, -np.inf])
    with pytest.raises(UsageError, match="Did you mean 'macro_recall'"):
        Classify(2, monitor="macro_recal")
