"""Metrics of several labels an image, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrail.metrics.multilabel import MultiLabelMetrics, average_precision, best_thresholds, f1, micro_f1

sk = pytest.importorskip("sklearn.metrics")


def case(seed: int, ties: bool, n: int = 80, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.random((n, k)) < np.array([0.5, 0.2, 0.05, 0.9, 0.3])
    scores = np.clip(0.4 * labels + 0.6 * draw.random((n, k)), 0, 1).astype(np.float32)
    return (np.round(scores, 1) if ties else scores).astype(np.float32), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_scikit_learns(seed: int, ties: bool) -> None:
    scores, labels = case(seed, ties)
    want = sk.average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(average_precision(scores, labels), want, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_scikit_learns_in_batches(seed: int) -> None:
    scores, labels = case(seed, ties=True)
    metrics = MultiLabelMetrics(5, thresholds=[0.3, 0.5, 0.5, 0.7, 0.4])
    for part in np.array_split(np.arange(80), 7):
        metrics.update(torch.from_numpy(scores[part]), torch.from_numpy(labels[part]))
    found = metrics.compute()
    half, tuned = scores >= 0.5, scores >= np.float32([0.3, 0.5, 0.5, 0.7, 0.4])
    assert found["map"] == pytest.approx(sk.average_precision_score(labels, scores, average="macro"))
    for name, answers in (("", half), ("_tuned", tuned)):
        for mean in ("micro", "macro"):
            assert found[f"{mean}_f1{name}"] == pytest.approx(sk.f1_score(labels, answers, average=mean))
        assert found[f"exact{name}"] == pytest.approx(sk.accuracy_score(labels, answers))
    p = torch.from_numpy(np.clip(scores, 1e-12, 1)).double()
    loss = torch.nn.functional.binary_cross_entropy(p.clamp(1e-12, 1 - 1e-12), torch.from_numpy(labels).double())
    assert found["loss"] == pytest.approx(float(loss))
    rows = metrics.per_class(list("abcde"))
    precision, recall, f, support = sk.precision_recall_fscore_support(labels, tuned, zero_division=0)
    np.testing.assert_allclose([r["precision"] for r in rows], precision)
    np.testing.assert_allclose([r["recall"] for r in rows], recall)
    np.testing.assert_allclose([r["f1"] for r in rows], f)
    assert [r["support"] for r in rows] == support.tolist()
    assert [r["name"] for r in rows] == list("abcde")


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_is_better_than_the_best(seed: int) -> None:
    scores, labels = case(seed, ties=bool(seed % 2))
    best = f1(scores >= best_thresholds(scores, labels).astype(np.float32), labels)
    for cut in np.unique(scores):
        assert (f1(scores >= cut, labels) <= best + 1e-12).all()


def test_classes_without_a_positive_are_left_out_and_get_one_half() -> None:
    scores = np.array([[0.9, 0.2], [0.1, 0.8]], dtype=np.float32)
    labels = np.array([[True, False], [False, False]])
    metrics = MultiLabelMetrics(2)
    metrics.update(torch.from_numpy(scores), torch.from_numpy(labels))
    assert metrics.compute()["map"] == 1.0
    assert metrics.compute()["macro_f1"] == 1.0
    assert metrics.thresholds() == [0.5, 0.5]
    assert micro_f1(scores >= 0.5, labels) == pytest.approx(2 / 3)
    nothing = MultiLabelMetrics(2)
    nothing.update(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.bool))
    assert nothing.compute()["map"] == 0.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"scores and labels \(B, 2\)"):
        MultiLabelMetrics(2).update(torch.rand(3, 2), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one image"):
        MultiLabelMetrics(2).compute()
    with pytest.raises(ValueError, match="as many thresholds"):
        MultiLabelMetrics(2, thresholds=[0.5])
