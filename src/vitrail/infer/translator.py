"""The translator: a model with its tokenizer, ready for sentences as people have them.

B sentences, S source tokens, L decoded tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.data.tokenizer import Tokenizer
from vitrail.errors import UsageError, require_known
from vitrail.explain.alignment import alignment_svg, alignments
from vitrail.weights.textfolder import TextCard, open_text_folder

from .decode import Decoded, Limits, beam_search, greedy

if TYPE_CHECKING:
    from vitrail.specials import Specials

AHEAD = 32  # batches of sentences that are read before they are sorted by length and translated


@dataclass(frozen=True)
class TranslatedSentence:
    """One sentence and its translation.

    Attributes:
        source: the sentence given.
        text: its translation; "" for an empty line.
        score: log probability of the translation, summed over its tokens.
        notes: what was done to the sentence or its translation: an end that was cut off.
    """

    source: str
    text: str
    score: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class Aligned:
    """A translation with what it looked at.

    Attributes:
        result: the sentence and its translation.
        source: tokens of the source as people read them, (S,).
        target: tokens of the translation, (T,).
        layers: layer -> weights (T, S), rows sum to 1.
    """

    result: TranslatedSentence
    source: tuple[str, ...]
    target: tuple[str, ...]
    layers: dict[str, Tensor]

    def best(self) -> str:
        """Return the layer whose weights are the surest: the mean over rows of the largest is highest."""
        return max(self.layers, key=lambda name: float(self.layers[name].max(-1).values.mean()))

    def plot(self, path: str | Path, layer: str | None = None) -> Path:
        """Draw the weights of a layer (default :meth:`best`) as SVG into a file."""

        name = self.best() if layer is None else layer
        require_known([name], list(self.layers), "layer")
        Path(path).write_text(alignment_svg(self.layers[name], self.source, self.target), encoding="utf-8")
        return Path(path)


class Translator:
    """Translates sentences. Made by :func:`vitrail.load`; the model is moved to the device, in eval mode.

    Attributes:
        model: the network.
        card: languages, and how decoding goes.
        tokenizer: text to tokens and back.
    """

    def __init__(
        self,
        model: nn.Module,
        card: TextCard,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        beam: int | None = None,
    ) -> None:
        from .predictor import pick_device

        if batch_size < 1:
            raise UsageError(f"expected a batch size of at least 1, got {batch_size}")
        if beam is not None and beam < 1:
            raise UsageError(f"expected a beam of at least 1, got {beam}")
        self.device, self.batch_size = pick_device(device), batch_size
        self.model, self.card, self.tokenizer = model.to(self.device).eval(), card, tokenizer
        self.beam = card.beam if beam is None else beam

    def decode_rows(self, model: nn.Module, source: Tensor, keep: Tensor) -> Tensor:
        """See :func:`decode_rows`; as the card says, or with the beam asked for."""
        card = self.card
        return decode_rows(model, source, keep, beam=self.beam, length_penalty=card.length_penalty, extra=card.extra)

    def __repr__(self) -> str:
        return f"Translator({self.card.name}, {self.card.languages[0]} to {self.card.languages[1]})"

    def __call__(self, lines: str | Iterable[str]) -> TranslatedSentence | list[TranslatedSentence]:
        """Translate one sentence, or each of several; a result for each, in order."""
        if isinstance(lines, str):
            return next(self.stream([lines]))
        return list(self.stream(lines))

    def stream(self, lines: Iterable[str]) -> Iterator[TranslatedSentence]:
        """Yield translations in order, in bounded memory: sentences of like length are translated together."""
        waiting = iter(lines)
        while block := list(islice(waiting, AHEAD * self.batch_size)):
            found: dict[int, TranslatedSentence] = {}
            ids = self.tokenizer.encode(block)
            order = sorted((i for i in range(len(block)) if ids[i]), key=lambda i: len(ids[i]))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                found |= dict(zip(rows, self._translate([block[i] for i in rows], [ids[i] for i in rows]), strict=True))
            for i, line in enumerate(block):
                yield found.get(i) or TranslatedSentence(line, "", 0.0)

    def align(self, line: str) -> Aligned:
        """Translate a sentence, and return how much each token of the translation looked at each of the source.

        The weights are means over the heads of each layer. Raises :class:`UsageError` for a model without attention
        to its source, or a line without words.
        """
        s, ids = self.tokenizer.specials, self.tokenizer.encode([line])[0][: self.card.max_tokens]
        if not ids:
            raise UsageError("expected a sentence to explain, got an empty line")
        found = self(line)
        assert isinstance(found, TranslatedSentence), "one line gives one result"
        out = self.tokenizer.encode([found.text])[0]
        source, keep = padded([ids], s)
        target = torch.tensor([[s.bos, *out]])
        maps = alignments(self.model, *(t.to(self.device) for t in (source, target, keep)))
        end = "(end)"
        words = [[*self.tokenizer.names(row), end] for row in (ids, out)]
        layers = {name: weights.mean(0).cpu() for name, weights in maps.items()}
        return Aligned(found, tuple(words[0]), tuple(words[1]), layers)

    def _translate(self, lines: list[str], ids: list[list[int]]) -> Iterator[TranslatedSentence]:
        most = self.card.max_tokens
        source, keep = padded([row[:most] for row in ids], self.tokenizer.specials)
        with torch.inference_mode():
            found = decode_tokens(
                self.model,
                source.to(self.device),
                keep.to(self.device),
                beam=self.beam,
                length_penalty=self.card.length_penalty,
                extra=self.card.extra,
            )
        texts = self.tokenizer.decode([row for row, _, _ in found])
        for line, row, text, (_, score, ended) in zip(lines, ids, texts, found, strict=True):
            notes = []
            if len(row) > most:
                notes.append(f"only the first {most} of {len(row)} tokens were translated")
            if not ended:
                notes.append("the translation did not come to an end and was cut off")
            yield TranslatedSentence(line, text, score, tuple(notes))


def decode_tokens(
    model: Any, source: Tensor, keep: Tensor, *, beam: int, length_penalty: float, extra: int
) -> list[tuple[list[int], float, bool]]:
    """Return (tokens before eos, log probability, whether it came to its end) of each source (B, S).

    Of more than one beam the log probability is over its length penalty.
    """
    found = _decode(model, source, keep, beam=beam, length_penalty=length_penalty, extra=extra)
    return list(zip(found.rows(), found.scores.tolist(), found.ended.tolist(), strict=True))


def decode_rows(model: Any, source: Tensor, keep: Tensor, *, beam: int, length_penalty: float, extra: int) -> Tensor:
    """Return the tokens found for each source (B, S), ended by eos and filled up: (B, S + extra) int64 on the CPU.

    The width follows from the source alone: several processes that share a batch have equal ones.
    """
    found = _decode(model, source, keep, beam=beam, length_penalty=length_penalty, extra=extra).tokens.cpu()
    return F.pad(found, (0, source.shape[1] + extra - found.shape[1]), value=model.config.specials.pad)


def _decode(model: Any, source: Tensor, keep: Tensor, *, beam: int, length_penalty: float, extra: int) -> Decoded:
    limits = Limits(model.config.specials, source.shape[1] + extra)
    if beam == 1:
        found = greedy(model, source, keep, limits=limits)
    else:
        found = beam_search(model, source, keep, limits=limits, beams=beam, length_penalty=length_penalty)
    return _cut(found, keep.sum(1).to(found.lengths.device) + extra, model.config.specials.pad)


def _cut(found: Decoded, most: Tensor, pad: int) -> Decoded:
    """Hold each row to its own limit (B,): a sentence is not translated further because it stands with a longer one."""
    over = found.lengths + found.ended > most
    beyond = torch.arange(found.tokens.shape[1], device=most.device) >= most[:, None]
    tokens = found.tokens.masked_fill(beyond & over[:, None], pad)
    return replace(found, tokens=tokens, lengths=torch.minimum(found.lengths, most), ended=found.ended & ~over)


def padded(rows: list[list[int]], specials: Specials) -> tuple[Tensor, Tensor]:
    """Return source (B, S) int64, each row ended by eos and filled up with pad, and keep (B, S) bool."""
    width = max(len(row) for row in rows) + 1
    source = np.full((len(rows), width), specials.pad, dtype=np.int64)
    keep = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        source[i, : len(row) + 1], keep[i, : len(row) + 1] = [*row, specials.eos], True
    return torch.from_numpy(source), torch.from_numpy(keep)


def load_translator(
    source: str | Path, *, device: str | torch.device = "auto", batch_size: int = 32, beam: int | None = None
) -> Translator:
    """Load a translator from a run folder or a folder of weights; ``beam`` None is the card's."""
    folder = open_text_folder(source)
    tokenizer = Tokenizer.load(folder.tokenizer, folder.config.specials)
    return Translator(folder.load(), folder.card, tokenizer, device=device, batch_size=batch_size, beam=beam)
