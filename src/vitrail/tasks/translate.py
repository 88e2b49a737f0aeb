"""Translation: cross entropy a target token, with label smoothing; sacreBLEU of what is decoded.

Sources: label smoothing, Vaswani et al. 2017, arXiv 1706.03762, section 5.4; BLEU as sacreBLEU computes it, Post 2018,
arXiv 1804.08771: on plain text, with a signature that says how.
B sentences, S source tokens, T target tokens, L decoded tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import require_extra, require_known
from vitrail.specials import Specials

from .base import Losses

MONITORS = ("bleu", "accuracy")
LENGTHS = (0, 8, 12, 16, 20, 10**9)  # words of the source, from which to which BLEU is told apart
Decode = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, source (B, S) and keep (B, S) to tokens (B, L), ended by eos and filled up with pad."""


class ParallelSentences(Protocol):
    """The part of a batch this task reads (:class:`vitrail.data.tokenbatches.TextBatch` has it)."""

    @property
    def source(self) -> Tensor:
        """(B, S) int64."""

    @property
    def source_keep(self) -> Tensor:
        """(B, S) bool, True where the source is real."""

    @property
    def target(self) -> Tensor:
        """(B, T) int64, begins with bos."""

    @property
    def labels(self) -> Tensor:
        """(B, T - 1) int64, what follows each token of the target; -1 where nothing does."""

    @property
    def keep(self) -> Tensor:
        """(B,) bool, False in rows that only fill up."""

    @property
    def indices(self) -> Tensor:
        """(B,) int64, positions in the split."""


class Network(Protocol):
    """The part of a model this task calls."""

    def hidden(self, source: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Source (B, S), target (B, T), keep (B, S) -> (B, T, C)."""

    def head(self, hidden: Tensor) -> Tensor:
        """(n, C) -> logits (n, V)."""


class Text(Protocol):
    """From tokens back to text (:class:`vitrail.data.tokenizer.Tokenizer` does it)."""

    specials: Specials

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row."""


@dataclass(frozen=True)
class Translation:
    """Of a batch: ``tokens`` int64 (B, L) decoded, ``nll`` float32 (B,) the summed negative log likelihood of the
    reference, and ``right`` int64 (B,) its tokens that the model would have chosen too.
    """

    tokens: Tensor
    nll: Tensor
    right: Tensor

    def rows(self, batch: ParallelSentences) -> dict[str, Tensor]:
        """Return what is kept of each sentence; its text is in the metrics."""
        return {"nll": self.nll}


class Translate:
    """Next-token cross entropy in training, decoding and BLEU in evaluation."""

    name = "translate"
    counted = "sentences"

    def __init__(
        self,
        text: Text,
        decode: Decode,
        *,
        sources: Sequence[str],
        references: Sequence[str],
        label_smoothing: float = 0.1,
        monitor: str = "bleu",
    ) -> None:
        """Set what is computed.

        Args:
            text: the tokenizer.
            decode: how translations are found.
            sources: the sentences evaluation is on, as plain text.
            references: their translations, as plain text.
            label_smoothing: in [0, 1), the share of each target spread evenly over the vocabulary.
            monitor: the metric that chooses the best weights, of :data:`MONITORS`.
        """
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected label_smoothing in [0, 1), got {label_smoothing}")
        if len(sources) != len(references):
            raise ValueError(f"expected a reference for each of {len(sources)} sentences, got {len(references)}")
        require_known([monitor], MONITORS, "metric to monitor")
        self.text, self.decode, self.sources, self.references = text, decode, sources, references
        self.label_smoothing, self.monitor = label_smoothing, monitor

    def step(self, model: nn.Module, batch: ParallelSentences) -> Losses:
        """Return the mean cross entropy over the real target tokens; a batch without any gives 0."""
        logits, labels = real_logits(model, batch)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing, reduction="sum")
        return {"loss": loss / max(1, len(labels))}

    def predict(self, model: nn.Module, batch: ParallelSentences) -> Translation:
        """Translate a batch, and measure how likely its references are."""
        with torch.no_grad():
            logits, labels = real_logits(model, batch)
            likely = -F.cross_entropy(logits.float(), labels, reduction="none")
            tokens = self.decode(model, batch.source, batch.source_keep)
        row = (batch.labels >= 0).nonzero()[:, 0]
        zeros = torch.zeros(len(batch.labels), device=labels.device)
        right = (logits.argmax(-1) == labels).long()
        return Translation(tokens, -zeros.index_add(0, row, likely), zeros.long().index_add(0, row, right))

    def metrics(self) -> TranslateMetrics:
        """Return a fresh accumulator."""
        return TranslateMetrics(self.text, self.sources, self.references)


