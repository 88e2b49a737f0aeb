"""From runs to laws: which runs may be compared for which question.

Three questions: what would more data, a larger model, more compute bring? Each needs runs that differ in that amount
alone; compute takes the best runs for their cost (the frontier: Zhai et al. 2022, arXiv 2106.04560, figure 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.errors import DataError

from .scaling import LEAST_SIZES, LEAST_SPAN, JointLaw, PowerLaw, Sample, fit_joint_law, fit_power_law

Question = Literal["data", "model", "compute"]
NOUN: dict[Question, str] = {"data": "training images", "model": "parameters", "compute": "training FLOPs"}


@dataclass(frozen=True)
class Point:
    """One finished run.

    Attributes:
        run: its folder.
        model: its network.
        kind: the architecture; sizes are compared within one.
        params: parameters.
        images: training images.
        epochs: times through them.
        flops: training FLOPs: 3 forward passes (one forward, two backward) for every image seen.
        seed: of the run.
        wrong: test images it erred on, of ``count``.
        count: test images.
        chance: error of whoever always names the most frequent class.
        settings: its recipe, dotted keys.
    """

    run: str
    model: str
    kind: str
    params: int
    images: int
    epochs: int
    flops: float
    seed: int
    wrong: int
    count: int
    chance: float
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def learnt(self) -> bool:
        """Whether it does better than guessing, by two standard errors."""
        rate = self.wrong / self.count
        return rate + 2 * math.sqrt(max(rate * (1 - rate), 0.25 / self.count) / self.count) < self.chance

    def amount(self, question: Question) -> float:
        """How much it had of what a question is about."""
        return {"data": float(self.images), "model": float(self.params), "compute": self.flops}[question]


@dataclass(frozen=True)
class Series:
    """Runs that answer one question, and their law."""

    question: Question
    label: str
    points: tuple[Point, ...]
    law: PowerLaw


@dataclass(frozen=True)
class Study:
    """All that the runs say.

    Attributes:
        points: the runs used.
        series: laws by question; those of a question stand together.
        joint: the law in both size and data, by architecture, where the runs bear it.
        unanswered: for each question without a law, why, and what to run.
        notes: sentences on runs that were left out.
    """

    points: tuple[Point, ...]
    series: tuple[Series, ...]
    joint: Mapping[str, JointLaw]
    unanswered: Mapping[Question, str]
    notes: tuple[str, ...]


def study(points: Iterable[Point], *, level: float = 0.95) -> Study:
    """Fit every law that runs (in any order) bear.

    Raises :class:`DataError` if they bear none; its message says what to run for each question.
    """
    given = sorted(points, key=lambda p: (p.kind, p.model, p.params, p.images, p.epochs, p.seed, p.wrong, p.run))
    used = [p for p in given if p.learnt]
    guessing = [p.run for p in given if not p.learnt]
    notes = [f"left out: {run} does no better than guessing; a power law begins above that" for run in guessing]
    series: list[Series] = []
    unanswered: dict[Question, str] = {}
    finders: list[Callable[[Sequence[Point], float], list[Series] | str]] = [_of_data, _of_model, _of_compute]
    for question, find in zip(NOUN, finders, strict=True):
        found = find(used, level)
        if isinstance(found, str):
            unanswered[question] = found
        else:
            series += found
    if not series:
        lines = "\n".join([*(f"  {question}: {why}" for question, why in unanswered.items()), *notes])
        raise DataError(f"expected runs that bear a law for data, model size or compute, got {len(used)}:\n{lines}")
    return Study(tuple(used), tuple(series), _joint(used, level), unanswered, tuple(notes))


def _of_data(points: Sequence[Point], level: float) -> list[Series] | str:
    groups: dict[str, list[Point]] = {}
    for label, runs in _grouped(points, _network).items():
        by_length = _grouped(runs, lambda p: f"{p.epochs} epochs")
        for length, part in by_length.items():
            groups[f"{label}, {length}"] = part
        lengths = {amount: len({p.epochs for p in runs if p.images == amount}) for amount in {p.images for p in runs}}
        if not any(_enough(part, "data") for part in by_length.values()) and max(lengths.values()) == 1:
            groups[f"{label}, epochs by the number of images"] = runs
    return _fitted("data", groups, level) or (
        f"{_most(points, 'data')} of one network at one number of epochs; {_needed('data')}, for example with "
        "--shares 0.1,0.2,0.5,1"
    )


def _of_model(points: Sequence[Point], level: float) -> list[Series] | str:
    groups = _grouped(points, lambda p: f"{p.kind}, {p.images:,} images, {p.epochs} epochs")
    return _fitted("model", groups, level) or (
        f"{_most(points, 'model')} of one architecture on the same images for the same epochs; {_needed('model')}, for "
        "example with --models vit_pico_patch4_32,vit_nano_patch4_32,vit_micro_patch4_32"
    )


def _of_compute(points: Sequence[Point], level: float) -> list[Series] | str:
    groups = {label: frontier(runs) for label, runs in _grouped(points, lambda p: p.kind).items()}
    free = {label: part for label, part in groups.items() if len({(p.params, p.epochs) for p in part}) > 1}
    if groups and not free:
        return (
            "compute grew with the number of images alone, so that the law of data is the law of compute; give several "
            "networks or lengths, for example --epochs 10,20,40"
        )
    return _fitted("compute", free, level) or (
        f"{_most([p for part in free.values() for p in part], 'compute')} at the best for their cost; "
        f"{_needed('compute')}, for example with --epochs 10,20,40 and more networks"
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the runs of all settings that no other setting beats with as little compute; seeds are averaged."""
    cells = _grouped(points, lambda p: f"{p.flops:.6e} {p.params} {p.images} {p.epochs}")
    cost = {key: runs[0].flops for key, runs in cells.items()}
    error = {key: sum(p.wrong for p in runs) / sum(p.count for p in runs) for key, runs in cells.items()}
    kept = [
        key
        for key in cells
        if not any(
            (cost[o], error[o]) != (cost[key], error[key]) and cost[o] <= cost[key] and error[o] <= error[key]
            for o in cells
        )
    ]
    return [point for key in kept for point in cells[key]]


