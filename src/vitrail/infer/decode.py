"""Decoding: greedy, beam search and sampling, for every model that reads a text token by token.

Only the step interface (:mod:`vitrail.nn.steps`) is used, so an RNN, a Transformer, a RetNet and an image GPT decode by
this one code. Rows that are finished leave the batch.

Sources: Wu et al. 2016, arXiv 1609.08144, section 7, equation 14 (the length penalty ((5 + n) / 6) ** alpha);
Vaswani et al. 2017, arXiv 1706.03762, section 6.1 (beam 4, alpha 0.6); Fan et al. 2018, arXiv 1805.04833 (top-k
sampling); Holtzman et al. 2020, arXiv 1904.09751 (top-p).

B sources, S source tokens, R rows in the batch, K beams, P given tokens, L decoded tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.nn.steps import SequenceModel, Specials, State

from .beams import Beams, Penalty
from .choose import best, draw

Choose = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits (R, V) -> (log probabilities (R,), tokens (R,))."""

LEAVE = 8  # finished rows leave once they are one of so many: moving the others costs about a step


@dataclass(frozen=True)
class Decoded:
    """What was decoded for each source.

    Attributes:
        tokens: (B, L) int64: what was found, eos included, filled up with pad.
        lengths: (B,) int64: tokens before eos.
        scores: (B,) float32: log probability, summed over the tokens; of a beam search over its length penalty.
        ended: (B,) bool: whether eos came before the limit; without it the text was cut off.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    ended: Tensor

    def rows(self) -> list[list[int]]:
        """Return the tokens before eos, a list a source."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class Limits:
    """Where decoding begins and ends.

    Attributes:
        specials: ids of padding, beginning and end.
        max_length: most tokens of a text, its eos included.
        ends: whether eos ends a text; if not, each has ``max_length`` tokens.
        banned: tokens that are never chosen; None for pad and bos. Log probabilities are those of all tokens.
    """

    specials: Specials
    max_length: int = 256
    ends: bool = True
    banned: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise UsageError(f"expected max_length of at least 1, got {self.max_length}")

    @property
    def eos(self) -> int:
        """The token that ends a text; one that never occurs if none does."""
        return self.specials.eos if self.ends else -1

    @property
    def shut(self) -> tuple[int, ...]:
        """The tokens that are never chosen."""
        usual = {self.specials.pad, self.specials.bos} - {self.specials.eos}
        return tuple(sorted(usual)) if self.banned is None else self.banned


def greedy(
    model: SequenceModel, source: Tensor, keep: Tensor | None = None, *, limits: Limits, first: Tensor | None = None
) -> Decoded:
    """Take the likeliest token at each step.

    Args:
        model: in eval mode.
        source: (B, S) int64, as ``model.begin`` takes it.
        keep: (B, S) bool, True where the source is real.
        limits: where decoding begins and ends.
        first: tokens (B, P) int64, P of at least 1, that the text begins with and that are not returned; default bos.
    """

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, tokens = best(logits, 1, limits.shut)
        return values[:, 0], tokens[:, 0]

    with torch.inference_mode():
        found = _walk(model, *_begin(model, source, keep, limits, first), limits, choose)
    return _clone(found)


