"""Where a model's patches lie: in its input, and through resize and crop in the picture the user gave.

h, w patch rows and columns; boxes are (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError


@dataclass(frozen=True)
class PatchLayout:
    """Patch grid (rows, columns), patch size (height, width) in pixels, and tokens before the patch tokens."""

    grid: tuple[int, int]
    patch_size: tuple[int, int]
    num_prefix_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens in the sequence: prefix tokens and patches."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one int or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def patch_layout(model: nn.Module, images: Tensor) -> PatchLayout:
    """Return how ``model`` cuts (B, C, H, W) ``images`` into patches.

    The patch size comes from ``model.patch_embed``; a model without one is asked by running ``features``.
    """
    height, width = images.shape[-2:]
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    embed = getattr(model, "patch_embed", None)
    if embed is not None and hasattr(embed, "patch_size"):
        patch = pair(embed.patch_size)
        return PatchLayout((height // patch[0], width // patch[1]), patch, prefix)
    if not hasattr(model, "features"):
        raise UsageError(f"expected a model with `patch_embed.patch_size` or `features()`, got {type(model).__name__}")
    with torch.no_grad():
        grid: tuple[int, int] = cast(Any, model).features(images[:1]).grid
    return PatchLayout(grid, (height // grid[0], width // grid[1]), prefix)
