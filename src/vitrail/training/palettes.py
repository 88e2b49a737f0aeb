"""The palette of a run on pixels: fitted to its training images, or that of the weights it starts from, looked at.

B images, I channels, (H, W) pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import BrokenImage
from vitrail.data.imageset import ImageSet
from vitrail.data.palette import FAR, Palette, fit_palette, palette_error
from vitrail.data.transforms import crop_images
from vitrail.errors import DataError
from vitrail.weights import Card

from .pipeline import eval_crop

SAMPLE = 2048  # images that a palette is fitted to, or judged by


def sample(images: ImageSet, card: Card, *, seed: int = 0) -> Tensor:
    """Return at most ``SAMPLE`` images as the model sees them, without augmentation: (B, 3, H, W) float32 in 0..1.

    Raises :class:`DataError` if none of them can be read.
    """
    crop = eval_crop(card)
    chosen = np.random.default_rng(seed).permutation(len(images))[:SAMPLE]
    found = []
    for i in sorted(chosen.tolist()):
        try:
            found.append(crop_images(crop, [images.read(i)], np.empty((1, 0))))
        except BrokenImage:
            continue
    if not found:
        raise DataError("expected images to make a palette of, none could be read; mend: run `vitrail data check`")
    return torch.cat(found).float() / 255


def fit(images: ImageSet, card: Card, *, colours: int, kind: str = "kmeans", seed: int = 0) -> Palette:
    """Return the palette of a set of images."""
    return fit_palette(sample(images, card, seed=seed), colours, kind=kind, seed=seed)


def fresh_palette(config: Any, images: ImageSet, card: Card, *, seed: int) -> Palette | None:
    """Return the palette of a classifier that reads pixels and starts from nothing; None for all other networks."""
    asked = getattr(config, "colours", None)
    return None if asked is None else fit(images, card, colours=asked, seed=seed)


def normalised(colours: Tensor, card: Card) -> Tensor:
    """Return colours (K, I) in 0..1 on the scale of the images that a model of ``card`` is fed."""
    return (colours - torch.tensor(card.mean)) / torch.tensor(card.std)


def judge(images: ImageSet, card: Card, palette: Tensor, own_error: float | None, *, seed: int = 0) -> str:
    """Return a sentence on how well a model's ``palette`` (K, I), as it holds it, suits other pictures.

    ``own_error`` is that on the pictures it was fitted to, None where nobody knows.
    """
    colours = palette.float().cpu() * torch.tensor(card.std) + torch.tensor(card.mean)
    error = palette_error(sample(images, card, seed=seed), colours, seed=seed)
    said = f"palette: its {len(palette)} colours are {error:.1f} of 255 from these pixels (root mean square)"
    if own_error is None:
        return said
    said += f", {own_error:.1f} from those they were fitted to"
    if error <= max(FAR * own_error, own_error + 1):
        return said
    return (
        f"warning: {said}: it is the palette of other pictures, and these lose much in it. mend: train from fresh"
        " weights, whose palette is fitted to these pictures"
    )


def own_error(extra: Any) -> float | None:
    """Return the error that a folder's ``extra`` says its palette had on the pictures it was fitted to."""
    told = extra.get("palette") if hasattr(extra, "get") else None
    return None if told is None else float(told["error"])


def to_extra(palette: Palette) -> dict[str, Any]:
    """Return what a folder of weights says of its palette."""
    return {"palette": {"kind": palette.kind, "colours": len(palette.colours), "error": round(palette.error, 3)}}