def real_logits(model: nn.Module, batch: ParallelSentences) -> tuple[Tensor, Tensor]:
    """Return logits (n, V) and labels (n,) of the n real target tokens: padding never reaches the vocabulary."""
    network = cast(Network, model)
    hidden = network.hidden(batch.source, batch.target[:, :-1], batch.source_keep)
    real = batch.labels >= 0
    return network.head(hidden[real]), batch.labels[real]


def until_end(row: Sequence[int], specials: Specials) -> list[int]:
    """Return the tokens of a decoded row before its eos."""
    row = list(row)
    return [t for t in (row[: row.index(specials.eos)] if specials.eos in row else row) if t != specials.pad]


class TranslateMetrics:
    """Gathers likelihoods and translations, by their place in the split."""

    def __init__(self, text: Text, sources: Sequence[str], references: Sequence[str]) -> None:
        self.text, self.sources, self.references = text, sources, references
        self.found: dict[int, str] = {}
        self.nll, self.right, self.tokens = 0.0, 0, 0

    def update(self, result: Translation, batch: ParallelSentences) -> None:
        """Add a batch; rows that only fill up are left out."""
        rows = [until_end(row, self.text.specials) for row in result.tokens.tolist()]
        for index, keep, line in zip(batch.indices.tolist(), batch.keep.tolist(), self.text.decode(rows), strict=True):
            if keep:
                self.found[index] = line
        self.nll += float(result.nll.sum())
        self.right += int(result.right.sum())
        self.tokens += int((batch.labels >= 0).sum())

    def compute(self) -> dict[str, float]:
        """Return bleu, chrf, loss (nats a token, unsmoothed), accuracy (of the next token) and count."""
        order = sorted(self.found)
        return {
            "bleu": self._score("BLEU", order).score,
            "chrf": self._score("CHRF", order).score,
            "loss": self.nll / max(1, self.tokens),
            "accuracy": self.right / max(1, self.tokens),
            "count": float(len(order)),
        }

    def _score(self, kind: str, rows: Sequence[int]) -> Any:
        return _scorer(kind).corpus_score([self.found[i] for i in rows], [[self.references[i] for i in rows]])

    def thresholds(self) -> None:
        """A translation is no yes-or-no answer."""

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return sacreBLEU's signature, BLEU by the length of the source in words, and every translation."""
        order = sorted(self.found)
        scorer = _scorer("BLEU")
        scorer.corpus_score([self.found[i] for i in order], [[self.references[i] for i in order]])
        words = np.array([len(self.sources[i].split()) for i in order])
        by_length = []
        for least, below in pairwise(LENGTHS):
            rows = [order[j] for j in np.flatnonzero((words >= least) & (words < below))]
            if rows:
                top = int(words.max()) if below == LENGTHS[-1] else below - 1
                score = self._score("BLEU", rows).score
                by_length.append({"from": least, "to": top, "sentences": len(rows), "bleu": score})
        lines = [(self.sources[i], self.found[i], self.references[i]) for i in order]
        return {"signature": str(scorer.get_signature()), "by_length": by_length, "lines": lines}


def _scorer(kind: str) -> Any:
    require_extra("sacrebleu", "text", "BLEU")
    from sacrebleu import metrics

    return getattr(metrics, kind)()
