"""The door to data: one name or path in, train/val/test sets out, with a sentence for whatever was decided.

A source is a folder of class folders, a CSV, parquet in the Hugging Face layout, tar shards in webdataset's layout, or
a built-in name. It is read into a :class:`~vitrail.data.layout.Layout`, judged here, and split where a split is
missing.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError, require_known

from .builtin import BUILTIN, read_builtin
from .folder import read_folder
from .imageset import ImageSet, printable, too_many_broken
from .labels import FORMS
from .layout import Layout, listed, twins
from .paralleltext import BUILTIN as TEXTS
from .parquet import is_parquet, read_parquet
from .patterns import is_pattern
from .shards import is_shards, read_shards
from .splitting import stratified_split
from .tabular import read_table


@dataclass
class Splits:
    """A data set ready to use. ``notes`` are sentences to show to the user."""

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    classes: ClassMap
    notes: list[str] = field(default_factory=list)
    pseudo: Any | None = None
    """How the images without labels came into train (``training.selftrain``), None where there are none."""


def open_dataset(
    source: str | os.PathLike[str],
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    train_fraction: float = 1.0,
    seed: int = 0,
    labels: str = "auto",
    allow_empty: bool = False,
    outside_links: bool = False,
    max_broken: float = 0.01,
    sequential: bool = False,
) -> Splits:
    """Open a data set: a folder, a CSV or TSV, parquet, tar shards, or a built-in name (``digits``).

    A missing val part is cut off train (``val_fraction``, stratified, by ``seed``); a ``test`` part stays untouched,
    and one is cut off only if ``test_fraction`` asks for it. ``train_fraction`` keeps that share of what is left of
    train (stratified; of one seed and with one label an image, a smaller share lies within a larger). ``labels``:
    ``auto``, ``single`` or ``multi`` an image; see :func:`read_layout`. ``allow_empty`` accepts classes without
    images; ``outside_links`` follows links that leave the folder; ``max_broken`` is the share of a split that damaged
    shards may have cost; ``sequential`` says that reading will go nearly in order, so that parquet larger than memory
    need not be unpacked. Nothing is decoded here.

    Raises :class:`DataError`: missing path, nothing to learn from, fewer than two classes, an empty class, a class of
    val or test that train does not have, too much lost.
    """
    layout = read_layout(source, labels=labels, outside_links=outside_links, sequential=sequential)
    _require_whole(layout, max_broken)
    _require_usable(layout, allow_empty)
    notes = [*layout.notes, *_remarks(layout)]
    sets = {
        split: ImageSet(part.store, np.arange(len(part.store), dtype=np.int64), part.labels, layout.classes)
        for split, part in layout.parts.items()
    }
    if test_fraction and "test" in sets:
        raise UsageError(
            f"expected test_fraction=0, because {printable(layout.root)} has its own test part, got {test_fraction}"
        )
    if test_fraction:
        _cut(sets, "test", test_fraction, seed + 1, notes)
    if "val" not in sets:
        _cut(sets, "val", val_fraction, seed, notes)
    if train_fraction < 1:
        _keep(sets, train_fraction, seed, notes)
    return Splits(sets["train"], sets["val"], sets.get("test"), layout.classes, notes)


def read_layout(
    source: str | os.PathLike[str], *, labels: str = "auto", outside_links: bool = False, sequential: bool = False
) -> Layout:
    """Read any source without judging it (options: :func:`open_dataset`). Raises :class:`DataError` for nothing.

    ``labels``: whether an image has one label or several is seen from a table or parquet (``auto``); ``single`` and
    ``multi`` insist. Folders, shards and built-in sets have one label an image.
    """
    require_known([labels], FORMS, "form of labels")
    path = os.path.expanduser(os.fspath(source))
    known = os.path.exists(path) or is_pattern(path)
    if not known and path not in BUILTIN:
        raise _missing(path)
    if known and is_parquet(path):
        return read_parquet(path, sequential, labels)
    if os.path.isfile(path) and path.lower().endswith((".csv", ".tsv")):
        return read_table(path, labels)
    if labels == "multi":
        raise UsageError(
            f"expected a table or parquet for data.labels=multi, got {printable(path)}, which gives each image one "
            "label. mend: list the images in a CSV with cells like cat;dog"
        )
    if not known:
        return read_builtin(path)
    if is_shards(path):
        return read_shards(path)
    if os.path.isdir(path):
        return read_folder(path, outside_links=outside_links)
    raise DataError(
        f"expected a folder, a .csv, .tsv, .parquet or .tar file, or a pattern of .parquet or .tar files, "
        f"got {printable(path)}. mend: give the folder that holds one sub-folder a class"
    )


def _missing(path: str) -> DataError:
    """The error for a path that is not there, with the nearest thing that is."""
    folder, name = os.path.split(os.path.abspath(path))
    above = folder
    while not os.path.isdir(above):
        above, name = os.path.split(above)
    # A built-in name has no separator in it; the nearest of what could have been meant wins.
    built_in = (*BUILTIN, *TEXTS) if os.sep not in path else ()
    choices = [*built_in, *(entry for entry in os.listdir(above) if not entry.startswith("."))]
    hint = ""
    for near in difflib.get_close_matches(name, choices, n=1, cutoff=0.5):
        shown = f"the built-in {near!r}" if near in built_in else repr(printable(os.path.join(above, near)))
        hint = f" Did you mean {shown}?"
    return DataError(
        f"expected a folder, a table, parquet or a built-in name ({', '.join((*BUILTIN, *TEXTS))}), got "
        f"{printable(path)!r}, which does not exist.{hint}"
    )


def _require_whole(layout: Layout, max_broken: float) -> None:
    for split, lost in layout.lost.items():
        total = lost + len(layout.parts[split].labels)
        if lost > too_many_broken(max_broken, total):
            damaged = "\n".join(f"  {note}" for note in layout.notes if "is damaged" in note)
            raise DataError(
                f"expected at most {100 * max_broken:g} % of {split} to be lost, got {lost:,} of {total:,} images:\n"
                f"{damaged}\n  mend: fetch the shards again, or raise data.max_broken"
            )


def _require_usable(layout: Layout, allow_empty: bool) -> None:
    root = printable(layout.root)
    if len(layout.classes) < 2:
        raise DataError(
            f"expected at least two classes in {root}, got one: {layout.classes.names[0]!r}.{_deeper(layout)} "
            "mend: add a folder (or label) for what is not that class"
        )
    for split, names in layout.untrained_classes().items():
        raise DataError(
            f"expected every class of {split} in train too, got only in {split}: {listed(names)} ({root}). "
            f"mend: add training images of them, or take them out of {split}"
        )
    empty = layout.empty_classes()
    if empty and not allow_empty:
        raise DataError(
            f"expected an image in every class of {root}, got none in: {listed(empty)}. "
            "mend: add images, delete the empty folder, or pass allow_empty=True"
        )


def _deeper(layout: Layout) -> str:
    """A hint for an archive unpacked one level too deep."""
    inner = os.path.join(layout.root, str(layout.classes.ids[0]))
    if layout.kind != "folder" or not os.path.isdir(inner):
        return ""
    folders = [entry for entry in os.scandir(inner) if entry.is_dir()]
    return f" Did you mean {printable(inner)!r}?" if len(folders) > 1 else ""


def _remarks(layout: Layout) -> list[str]:
    notes = []
    if layout.ignored:
        reasons = Counter(entry.reason for entry in layout.ignored).most_common()
        notes.append(
            f"{len(layout.ignored)} files are not used: " + ", ".join(f"{n} {reason}" for reason, n in reasons)
        )
    notes += [
        f"class names that differ only by case, spaces or Unicode form: {listed(group)}; are they one class?"
        for group in twins([str(i) for i in layout.classes.ids])
    ]
    return notes


def _cut(sets: dict[str, ImageSet], split: str, fraction: float, seed: int, notes: list[str]) -> None:
    """Move a stratified share of train to a new split, and say so."""
    train = sets["train"]
    kept, held = stratified_split(train.labels, fraction, seed=seed)
    if not len(held):
        raise DataError(
            f"expected enough images to cut a {split} part off train, got {len(train)} images of {len(train.classes)} "
            f"classes. mend: add images (two or more a class), or make a {split} folder"
        )
    sets["train"], sets[split] = train.subset(kept), train.subset(held)
    word = "validation" if split == "val" else split
    notes.append(
        f"no {word} split found: {100 * len(held) / len(train):.3g} % of train ({len(held)} images, stratified, "
        f"seed {seed}) held out"
    )
    alone = [train.classes.names[c] for c in np.flatnonzero(train.counts() == 1)]
    if alone:
        notes.append(f"classes with one training image, and so none in {split}: {listed(alone)}")


def _keep(sets: dict[str, ImageSet], fraction: float, seed: int, notes: list[str]) -> None:
    """Keep a stratified share of train, and say so."""
    train = sets["train"]
    _, kept = stratified_split(train.labels, fraction, seed=seed + 2)
    sets["train"] = train.subset(kept)
    notes.append(f"{len(kept)} of {len(train)} training images used (train_fraction {fraction:g})")
