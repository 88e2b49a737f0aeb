"""A set of labelled images: rows of a store, which is where the pixels lie (files, a parquet table, an array).

A store knows nothing of classes or splits; an :class:`ImageSet` is a choice of its rows with a label each. Splitting
and sub-setting choose rows and move no pixels.
Shapes: n images; an image is uint8 (3, H, W), RGB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vitrail.classes import ClassMap

from .decode import BrokenImage, open_regular, read_image
from .labels import Labels, class_counts, is_multi, words_of

MAX_BYTES = 1 << 29  # 50 million pixels of four 16-bit channels are 400 MB


def printable(name: str) -> str:
    """Return a name that any terminal and any UTF-8 file can hold (bytes that are not UTF-8 come out as ``\\xff``)."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def too_many_broken(share: float, count: int) -> float:
    """How many of ``count`` images may be unreadable: a share, but one is always put up with (unless none is)."""
    return max(1 if share else 0, share * count)


class Store(Protocol):
    """Where images lie, by row number."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What people call this image: a printable path or ``file#row``."""
        ...

    def path(self, row: int) -> Path | None:
        """The file, where there is one for this image alone."""
        ...

    def blob(self, row: int) -> bytes:
        """The encoded bytes (for hashes and reports). Raises :class:`BrokenImage`."""
        ...

    def read(self, row: int) -> Tensor:
        """uint8 (3, H, W). Raises :class:`BrokenImage`."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """A store whose rows lie in stretches that are best read one after the other (tar files, row groups)."""

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each row's stretch, int64 (n,)."""
        ...


@dataclass(frozen=True)
class FileStore:
    """Files below one root; ``names`` are relative to it (surrogateescape for names that are not UTF-8)."""

    root: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return printable(self.names[row])

    def path(self, row: int) -> Path:
        return Path(self.root, self.names[row])

    def blob(self, row: int) -> bytes:
        try:
            with open_regular(os.path.join(self.root, self.names[row])) as file:
                data: bytes = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise BrokenImage("unreadable", f"the file cannot be read: {error.strerror}") from None
        if len(data) > MAX_BYTES:
            raise BrokenImage(
                "too_many_bytes", f"expected an image of at most {MAX_BYTES >> 20} MiB, got a larger file"
            )
        return data

    def read(self, row: int) -> Tensor:
        return read_image(os.path.join(self.root, self.names[row]))


@dataclass(frozen=True)
class ArrayStore:
    """Images that are already pixels: uint8 (n, H, W, 3)."""

    title: str
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, row: int) -> str:
        return f"{self.title}#{row}"

    def path(self, row: int) -> None:
        return None

    def blob(self, row: int) -> bytes:
        return self.pixels[row].tobytes()

    def read(self, row: int) -> Tensor:
        return torch.from_numpy(self.pixels[row].copy()).permute(2, 0, 1)


@dataclass(frozen=True)
class JoinedStore:
    """Two stores as one: the rows of ``first``, then those of ``second``."""

    first: Store
    second: Store

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def _at(self, row: int) -> tuple[Store, int]:
        n = len(self.first)
        return (self.first, row) if row < n else (self.second, row - n)

    def name(self, row: int) -> str:
        store, row = self._at(row)
        return store.name(row)

    def path(self, row: int) -> Path | None:
        store, row = self._at(row)
        return store.path(row)

    def blob(self, row: int) -> bytes:
        store, row = self._at(row)
        return store.blob(row)

    def read(self, row: int) -> Tensor:
        store, row = self._at(row)
        return store.read(row)


@dataclass(frozen=True)
class Soft:
    """Targets that are no single class: ``rows`` int64 (n,) into ``table`` float32 (m, K), -1 where the label holds."""

    rows: NDArray[np.int64]
    table: NDArray[np.float32]

    def of(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the targets of images at ``indices`` (B,) with ``labels`` (B,): float32 (B, K)."""
        found = np.zeros((len(indices), self.table.shape[1]), dtype=np.float32)
        found[np.arange(len(indices)), labels] = 1.0
        told = self.rows[indices]
        found[told >= 0] = self.table[told[told >= 0]]
        return found


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one split. ``rows`` int64 (n,) are store rows.

    ``labels`` are class indices, int64 (n,), or, where an image may have several classes, bool (n, K).

    ``soft`` holds the targets of images whose label is not all that is known of them (one label an image).
    """

    store: Store
    rows: NDArray[np.int64]
    labels: Labels
    classes: ClassMap
    soft: Soft | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """What people call image ``i``."""
        return self.store.name(int(self.rows[i]))

    def path(self, i: int) -> Path | None:
        """The file of image ``i``, or None where it has none of its own (parquet, arrays)."""
        return self.store.path(int(self.rows[i]))

    def blob(self, i: int) -> bytes:
        """The encoded bytes of image ``i``. Raises :class:`BrokenImage`."""
        return self.store.blob(int(self.rows[i]))

    def read(self, i: int) -> Tensor:
        """Image ``i`` as uint8 (3, H, W), RGB, upright. Raises :class:`BrokenImage`."""
        return self.store.read(int(self.rows[i]))

    def shards(self) -> NDArray[np.int64] | None:
        """The shard (tar file, row group) that each image lies in, int64 (n,); None where the source has none."""
        return self.store.shard_of(self.rows) if isinstance(self.store, Sharded) else None

    def subset(self, indices: Sequence[int] | ArrayLike) -> ImageSet:
        """Return the images at these positions, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        soft = None if self.soft is None else Soft(self.soft.rows[chosen], self.soft.table)
        return ImageSet(self.store, self.rows[chosen], self.labels[chosen], self.classes, soft)

    def counts(self) -> NDArray[np.int64]:
        """Images of each class, (number of classes,)."""
        return class_counts(self.labels, len(self.classes))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return is_multi(self.labels)

    def label_words(self, i: int) -> str:
        """The class of image ``i``, or its classes, for people."""
        return words_of(self.labels[i], self.classes.names)
