"""Muon: momentum whose singular values are made equal by a Newton-Schulz iteration.

The update is scaled to AdamW's usual size, so both share one learning rate (Liu et al. 2025, arXiv 2502.16982,
equations 3 and 4). torch's own; what is ours is that it works on views of one buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.training.flat import Flat

from .base import matrices_in


class Muon:
    """Muon on each matrix of the buffer.

    The rows of q, k and v in a fused projection are three matrices; a convolution's kernel is one of (out, in · k · k).
    """

    def __init__(self, flat: Flat, weight: nn.Parameter, settings: Any, decay: float) -> None:
        assert weight.grad is not None, "masters always hold a gradient buffer"
        self.flat = flat
        self.momentum = torch.zeros_like(weight)
        matrices: list[nn.Parameter] = []
        momenta: list[Tensor] = []
        values, gradients, averages = (flat.views(t.detach()) for t in (weight, weight.grad, self.momentum))
        for name in flat.places:
            for value, gradient, average in zip(
                *(matrices_in(name, views[name]) for views in (values, gradients, averages)), strict=True
            ):
                matrix = nn.Parameter(value)
                matrix.grad = gradient
                matrices.append(matrix)
                momenta.append(average)
        self.optimizer = torch.optim.Muon(
            matrices, momentum=settings.momentum, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        for matrix, average in zip(matrices, momenta, strict=True):
            self.optimizer.state[matrix]["momentum_buffer"] = average

    def step(self, lr: float) -> None:
        """See :class:`~.base.Rule`."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """See :class:`~.base.Rule`."""
        return {f"momentum.{name}": view for name, view in self.flat.views(self.momentum).items()}

    def set_updates(self, updates: int) -> None:
        """Muon counts no steps."""
