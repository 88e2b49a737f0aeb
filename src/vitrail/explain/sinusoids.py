"""What the sine-cosine positions are, in four pictures.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5: the table, and that "for any fixed offset k, PE(pos + k) can
be represented as a linear function of PE(pos)", which is a rotation of each pair of sine and cosine.

T positions, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.nn.positions import sincos_1d

from .charts import Plot, Series
from .colors import PALETTE, colorize
from .draw import Bar, Picture, Tile, enlarged, sheet

SHIFT = 7  # positions that the picture of the rotation moves on by
SHOWN = 8  # channels of the picture of addition
TEXT = 16  # height of letters in pixels


def rotation(dim: int, shift: int) -> Tensor:
    """Return the matrix R (C, C) with PE(pos + shift) = R PE(pos) for every pos: a rotation of each pair of channels.

    Each pair (sin, cos) of the interleaved table turns by shift times its frequency. R is orthogonal, and holds no
    position: how far apart two tokens are is a linear question.
    """
    angles = shift * 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    matrix = torch.zeros(dim, dim, dtype=torch.float64)
    even = torch.arange(0, dim, 2)
    matrix[even, even] = matrix[even + 1, even + 1] = angles.cos()
    matrix[even, even + 1], matrix[even + 1, even] = angles.sin(), -angles.sin()
    return matrix


def rotation_error(dim: int, length: int, shift: int) -> float:
    """Return the largest difference between R PE(pos) and PE(pos + shift) over ``length`` positions."""
    table = sincos_1d(length + shift, dim).double()
    return float((table[:length] @ rotation(dim, shift).T - table[shift:]).abs().max())


def similarity(dim: int, length: int) -> Tensor:
    """Return the cosine similarity (T, T) of all positions; it depends on their distance alone."""
    table = sincos_1d(length, dim).double()
    return table @ table.T / (dim / 2)


def joined(weight: Tensor) -> Tensor:
    """Return the matrix (C', 2 C) that does to x and p side by side what ``weight`` (C', C) does to their sum.

    W (x + p) = W x + W p = [W W] [x; p]: to add positions is to concatenate them and then apply a linear layer that
    treats both halves alike. A layer on the concatenation is free to treat them differently, [Wx Wp], with twice the
    weights; a trained embedding next to a fixed table can learn that too, by keeping to other channels.
    """
    return torch.cat([weight, weight], 1)


def table_figure(dim: int, length: int) -> Image.Image:
    """Draw the table: a row a position, a column a channel."""
    return sheet(
        [Tile(_heat(sincos_1d(length, dim), 1.0))],
        columns=1,
        title="Sine-cosine positions",
        note=f"{length} positions, width {dim}; sine and cosine of a frequency side by side.",
        bar=Bar("-1", "1", "value"),
        axes=("channel", "position"),
        size=TEXT,
    )


def rotation_figure(dim: int, length: int) -> Image.Image:
    """Draw the matrix that moves every position on, what it gives, and what it should give."""
    table, matrix = sincos_1d(length + SHIFT, dim).double(), rotation(dim, SHIFT)
    moved = table[:length] @ matrix.T
    tiles = [
        Tile(_heat(matrix, 1.0), f"R, for {SHIFT} places"),
        Tile(_heat(moved, 1.0), "R PE(pos)"),
        Tile(_heat(table[SHIFT:], 1.0), f"PE(pos + {SHIFT})"),
    ]
    return sheet(
        tiles,
        columns=3,
        title="The next places are a rotation of these",
        note=f"Largest difference of the two at the right: {rotation_error(dim, length, SHIFT):.0e}.",
        bar=Bar("-1", "1", "value"),
        gap=18,
        size=TEXT,
    )


def distance_figure(dim: int, length: int) -> str:
    """Draw the similarity of two positions against their distance, for three widths, as SVG."""
    widths = sorted({max(dim // 4 // 2 * 2, 2), dim, 4 * dim})
    lines = [
        Series(f"width {width}", list(enumerate(similarity(width, length)[0].tolist())), color)
        for width, color in zip(widths, PALETTE, strict=False)
    ]
    lowest = min(y for line in lines for _, y in line.points)
    plot = Plot(
        "Similarity of two positions",
        "Distance (positions)",
        "Cosine similarity",
        (0, length - 1),
        (min(lowest, 0.0) - 0.05, 1.05),
        size=(560, 340),
        x_whole=True,
    )
    return plot.svg(lines)


def addition_figure(dim: int, length: int) -> Image.Image:
    """Draw the layer on the concatenation that addition is, beside one that is not; at most ``SHOWN`` channels wide."""
    dim = min(dim, SHOWN)
    generator = torch.Generator().manual_seed(0)
    weight, other = (torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5 for _ in range(2))
    x, p = torch.randn(length, dim, generator=generator, dtype=torch.float64), sincos_1d(length, dim).double()
    gap = float(((x + p) @ weight.T - torch.cat([x, p], 1) @ joined(weight).T).abs().max())
    most = float(torch.stack([weight, other]).abs().max())
    halves = [*joined(weight).chunk(2, 1), weight, other]
    tiles = [
        Tile(_heat(half, most, side=180), title)
        for half, title in zip(halves, ("W on x", "W on p", "Wx on x", "Wp on p"), strict=True)
    ]
    return sheet(
        tiles,
        columns=2,
        title="Above: addition. Below: concatenation",
        note=f"Largest difference of W (x + p) and [W W] [x; p], {length} tokens: {gap:.0e}.",
        bar=Bar(f"{-most:.1f}", f"{most:.1f}", "weight"),
        gap=18,
        size=TEXT,
    )


def draw_position_figures(folder: str | Path, dim: int = 64, length: int = 96) -> list[Path]:
    """Write the four pictures into ``folder`` and return their paths.

    Args:
        folder: made if need be.
        dim: width C of the table, even.
        length: positions T.

    Raises:
        UsageError: a width that is not even, or fewer than two positions.
    """
    if dim < 2 or dim % 2:
        raise UsageError(f"expected an even width of at least 2, got {dim}")
    if length < 2:
        raise UsageError(f"expected at least 2 positions, got {length}")
    makers: dict[str, Callable[[int, int], Image.Image | str]] = {
        "positions-table.png": table_figure,
        "positions-rotation.png": rotation_figure,
        "positions-distance.svg": distance_figure,
        "positions-addition.png": addition_figure,
    }
    out, paths = Path(folder), []
    out.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        drawn = make(dim, length)
        paths.append(out / name)
        if isinstance(drawn, str):
            paths[-1].write_text(drawn, encoding="utf-8")
        else:
            drawn.save(paths[-1])
    return paths


def _heat(values: Tensor, most: float, side: int = 320) -> Picture:
    """Return a picture of a matrix whose values lie in -most..most, each a square, about ``side`` pixels large."""
    factor = max(1, round(side / max(values.shape)))
    return enlarged(colorize((values.numpy() / most + 1) / 2), factor)
