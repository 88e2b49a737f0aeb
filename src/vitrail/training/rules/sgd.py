"""Stochastic gradient descent with momentum: Sutskever et al. 2013 (ICML), section 2; torch's own, over one buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.training.flat import Flat

from .base import one_pass


class SGD:
    """Gradient descent with momentum, Nesterov's or not, over the whole buffer at once.

    The decay is added to the gradient, as in the papers that train with it, and so is averaged with it.
    """

    def __init__(self, flat: Flat, weight: nn.Parameter, settings: Any, decay: float) -> None:
        self.flat = flat
        self.optimizer = torch.optim.SGD(
            [weight],
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=decay,
            fused=one_pass(weight),
        )
        # from zeros the first average is the first gradient, as where torch makes the buffer itself
        self.average = torch.zeros_like(weight) if settings.momentum else None
        if self.average is not None:
            self.optimizer.state[weight]["momentum_buffer"] = self.average

    def step(self, lr: float) -> None:
        """See :class:`~.base.Rule`."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """See :class:`~.base.Rule`."""
        found = {} if self.average is None else self.flat.views(self.average)
        return {f"momentum.{name}": view for name, view in found.items()}

    def set_updates(self, updates: int) -> None:
        """SGD counts no steps."""
