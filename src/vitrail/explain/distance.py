"""Mean attention distance by head and depth. Dosovitskiy et al. 2021, arXiv 2010.11929, figures 7 (right) and 11.

For each query patch the distance, in pixels, between its centre and the centres of all patches is averaged with
the attention weights; then over query patches and images. Class and distillation tokens have no place in the image:
their rows and columns are left out and each remaining row is renormalised to sum to 1. A row that gives all its
weight to such tokens counts as distance 0.

B batch, H heads, N tokens, P patches (P = h * w).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.nn.attention import Attention

from .geometry import patch_layout
from .maps import global_layers
from .record import record


def patch_distances(grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Return the (P, P) Euclidean distances between patch centres, in pixels."""
    rows = torch.arange(grid[0], dtype=torch.float32) * patch_size[0]
    columns = torch.arange(grid[1], dtype=torch.float32) * patch_size[1]
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(
    attention: Tensor, grid: tuple[int, int], patch_size: tuple[int, int], *, num_prefix_tokens: int
) -> Tensor:
    """Return the (B, H) mean attention distance, in pixels, of one layer's (B, H, N, N) weights."""
    patches = grid[0] * grid[1]
    if attention.shape[-1] != attention.shape[-2] or attention.shape[-1] != patches + num_prefix_tokens:
        raise UsageError(
            f"expected (B, H, N, N) weights with N = {num_prefix_tokens} + {grid[0]} x {grid[1]}, "
            f"got {tuple(attention.shape)}"
        )
    weights = attention[..., num_prefix_tokens:, num_prefix_tokens:].float()
    distances = patch_distances(grid, patch_size).to(weights.device)
    total = weights.sum(-1)
    per_query = (weights * distances).sum(-1) / total.clamp(min=torch.finfo(torch.float32).tiny)
    return per_query.mean(-1)


def uniform_distance(grid: tuple[int, int], patch_size: tuple[int, int]) -> float:
    """Return the mean attention distance, in pixels, of a head that attends to all patches alike."""
    return float(patch_distances(grid, patch_size).mean())


def attention_distances(model: nn.Module, images: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the (depth, H) mean attention distances of a model, in pixels, averaged over images.

    ``images`` is one (B, C, H, W) normalised batch, or an iterable of them of one size. The model's mode (train or
    eval) is left as it is; no gradient is kept.
    """
    if not any(isinstance(part, Attention) for part in model.modules()):
        raise UsageError(f"attention distance needs attention, and {type(model).__name__} has none")
    total, count = torch.zeros(()), 0
    with torch.no_grad():
        for batch in [images] if isinstance(images, Tensor) else images:
            layout = patch_layout(model, batch)
            with record(model) as recording:
                model(batch)
            rows = [
                attention_distance(a, layout.grid, layout.patch_size, num_prefix_tokens=layout.num_prefix_tokens).sum(0)
                for a in global_layers(recording, layout)
            ]
            if not rows:
                raise UsageError(
                    "attention distance is defined for models whose every layer attends to all patches; windows and"
                    f" reduced keys bound it by construction, and {type(model).__name__} has these"
                )
            total, count = total + torch.stack(rows).cpu(), count + len(batch)
    if count == 0:
        raise UsageError("expected at least one image to measure attention distance on, got none")
    return total / count
