"""Packing any data set into tar shards: few large files that are read by position instead of millions of small ones.

Source: webdataset's layout, one ``key.cls`` (the class's number) and one image a sample; ``dataset_info.json`` as the
`datasets` library writes it holds the class names. The same source gives the same bytes: no dates, no owners, and the
training images in one drawn order, so that each shard is a fair sample (folders are sorted by class).
Shapes: an image is uint8 (3, H, W).
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.errors import DataError, UsageError, VitrailError

from . import rng
from .decode import BrokenImage, read_image, sniff
from .imageset import ArrayStore, Store, printable, too_many_broken
from .layout import SPLITS, Layout, Part
from .resample import resize
from .scan import Progress
from .shardindex import index_of
from .shards import INFO
from .sources import read_layout
from .tarball import BLOCK
from .workers import Workers, in_order, require_workers

QUALITY = 92  # of JPEGs that were made smaller; 4:4:4, since small pictures of small things live off their colours
_EXTENSION = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}
_END = bytes(2 * BLOCK)


@dataclass
class Packed:
    """What was written: images and bytes by shard, and what could not be read (name, sentence)."""

    folder: Path
    images: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    size: int = 0
    shrunk: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 1 << 30,
    short_side: int | None = None,
    max_broken: float = 0.01,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Write the images of ``source`` (anything ``open_dataset`` takes) as shards in the new folder ``out``.

    Splits are those of the source; none is made up. A shard holds at most ``shard_bytes`` (or one image). With
    ``short_side`` (pixels) larger images are made smaller: JPEGs stay JPEGs, all others become PNGs; the rest is copied
    byte for byte. Unreadable images are left out and listed, :class:`DataError` if their share is above ``max_broken``.
    ``out`` appears when it is whole; :class:`UsageError` if it is there already.
    """
    if shard_bytes < 1 or (short_side is not None and short_side < 1):
        raise UsageError(f"expected a size and a short side of at least 1, got {shard_bytes} and {short_side}")
    target = Path(out).expanduser()
    partial = target.with_name(target.name + ".partial")
    layout = read_layout(source)
    if layout.multi_label:
        raise UsageError(
            f"expected one label an image to write shards of, got several in {printable(layout.root)}; "
            "mend: keep them as parquet, which has lists of labels"
        )
    packed = Packed(target, notes=list(layout.notes))
    _require_new(target, partial)
    try:
        try:
            for split in (split for split in SPLITS if split in layout.parts):
                _pack_split(
                    layout, split, partial, packed, (shard_bytes, short_side, require_workers(workers)), progress
                )
            _require_few_broken(packed, max_broken)
            _finish(layout, partial, packed, short_side)
            partial.rename(target)
        except OSError as error:
            said = error.strerror or error
            raise VitrailError(f"the shards cannot be written to {target}: {said}; mend: free space there") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return packed


