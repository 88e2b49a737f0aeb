"""Colours: two perceptual maps and one accessible palette.

The maps were made in OKLCH (Ottosson 2020): lightness rises by equal steps, the hue turns, chroma is as high as sRGB
allows; twelve anchors each, interpolated linearly. They read the same in grey print and for colour-blind readers.
``sea`` (violet, teal, yellow) suits measured values; ``ember`` (indigo, red, pale yellow) glows over photographs.
The palette is Okabe & Ito's (2008), made to be told apart by all.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

ColorMap = Literal["sea", "ember"]

ANCHORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "sea": (
        *((37, 1, 71), (38, 11, 114), (13, 47, 134), (5, 78, 125), (15, 100, 130), (21, 123, 137)),
        *((25, 147, 143), (28, 172, 140), (57, 196, 121), (132, 211, 95), (196, 222, 76), (254, 230, 81)),
    ),
    "ember": (
        *((18, 1, 60), (45, 4, 82), (78, 7, 98), (115, 12, 106), (153, 17, 105), (192, 23, 94)),
        *((229, 42, 68), (249, 87, 39), (251, 134, 49), (252, 173, 80), (253, 208, 117), (255, 241, 157)),
    ),
}

BLUE, ORANGE, GREEN, PINK, AMBER, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
INK, MUTED, FAINT, PAPER = "#1b1f24", "#5b6470", "#e3e6ea", "#ffffff"


def colorize(values: NDArray[np.floating], name: ColorMap = "sea") -> NDArray[np.uint8]:
    """Map values in 0..1 (clipped), of any shape (...), to uint8 RGB of shape (..., 3)."""
    anchors = np.asarray(ANCHORS[name], dtype=np.float64)
    at = np.linspace(0.0, 1.0, len(anchors))
    clipped = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    channels = [np.interp(clipped, at, anchors[:, c]) for c in range(3)]
    return (np.stack(channels, -1) + 0.5).astype(np.uint8)
