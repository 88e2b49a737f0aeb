"""The data check: everything that can be wrong with a labelled set of images, found before training, with what to do.

It reads the same layout that training reads and opens every file once, read-only. Source of the list of faults:
docs/reliability.md 6.2 (D1-D12).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import report as r
from .duplicates import exact_groups, near_pairs
from .imageset import printable
from .imbalance import CORRECTIONS, MULTI_CORRECTIONS, imbalance
from .layout import SPLITS, Layout, twins
from .report import DataReport, Finding, Problem
from .scan import Progress, Scan, scan
from .sources import read_layout

HUGE = 16  # times the median number of pixels
_SEVERITIES = (r.ERROR, r.WARNING, r.INFO)


def check(
    source: str | os.PathLike[str],
    *,
    labels: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
    problems_csv: str | os.PathLike[str] | None = None,
    outside_links: bool = False,
) -> DataReport:
    """Examine a source (anything ``open_dataset`` takes) and report; nothing in it is changed.

    ``labels``: ``auto``, ``single`` or ``multi``, as ``data.labels``. ``progress(done, total)`` is called now and then;
    ``problems_csv``: a file (outside the data) for the full list.
    Raises :class:`DataError` where there is no data set at all.
    """
    layout = read_layout(source, labels=labels, outside_links=outside_links, sequential=True)
    facts = scan(layout, workers=workers, progress=progress)
    report = _facts(layout, facts)
    examiner = _Examiner(layout, facts, report)
    for examine in (_classes, _several, _files, _looks, _copies):
        examine(examiner)
    report.findings.sort(key=lambda finding: _SEVERITIES.index(finding.severity))
    if problems_csv is not None:
        report.write_csv(problems_csv)
    return report


def _facts(layout: Layout, facts: Scan) -> DataReport:
    usable = facts.readable
    sizes = {}
    for side, values in (("width", facts.width[usable]), ("height", facts.height[usable])):
        if len(values):
            sizes[side] = {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}
    kinds = [kind for kind in facts.kind if kind is not None]
    names = layout.classes.names
    return DataReport(
        source=os.fspath(layout.root),
        kind=layout.kind,
        classes=names,
        multi_label=layout.multi_label,
        images={s: len(part.labels) for s, part in layout.parts.items()},
        splits={s: dict(zip(names, layout.counts(s).tolist(), strict=True)) for s in layout.parts},
        found=len(facts) + len(layout.ignored),
        used=int(usable.sum()),
        skipped=len(facts.broken),
        ignored=len(layout.ignored),
        sizes=sizes,
        modes=dict(Counter(mode for mode, _, _ in kinds).most_common()),
        formats=dict(Counter(name for _, name, _ in kinds).most_common()),
        ignored_reasons=dict(Counter(entry.reason for entry in layout.ignored).most_common()),
        notes=list(layout.notes),
    )


class _Examiner:
    """What the examinations share: the facts, and how a finding is written down."""

    def __init__(self, layout: Layout, facts: Scan, report: DataReport) -> None:
        self.layout, self.facts, self.report = layout, facts, report

    def class_of(self, number: int) -> str:
        return self.facts.label_words[int(self.facts.label[number])]

    def add(self, code: str, severity: str, what: str, advice: str, examples: Sequence[str], count: int = 0) -> None:
        """Add a finding, unless there is nothing to it."""
        count = count or len(examples)
        if count:
            self.report.findings.append(Finding(code, severity, count, what, advice, r.shorten(examples)))

    def list_image(self, code: str, number: int, detail: str, other: int | None = None) -> None:
        """Add a line to the full list."""
        self.report.problems.append(
            Problem(
                code,
                SPLITS[self.facts.split[number]],
                self.class_of(number),
                self.facts.raw_name(number),
                "" if other is None else self.facts.raw_name(other),
                detail,
            )
        )


def _classes(x: _Examiner) -> None:
    """Classes: how many, how full, and whether the splits agree."""
    layout = x.layout
    train = layout.counts("train")
    one = [layout.classes.names[c] for c in np.flatnonzero(train == 1)]
    x.add(
        "one_class", r.ERROR, "there is one class only", "add a folder (or label) for what is not that class",
        list(layout.classes.names) if len(layout.classes) < 2 else [],
    )  # fmt: skip
    empty = layout.empty_classes()
    x.add("empty_class", r.ERROR, f"{len(empty)} classes have no image", "add images or delete the folder", empty)
    for split, names in layout.untrained_classes().items():
        x.add(
            f"only_in_{split}", r.ERROR, f"{len(names)} classes have images in {split} but none in train",
            f"add training images of them, or take them out of {split}", names,
        )  # fmt: skip
    x.add("one_image", r.WARNING, f"{len(one)} classes have one training image", "add images: one is too few", one)
    for group in twins([str(i) for i in layout.classes.ids]):
        names = [repr(printable(name)) for name in group]
        x.add(
            "twin_names", r.WARNING, "class names differ only by case, spaces or Unicode form",
            "if they are one class, join the folders; if not, rename one", names,
        )  # fmt: skip
    several = layout.multi_label
    fixes = MULTI_CORRECTIONS if several else CORRECTIONS
    monitor = "map" if several else "macro_recall"
    unequal = imbalance(train, layout.classes.names)
    x.add(
        "imbalance", r.WARNING, unequal or "",
        f"watch each class, not only the mean (train.monitor={monitor}); add images of the small classes, or set one "
        f"of {fixes}", [], count=int(unequal is not None),
    )  # fmt: skip
    if "val" not in layout.parts:
        x.add(
            "no_val", r.INFO, "there is no validation split",
            "none is needed: training holds 10 % of train out, stratified and seeded, and says so", [], count=1,
        )  # fmt: skip


def _several(x: _Examiner) -> None:
    """What is particular to several labels an image: none at all, or one that all have."""
    if not x.layout.multi_label:
        return
    labels = x.layout.parts["train"].labels
    none = int((~labels.any(1)).sum())
    x.add(
        "no_label", r.INFO, f"{none} training images have no class",
        "none, if they show none of the classes; label them if they do", [], count=none,
    )  # fmt: skip
    always = [x.layout.classes.names[c] for c in np.flatnonzero(labels.all(0))]
    x.add(
        "always", r.WARNING, f"every training image has {len(always)} of the classes",
        "add images without them, or take the class out: as it is there is nothing to learn", always,
    )  # fmt: skip


def _files(x: _Examiner) -> None:
    """Files: what cannot be read, what is not used, what has an odd name."""
    facts = x.facts
    for broken in facts.broken:
        x.list_image("broken", broken.number, f"{broken.reason}: {broken.message}")
    x.add(
        "broken", r.WARNING, f"{len(facts.broken)} images cannot be read",
        "repair or remove them; training skips them (up to 1 %), evaluation counts them as errors",
        [f"{facts.name(b.number)}: {b.reason}: {b.message}" for b in facts.broken],
    )  # fmt: skip
    for entry in x.layout.ignored:
        x.report.problems.append(Problem("ignored", "", "", entry.name, "", entry.reason))
    other = [e for e in x.layout.ignored if e.reason.startswith("not an image (.he")]
    x.add(
        "ignored", r.INFO, f"{len(x.layout.ignored)} files are not used",
        "convert .heic and .heif files to JPEG to use them" if other else "none, if they are not meant as images",
        [f"{printable(e.name)}: {e.reason}" for e in x.layout.ignored],
    )  # fmt: skip
    numbers = range(len(facts))
    _each(
        x, "wrong_extension", r.INFO, [n for n in numbers if facts.wrong_extension(n)],
        lambda n: f"holds {facts.kind[n][1]}",  # type: ignore[index]
        "files are named like another format than they hold", "none: the content decides; rename them to be tidy",
    )  # fmt: skip
    _each(
        x, "name_not_utf8", r.INFO, [n for n in numbers if printable(facts.raw_name(n)) != facts.raw_name(n)],
        lambda n: "the name is not UTF-8",
        "file names are not UTF-8", "none: they are kept, and shown with \\x.. escapes; rename them to be tidy",
    )  # fmt: skip


def _looks(x: _Examiner) -> None:
    """Pixels: what is unusual among the readable images."""
    facts = x.facts
    kinds = facts.kind
    usable = np.flatnonzero(facts.readable).tolist()
    area = facts.width.astype(np.int64) * facts.height
    typical = np.median(area[usable]) if len(usable) else 0
    _each(
        x, "animated", r.INFO, [n for n in usable if kinds[n][2]], lambda n: "several frames",  # type: ignore[index]
        "images have several frames", "none: the first frame is used; split the file if the others matter",
    )  # fmt: skip
    _each(
        x, "sixteen_bit", r.INFO, [n for n in usable if kinds[n][0].startswith("I;16")],  # type: ignore[index]
        lambda n: "16-bit grey", "images have 16 bits",
        "none: 0..65535 is scaled to 0..255; if they use less of the range (12-bit sensors), stretch them first",
    )  # fmt: skip
    _each(
        x, "huge", r.INFO, [n for n in usable if area[n] > HUGE * typical],
        lambda n: f"{facts.width[n]} x {facts.height[n]}", f"images are over {HUGE} times as large as the median one",
        "none: they are resized, which takes time; if they show more than the subject, crop them",
    )  # fmt: skip
    spread = facts.thumb.max(1, initial=0).astype(int) - facts.thumb.min(1, initial=255)
    _each(
        x, "flat", r.WARNING, [n for n in usable if spread[n] == 0 and area[n] > 1], lambda n: "one flat colour",
        "images show one flat colour", "remove them, unless nothing to see is what they teach",
    )  # fmt: skip


def _copies(x: _Examiner) -> None:
    """Copies: exact and near, within a class, across classes (labels that contradict) and across splits (leaks)."""
    facts = x.facts
    groups = exact_groups(facts.sha, facts.readable)
    exact = list(dict.fromkeys(pair for group in groups for pair in _exact_pairs(facts, group)))
    single = facts.readable.copy()
    for group in groups:
        single[group[1:]] = False
    near, complete = near_pairs(facts.dhash, facts.thumb, single)
    for label, pairs in (("exact", exact), ("near", [(int(a), int(b)) for a, b in near])):
        _pairs(x, label, pairs)
    if not complete:
        x.report.notes.append("so many images look alike that not every pair was compared for near copies")


def _exact_pairs(facts: Scan, group: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The first image with each other one, and the first of each (split, class) among themselves: no leak is hidden."""
    yield from ((int(group[0]), int(other)) for other in group[1:])
    first: dict[tuple[int, int], int] = {}
    for number in group.tolist():
        first.setdefault((int(facts.split[number]), int(facts.label[number])), number)
    members = list(first.values())
    yield from ((a, b) for i, a in enumerate(members) for b in members[i + 1 :])


