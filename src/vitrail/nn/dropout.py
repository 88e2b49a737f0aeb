"""Dropout whose mask costs little on a CPU: torch's draws a number a value there, this one two random bytes.

Source: Srivastava et al. 2014, Journal of Machine Learning Research 15.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16  # the rate is kept to this precision


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`; on a CPU four times as fast, from the same generator but with other draws."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        if not self.training or not 0 < self.p < 1:
            return super().forward(x)
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not x.is_floating_point():
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * LEVELS) - LEVELS // 2
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))
