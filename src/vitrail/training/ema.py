"""Exponential moving average of the float32 weights (Polyak and Juditsky 1992; decay warm-up as TensorFlow's)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .optim import Masters


class Ema:
    """Average of the masters' flat buffers: average += (1 - decay) * (weight - average) after each update.

    The running statistics of batch norms are averaged alike: those of the last step belong to other weights. After u
    updates the decay used is min(decay, (1 + u) / (10 + u)), so a short run is not held back by its start.

    ``statistics`` are the buffers that training changes, by name; counters among them are copied.
    """

    def __init__(self, masters: Masters, decay: float, statistics: Mapping[str, Tensor] | None = None) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"expected an EMA decay between 0 and 1, got {decay}")
        self.masters, self.decay = masters, decay
        self.buffers: list[Tensor] = [w.detach().clone() for w in masters.weights]
        self._watched = dict(statistics or {})
        self.statistics = {name: t.detach().clone() for name, t in self._watched.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights; call it once after each update of the masters."""
        done = self.masters.updates
        decay = min(self.decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(self.buffers, [w.detach() for w in self.masters.weights], 1 - decay)
        for name, average in self.statistics.items():
            if average.is_floating_point():
                average.lerp_(self._watched[name], 1 - decay)
            else:
                average.copy_(self._watched[name])
