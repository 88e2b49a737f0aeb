"""Pictures and page of scaling laws: runs as dots, the law with its band, dashed where it goes beyond the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitrail.metrics.answers import amount, answer, joint_answer, percent
from vitrail.metrics.laws import NOUN, Question, Series, Study

from .charts import Plot, text_of
from .charts import Series as Line
from .colors import PALETTE
from .page import Cell, Section, figure, page, table

STEPS = 48  # points of a drawn curve
TITLE: Mapping[Question, str] = {"data": "More data", "model": "A larger model", "compute": "More compute"}
WORDS = (
    "Dots are runs, measured on images they were not trained on. Lines are fitted laws, dashed beyond the runs; bands "
    "hold the true error in 95 of 100 such families if the law holds."
)


def draw_law(question: Question, series: Sequence[Series], times: float = 2.0) -> str:
    """Return one picture (SVG) of all laws of a question, both axes logarithmic."""
    reach = times * 1.15
    low = min(s.law.span[0] for s in series) / 1.15
    high = max(s.law.span[1] for s in series) * reach
    errors = [p.wrong / p.count for s in series for p in s.points]
    least = min(0.5 / max(p.count for p in s.points) for s in series)
    lowest = min([e for e in errors if e > 0] + [max(least, s.law.error(times * s.law.span[1]).value) for s in series])
    floor = max(least, 0.6 * lowest)
    roof = min(1.0, 1.25 * max(errors))
    title = f"{TITLE[question]}: error against {NOUN[question]}"
    plot = Plot(
        title,
        NOUN[question],
        "error on held-out images",
        (low, high),
        (floor, roof),
        (720, 420),
        log=True,
        percent=True,
    )
    lines = []
    names = _short([s.label for s in series])
    for i, one in enumerate(series):
        color, law = PALETTE[i % len(PALETTE)], one.law
        inside = np.geomspace(law.span[0], law.span[1], STEPS)
        beyond = np.geomspace(law.span[1], law.span[1] * reach, STEPS // 4)
        band = [(float(x), law.error(float(x))) for x in [*inside, *beyond[1:]]]
        plot.area([(x, _clip(e.low, floor, roof), _clip(e.high, floor, roof)) for x, e in band], color)
        whole = [(x, _clip(e.value, floor, roof)) for x, e in band]
        lines.append(Line(names[i], whole[:STEPS], color))
        lines.append(Line("", whole[STEPS - 1 :], color, dashed=True))
        dots = [(p.amount(question), _clip(p.wrong / p.count, floor, roof)) for p in one.points]
        lines.append(Line("", dots, color, dots=True))
    return plot.svg(lines)


def _short(labels: Sequence[str]) -> list[str]:
    """Return labels up to what they all say in brackets or after a comma, where that tells them apart."""
    short = [label.partition(" (")[0].partition(",")[0] for label in labels]
    return short if len(set(short)) == len(short) else list(labels)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def write_study(found: Study, folder: Path, times: float = 2.0) -> dict[str, Path]:
    """Write ``scaling.html`` (all there is, self-contained) and one SVG a question; return the paths by name."""
    sections: list[Section] = []
    files: dict[str, Path] = {}
    for question in TITLE:
        series = [s for s in found.series if s.question == question]
        body = f"<p>{text_of(found.unanswered[question])}</p>" if question in found.unanswered else ""
        if series:
            svg = draw_law(question, series, times)
            files[question] = folder / f"scaling-{question}.svg"
            files[question].write_text(svg, encoding="utf-8")
            body = figure(svg, WORDS) + "".join(_said(s.label, answer(s, times)) for s in series) + _numbers(series)
        sections.append(Section(question, TITLE[question], body))
    joint = "".join(_said(label, joint_answer(label, law, times)) for label, law in found.joint.items())
    sections.append(Section("joint", "Size and data together", joint))
    notes = "".join(f"<p class=note>{text_of(note)}</p>" for note in found.notes)
    sections.append(Section("runs", "The runs", _runs(found) + notes))
    header = "<h1>What would more bring?</h1><p>E = c + a (x + d)<sup>-b</sup>, fitted to runs of your own.</p>"
    footer = (
        "Law: Zhai et al. 2022, arXiv 2106.04560. Intervals: profile likelihood, 95 %, on images like the held-out "
        "ones; they hold if the law does. Made by Vitrail."
    )
    files["page"] = folder / "scaling.html"
    files["page"].write_text(page("Scaling laws", header, sections, footer), encoding="utf-8")
    return files


def _said(label: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{text_of(sentence)}</li>" for sentence in sentences)
    return f"<h3>{text_of(label)}</h3><ul>{items}</ul>"


def _numbers(series: Sequence[Series]) -> str:
    rows: list[list[Cell | str]] = [
        [
            s.label,
            Cell(f"{s.law.a.value:.3g} ({s.law.a.low:.3g} to {s.law.a.high:.3g})"),
            Cell(f"{s.law.b.value:.2f} ({s.law.b.low:.2f} to {s.law.b.high:.2f})"),
            Cell(percent(s.law.c)),
            Cell(
                f"{s.law.d.value:.3g} ({s.law.d.low:.3g} to {s.law.d.high:.3g})" if s.law.shifted else "0, not fitted"
            ),
            Cell(amount(s.law.unit)),
        ]
        for s in series
    ]
    return table(["law", "a", "b", "c", "d", "unit of x"], rows)


def _runs(found: Study) -> str:
    rows: list[list[Cell | str]] = [
        [
            p.model,
            Cell(f"{p.params:,}", p.params),
            Cell(f"{p.images:,}", p.images),
            Cell(str(p.epochs), p.epochs),
            Cell(f"{p.flops:.3g}", p.flops),
            Cell(str(p.seed), p.seed),
            Cell(f"{100 * p.wrong / p.count:.2f} %", p.wrong / p.count),
            Cell(f"{p.count:,}", p.count),
        ]
        for p in found.points
    ]
    heads = ["model", "parameters", "images", "epochs", "training FLOPs", "seed", "error", "test images"]
    return table(heads, rows, sortable=True)
