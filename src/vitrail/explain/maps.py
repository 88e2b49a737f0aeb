"""Maps of a classifier: which patches its answer was read from.

Methods for models whose every attention layer attends to all patches (ViT, hybrid ViT, DeiT)
- ``rollout``      Abnar & Zuidema 2020: attention multiplied through all layers (:mod:`.rollout`).
- ``class_token``  the last layer's attention alone, a map for each head and their mean.
- ``gradient``     Chefer et al. 2021: attention weighted by the gradient of the class score (:mod:`.gradients`).

For every model
- ``grad_cam``     Selvaraju et al. 2017: the last feature map, weighted by that gradient (:mod:`.cam`).

What "the answer" reads of the last attention layer depends on the head, called the readout here:
- class token (and distillation token): the row of that token (the mean of both rows);
- mean pooling (``avg``, ``gap``): the mean of the patch rows, that is the attention each patch receives on average;
- attention pooling (``map``): the pooling attention; it replaces the last layer for ``class_token`` and is
  multiplied onto the layers' product for the other two.

B batch, H heads, N tokens, K classes, h x w patches.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError, did_you_mean
from vitrail.nn.attention import Attention

from .cam import chosen, class_activation
from .geometry import PatchLayout, patch_layout
from .gradients import relevance
from .record import Recording, record
from .rollout import HeadFusion, rollout

Method = Literal["rollout", "class_token", "gradient", "grad_cam"]
METHODS: tuple[str, ...] = get_args(Method)
ONE_CELL = "The map has one cell, so it says nothing about places; mend: larger images."


@dataclass(frozen=True)
class AttentionMaps:
    """Maps (B, h, w), unscaled and not negative; per_head (B, H, h, w) of ``class_token``, else None; logits (B, K)."""

    method: Method
    maps: Tensor
    per_head: Tensor | None
    logits: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.maps.shape[-2], self.maps.shape[-1]


def scale01(maps: Tensor) -> Tensor:
    """Scale each (..., h, w) map to span 0..1; a constant map becomes 0."""
    low = maps.amin((-2, -1), keepdim=True)
    span = maps.amax((-2, -1), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))


@torch.inference_mode(False)  # gradients, if they are asked for, work inside the mode too
def attention_maps(
    model: nn.Module,
    images: Tensor,
    *,
    method: Method | None = None,
    target: Tensor | None = None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> AttentionMaps:
    """Explain the answers of ``model`` on normalised (B, C, H, W) ``images``.

    Args:
        model: a classifier in eval mode.
        method: see the module's docstring; default :func:`default_method`.
        target: (B,) class indices to explain, for ``gradient`` and ``grad_cam``; default the predicted class.
        head_fusion, discard_ratio: for ``rollout`` only, see :func:`.rollout.rollout`.

    An option that the method does not use is an error, as is a model in training mode (its maps would be random), or a
    method that the model has no attention for.
    """
    method = method or default_method(model, images)
    _check_options(model, method, target, head_fusion, discard_ratio)
    layout = patch_layout(model, images)
    if method == "grad_cam":
        cells, answer = class_activation(model, images, target, layout)
        return AttentionMaps(method, cells, None, answer)
    needs_grad = method == "gradient"
    images = images.detach().clone().requires_grad_() if needs_grad else images
    with torch.set_grad_enabled(needs_grad), _recorded(model, method) as recording:
        logits = model(images)
    layers = global_layers(recording, layout)
    if not layers:
        raise _no_attention(model, method)
    readout = _readout(model, layout, recording, layers[-1])
    per_head = None
    if method == "rollout":
        flow = rollout(layers, head_fusion=head_fusion, discard_ratio=discard_ratio)
        rows = (readout.mean(1).unsqueeze(1) @ flow).squeeze(1)
    elif method == "class_token":
        per_head = _last_layer(readout, recording, layers[-1])
        rows = per_head.mean(1)
    else:
        rows = _gradient_rows(logits, target, readout, recording, layers)
    return AttentionMaps(
        method,
        _to_grid(rows, layout),
        None if per_head is None else _to_grid(per_head, layout),
        logits.detach(),
    )


def default_method(model: nn.Module, images: Tensor) -> Method:
    """Return "rollout" for a model whose every attention layer attends to all patches, "grad_cam" for any other."""
    if not any(isinstance(part, Attention) for part in model.modules()):
        return "grad_cam"
    with torch.no_grad(), record(model) as recording:
        model(images[:1])
    return "rollout" if global_layers(recording, patch_layout(model, images)) else "grad_cam"


def global_layers(recording: Recording, layout: PatchLayout) -> list[Tensor]:
    """Return the (B, H, N, N) map of each layer, if all attention but that of a pooling is of all tokens; else none."""
    maps = [calls[0] for calls in recording.values() if len(calls) == 1]
    tokens = layout.num_tokens
    layers = [a for a in maps if a.ndim == 4 and a.shape[-2:] == (tokens, tokens)]
    others = [a for a in maps if a.ndim != 4 or (a.shape[-2:] != (tokens, tokens) and a.shape[-2] != 1)]
    return [] if others else layers


def _recorded(model: nn.Module, method: str) -> AbstractContextManager[Recording]:
    if not any(isinstance(part, Attention) for part in model.modules()):
        raise _no_attention(model, method)
    return record(model)


def _no_attention(model: nn.Module, method: str) -> UsageError:
    return UsageError(
        f"method {method!r} follows attention of all patches to all patches through every layer, which"
        f" {type(model).__name__} does not have; mend: --method grad-cam, which every model has (in Python"
        " method='grad_cam')"
    )


def _check_options(
    model: nn.Module, method: str, target: Tensor | None, head_fusion: str, discard_ratio: float
) -> None:
    if method not in METHODS:
        raise UsageError(f"expected an explanation method of {METHODS}, got {method!r}.{did_you_mean(method, METHODS)}")
    if target is not None and method not in ("gradient", "grad_cam"):
        raise UsageError(f"`target` has no effect on method {method!r}; mend: use method='gradient' or 'grad_cam'")
    if method != "rollout" and (head_fusion != "mean" or discard_ratio):
        raise UsageError(f"head_fusion and discard_ratio have no effect on method {method!r}; they are rollout's")
    if model.training:
        raise UsageError("expected a model in eval mode, got training mode; mend: call model.eval() first")


def _readout(model: nn.Module, layout: PatchLayout, recording: Recording, last: Tensor) -> Tensor:
    """Return (B, 1 or H, N) weights, summing to 1, with which the classifier reads the last layer's tokens."""
    batch, tokens, prefix = last.shape[0], layout.num_tokens, layout.num_prefix_tokens
    pooled = recording.pooling()
    if pooled is not None:
        weights = pooled[:, :, 0].detach().float()
        # A pooling that does not attend to prefix tokens has no columns for them.
        return nn.functional.pad(weights, (tokens - weights.shape[-1], 0))
    weights = torch.zeros(batch, 1, tokens, device=last.device)
    if prefix > 0 and getattr(getattr(model, "config", None), "global_pool", "token") == "token":
        weights[..., : 2 if hasattr(model, "dist_token") else 1] = 1.0
    else:
        weights[..., prefix:] = 1.0
    return weights / weights.sum(-1, keepdim=True)


def _last_layer(readout: Tensor, recording: Recording, last: Tensor) -> Tensor:
    """Return (B, H, N): the readout's own attention if it pools by attention, else its rows of the last layer."""
    if recording.pooling() is not None:
        return readout
    return (readout.unsqueeze(2) @ last.float()).squeeze(2)


def _gradient_rows(
    logits: Tensor, target: Tensor | None, readout: Tensor, recording: Recording, layers: list[Tensor]
) -> Tensor:
    scores = logits.gather(1, chosen(logits, target)[:, None]).squeeze(1)
    pooled = recording.pooling()
    if pooled is None:
        return (readout.mean(1).unsqueeze(1) @ relevance(layers, scores)[1]).squeeze(1)
    weighted, flow = relevance([*layers, pooled], scores)
    pool = nn.functional.pad(weighted[-1], (flow.shape[-1] - weighted[-1].shape[-1], 0))
    return (pool + pool @ flow).squeeze(1)


def _to_grid(rows: Tensor, layout: PatchLayout) -> Tensor:
    """Drop the prefix tokens of (..., N) rows and fold the patches into (..., h, w)."""
    patches = rows[..., layout.num_prefix_tokens :].detach()
    return patches.reshape(*rows.shape[:-1], *layout.grid)
