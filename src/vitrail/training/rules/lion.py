"""Lion, found by a search over programs: Chen et al. 2023, arXiv 2302.06675, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.training.flat import Flat


class Lion:
    """The sign of an average of the gradient: every weight moves by the rate, whatever its gradient's size.

    Two averages of one buffer: what the step looks at leans on the newest gradient (beta 1), what is remembered on the
    past (beta 2). Half of AdamW's memory.
    """

    def __init__(self, flat: Flat, weight: nn.Parameter, settings: Any, decay: float) -> None:
        self.flat, self.weight, self.betas, self.decay = flat, weight, settings.betas, decay
        self.average = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """See :class:`~.base.Rule`."""
        gradient, (look, remember) = self.weight.grad, self.betas
        assert gradient is not None, "masters always hold a gradient buffer"
        direction = self.average.lerp(gradient, 1 - look).sign_()
        self.weight.mul_(1 - lr * self.decay).add_(direction, alpha=-lr)
        self.average.lerp_(gradient, 1 - remember)

    def moments(self) -> dict[str, Tensor]:
        """See :class:`~.base.Rule`."""
        return {f"average.{name}": view for name, view in self.flat.views(self.average).items()}

    def set_updates(self, updates: int) -> None:
        """Lion counts no steps."""
