"""Parquet read by row group: for tables larger than memory, where reading goes nearly in the order of the rows.

A row group is the least that parquet reads at a time; the last few are kept, up to a share of the free memory. Reading
that jumps about the whole table would unpack a group for each image; the order of ``order.Windowed`` does not.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError

from .decode import BrokenImage, open_regular, read_image
from .imageset import Store, printable
from .memory import available_bytes

if TYPE_CHECKING:
    import pyarrow as pa

SHARE = 0.25  # of the free memory, shared by the processes of one machine


@dataclass(frozen=True)
class Group:
    """One row group: the file, its number there, rows, and bytes of the image column when unpacked."""

    path: str
    number: int
    rows: int
    size: int


class GroupCache:
    """The row groups read last, up to ``budget`` bytes (one at least); a group is unpacked once for all threads."""

    def __init__(self, groups: list[Group], load: Callable[[Group], pa.Array], budget: int | None = None) -> None:
        processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.budget = int(SHARE * available_bytes()) // processes if budget is None else budget
        self.groups, self.load, self.used, self.loads = groups, load, 0, 0
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Lock] = {}

    def get(self, number: int) -> pa.Array:
        """Return the encoded images of a group."""
        with self._lock:
            if number in self._held:
                self._held.move_to_end(number)
                return self._held[number]
            turn = self._loading.setdefault(number, threading.Lock())
        with turn:  # the first unpacks it, the others wait and find it
            with self._lock:
                if number in self._held:
                    return self._held[number]
            images = self.load(self.groups[number])
            with self._lock:
                self._keep(number, images)
        return images

    def _keep(self, number: int, images: pa.Array) -> None:
        self.loads += 1
        self._held[number] = images
        self.used += self.groups[number].size
        self._loading.pop(number, None)
        while self.used > self.budget and len(self._held) > 1:
            old, _ = self._held.popitem(last=False)
            self.used -= self.groups[old].size


@dataclass(frozen=True)
class GroupStore:
    """The image column of one split, read by row group. ``starts`` (groups + 1,) are the rows at which groups begin.

    ``paths`` are what the rows call their images, by file; they are small, and at hand without unpacking a group.
    """

    title: str
    folder: str
    starts: list[int]
    paths: pa.ChunkedArray | None
    cache: GroupCache = field(repr=False)

    def __len__(self) -> int:
        return self.starts[-1]

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each row's group, int64 (n,)."""
        return group_of(self.starts, rows)

    def _path(self, row: int) -> str | None:
        return None if self.paths is None else self.paths[row].as_py()

    def name(self, row: int) -> str:
        return titled(self.title, row, self._path(row))

    def path(self, row: int) -> None:
        return None

    def blob(self, row: int) -> bytes:
        number = bisect_right(self.starts, row) - 1
        data = self.cache.get(number)[row - self.starts[number]].as_py()
        return cell_bytes(data, self._path(row), self.folder)

    def read(self, row: int) -> Tensor:
        return read_image(self.blob(row))


def require_room(store: Store, window: int) -> None:
    """Raise :class:`UsageError` if a window is more than the cache holds: each image would unpack a group."""
    if not isinstance(store, GroupStore):
        return
    cache = store.cache
    needed = sum(sorted((group.size for group in cache.groups), reverse=True)[:window])
    if needed > cache.budget:
        raise UsageError(
            f"expected a data.window that fits {cache.budget / 2**20:,.0f} MiB (a quarter of the free memory of each "
            f"process), got {window} row groups of {needed / 2**20:,.0f} MiB; mend: a smaller data.window, or "
            "`vitrail data shard`, whose windows cost no memory"
        )


def group_of(starts: list[int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the stretch that each row lies in, int64 (n,); ``starts`` are their first rows, then the end."""
    return np.searchsorted(np.asarray(starts), rows, side="right").astype(np.int64) - 1


def cell_bytes(data: bytes | None, path: str | None, folder: str) -> bytes:
    """The encoded bytes of a cell: its own, or those of the file it names. Raises :class:`BrokenImage`."""
    if data is not None:
        return data
    if not path:
        raise BrokenImage("missing", "the row holds neither bytes nor a path")
    with open_regular(os.path.join(folder, path)) as file:
        return file.read()


def titled(title: str, row: int, path: str | None) -> str:
    """What people call a row whose path is at hand."""
    return f"{title}#{row}" + (f" ({printable(path)})" if path else "")
