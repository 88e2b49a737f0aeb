"""What a query of a detector attends to in the image: the last decoder layer's weights, as a map.

Sources: Carion et al. 2020, arXiv 2005.12872, figure 6 (DETR); Zhu et al. 2021, arXiv 2010.04159, figure 6 (Deformable
DETR, whose points count for the cells around them).

B batch, Q queries, H heads, S cells of all maps, (h, w) a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.errors import UsageError
from vitrail.nn.detection import Detections

Grids = list[tuple[int, int]]


@dataclass(frozen=True)
class Watched:
    """One pass through a detector: what it said, and what the queries of its last decoder layer attended to.

    Attributes:
        found: what it said of the images.
        weights: (B, Q, S) float32, the mean over heads.
        grids: (h, w) of each map.
    """

    found: Detections
    weights: Tensor
    grids: Grids

    def attention(self, query: int) -> Tensor:
        """Return what the query numbered ``query`` attended to, (B, h, w) on the finest map; see
        :func:`query_attention`.
        """
        if not 0 <= query < self.weights.shape[1]:
            raise UsageError(f"expected a query from 0 to {self.weights.shape[1] - 1}, got {query}")
        return _on_the_finest(self.weights[:, query], self.grids)


def watch(model: nn.Module, images: Tensor, keep: Tensor | None = None) -> Watched:
    """Return what a DETR or a Deformable DETR says of images, and what its queries attended to.

    Args and errors are those of :func:`query_attention`.
    """
    layers = getattr(model, "decoder", None)
    cross: Any = getattr(layers[-1], "cross", None) if isinstance(layers, nn.ModuleList) else None
    if cross is None:
        raise UsageError(f"expected a network that finds objects by queries, got {type(model).__name__}")
    tape: list[Tensor] = []
    former, grids = cross.tape, _Grids(model)
    try:
        cross.tape = tape
        with torch.inference_mode():
            found = model(images, keep)
    finally:
        cross.tape = former
        grids.close()
    return Watched(found, tape[-1].float().mean(1), grids.found)


def query_attention(model: nn.Module, images: Tensor, keep: Tensor | None = None, query: int = 0) -> Tensor:
    """Return what the query numbered ``query`` attends to, (B, h, w) float32 on the finest map it reads.

    The mean over heads; of several maps each is enlarged to the finest, its weights shared out, and all are added.

    Args:
        model: a DETR or a Deformable DETR.
        images: (B, 3, H, W), normalised, padded at the right and bottom.
        keep: (B, H, W) bool, True on real pixels.
        query: its number, 0 .. Q - 1.

    Raises:
        UsageError: a model without queries, or a number it has not.
    """
    return watch(model, images, keep).attention(query)


class _Grids:
    """Learns the (h, w) of the maps that the decoder reads, while the model runs."""

    def __init__(self, model: Any) -> None:
        self.found: Grids = []
        levels = getattr(model, "levels", None)
        self._hook = (model.backbone if levels is None else levels).register_forward_hook(self._see)

    def _see(self, module: nn.Module, given: Any, out: Any) -> None:
        self.found = [tuple(out[-1].shape[2:])] if isinstance(out, list) else list(out[0].grids)

    def close(self) -> None:
        """Take the hook off again."""
        self._hook.remove()


def _on_the_finest(weights: Tensor, grids: Grids) -> Tensor:
    """Add up the parts of (B, S) that lie on each map, on the finest: (B, h, w)."""
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    total = weights.new_zeros(weights.shape[0], *finest)
    for part, (h, w) in zip(torch.split(weights, [h * w for h, w in grids], 1), grids, strict=True):
        enlarged = F.interpolate(part.view(-1, 1, h, w), size=finest, mode="bilinear", align_corners=False)[:, 0]
        total += enlarged * (h * w / (finest[0] * finest[1]))
    return total