def _pairs(x: _Examiner, label: str, pairs: list[tuple[int, int]]) -> None:
    facts = x.facts
    other_class = [p for p in pairs if facts.label[p[0]] != facts.label[p[1]]]
    leaks = [p for p in pairs if facts.split[p[0]] != facts.split[p[1]]]
    within = [p for p in pairs if facts.label[p[0]] == facts.label[p[1]] and facts.split[p[0]] == facts.split[p[1]]]
    kind = f"{label} copies"
    sure = "" if label == "exact" else "look at them; if they show the same, "
    for code, severity, chosen, what, advice in (
        ("conflict", r.WARNING, other_class, f"{kind} carry different classes",
         f"{sure}decide on one class and remove the other copy"),
        ("leak", r.WARNING, leaks, f"{kind} lie in two splits, so the score of the second is too good",
         f"{sure}remove them from train, or from val and test"),
        ("copies", r.INFO, within, f"{kind} lie in one class and split", f"{sure}remove them if they are not meant"),
    ):  # fmt: skip
        for a, b in chosen:
            x.list_image(f"{label}_{code}", b, kind, other=a)
        where = [f"{_place(x, a)} = {_place(x, b)}" for a, b in chosen]
        x.add(f"{label}_{code}", severity, f"{len(chosen)} pair{'s' * (len(chosen) > 1)} of {what}", advice, where)


def _place(x: _Examiner, number: int) -> str:
    return f"{x.facts.name(number)} ({SPLITS[x.facts.split[number]]}, {x.class_of(number)})"


def _each(
    x: _Examiner,
    code: str,
    severity: str,
    numbers: Sequence[int],
    detail: Callable[[int], str],
    what: str,
    advice: str,
) -> None:
    """Add a finding that lists single images."""
    for number in numbers:
        x.list_image(code, int(number), detail(number))
    examples = [f"{x.facts.name(int(n))}: {detail(n)}" for n in numbers[: r.EXAMPLES]]
    x.add(code, severity, f"{len(numbers)} {what}", advice, examples, count=len(numbers))
