"""The built-in real set: scikit-learn's ``digits``, 1797 scanned handwritten digits of 8 x 8 pixels.

Source: UCI "Optical recognition of handwritten digits" (Alpaydin, Kaynak 1998), its test part, as scikit-learn
ships it; grey values 0..16. The split is fixed for ever: 20 % test, 10 % of the rest val, stratified, seed 0.
"""

from __future__ import annotations

import numpy as np

from vitrail.classes import ClassMap
from vitrail.errors import UsageError, require_extra

from .imageset import ArrayStore
from .layout import Layout, Part
from .splitting import stratified_split

BUILTIN = ("digits",)


def read_builtin(name: str) -> Layout:
    """Return a built-in set with its fixed train, val and test parts."""
    if name not in BUILTIN:
        raise UsageError(f"expected one of the built-in sets {', '.join(BUILTIN)}, got {name!r}")
    require_extra("sklearn", "demo", "the built-in set 'digits'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    rest, test = stratified_split(labels, 0.2, seed=0)
    train, val = stratified_split(labels[rest], 0.1, seed=0)
    rows = {"train": rest[train], "val": rest[val], "test": test}
    parts = {s: Part(ArrayStore(f"digits/{s}", pixels[r]), labels[r]) for s, r in rows.items()}
    return Layout("built-in", name, parts, ClassMap.of([str(i) for i in range(10)]))
