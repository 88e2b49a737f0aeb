"""Charts as SVG text: lines, dots, bars and matrices, with ticks, labels and legends; no library needed.

Every string that comes from a user passes :func:`text_of`, so names cannot break out of the markup. Colours are
attributes, not styles: the charts work under a strict content security policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from .colors import FAINT, INK, MUTED, PALETTE, PAPER

FACE = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"


def text_of(value: object) -> str:
    """Return a value as text safe inside markup and attributes; characters XML forbids become U+FFFD."""
    kept = (c if c in "\t\n" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd"
            for c in str(value))  # fmt: skip
    return escape("".join(kept), quote=True)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most ``most`` + 1 round values (1, 2, 2.5 or 5 times a power of ten apart) inside [low, high]."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(most + 2) if (first + i) * step <= high + step * 1e-6]


def log_ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Return powers of ten inside [low, high], both above 0; where these are fewer than three, 2 and 5 too.

    Where they are more than ``most``, every second is returned, or every third, and so on.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(powers) > most:
        apart = math.ceil(len(powers) / most)
        return [10.0**p for p in powers if p % apart == 0 and low * (1 - 1e-9) <= 10.0**p <= high * (1 + 1e-9)]
    for steps in ((1,), (1, 2, 5)):
        found = [s * 10.0**p for p in powers for s in steps if low * (1 - 1e-9) <= s * 10.0**p <= high * (1 + 1e-9)]
        if len(found) >= 3:
            break
    return found


def number(value: float) -> str:
    """Return a short form of a number for a tick: 0.25, 12, 1.5k, 2e-05."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value / 1000:g}k" if size >= 10_000 else f"{float(f'{value:.4g}'):g}"


