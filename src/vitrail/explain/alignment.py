"""Which source words a translation looked at: the weights of its attention to the source, as a picture.

Source: Bahdanau et al. 2015, arXiv 1409.0473, figure 3; Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3.
H heads, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vitrail.errors import UsageError

from .colors import INK, PAPER, colorize
from .draw import Bar, color_bar, enlarged, font, upright
from .record import record

CROSS = ("cross", "attention")  # what attention to the source is called in Vitrail's models
CELL, TEXT = 30, 15  # pixels


def alignments(model: Any, source: Tensor, target: Tensor, keep: Tensor | None = None) -> dict[str, Tensor]:
    """Return by layer, the first first, how much each target token looked at each source token, (H, T, S).

    Args:
        model: an encoder-decoder, in eval mode.
        source: (1, S) int64.
        target: (1, T) int64, begins with bos; row t of a map belongs to the token that follows ``target[:, t]``.
        keep: (1, S) bool, True where the source is real.

    Raises:
        UsageError: a model that has no attention to its source.
    """
    with torch.no_grad(), record(model) as tapes:
        model(source, target, keep)
    found = {name: maps[0][0] for name, maps in tapes.items() if name.rpartition(".")[2] in CROSS and maps}
    if not found:
        raise UsageError(
            f"expected a model with attention to its source, got {type(model).__name__}, which carries the source in "
            "one state; mend: train a transformer, or an RNN with attention (gru_attention)"
        )
    return found


def alignment_picture(weights: Tensor, source: Sequence[str], target: Sequence[str]) -> Image.Image:
    """Draw weights (T, S) as a map: a row a target token, a column a source token, with a scale beside it."""
    shares = weights.float().cpu().numpy()
    if shares.shape != (len(target), len(source)):
        raise ValueError(f"expected weights ({len(target)}, {len(source)}), got {shares.shape}")
    face = font(TEXT)
    heads = [upright(word, TEXT, INK) for word in source]
    left = 14 + max(int(face.getlength(word)) for word in target)
    top = 10 + max(head.height for head in heads)
    wide, high = CELL * len(source), CELL * len(target)
    bar = Image.fromarray(color_bar(max(high, 120), Bar("0", f"{shares.max():.2f}", "share of attention"), size=TEXT))
    canvas = Image.new("RGB", (left + wide + 20 + bar.width, top + max(high, bar.height) + 10), PAPER)
    cells = enlarged(colorize(shares / max(float(np.max(shares)), 1e-9)), CELL)
    canvas.paste(Image.fromarray(cells), (left, top))
    draw = ImageDraw.Draw(canvas)
    for i, head in enumerate(heads):
        canvas.paste(head, (left + CELL * i + (CELL - head.width) // 2, top - 4 - head.height))
    for i, word in enumerate(target):
        draw.text((left - 8, top + CELL * i + CELL // 2), word, INK, face, anchor="rm")
    canvas.paste(bar, (left + wide + 20, top))
    return canvas
