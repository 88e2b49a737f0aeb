"""A CSV (or TSV) table: one row an image, with its path, its label (or labels) and perhaps its split.

Paths are relative to the table. Column names are found among the usual ones; case and spaces do not matter.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator

import numpy as np

from vitrail.errors import DataError

from .imageset import FileStore, printable
from .layout import SPLITS, Layout, Part, class_map, listed, split_word
from .multilabel import Labelled, read_cells, read_columns

PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file", "img",
    "img_path",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "target", "category", "labels", "y")
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "fold")


Row = tuple[int, list[str]]
"""A line's number and its cells."""


def read_table(source: str, labels: str = "auto") -> Layout:
    """Read a CSV or TSV. Raises :class:`DataError` naming the columns, or the first lines that are wrong.

    ``labels``: ``auto`` (seen from the cells), ``single`` or ``multi``; see :mod:`.multilabel`.
    """
    header, rows = _rows(source)
    path_at = _column(source, header, PATH_COLUMNS, "image paths")
    label_at = _column(source, header, LABEL_COLUMNS, "labels", needed=False)
    split_at = _column(source, header, SPLIT_COLUMNS, "splits", needed=False)
    found: dict[str, list[Row]] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"expected {len(header)} cells in line {line} of {printable(source)}, got {len(row)}. "
                "mend: quote cells that hold the separator"
            )
        found.setdefault(_split_in(source, line, row, split_at), []).append((line, row))
    if not found:
        raise DataError(f"expected rows below the header of {printable(source)}, got none")
    if "train" not in found:
        raise DataError(f"expected rows of the train split in {printable(source)}, got only {listed(sorted(found))}")
    found = {split: found[split] for split in SPLITS if split in found}
    if label_at < 0:
        others = [c for c in range(len(header)) if c not in (path_at, split_at)]
        cut = {split: [(line, [row[c] for c in others]) for line, row in part] for split, part in found.items()}
        known = read_columns(printable(source), [header[c] for c in others], cut, labels)
        if known is None:
            _column(source, header, LABEL_COLUMNS, "labels")  # says which names it would have
    else:
        known = _cells(source, found, path_at, label_at, labels)
    assert known is not None, "without labels there was an error"
    return _layout(source, {split: [row[path_at].strip() for _, row in part] for split, part in found.items()}, known)


def _cells(source: str, found: dict[str, list[Row]], path_at: int, label_at: int, form: str) -> Labelled:
    """Read the label column: one class a cell, or several."""
    cells = {split: [(line, row[label_at].strip()) for line, row in part] for split, part in found.items()}
    known = read_cells(printable(source), cells, form)
    several = isinstance(known, Labelled)
    for line, row in (row for part in found.values() for row in part):
        path, label = row[path_at].strip(), row[label_at].strip()
        if not path or not (label or several):
            raise DataError(
                f"expected a path and a label in line {line} of {printable(source)}, got {path!r} and {label!r}. "
                "mend: fill the cell or delete the line"
                + (", or, if an image may have no class, --set data.labels=multi" if path else "")
            )
    if isinstance(known, Labelled):
        return known
    classes = class_map(label for part in cells.values() for _, label in part)
    index = {split: [classes.index(label) for _, label in part] for split, part in cells.items()}
    return Labelled(classes, {split: np.array(row, dtype=np.int64) for split, row in index.items()}, known)


def _rows(source: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    # surrogateescape keeps file names that are not UTF-8; utf-8-sig drops the mark that spreadsheets write.
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        text = file.read().splitlines(keepends=True)
    if not text:
        raise DataError(f"expected a table with a header line, got an empty file {printable(source)}")
    separator = max(",;\t", key=text[0].count)
    reader = csv.reader(text, delimiter=separator)
    header = [cell.strip() for cell in next(reader)]
    return header, ((reader.line_num, row) for row in reader if row)


def _column(source: str, header: list[str], known: tuple[str, ...], what: str, needed: bool = True) -> int:
    names = [name.casefold().replace(" ", "_") for name in header]
    for name in known:
        if name in names:
            return names.index(name)
    if not needed:
        return -1
    raise DataError(
        f"expected a column of {what} in {printable(source)} (one of: {', '.join(known)}), "
        f"got the columns {listed(header, 12)}. mend: rename the column in the first line; "
        "parallel text needs task=translate"
    )


def _split_in(source: str, line: int, row: list[str], split_at: int) -> str:
    if split_at < 0:
        return "train"
    split = split_word(row[split_at])
    if split is None:
        raise DataError(
            f"expected train, val or test as split in line {line} of {printable(source)}, got {row[split_at]!r}"
        )
    return split


def _layout(source: str, found: dict[str, list[str]], known: Labelled) -> Layout:
    folder = os.path.dirname(os.path.abspath(source))
    paths = [path for part in found.values() for path in part]
    missing = [path for path in paths if not os.path.exists(os.path.join(folder, path))]
    if len(missing) == len(paths):
        raise DataError(
            f"expected the {len(paths)} files of {printable(source)}, got none of them (first: {paths[0]!r}); "
            f"paths are relative to the table's folder, {printable(folder)}. mend: correct the paths or move the table"
        )
    parts = {split: Part(FileStore(folder, part), known.labels[split]) for split, part in found.items()}
    layout = Layout("table", source, parts, known.classes, notes=list(known.notes))
    if missing:
        layout.notes.append(
            f"{len(missing)} of {len(paths)} files that the table names are missing (e.g. {printable(missing[0])!r})"
        )
    return layout