@dataclass(frozen=True)
class Series:
    """One line, or one cloud of dots: its name in the legend, points (x, y) and colour."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str = PALETTE[0]
    dashed: bool = False
    dots: bool = False
    faint: bool = False


@dataclass
class Plot:
    """A chart with two axes. Coordinates given to its methods are data; it writes pixels.

    ``log`` makes both axes logarithmic, or ``"y"`` that one alone. ``marks`` are (x, text) vertical lines, such as the
    best epoch; their text stands at the top, or below.
    """

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    size: tuple[int, int] = (460, 300)
    percent: bool = False
    log: bool | Literal["y"] = False
    x_whole: bool = False
    legend: bool = True
    marks: Sequence[tuple[float, str]] = ()
    marks_below: bool = False
    left: int = 58
    right: int = 16
    top: int = 40
    bottom: int = 46
    shapes: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Return the pixel column of a data value."""
        low, high, value = _steps(self.log is True, *self.x_range, value)
        return self.left + (value - low) / ((high - low) or 1) * (self.size[0] - self.left - self.right)

    def y(self, value: float) -> float:
        """Return the pixel row of a data value."""
        low, high, value = _steps(bool(self.log), *self.y_range, value)
        return (
            self.size[1] - self.bottom - (value - low) / ((high - low) or 1) * (self.size[1] - self.top - self.bottom)
        )

    def add(self, series: Series) -> None:
        """Draw one series; values that are not finite break the line."""
        if series.dots:
            self.shapes += [
                f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.6" fill="{series.color}" fill-opacity="0.72" '
                f'stroke="{PAPER}" stroke-width="0.8"/>'
                for x, y in series.points
                if math.isfinite(x) and math.isfinite(y)
            ]
            return
        for run in _finite_runs(series.points):
            path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in run)
            dash = ' stroke-dasharray="5 4"' if series.dashed else ""
            width = '1" stroke-opacity="0.3' if series.faint else "2"
            self.shapes.append(
                f'<polyline points="{path}" fill="none" stroke="{series.color}" stroke-width="{width}" '
                f'stroke-linejoin="round" stroke-linecap="round"{dash}/>'
            )
            if len(run) == 1:
                self.shapes.append(
                    f'<circle cx="{self.x(run[0][0]):.1f}" cy="{self.y(run[0][1]):.1f}" r="3" fill="{series.color}"/>'
                )

    def area(self, edges: Sequence[tuple[float, float, float]], color: str) -> None:
        """Fill between two lines: points (x, lower y, upper y)."""
        around = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in reversed(edges)]
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in around)
        self.shapes.append(f'<polygon points="{path}" fill="{color}" fill-opacity="0.14"/>')

    def bar(self, x0: float, x1: float, y: float, color: str) -> None:
        """Draw one bar from the bottom of the chart up to ``y``."""
        top, base = self.y(y), self.y(self.y_range[0])
        self.shapes.append(
            f'<rect x="{self.x(x0):.1f}" y="{top:.1f}" width="{self.x(x1) - self.x(x0):.1f}" '
            f'height="{max(0.0, base - top):.1f}" fill="{color}"/>'
        )

    def svg(self, series: Sequence[Series] = ()) -> str:
        """Return the whole chart as an ``<svg>`` element."""
        for one in series:
            self.add(one)
        width, height = self.size
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{text_of(self.title)}" font-family="{escape(FACE)}" font-size="11.5">',
            f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
            f'<text x="{self.left}" y="18" font-size="14" font-weight="600" fill="{INK}">{text_of(self.title)}</text>',
            *self._axes(),
            *self._marks(),
            *self.shapes,
            *(self._legend(series) if self.legend else []),
            "</svg>",
        ]
        return "".join(parts)

    def _axes(self) -> list[str]:
        x0, x1, y0, y1 = self.left, self.size[0] - self.right, self.size[1] - self.bottom, self.top
        out = []
        for value in _ticks(bool(self.log), *self.y_range, most=5):
            y = self.y(value)
            label = f"{100 * value:g} %" if self.percent else number(value)
            out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x1}" y2="{y:.1f}" stroke="{FAINT}"/>')
            out.append(f'<text x="{x0 - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{MUTED}">{label}</text>')
        ticks = _ticks(self.log is True, *self.x_range, most=6)
        for value in [t for t in ticks if not self.x_whole or float(t).is_integer()]:
            x = self.x(value)
            out.append(f'<line x1="{x:.1f}" y1="{y0}" x2="{x:.1f}" y2="{y0 + 4}" stroke="{MUTED}"/>')
            out.append(f'<text x="{x:.1f}" y="{y0 + 17}" text-anchor="middle" fill="{MUTED}">{number(value)}</text>')
        out.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}" stroke="{MUTED}"/>')
        out.append(
            f'<text x="{(x0 + x1) / 2:.0f}" y="{self.size[1] - 10}" text-anchor="middle" fill="{INK}">'
            f"{text_of(self.x_label)}</text>"
        )
        middle = (y0 + y1) / 2
        out.append(
            f'<text x="14" y="{middle:.0f}" text-anchor="middle" fill="{INK}" '
            f'transform="rotate(-90 14 {middle:.0f})">{text_of(self.y_label)}</text>'
        )
        return out

    def _marks(self) -> list[str]:
        out = []
        y = self.size[1] - self.bottom - 6 if self.marks_below else self.top + 10
        for value, label in self.marks:
            x = self.x(value)
            near_end = x > self.left + 0.7 * (self.size[0] - self.left - self.right)
            out.append(
                f'<line x1="{x:.1f}" y1="{self.top}" x2="{x:.1f}" y2="{self.size[1] - self.bottom}" '
                f'stroke="{MUTED}" stroke-dasharray="2 3"/>'
                f'<text x="{x + (-5 if near_end else 5):.1f}" y="{y}" '
                f'text-anchor="{"end" if near_end else "start"}" fill="{MUTED}">{text_of(label)}</text>'
            )
        return out

    def _legend(self, series: Sequence[Series]) -> list[str]:
        named = [s for s in series if s.name]
        if len(named) < 2:
            return []
        out, x = [], float(self.size[0] - self.right)
        wide = 6.6 * sum(len(s.name) for s in named) / (x - 40 * len(named))
        for one in reversed(named):
            name = one.name if wide <= 1 else one.name[: int(len(one.name) / wide) - 1] + "…"
            x -= 6.6 * len(name) + 6
            out.append(f'<text x="{x:.0f}" y="34" fill="{INK}">{text_of(name)}</text>')
            dash = ' stroke-dasharray="5 4"' if one.dashed else ""
            if one.dots:
                out.append(f'<circle cx="{x - 9:.0f}" cy="30" r="3.6" fill="{one.color}"/>')
            else:
                out.append(
                    f'<line x1="{x - 22:.0f}" y1="30" x2="{x - 5:.0f}" y2="30" stroke="{one.color}" '
                    f'stroke-width="2.5"{dash}/>'
                )
            x -= 34
        return out


def panels(charts: Sequence[str], size: tuple[int, int], *, columns: int, title: str) -> str:
    """Return charts of one size (width, height) as one ``<svg>`` element, row by row."""
    wide, high = size[0] * columns, size[1] * math.ceil(len(charts) / columns)
    placed = (
        chart.replace("<svg ", f'<svg x="{i % columns * size[0]}" y="{i // columns * size[1]}" ', 1)
        for i, chart in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'role="img" aria-label="{text_of(title)}">{"".join(placed)}</svg>'
    )


def _steps(log: bool, *values: float) -> tuple[float, ...]:
    return tuple(math.log10(v) for v in values) if log else values


def _ticks(log: bool, low: float, high: float, most: int) -> list[float]:
    return log_ticks(low, high) if log else nice_ticks(low, high, most)


def _finite_runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def span_of(values: Sequence[float], *, zero: bool = False, pad: float = 0.04) -> tuple[float, float]:
    """Return a range that holds all finite values with some room; from 0 if ``zero``."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(finite)), max(finite)
    room = (high - low or abs(high) or 1.0) * pad
    return (low if zero else low - room), high + room
