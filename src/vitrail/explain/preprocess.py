"""From a decoded image to what the weights' card asks for, and back to the place in the image.

The crop is the one that training evaluates with (``vitrail.data.transforms.EvalCrop``), so a prediction and an
evaluation see the same pixels. B batch, H, W the model's input size; boxes are (x0, y0, x1, y1) in image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vitrail.data.resample import resize
from vitrail.data.transforms import EvalCrop
from vitrail.weights.cards import Card

from .draw import Box


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalise to ``size`` (H, W) as ``card`` says.

    Raises :class:`UsageError` when first used if the card asks for an interpolation that the data code lacks.
    """

    card: Card
    size: tuple[int, int]

    @cached_property
    def _crop(self) -> EvalCrop:
        return EvalCrop(self.size, self.card.crop_pct, self.card.interpolation)

    def crop(self, image: Tensor) -> Tensor:
        """Turn uint8 (3, h, w) into uint8 (3, H, W)."""
        if self.card.crop_mode == "squash":
            return resize(image, self.size, self.card.interpolation)
        return self._crop(image[None], np.zeros((1, 0)))[0]

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
        whole_h, whole_w = self._crop.resized(height, width)
        top, left = round((whole_h - self.size[0]) / 2), round((whole_w - self.size[1]) / 2)
        x, y = width / whole_w, height / whole_h
        return left * x, top * y, (left + shown_w) * x, (top + shown_h) * y
