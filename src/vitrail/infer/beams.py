"""The beams of a search: which beginnings go on, and which texts have ended.

Source: Wu et al. 2016, arXiv 1609.08144, section 7.

B sources still open, K beams, w rows of a source now (1 at the first step, then K), T tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalty:
    """What a log probability is divided by, as a function of the number of tokens.

    Attributes:
        kind: "gnmt", ((5 + n) / 6) ** alpha, or "power", n ** alpha.
        alpha: 0 for none.
    """

    kind: Literal["gnmt", "power"]
    alpha: float

    def __call__(self, length: Any) -> Any:
        """Return the divisor of texts of ``length`` tokens, eos among them: of an int, or of each of a tensor."""
        base = (5 + length) / 6 if self.kind == "gnmt" else length
        return base**self.alpha


class Beams:
    """The K likeliest beginnings of each source, and its K best texts that have ended.

    Args:
        sources: number B of sources.
        count: number K of beams.
        eos: the token that ends a text.
        penalty: what scores of ended texts are divided by.
        device: where the tensors are.
    """

    def __init__(self, sources: int, count: int, eos: int, penalty: Penalty, device: torch.device) -> None:
        self.count, self.eos, self.penalty = count, eos, penalty
        self.width = 1  # rows of a source in the state
        self.scores = torch.zeros(sources, 1, device=device)  # of the beginnings (B, w), likeliest first
        self.texts = torch.empty(sources, 1, 0, dtype=torch.int64, device=device)  # (B, w, T)
        self.parents = torch.zeros(sources, 1, dtype=torch.int64, device=device)  # row they grew from
        self.ended_scores = torch.full((sources, count), float("-inf"), device=device)
        self.ended_texts = torch.full((sources, count, 0), -1, dtype=torch.int64, device=device)  # -1 behind the end

    def extend(self, values: Tensor, tokens: Tensor, *, last: bool) -> None:
        """Take the 2 K likeliest tokens of each row, (B · w, 2 K) with their log probabilities; ``last``: all end here.

        Of 2 K candidates at most K end, so K go on.
        """
        (sources, self.width), wide = self.scores.shape, 2 * self.count
        grown = values.view(sources, -1, wide) + self.scores[:, :, None]
        scores, at = grown.flatten(1).topk(wide)
        parents, tokens = at // wide, tokens.view(sources, -1).gather(1, at)
        ends = torch.ones_like(tokens, dtype=torch.bool) if last else tokens == self.eos
        self.ended_texts = torch.nn.functional.pad(self.ended_texts, (0, 1), value=-1)
        if bool(ends[:, : self.count].any()):
            self._end(scores, parents, tokens, ends)
        going = scores.masked_fill(ends, float("-inf")).topk(self.count)
        self.scores, self.parents = going.values, parents.gather(1, going.indices)
        self.texts = self._grow(self.parents, tokens.gather(1, going.indices))

    def _grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Return the texts (B, n, T + 1) that the beginnings ``parents`` (B, n) make with one more token."""
        begun = self.texts.gather(1, parents[:, :, None].expand(-1, -1, self.texts.shape[2]))
        return torch.cat([begun, tokens[:, :, None]], 2)

    def _end(self, scores: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor) -> None:
        """Put the ended ones among the first K candidates beside those that ended before, and keep the K best."""
        k = self.count
        texts = self._grow(parents[:, :k], tokens[:, :k])
        final = (scores[:, :k] / self.penalty(texts.shape[2])).masked_fill(~ends[:, :k], float("-inf"))
        kept = torch.cat([self.ended_scores, final], 1).topk(k)
        both = torch.cat([self.ended_texts, texts], 1)
        self.ended_scores = kept.values
        self.ended_texts = both.gather(1, kept.indices[:, :, None].expand(-1, -1, both.shape[2]))

    def done(self) -> Tensor:
        """Return (B,) bool: K texts have ended, and no beginning is better than the worst of them."""
        likeliest = self.scores[:, 0] / self.penalty(self.texts.shape[2])
        done: Tensor = likeliest <= self.ended_scores.amin(1)
        return done

    def take(self, done: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best ended text (b, T), -1 behind its end, and score (b,) of the sources ``done`` (B,)."""
        return self.ended_texts[done, 0], self.ended_scores[done, 0]

    def leave(self, done: Tensor) -> tuple[Tensor, Tensor]:
        """Drop the sources that are done; return the rows the others grew from and their last tokens, both (b · K,)."""
        rows = (torch.arange(len(done), device=done.device)[:, None] * self.width + self.parents)[~done]
        open_ = ~done
        if bool(done.any()):
            self.scores, self.texts, self.parents = self.scores[open_], self.texts[open_], self.parents[open_]
            self.ended_scores, self.ended_texts = self.ended_scores[open_], self.ended_texts[open_]
        return rows.flatten(), self.texts[:, :, -1].flatten()
