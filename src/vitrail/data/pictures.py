"""Pictures without classes: a plain folder of image files, for tasks that need no label.

P pictures.
"""

from __future__ import annotations

import os

import numpy as np

from vitrail.classes import ClassMap
from vitrail.errors import DataError

from .decode import EXTENSIONS
from .imageset import ImageSet, printable
from .pseudo import find_images
from .sources import Splits
from .splitting import stratified_split


def is_pictures(source: str) -> bool:
    """Tell whether a source is a folder in which image files lie, and not folders of classes alone."""
    path = os.path.expanduser(source)
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        return any(e.name.lower().endswith(tuple(EXTENSIONS)) and e.is_file() for e in entries)


def all_pictures(source: str) -> tuple[ImageSet, list[str]]:
    """Return all pictures below a folder, of one class, "picture", and notes for people."""
    store, ignored = find_images(source)
    rows = np.arange(len(store), dtype=np.int64)
    found = ImageSet(store, rows, np.zeros(len(store), dtype=np.int64), ClassMap.of(["picture"]))
    notes = [f"{len(found):,} pictures without classes in {printable(source)}"]
    return found, notes + ([f"{len(ignored)} other files there are not used"] if ignored else [])


def open_pictures(source: str, *, val_fraction: float = 0.1, test_fraction: float = 0.0, seed: int = 0) -> Splits:
    """Open all pictures below a folder, cut into train, val and (if asked for) test by chance.

    Raises :class:`DataError` if there are too few to hold any out.
    """
    whole, notes = all_pictures(source)
    test = None
    if test_fraction:
        kept, held = stratified_split(whole.labels, test_fraction, seed=seed + 1)
        whole, test = whole.subset(kept), whole.subset(held)
    if len(whole) < 2:
        raise DataError(f"expected at least two pictures in {printable(source)}, one to hold out, got {len(whole)}")
    kept, held = stratified_split(whole.labels, max(val_fraction, 1 / len(whole)), seed=seed)
    notes.append(f"{len(held)} of them held out for validation (seed {seed})")
    return Splits(whole.subset(kept), whole.subset(held), test, whole.classes, notes)
