"""Grad-CAM: which cells of the last feature map speak for a class. Selvaraju et al. 2017, arXiv 1610.02391.

Equation 1: the weight of a channel is the gradient of the class score, averaged over the cells; equation 2: the map is
the weighted sum of the channels, its negative part cut off. Where the head is linear on the mean of the map this is the
class activation map of Zhou et al. 2016, arXiv 1512.04150. It works for every model that has a map: convolutions,
windows, reduced and global attention.

The map is the output of the last layer whose cells the score depends on. In a ViT that reads its class token this is
the last block but one: what the last block makes of the patches is read by nobody.

B batch, C width, h x w cells, T prefix tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vitrail.errors import UsageError
from vitrail.metrics.cost import layers

from .geometry import PatchLayout


def class_activation(
    model: nn.Module, images: Tensor, target: Tensor | None, layout: PatchLayout
) -> tuple[Tensor, Tensor]:
    """Return maps (B, h, w), not negative, and logits (B, K) of normalised (B, I, H, W) images.

    ``target`` (B,) are the classes to explain; default the predicted ones. It works under ``torch.no_grad()`` and
    ``torch.inference_mode()`` too, also for a model that was made there. Raises :class:`UsageError` if no layer makes a
    map of the layout's grid.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _class_activation(model, images, None if target is None else target.clone(), layout)


def _class_activation(
    model: nn.Module, images: Tensor, target: Tensor | None, layout: PatchLayout
) -> tuple[Tensor, Tensor]:
    outputs: list[Tensor] = []
    handles = [model.get_submodule(name).register_forward_hook(_keep(outputs)) for name, _ in layers(model)]
    try:
        logits = functional_call(model, _usable(model), (images.clone().detach().requires_grad_(),))
    finally:
        for handle in handles:
            handle.remove()
    found = [(out, cells) for out in outputs if (cells := _cells(out, layout)) is not None]
    if not found:
        raise UsageError(f"expected a layer with a map of {layout.grid} cells, found none in {type(model).__name__}")
    scores = logits.gather(1, chosen(logits, target)[:, None]).sum()
    gradients = torch.autograd.grad(scores, [out for out, _ in found], allow_unused=True)
    maps = torch.zeros(len(images), layout.grid[0] * layout.grid[1], device=images.device)
    for (_, cells), gradient in zip(found, gradients, strict=True):
        slope = None if gradient is None else _cells(gradient, layout)
        if slope is not None and bool(slope.any()):  # the last of them stays
            maps = (slope.float().mean(1, keepdim=True) * cells.detach().float()).sum(2).relu()
    return maps.view(-1, *layout.grid), logits.detach()


def _usable(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers that autograd refuses: those made in inference mode."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.clone() for name, tensor in own.items() if tensor.is_inference()}


def chosen(logits: Tensor, target: Tensor | None) -> Tensor:
    """Return the (B,) classes to explain: those asked for, or the predicted ones."""
    target = logits.argmax(1) if target is None else target.to(logits.device)
    if target.shape != logits.shape[:1]:
        raise UsageError(f"expected one target class an image, shape ({len(logits)},), got {tuple(target.shape)}")
    return target


def _keep(outputs: list[Tensor]) -> Any:
    def hook(_: nn.Module, __: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad:
            outputs.append(out)

    return hook


def _cells(x: Tensor, layout: PatchLayout) -> Tensor | None:
    """Return the cells (B, h · w, C) of a layer's output, or None if it is no map of this grid.

    Maps are (B, C, h, w) or (B, h, w, C); tokens are (B, h · w, C) or (B, T + h · w, C).
    """
    count = layout.grid[0] * layout.grid[1]
    if x.ndim == 3 and x.shape[1] in (count, layout.num_tokens):
        return x[:, x.shape[1] - count :]
    if x.ndim == 4 and x.shape[2:] == layout.grid and layout.width in (None, x.shape[1]):
        return x.flatten(2).transpose(1, 2)
    if x.ndim == 4 and x.shape[1:3] == layout.grid and layout.width in (None, x.shape[3]):
        return x.flatten(1, 2)
    return None
