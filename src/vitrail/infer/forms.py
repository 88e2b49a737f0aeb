"""What goes into and comes out of a network that was exported, by what it answers.

B batch, H, W pixels, K classes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.models import answers
from vitrail.nn.detection import Answer, Detections

OUTPUTS = {
    "classes": ("logits",),
    "boxes": ("logits", "boxes_cxcywh01", "masks"),
    "masks": ("logits",),
    "pictures": ("pictures",),
}
"""What a network answers -> names of its outputs; masks of boxes where the network has them."""


def require_exportable(config: Any) -> None:
    """Raise :class:`UsageError` for a network that is not a function of images alone."""
    if answers(config) not in OUTPUTS or (hasattr(config, "colours") and not config.num_classes):
        raise UsageError(
            "expected a network that answers images with classes, boxes, masks or pictures, got one that reads text or "
            "paints; mend: use it from Python: vitrail.load(RUN)"
        )


def as_function(model: nn.Module, config: Any) -> nn.Module:
    """Return the network as a function of tensors alone, giving a tensor or a tuple of them."""
    return Answer(model) if answers(config) == "boxes" else model


def input_names(config: Any) -> tuple[str, ...]:
    """Return the names of the inputs: images (B, 3, H, W); for boxes also keep (B, H, W), True on real pixels."""
    return ("images", "keep") if answers(config) == "boxes" else ("images",)


def example(config: Any, size: tuple[int, int], batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return inputs that look like images: smooth, with noise, normalised or not; of boxes the last ones padded."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.linspace(0, 3, n) for n in size)
    wave = torch.sin(rows[:, None] + columns[None]) * 0.5 + 0.5
    noise = torch.rand(batch, config.in_chans, *size, generator=generator)
    images = (wave * torch.rand(batch, config.in_chans, 1, 1, generator=generator) + 0.3 * noise).clamp(0, 1)
    if answers(config) != "pictures":
        images = (images - 0.5) / 0.25
    if answers(config) != "boxes":
        return (images,)
    keep = torch.ones(batch, *size, dtype=torch.bool)
    if batch > 1:
        keep[-1, size[0] * 3 // 4 :] = False
        images[-1, :, size[0] * 3 // 4 :] = 0.0
    return images, keep


def rebuild(config: Any, outputs: Sequence[Tensor]) -> Any:
    """Return outputs as the network itself gives them: a tensor, or :class:`Detections` of one layer."""
    if answers(config) != "boxes":
        return outputs[0]
    masks = outputs[2] if len(outputs) > 2 else None
    return Detections(outputs[0][None], outputs[1][None], masks=masks)
