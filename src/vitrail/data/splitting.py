"""Cutting a held-out part off a set: seeded, stratified, and of exactly the asked size wherever classes allow it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import UsageError

from . import rng
from .labels import Labels, is_multi


def stratified_split(labels: Labels, fraction: float, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted positions (kept, held out). The held-out part has ``round(fraction * n)`` images, shared out over
    the classes in proportion (largest remainders first), at least one of each class of two or more, and never all.

    Labels of several classes an image are split by :func:`iterative_split`.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"expected a fraction between 0 and 1, got {fraction}")
    if is_multi(labels):
        return iterative_split(labels.astype(np.bool_, copy=False), fraction, seed=seed)
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


def iterative_split(
    labels: NDArray[np.bool_], fraction: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted positions (kept, held out) of images with several labels each, bool (n, K).

    Iterative stratification (Sechidis et al. 2011, ECML PKDD, figure 1): the class with the fewest images left is
    dealt out first, each image to the part that misses this class most, then to the part that misses images most.
    Images without any class are a class of their own. A class of two images or more asks for one in each part, at
    least; so the held-out part has about ``fraction * n`` images.
    """
    sets = np.concatenate([labels, ~labels.any(1, keepdims=True)], axis=1)
    counts = sets.sum(0, dtype=np.int64)
    held = np.clip(counts * fraction, np.minimum(1, counts // 2), np.maximum(counts - 1, 0))
    wanted = np.stack([counts - held, held])  # images of each class that kept and held out still miss, (2, K + 1)
    room = np.array([len(labels) * (1 - fraction), len(labels) * fraction])
    by_chance = np.argsort(rng.uniforms(seed, 0, np.arange(len(labels)), 1, rng.SPLIT)[:, 0], kind="stable")
    part = np.full(len(labels), -1, dtype=np.int64)
    left = counts.copy()
    while left.any():
        scarce = int(np.where(left > 0, left, len(labels) + 1).argmin())
        for image in by_chance[sets[by_chance, scarce] & (part[by_chance] < 0)].tolist():
            chosen = max((0, 1), key=lambda p: (round(float(wanted[p, scarce]), 9), float(room[p])))
            part[image] = chosen
            wanted[chosen] -= sets[image]
            room[chosen] -= 1
            left -= sets[image]
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)
