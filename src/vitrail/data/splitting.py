"""Cutting a held-out part off a set: seeded, stratified, and of exactly the asked size wherever classes allow it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import UsageError

from . import rng


def stratified_split(
    labels: NDArray[np.int64], fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted positions (kept, held out). The held-out part has ``round(fraction * n)`` images, shared out over
    the classes in proportion (largest remainders first), at least one of each class of two or more, and never all.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"expected a fraction between 0 and 1, got {fraction}")
    counts = np.bincount(labels)
    quota = _quotas(counts, fraction)
    keys = rng.uniforms(seed, 0, np.arange(len(labels)), 1, rng.SPLIT)[:, 0]
    order = np.lexsort((keys, labels))  # by class, then by chance
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(labels)) - first[labels[order]]
    held = rank < quota[labels[order]]
    return np.sort(order[~held]), np.sort(order[held])


def _quotas(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    exact = counts * fraction
    quota = np.floor(exact).astype(np.int64)
    short = round(fraction * int(counts.sum())) - int(quota.sum())
    largest = np.argsort(-(exact - quota), kind="stable")[:short]
    quota[largest] += 1
    clipped: NDArray[np.int64] = np.clip(quota, np.minimum(1, counts // 2), np.maximum(counts - 1, 0))
    return clipped
