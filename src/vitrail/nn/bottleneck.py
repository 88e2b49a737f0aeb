"""The blocks of residual networks, and the stages they form: two 3x3 convolutions, or a 3x3 between two 1x1.

Sources: He et al. 2016, arXiv 1512.03385, figures 2 and 5 (basic block, bottleneck); Goyal et al. 2017, arXiv
1706.02677 (the stride stands on the 3x3 convolution: "v1.5"); He et al. 2016, arXiv 1603.05027, figure 4e
(pre-activation); Kolesnikov et al. 2020, arXiv 1912.11370, section 3 (BiT).

Blocks are handed functions that build their parts: ``conv(in, out, kernel, stride, dilation)`` and ``norm(channels)``.

B batch, C channels, (h, w) grid, s stride.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conv import Conv2d, conv_norm
from .residual import DropPath, drop_path_rates
from .shortcuts import watched

MakeConv = Callable[..., Conv2d]
MakeNorm = Callable[[int], nn.Module]
Dilations = tuple[int, int]
"""Of a block's first 3x3 convolution and of later ones: a dilated stage starts with the dilation of the one before."""


def in_place(block: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Return ReLU and addition that overwrite their first argument, or that do not where somebody may have kept it."""
    return (F.relu, torch.add) if watched(block) else (F.relu_, Tensor.add_)


class ConvNorm(nn.Module):
    """A convolution and its norm: the stem of a network, or the shortcut of a block that changes width or grid."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, *, conv: MakeConv, norm: MakeNorm
    ) -> None:
        super().__init__()
        self.conv = conv(in_chans, out_chans, kernel_size, stride)
        self.norm = norm(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉)."""
        return conv_norm(self.conv, self.norm, x)


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + norm(conv3x3(relu(norm(conv3x3(x))))))``.

    Args:
        in_chans: input channels C.
        out_chans: output channels C'.
        stride: s, of the first convolution.
        dilations: see :data:`Dilations`.
        conv: builds a convolution.
        norm: builds a norm.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        dilations: Dilations = (1, 1),
        *,
        conv: MakeConv,
        norm: MakeNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        keeps = stride == 1 and in_chans == out_chans
        self.shortcut = nn.Identity() if keeps else ConvNorm(in_chans, out_chans, 1, stride, conv=conv, norm=norm)
        self.conv1 = conv(in_chans, out_chans, 3, stride, dilations[0])
        self.norm1 = norm(out_chans)
        self.conv2 = conv(out_chans, out_chans, 3, 1, dilations[1])
        self.norm2 = norm(out_chans)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the branch; with a scale of zero the block starts as its shortcut."""
        return self.norm2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉)."""
        relu, add = in_place(self)
        branch = relu(conv_norm(self.conv1, self.norm1, x))
        branch = self.drop_path(conv_norm(self.conv2, self.norm2, branch))
        return relu(add(branch, self.shortcut(x)))


class Bottleneck(nn.Module):
    """``relu(shortcut(x) + norm(conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(x)))))))))``, a quarter as wide inside.

    Args:
        in_chans: input channels C.
        out_chans: output channels C'.
        stride: s, of the 3x3 convolution.
        dilations: see :data:`Dilations`; the first one counts.
        conv: builds a convolution.
        norm: builds a norm.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        dilations: Dilations = (1, 1),
        *,
        conv: MakeConv,
        norm: MakeNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        keeps = stride == 1 and in_chans == out_chans
        inner = out_chans // 4
        self.shortcut = nn.Identity() if keeps else ConvNorm(in_chans, out_chans, 1, stride, conv=conv, norm=norm)
        self.conv1 = conv(in_chans, inner, 1)
        self.norm1 = norm(inner)
        self.conv2 = conv(inner, inner, 3, stride, dilations[0])
        self.norm2 = norm(inner)
        self.conv3 = conv(inner, out_chans, 1)
        self.norm3 = norm(out_chans)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.Module:
        """The norm that ends the branch; with a scale of zero the block starts as its shortcut."""
        return self.norm3

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉)."""
        relu, add = in_place(self)
        branch = relu(conv_norm(self.conv1, self.norm1, x))
        branch = relu(conv_norm(self.conv2, self.norm2, branch))
        branch = self.drop_path(conv_norm(self.conv3, self.norm3, branch))
        return relu(add(branch, self.shortcut(x)))


class PreActBottleneck(nn.Module):
    """``shortcut + conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(a)))))))`` of ``a = relu(norm(x))``.

    A projection, if there is one, reads ``a`` and has no norm; the plain shortcut is ``x``.

    Args:
        in_chans: input channels C.
        out_chans: output channels C'.
        stride: s, of the 3x3 convolution.
        dilations: see :data:`Dilations`; the first one counts.
        conv: builds a convolution.
        norm: builds a norm.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int = 1,
        dilations: Dilations = (1, 1),
        *,
        conv: MakeConv,
        norm: MakeNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        inner = out_chans // 4
        keeps = stride == 1 and in_chans == out_chans
        self.project = None if keeps else conv(in_chans, out_chans, 1, stride)
        self.norm1 = norm(in_chans)
        self.conv1 = conv(in_chans, inner, 1)
        self.norm2 = norm(inner)
        self.conv2 = conv(inner, inner, 3, stride, dilations[0])
        self.norm3 = norm(inner)
        self.conv3 = conv(inner, out_chans, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉)."""
        relu, add = in_place(self)
        active = relu(self.norm1(x))
        branch = conv_norm(self.conv1, self.norm2, active)
        branch = conv_norm(self.conv2, self.norm3, relu(branch))
        out: Tensor = self.drop_path(self.conv3(relu(branch)))
        return add(out, x if self.project is None else self.project(active))


Block = type[BasicBlock] | type[Bottleneck] | type[PreActBottleneck]


class Stage(nn.Module):
    """Blocks in a row; the first may change width and grid.

    Args:
        block: their class.
        in_chans: input channels C.
        out_chans: output channels C'.
        stride: s, of the first block.
        dilations: of the first block's first 3x3 convolution, and of all others.
        conv: builds a convolution.
        norm: builds a norm.
        drop_paths: rate of stochastic depth of each block.
    """

    def __init__(
        self,
        block: Block,
        in_chans: int,
        out_chans: int,
        *,
        stride: int,
        dilations: Dilations = (1, 1),
        conv: MakeConv,
        norm: MakeNorm,
        drop_paths: list[float],
    ) -> None:
        super().__init__()
        first = block(in_chans, out_chans, stride, dilations, conv=conv, norm=norm, drop_path=drop_paths[0])
        same = (dilations[1], dilations[1])
        later = (block(out_chans, out_chans, 1, same, conv=conv, norm=norm, drop_path=p) for p in drop_paths[1:])
        self.blocks = nn.Sequential(first, *later)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉)."""
        out: Tensor = self.blocks(x)
        return out


