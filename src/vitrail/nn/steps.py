"""Decoding one token at a time: what every sequence model offers, whatever it remembers in between.

A Transformer remembers keys and values, an RNN its hidden state, a RetNet one matrix a head. Decoding
(:mod:`vitrail.infer.decode`) sees them all as a :class:`State`: ``begin`` makes it, ``step`` reads one token a row and
moves it on, ``select`` reorders its rows.

B batch, S source tokens, T target tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vitrail.specials import Specials


class State(Protocol):
    """What a model remembers of the rows it is decoding."""

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order, repeats allowed: in place."""


class SequenceModel(Protocol):
    """A model that decodes step by step.

    An encoder-decoder's ``forward(source, target, keep)`` maps source (B, S), target (B, T), both int64, and ``keep``
    (B, S) bool, True where the source is real, to logits (B, T, V): those at t say what follows ``target[:, t]``. A
    decoder alone has ``forward(tokens)``, (B, T) -> (B, T, V).
    """

    def begin(self, source: Tensor, keep: Tensor | None = None) -> State:
        """Return the state after the source (B, S), before any token of the target.

        An encoder-decoder encodes it; a decoder alone reads it as the beginning of its text (S may be 0).
        """

    def step(self, tokens: Tensor, state: State) -> Tensor:
        """Read one more token a row, (B,) int64, and return logits (B, V) of the one after it; ``state`` moves on."""


__all__ = ["SequenceModel", "Specials", "State"]
