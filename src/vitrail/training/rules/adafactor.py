"""Adafactor as vision transformers are trained with it: Shazeer and Stern 2018, arXiv 1804.04235, changed as in Zhai et
al. 2022 (Scaling ViT), arXiv 2106.04560, section 3.4.

The square of the gradient of a matrix is remembered as its mean over each row R and each column C, and read back as
R C / mean(R): a few vectors in place of a second copy of the weights. The three changes: momentum, kept in half
precision; no scaling of the rate by the size of the weights; the decay of the squares, 1 - t^-0.8 at step t, ends at
beta 2. torch's own Adafactor has none of them. Nor is the update clipped here: ``clip_norm`` does that to the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrail.training.flat import Flat

from .base import matrices_in

TINY = 1e-30  # epsilon 1 of Shazeer and Stern, section 6
EXPONENT = 0.8  # section 7.2
SMALLEST = 32  # a matrix with a shorter side keeps its squares whole: little would be saved
MOMENTUM_TYPE = torch.bfloat16


class Adafactor:
    """Adafactor over one buffer: momentum flat and in half precision, squares by rows and columns of each matrix."""

    def __init__(self, flat: Flat, weight: nn.Parameter, settings: Any, decay: float) -> None:
        assert weight.grad is not None, "masters always hold a gradient buffer"
        self.flat, self.weight, self.decay, self.updates = flat, weight, decay, 0
        self.keep, self.cap = settings.betas
        self.momentum = torch.zeros_like(weight, dtype=MOMENTUM_TYPE)
        self.squares: dict[str, Tensor] = {}
        self._factored: list[tuple[Tensor, Tensor, Tensor]] = []
        self._whole: list[tuple[Tensor, Tensor]] = []
        for name, gradient in flat.views(weight.grad).items():
            self._remember(name, gradient)

    def _remember(self, name: str, gradient: Tensor) -> None:
        """Make the memory of one weight's squares, and pair it with its gradient."""
        matrices = matrices_in(name, gradient) if gradient.ndim > 1 else ()
        if not matrices or min(matrices[0].shape) < SMALLEST:
            self.squares[f"square.{name}"] = torch.zeros_like(gradient)
            self._whole.append((gradient, self.squares[f"square.{name}"]))
            return
        rows = gradient.new_zeros(len(gradient), 1)
        columns = gradient.new_zeros(len(matrices), matrices[0].shape[1])
        self.squares |= {f"rows.{name}": rows, f"columns.{name}": columns}
        self._factored += zip(matrices, rows.chunk(len(matrices)), columns.split(1), strict=True)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """See :class:`~.base.Rule`."""
        self.updates += 1
        newest = 1 - min(self.cap, 1 - self.updates**-EXPONENT)
        for gradient, rows, columns in self._factored:
            square = gradient.square().add_(TINY)
            rows.lerp_(square.mean(1, keepdim=True), newest)
            columns.lerp_(square.mean(0, keepdim=True), newest)
            gradient.mul_((rows / rows.mean()).rsqrt_()).mul_(columns.rsqrt())
        for gradient, square in self._whole:
            square.lerp_(gradient.square().add_(TINY), newest)
            gradient.mul_(square.rsqrt())
        momentum = self.momentum.float().lerp_(self.weight.grad, 1 - self.keep)  # type: ignore[arg-type]
        self.momentum.copy_(momentum)
        self.weight.mul_(1 - lr * self.decay).add_(momentum, alpha=-lr)

    def moments(self) -> dict[str, Tensor]:
        """See :class:`~.base.Rule`."""
        return {f"momentum.{name}": view for name, view in self.flat.views(self.momentum).items()} | self.squares

    def set_updates(self, updates: int) -> None:
        """See :class:`~.base.Rule`."""
        self.updates = updates
