"""Looking at every image of a source once, in parallel: what it is, whether it can be read, and two fingerprints.

The fingerprints: sha256 of the encoded bytes (exact copies) and, for near copies, a 64-bit difference hash ("dHash":
is each of 8 x 9 grey cells brighter than its left neighbour) with a 12 x 12 grey thumbnail to confirm by.
Shapes: n images of all splits together, in the order train, val, test.
"""

from __future__ import annotations

import hashlib
import os
import queue
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decode import EXTENSIONS, BrokenImage, ImageInfo, inspect_image
from .imageset import ArrayStore, FileStore, Store
from .labels import label_groups, words_of
from .layout import SPLITS, Layout
from .resample import resize
from .workers import Workers, require_workers

THUMB = 12
_PIECE = 32

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read: its number in the scan, reason code and a sentence."""

    number: int
    reason: str
    message: str


@dataclass
class Scan:
    """Facts of n images. ``width`` and the like are 0 or empty where an image is broken."""

    split: NDArray[np.int8]  # index into SPLITS
    row: NDArray[np.int64]
    label: NDArray[np.int64]  # equal where labels are equal (``label_words``)
    label_words: list[str]
    stores: dict[str, Store]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    sha: NDArray[np.uint8]
    dhash: NDArray[np.uint64]
    thumb: NDArray[np.uint8]
    kind: list[tuple[str, str, bool] | None] = field(default_factory=list)  # mode, format, animated
    broken: list[Broken] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """bool (n,): could be decoded."""
        return self.width > 0

    def store(self, number: int) -> Store:
        """The store of an image."""
        return self.stores[SPLITS[self.split[number]]]

    def name(self, number: int) -> str:
        """What people call an image."""
        return self.store(number).name(int(self.row[number]))

    def raw_name(self, number: int) -> str:
        """The name as the file system has it (surrogateescape), so that a table of names reads back exactly."""
        store = self.store(number)
        return store.names[int(self.row[number])] if isinstance(store, FileStore) else self.name(number)

    def wrong_extension(self, number: int) -> bool:
        """True if the file is named like another format than the one it holds, or has no extension."""
        store, kind = self.store(number), self.kind[number]
        if kind is None or not isinstance(store, FileStore):
            return False
        extension = os.path.splitext(store.names[int(self.row[number])])[1].lower()
        return EXTENSIONS.get(extension) != kind[1]


def scan(layout: Layout, *, workers: int | None = None, progress: Progress | None = None) -> Scan:
    """Read and fingerprint every image of a layout. ``progress`` is called with (done, total) in the calling thread."""
    found = _empty(layout)
    total = len(found)
    finished: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    with Workers(require_workers(workers)) as pool:

        def task(first: int) -> Callable[[], None]:
            return lambda: _piece(found, pool, range(first, min(first + _PIECE, total)), finished)

        for first in range(0, total, _PIECE):
            pool.submit(task(first))
        done = 0
        while done < total:
            report = finished.get()
            if isinstance(report, BaseException):
                raise report
            done += report
            if progress:
                progress(done, total)
    found.broken.sort(key=lambda broken: broken.number)
    return found


def _empty(layout: Layout) -> Scan:
    parts = [(split, layout.parts[split]) for split in SPLITS if split in layout.parts]
    sizes = [len(part.labels) for _, part in parts]
    n = sum(sizes)
    number, kinds = label_groups(np.concatenate([part.labels for _, part in parts]))
    return Scan(
        split=np.concatenate([np.full(s, SPLITS.index(p), np.int8) for (p, _), s in zip(parts, sizes, strict=True)]),
        row=np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
        label=number,
        label_words=[words_of(label, layout.classes.names) for label in kinds],
        stores={split: part.store for split, part in parts},
        width=np.zeros(n, np.int32),
        height=np.zeros(n, np.int32),
        sha=np.zeros((n, 32), np.uint8),
        dhash=np.zeros(n, np.uint64),
        thumb=np.zeros((n, THUMB * THUMB), np.uint8),
        kind=[None] * n,
    )


def _piece(found: Scan, pool: Workers, numbers: range, finished: queue.SimpleQueue[int | BaseException]) -> None:
    try:
        for number in numbers:
            if pool.stopping:
                return
            _look(found, number)
        finished.put(len(numbers))
    except BaseException as error:  # raised again by the thread that waits
        finished.put(error)


def _look(found: Scan, number: int) -> None:
    """Fill in the facts of one image."""
    store, row = found.store(number), int(found.row[number])
    try:
        blob = store.blob(row)
        if isinstance(store, ArrayStore):
            image = store.read(row)
            info = ImageInfo(image.shape[2], image.shape[1], "RGB", "array", False)
        else:
            info, image = inspect_image(blob)
    except BrokenImage as error:
        found.broken.append(Broken(number, error.reason, error.message))
        return
    found.sha[number] = np.frombuffer(hashlib.sha256(blob).digest(), np.uint8)
    found.dhash[number], found.thumb[number] = fingerprint(image)
    found.kind[number] = (info.mode, info.format, info.animated)
    # Sizes as people see them: after EXIF orientation.
    found.height[number], found.width[number] = image.shape[1], image.shape[2]


def fingerprint(image: Tensor) -> tuple[np.uint64, NDArray[np.uint8]]:
    """uint8 (3, H, W) -> (dHash, thumbnail uint8 (144,))."""
    small = resize(image, (24, 36), "bilinear").float()
    grey = (0.299 * small[0] + 0.587 * small[1] + 0.114 * small[2])[None]
    cells = torch.nn.functional.avg_pool2d(grey, (3, 4))[0]
    bits = (cells[:, 1:] > cells[:, :-1]).numpy()
    thumb = torch.nn.functional.avg_pool2d(grey, (2, 3)).round().to(torch.uint8).numpy().reshape(-1)
    return np.packbits(bits).view(np.uint64)[0], thumb
