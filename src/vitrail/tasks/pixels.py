"""Predicting pixels: cross entropy of the colour of each pixel, in order or behind a mask.

Source: Chen et al. 2020, "Generative Pretraining from Pixels" (image GPT), equations 1 to 3; section 3.4: fine-tuning
on the sum of this loss and that of the classes. The start is a palette: what is measured is bits a pixel of the
quantised picture, not of the one it was made from.
B batch, N pixels, I channels, V colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Losses
from .classify import Classification, Classify, ClassifyMetrics, LabelledImages, mean_of_kept

HOLE = -1
"""The token of a pixel that is hidden; no loss is computed where a target is this."""


class Pictures(Protocol):
    """The part of a batch this task reads (:class:`vitrail.data.loader.Batch` has it)."""

    @property
    def images(self) -> Tensor:
        """(B, I, H, W) normalised."""

    @property
    def keep(self) -> Tensor:
        """(B,) bool, False where the image could not be read."""

    @property
    def indices(self) -> Tensor:
        """(B,) int64, positions in the set."""


class Network(Protocol):
    """The part of a model this task calls, beside ``model(tokens)``: int64 (B, N) -> logits (B, N, V)."""

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> the number of the nearest colour of each pixel, (B, N) int64."""


@dataclass(frozen=True)
class PixelScores:
    """Of a batch: ``nll`` float32 (B,), nats a predicted pixel; ``tokens`` int64 (B, N), the colours that were there;
    ``predicted`` int64 (B,), how many pixels were predicted.
    """

    nll: Tensor
    tokens: Tensor
    predicted: Tensor

    def rows(self, batch: Pictures) -> dict[str, Tensor]:
        """Return what is kept of each image: bits a pixel."""
        return {"bits": self.nll / math.log(2)}


class Pixels:
    """Cross entropy of colours: of each pixel from those before it, or of hidden ones from all others."""

    name = "pixels"
    counted = "images"
    monitor = "negative_bits"

    def __init__(self, colours: int, channels: int = 3, *, hidden: float | None = None) -> None:
        """Set what is computed.

        Args:
            colours: of the palette, V.
            channels: of a pixel, I; bits a dimension are bits a pixel divided by it.
            hidden: share of the pixels that is hidden and predicted; None: all are predicted in order.
        """
        if colours < 1 or channels < 1:
            raise ValueError(f"expected at least one colour and one channel, got {colours} and {channels}")
        if hidden is not None and not 0 < hidden < 1:
            raise ValueError(f"expected a share of hidden pixels above 0 and below 1, got {hidden}")
        self.colours, self.channels, self.hidden = colours, channels, hidden

    def step(self, model: nn.Module, batch: Pictures) -> Losses:
        """Return the mean cross entropy over the kept images, in nats a predicted pixel."""
        nll, _, _ = self._score(model, batch, None)
        return {"loss": mean_of_kept(nll, batch.keep)}

    def predict(self, model: nn.Module, batch: Pictures) -> PixelScores:
        """Score a batch; what is hidden of an image depends on its place in the set alone."""
        with torch.no_grad():
            return PixelScores(*self._score(model, batch, batch.indices))

    def _score(self, model: nn.Module, batch: Pictures, places: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return nats a predicted pixel (B,), tokens (B, N), and how many were predicted (B,)."""
        tokens = cast(Network, model).tokens(batch.images)
        if self.hidden is None:
            each = _nll(model(tokens), tokens)
            return each.mean(1), tokens, torch.full_like(tokens[:, 0], tokens.shape[1])
        hidden = hide(tokens, self.hidden, places)
        each = _nll(model(tokens.masked_fill(hidden, HOLE)), tokens)
        count = hidden.sum(1)
        return (each * hidden).sum(1) / count, tokens, count

    def metrics(self) -> PixelMetrics:
        """Return a fresh accumulator."""
        return PixelMetrics(self.colours, self.channels)


def _nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, N, V) and tokens (B, N) -> nats of each (B, N)."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def hide(tokens: Tensor, share: float, places: Tensor | None = None) -> Tensor:
    """Return which pixels are hidden, (B, N) bool, at least one of each image.

    By chance; with ``places`` (B,) int64 by these numbers alone, so that an evaluation can be repeated.
    """
    if places is None:
        drawn = torch.rand(tokens.shape, device=tokens.device)
    else:
        rows = [torch.rand(tokens.shape[1], generator=torch.Generator().manual_seed(int(p))) for p in places]
        drawn = torch.stack(rows).to(tokens.device)
    return (drawn < share) | (drawn == drawn.amin(1, keepdim=True))


class PixelMetrics:
    """Gathers nats and how often each colour occurs."""

    def __init__(self, colours: int, channels: int) -> None:
        self.colours, self.channels = colours, channels
        self.nats, self.pixels, self.images = 0.0, 0, 0
        self.seen = torch.zeros(colours, dtype=torch.int64)

    def update(self, result: PixelScores, batch: Pictures) -> None:
        """Add a batch; images that could not be read are left out."""
        keep = batch.keep.to(result.nll.device)
        predicted = result.predicted[keep]
        self.nats += float((result.nll[keep].double() * predicted).sum())
        self.pixels += int(predicted.sum())
        self.images += int(keep.sum())
        self.seen += torch.bincount(result.tokens[keep].flatten().cpu(), minlength=self.colours)

    def compute(self) -> dict[str, float]:
        """Return bits_per_pixel, bits_per_dim, loss (nats a pixel), negative_bits, and what knows less would need.

        ``uniform_bits``: all colours alike. ``marginal_bits``: who knows how often each colour occurs in these very
        pictures, and nothing of where.
        """
        nats = self.nats / max(1, self.pixels)
        bits = nats / math.log(2)
        share = self.seen[self.seen > 0].double() / max(1, int(self.seen.sum()))
        return {
            "bits_per_pixel": bits,
            "bits_per_dim": bits / self.channels,
            "loss": nats,
            "negative_bits": -bits,
            "uniform_bits": math.log2(self.colours),
            "marginal_bits": float(-(share * share.log2()).sum()),
            "count": float(self.images),
        }

    def thresholds(self) -> None:
        """A colour is no yes-or-no answer."""

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return how often each colour of the palette occurs."""
        return {"colours": self.seen.tolist()}


class WithPixels:
    """Classification by a model that predicts pixels too: the sum of both losses (section 3.4).

    Prediction and metrics are those of ``task``.
    """

    def __init__(self, task: Classify) -> None:
        self.task = task
        self.name, self.counted, self.monitor = task.name, task.counted, task.monitor

    def step(self, model: nn.Module, batch: LabelledImages) -> Losses:
        """Return the sum as "loss", its parts as "label" and "pixels"."""
        out = model(batch.images)
        if not isinstance(out, tuple):
            raise ValueError("expected a model that predicts classes and pixels; mend: model.options.joint=true")
        classes, pixels = out
        label = self.task.loss(classes, batch)
        tokens = cast(Network, model).tokens(batch.images)
        painted = mean_of_kept(_nll(pixels, tokens).mean(1), batch.keep)
        return {"loss": label + painted, "label": label, "pixels": painted}

    def predict(self, model: nn.Module, batch: LabelledImages) -> Classification:
        """Return softmax scores (B, K), as the task alone does."""
        return self.task.predict(model, batch)

    def metrics(self) -> ClassifyMetrics:
        """Return a fresh accumulator over K classes."""
        return self.task.metrics()
