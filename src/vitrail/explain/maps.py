"""Attention maps of a classifier: which patches its answer was read from.

Methods
- ``rollout``      Abnar & Zuidema 2020: attention multiplied through all layers (:mod:`.rollout`).
- ``class_token``  the last layer's attention alone, a map for each head and their mean.
- ``gradient``     Chefer et al. 2021: attention weighted by the gradient of the class score (:mod:`.gradients`).

What "the answer" reads depends on the head, called the readout here:
- class token (and distillation token): the row of that token (the mean of both rows);
- mean pooling (``avg``, ``gap``): the mean of the patch rows, that is the attention each patch receives on average;
- attention pooling (``map``): the pooling attention; it replaces the last layer for ``class_token`` and is
  multiplied onto the layers' product for the other two.

B batch, H heads, N tokens, K classes, h x w patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError, did_you_mean

from .geometry import PatchLayout, patch_layout
from .gradients import relevance
from .record import Recording, record
from .rollout import HeadFusion, rollout

Method = Literal["rollout", "class_token", "gradient"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class AttentionMaps:
    """Maps (B, h, w), unscaled and not negative; per_head (B, H, h, w) of ``class_token``, else None; logits (B, K)."""

    method: str
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


def attention_maps(
    model: nn.Module,
    images: Tensor,
    *,
    method: Method = "rollout",
    target: Tensor | None = None,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
) -> AttentionMaps:
    """Explain the answers of ``model`` on normalised (B, C, H, W) ``images``.

    Args:
        model: a classifier whose layers attend to all patches (ViT, DeiT), in eval mode.
        method: see the module's docstring.
        target: (B,) class indices to explain, for ``gradient`` only; default the predicted class.
        head_fusion, discard_ratio: for ``rollout`` only, see :func:`.rollout.rollout`.

    An option that the method does not use is an error, as is a model in training mode (its maps would be random).
    """
    _check_options(model, method, target, head_fusion, discard_ratio)
    layout = patch_layout(model, images)
    needs_grad = method == "gradient"
    images = images.detach().clone().requires_grad_() if needs_grad else images
    with torch.set_grad_enabled(needs_grad), record(model) as recording:
        logits = model(images)
    layers = [a for a in recording.square() if a.shape[-1] == layout.num_tokens]
    if not layers:
        raise UsageError(
            f"expected layers that attend to all {layout.num_tokens} tokens, found none in {type(model).__name__}; "
            f"attention maps are for ViT-like models"
        )
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


def _check_options(
    model: nn.Module, method: str, target: Tensor | None, head_fusion: str, discard_ratio: float
) -> None:
    if method not in METHODS:
        raise UsageError(f"expected an explanation method of {METHODS}, got {method!r}.{did_you_mean(method, METHODS)}")
    if target is not None and method != "gradient":
        raise UsageError(f"`target` has no effect on method {method!r}; mend: use method='gradient'")
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
    target = logits.argmax(1) if target is None else target.to(logits.device)
    if target.shape != logits.shape[:1]:
        raise UsageError(f"expected one target class an image, shape ({len(logits)},), got {tuple(target.shape)}")
    scores = logits.gather(1, target[:, None]).squeeze(1)
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
