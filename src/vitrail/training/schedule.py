"""Learning rate as a pure function of the step, so that nothing needs saving.

Linear warm-up, then a shape. Cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5 without restarts. Inverse
square root with a linear cooldown, whose trunk does not know where the run ends: Zhai et al. 2022 (Scaling ViT), arXiv
2106.04560, section 3.5. Constant with a cooldown (warm-up, stable, decay): Hu et al. 2024, arXiv 2404.06395, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Name = Literal["cosine", "linear", "rsqrt", "constant"]
ENDLESS = ("rsqrt", "constant")
"""Shapes that do not depend on the length of the run: a cooldown may end them anywhere."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate over ``total`` steps: ``warmup`` steps up to ``lr``, then a shape down to ``min_lr``.

    cosine, linear: from ``lr`` to ``min_lr`` at the end.
    rsqrt: lr / sqrt(1 + (step - warmup) / timescale), and over the last ``cooldown`` steps in a line to ``min_lr``.
    constant: ``lr``, and over the last ``cooldown`` steps in a line to ``min_lr``.
    """

    name: Name
    lr: float
    total: int
    warmup: int = 0
    min_lr: float = 0.0
    cooldown: int = 0
    timescale: int = 1

    def __post_init__(self) -> None:
        if self.warmup + self.cooldown > self.total:
            raise ValueError(
                f"expected warmup + cooldown of at most {self.total} steps, got {self.warmup} + {self.cooldown}"
            )

    def __call__(self, step: int) -> float:
        """Return the rate of the update that takes the weights from ``step`` to ``step + 1``; steps count from 0.

        The warm-up's first rate is lr / warmup, never 0; the last step of a falling line is just above ``min_lr``.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.name in ENDLESS:
            start = self.total - self.cooldown
            return self._trunk(step) if step < start or not self.cooldown else self._cool(step - start)
        way = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        share = 0.5 * (1 + math.cos(math.pi * way)) if self.name == "cosine" else 1 - way
        return self.min_lr + (self.lr - self.min_lr) * share

    def _trunk(self, step: int) -> float:
        """Return the rate of a run without an end."""
        return self.lr if self.name == "constant" else self.lr / math.sqrt(1 + (step - self.warmup) / self.timescale)

    def _cool(self, done: int) -> float:
        """Return the rate after ``done`` steps of the cooldown, in a line from the trunk's rate at its start."""
        start = self._trunk(self.total - self.cooldown)
        return start + (self.min_lr - start) * min(1.0, done / self.cooldown)


def schedule_of(recipe: Any, per_epoch: int) -> Schedule:
    """Return the schedule of a resolved recipe, in steps; ``per_epoch`` steps an epoch."""
    s = recipe.schedule
    return Schedule(
        s.name,
        recipe.optim.lr,
        recipe.train.epochs * per_epoch,
        warmup=round(s.warmup_epochs * per_epoch),
        min_lr=s.min_lr or 0.0,
        cooldown=round((s.cooldown_epochs or 0) * per_epoch),
        timescale=max(1, round((s.timescale_epochs or 0) * per_epoch)),
    )
