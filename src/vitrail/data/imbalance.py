"""When classes are so unequal that a mean over images hides the small ones, in words.  K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IMBALANCE = 10  # largest to smallest class from which on it is said
CORRECTIONS = "train.logit_adjustment=1, data.balance=sqrt or train.class_weights=balanced"
MULTI_CORRECTIONS = "train.class_weights=balanced or train.loss=asymmetric"


def imbalance(counts: NDArray[np.int64], names: Sequence[str]) -> str | None:
    """Return a sentence if the largest class has over :data:`IMBALANCE` times the images of the smallest.

    ``counts`` (K,) are images of each class; classes without any are another matter.
    """
    full = counts[counts > 0]
    if len(full) < 2 or full.max() <= IMBALANCE * full.min():
        return None
    most, least = (names[int(np.flatnonzero(counts == value)[0])] for value in (full.max(), full.min()))
    return (
        f"the largest class ({most}: {full.max()}) has {full.max() / full.min():.0f} times the images of the "
        f"smallest ({least}: {full.min()})"
    )
