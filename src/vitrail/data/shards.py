"""Tar shards in the layout of webdataset, read by position: any image is one read, in any order, from any batch on.

Source: webdataset's layout (``key.jpg`` with ``key.cls``, ``key.txt`` or ``key.json``); docs/reliability.md D13, S17.
Nothing is extracted, so names in an archive are words and never paths. What a shard holds is in its index
(``shardindex``).
Shapes: n images of one split, shard by shard in the order of their names.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import DataError

from .decode import BrokenImage, open_regular, read_image
from .imageset import MAX_BYTES, printable
from .layout import Ignored, Layout, Part, class_map, listed
from .patterns import find_files, is_pattern
from .rowgroups import group_of
from .shardindex import ShardIndex, index_of

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CLASSES, INFO = "classes.txt", "dataset_info.json"
OPEN_FILES = 64


class OpenFiles:
    """The last few shards that were read stay open; safe between threads.

    A file closes when nobody reads from it any more: whoever reads holds it, so that its number is not given to another
    file meanwhile.
    """

    def __init__(self, paths: list[str], seals: list[tuple[int, int]], limit: int = OPEN_FILES) -> None:
        self.paths, self.seals, self.limit = paths, seals, limit
        self._open: OrderedDict[int, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of a shard, fewer where it ends before. Raises :class:`BrokenImage`."""
        handle = self._get(shard)
        try:
            data = os.pread(handle.fd, size, offset)
            while data and len(data) < size and (more := os.pread(handle.fd, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise BrokenImage("unreadable", f"the shard cannot be read: {error.strerror}") from None
        return data

    def _get(self, shard: int) -> _Handle:
        with self._lock:
            if (handle := self._open.get(shard)) is None:
                handle = self._open[shard] = _Handle(self.paths[shard], self.seals[shard])
                if len(self._open) > self.limit:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
        return handle


class _Handle:
    """A file number that is closed when the last reference to it goes."""

    __slots__ = ("fd",)

    def __init__(self, path: str, seal: tuple[int, int]) -> None:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != seal:
                raise BrokenImage(
                    "unreadable",
                    f"the shard {printable(path)} was changed after it was opened; mend: start again, so that it is "
                    "indexed anew",
                )
            self.fd = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


@dataclass(frozen=True)
class ShardStore:
    """The images of one split. ``starts`` (shards + 1,) are the rows at which shards begin; the rest is by row."""

    paths: list[str]
    titles: list[str]
    starts: list[int]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    files: OpenFiles = field(repr=False)

    @classmethod
    def of(cls, paths: list[str], titles: list[str], indexes: list[ShardIndex]) -> ShardStore:
        """Join the indexes of some shards."""
        lengths = np.cumsum([0, *(len(index.names) for index in indexes)])
        ends = [index.name_ends + before for index, before in zip(indexes, lengths, strict=False)]
        return cls(
            paths,
            titles,
            np.cumsum([0, *map(len, indexes)]).tolist(),
            np.concatenate([index.offsets for index in indexes]),
            np.concatenate([index.sizes for index in indexes]),
            np.concatenate([index.names for index in indexes]),
            np.concatenate(ends),
            OpenFiles(paths, [index.seal for index in indexes]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the shard that each row lies in, int64 (n,): what a window of the training order goes by."""
        return group_of(self.starts, rows)

    def name(self, row: int) -> str:
        begin = int(self.name_ends[row - 1]) if row else 0
        member = printable(os.fsdecode(self.names[begin : int(self.name_ends[row])].tobytes()))
        return f"{self.titles[bisect_right(self.starts, row) - 1]}:{member}"

    def path(self, row: int) -> None:
        return None

    def blob(self, row: int) -> bytes:
        shard, size = bisect_right(self.starts, row) - 1, int(self.sizes[row])
        if size > MAX_BYTES:
            raise BrokenImage(
                "too_many_bytes", f"expected an image of at most {MAX_BYTES >> 20} MiB, got {size >> 20} MiB"
            )
        data = self.files.read(shard, int(self.offsets[row]), size)
        if len(data) < size:
            raise BrokenImage("truncated", f"the shard ends {size - len(data)} bytes before the image does")
        return data

    def read(self, row: int) -> Tensor:
        return read_image(self.blob(row))


def is_shards(source: str) -> bool:
    """True for a tar file, a pattern that ends like one, or a folder of tar files.

    A folder with further sub-folders is one of class folders, beside which somebody left an archive.
    """
    if is_pattern(source) or os.path.isfile(source):
        return source.lower().endswith(ENDINGS)
    shards = find_files(source, ENDINGS)
    inside = {os.path.dirname(path) for paths in shards.values() for path in paths}
    return bool(shards) and not any(_has_folders(folder) for folder in inside)


def _has_folders(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def read_shards(source: str) -> Layout:
    """Read tar shards. Raises :class:`DataError` that names the shard, the member or the label that is wrong."""
    shards = find_files(source, ENDINGS)
    if "train" not in shards:
        raise DataError(f"expected a train split in {printable(source)}, got only {listed(sorted(shards))}")
    folder = _folder(source, shards)
    found = {split: [index_of(path) for path in paths] for split, paths in shards.items()}
    classes, labels = _labels(source, read_classes(folder), found)
    layout = Layout("shards", source, {}, classes)
    expected = _expected_counts(folder)
    for split, indexes in found.items():
        paths = shards[split]
        titles = [printable(os.path.relpath(path, folder)) for path in paths]
        if not any(map(len, indexes)):
            raise DataError(_nothing(source, split, indexes))
        layout.parts[split] = Part(ShardStore.of(paths, titles, indexes), labels[split])
        _account(layout, split, titles, indexes, expected)
    return layout


def _folder(source: str, shards: dict[str, list[str]]) -> str:
    """The folder that class names are looked for in, and that names of shards are relative to."""
    if os.path.isdir(source):
        return source
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for paths in shards.values() for path in paths])


def read_classes(folder: str) -> ClassMap | None:
    """The class names that stand beside shards, or None: ``classes.txt``, a name a line, or ``dataset_info.json``."""
    told: dict[str, ClassMap] = {}
    path = os.path.join(folder, CLASSES)
    if os.path.isfile(path):
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told[CLASSES] = ClassMap(tuple(map(printable, lines)), tuple(lines))
    names, ids = _names_in_info(_info(folder))
    if names:
        told[INFO] = ClassMap(tuple(printable(name) for name in names), tuple(ids or names))
    if len({found.names for found in told.values()}) > 1:
        raise DataError(
            f"expected the same class names in {CLASSES} and {INFO} of {printable(folder)}, got others. "
            "mend: delete one"
        )
    return told.get(INFO) or told.get(CLASSES)


def _info(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, INFO)
    if not os.path.isfile(path):
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected JSON in {printable(path)}, got: {error}. mend: repair or delete it") from None
    if isinstance(content, dict) and "features" not in content:  # the hub's: one entry for each configuration
        content = next(
            (value for value in content.values() if isinstance(value, dict) and "features" in value), content
        )
    return content if isinstance(content, dict) else {}


def _names_in_info(info: dict[str, Any]) -> tuple[list[str] | None, list[str] | None]:
    features = info.get("features")
    for feature in features.values() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list) and names:
            own = info.get("vitrail")
            ids = own.get("class_ids") if isinstance(own, dict) else None
            fits = isinstance(ids, list) and len(ids) == len(names) and all(isinstance(i, int | str) for i in ids)
            return [str(name) for name in names], ids if fits else None
    return None, None


def _expected_counts(folder: str) -> dict[str, int]:
    """How many images each shard was written with, by name, where its writer said so."""
    own = _info(folder).get("vitrail")
    counts = own.get("shards") if isinstance(own, dict) else None
    return {name: n for name, n in counts.items() if isinstance(n, int)} if isinstance(counts, dict) else {}


def _labels(
    source: str, classes: ClassMap | None, found: dict[str, list[ShardIndex]]
) -> tuple[ClassMap, dict[str, NDArray[np.int64]]]:
    """Give each text that stands as a label its class: by the names that were told, or by all labels there are."""
    if classes is None:
        classes = class_map(text for indexes in found.values() for index in indexes for text in index.label_ids)
        place = {str(source_id): i for i, source_id in enumerate(classes.ids)}
    else:
        # A whole number is a place in the list of names, even where names are numbers themselves.
        place = {str(name): i for i, name in enumerate(classes.ids)} | {str(i): i for i in range(len(classes))}
    labels = {}
    for split, indexes in found.items():
        columns = [np.empty(0, np.int64)]
        for index in indexes:
            wrong = [text for text in index.label_ids if text not in place]
            if wrong:
                raise DataError(
                    f"expected labels 0..{len(classes) - 1} or class names of {printable(source)}, got {listed(wrong)} "
                    f"in {split}. mend: correct {CLASSES} ({INFO}); a label of -1 means 'unlabelled': leave it out"
                )
            codes = np.asarray([place[text] for text in index.label_ids], dtype=np.int64)
            columns.append(codes[index.labels] if len(codes) else columns[0])
        labels[split] = np.concatenate(columns)
    return classes, labels


def _nothing(source: str, split: str, indexes: list[ShardIndex]) -> str:
    others = sum((Counter(index.others) for index in indexes), Counter())
    reasons = Counter(reason for index in indexes for _, reason in index.ignored)
    got = ", ".join(f"{n} x {word}" for word, n in [*others.most_common(3), *reasons.most_common(3)]) or "empty shards"
    return (
        f"expected images with labels (key.jpg and key.cls) in the {split} shards of {printable(source)}, got {got}. "
        "mend: name members KEY.FIELD; all behind the first dot is the field"
    )


def _account(
    layout: Layout, split: str, titles: list[str], indexes: list[ShardIndex], expected: dict[str, int]
) -> None:
    """Write down what is not used, what is damaged, and how many images that may have cost."""
    typical = int(np.median([len(index) for index in indexes]))
    lost = 0
    for title, index in zip(titles, indexes, strict=True):
        layout.ignored += [Ignored(f"{title}:{name}", reason) for name, reason in index.ignored]
        missing = expected.get(title, len(index)) - len(index)
        if not index.damage and missing <= 0:
            continue
        if index.damage:
            missing = max(1, missing if title in expected else typical - len(index))
        about = "" if title in expected else "about "
        where = "; ".join(f"{what} at byte {start:,}" for start, _, what in index.damage[:3]) or "images are missing"
        layout.notes.append(
            f"{title} is damaged: {where}. {about}{missing:,} images are lost, the other {len(index):,} are used. "
            "mend: fetch it again"
        )
        lost += missing
    if lost:
        layout.lost[split] = lost
    if others := sum((Counter(index.others) for index in indexes), Counter()):
        shown = ", ".join(f"{n:,} .{name}" for name, n in others.most_common(4))
        layout.notes.append(f"members beside the images of {split} that are not read: {shown}")
