"""What the answer at some pixels was read from: Grad-CAM of a network that segments.

Source: Vinogradova et al. 2020, arXiv 2002.11434 (Seg-Grad-CAM): the class score of Grad-CAM (Selvaraju et al. 2017,
arXiv 1610.02391, equations 1 and 2) is the mean of the class's logits over a set of pixels: one pixel, or all that were
answered with the class.

K classes, (h, w) grid of the logits, (h', w') grid of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError


def pixel_activation(model: nn.Module, images: Tensor, pixels: Tensor, target: int, level: int = -1) -> Tensor:
    """Return the map (h', w'), not negative, of one normalised image (1, 3, H, W).

    Args:
        model: a network of :mod:`vitrail.models.segmenter`, in evaluation mode.
        images: one image.
        pixels: bool (h, w), which logits the class's score is the mean of.
        target: index of the class.
        level: which of the backbone's maps, counted from the finest; -1 is the deepest.

    Raises :class:`UsageError` for no pixel, or a class that there is not.
    """
    network: Any = model
    with torch.inference_mode(False), torch.enable_grad():
        maps = [x.clone().detach() for x in network.backbone(images.clone())]
        chosen = maps[level].requires_grad_()
        logits = network.head(network.decode(maps))
        if not 0 <= target < logits.shape[1]:
            raise UsageError(f"expected a class index in 0..{logits.shape[1] - 1}, got {target}")
        if pixels.shape != logits.shape[2:] or not bool(pixels.any()):
            raise UsageError(f"expected some of {tuple(logits.shape[2:])} pixels, got none, or a mask of another size")
        (slope,) = torch.autograd.grad(logits[0, target][pixels.to(logits.device)].mean(), [chosen])
    weights = slope.float().mean((2, 3), keepdim=True)
    found: Tensor = (weights * chosen.detach().float()).sum(1).relu()[0]
    return found
