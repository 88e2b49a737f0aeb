"""Decoders of dense prediction: the maps of a backbone become one map at the stride of the finest.

Sources: Xiao et al. 2018, arXiv 1807.10221, section 3 (UPerNet), with the pyramid pooling of Zhao et al. 2017, arXiv
1612.01105, section 3.2; Lin et al. 2017, arXiv 1612.03144, section 3 (FPN); Kirillov et al. 2019, arXiv 1901.02446,
section 3 (Semantic FPN); Xie et al. 2021, arXiv 2105.15203, section 3.2 (SegFormer's MLP decoder). Sizes and the layers
without a bias are those of mmseg, whose checkpoints are the published ones. Resizing never aligns corners.

Every decoder maps a list of maps (B, C_i, h_i, w_i), the finest first, to (B, D, h_1, w_1).
B batch, C_i channels of level i, D channels of the decoder, (h_i, w_i) grid of level i, s_i its stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bottleneck import ConvNorm, in_place
from .conv import Conv2d
from .fused import Linear, linear

Grid = tuple[int, int]


def resize_map(x: Tensor, size: Grid) -> Tensor:
    """Map (B, C, h, w) -> (B, C, H, W), bilinear, corners not aligned; a map of that size comes back as it is."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def grid_of(x: Tensor) -> Grid:
    """Return (h, w) of a map (B, C, h, w)."""
    return x.shape[2], x.shape[3]


class ConvNormReLU(ConvNorm):
    """A convolution without bias, batch norm, ReLU: (B, C, h, w) -> (B, D, h, w)."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int) -> None:
        super().__init__(in_chans, out_chans, kernel_size, conv=Conv2d, norm=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h, w)."""
        relu, _ = in_place(self)
        return relu(super().forward(x))


class PyramidPooling(nn.Module):
    """The last map beside means of it over coarse grids, fused by a 3x3 convolution.

    Args:
        in_chans: channels C of the map.
        channels: D.
        scales: sides of the grids that are averaged to.
    """

    def __init__(self, in_chans: int, channels: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.pooled = nn.ModuleList(ConvNormReLU(in_chans, channels, 1) for _ in self.scales)
        self.fuse = ConvNormReLU(in_chans + len(self.scales) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h, w)."""
        size = grid_of(x)
        means = [
            resize_map(conv(F.adaptive_avg_pool2d(x, side)), size)
            for side, conv in zip(self.scales, self.pooled, strict=True)
        ]
        out: Tensor = self.fuse(torch.cat([x, *means], dim=1))
        return out


class FuseLevels(ConvNorm):
    """A 3x3 convolution over levels that are enlarged to the finest one and laid side by side; batch norm, ReLU.

    The convolution is a sum over levels and over the nine places of the kernel, and at each place a product over the
    channels, which may change places with enlarging: so the products of a coarse level run at its own size, a quarter,
    a sixteenth or less of the work, and their results are enlarged and shifted. Enlarging is a matrix over rows and one
    over columns, and shifting moves the rows of these, zeros coming in, as the convolution's padding is. The numbers
    agree to rounding.

    Args:
        levels: how many.
        channels: D, of each level and of the result.
    """

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__(levels * channels, channels, 3, conv=Conv2d, norm=nn.BatchNorm2d)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """(B, D, h_i, w_i) of each level, the finest first -> (B, D, h_1, w_1)."""
        parts = self.conv.weight.chunk(len(maps), dim=1)
        size = grid_of(maps[0])
        out = F.conv2d(maps[0], parts[0], padding=1)
        for x, part in zip(maps[1:], parts[1:], strict=True):
            out = out + _convolve_enlarged(x, part, size)
        relu, _ = in_place(self)
        return relu(self.norm(out))


def _convolve_enlarged(x: Tensor, kernel: Tensor, size: Grid) -> Tensor:
    """Return the 3x3 convolution of a map (B, C, h, w) that is enlarged to (H, W) first: (B, D, H, W)."""
    batch, _, h, w = x.shape
    channels = kernel.shape[0]
    rows, columns = (_enlarging(n, to, x) for n, to in zip((h, w), size, strict=True))
    products = F.conv2d(x, kernel.permute(0, 2, 3, 1).reshape(9 * channels, -1, 1, 1))
    lines = products.reshape(batch, channels, 3, 3, h, w).transpose(3, 4).reshape(batch, channels, 3 * h, 3 * w)
    return rows @ (lines @ columns.mT)


def _enlarging(size: int, to: int, like: Tensor) -> Tensor:
    """Return (to, 3 size): the matrix that enlarges a side, shifted for each of the three places of a kernel."""
    eye = torch.eye(size, dtype=torch.float32, device=like.device)[None, None]
    whole = F.interpolate(eye, size=(to, size), mode="bilinear", align_corners=False)[0, 0]
    shifted = (F.pad(whole, (0, 0, 1, 0))[:to], whole, F.pad(whole, (0, 0, 0, 1))[1:])
    return torch.cat(shifted, dim=1).to(like.dtype)


class UPerDecoder(nn.Module):
    """UPerNet: pyramid pooling of the last map, a top-down path, all levels fused at the finest stride.

    Args:
        in_chans: C_i of each level, the finest first.
        channels: D.
        scales: grids of the pyramid pooling.
    """

    def __init__(self, in_chans: Sequence[int], channels: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.pooling = PyramidPooling(in_chans[-1], channels, scales)
        self.laterals = nn.ModuleList(ConvNormReLU(width, channels, 1) for width in in_chans[:-1])
        self.outputs = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in in_chans[:-1])
        self.fuse = FuseLevels(len(in_chans), channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) of each level -> (B, D, h_1, w_1)."""
        levels = [self.pooling(maps[-1])]  # the coarsest first
        for lateral, x in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            levels.append(lateral(x) + resize_map(levels[-1], grid_of(x)))
        refined = [output(x) for output, x in zip(self.outputs, reversed(levels[1:]), strict=True)]
        out: Tensor = self.fuse([*refined, levels[0]])
        return out


class FeaturePyramidNetwork(nn.Module):
    """FPN: levels of one width, each with what the coarser ones know.

    Convolutions have biases, and neither norms nor activations; a coarser level is enlarged by repeating its cells.

    Args:
        in_chans: C_i of each level, the finest first.
        channels: D of every level.
    """

    def __init__(self, in_chans: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_chans)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_chans)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, h_i, w_i) of each level -> (B, D, h_i, w_i) of each level."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=grid_of(levels[i - 1]), mode="nearest")
        return [output(x) for output, x in zip(self.outputs, levels, strict=True)]


