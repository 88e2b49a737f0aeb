"""Large pictures in tiles: cut with overlaps, restored one by one, blended where they meet.

Source: the tiles of Liang et al. 2021 (arXiv 2108.10257, their test script averages overlaps of 32 pixels). Here a tile
begins where a window of the whole picture begins, so that the windows of both are the same; the middle quarter of an
overlap is blended in a line, and what lies nearer to an edge is left out. The picture that comes out is written row of
tiles by row of tiles, so memory holds one row of tiles beside the two pictures, whatever their height.

C channels, (H, W) a picture, s scale, T side of a tile, M side of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.memory import available_bytes
from vitrail.errors import UsageError

Run = Callable[[Tensor], Tensor]
"""Pictures (1, C, h, w) in 0..1 -> (1, C, s h, s w)."""
Picture = NDArray[Any]

OVERLAP = 32
"""Pixels that two tiles share, at least."""
SMALLEST, LARGEST = 64, 512
"""Sides of a tile: below, most of it is overlap; above, nothing is gained."""
SHARE = 0.5
"""Of the free memory that a tile may take."""
LEVELS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Attributes:
        side: T, a multiple of the window.
        overlap: pixels two tiles share at least, a multiple of the window; tiles are spread evenly.
        window: M.
        scale: s.
    """

    side: int
    overlap: int
    window: int
    scale: int

    def __post_init__(self) -> None:
        if self.side % self.window or self.overlap % self.window:
            raise UsageError(
                f"expected a tile and an overlap of whole windows of {self.window} pixels, got {self.side} and "
                f"{self.overlap}"
            )
        if not 0 < self.overlap <= self.side // 2:
            raise UsageError(f"expected an overlap above 0, at most half of a tile of {self.side}, got {self.overlap}")

    def cuts(self, length: int) -> list[tuple[int, int]]:
        """Return (first, last) pixel of each tile along a side of ``length``; one if it covers all."""
        if length <= self.side:
            return [(0, length)]
        last = -(-(length - self.side) // self.window)  # in windows, as all of this line
        count = -(-last // ((self.side - self.overlap) // self.window))
        starts = [i * last // count * self.window for i in range(count + 1)]
        return [(start, min(start + self.side, length)) for start in starts]

    def weights(self, length: int) -> list[Tensor]:
        """Return what each tile of :meth:`cuts` counts in the result, float32 (s n,) each; they sum to one."""
        s, cuts = self.scale, self.cuts(length)
        found = [torch.ones(s * (stop - start)) for start, stop in cuts]
        for i in range(len(cuts) - 1):
            shared = s * (cuts[i][1] - cuts[i + 1][0])
            ramp = ((torch.arange(shared) + 0.5) / shared * 4 - 1.5).clamp(0, 1)
            found[i + 1][:shared] *= ramp
            found[i][-shared:] *= 1 - ramp
        total = torch.zeros(s * length)  # of three tiles that meet, the ramps need not sum to one
        for (start, stop), weight in zip(cuts, found, strict=True):
            total[s * start : s * stop] += weight
        return [weight / total[s * start : s * stop] for (start, stop), weight in zip(cuts, found, strict=True)]


def pixel_bytes(config: Any, bytes_each: int = 4) -> int:
    """Return about how many bytes of memory a network takes at most, for each pixel of the picture it is given.

    A block holds about ten widths and 600 numbers more, in 16 bits the attention weights besides; the reconstruction
    2.3 (sub-pixel) or 3 (nearest) pictures of 64 channels in their final size. Measured on a CPU for every kind of
    variant: docs/benchmarks/restoration.md.
    """
    block = 600 + 10 * config.embed_dim
    if bytes_each == 2:  # where plain products are faster than the fused kernel
        block += 3 * max(config.num_heads) * config.window_size**2
    grown = {"pixelshuffle": 2.3, "nearest+conv": 3.0}.get(config.head, 0.0) * 64 * config.upscale**2
    return int(bytes_each * max(block, grown + 2 * config.embed_dim))


def tiling_for(config: Any, side: int | None = None, *, free: int | None = None, bytes_each: int = 4) -> Tiling:
    """Return the tiles that suit a network and the free memory (bytes; default: what there is).

    Args:
        config: of a SwinIR.
        side: pixels of a tile, rounded down to whole windows; None: as large as fits, up to 512.
        free: bytes that may be used.
        bytes_each: of a number, 4 or 2.

    Raises :class:`UsageError` for a side that does not hold two windows beside an overlap.
    """
    m = config.window_size
    overlap = -(-OVERLAP // m) * m
    if side is None:
        room = SHARE * (available_bytes() if free is None else free) / pixel_bytes(config, bytes_each)
        side = int(min(max(room**0.5, SMALLEST), LARGEST))
    elif side < 2 * m:
        raise UsageError(f"expected a tile of at least two windows ({2 * m} pixels), got {side}")
    side = side // m * m
    return Tiling(side, max(m, min(overlap, side // 2 // m * m)), m, config.upscale)


def restore_tiled(run: Run, picture: Picture | Tensor, tiling: Tiling, *, dtype: Any = np.uint8) -> Picture:
    """Return the restored picture (s H, s W, C) as ``dtype`` (uint8, uint16, or float32 in 0..1, not clamped).

    Args:
        run: the network.
        picture: uint8 or uint16 (H, W, C), or float (C, H, W) in about 0..1.
        tiling: how it is cut.
        dtype: of the result.
    """
    height, width, channels = _shape(picture)
    s, dtype = tiling.scale, np.dtype(dtype)
    out = np.empty((s * height, s * width, channels), dtype=dtype)
    downs, acrosses = tiling.weights(height), tiling.weights(width)
    rows, columns = tiling.cuts(height), tiling.cuts(width)
    carry = torch.zeros(channels, 0, s * width)
    for r, (top, bottom) in enumerate(rows):
        band = torch.zeros(channels, s * (bottom - top), s * width)
        for weight, (left, right) in zip(acrosses, columns, strict=True):
            made = run(_cut(picture, slice(top, bottom), slice(left, right)))[0].float().cpu()
            band[:, :, s * left : s * right] += made * weight
        band *= downs[r][:, None]
        band[:, : carry.shape[1]] += carry
        done = s * ((rows[r + 1][0] if r + 1 < len(rows) else height) - top)
        out[s * top : s * top + done] = _as(band[:, :done], dtype)
        carry = band[:, done:].clone()
    return out


def _shape(picture: Picture | Tensor) -> tuple[int, int, int]:
    if isinstance(picture, Tensor):
        channels, height, width = picture.shape
        return height, width, channels
    if picture.ndim != 3 or picture.dtype not in LEVELS:
        raise UsageError(f"expected uint8 or uint16 (H, W, C), got {picture.dtype} {picture.shape}")
    height, width, channels = picture.shape
    return height, width, channels


def _cut(picture: Picture | Tensor, rows: slice, columns: slice) -> Tensor:
    """Return a tile as float32 (1, C, h, w) in 0..1."""
    if isinstance(picture, Tensor):
        return picture[None, :, rows, columns].float()
    piece = picture[rows, columns].astype(np.float32) / LEVELS[picture.dtype]
    return torch.from_numpy(piece).permute(2, 0, 1)[None].contiguous()


def _as(band: Tensor, dtype: np.dtype[Any]) -> Picture:
    """(C, h, w) in 0..1 -> (h, w, C) of a type."""
    pixels = band.permute(1, 2, 0).numpy()
    if dtype not in LEVELS:
        return pixels.astype(dtype)
    return (pixels.clip(0, 1) * LEVELS[dtype] + 0.5).astype(dtype)


def seam_error(run: Run, picture: Picture | Tensor, tiling: Tiling) -> float:
    """Return the largest difference, of a range of 1, between a picture restored in tiles and restored whole.

    The picture must fit into memory whole. 0 where one tile covers it.
    """
    height, width, _ = _shape(picture)
    whole = run(_cut(picture, slice(0, height), slice(0, width)))[0].float().cpu().permute(1, 2, 0).numpy()
    return float(np.abs(restore_tiled(run, picture, tiling, dtype=np.float32) - whole).max())
