"""Which source words a translation looked at: the weights of its attention to the source, as a picture.

Source: Bahdanau et al. 2015, arXiv 1409.0473, figure 3; Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3.
H heads, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import UsageError

from .charts import FACE, text_of
from .colors import INK, MUTED, PAPER, colorize
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


def alignment_svg(weights: Tensor, source: Sequence[str], target: Sequence[str]) -> str:
    """Draw weights (T, S) as SVG: a row a target token, a column a source token; words in any script."""
    shares = weights.float().cpu().numpy()
    if shares.shape != (len(target), len(source)):
        raise ValueError(f"expected weights ({len(target)}, {len(source)}), got {shares.shape}")
    most = float(shares.max())
    colors = colorize(shares / max(most, 1e-9))
    left, top = (int(24 + 0.62 * TEXT * max(len(word) for word in words)) for words in (target, source))
    wide, high = left + CELL * len(source) + 16, top + CELL * len(target) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'role="img" aria-label="Attention to the source" font-family="{FACE}" font-size="{TEXT}">',
        f'<rect width="{wide}" height="{high}" fill="{PAPER}"/>',
    ]
    for i, word in enumerate(source):
        x, y = left + CELL * (i + 0.5) + TEXT / 3, top - 8
        turn = f'transform="rotate(-90 {x:.1f} {y})"'
        parts.append(f'<text x="{x:.1f}" y="{y}" fill="{INK}" {turn}>{text_of(word)}</text>')
    for t, word in enumerate(target):
        y = top + CELL * t
        at = f'x="{left - 8}" y="{y + CELL / 2 + TEXT / 3:.1f}" text-anchor="end"'
        parts.append(f'<text {at} fill="{INK}">{text_of(word)}</text>')
        for s in range(len(source)):
            color = "".join(f"{int(c):02x}" for c in colors[t, s])
            title = text_of(f"{word} looked at {source[s]}: {shares[t, s]:.0%}")
            place = f'x="{left + CELL * s}" y="{y}" width="{CELL}" height="{CELL}"'
            parts.append(f'<rect {place} fill="#{color}"><title>{title}</title></rect>')
    legend = f"a row: one token of the translation; dark 0, bright {most:.0%} of its attention"
    parts.append(f'<text x="{left}" y="{high - 10}" font-size="{TEXT - 3}" fill="{MUTED}">{legend}</text></svg>')
    return "".join(parts)
