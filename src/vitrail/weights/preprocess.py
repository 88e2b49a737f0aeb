"""``preprocessor_config.json`` of transformers, read into a card and written from one.

transformers resizes to a fixed height and width ("squash") unless the file says ``shortest_edge``; a card of mode
"center" is written with ``shortest_edge`` and a centre crop, which its ViTImageProcessor obeys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitrail.errors import WeightsError

from .cards import Card

_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL.Image.Resampling
_NAMES = {number: name for name, number in _RESAMPLE.items()}


def write_preprocessor(card: Card) -> dict[str, Any]:
    """Return what transformers' ViTImageProcessor reads."""
    height, width = card.input_size
    data: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _RESAMPLE[card.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }
    if card.crop_mode == "center":
        data["size"] = {"shortest_edge": int(min(height, width) / card.crop_pct)}
        data["do_center_crop"] = True
        data["crop_size"] = {"height": height, "width": width}
    return data


def read_preprocessor(data: Mapping[str, Any], card: Card) -> Card:
    """Return ``card`` with what a ``preprocessor_config.json`` says about images.

    A scale of pixels other than 1/255 is folded into mean and std.
    """
    resize = _side(data.get("size", card.input_size))
    crop = _side(data["crop_size"]) if data.get("do_center_crop") and "crop_size" in data else None
    number = data.get("resample", _RESAMPLE["bilinear"])
    if number not in _NAMES:
        raise WeightsError(f"expected resample of {sorted(_NAMES)} in preprocessor_config.json, got {number!r}")
    mean, std = (0.0,) * len(card.mean), (1.0,) * len(card.std)
    if data.get("do_normalize", True):
        mean, std = tuple(data.get("image_mean", card.mean)), tuple(data.get("image_std", card.std))
    factor = 255 * data.get("rescale_factor", 1 / 255) if data.get("do_rescale", True) else 255
    if abs(factor - 1) > 1e-6:
        mean, std = tuple(m / factor for m in mean), tuple(s / factor for s in std)
    size = crop or resize
    return replace(
        card,
        input_size=size,
        interpolation=_NAMES[number],
        crop_mode="center" if crop else "squash",
        crop_pct=min(1.0, size[0] / resize[0]) if crop else 1.0,
        mean=tuple(float(m) for m in mean),
        std=tuple(float(s) for s in std),
    )


def _side(size: Any) -> tuple[int, int]:
    """Return (H, W) of the three ways in which such files write a size."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
    elif len(size) == 2:
        return int(size[0]), int(size[1])
    raise WeightsError(f"expected a size with height and width, or shortest_edge, got {size!r}")