def _require_new(target: Path, partial: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        raise UsageError(f"expected a new folder for the shards, got {target}, which exists; mend: name another one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except FileExistsError:
        raise UsageError(
            f"{partial} exists: shards are being written there, or were when something stopped it; mend: remove it"
        ) from None
    except OSError as error:
        raise VitrailError(f"the folder {target} cannot be made: {error.strerror}; mend: name another one") from None


def _pack_split(
    layout: Layout,
    split: str,
    folder: Path,
    packed: Packed,
    settings: tuple[int, int | None, int],
    progress: Progress | None,
) -> None:
    shard_bytes, short_side, workers = settings
    part = layout.parts[split]
    n = len(part.labels)
    order = rng.permutation(0, 0, n) if split == "train" else np.arange(n)
    before = sum(packed.images.values()) + len(packed.broken)
    total = sum(len(other.labels) for other in layout.parts.values())
    writer = _Writer(folder, split, shard_bytes)
    with Workers(workers) as pool:
        made = in_order(pool, order.tolist(), lambda row: _sample(part, row, short_side))
        for number, (name, sample) in enumerate(made):
            if isinstance(sample, BrokenImage):
                packed.broken.append((name, sample.message))
            else:
                label, extension, data, shrunk = sample
                writer.add(f"{number:08d}_{_slug(name)}", label, extension, data)
                packed.shrunk += shrunk
            if progress and (number % 64 == 63 or number == n - 1):
                progress(before + number + 1, total)
    writer.close()
    packed.shards |= writer.counts
    packed.images[split] = sum(writer.counts.values())
    packed.size += writer.total


def _sample(part: Part, row: int, short_side: int | None) -> tuple[str, tuple[int, str, bytes, bool] | BrokenImage]:
    """Name of an image, and its label, extension, bytes, and whether it was made smaller; or why it cannot be read."""
    name = part.store.name(row)
    try:
        return name, (int(part.labels[row]), *_encoded(part.store, row, short_side))
    except BrokenImage as error:
        return name, error


def _encoded(store: Store, row: int, short_side: int | None) -> tuple[str, bytes, bool]:
    pixels = store.read(row) if isinstance(store, ArrayStore) else None
    data = b"" if pixels is not None else store.blob(row)
    kind = "PNG" if pixels is not None else sniff(data[:16])
    if kind is None:
        read_image(data)  # says what it is instead
        raise BrokenImage("not_an_image", "expected an image, got a format that Vitrail does not name")
    if short_side is not None:
        pixels = read_image(data) if pixels is None else pixels
        if min(pixels.shape[1:]) > short_side:
            scale = short_side / min(pixels.shape[1:])
            height, width = (max(1, round(side * scale)) for side in pixels.shape[1:])
            kind = "JPEG" if kind == "JPEG" else "PNG"
            return _EXTENSION[kind], _encode(resize(pixels, (height, width), "bicubic"), kind), True
    return _EXTENSION[kind], data or _encode(pixels, kind), False


def _encode(pixels: Any, kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    how = {"quality": QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, kind, **how)
    return buffer.getvalue()


def _slug(name: str) -> str:
    """What an image was called, in letters that are safe in any archive: for people who look for it."""
    stem = os.path.splitext(name.rpartition(":")[2])[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[-60:]


class _Writer:
    """Writes the shards of one split, one open at a time; a shard is on the disk before the next one begins."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self.folder, self.split, self.limit = folder, split, shard_bytes
        self.counts: dict[str, int] = {}
        self.total = self._written = 0
        self._file: io.BufferedWriter | None = None

    def add(self, key: str, label: int, extension: str, data: bytes) -> None:
        """Append one sample."""
        record = _member(f"{key}.cls", b"%d" % label) + _member(f"{key}.{extension}", data)
        if self._file is None or self._written + len(record) + len(_END) > self.limit:
            self.close()
            self.name = f"{self.split}-{len(self.counts):06d}.tar"
            self._file, self._written = (self.folder / self.name).open("xb"), 0
            self.counts[self.name] = 0
        self._file.write(record)
        self._written += len(record)
        self.counts[self.name] += 1

    def close(self) -> None:
        """Finish the open shard and index it."""
        if self._file is None:
            return
        with self._file as file:
            file.write(_END)
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        self.total += self._written + len(_END)
        made = index_of(str(self.folder / self.name))
        if len(made) != self.counts[self.name] or made.damage:
            raise VitrailError(f"{self.name} reads back as {len(made)} images, {self.counts[self.name]} were written")


def _member(name: str, data: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _require_few_broken(packed: Packed, max_broken: float) -> None:
    count, total = len(packed.broken), sum(packed.images.values()) + len(packed.broken)
    if count > too_many_broken(max_broken, total) or count == total:
        lines = "\n".join(f"  {name}: {message}" for name, message in packed.broken[:20])
        raise DataError(
            f"expected at most {100 * max_broken:g} % unreadable images, got {count:,} of {total:,}:\n{lines}\n"
            "  mend: `vitrail data check` lists them all; repair or remove them"
        )


def _finish(layout: Layout, folder: Path, packed: Packed, short_side: int | None) -> None:
    """Write the class names and what each shard holds, so that a shard that is cut off can be seen to be."""
    classes = layout.classes
    info = {
        "features": {"jpg": {"_type": "Image"}, "cls": {"names": list(classes.names), "_type": "ClassLabel"}},
        "splits": {split: {"name": split, "num_examples": n} for split, n in packed.images.items()},
        "vitrail": {"class_ids": list(classes.ids), "short_side": short_side, "shards": packed.shards},
    }
    with open(folder / INFO, "x", encoding="ascii") as file:  # ASCII: names that are no UTF-8 come back as they were
        json.dump(info, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def parse_bytes(text: str) -> int:
    """Read a size such as ``500M``, ``1G`` or ``1.5GiB`` (powers of 1024). Raises :class:`UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise UsageError(f"expected a size such as 500M or 1G, got {printable(text)!r}")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))
