"""A look at parallel text before anything is trained on it: what is there, and what would spoil a result."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from .paralleltext import Pairs, TextSplits, open_text

LONG = 200  # words of a sentence that is hardly one
UNEQUAL = 3.0  # times as many words on one side as on the other: hardly a translation
FEW = 4  # words below which unequal sides are usual


@dataclass
class SplitReport:
    """Numbers of one split; places count from 1, the first few of each kind."""

    pairs: int
    words: tuple[int, int]
    longest: tuple[int, int]
    empty: list[int] = field(default_factory=list)
    long: list[int] = field(default_factory=list)
    unequal: list[int] = field(default_factory=list)
    copied: int = 0
    """Pairs whose two sides are the same."""
    repeated: int = 0
    """Pairs that stood in the split before."""
    in_train: int = 0
    """Pairs of a held-out split that are in train too: they flatter a score."""


@dataclass
class TextReport:
    """What :func:`check_text` found, by split, and the notes of reading."""

    languages: tuple[str, str]
    splits: dict[str, SplitReport]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def problems(self) -> list[str]:
        """Return sentences on what to look at, the worst first."""
        found = []
        for name, split in self.splits.items():
            if split.in_train:
                found.append(f"{split.in_train} of {split.pairs} pairs of {name} are in train too")
        for name, split in self.splits.items():
            kinds = {
                "have an empty side": split.empty,
                f"have more than {LONG} words on a side": split.long,
                f"have {UNEQUAL:g} times as many words on one side as on the other": split.unequal,
            }
            for words, rows in kinds.items():
                if rows:
                    places = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
                    found.append(f"{len(rows)} pairs of {name} {words}: {places}")
            for words, count in (("have equal sides", split.copied), ("stand there more than once", split.repeated)):
                if count:
                    found.append(f"{count} pairs of {name} {words}")
        return found


def check_text(source: str, languages: tuple[str, str] | None = None) -> TextReport:
    """Read parallel text and look at every pair; raises what :func:`~vitrail.data.paralleltext.open_text` raises."""
    splits: TextSplits = open_text(source, languages=languages)
    known = set(zip(splits.train.source, splits.train.target, strict=True))
    parts = {"train": splits.train, **splits.held_out()}
    reports = {name: _look(pairs, known if name != "train" else set()) for name, pairs in parts.items()}
    return TextReport(splits.languages, reports, splits.notes)


def _look(pairs: Pairs, known: set[tuple[str, str]]) -> SplitReport:
    rows = list(zip(pairs.source, pairs.target, strict=True))
    counts = [(len(one.split()), len(other.split())) for one, other in rows]
    report = SplitReport(
        pairs=len(rows),
        words=(sum(n for n, _ in counts), sum(n for _, n in counts)),
        longest=(max(n for n, _ in counts), max(n for _, n in counts)),
        copied=sum(one == other for one, other in rows),
        repeated=len(rows) - len(Counter(rows)),
        in_train=sum(row in known for row in rows),
    )
    for place, (one, other) in enumerate(counts, 1):
        if not one or not other:
            report.empty.append(place)
        elif max(one, other) > LONG:
            report.long.append(place)
        elif max(one, other) > max(FEW, UNEQUAL * min(one, other)):
            report.unequal.append(place)
    return report
