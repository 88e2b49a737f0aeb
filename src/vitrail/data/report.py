"""What the data check hands back: facts, findings with advice, a table for the terminal, JSON and CSV.

A finding is one kind of problem with its count, a sentence on what to do, and the first examples.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import UsageError

from .imageset import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

ERROR, WARNING, INFO = "error", "warning", "info"
EXAMPLES = 5
_CLASSES_SHOWN = 40


@dataclass(frozen=True)
class Finding:
    """One kind of problem. ``severity``: error (training refuses), warning (look at it), info (good to know)."""

    code: str
    severity: str
    count: int
    what: str
    advice: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One file (or pair of files) of a finding, as ``problems.csv`` lists them; names as the file system has them."""

    code: str
    split: str
    class_name: str
    file: str
    other: str
    detail: str


@dataclass
class DataReport:
    """The result of :func:`~vitrail.data.doctor.check`. ``used + skipped + ignored == found``."""

    source: str
    kind: str
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]  # split -> class -> images, readable or not
    found: int
    used: int
    skipped: int
    ignored: int
    multi_label: bool = False  # several classes an image, or none
    images: dict[str, int] = field(default_factory=dict)  # split -> images
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)  # width, height -> min, median, max
    modes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    ignored_reasons: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing found would stop training."""
        return all(finding.severity != ERROR for finding in self.findings)

    def finding(self, code: str) -> Finding | None:
        """The finding of a code, or None."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def broken(self) -> list[Problem]:
        """The images that cannot be read."""
        return [problem for problem in self.problems if problem.code == "broken"]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; the long list of problems stays in the CSV, broken files excepted."""
        data = asdict(self)
        del data["problems"]
        broken = [{"file": printable(p.file), "split": p.split, "reason": p.detail} for p in self.broken()]
        return {"ok": self.ok, **data, "broken": broken}

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every problem file with its reason. A path inside the source is :class:`UsageError`."""
        target = Path(path).resolve()
        root = Path(self.source).resolve()
        if root.is_dir() and target.is_relative_to(root):
            raise UsageError(f"expected a path outside the data ({printable(str(root))}), got {printable(str(target))}")
        # surrogateescape: a file name that is not UTF-8 is written as the bytes it has, and reads back the same.
        with open(target, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["problem", "split", "class", "file", "other", "detail"])
            writer.writerows((p.code, p.split, p.class_name, p.file, p.other, p.detail) for p in self.problems)

    def table(self) -> RenderableType:
        """What ``vitrail data check`` shows: classes by split, then findings, worst first. For ``rich``."""
        from rich.console import Group
        from rich.markup import escape

        head = (
            f"[bold]{escape(printable(self.source))}[/]: {self.kind}, {len(self.classes)} classes, {self.found} files "
            f"found = {self.used} used + {self.skipped} skipped + {self.ignored} ignored"
        )
        lines = [head]
        if self.sizes:
            lines += [
                f"  {side}: {s['min']}..{s['max']} pixels, median {s['median']}" for side, s in self.sizes.items()
            ]
            lines.append(f"  formats: {_tally(self.formats)}; modes: {_tally(self.modes)}")
        if self.ignored_reasons:
            lines.append(f"  ignored: {escape(_tally(self.ignored_reasons))}")
        lines += [f"  {escape(note)}" for note in self.notes]
        return Group("\n".join(lines), self._class_table(), self._finding_table())

    def _class_table(self) -> RenderableType:
        from rich.markup import escape
        from rich.table import Table

        table = Table("class", title="images a class", title_justify="left")
        for split in self.splits:
            table.add_column(split, justify="right")
        for name in self.classes[:_CLASSES_SHOWN]:
            table.add_row(escape(name), *(str(counts[name]) for counts in self.splits.values()))
        if len(self.classes) > _CLASSES_SHOWN:
            table.add_row(f"... {len(self.classes) - _CLASSES_SHOWN} more", *("" for _ in self.splits))
        table.add_section()
        table.add_row("all", *(str(count) for count in self.images.values()))
        return table

    def _finding_table(self) -> RenderableType:
        from rich.markup import escape
        from rich.table import Table

        if not self.findings:
            return "[green]nothing to mend[/]"
        colour = {ERROR: "red", WARNING: "yellow", INFO: "cyan"}
        table = Table("", "found", "what to do", title="findings", title_justify="left", show_lines=True)
        for finding in self.findings:
            shown = "".join(f"\n  {escape(example)}" for example in finding.examples)
            more = f"\n  ... {finding.count - len(finding.examples)} more" * (
                bool(finding.examples) and finding.count > len(finding.examples)
            )
            mark = f"[{colour[finding.severity]}]{finding.severity}[/]"
            table.add_row(mark, escape(finding.what) + shown + more, escape(finding.advice))
        return table


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def shorten(names: Sequence[str]) -> tuple[str, ...]:
    """The first examples."""
    return tuple(names[:EXAMPLES])
