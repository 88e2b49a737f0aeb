"""Several labels an image, as tables have them: cells with separators, columns of 0 and 1, lists in parquet.

Which of them it is can be seen from the labels themselves; what was seen is said in a sentence. An empty cell is an
image of no class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.classes import ClassMap
from vitrail.errors import DataError

from .labels import Labels
from .layout import class_map, listed

SEPARATORS = ("|", ";")
Cells = Mapping[str, Sequence[tuple[int, str]]]
"""Split -> (line or row, text of the label cell) of each image."""
_ONE, _ZERO = {"1", "1.0"}, {"0", "0.0"}


@dataclass(frozen=True)
class Labelled:
    """Classes, the labels of each split, and sentences on how they were read."""

    classes: ClassMap
    labels: dict[str, Labels]
    notes: list[str]


def read_cells(where: str, cells: Cells, form: str) -> Labelled | list[str]:
    """Read label cells that may name several classes each.

    Returns what was found, or, where each cell is one class, sentences on why it was taken so. ``form`` is ``auto``,
    ``single`` or ``multi``; told ``multi``, a comma separates too where nothing else does.
    Raises :class:`DataError`: two separators, or no label in any cell.
    """
    if form == "single":
        return []
    texts = {text: line for rows in cells.values() for line, text in reversed(rows)}
    found = [s for s in SEPARATORS if any(s in text for text in texts)]
    if form == "multi" and not found:
        found = [s for s in (",",) if any(s in text for text in texts)]
    if form == "auto":
        if not found:
            return []
        if not _comes_again(texts, found):
            return [
                f"label cells hold {found[0]!r}, but no part of one is in another, so each cell is one class "
                "(data.labels=multi takes them apart)"
            ]
    if len(found) > 1:
        lines = " and ".join(f"{s!r} in line {next(n for t, n in texts.items() if s in t)}" for s in found)
        raise DataError(
            f"expected one separator between the labels of {where}, got {lines}. mend: use the same one throughout"
        )
    separator = found[0] if found else None
    sets = {split: [(line, _parts(text, separator)) for line, text in rows] for split, rows in cells.items()}
    how = f"separated by {separator!r}" if separator else "one or none each, as data.labels=multi asks"
    return _from_names(where, sets, how)


def _comes_again(texts: Mapping[str, int], separators: list[str]) -> bool:
    """Whether some part of a cell is found in another, different cell too: labels are shared, whole names are not."""
    owners = defaultdict(set)
    for text in texts:
        for part in _parts(text, *separators):
            owners[part].add(text)
    return any(len(cells) > 1 for cells in owners.values())


def _parts(text: str, *separators: str | None) -> list[str]:
    """Return the names in a cell, trimmed, in their order; empty ones (a separator at the end) are left out."""
    for other in separators[1:]:
        text = text.replace(str(other), str(separators[0]))
    return [p for part in text.split(separators[0] or "\0") if (p := part.strip())]


def read_lists(where: str, names: list[str] | None, columns: Mapping[str, Sequence[Any]]) -> Labelled:
    """Read a parquet column whose values are lists of names or numbers (one value stands for a list of one).

    ``names``: those of a ClassLabel, whose index the numbers are. Raises :class:`DataError` naming the row.
    """
    sets: dict[str, list[tuple[int, list[str]]]] = {}
    for split, values in columns.items():
        rows = sets[split] = []
        for i, value in enumerate(values):
            items = [] if value is None else value if isinstance(value, list) else [value]
            for item in items:
                usual = isinstance(item, (int, str)) and not isinstance(item, bool)
                if not usual or (names is not None and not (isinstance(item, int) and 0 <= item < len(names))):
                    known = "whole numbers or texts" if names is None else f"numbers 0..{len(names) - 1} (class names)"
                    raise DataError(
                        f"expected lists of {known} as labels of {where}, got {value!r} in row {i} of {split}"
                    )
            rows.append((i, [str(item) for item in items]))
    return _from_names(where, sets, "lists", names)


def _from_names(
    where: str, sets: Mapping[str, list[tuple[int, list[str]]]], how: str, names: list[str] | None = None
) -> Labelled:
    """Turn lists of class names (or of indices into ``names``) into rows of yes and no."""
    every = [found for rows in sets.values() for _, found in rows]
    if not any(every):
        raise DataError(
            f"expected labels in {where}, got none in any of {len(every)} rows. mend: fill the label column"
        )
    classes = class_map(name for found in every for name in found) if names is None else ClassMap.of(names)
    index = {str(source_id): c for c, source_id in enumerate(classes.ids if names is None else range(len(names)))}
    twice = [line for rows in sets.values() for line, found in rows if len(set(found)) < len(found)]
    labels: dict[str, Labels] = {}
    for split, rows in sets.items():
        matrix = labels[split] = np.zeros((len(rows), len(classes)), dtype=np.bool_)
        for row, (_, found) in enumerate(rows):
            matrix[row, [index[name] for name in found]] = True
    notes = [_said(labels, how)]
    if twice:
        notes.append(f"{len(twice)} images name a label twice (the first: line {min(twice)}); it counts once")
    return Labelled(classes, labels, notes)


def _said(labels: Mapping[str, Labels], how: str) -> str:
    """The sentence on what was detected."""
    each = np.concatenate([matrix.sum(1) for matrix in labels.values()])
    none = f", {int((each == 0).sum())} images have none" if (each == 0).any() else ""
    return f"several labels an image ({how}): {each.mean():.2g} on average, {each.max()} at most{none}"


def read_columns(
    where: str, header: Sequence[str], rows: Mapping[str, Sequence[tuple[int, list[str]]]], form: str
) -> Labelled | None:
    """Read columns of 0 and 1, one a class, from all the cells of each row that are neither path nor split.

    Returns None if there are no two such columns. Where every row has exactly one 1, that is one label an image,
    unless ``form`` is ``multi``. Raises :class:`DataError`: a column that is nearly of 0 and 1; several labels where
    ``single`` was asked for.
    """
    flat = [(line, cells) for part in rows.values() for line, cells in part]
    chosen = [c for c in range(len(header)) if _is_flag(where, header[c], [(n, cells[c].strip()) for n, cells in flat])]
    if len(chosen) < 2:
        return None
    repeated = sorted({header[c] for c in chosen if header.count(header[c]) > 1})
    if repeated:
        raise DataError(f"expected each class column of {where} once, got these more than once: {listed(repeated)}")
    notes = []
    if left := [header[c] for c in range(len(header)) if c not in chosen]:
        notes.append(f"columns that do not hold 0 and 1 are left out: {listed(left)}")
    classes = ClassMap.of([header[c] for c in chosen])
    labels: dict[str, Labels] = {
        split: np.array([[cells[c].strip() in _ONE for c in chosen] for _, cells in part], dtype=np.bool_)
        for split, part in rows.items()
    }
    each = np.concatenate([matrix.sum(1) for matrix in labels.values()])
    if form != "multi" and (each == 1).all():
        one = f"one label an image: each row has a single 1 in its {len(chosen)} columns of 0 and 1"
        return Labelled(classes, {s: matrix.argmax(1) for s, matrix in labels.items()}, [*notes, one])
    if form == "single":
        line, count = next((n, int(k)) for (n, _), k in zip(flat, each, strict=True) if k != 1)
        raise DataError(
            f"expected one label an image in {where} (data.labels=single), got {count} in line {line}. "
            "mend: leave data.labels out"
        )
    if not each.any():
        raise DataError(f"expected labels in {where}, got no 1 in any of {len(each)} rows. mend: fill the columns")
    return Labelled(classes, labels, [*notes, _said(labels, f"{len(chosen)} columns of 0 and 1")])


def _is_flag(where: str, name: str, cells: Sequence[tuple[int, str]]) -> bool:
    """Whether a column holds 0 and 1 only; mostly so is an error, because a class must not get lost for a typo."""
    strange = [(line, text) for line, text in cells if text not in _ONE | _ZERO]
    if strange and 2 * len(strange) < len(cells):
        line, text = strange[0]
        raise DataError(
            f"expected 0 or 1 in every line of column {name!r} of {where}, got {text!r} in line {line} "
            f"({len(strange)} of {len(cells)} lines are neither). mend: correct them, or take the column out"
        )
    return not strange
