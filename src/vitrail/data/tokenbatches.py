"""Batches of sentences of like length, by tokens: a pure function of (seed, epoch, number).

Sentences are sorted by length with ties drawn anew each epoch, and cut where a batch is full. Where the cuts are
depends on the lengths alone, so that every epoch has the same number of batches, and resuming needs only the step.
B sentences, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.specials import Specials

from .paralleltext import Pairs
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class TextBatch:
    """``source`` int64 (B, S), ended by eos and filled up with pad; ``source_keep`` bool (B, S), True where it is
    real; ``target`` int64 (B, T), from bos to eos; ``labels`` int64 (B, T - 1), what follows each token of it, and -1
    where nothing does; ``keep`` bool (B,), False in rows that only fill a process's share up; ``indices`` int64 (B,)
    are positions in the split.
    """

    source: Tensor
    source_keep: Tensor
    target: Tensor
    labels: Tensor
    keep: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.keep)

    @property
    def count(self) -> int:
        """Target tokens: what a mean loss is over."""
        return int((self.labels >= 0).sum())

    def to(self, device: torch.device | str) -> TextBatch:
        """Return the batch on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})

    def without_inputs(self) -> TextBatch:
        """Return the batch without its source: what a result is compared with."""
        return replace(self, source=self.source[:, :0], source_keep=self.source_keep[:, :0])


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: each source ends in eos, each target begins with bos and ends in eos.

    ``cut`` counts sentences that were longer than the most tokens allowed and lost their end.
    """

    source: list[NDArray[np.int64]]
    target: list[NDArray[np.int64]]
    cut: int

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def of(cls, pairs: Pairs, tokenizer: Tokenizer, max_tokens: int) -> Encoded:
        """Encode a split; sentences of more than ``max_tokens`` tokens are cut."""
        s = tokenizer.specials
        one, other = tokenizer.encode(pairs.source), tokenizer.encode(pairs.target)
        cut = sum(len(ids) > max_tokens for ids in (*one, *other))
        sources = [np.array([*ids[:max_tokens], s.eos], dtype=np.int64) for ids in one]
        targets = [np.array([s.bos, *ids[:max_tokens], s.eos], dtype=np.int64) for ids in other]
        return cls(sources, targets, cut)

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens the model reads of each pair, on the longer side, (N,)."""
        return np.array([max(len(s), len(t) - 1) for s, t in zip(self.source, self.target, strict=True)])


class TokenBatches:
    """Batches of an :class:`Encoded` split.

    Args:
        data: the split.
        specials: ids of pad, bos and eos.
        tokens: tokens a batch has at most on either side, padding included; a longer sentence is a batch by itself.
        seed, shuffle: ties and the order of batches are drawn from (seed, epoch); without ``shuffle`` the shortest
            come first, in the order of the split.
        part: (rank, processes), this process's share of each batch.
    """

    problems: tuple[()] = ()
    """Text is read as a whole before training: nothing is left out later."""

    def __init__(
        self,
        data: Encoded,
        specials: Specials,
        *,
        tokens: int,
        seed: int = 0,
        shuffle: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if tokens < 1:
            raise UsageError(f"expected at least one token a batch, got {tokens}")
        self.data, self.specials, self.seed, self.shuffle, self.part = data, specials, seed, shuffle, part
        self.lengths = data.lengths()
        self.cuts = _cuts(np.sort(self.lengths), tokens)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.cuts) + 1

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[TextBatch]:
        """Iterate over the batches of an epoch, from batch ``start`` on."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.data)) if self.shuffle else np.arange(len(self.data))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        batches = np.split(order, self.cuts)
        turns = rng.permutation(len(batches)) if self.shuffle else np.arange(len(batches))
        for turn in turns[start:]:
            yield self._batch(batches[turn])

    def _batch(self, rows: NDArray[np.int64]) -> TextBatch:
        """Fill the rows of this process, as wide as the whole batch needs.

        In evaluation the rows are filled up so that all processes' have one shape. In training they are those of the
        piece that one process alone would compute, so that dropout draws the same.
        """
        rank, processes = self.part
        pad, width = self.specials.pad, max(len(self.data.source[i]) for i in rows)
        tall = max(len(self.data.target[i]) for i in rows)
        each = -(-len(rows) // processes)
        mine = rows[rank * each : (rank + 1) * each]
        each = max(1, len(mine)) if self.shuffle else each
        source = np.full((each, width), pad, dtype=np.int64)
        target = np.full((each, tall), pad, dtype=np.int64)
        real, labels = np.zeros((each, width), dtype=bool), np.full((each, tall - 1), -1, dtype=np.int64)
        for row, i in enumerate(mine):
            one, other = self.data.source[i], self.data.target[i]
            source[row, : len(one)], real[row, : len(one)] = one, True
            target[row, : len(other)], labels[row, : len(other) - 1] = other, other[1:]
        indices = np.full(each, -1, dtype=np.int64)
        indices[: len(mine)] = mine
        parts = (source, real, target, labels, indices >= 0, indices)
        return TextBatch(*(torch.from_numpy(part) for part in parts))


def _cuts(lengths: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Return where to cut sentences of growing length so that each batch, padded, holds ``tokens`` at most."""
    cuts, first = [], 0
    for i, length in enumerate(lengths.tolist()):
        if i > first and (i + 1 - first) * length > tokens:
            cuts.append(i)
            first = i
    return np.array(cuts, dtype=np.int64)
