"""Learning rate as a pure function of the step, so that nothing needs saving.

Linear warm-up, then half a cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5 without restarts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Learning rate over ``total`` steps: ``warmup`` steps up to ``lr``, then down to ``min_lr`` (or flat)."""

    name: Literal["cosine", "constant"]
    lr: float
    total: int
    warmup: int = 0
    min_lr: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the rate of the update that takes the weights from ``step`` to ``step + 1``; steps count from 0.

        The warm-up's first rate is lr / warmup, never 0; the last step of the cosine is just above ``min_lr``.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.name == "constant":
            return self.lr
        way = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * way))
