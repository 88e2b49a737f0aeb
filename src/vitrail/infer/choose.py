"""The next token of each row: the likeliest ones, or one drawn by chance.

R rows, V vocabulary, N likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 64  # neighbouring tokens of which only the maximum is compared first
PIECE = 2**20  # numbers whose probabilities are computed at once: a buffer that the allocator hands out again


def best(logits: Tensor, count: int, banned: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Return the ``count`` likeliest tokens of each row: log probabilities (R, N) float32, likeliest first, and ids.

    Banned tokens come last, with minus infinity; the probabilities of the others are what they are with them.
    """
    rows = max(PIECE // max(logits.shape[1], 1), 1)
    if logits.device.type != "cpu" or len(logits) <= rows:
        return _best(logits, count, banned)
    pieces = [_best(piece, count, banned) for piece in torch.split(logits, rows)]
    return torch.cat([values for values, _ in pieces]), torch.cat([ids for _, ids in pieces])


def _best(logits: Tensor, count: int, banned: Sequence[int]) -> tuple[Tensor, Tensor]:
    values = F.log_softmax(logits, -1, dtype=torch.float32)
    for token in banned:
        values[:, token] = float("-inf")
    return largest(values, count)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest numbers of each row (R, V), in order, and their places, as ``topk`` does.

    A processor finds the maxima of groups many times faster than the order of single numbers; the largest numbers are
    in the groups with the largest maxima.
    """
    groups = values.shape[1] // GROUP
    if values.device.type != "cpu" or groups < 4 * count:
        found = values.topk(count)
        return found.values, found.indices
    whole = groups * GROUP
    among = values[:, :whole].reshape(-1, groups, GROUP).amax(-1).topk(count).indices  # (R, N)
    places = (among[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
    if whole < values.shape[1]:
        places = torch.cat([places, torch.arange(whole, values.shape[1]).expand(len(values), -1)], 1)
    found = values.gather(1, places).topk(count)
    return found.values, places.gather(1, found.indices)


def draw(
    logits: Tensor,
    banned: Sequence[int] = (),
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row; returns its log probability (R,) float32 at temperature 1, and its id (R,)."""
    own = F.log_softmax(logits, -1, dtype=torch.float32)
    scores = own if temperature == 1.0 and not banned else own / temperature
    for token in banned:
        scores[:, token] = float("-inf")
    ids: Tensor | None = None
    if top_k is not None and top_k < scores.shape[1]:
        scores, ids = largest(scores, top_k)
    elif top_p is not None and top_p < 1:
        scores, ids = scores.sort(-1, descending=True)
    chances = scores.softmax(-1)
    if top_p is not None and top_p < 1:
        chances = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0.0)  # the first is always in
    at = torch.multinomial(chances, 1, generator=generator)
    tokens = at if ids is None else ids.gather(1, at)
    return own.gather(1, tokens)[:, 0], tokens[:, 0]
