"""The streaming metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from vitrail.metrics.classification import ClassificationMetrics


def sample(n: int = 400, k: int = 7, seed: int = 0, empty: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (n,), generator=g)
    if empty is not None:
        labels[labels == empty] = (empty + 1) % k
    logits = torch.randn(n, k, generator=g)
    logits[torch.arange(n), labels] += 1.0
    return logits.double().softmax(1), labels


def filled(scores: torch.Tensor, labels: torch.Tensor, step: int) -> ClassificationMetrics:
    m = ClassificationMetrics(scores.shape[1])
    for i in range(0, len(labels), step):
        m.update(scores[i : i + step], labels[i : i + step])
    return m


@pytest.mark.parametrize("k", [2, 7, 12])
def test_equals_sklearn(k: int) -> None:
    scores, labels = sample(k=k)
    got = filled(scores, labels, 33)
    s, y = scores.double().numpy(), labels.numpy()
    guess = s.argmax(1)
    every = got.compute()
    assert every["top1"] == pytest.approx(sk.accuracy_score(y, guess))
    if k > 5:
        assert every["top5"] == pytest.approx(sk.top_k_accuracy_score(y, s, k=5))
    assert every["loss"] == pytest.approx(sk.log_loss(y, s), rel=1e-6)
    p, r, f, n = sk.precision_recall_fscore_support(y, guess, zero_division=0)
    rows = got.per_class()
    for key, want in {"precision": p, "recall": r, "f1": f, "support": n}.items():
        np.testing.assert_allclose([row[key] for row in rows], want)
    assert every["macro_f1"] == pytest.approx(sk.f1_score(y, guess, average="macro"))
    assert every["macro_recall"] == pytest.approx(sk.balanced_accuracy_score(y, guess))
    np.testing.assert_array_equal(got.confusion.numpy(), sk.confusion_matrix(y, guess))


def test_streaming_equals_one_batch() -> None:
    scores, labels = sample()
    a, b = filled(scores, labels, 7).compute(), filled(scores, labels, 400).compute()
    assert a == pytest.approx(b)


def test_calibration_error_against_its_definition() -> None:
    scores, labels = sample(k=3)
    m = filled(scores, labels, 50)
    confidence, guess = scores.double().numpy().max(1), scores.numpy().argmax(1)
    hit = guess == labels.numpy()
    want = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            want += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert m.compute()["ece"] == pytest.approx(want)
    assert sum(row["count"] for row in m.reliability()) == len(labels)


def test_a_class_without_images_does_not_count_in_the_means() -> None:
    scores, labels = sample(empty=2)
    m = filled(scores, labels, 64)
    seen = sorted(set(labels.tolist()))
    want = sk.recall_score(labels.numpy(), scores.numpy().argmax(1), average="macro", labels=seen, zero_division=0)
    assert m.compute()["macro_recall"] == pytest.approx(want)
    assert m.per_class([str(i) for i in range(7)])[2] == {
        "name": "2", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0,
    }  # fmt: skip


def test_ties_go_to_the_lower_index() -> None:
    m = ClassificationMetrics(8)
    m.update(torch.full((2, 8), 1 / 8), torch.tensor([4, 5]))
    assert m.compute()["top5"] == 0.5
    assert m.confusion[:, 0].sum() == 2


def test_wrong_input_is_refused() -> None:
    m = ClassificationMetrics(3)
    with pytest.raises(ValueError, match="at least one image"):
        m.compute()
    with pytest.raises(ValueError, match=r"scores \(B, 3\)"):
        m.update(torch.rand(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels in \[0, 3\)"):
        m.update(torch.rand(1, 3), torch.tensor([3]))
    m.update(torch.rand(0, 3), torch.zeros(0, dtype=torch.long))
    assert len(m) == 0
