"""Few-shot: least squares on a handful of images a class, in closed form.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 4.1: regularised least squares from the frozen features to
targets of {-1, 1}, one a class. As in the authors' public evaluator the features are standardised by the images that
are learned from, and the strength of the penalty is fixed (2¹⁰): choosing it would take more labels than there are.

n images, C width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data import rng

from .features import FeatureSet
from .linear import Standardise

SHOTS = (1, 5, 10)
DRAWS = 10
L2 = 2.0**10
STREAM = 64  # of vitrail.data.rng: apart from those of the data


def draw(labels: Tensor, shots: int, number: int, seed: int = 0) -> Tensor:
    """Return the positions (K · shots,) of draw ``number``: ``shots`` images of each class, by chance.

    A function of (seed, number, position): of one draw, the images of fewer shots are among those of more.
    """
    own: NDArray[Any] = labels.numpy()
    keys = rng.uniforms(seed, number, np.arange(len(own)), 1, STREAM)[:, 0]
    order = np.lexsort((keys, own))
    counts = np.bincount(own)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(own)) - first[own[order]]
    return torch.from_numpy(np.sort(order[rank < shots]))


def fit_ridge(features: Tensor, labels: Tensor, classes: int, l2: float = L2) -> tuple[Standardise, Tensor, Tensor]:
    """Return (standardise, weight (C, K), bias (K,)): least squares to ±1 with penalty ``l2 · ‖weight‖²``.

    The bias is free. Solved in the smaller of the two forms, (C, C) or (n, n).
    """
    standardise = Standardise.of(features)
    x = standardise(features)  # its mean is zero, so the bias is the mean of the targets
    target = 2.0 * torch.nn.functional.one_hot(labels, classes).double() - 1.0
    bias = target.mean(0)
    y = target - bias
    if len(x) >= x.shape[1]:
        weight = torch.linalg.solve(x.t() @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype), x.t() @ y)
    else:
        weight = x.t() @ torch.linalg.solve(x @ x.t() + l2 * torch.eye(len(x), dtype=x.dtype), y)
    return standardise, weight, bias


def few_shot(
    train: FeatureSet, asked: Sequence[FeatureSet], classes: int, shots: int, *, draws: int = DRAWS, seed: int = 0
) -> list[list[float]]:
    """Return, for each set of ``asked``, its accuracy after each draw."""
    found: list[list[float]] = [[] for _ in asked]
    for number in range(draws):
        chosen = draw(train.labels, shots, number, seed)
        standardise, weight, bias = fit_ridge(train.features[chosen], train.labels[chosen], classes)
        for accuracies, held in zip(found, asked, strict=True):
            guess = (standardise(held.features) @ weight + bias).argmax(1)
            accuracies.append(float((guess == held.labels).double().mean()))
    return found
