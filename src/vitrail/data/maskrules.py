"""From the values of masks to classes: names, what is ignored, and the table of it all that is shown before training.

K classes; a value is a grey level, an entry of a palette, or a colour as one number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError

from .imageset import printable
from .layout import listed
from .maskscan import Values

IGNORED = 255
"""What a pixel without a class holds in the masks that training sees."""
MOST = 254
NAME_FILES = ("classes.txt", "classes.json", "labels.txt", "class_dict.csv", "classes.csv", "label_colors.txt")
Names = Mapping[int, str]


@dataclass(frozen=True)
class MaskRules:
    """Which value is which class.

    Attributes:
        classes: names in index order; their ids are the values.
        values: of the K classes, in the same order.
        coloured: whether values are colours.
    """

    classes: ClassMap
    values: tuple[int, ...]
    coloured: bool

    def apply(self, values: NDArray[np.int32]) -> Tensor:
        """Values (H, W) -> class indices uint8 (H, W), :data:`IGNORED` where there is none."""
        if not self.coloured:
            return torch.from_numpy(self._table[values])
        order = np.argsort(self.values)
        known = np.asarray(self.values)[order]
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        return torch.from_numpy(np.where(known[place] == values, order[place], IGNORED).astype(np.uint8))

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        table = np.full(1 << 16, IGNORED, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values), dtype=np.uint8)
        return table


def settle_rules(
    found: Values, names: Names | None, ignore: Sequence[int] | None = None, *, reduce_zero_label: bool = False
) -> tuple[MaskRules, list[str]]:
    """Decide what every value means; return the rules and lines for people, the table last.

    Args:
        found: what the masks hold.
        names: value -> name; None: classes are the values that occur.
        ignore: values that are no class; None: 255, where it occurs without a name, unless the masks hold 0 and 255
            alone.
        reduce_zero_label: 0 is ignored, and names without values of their own begin at 1 (ADE20K).

    Raises:
        DataError: values that are neither named nor ignored, with the first file of each; too many classes, or one.
        UsageError: options without effect.
    """
    total, lines = found.total(), list[str]()
    binary = names is None and ignore is None and not reduce_zero_label and total.keys() == {0, 255}
    if ignore is None:
        usual = not (binary or found.coloured or (names is not None and IGNORED in names))
        ignored = {IGNORED} & total.keys() if usual else set()
    else:
        ignored = set(ignore)
    if reduce_zero_label:
        if found.coloured:
            raise UsageError("reduce_zero_label has no effect on coloured masks; mend: leave the colour out")
        ignored |= {0}
        if names is not None and 0 in names:
            names = {value + 1: name for value, name in names.items()}
            lines.append("value 0 is ignored, the first name is value 1")
    if binary:
        names = {0: "background", 255: "object"}
        lines.append("the masks hold 0 and 255 only: two classes, background and object")
    if names is None:
        names = {v: _value(v, found.coloured) for v in total if v not in ignored}
    strangers = [v for v in total if v not in names and v not in ignored]
    if strangers:
        raise _unknown(strangers, found, names)
    kept = {v: name for v, name in names.items() if v not in ignored}
    if not 2 <= len(kept) <= MOST:
        raise DataError(_wrong_count(kept, found))
    classes = ClassMap(tuple(kept.values()), tuple(_value(v, True) if found.coloured else v for v in kept))
    rules = MaskRules(classes, tuple(kept), found.coloured)
    return rules, [*lines, *table_of(rules, found)]


def _unknown(strangers: Sequence[int], found: Values, names: Names) -> DataError:
    total = found.total()
    shown = [f"  {_value(v, found.coloured)}: {total[v]:,} pixels, first in {found.first[v]}" for v in strangers[:10]]
    if len(strangers) > 10:
        shown.append(f"  and {len(strangers) - 10} more values")
    hint = "name them in data.classes, or leave them out by data.ignore"
    if strangers == [len(names)] and list(names) == list(range(len(names))):
        hint = (
            f"data.ignore: [{len(names)}] if this value is no class, or data.reduce_zero_label: true if 0 is none and"
            " the first name is value 1"
        )
    if found.coloured and max(names) < 1 << 16:
        hint = "give the colours of the classes, as name: [red, green, blue]"
    elif not found.coloured and max(names) >= 1 << 16:
        hint = "the masks hold numbers and no colours: give the classes by number, or as a list of names"
    return DataError(
        f"{len(strangers)} values in the masks are neither one of the {len(names)} named classes nor ignored:\n"
        + "\n".join(shown)
        + f"\n  mend: {hint}"
    )


def _wrong_count(kept: Names, found: Values) -> str:
    if len(kept) < 2:
        return f"expected masks with at least two classes, got {listed(list(kept.values())) or 'none'}"
    what = "colours" if found.coloured else "values"
    why = "edges drawn with smoothing make new ones; " if found.coloured else ""
    return f"expected masks of at most {MOST} classes, got {len(kept)} {what}; {why}mend: name the classes"


def table_of(rules: MaskRules, found: Values) -> list[str]:
    """Return a line for each value: its class, its share of the pixels of each split, and what is ignored."""
    index = dict(zip(rules.values, rules.classes.names, strict=True))
    wide = max([len(name) for name in index.values()] + [9])
    splits = [split for split in found.counts if found.counts[split]]
    lines = ["  ".join([f"{'value':>8}", f"{'class':<{wide}}", *(f"{split:>8}" for split in splits)])]
    for value in sorted({*index, *found.total()}):
        shares = []
        for split in splits:
            pixels = sum(found.counts[split].values())
            shares.append(f"{100 * found.counts[split].get(value, 0) / pixels:6.2f} %")
        name = index.get(value, "(ignored)")
        lines.append("  ".join([f"{_value(value, rules.coloured):>8}", f"{name:<{wide}}", *shares]))
    return ["what the masks hold, and what becomes of it:", *lines]


def _value(value: int, coloured: bool) -> str:
    return f"#{value:06x}" if coloured else str(value)


def read_names(root: Path, given: Any = None) -> dict[int, str] | None:
    """Return value -> name: of ``given``, else of a file in the folder (:data:`NAME_FILES`), else None.

    ``given`` is a list of names (values count from 0), or a mapping of names to values or colours. A text file has a
    name a line, perhaps after its value or before its colour (``Sky 128 128 128``). Raises :class:`DataError` for a
    name or a value that stands twice.
    """
    if given is not None:
        return _numbered(given, "data.classes")
    for name in NAME_FILES:
        path = root / name
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8-sig")
                return _numbered(json.loads(text) if path.suffix == ".json" else _of_lines(text), printable(str(path)))
            except (ValueError, OSError) as error:
                raise DataError(f"{printable(str(path))} cannot be read: {error}") from None
    return None


def _of_lines(text: str) -> list[Any] | dict[str, Any]:
    found: list[tuple[str, Any]] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        colour = re.fullmatch(r"\s*(.+?)[\s,;:]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})\s*", line)
        valued = re.fullmatch(r"\s*(\d{1,5})[\s,;:=]+(.+?)\s*", line)
        if colour:
            found.append((colour[1], [int(colour[i]) for i in (2, 3, 4)]))
        elif valued:
            found.append((valued[2], int(valued[1])))
        elif not re.fullmatch(r"\s*name\s*,.*", line):  # the head of a table
            found.append((line.strip(), None))
    if all(value is None for _, value in found):
        return [name for name, _ in found]
    return dict(found)


def _numbered(given: Any, where: str) -> dict[int, str]:
    if isinstance(given, Mapping):
        pairs = [_pair(key, value, where) for key, value in given.items()]
    else:
        pairs = [(i, str(name)) for i, name in enumerate(given)]
    names = dict(pairs)
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if len(names) != len(pairs) or twice:
        raise DataError(f"expected each value and each name once in {where}, got {twice[:1] or 'a value'} again")
    if len(names) < 2:
        raise DataError(f"expected the names of at least two classes in {where}, got {len(names)}")
    return names


def _pair(key: Any, value: Any, where: str) -> tuple[int, str]:
    """Return (value, name) of an entry: ``name: value``, ``name: [r, g, b]``, ``name: "#rrggbb"`` or ``"3": name``."""
    if isinstance(value, list | tuple) and len(value) == 3:
        red, green, blue = (int(v) for v in value)
        return red << 16 | green << 8 | blue, str(key)
    if isinstance(value, int):
        return value, str(key)
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return int(value[1:], 16), str(key)
    if re.fullmatch(r"\d{1,5}", str(key)) and isinstance(value, str):
        return int(key), value
    raise DataError(
        f"expected a class as name: value, name: [r, g, b] or value: name in {where}, got {key!r}: {value!r}"
    )
