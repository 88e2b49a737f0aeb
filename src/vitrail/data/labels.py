"""Labels in their two forms: one class an image, int64 (n,), or any number of classes, bool (n, K).

Whoever holds labels asks :func:`is_multi`; choosing rows, hashing, saving and moving to a tensor are the same for both.
Shapes: n images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64] | NDArray[np.bool_]
FORMS = ("auto", "single", "multi")
NO_CLASS = "no class"


def is_multi(labels: Any) -> bool:
    """Whether an image may have several classes, or none (``labels``: an array or a tensor)."""
    return bool(labels.ndim == 2)


def class_counts(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Return the images of each class, (K,)."""
    if is_multi(labels):
        return labels.sum(0, dtype=np.int64)
    return np.bincount(labels, minlength=classes).astype(np.int64)


def words_of(label: Any, names: Sequence[str]) -> str:
    """Return one image's label for people: the class, or ``cat + dog``, or ``no class``."""
    if np.ndim(label) == 0:
        return names[int(label)]
    return " + ".join(names[c] for c in np.flatnonzero(label)) or NO_CLASS


def label_groups(labels: Labels) -> tuple[NDArray[np.int64], Labels]:
    """Return a number for each image, equal where labels are equal, (n,), and the label each number stands for.

    With one class an image the number is the class index.
    """
    if not is_multi(labels):
        return labels.astype(np.int64), np.arange(int(labels.max(initial=-1)) + 1, dtype=np.int64)
    sets, number = np.unique(labels, axis=0, return_inverse=True)
    return number.reshape(-1).astype(np.int64), sets
