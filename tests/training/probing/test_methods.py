"""The methods against scikit-learn and explicit loops, on features made of numbers."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from vitrail.training.probing import fewshot, linear, nearest
from vitrail.training.probing.features import FeatureSet


def clouds(count=90, width=7, classes=3, seed=0, spread=1.5):
    """Overlapping clouds of features, on scales of their own."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    x = centres[labels] + spread * torch.randn(count, width, generator=g)
    return FeatureSet(x * torch.linspace(0.1, 30, width) + 5, labels)


@pytest.mark.parametrize("l2", [1e-3, 0.1, 3.0])
def test_logistic_regression_is_scikit_learns(l2):
    data = clouds()
    x = linear.Standardise.of(data.features)(data.features)
    ours = linear.fit_logistic(x, data.labels, 3, l2)
    theirs = LogisticRegression(C=1 / (len(data) * l2), tol=1e-10, max_iter=5000).fit(x.numpy(), data.labels.numpy())
    assert ours.converged
    np.testing.assert_allclose(ours.logits(x).softmax(1).numpy(), theirs.predict_proba(x.numpy()), atol=1e-5)


def test_logistic_regression_forgets_where_it_started():
    data = clouds()
    x = linear.Standardise.of(data.features)(data.features)
    far = linear.fit_logistic(x, data.labels, 3, 10.0)
    one, other = (linear.fit_logistic(x, data.labels, 3, 0.05, start) for start in (None, far))
    torch.testing.assert_close(one.logits(x).softmax(1), other.logits(x).softmax(1), atol=1e-5, rtol=0)


def test_the_sweep_keeps_what_validation_prefers():
    train, val = clouds(60, 40, seed=1, spread=3.0), clouds(150, 40, seed=2, spread=3.0)
    found = linear.sweep(train, val, 3)
    assert [row["l2"] for row in found.tried] == sorted(linear.STRENGTHS, reverse=True)
    best = max(found.tried, key=lambda row: (row["top1"], -row["loss"]))
    assert found.chosen.l2 == best["l2"]
    assert len({row["top1"] for row in found.tried}) > 1, "the strengths make no difference: nothing was chosen"
    top1 = float((found.logits(val.features).argmax(1) == val.labels).double().mean())
    assert top1 == pytest.approx(best["top1"])


def test_a_feature_that_never_varies_does_no_harm():
    data = clouds()
    features = torch.cat([data.features, torch.full((len(data), 1), 4.0)], 1)
    assert linear.Standardise.of(features)(features)[:, -1].abs().max() == 0


@pytest.mark.parametrize("temperature", [0.07, 1e-4, 2.0])
def test_votes_are_those_of_an_explicit_loop(temperature, monkeypatch):
    monkeypatch.setattr(nearest, "AT_ONCE", 300)  # several pieces
    train, asked = clouds(60, seed=3), clouds(20, seed=4)
    found = nearest.votes(train, asked.features, 3, (1, 5, 20), temperature)
    for k, shares in found.items():
        for i, x in enumerate(asked.features):
            sims = [float(x @ y / (x.norm() * y.norm())) for y in train.features]
            near = sorted(range(60), key=lambda j: -sims[j])[:k]
            total = [0.0] * 3
            for j in near:
                total[int(train.labels[j])] += math.exp((sims[j] - sims[near[0]]) / temperature)
            expected = torch.tensor(total) / sum(total)
            torch.testing.assert_close(shares[i], expected, atol=2e-3 if temperature < 1e-2 else 1e-5, rtol=0)


def test_the_nearest_neighbour_of_an_image_is_itself():
    train = clouds(30)
    assert torch.equal(nearest.votes(train, train.features, 3, (1,))[1].argmax(1), train.labels)


@pytest.mark.parametrize("count", [9, 90])
def test_least_squares_are_scikit_learns_in_both_forms(count):
    """Nine images of 20 features are solved in the one form, ninety in the other."""
    data, asked = clouds(count, 20), clouds(30, 20, seed=5)
    standardise, weight, bias = fewshot.fit_ridge(data.features, data.labels, 3, l2=4.0)
    target = 2.0 * np.eye(3)[data.labels.numpy()] - 1
    theirs = Ridge(alpha=4.0).fit(standardise(data.features).numpy(), target)
    ours = standardise(asked.features) @ weight + bias
    np.testing.assert_allclose(ours.numpy(), theirs.predict(standardise(asked.features).numpy()), atol=1e-8)


def test_draws_are_balanced_differ_and_repeat():
    labels = torch.tensor([0] * 12 + [1] * 5 + [2] * 9)
    first, again, second = (fewshot.draw(labels, 5, n) for n in (0, 0, 1))
    assert torch.bincount(labels[first]).tolist() == [5, 5, 5]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, fewshot.draw(labels, 5, 0, seed=1))
    assert set(fewshot.draw(labels, 2, 0).tolist()) < set(first.tolist())


def test_more_shots_help():
    train, asked = clouds(300, 20, seed=6), clouds(200, 20, seed=8)
    means = [np.mean(fewshot.few_shot(train, [asked], 3, n)[0]) for n in (1, 30)]
    assert means[1] > means[0] + 0.05
