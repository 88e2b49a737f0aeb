"""Normalisation over channels.

Token models use :class:`torch.nn.LayerNorm` as it is; feature maps need the same over their second dimension. What a
batch norm comes to in evaluation is read off here too.

B batch, C channels, (h, w) grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .shortcuts import plain


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, h, w), at each position by itself.

    Source: Ba et al. 2016, arXiv 1607.06450, applied per position as in Liu et al. 2022, arXiv 2201.03545.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose scale, shift and statistics never move: one scale and shift a channel, in training too.

    Source: Carion et al. 2020, arXiv 2005.12872, appendix A.4: networks that start from a classifier's weights and see
    few images at a time.
    """

    weight: Tensor  # type: ignore[assignment]
    bias: Tensor  # type: ignore[assignment]

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps, affine=False)
        del self._parameters["weight"], self._parameters["bias"], self._buffers["num_batches_tracked"]
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("num_batches_tracked", None)
        self.track_running_stats = self.training = False

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation, whatever the mode of the network."""
        return self


def fixed(norm: nn.Module) -> bool:
    """Whether a layer is a batch norm that applies the same scale and shift to every image, see :func:`affine`."""
    if norm.training or not plain(norm, nn.BatchNorm2d, FrozenBatchNorm2d):
        return False
    return isinstance(norm.weight, Tensor) and isinstance(norm.running_mean, Tensor)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the (scale, shift), each (C,), that a batch norm applies in evaluation."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a batch norm with running statistics")
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
