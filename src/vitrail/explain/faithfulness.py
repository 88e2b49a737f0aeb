"""Is a map true to the model? Deletion and insertion. Petsiuk, Das & Saenko 2018, arXiv 1806.07421, section 3.3.

Patches are removed from the image in the order of the map, most important first, and the score of the class is
followed: a faithful map makes it fall fast (small area under the curve). Insertion starts from an empty image and adds
patches in the same order: it should rise fast (large area). A map is worth something only if it beats random orders of
the same patches, which are measured beside it. "Removed" means the mean colour of the training data, 0 after
normalising.

B batch, h x w patches, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError

from .geometry import patch_layout


@dataclass(frozen=True)
class Faithfulness:
    """Areas under the curves (B,), in 0..1, of the map and of the mean of random orders.

    ``gain`` is what the map is better by: (insertion - deletion) minus the same of random orders; above 0 is
    better than chance.
    """

    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor

    @property
    def gain(self) -> Tensor:
        """(B,) how much better than random orders the map is, in -2..2."""
        return (self.insertion - self.deletion) - (self.random_insertion - self.random_deletion)


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    *,
    target: Tensor | None = None,
    steps: int = 16,
    random_orders: int = 4,
    seed: int = 0,
) -> Faithfulness:
    """Score (B, h, w) maps of normalised (B, C, H, W) images by deletion and insertion.

    Args:
        model: in eval mode.
        maps: one value a patch; larger is more important. Ties are broken in raster order.
        target: (B,) classes to follow; default the predicted ones.
        steps: points of the curve after the first; patches change in equal groups.
        random_orders: how many random orders the comparison averages.

    Costs 2 * (1 + random_orders) * (steps + 1) forward passes of the batch.
    """
    layout = patch_layout(model, images)
    if maps.shape != (len(images), *layout.grid):
        raise UsageError(f"expected maps of shape {(len(images), *layout.grid)}, got {tuple(maps.shape)}")
    if steps < 1 or random_orders < 1:
        raise UsageError(f"expected steps and random_orders of at least 1, got {steps} and {random_orders}")
    if model.training:
        raise UsageError("expected a model in eval mode, got training mode; mend: call model.eval() first")
    generator = torch.Generator().manual_seed(seed)
    ranked = _ranks(maps.flatten(1).float().cpu())
    shuffled = [_ranks(torch.rand(ranked.shape, generator=generator)) for _ in range(random_orders)]
    with torch.no_grad():
        classes = model(images).argmax(1) if target is None else target.to(images.device)
        areas = [
            [_area(model, images, classes, ranks, layout.patch_size, layout.grid, steps, insert) for insert in (0, 1)]
            for ranks in (ranked, *shuffled)
        ]
    deletion, insertion = areas[0]
    random = torch.stack([torch.stack(pair) for pair in areas[1:]]).mean(0)
    return Faithfulness(deletion, insertion, random[0], random[1])


def _ranks(values: Tensor) -> Tensor:
    """Return (B, P) ranks: 0 for the largest value of a row."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _area(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    ranks: Tensor,
    patch: tuple[int, int],
    grid: tuple[int, int],
    steps: int,
    insert: int,
) -> Tensor:
    """Return (B,) the area under the class score while patches are inserted, or deleted, by rank."""
    scores = []
    for step in range(steps + 1):
        chosen = ranks < round(step / steps * ranks.shape[1])
        kept = (chosen if insert else ~chosen).to(images).view(-1, 1, *grid)
        mask = kept.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)
        edge = (0, images.shape[-1] - mask.shape[-1], 0, images.shape[-2] - mask.shape[-2])
        shown = images * nn.functional.pad(mask, edge)  # what fills no whole patch is not read by the model
        scores.append(model(shown).float().softmax(1).gather(1, classes[:, None]).squeeze(1).cpu())
    return torch.trapezoid(torch.stack(scores), dx=1 / steps, dim=0)
