"""From a decoded image to what the weights' card asks for, and back to the place in the image.

The crop is the one that training evaluates with (``vitrail.data.transforms.EvalCrop``), so a prediction and an
evaluation see the same pixels. B batch, H, W the model's input size; boxes are (x0, y0, x1, y1) in image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vitrail.weights.cards import Card

from .draw import Box


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise to ``size`` (H, W) as ``card`` says."""

    card: Card
    size: tuple[int, int]

    @cached_property
    def _crop(self) -> Any:
        from vitrail.data.transforms import EvalCrop

        return EvalCrop(
            self.size,
            crop_pct=self.card.crop_pct,
            interpolation=self.card.interpolation,
            mode=self.card.crop_mode,
        )

    def crop(self, image: Tensor) -> Tensor:
        """Turn uint8 (3, h, w) into uint8 (3, H, W)."""
        cropped: Tensor = self._crop(image)
        return cropped

    def batch(self, crops: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Stack and normalise crops to (B, 3, H, W) of ``dtype`` on ``device``."""
        pixels = torch.stack(list(crops)).to(device).float() / 255
        mean = torch.tensor(self.card.mean, device=device).view(1, -1, 1, 1)
        std = torch.tensor(self.card.std, device=device).view(1, -1, 1, 1)
        return ((pixels - mean) / std).to(dtype)

    def box(self, image: Tensor, covered: tuple[int, int] | None = None) -> Box:
        """Return the part of ``image`` (3, h, w) that the crop shows.

        ``covered`` is the (height, width) of the input, from its top left, that the model really reads: patches that
        are not whole are dropped. Default all of it.
        """
        height, width = image.shape[-2:]
        shown_h, shown_w = covered or self.size
        if self.card.crop_mode == "squash":
            return 0.0, 0.0, width * shown_w / self.size[1], height * shown_h / self.size[0]
        scale = max(self.size[0] / height, self.size[1] / width) / self.card.crop_pct
        x0, y0 = (width - self.size[1] / scale) / 2, (height - self.size[0] / scale) / 2
        return x0, y0, x0 + shown_w / scale, y0 + shown_h / scale
