"""Outlines and run-length codes of COCO's files as masks of pixels, and back.

Source: the COCO API's mask format (Lin et al. 2014, arXiv 1405.0312; its ``common/maskApi``): run lengths go down the
columns and begin with background; a compressed code writes each length in groups of five bits, from the third on as
the difference to the one two before.
H rows, W columns; a mask is bool (H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

Mask = NDArray[np.bool_]


def mask_of(shape: Any, size: tuple[int, int]) -> Mask:
    """Return the mask (H, W) of a COCO ``segmentation``: polygons, or run lengths written out or compressed.

    Raises :class:`DataError` for what is neither, or belongs to an image of another size.
    """
    if isinstance(shape, Mapping):
        return from_rle(shape, size)
    if isinstance(shape, Sequence) and not isinstance(shape, str | bytes):
        return from_polygons(shape, size)
    raise DataError(f"expected a segmentation as polygons or run lengths, got {type(shape).__name__}")


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
    """Fill polygons [x1, y1, x2, y2, ...] in pixels; a pixel is inside where its centre is, to within Pillow's rule."""
    from PIL import Image, ImageDraw

    canvas = Image.new("1", (size[1], size[0]), 0)
    pen = ImageDraw.Draw(canvas)
    for points in polygons:
        if len(points) % 2 or len(points) < 6:
            raise DataError(f"expected a polygon of at least three points [x, y, ...], got {len(points)} numbers")
        pen.polygon([float(v) - 0.5 for v in points], fill=1)
    return np.array(canvas, dtype=bool)


def from_rle(code: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    """Return the mask of ``{"size": [H, W], "counts": [...] or text}``."""
    stored = tuple(int(n) for n in code["size"])
    if stored != tuple(size):
        raise DataError(f"expected a mask of {size[0]} x {size[1]}, the size of its image, got {stored}")
    counts = code["counts"]
    runs = _inflated(counts) if isinstance(counts, str | bytes) else [int(n) for n in counts]
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise DataError(f"expected run lengths that add up to {size[0] * size[1]} pixels, got {sum(runs)}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0]).T.copy()


def to_rle(mask: Mask) -> dict[str, Any]:
    """Return the run lengths of a mask (H, W), written out: the reverse of :func:`from_rle`."""
    flat = np.asarray(mask, dtype=bool).T.reshape(-1)
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], change, [len(flat)]])
    runs = np.diff(edges).tolist()
    if len(flat) and flat[0]:
        runs = [0, *runs]
    return {"size": list(mask.shape), "counts": runs}


def compressed(mask: Mask) -> dict[str, Any]:
    """Return the run lengths of a mask (H, W) in their compressed form, as COCO's result files hold them."""
    code = to_rle(mask)
    return {"size": code["size"], "counts": _deflated(code["counts"])}


def _deflated(runs: Sequence[int]) -> str:
    """Write the compressed form: the reverse of :func:`_inflated`."""
    written: list[str] = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            written.append(chr(48 + (bits | 0x20 if more else bits)))
    return "".join(written)


def _inflated(text: str | bytes) -> list[int]:
    """Read the compressed form: six bits a character, the lowest first, the sixth says that more follow."""
    data = text.encode() if isinstance(text, str) else text
    runs: list[int] = []
    at = 0
    while at < len(data):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(data):
                raise DataError("expected whole run lengths, got a code that is cut off")
            bits = data[at] - 48
            value |= (bits & 0x1F) << shift
            more, shift, at = bool(bits & 0x20), shift + 5, at + 1
            if not more and bits & 0x10:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