def make_stages(
    block: Block,
    in_chans: int,
    depths: tuple[int, ...],
    widths: tuple[int, ...],
    *,
    steps: list[Step],
    conv: MakeConv,
    norm: MakeNorm,
    drop_path_rate: float = 0.0,
) -> nn.Sequential:
    """Return stages of the given depths and widths; the rate of stochastic depth grows over all their blocks."""
    rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
    inputs = (in_chans, *widths)
    stages = (
        Stage(
            block,
            inputs[i],
            widths[i],
            stride=step.stride,
            dilations=step.dilations,
            conv=conv,
            norm=norm,
            drop_paths=[next(rates) for _ in range(depth)],
        )
        for i, (depth, step) in enumerate(zip(depths, steps, strict=True))
    )
    return nn.Sequential(*stages)


def stage_maps(stages: nn.Sequential, steps: list[Step], x: Tensor) -> dict[int, Tensor]:
    """Run all stages; return the map of each (B, C, h, w) by its stride to the image: of those of one stride, the last.

    The last map stands last.
    """
    maps: dict[int, Tensor] = {}
    for step, stage in zip(steps, stages, strict=True):
        x = stage(x)
        maps[step.reach] = x
    return maps


@dataclass(frozen=True)
class Step:
    """What a stage does to the grid: its own stride, its dilations, and the stride of its map to the image."""

    stride: int
    dilations: Dilations
    reach: int


def plan_steps(count: int, stem_stride: int, output_stride: int) -> list[Step]:
    """Return one step a stage: each after the first halves the grid, until a cell is ``output_stride`` pixels.

    From there on stages dilate their 3x3 convolutions by two more instead, so that filters see as far as they would
    have (DC5 in Carion et al. 2020, arXiv 2005.12872, section 4).
    """
    reach, dilation, steps = stem_stride, 1, []
    for i in range(count):
        before, stride = dilation, 1 if i == 0 else 2
        if reach >= output_stride:
            dilation, stride = dilation * stride, 1
        reach *= stride
        steps.append(Step(stride, (before, dilation), reach))
    return steps
