"""What `vitrail data check` says of images with boxes: counts by class and split, and every finding."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.imageset import printable
from vitrail.data.report import ERROR, Finding
from vitrail.errors import UsageError

from .check import judge
from .layout import Odd
from .source import read_boxes


@dataclass
class BoxReport:
    """``images`` split -> count, ``objects`` split -> class -> count (crowds left out), ``crowds`` split -> count."""

    source: str
    kind: str
    classes: tuple[str, ...]
    images: dict[str, int]
    objects: dict[str, dict[str, int]]
    crowds: dict[str, int]
    findings: list[Finding]
    notes: list[str]
    odd: Odd = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether training could start."""
        return all(finding.severity != ERROR for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        content = {name: value for name, value in vars(self).items() if name != "odd"}
        return {"ok": self.ok, **content, "findings": [asdict(finding) for finding in self.findings]}

    def write_csv(self, path: Path) -> None:
        """Write every line of every finding, up to 10,000 of a kind, outside the data."""
        if Path(self.source).is_dir() and path.resolve().is_relative_to(Path(self.source).resolve()):
            raise UsageError(f"expected a path outside the data ({printable(self.source)}), got {printable(str(path))}")
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["problem", "detail"])
            writer.writerows((code, line) for code in self.odd.codes for line in self.odd.lines(code))


def check_boxes(source: str, form: str = "xywh") -> BoxReport:
    """Read a source and judge it. Raises :class:`DataError` where there is no data set at all."""
    layout = read_boxes(source, form)
    findings = judge(layout)
    names = layout.classes.names
    objects, crowds = {}, {}
    for split, part in layout.parts.items():
        counts = part.to_set(layout.classes).counts()
        objects[split] = {name: int(n) for name, n in zip(names, counts, strict=True)}
        crowds[split] = int(np.sum([found.crowd.sum() for found in part.objects]))
    images = {split: len(part.ids) for split, part in layout.parts.items()}
    return BoxReport(source, layout.kind, names, images, objects, crowds, findings, list(layout.notes), layout.odd)
