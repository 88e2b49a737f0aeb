"""What the loss is told of unequal classes: weights and shifts of the logits, from the counts of the training set.

Inverse frequency, and the effective number of samples: Cui et al. 2019, arXiv 1901.05555, section 3, equation 2
(E = (1 - beta**n) / (1 - beta)). Logit adjustment: Menon et al. 2021, arXiv 2007.07314, section 4, equation 10.
A class without a training image counts as one of one image: it takes no part in the mean, and nothing divides by zero.
K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitrail.errors import require_known

KINDS = ("none", "balanced", "effective")
BETA = 0.999


def class_weights(counts: ArrayLike, kind: str, *, beta: float = BETA) -> NDArray[np.float64]:
    """Return a weight for each class, (K,), whose mean over the training images is 1.

    ``balanced``: every class weighs the same in all, whatever its count. ``effective``: the weight of a class grows
    with its effective number of images, which levels off at 1 / (1 - ``beta``).
    """
    require_known([kind], KINDS, "kind of class weights")
    n = np.asarray(counts, dtype=np.float64)
    seen = np.maximum(n, 1)
    raw = {
        "none": np.ones_like(seen),
        "balanced": 1 / seen,
        "effective": (1 - beta) / -np.expm1(seen * np.log(beta)),  # 1 - beta**n, exact for a beta close to 1
    }[kind]
    weights: NDArray[np.float64] = raw * (n.sum() / (n * raw).sum())
    return weights


def log_prior(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the logarithm of each class's share of the training images, (K,)."""
    seen = np.maximum(np.asarray(counts, dtype=np.float64), 1)
    logs: NDArray[np.float64] = np.log(seen / seen.sum())
    return logs