class Enlarge(nn.Module):
    """Twice the height and width, bilinear: (B, C, h, w) -> (B, C, 2h, 2w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return resize_map(x, (2 * x.shape[2], 2 * x.shape[3]))


class SemanticFPNDecoder(nn.Module):
    """Semantic FPN: each level of an FPN is brought to the finest stride by convolutions and doublings, all are added.

    Args:
        in_chans: C_i of each level, the finest first.
        strides: s_i, powers of two apart.
        neck_channels: of the FPN.
        channels: D.
    """

    def __init__(self, in_chans: Sequence[int], strides: Sequence[int], *, neck_channels: int, channels: int) -> None:
        super().__init__()
        self.neck = FeaturePyramidNetwork(in_chans, neck_channels)
        self.branches = nn.ModuleList(
            _branch(neck_channels, channels, round(math.log2(stride / strides[0]))) for stride in strides
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) of each level -> (B, D, h_1, w_1)."""
        size = grid_of(maps[0])
        found = [branch(x) for branch, x in zip(self.branches, self.neck(maps), strict=True)]
        out: Tensor = found[0]
        for x in found[1:]:
            out = out + resize_map(x, size)
        return out


def _branch(in_chans: int, channels: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(max(1, doublings)):
        layers.append(ConvNormReLU(channels if i else in_chans, channels, 3))
        if doublings:
            layers.append(Enlarge())
    return nn.Sequential(*layers)


class MLPDecoder(nn.Module):
    """SegFormer's: a linear layer a level, all levels enlarged side by side, a 1x1 convolution over them.

    Nothing bends between these three steps, and resizing works on each channel alone: so the columns of the convolution
    that read a level are multiplied into its linear layer, each level runs through one small product at its own size,
    and the enlarged results are added. The numbers agree to rounding; the large product at the finest stride is gone.

    Args:
        in_chans: C_i of each level, the finest first.
        channels: D.
    """

    def __init__(self, in_chans: Sequence[int], channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(Linear(width, channels) for width in in_chans)
        self.fuse = ConvNorm(len(in_chans) * channels, channels, 1, conv=Conv2d, norm=nn.BatchNorm2d)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i) of each level -> (B, D, h_1, w_1)."""
        size = grid_of(maps[0])
        columns = self.fuse.conv.weight.flatten(1).chunk(len(maps), dim=1)  # the coarsest level's come first
        fused = [
            resize_map(_through(project, part, x), size)
            for project, x, part in zip(self.projections, maps, reversed(columns), strict=True)
        ]
        relu, _ = in_place(self)
        return relu(self.fuse.norm(sum(fused[1:], fused[0])))


def _through(project: nn.Module, columns: Tensor, x: Tensor) -> Tensor:
    """Map (B, C, h, w) through a linear layer C -> E and then ``columns`` (D, E), as one product: (B, D, h, w)."""
    assert isinstance(project, nn.Linear)
    out = linear(x.permute(0, 2, 3, 1), columns @ project.weight, columns @ project.bias)
    return out.permute(0, 3, 1, 2)
