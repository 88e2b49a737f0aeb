"""Image restoration: a picture from a worse one; PSNR and SSIM say how near it comes.

Sources: Liang et al. 2021, arXiv 2108.10257, equations 8 (L1) and 9 (Charbonnier: Lai et al. 2019, arXiv 1710.01992,
equation 5, epsilon 1e-3).
B batch, C channels, s scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vitrail.metrics.images import Channel, psnr, ssim

from .base import Losses
from .classify import mean_of_kept

Loss = Literal["l1", "charbonnier"]
EPSILON = 1e-3


class PicturePairs(Protocol):
    """The part of a batch this task reads (:class:`vitrail.data.restoration.RestoreBatch` has it)."""

    @property
    def images(self) -> Tensor:
        """(B, C, H, W), the bad pictures in about 0..1."""

    @property
    def targets(self) -> Tensor:
        """(B, C, s H, s W), the good ones in 0..1."""

    @property
    def keep(self) -> Tensor:
        """(B,) bool, False where a picture could not be read."""


@dataclass(frozen=True)
class Restored:
    """Of a batch: ``images`` float32 (B, C, s H, s W) in 0..1; how it is measured: see :func:`psnr`."""

    images: Tensor
    border: int
    channel: Channel

    def figures(self, batch: PicturePairs) -> list[tuple[float, float]]:
        """Return PSNR in dB and SSIM of each picture; nan where it could not be read."""
        how: Any = {"border": self.border, "channel": self.channel}
        pairs = zip(self.images.cpu(), batch.targets.cpu(), batch.keep.tolist(), strict=True)
        return [(psnr(x, y, **how), ssim(x, y, **how)) if kept else (math.nan, math.nan) for x, y, kept in pairs]

    def rows(self, batch: PicturePairs) -> dict[str, Tensor]:
        """Return what is kept of each picture: nothing; its figures are in the metrics."""
        return {}


class Restore:
    """The mean absolute difference, or Charbonnier's smooth form of it, between pictures."""

    name = "restore"
    counted = "pictures"
    monitor = "psnr"

    def __init__(self, *, loss: Loss = "l1", border: int = 0, channel: Channel = "rgb") -> None:
        """Set what is computed.

        Args:
            loss: "l1", or "charbonnier": sqrt(d² + 1e-6), for denoising and JPEG artefacts in the paper.
            border: pixels cut off before measuring.
            channel: what is measured: "y" (luminance, of super-resolution) or "rgb".
        """
        if loss not in ("l1", "charbonnier"):
            raise ValueError(f"expected loss 'l1' or 'charbonnier', got {loss!r}")
        if border < 0 or channel not in ("y", "rgb"):
            raise ValueError(f"expected a border of 0 or more and channel 'y' or 'rgb', got {border} and {channel!r}")
        self.loss_kind, self.border, self.channel = loss, border, channel

    def step(self, model: nn.Module, batch: PicturePairs) -> Losses:
        """Return the mean difference over the kept pictures."""
        made = model(batch.images).float()
        if made.shape != batch.targets.shape:
            raise ValueError(
                f"expected restored pictures {tuple(batch.targets.shape)}, got {tuple(made.shape)}; mend: the scale of "
                "the data must be that of the model"
            )
        difference = made - batch.targets
        each = difference.abs() if self.loss_kind == "l1" else (difference.square() + EPSILON**2).sqrt()
        return {"loss": mean_of_kept(each.flatten(1).mean(1), batch.keep)}

    def predict(self, model: nn.Module, batch: PicturePairs) -> Restored:
        """Return restored pictures, clamped to 0..1, in float32."""
        with torch.no_grad():
            made = model(batch.images).float().clamp(0, 1)
        return Restored(made, self.border, self.channel)

    def metrics(self) -> RestoreMetrics:
        """Return a fresh accumulator."""
        return RestoreMetrics(self.border, self.channel)


class RestoreMetrics:
    """Means over pictures: each counts the same, whatever its size, as in papers."""

    def __init__(self, border: int, channel: Channel) -> None:
        self.border, self.channel = border, channel
        self.each: list[tuple[float, float, float]] = []

    def update(self, result: Restored, batch: PicturePairs) -> None:
        """Add a batch; pictures that could not be read are left out."""
        gaps = (result.images - batch.targets.to(result.images.device)).abs().flatten(1).mean(1).tolist()
        figures = result.figures(batch)
        rows = zip(figures, gaps, batch.keep.tolist(), strict=True)
        self.each += [(*found, gap) for found, gap, kept in rows if kept]

    def compute(self) -> dict[str, float]:
        """Return psnr (dB), ssim, loss (the mean absolute difference) and count."""
        count = len(self.each)
        means = [sum(column) / count for column in zip(*self.each, strict=True)] if count else [math.nan] * 3
        return {"psnr": means[0], "ssim": means[1], "loss": means[2], "count": float(count)}

    def thresholds(self) -> None:
        """A picture has no threshold."""

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return how it was measured, and both figures of each picture, in their order."""
        return {
            "border": self.border,
            "channel": self.channel,
            "per_picture": [{"psnr": p, "ssim": s} for p, s, _ in self.each],
        }
