"""How one flat buffer of weights moves: AdamW for vectors, tables and heads, Muon for the matrices inside the blocks.

AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101. Muon: momentum whose singular values are made equal by a
Newton-Schulz iteration; the update is scaled to AdamW's usual size, so both share one learning rate (Liu et al. 2025,
arXiv 2502.16982, equations 3 and 4). Both are torch's own; what is ours is that they work on views of one buffer.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .flat import Flat


class Rule(Protocol):
    """Moves the weights of one flat buffer by the gradient beside it."""

    def step(self, lr: float) -> None:
        """Take one step at the rate ``lr``."""

    def moments(self) -> dict[str, Tensor]:
        """Return what must be saved, by name: views (shape of the weight) of the rule's own buffers."""

    def set_updates(self, updates: int) -> None:
        """Set how many steps were taken, after loading a checkpoint."""


class AdamW:
    """AdamW over the whole buffer at once."""

    def __init__(self, flat: Flat, weight: nn.Parameter, settings: Any, decay: float) -> None:
        self.flat, self.weight = flat, weight
        fused = weight.device.type in ("cpu", "cuda", "xpu", "mps")
        self.optimizer = torch.optim.AdamW(
            [weight], betas=settings.betas, eps=settings.eps, weight_decay=decay, fused=fused
        )
        # made now, not at the first step, so that saving and loading need no cases
        self.state = self.optimizer.state[weight]
        self.state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        self.state |= {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}

    def step(self, lr: float) -> None:
        """See :class:`Rule`."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """See :class:`Rule`."""
        kinds = ("exp_avg", "exp_avg_sq")
        return {f"{kind}.{name}": v for kind in kinds for name, v in self.flat.views(self.state[kind]).items()}

    def set_updates(self, updates: int) -> None:
        """See :class:`Rule`."""
        self.state["step"].fill_(float(updates))


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
            parts = 3 if name.endswith("qkv.weight") else 1
            for value, gradient, average in zip(
                *(views[name].flatten(1).chunk(parts) for views in (values, gradients, averages)), strict=True
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
        """See :class:`Rule`."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """See :class:`Rule`."""
        return {f"momentum.{name}": view for name, view in self.flat.views(self.momentum).items()}

    def set_updates(self, updates: int) -> None:
        """Muon counts no steps."""