def sample(
    model: SequenceModel,
    source: Tensor,
    keep: Tensor | None = None,
    *,
    limits: Limits,
    first: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Draw each token from the model's probabilities.

    Args:
        model: in eval mode.
        source: as :func:`greedy` takes it; so with ``keep``, ``limits`` and ``first``.
        keep: see there.
        limits: see there.
        first: see there.
        temperature: what logits are divided by; below 1 the likelier become likelier still.
        top_k: only so many of the likeliest tokens may be drawn.
        top_p: only the likeliest that together have this probability may be drawn; applied after ``top_k``.
        generator: where chance comes from, on the device of the model.

    Raises:
        UsageError: a temperature or ``top_k`` not above 0, or ``top_p`` outside (0, 1].
    """
    if temperature <= 0:
        raise UsageError(f"expected a temperature above 0, got {temperature}; mend: decode greedily for the likeliest")
    if top_k is not None and top_k < 1:
        raise UsageError(f"expected top_k of at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"expected top_p above 0 and up to 1, got {top_p}")

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        return draw(logits, limits.shut, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)

    with torch.inference_mode():
        found = _walk(model, *_begin(model, source, keep, limits, first), limits, choose)
    return _clone(found)


def beam_search(
    model: SequenceModel,
    source: Tensor,
    keep: Tensor | None = None,
    *,
    limits: Limits,
    first: Tensor | None = None,
    beams: int = 4,
    length_penalty: float = 0.6,
    penalty: Literal["gnmt", "power"] = "gnmt",
) -> Decoded:
    """Keep the K likeliest beginnings at each step, and return the best text of all that came to their end.

    A source is done when K texts have ended and none that goes on is better than the worst of them, both over their
    length penalty. One beam is greedy decoding.

    Args:
        model: in eval mode.
        source: as :func:`greedy` takes it; so with ``keep``, ``limits`` and ``first``.
        keep: see there.
        limits: see there.
        first: see there.
        beams: beginnings K that are kept of each source.
        length_penalty: alpha; above 0 long texts are preferred.
        penalty: what a log probability of n tokens, eos among them, is divided by: "gnmt", ((5 + n) / 6) ** alpha, or
            "power", n ** alpha (transformers).

    Raises:
        UsageError: fewer than one beam, or twice as many as there are tokens.
    """
    if beams < 1:
        raise UsageError(f"expected at least 1 beam, got {beams}")
    scale = Penalty(penalty, length_penalty)
    if beams == 1:
        found = greedy(model, source, keep, limits=limits, first=first)
        chosen = found.lengths + found.ended
        return Decoded(found.tokens, found.lengths, found.scores / scale(chosen.clamp(min=1)), found.ended)
    with torch.inference_mode():
        state, tokens = _begin(model, source, keep, limits, first)
        found = _search(model, state, tokens, limits, Beams(len(source), beams, limits.eos, scale, source.device))
    return _clone(found)


def _begin(
    model: SequenceModel, source: Tensor, keep: Tensor | None, limits: Limits, first: Tensor | None
) -> tuple[State, Tensor]:
    """Return the state that has read the source and all given tokens but the last, and that last one (B,)."""
    if first is None:
        first = torch.full((len(source), 1), limits.specials.bos, dtype=torch.int64, device=source.device)
    if first.ndim != 2 or len(first) != len(source) or first.shape[1] < 1:
        raise UsageError(f"expected first tokens ({len(source)}, 1 or more), got shape {tuple(first.shape)}")
    state = model.begin(source, keep)
    for column in first[:, :-1].unbind(1):
        model.step(column, state)
    return state, first[:, -1]


def _walk(model: SequenceModel, state: State, tokens: Tensor, limits: Limits, choose: Choose) -> Decoded:
    """Choose one token a row and step until every row has ended or is full."""
    count, eos, device = len(tokens), limits.eos, tokens.device
    out = torch.full((count, limits.max_length), limits.specials.pad, dtype=torch.int64, device=device)
    scores = torch.zeros(count, dtype=torch.float32, device=device)
    where = torch.arange(count, device=device)  # source of each row
    going, left = torch.ones(count, dtype=torch.bool, device=device), count
    for at in range(limits.max_length if count else 0):
        values, tokens = choose(model.step(tokens, state))
        if left == len(where):
            out[where, at], scores[where] = tokens, scores[where] + values
        else:  # rows that wait to leave
            out[where[going], at] = tokens[going]
            scores[where[going]] += values[going]
        going &= tokens != eos
        left = int(going.sum())
        if left == 0:
            break
        if (len(going) - left) * LEAVE >= len(going) and at + 1 < limits.max_length:
            rows = going.nonzero()[:, 0]
            state.select(rows)
            tokens, where, going = tokens[rows], where[rows], going[rows]
    return finish(out, scores, limits)


def _search(model: SequenceModel, state: State, tokens: Tensor, limits: Limits, beams: Beams) -> Decoded:
    """Step all beams of all sources until each source is done."""
    count, device = len(tokens), tokens.device
    out = torch.full((count, limits.max_length), limits.specials.pad, dtype=torch.int64, device=device)
    scores = torch.zeros(count, dtype=torch.float32, device=device)
    where = torch.arange(count, device=device)
    for at in range(limits.max_length if count else 0):
        logits = model.step(tokens, state)
        if logits.shape[1] < 2 * beams.count:
            raise UsageError(f"expected at most {logits.shape[1] // 2} beams (half the vocabulary), got {beams.count}")
        beams.extend(*best(logits, 2 * beams.count, limits.shut), last=at + 1 == limits.max_length)
        done = beams.done()
        if bool(done.any()):
            texts, values = beams.take(done)
            out[where[done], : texts.shape[1]] = texts.where(texts >= 0, limits.specials.pad)
            scores[where[done]] = values
            where = where[~done]
            if not len(where):
                break
        rows, tokens = beams.leave(done)
        state.select(rows)
    return finish(out, scores, limits)


def finish(out: Tensor, scores: Tensor, limits: Limits) -> Decoded:
    """Return the result of rows (B, max_length) that are filled up behind eos."""
    hit = out == limits.eos
    ended = hit.any(1)
    lengths = torch.where(ended, hit.int().argmax(1), out.shape[1])
    most = int((lengths + ended).max()) if len(out) else 0
    return Decoded(out[:, :most], lengths, scores, ended)


def _clone(found: Decoded) -> Decoded:
    """Return the same as tensors that autograd may use."""
    return Decoded(found.tokens.clone(), found.lengths.clone(), found.scores.clone(), found.ended.clone())


__all__: Sequence[str] = ["Decoded", "Limits", "beam_search", "greedy", "sample"]
