"""Metrics of several labels an image: average precision, F1 at thresholds, exact matches.

Average precision is the exact area under the steps of the precision-recall curve (no interpolation), as scikit-learn
has it: sum over distinct scores of (R_n - R_{n-1}) P_n. All scores are kept: 4 K bytes an image and one of labels.
N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .classification import TINY

THRESHOLD = 0.5
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class MultiLabelMetrics:
    """mAP, micro and macro F1, exact matches and loss, over everything seen.

    ``thresholds`` (K,): those that F1 is also told at, found elsewhere (on validation); None: the best ones are found
    on the images seen, which flatters the numbers on these same images.
    """

    def __init__(self, num_classes: int, *, thresholds: Sequence[float] | None = None) -> None:
        if num_classes < 1 or (thresholds is not None and len(thresholds) != num_classes):
            raise ValueError(f"expected num_classes >= 1 and as many thresholds, got {num_classes} and {thresholds}")
        self.num_classes, self._given = num_classes, thresholds
        self._scores: list[NDArray[np.float32]] = []
        self._labels: list[Flags] = []

    def __len__(self) -> int:
        return sum(map(len, self._labels))

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: ``scores`` (B, K) probabilities, ``labels`` (B, K) bool."""
        if scores.ndim != 2 or scores.shape[1] != self.num_classes or labels.shape != scores.shape:
            raise ValueError(
                f"expected scores and labels (B, {self.num_classes}), got {tuple(scores.shape)} and "
                f"{tuple(labels.shape)}"
            )
        self._scores.append(scores.detach().float().cpu().numpy())
        self._labels.append(labels.detach().bool().cpu().numpy())

    def _all(self) -> tuple[NDArray[np.float32], Flags]:
        if not len(self):
            raise ValueError("expected at least one image, got none: call update() first")
        return np.concatenate(self._scores), np.concatenate(self._labels)

    def thresholds(self) -> list[float]:
        """Return the threshold of each class: those given, or those of the best F1 on the images seen."""
        return list(self._given) if self._given is not None else best_thresholds(*self._all()).tolist()

    def compute(self) -> dict[str, float]:
        """Return the numbers of the whole set, all in 0..1 except ``loss`` (nats) and ``count``.

        ``map`` and the macro means leave out classes without a positive image, which have neither precision nor
        recall; with none at all they are 0. ``..._tuned``: at :meth:`thresholds`, the others at 0.5.
        """
        scores, labels = self._all()
        p = np.clip(scores.astype(np.float64), TINY, 1 - TINY)
        at_half, tuned = scores >= THRESHOLD, scores >= np.asarray(self.thresholds(), dtype=np.float32)
        return {
            "map": _mean(average_precision(scores, labels), labels),
            "micro_f1": micro_f1(at_half, labels),
            "macro_f1": _mean(f1(at_half, labels), labels),
            "micro_f1_tuned": micro_f1(tuned, labels),
            "macro_f1_tuned": _mean(f1(tuned, labels), labels),
            "exact": float((at_half == labels).all(1).mean()),
            "exact_tuned": float((tuned == labels).all(1).mean()),
            "loss": float(-np.where(labels, np.log(p), np.log1p(-p)).mean()),
            "count": float(len(labels)),
        }

    def per_class(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return one row a class: average precision, threshold; precision, recall and F1 at it; positive images."""
        scores, labels = self._all()
        thresholds = self.thresholds()
        found = scores >= np.asarray(thresholds, dtype=np.float32)
        hits = (found & labels).sum(0)
        columns = {
            "ap": average_precision(scores, labels),
            "precision": hits / np.maximum(found.sum(0), 1),
            "recall": hits / np.maximum(labels.sum(0), 1),
            "f1": f1(found, labels),
            "threshold": thresholds,
            "support": labels.sum(0),
        }
        rows = [
            dict(zip(columns, (_plain(v) for v in row), strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        if names is None:
            return rows
        return [{"name": name, **row} for name, row in zip(names, rows, strict=True)]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else float(value)


def _mean(values: Floats, labels: Flags) -> float:
    present = labels.any(0)
    return float(values[present].mean()) if present.any() else 0.0


def average_precision(scores: NDArray[np.float32], labels: Flags) -> Floats:
    """Return the average precision of each class, (K,), of ``scores`` and ``labels`` (N, K); 0 without a positive."""
    return np.array([_average_precision(scores[:, c], labels[:, c]) for c in range(scores.shape[1])])


def _average_precision(scores: NDArray[np.float32], labels: Flags) -> float:
    _, hits, shown = _curve(scores, labels)
    if not len(hits) or not hits[-1]:
        return 0.0
    return float((np.diff(hits, prepend=0) * hits / shown).sum() / hits[-1])


def _curve(scores: NDArray[np.float32], labels: Flags) -> tuple[NDArray[np.float32], Floats, Floats]:
    """Distinct scores, highest first, with the positives and the images that score as much or more."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=np.int64)
    hits: Floats = np.cumsum(labels[order], dtype=np.float64)[last]
    shown: Floats = last.astype(np.float64) + 1
    return ranked[last], hits, shown


def best_thresholds(scores: NDArray[np.float32], labels: Flags) -> Floats:
    """Return, for each class, the threshold of the best F1, (K,); the highest of several, 0.5 without a positive.

    It lies half-way between the score it lets in and the next lower one, so that small differences change nothing.
    """
    return np.array([_best_threshold(scores[:, c], labels[:, c]) for c in range(scores.shape[1])])


def _best_threshold(scores: NDArray[np.float32], labels: Flags) -> float:
    if not labels.any():
        return THRESHOLD
    ranked, hits, shown = _curve(scores, labels)
    at = int(np.argmax(2 * hits / (shown + labels.sum())))
    return float((ranked[at] + (ranked[at + 1] if at + 1 < len(ranked) else 0.0)) / 2)


def f1(found: Flags, labels: Flags) -> Floats:
    """Return F1 of each class, (K,), of decisions and labels (N, K); 0 where there is nothing of either."""
    both = found.sum(0) + labels.sum(0)
    values: Floats = 2.0 * (found & labels).sum(0) / np.maximum(both, 1)
    return values


def micro_f1(found: Flags, labels: Flags) -> float:
    """Return F1 over all decisions alike."""
    return float(2.0 * (found & labels).sum() / max(1, int(found.sum() + labels.sum())))
