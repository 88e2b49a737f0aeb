"""What every source of boxes is turned into before anybody judges it: parts, classes, and what was odd on the way.

Readers (COCO json, YOLO, Pascal VOC, parquet, built-in) return a :class:`BoxLayout`; ``check`` judges it, ``source``
refuses bad ones and splits. Reading a layout decodes no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrail.classes import ClassMap
from vitrail.data.imageset import Store
from vitrail.data.report import EXAMPLES, Finding

from .sets import Annotations, DetectionSet

MOST_LISTED = 10_000  # lines of one kind that the full list (--csv) holds


@dataclass(frozen=True)
class BoxPart:
    """One split as the source has it: ``store``, ``ids`` of the images, ``sizes`` int64 (n, 2) height and width (0
    where the source does not say), ``objects`` (n,).
    """

    store: Store
    ids: tuple[int | str, ...]
    sizes: NDArray[np.int64]
    objects: list[Annotations]
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Rows of the store; all of them in order, if none are given."""

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.ids):
            object.__setattr__(self, "rows", np.arange(len(self.ids), dtype=np.int64))

    def take(self, rows: Sequence[int]) -> BoxPart:
        """Return these images alone; they keep their rows of the store."""
        kept = self.rows[list(rows)]
        return BoxPart(
            self.store, tuple(self.ids[i] for i in rows), self.sizes[list(rows)], [self.objects[i] for i in rows], kept
        )

    def name(self, i: int) -> str:
        """What people call image ``i``."""
        return self.store.name(int(self.rows[i]))

    def to_set(self, classes: ClassMap) -> DetectionSet:
        """Return the split as loaders read it."""
        return DetectionSet(self.store, self.rows, self.ids, self.sizes, tuple(self.objects), classes)


class Odd:
    """Gathers what is odd, kind by kind, each line with its file and annotation; gives :class:`Finding` s."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str, str]] = {}
        self._lines: dict[str, list[str]] = {}
        self._count: dict[str, int] = {}

    def add(self, code: str, severity: str, what: str, advice: str, line: str, count: int = 1) -> None:
        """Add one case of a kind; ``what`` has ``{n}`` where the count comes."""
        self._kinds.setdefault(code, (severity, what, advice))
        self._count[code] = self._count.get(code, 0) + count
        lines = self._lines.setdefault(code, [])
        if line and len(lines) < MOST_LISTED:
            lines.append(line)

    def findings(self) -> list[Finding]:
        """Return a finding of each kind, with its first examples."""
        return [
            Finding(code, severity, n, what.format(n=f"{n:,}"), advice, tuple(self._lines[code][:EXAMPLES]))
            for code, (severity, what, advice) in self._kinds.items()
            for n in [self._count[code]]
        ]

    def lines(self, code: str) -> Sequence[str]:
        """Return every line of a kind, up to :data:`MOST_LISTED`."""
        return self._lines.get(code, [])

    @property
    def codes(self) -> list[str]:
        """The kinds that occurred."""
        return list(self._kinds)


@dataclass
class BoxLayout:
    """A source, read but not yet judged."""

    kind: str
    root: str
    parts: dict[str, BoxPart]
    classes: ClassMap
    odd: Odd = field(default_factory=Odd)
    notes: list[str] = field(default_factory=list)
