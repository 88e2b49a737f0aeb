"""The confusion matrix as a picture: cells with numbers while they fit, a plain heat map for hundreds of classes.

Rows are the true classes, columns the predicted ones; colour is the share of the row. Blue cells are right answers,
orange ones mistakes, so a mistake shows at any size. K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .charts import FACE, nice_ticks, text_of
from .colors import FAINT, INK, MUTED, PAPER
from .draw import Picture, data_uri

RIGHT, WRONG = (0, 94, 162), (204, 76, 2)
MOST_NAMED, MOST_NUMBERED = 40, 20
CAPTION = 270  # pixels that the words above the matrix take


@dataclass(frozen=True)
class Confusion:
    """``count`` images of class ``true`` that were taken for ``predicted``; ``share`` of that class."""

    true: int
    predicted: int
    count: int
    share: float


def row_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row divided by its sum; a class without images gives zeros."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return shares


def cell_colors(matrix: NDArray[np.int64]) -> Picture:
    """Return (K, K, 3) colours: white for 0, the square root of the share sets the strength, so rare errors show."""
    strength = np.sqrt(row_shares(matrix))[..., None]
    target = np.where(np.eye(len(matrix), dtype=bool)[..., None], np.array(RIGHT), np.array(WRONG))
    return (255 + strength * (target - 255.0) + 0.5).astype(np.uint8)


def most_confused(matrix: NDArray[np.int64], most: int = 10) -> list[Confusion]:
    """Return the pairs with the most mistakes, most first; equal counts in class order."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    shares = row_shares(matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(matrix)) for i in order]
    return [Confusion(t, p, int(wrong[t, p]), float(shares[t, p])) for t, p in pairs if wrong[t, p] > 0]


def confusion_svg(matrix: NDArray[np.int64], names: Sequence[str], *, size: int = 640) -> str:
    """Draw a (K, K) matrix of counts as SVG, about ``size`` pixels wide."""
    count = len(matrix)
    named = count <= MOST_NAMED
    longest = max(len(n) for n in names)
    margin = int(min(150, 20 + 6.4 * min(longest, 20))) if named else 58
    cell = max(10.0, min(44.0, (size - margin - 16) / count)) if named else (size - margin - 16) / count
    side = cell * count
    wide, high = margin + max(side + 16, CAPTION), 34 + side + margin
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" '
        f'height="{high:.0f}" role="img" aria-label="Confusion matrix" font-family="{FACE}" font-size="11">',
        f'<rect width="{wide:.0f}" height="{high:.0f}" fill="{PAPER}"/>',
        f'<text x="{margin}" y="18" fill="{MUTED}">rows: true class, columns: predicted class</text>',
        f'<g transform="translate({margin} 30)">',
        *(_cells(matrix, names, cell) if named else [_image(matrix, side)]),
        f'<rect width="{side:.1f}" height="{side:.1f}" fill="none" stroke="{FAINT}"/>',
        *(_names(names, cell, side) if named else _ticks(count, cell, side)),
        "</g></svg>",
    ]
    return "".join(parts)


def _image(matrix: NDArray[np.int64], side: float) -> str:
    return (
        f'<image width="{side:.1f}" height="{side:.1f}" image-rendering="pixelated" preserveAspectRatio="none" '
        f'href="{data_uri(cell_colors(matrix))}"/>'
    )


def _cells(matrix: NDArray[np.int64], names: Sequence[str], cell: float) -> list[str]:
    colors, shares, out = cell_colors(matrix), row_shares(matrix), []
    for t, p in zip(*np.nonzero(matrix), strict=True):
        r, g, b = (int(c) for c in colors[t, p])
        title = f"{names[t]} taken for {names[p]}: {matrix[t, p]} of {matrix[t].sum()}"
        out.append(
            f'<rect x="{p * cell:.1f}" y="{t * cell:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}" '
            f'fill="#{r:02x}{g:02x}{b:02x}"><title>{text_of(title)}</title></rect>'
        )
        if len(matrix) <= MOST_NUMBERED:
            ink = PAPER if shares[t, p] > 0.35 else INK
            out.append(
                f'<text x="{(p + 0.5) * cell - 0.5:.1f}" y="{(t + 0.5) * cell + 3.5:.1f}" text-anchor="middle" '
                f'fill="{ink}" pointer-events="none">{matrix[t, p]}</text>'
            )
    return out


def _names(names: Sequence[str], cell: float, side: float) -> list[str]:
    out = []
    for i, name in enumerate(names):
        short, at = text_of(name if len(name) <= 20 else name[:19] + "…"), (i + 0.5) * cell
        out.append(f'<text x="-8" y="{at + 3.5:.1f}" text-anchor="end" fill="{INK}">{short}</text>')
        if max(len(n) for n in names) <= 3:
            out.append(f'<text x="{at:.1f}" y="{side + 15:.1f}" text-anchor="middle" fill="{INK}">{short}</text>')
            continue
        x, y = f"{at + 3:.1f}", f"{side + 12:.1f}"
        out.append(
            f'<text x="{x}" y="{y}" text-anchor="end" fill="{INK}" transform="rotate(-45 {x} {y})">{short}</text>'
        )
    return out


def _ticks(count: int, cell: float, side: float) -> list[str]:
    out = []
    for value in nice_ticks(0, count - 1, most=8):
        at = (value + 0.5) * cell
        out.append(f'<text x="-8" y="{at + 3.5:.1f}" text-anchor="end" fill="{MUTED}">{value:g}</text>')
        out.append(f'<text x="{at:.1f}" y="{side + 16:.1f}" text-anchor="middle" fill="{MUTED}">{value:g}</text>')
    return out
