"""Palettes fitted to pictures: the few colours that an image GPT knows.

Source: Chen et al. 2020, "Generative Pretraining from Pixels", section 3.1 (k-means with 512 centres: 9 bits a pixel);
Arthur and Vassilvitskii 2007 (k-means++: centres to start from). ``levels`` cuts each channel by itself and takes all
combinations: one token a pixel as well, no fit needed, and a much larger error with as many colours.

P pixels, U distinct colours, I channels, K colours of the palette.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import UsageError, require_known

KINDS = ("kmeans", "levels")
MOST_PIXELS = 2**18
"""Pixels that a fit looks at; of more, so many are drawn."""
ROUNDS = 40
"""Most rounds of k-means; it ends before where nothing moves."""
PIECE = 2**24  # distances held at a time
FAR = 1.5
"""From which factor on an error on other pictures is told as a fault and not as a number."""


@dataclass(frozen=True)
class Palette:
    """Colours, and how far from them the pixels are that they were made for.

    Attributes:
        kind: "kmeans" or "levels".
        colours: (K, I) float32 in 0..1, dark to bright.
        error: root mean square difference of the pixels' values from their colours', in steps of 1/255.
        asked: colours that were asked for.
    """

    kind: str
    colours: Tensor
    error: float
    asked: int

    def __str__(self) -> str:
        count = len(self.colours)
        fewer = f" ({self.asked} asked for: {self._why})" if count < self.asked else ""
        return f"{count} colours by {self.kind}{fewer}, {self.error:.1f} of 255 from the pixels (root mean square)"

    @property
    def _why(self) -> str:
        return "the pictures have no more" if self.kind == "kmeans" else "as many levels for each channel"


def fit_palette(images: Tensor, colours: int = 512, *, kind: str = "kmeans", seed: int = 0) -> Palette:
    """Return the palette of pictures (B, I, H, W) in 0..1.

    Pixels are rounded to 8 bits first. Where they have no more than ``colours`` colours, these are the palette. The
    same pictures and seed give the same palette.

    Raises:
        UsageError: no pictures, an unknown kind, or fewer than two colours (with "levels": two a channel).
    """
    require_known([kind], KINDS, "kind of palette")
    channels = images.shape[1]
    least = 2 if kind == "kmeans" else 2**channels
    if colours < least:
        raise UsageError(f"expected at least {least} colours for a palette of kind {kind}, got {colours}")
    if not images.numel():
        raise UsageError("expected pictures to fit a palette to, got none")
    generator = torch.Generator().manual_seed(seed)
    found, counts = _distinct(images, generator)
    if kind == "levels":
        centres = _levels(colours, channels)
    elif len(found) <= colours:
        centres = found
    else:
        centres = _kmeans(found, counts, colours, generator)
    centres = centres[_by_brightness(centres)]
    return Palette(kind, centres / 255, _error(found, counts, centres), colours)


def palette_error(images: Tensor, colours: Tensor, *, seed: int = 0) -> float:
    """Return how far the pixels of pictures (B, I, H, W) in 0..1 are from their nearest of ``colours`` (K, I) in 0..1.

    Root mean square of the differences of values, in steps of 1/255.
    """
    found, counts = _distinct(images, torch.Generator().manual_seed(seed))
    return _error(found, counts, 255 * colours.float().cpu())


def _distinct(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the distinct colours (U, I) on 0..255, float32, and how many pixels have each (U,), float32."""
    pixels = images.detach().cpu().movedim(1, -1).flatten(0, -2)
    if len(pixels) > MOST_PIXELS:
        pixels = pixels[torch.randint(len(pixels), (MOST_PIXELS,), generator=generator)]
    steps = (255 * pixels.float()).round().clamp(0, 255).to(torch.uint8)
    found, counts = torch.unique(steps, dim=0, return_counts=True)
    return found.float(), counts.float()


def _levels(colours: int, channels: int) -> Tensor:
    """Return all combinations of as many even levels a channel as ``colours`` allows, (L ** I, I)."""
    count = 2
    while (count + 1) ** channels <= colours:
        count += 1
    return torch.cartesian_prod(*[torch.linspace(0, 255, count)] * channels).view(-1, channels)


def _by_brightness(colours: Tensor) -> Tensor:
    return (colours.mean(1) + 1e-4 * colours[:, 0]).argsort(stable=True)


def _kmeans(points: Tensor, counts: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return the centres (K, I) of weighted points (U, I)."""
    centres = _plus_plus(points, counts, clusters, generator)
    for _ in range(ROUNDS):
        nearest = _assign(points, centres)[0]
        weight = torch.zeros(clusters).index_add_(0, nearest, counts)
        total = torch.zeros_like(centres).index_add_(0, nearest, points * counts[:, None])
        moved = torch.where(weight[:, None] > 0, total / weight[:, None].clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _plus_plus(points: Tensor, counts: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw points to start from, each by its weight times its squared distance from those drawn before."""
    chosen = [int(torch.multinomial(counts.double(), 1, generator=generator))]
    away = (points - points[chosen[0]]).square().sum(1)
    for _ in range(clusters - 1):
        chosen.append(int(torch.multinomial((counts * away).double(), 1, generator=generator)))
        away = torch.minimum(away, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen].clone()


def _assign(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centre of each point and its squared distance, (U,) each."""
    found = []
    for piece in torch.split(points, max(PIECE // len(centres), 1)):
        distances = centres.square().sum(1) - 2 * piece @ centres.T
        best, index = distances.min(1)
        found.append((index, (best + piece.square().sum(1)).clamp_min(0)))
    return torch.cat([i for i, _ in found]), torch.cat([d for _, d in found])


def _error(points: Tensor, counts: Tensor, centres: Tensor) -> float:
    squares = (points - centres[_assign(points, centres)[0]]).square().mean(1)
    return float((squares.double() * counts).sum() / counts.sum()) ** 0.5
