"""AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101; torch's own, over one buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.training.flat import Flat

from .base import one_pass


class AdamW:
    """AdamW over the whole buffer at once."""

    def __init__(self, flat: Flat, weight: nn.Parameter, settings: Any, decay: float) -> None:
        self.flat, self.weight = flat, weight
        self.optimizer = torch.optim.AdamW(
            [weight], betas=settings.betas, eps=settings.eps, weight_decay=decay, fused=one_pass(weight)
        )
        # made now, not at the first step, so that saving and loading need no cases
        self.state = self.optimizer.state[weight]
        self.state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        self.state |= {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}

    def step(self, lr: float) -> None:
        """See :class:`~.base.Rule`."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """See :class:`~.base.Rule`."""
        kinds = ("exp_avg", "exp_avg_sq")
        return {f"{kind}.{name}": v for kind in kinds for name, v in self.flat.views(self.state[kind]).items()}

    def set_updates(self, updates: int) -> None:
        """See :class:`~.base.Rule`."""
        self.state["step"].fill_(float(updates))
