"""Named tensors laid end to end in one buffer, so that updates and averages are a few long passes over memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ALIGN = 32  # every weight starts on a 64-byte boundary in both types, as the matrix kernels like it


class Flat:
    """Named tensors laid end to end in one float32 buffer."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.places: dict[str, tuple[int, torch.Size]] = {}
        end = 0
        for name, tensor in named.items():
            self.places[name] = (end, tensor.shape)
            end += -(-tensor.numel() // ALIGN) * ALIGN
        device = next(iter(named.values())).device
        self.buffer = torch.zeros(end, dtype=torch.float32, device=device)
        for name, view in self.views(self.buffer).items():
            view.copy_(named[name].detach())

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return each name's part of ``buffer``, which is laid out like this one, in its own shape."""
        return {name: buffer[start : start + shape.numel()].view(shape) for name, (start, shape) in self.places.items()}
