"""Where a model's patches lie: in its input, and through resize and crop in the picture the user gave.

Models without patches have the cells of their last feature map instead, each as wide as its stride; the last cells may
reach beyond the picture.

h, w patch rows and columns; boxes are (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.nn.tokens import Features


@dataclass(frozen=True)
class PatchLayout:
    """How a model cuts its input.

    Attributes:
        grid: rows and columns of patches.
        patch_size: height and width of a patch in pixels.
        num_prefix_tokens: tokens before the patch tokens.
        width: channels of the map that the patches are cells of; None if it was not asked for.
    """

    grid: tuple[int, int]
    patch_size: tuple[int, int]
    num_prefix_tokens: int
    width: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in the sequence: prefix tokens and patches."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width in pixels, from the top left of the input, of all patches together."""
        return self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1]

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of what of an input of ``size`` is in a patch."""
        return min(self.covered[0], size[0]), min(self.covered[1], size[1])


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one int or as two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def patch_layout(model: nn.Module, images: Tensor) -> PatchLayout:
    """Return how ``model`` cuts (B, C, H, W) ``images`` into patches.

    The patch size of a model with one grid comes from ``model.patch_embed``; any other is asked by running
    ``features``, and its patches are the cells of its last map.
    """
    height, width = images.shape[-2:]
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    embed = getattr(model, "patch_embed", None)
    one_grid = len(getattr(model, "feature_channels", [0])) == 1
    if one_grid and embed is not None and hasattr(embed, "patch_size"):
        patch = pair(embed.patch_size)
        return PatchLayout((height // patch[0], width // patch[1]), patch, prefix)
    if not hasattr(model, "features"):
        raise UsageError(f"expected a model with `patch_embed.patch_size` or `features()`, got {type(model).__name__}")
    with torch.no_grad():
        found: Features = cast(Any, model).features(images[:1])
    stride = max(found.maps)
    return PatchLayout(found.grid, (stride, stride), prefix, found.maps[stride].shape[1])