def _joint(points: Sequence[Point], level: float) -> dict[str, JointLaw]:
    found = {}
    for kind, runs in _grouped(points, lambda p: p.kind).items():
        for length, part in _grouped(runs, lambda p: f"{p.epochs} epochs").items():
            try:
                samples = [(float(p.params), Sample(float(p.images), p.wrong, p.count)) for p in part]
                found[f"{kind}, {length}"] = fit_joint_law(samples, level=level)
            except DataError:  # too few pairs: the laws of one amount say what they can
                continue
    return found


def _fitted(question: Question, groups: Mapping[str, Sequence[Point]], level: float) -> list[Series]:
    found = []
    for label, runs in groups.items():
        if _enough(runs, question):
            samples = [Sample(p.amount(question), p.wrong, p.count) for p in runs]
            law = fit_power_law(samples, shift=True, level=level)
            found.append(Series(question, label, tuple(runs), law))
    return found


def _enough(points: Sequence[Point], question: Question) -> bool:
    amounts = {p.amount(question) for p in points}
    return len(amounts) >= LEAST_SIZES and max(amounts) >= LEAST_SPAN * min(amounts) and any(p.wrong for p in points)


def _most(points: Sequence[Point], question: Question) -> str:
    count = len({p.amount(question) for p in points})
    return f"{count} different number{'s' * (count != 1)} of {NOUN[question]} in all, too few or too close"


def _needed(question: Question) -> str:
    return (
        f"needed are {LEAST_SIZES} or more that span {LEAST_SPAN:g} times or more ({LEAST_SIZES + 2} to check the law)"
    )


def _grouped(points: Sequence[Point], key: Callable[[Point], str]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(key(point), []).append(point)
    return found


def _network(point: Point) -> str:
    return f"{point.model} ({point.params:,} parameters)"
