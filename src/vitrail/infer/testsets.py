"""A restorer on test sets: PSNR and SSIM of each, beside those of what it was given, enlarged bicubically."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.data.bicubic import bicubic
from vitrail.data.decode import BrokenImage
from vitrail.data.degrade import Degradation
from vitrail.data.restoration import Photos, Whole, open_photos
from vitrail.errors import DataError
from vitrail.metrics.images import psnr, ssim

from .restorer import Restorer
from .tile import restore_tiled


@dataclass(frozen=True)
class SetFigures:
    """Means over the pictures of a set.

    Attributes:
        name: of the set.
        count: pictures measured.
        psnr: in dB, ssim: of what was restored; base_psnr, base_ssim: of what came in (bicubic where it is smaller).
        each: file name -> PSNR of what came in, and restored.
        faults: what could not be read, with reasons.
    """

    name: str
    count: int
    psnr: float
    ssim: float
    base_psnr: float
    base_ssim: float
    each: Mapping[str, tuple[float, float]]
    faults: tuple[str, ...] = ()


def measure_set(
    restorer: Restorer, name: str, photos: Photos, told: Callable[[str], None] = lambda text: None
) -> SetFigures:
    """Measure a restorer on the pictures of a set, whole, one by one.

    Raises :class:`DataError` if none of them can be read.
    """
    border, channel = restorer.measure
    how: Any = {"border": border, "channel": channel}
    prepare, rows, each, faults = Whole(photos.degrade), [], {}, []
    for i in range(len(photos)):
        try:
            pair = prepare(photos.read(i), np.zeros(0))
        except BrokenImage as error:
            faults.append(f"{photos.name(i)}: {error.message}")
            continue
        made = restore_tiled(restorer.run, pair.low, restorer.tiling(), dtype=np.float32)
        better = torch.from_numpy(made).permute(2, 0, 1)
        base = pair.low
        if restorer.scale > 1:
            size = (pair.high.shape[1], pair.high.shape[2])
            base = bicubic((base.clamp(0, 1) * 255).round().to(torch.uint8), size).float() / 255
        found = [psnr(better, pair.high, **how), ssim(better, pair.high, **how)]
        rows.append([*found, psnr(base, pair.high, **how), ssim(base, pair.high, **how)])
        each[Path(photos.name(i)).name] = (rows[-1][2], rows[-1][0])
        told(f"{name}: {Path(photos.name(i)).name}: {rows[-1][2]:.2f} -> {rows[-1][0]:.2f} dB")
    if not rows:
        raise DataError(f"expected a set with pictures that can be read, got none in {name}: {'; '.join(faults[:3])}")
    after, like, before, before_like = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    return SetFigures(name, len(rows), after, like, before, before_like, each, tuple(faults))


def open_set(folder: str | Path, degrade: Degradation, channels: int) -> Photos:
    """Return the pictures of a test set: see :func:`vitrail.data.restoration.open_photos`."""
    return open_photos(str(folder), degrade, channels=channels)
