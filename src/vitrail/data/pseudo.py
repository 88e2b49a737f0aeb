"""Images without labels, and which of a teacher's answers about them become training images.

Source: Xie et al. 2020, arXiv 1911.04252 (Noisy Student), section 3.1: images the teacher is sure of, as many of each
class; the surest of a class that has too many, repeated ones of a class that has too few.
M images without labels, m chosen, K classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.classes import ClassMap
from vitrail.errors import DataError

from .folder import Walker
from .imageset import FileStore, ImageSet, JoinedStore, Soft, printable
from .layout import Ignored


@dataclass(frozen=True)
class Answers:
    """What a teacher says of M images: ``scores`` float32 (M, K), rows sum to 1; ``readable`` bool (M,)."""

    scores: NDArray[np.float32]
    readable: NDArray[np.bool_]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The likeliest class of each, (M,)."""
        return self.scores.argmax(1).astype(np.int64)

    @property
    def confidence(self) -> NDArray[np.float32]:
        """The score of that class, (M,)."""
        return self.scores.max(1)


def find_images(folder: str) -> tuple[FileStore, list[Ignored]]:
    """Return all image files below a folder, whatever its sub-folders mean, and what else was there.

    Raises :class:`DataError` if the folder does not exist or holds no image.
    """
    root = os.path.expanduser(folder)
    if not os.path.isdir(root):
        raise DataError(f"expected a folder of images without labels, got {printable(root)!r}; mend: check the path")
    walker = Walker(os.fsencode(root))
    paths = sorted(walker.files_below(walker.root, walker.start()))
    if not paths:
        raise DataError(f"expected images below {printable(root)!r}, got none; mend: check the path")
    cut = len(os.path.join(walker.root, b""))
    return FileStore(root, [os.fsdecode(path[cut:]) for path in paths]), walker.ignored


def choose(answers: Answers, confidence: float, balance: int | None) -> NDArray[np.int64]:
    """Return the positions of the images to train on, int64 (m,), repeated ones included.

    Those of at least ``confidence``, in their order; with ``balance`` that many of each class, surest first, a class of
    fewer repeated in turn (one without any stays without).
    """
    sure = np.flatnonzero(answers.readable & (answers.confidence >= confidence))
    if balance is None:
        return sure
    chosen = []
    for c in range(answers.scores.shape[1]):
        own = sure[answers.labels[sure] == c]
        own = own[np.argsort(-answers.confidence[own], kind="stable")]
        chosen.append(np.resize(own, balance) if len(own) else own)
    return np.concatenate(chosen)


def account(answers: Answers, rows: NDArray[np.int64], classes: ClassMap) -> dict[str, Any]:
    """Return what became of M images: used, left out and why, and the numbers of each class, as plain data."""
    used = np.unique(rows)
    labels, readable = answers.labels, int(answers.readable.sum())
    told = np.bincount(labels[answers.readable], minlength=len(classes))
    distinct = np.bincount(labels[used], minlength=len(classes))
    shown = np.bincount(labels[rows], minlength=len(classes))
    return {
        "images": len(labels),
        "used": len(used),
        "left_out": readable - len(used),
        "unreadable": len(labels) - readable,
        "shown_an_epoch": len(rows),
        "classes": {
            name: {"answered": int(told[c]), "used": int(distinct[c]), "shown_an_epoch": int(shown[c])}
            for c, name in enumerate(classes.names)
        },
    }


def join(
    labelled: ImageSet, store: FileStore, rows: NDArray[np.int64], labels: NDArray[np.int64], soft: Any | None
) -> ImageSet:
    """Return ``labelled`` with images of ``store`` after them; ``soft`` float32 (m, K) are their targets, if given."""
    n = len(labelled)
    both = ImageSet(
        JoinedStore(labelled.store, store),
        np.concatenate([labelled.rows, len(labelled.store) + rows]),
        np.concatenate([labelled.labels, labels]),
        labelled.classes,
    )
    if soft is None:
        return both
    where = np.concatenate([np.full(n, -1, dtype=np.int64), np.arange(len(rows), dtype=np.int64)])
    return replace(both, soft=Soft(where, np.asarray(soft, dtype=np.float32)))


def real_paths(images: ImageSet | None) -> set[str]:
    """Return the files of a set, links followed; images without a file of their own have none."""
    if images is None:
        return set()
    paths = (images.path(i) for i in range(len(images)))
    return {os.path.realpath(path) for path in paths if path is not None}
