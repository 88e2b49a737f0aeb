"""Looking at every mask before training: which values occur, how often, where first, and whether sizes fit.

Each file is decoded once a process, by several threads.  H, W pixels.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitrail.errors import DataError

from .decode import BrokenImage, probe_image, read_image, read_values
from .imageset import printable
from .masklayout import Pair
from .workers import Workers, default_workers, in_order

_SHOWN = 10


@dataclass(frozen=True)
class Seen:
    """One mask: its (H, W), value -> pixels, and whether the values are colours."""

    size: tuple[int, int]
    counts: dict[int, int]
    coloured: bool


@dataclass
class Values:
    """All masks of some splits.

    Attributes:
        counts: split -> value -> pixels; a colour is one number, see :func:`vitrail.data.decode.read_values`.
        first: value -> the first file that holds it.
        coloured: whether the masks are drawn in colours.
        sizes: the different (H, W).
    """

    counts: dict[str, dict[int, int]] = field(default_factory=dict)
    first: dict[int, str] = field(default_factory=dict)
    coloured: bool = False
    sizes: set[tuple[int, int]] = field(default_factory=set)

    def total(self) -> dict[int, int]:
        """Return value -> pixels over all splits, by value."""
        found: dict[int, int] = {}
        for counts in self.counts.values():
            for value, count in counts.items():
                found[value] = found.get(value, 0) + count
        return dict(sorted(found.items()))


def scan_masks(parts: dict[str, list[Pair]]) -> Values:
    """Decode all masks and read all images' headers.

    Raises :class:`DataError` that names the first files that cannot be read, whose mask has another size than the
    image, or that are drawn in colours where others hold numbers.
    """
    found, faults = Values(), list[str]()
    kinds: dict[bool, str] = {}
    with Workers(default_workers()) as pool:
        for split, pairs in parts.items():
            counts = found.counts.setdefault(split, {})
            for pair, seen in zip(pairs, in_order(pool, pairs, _look), strict=True):
                if isinstance(seen, str):
                    faults.append(seen)
                    continue
                kinds.setdefault(seen.coloured, printable(str(pair.mask)))
                found.sizes.add(seen.size)
                for value, count in seen.counts.items():
                    counts[value] = counts.get(value, 0) + count
                    found.first.setdefault(value, printable(str(pair.mask)))
    if faults:
        more = "" if len(faults) <= _SHOWN else f"\n  and {len(faults) - _SHOWN} more"
        raise DataError(f"{len(faults)} masks or images cannot be used:\n  " + "\n  ".join(faults[:_SHOWN]) + more)
    if len(kinds) > 1:
        raise DataError(
            f"expected all masks to hold numbers, or all to be coloured, got colours in {kinds[True]} and numbers in"
            f" {kinds[False]}; mend: save all of them one way"
        )
    found.coloured = kinds.get(True) is not None
    return found


def _look(pair: Pair) -> Seen | str:
    """Return what a mask holds, or what is wrong with it or its image."""
    reading = pair.mask
    try:
        seen = _seen(str(pair.mask), *_stamp(pair.mask))
        reading = pair.image
        info = probe_image(pair.image)
        turned = (info.height, info.width) != seen.size  # the header says nothing of an image that is stored lying
        size = tuple(read_image(pair.image).shape[1:]) if turned else seen.size
    except BrokenImage as error:
        return f"{printable(str(reading))}: {error.reason}: {error.message}"
    if size != seen.size:
        (h, w), (mh, mw) = size, seen.size
        return (
            f"{printable(str(pair.mask))}: expected a mask of {w} x {h} pixels, as its image has, got {mw} x {mh};"
            " mend: resize it to the nearest value, without smoothing"
        )
    return seen


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=200_000)
def _seen(path: str, size: int, changed: int) -> Seen:
    """Decode a mask; ``size`` and ``changed`` say which state of the file this is about."""
    values, coloured = read_values(path)
    if coloured and is_grey(values):
        values, coloured = values & 255, False
    unique, counts = np.unique(values, return_counts=True)
    return Seen((values.shape[0], values.shape[1]), dict(zip(unique.tolist(), counts.tolist(), strict=True)), coloured)


def is_grey(packed: np.ndarray) -> bool:
    """Whether all packed colours have red, green and blue alike."""
    low = packed & 255
    return bool(((packed >> 8 & 255) == low).all() and ((packed >> 16) == low).all())
