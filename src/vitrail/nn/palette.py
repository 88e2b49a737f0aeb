"""Palettes: pixels as the numbers of colours.

Source: Chen et al. 2020, "Generative Pretraining from Pixels" (image GPT), section 3.1: a pixel is the nearest of 512
cluster centres of colours, by squared distance, in raster order.

B batch, I input channels, H·W pixels, K colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .shortcuts import at_once
from .tokens import as_map, as_tokens

PIECE = 2**24  # distances that are held at a time


def nearest(images: Tensor, palette: Tensor) -> Tensor:
    """Return the index of the nearest colour of each pixel: (B, I, H, W) and (K, I) -> (B, H·W) int64, raster order.

    Distances are computed in float32. Raises ValueError if the channels differ.
    """
    if images.ndim != 4 or images.shape[1] != palette.shape[1]:
        raise ValueError(f"expected images (B, {palette.shape[1]}, H, W), got {tuple(images.shape)}")
    pixels = as_tokens(images).float()
    colours = palette.float()
    if not at_once() or pixels.shape[:2].numel() * len(colours) <= PIECE:
        return _nearest(pixels, colours)
    count = max(PIECE // (pixels.shape[1] * len(colours)), 1)
    return torch.cat([_nearest(piece, colours) for piece in torch.split(pixels, count)])


def _nearest(pixels: Tensor, colours: Tensor) -> Tensor:
    """(B, N, I), (K, I) -> (B, N): ``argmin |x - c|²``, of which ``|x|²`` is the same for all colours.

    Channels are added one by one: autocast would round a matrix product.
    """
    distances = colours.square().sum(1).expand(*pixels.shape[:2], -1)
    for channel in range(colours.shape[1]):
        distances = distances - pixels[..., channel, None] * (2 * colours[:, channel])
    return distances.argmin(-1)


def decode(tokens: Tensor, palette: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the colours of tokens: (B, h·w) int64 and (K, I) -> (B, I, h, w) in the palette's type."""
    if tokens.ndim != 2 or tokens.shape[1] != grid[0] * grid[1]:
        count = grid[0] * grid[1]
        raise ValueError(f"expected tokens (B, {count}) of a {grid[0]}x{grid[1]} picture, got {tuple(tokens.shape)}")
    return as_map(palette[tokens], grid)


def spread(colours: int, channels: int) -> Tensor:
    """Return (colours, channels) points spread evenly over [-1, 1]: what a model has until a palette is fitted.

    The additive sequence of the generalised golden ratio (Roberts 2018, "The unreasonable effectiveness of quasirandom
    sequences").
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (channels + 1))
    steps = ratio ** -torch.arange(1, channels + 1, dtype=torch.float64)
    points = (0.5 + torch.arange(1, colours + 1, dtype=torch.float64)[:, None] * steps) % 1
    return (2 * points - 1).float()
