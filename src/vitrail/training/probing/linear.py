"""The linear probe: multinomial logistic regression on standardised frozen features.

The usual measure of a representation (Alain and Bengio 2016, arXiv 1610.01644; by L-BFGS with the strength chosen on a
log sweep as Radford et al. 2021, arXiv 2103.00020, appendix A.3). The minimised function is convex and computed in
float64, so where it ends does not depend on where it starts, and nothing is random.

N images, C width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .features import FeatureSet

STRENGTHS = tuple(10.0 ** (e / 2) for e in range(2, -13, -1))  # 10 down to 1e-6 by half decades
MOST_ITERATIONS = 1000
SMALLEST_STD = 1e-5  # a feature that never varies says nothing: it is left at zero


@dataclass(frozen=True)
class Standardise:
    """Subtract ``mean`` and divide by ``std``, both (C,), as measured on the training features."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardise:
        """Measure (N, C) features, in float64."""
        x = features.double()
        return cls(x.mean(0), x.std(0, correction=0) + SMALLEST_STD)

    def __call__(self, features: Tensor) -> Tensor:
        """(N, C) -> (N, C), float64."""
        return (features.double() - self.mean) / self.std


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier: ``weight`` (K, C), ``bias`` (K,), float64; ``converged`` unless iterations ran out."""

    weight: Tensor
    bias: Tensor
    l2: float
    converged: bool

    def logits(self, x: Tensor) -> Tensor:
        """Standardised features (N, C) -> (N, K)."""
        return x @ self.weight.t() + self.bias


def fit_logistic(x: Tensor, labels: Tensor, classes: int, l2: float, start: Logistic | None = None) -> Logistic:
    """Minimise the mean cross entropy plus ``l2 / 2 · ‖weight‖²`` (the bias is free) by L-BFGS.

    Args:
        x: standardised features (N, C), float64.
        labels: (N,), int64.
        classes: K.
        l2: strength; scikit-learn's ``C`` is ``1 / (N · l2)``.
        start: another fit to set out from: a neighbour on a sweep saves iterations.
    """
    from scipy.optimize import minimize

    width = x.shape[1]
    first = torch.zeros(classes, width + 1, dtype=torch.float64)
    if start is not None:
        first[:, :width], first[:, width] = start.weight, start.bias
    rows = torch.arange(len(labels))

    def loss_and_gradient(flat: Any) -> tuple[float, Any]:
        both = torch.from_numpy(np.asarray(flat)).view(classes, width + 1)
        weight, bias = both[:, :width], both[:, width]
        log_p = torch.log_softmax(x @ weight.t() + bias, 1)
        loss = -log_p[rows, labels].mean() + l2 / 2 * weight.square().sum()
        error = log_p.exp_()
        error[rows, labels] -= 1
        error /= len(labels)
        gradient = torch.cat([error.t() @ x + l2 * weight, error.sum(0)[:, None]], 1)
        return float(loss), gradient.reshape(-1).numpy()

    options: Any = {
        "maxiter": MOST_ITERATIONS,
        "maxfun": 2 * MOST_ITERATIONS,
        "gtol": 1e-7,
        "ftol": 1e-14,
        "maxcor": 20,
    }
    done = minimize(loss_and_gradient, first.reshape(-1).numpy(), jac=True, method="L-BFGS-B", options=options)
    both = torch.from_numpy(done.x).view(classes, width + 1)
    return Logistic(both[:, :width].clone(), both[:, width].clone(), l2, bool(done.success))


@dataclass(frozen=True)
class Sweep:
    """The fit that validation chose, how to bring features to it, and the validation figures of all strengths."""

    chosen: Logistic
    standardise: Standardise
    tried: list[dict[str, float]]

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, C) as they come -> (N, K)."""
        return self.chosen.logits(self.standardise(features))


def sweep(train: FeatureSet, val: FeatureSet, classes: int, strengths: Sequence[float] = STRENGTHS) -> Sweep:
    """Fit each strength, from the strongest, and keep that with the best validation accuracy; ties go to the loss."""
    standardise = Standardise.of(train.features)
    x, held = standardise(train.features), standardise(val.features)
    fits: list[tuple[tuple[float, float], Logistic]] = []
    tried: list[dict[str, float]] = []
    for l2 in sorted(strengths, reverse=True):
        fit = fit_logistic(x, train.labels, classes, l2, fits[-1][1] if fits else None)
        logits = fit.logits(held)
        top1 = float((logits.argmax(1) == val.labels).double().mean())
        loss = float(torch.nn.functional.cross_entropy(logits, val.labels))
        fits.append(((top1, -loss), fit))
        tried.append({"l2": l2, "top1": top1, "loss": loss, "converged": fit.converged})
    best = max(fits, key=lambda pair: pair[0])[1]
    return Sweep(best, standardise, tried)
