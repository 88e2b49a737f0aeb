"""From features to a larger picture: sub-pixel convolutions, and nearest neighbours with convolutions; mirrored edges.

Sources: Shi et al. 2016, arXiv 1609.05158, section 3 (sub-pixel convolution); Odena et al. 2016, "Deconvolution and
checkerboard artifacts" (resize, then convolve); the arrangements are those of Liang et al. 2021, arXiv 2108.10257,
section 3.1, "HQ image reconstruction".

Maps are (B, C, h, w), best in channels-last memory.  B batch, C width, O channels of the picture, s scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 64
"""Channels that a picture is made of while it grows."""


def reflect_to_multiple(x: Tensor, side: int) -> Tensor:
    """Fill (B, C, h, w) up at the right and bottom until ``side`` divides h and w; see :func:`reflect_to`."""
    return reflect_to(x, (x.shape[2] + -x.shape[2] % side, x.shape[3] + -x.shape[3] % side))


def reflect_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Fill (B, C, h, w) up at the right and bottom to ``size``, mirrored without the edge.

    Where the picture is too small to be mirrored once, it is mirrored back and forth: pixel i of the result is pixel
    ``p - |p - i mod 2p|`` with ``p = size - 1``, which is what one reflection gives as far as it reaches. A side of one
    pixel is repeated.
    """
    below, right = size[0] - x.shape[2], size[1] - x.shape[3]
    if not below and not right:
        return x
    if below < x.shape[2] and right < x.shape[3]:
        return F.pad(x, (0, right, 0, below), mode="reflect")
    rows = _back_and_forth(x.shape[2], x.shape[2] + below, x.device)
    columns = _back_and_forth(x.shape[3], x.shape[3] + right, x.device)
    return x[:, :, rows[:, None], columns[None]]


def _back_and_forth(size: int, length: int, device: torch.device) -> Tensor:
    last = size - 1
    steps = torch.arange(length, device=device)
    return last - (last - steps % (2 * last)).abs() if last else torch.zeros_like(steps)


def doublings(scale: int) -> int:
    """Return how often a picture is doubled to grow by ``scale``; ValueError unless that is 2, 4, 8, ..."""
    if scale < 2 or scale & (scale - 1):
        raise ValueError(f"expected a scale of 2, 4 or 8, got {scale}")
    return scale.bit_length() - 1


class ShuffleHead(nn.Module):
    """Convolution to 64 channels, then one sub-pixel convolution for each doubling (or one for 3), then to a picture.

    Args:
        dim: width C of the features.
        out_chans: channels O of the picture.
        scale: s, a power of two or 3.
    """

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        steps = [3] if scale == 3 else [2] * doublings(scale)
        self.before = nn.Conv2d(dim, WIDTH, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH * s * s, 3, padding=1) for s in steps)
        self.last = nn.Conv2d(WIDTH, out_chans, 3, padding=1)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, O, s h, s w)."""
        x = F.leaky_relu(self.before(x), 0.01)
        for conv, step in zip(self.ups, self.steps, strict=True):
            x = F.pixel_shuffle(conv(x), step)
        out: Tensor = self.last(x)
        return out


class DirectHead(nn.Module):
    """One sub-pixel convolution from features to the picture: the fewest weights.

    Args:
        dim: width C of the features.
        out_chans: channels O of the picture.
        scale: s.
    """

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.last = nn.Conv2d(dim, out_chans * scale * scale, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, O, s h, s w)."""
        return F.pixel_shuffle(self.last(x), self.scale)


class NearestHead(nn.Module):
    """Convolution to 64 channels, then for each doubling nearest neighbours and a convolution: fewer artefacts.

    Args:
        dim: width C of the features.
        out_chans: channels O of the picture.
        scale: s, a power of two.
    """

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(dim, WIDTH, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(doublings(scale)))
        self.hr = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(WIDTH, out_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, O, s h, s w)."""
        x = F.leaky_relu(self.before(x), 0.01)
        for conv in self.ups:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        out: Tensor = self.last(F.leaky_relu(self.hr(x), 0.2))
        return out
