"""A picture of answers beside the truth: for the report of a run, and for `vitrail val`.

H·W pixels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.decode import BrokenImage
from vitrail.data.maskrules import IGNORED
from vitrail.data.samples import Samples
from vitrail.explain.draw import Tile, as_picture, resized, sheet

from .segmentation import blend, class_colors
from .segmenter import Segmenter

MOST = 6
SIDE = 300


def draw_answers(
    segmenter: Segmenter, samples: Samples, path: Path, *, title: str, most: int = MOST, side: int = SIDE
) -> Path:
    """Write rows of image, truth and answer of up to ``most`` images, evenly chosen from a split; return the path.

    Pixels without a class are black in the truth.
    """
    colours = class_colors(len(segmenter.classes))
    tiles: list[Tile] = []
    for i in np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int).tolist():
        try:
            sample: Any = samples.read(i)
        except BrokenImage:
            continue
        labels, _ = segmenter.answer(sample.image)
        truth = sample.mask.numpy()
        picture = as_picture(sample.image)
        drawn = [picture, _painted(picture, truth, colours), _painted(picture, labels.numpy(), colours)]
        titles = ("image", "truth", f"answer: {_right(labels.numpy(), truth):.1%} of the pixels right")
        tiles += [Tile(resized(p, most=side), words) for p, words in zip(drawn, titles, strict=True)]
    sheet(tiles, columns=3, title=title, note=", ".join(segmenter.classes.names), gap=12).save(path)
    return path


def _painted(picture: NDArray[np.uint8], labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    known = labels < len(colours)
    painted = colours[np.where(known, labels, 0)]
    painted[~known] = 0
    return blend(picture, painted, 0.75)


def _right(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    known = truth != IGNORED
    return float((labels[known] == truth[known]).mean()) if known.any() else 0.0
