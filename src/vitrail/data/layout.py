"""What every kind of source is turned into before anybody judges it: parts, classes, and an account of all files.

Readers (folder, table, parquet, built-in) return a :class:`Layout`; ``sources`` refuses bad ones and splits, the
doctor reports on any of them. Reading a layout decodes no image.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrail.classes import ClassMap

from .imageset import Store, printable
from .labels import Labels, class_counts, is_multi

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One split as the source has it: a store, and the label of each row (``labels``: in one of its two forms)."""

    store: Store
    labels: Labels


@dataclass(frozen=True)
class Ignored:
    """An entry of the source that is not an image to learn from, and why; ``name`` as the file system has it."""

    name: str
    reason: str


@dataclass
class Layout:
    """A source, read but not yet judged."""

    kind: str
    root: str
    parts: dict[str, Part]
    classes: ClassMap
    ignored: list[Ignored] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    """Images of a split that damage has cost although nobody can name them (a shard that is cut off)."""

    def counts(self, split: str) -> NDArray[np.int64]:
        """Images of each class in one part, (number of classes,)."""
        if split not in self.parts:
            return np.zeros(len(self.classes), dtype=np.int64)
        return class_counts(self.parts[split].labels, len(self.classes))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return any(is_multi(part.labels) for part in self.parts.values())

    def empty_classes(self) -> list[str]:
        """Classes without a single image in any part."""
        total = sum((self.counts(split) for split in self.parts), np.zeros(len(self.classes), dtype=np.int64))
        return [name for name, n in zip(self.classes.names, total, strict=True) if n == 0]

    def untrained_classes(self) -> dict[str, list[str]]:
        """For val and test: classes that have images there and none in train."""
        train = self.counts("train")
        found = {}
        for split in ("val", "test"):
            names = [self.classes.names[c] for c in range(len(self.classes)) if self.counts(split)[c] and not train[c]]
            if names:
                found[split] = names
        return found


def split_word(name: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` if a folder, file stem or cell is a usual word for it, else None."""
    return _SPLIT_WORDS.get(name.strip().casefold())


def split_of_file(stem: str) -> str | None:
    """Return the split that a file name starts with (``test``, ``train-00000-of-00005``), else None."""
    return split_word(re.split(r"[-_.]", stem, maxsplit=1)[0])


def class_map(ids: Iterable[str]) -> ClassMap:
    """Return the classes sorted: numerically if all are whole numbers, by bytes otherwise (so machines agree)."""
    unique = set(ids)
    if unique and all(re.fullmatch(r"-?\d{1,18}", i) for i in unique):
        ordered = sorted(unique, key=lambda i: (int(i), i))
    else:
        ordered = sorted(unique, key=os.fsencode)
    return ClassMap(tuple(printable(i) for i in ordered), tuple(ordered))


def twins(names: Sequence[str]) -> list[list[str]]:
    """Return groups of class names that differ only by case, spaces at the ends or Unicode form."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFKC", name).strip().casefold()].append(name)
    return [group for group in groups.values() if len(group) > 1]


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return ``'a', 'b' and 3 more`` for a message."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
