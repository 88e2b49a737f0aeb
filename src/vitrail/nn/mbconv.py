"""MBConv: the inverted bottleneck with a depthwise convolution and squeeze-excitation, normed before it.

Sources: Sandler et al. 2018, arXiv 1801.04381 (inverted bottleneck); Hu et al. 2018, arXiv 1709.01507 (squeeze and
excitation); Dai et al. 2021, arXiv 2106.04803, section 2 and appendix A.1 (pre-normed, as CoAtNet has it).

Maps (B, C, h, w) are kept in channels-last memory: there a 1x1 convolution is a linear layer on the last axis.
B batch, C channels, E = 4 C expanded channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import ACTIVATIONS, Activation, Linear, conv_act, linear_act
from .norms import affine, fixed
from .residual import DropPath
from .shortcuts import plain, watched

Stride = Literal["expand", "depthwise", "pool"]
Pool = Literal["max", "avg", "max3"]


@dataclass(frozen=True)
class MBConvForm:
    """In what the published MBConvs differ; the defaults are the paper's.

    Attributes:
        stride: which layer halves the map: the first 1x1 convolution ("expand"), the depthwise one, or pooling before.
        pool: how the shortcut halves: 2x2 "max", 2x2 "avg", or 3x3 "max3"; before the path it is always "avg".
        act: activation after both norms.
        pre_act: whether it follows the first norm too.
        bias: whether the last 1x1 convolution and the shortcut's have a bias.
        gate_act: activation inside squeeze-excitation.
        gate_early: squeeze-excitation before the second norm instead of after its activation.
    """

    stride: Stride = "expand"
    pool: Pool = "max"
    act: Activation = "gelu"
    pre_act: bool = False
    bias: bool = True
    gate_act: Activation = "silu"
    gate_early: bool = False


def halve(x: Tensor, pool: Pool) -> Tensor:
    """Map (B, C, h, w) -> (B, C, ⌈h/2⌉, ⌈w/2⌉); odd sides count the cells that are there."""
    if pool == "avg":
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    if pool == "max":
        return F.max_pool2d(x, 2, ceil_mode=True)
    return F.max_pool2d(x, 3, stride=2, padding=1)


class Shortcut(nn.Module):
    """The way round a block that halves the map (``pool`` says how) or changes the width (a projection)."""

    def __init__(self, dim: int, out_dim: int, pool: Pool | None, *, bias: bool = True) -> None:
        super().__init__()
        self.pool = pool
        self.expand = nn.Identity() if dim == out_dim else Linear(dim, out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, h, w) -> (B, out_dim, h, w), or half the height and width, rounded up."""
        return on_channels(self.expand, x if self.pool is None else halve(x, self.pool))


def on_channels(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer of the last axis to the channels of a map; in channels-last memory nothing is copied."""
    out: Tensor = layer(x.permute(0, 2, 3, 1))
    return out.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in 0..1 that a two-layer network makes of all channel means."""

    def __init__(self, dim: int, hidden_dim: int, act: Activation = "silu") -> None:
        super().__init__()
        self.act = act
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        gate: Tensor = self.fc2(ACTIVATIONS[self.act](self.fc1(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class MBConv(nn.Module):
    """``shortcut(x) + path(project(gate(act(norm2(depthwise(act(norm1(expand(pre_norm(x)))))))))``.

    Args:
        dim: input channels C.
        out_dim: output channels.
        hidden_dim: expanded channels E.
        gate_dim: hidden channels of squeeze-excitation.
        stride: 2 to halve the map.
        form: which of the published forms.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden_dim: int,
        gate_dim: int,
        stride: int = 1,
        form: MBConvForm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.form = form
        self.act = ACTIVATIONS[form.act]
        self.thins = stride == 2 and form.stride != "depthwise"
        self.shortcut = (
            Shortcut(dim, out_dim, form.pool if stride == 2 else None, bias=form.bias)
            if stride == 2 or dim != out_dim
            else nn.Identity()
        )
        self.pre_norm = nn.BatchNorm2d(dim)
        self.expand = Linear(dim, hidden_dim, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden_dim)
        step = 1 if self.thins else stride
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, 3, stride=step, padding=1, groups=hidden_dim, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden_dim)
        self.gate = SqueezeExcite(hidden_dim, gate_dim, form.gate_act)
        self.project = Linear(hidden_dim, out_dim, bias=form.bias)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w), or half the height and width, rounded up."""
        branch = self._gated(self._fused(x) if self._may_fuse() else self._layers(x))
        out: Tensor = self.shortcut(x) + self.drop_path(on_channels(self.project, branch))
        return out

    def _layers(self, x: Tensor) -> Tensor:
        """Up to the depthwise convolution, layer by layer."""
        x = self.pre_norm(x)
        x = self._thin(self.act(x) if self.form.pre_act else x)
        hidden: Tensor = self.depthwise(self.act(self.norm1(on_channels(self.expand, x))))
        return hidden if self.form.gate_early else self.act(self.norm2(hidden))

    def _fused(self, x: Tensor) -> Tensor:
        """The same numbers with the norms' fixed scales and shifts inside the weights: half the passes over memory."""
        into, out = affine(self.pre_norm), affine(self.norm1)
        if self.form.pre_act:
            x = self.act((x * into[0][:, None, None] + into[1][:, None, None]).to(x.dtype))
            into = (torch.ones_like(into[0]), torch.zeros_like(into[1]))
        weight = out[0][:, None] * self.expand.weight
        shift = out[1] + weight @ into[1]
        weight, shift = (weight * into[0]).to(x.dtype), shift.to(x.dtype)  # norms may be in float32, the rest in bf16
        x = on_channels(lambda t: linear_act(t, weight, shift, self.form.act), self._thin(x))
        conv = self.depthwise
        if self.form.gate_early:
            early: Tensor = conv(x)
            return early
        scale, shift = affine(self.norm2)
        kernel = conv.weight * scale[:, None, None, None]
        return conv_act(
            x,
            kernel.to(x.dtype),
            shift.to(x.dtype),
            self.form.act,
            stride=conv.stride[0],
            padding=1,
            groups=conv.groups,
        )

    def _gated(self, x: Tensor) -> Tensor:
        if self.form.gate_early:
            return self.act(self.norm2(self.gate(x)))
        gated: Tensor = self.gate(x)
        return gated

    def _thin(self, x: Tensor) -> Tensor:
        """Halve the map before the first 1x1 convolution, if that is where the form does it."""
        if not self.thins:
            return x
        return x[:, :, ::2, ::2] if self.form.stride == "expand" else halve(x, "avg")

    def _may_fuse(self) -> bool:
        """Norms that are fixed, as in evaluation, fold away; whoever hooks into the block gets every layer."""
        norms = (self.pre_norm, self.norm1, self.norm2)
        if not all(fixed(norm) for norm in norms) or not plain(self.expand, Linear):
            return False
        return plain(self.depthwise, nn.Conv2d) and not watched(self)
