"""ResNet, and BiT: the residual networks that vision transformers are compared with, and stand on.

Sources: He et al. 2016, arXiv 1512.03385, table 1 (ResNet-18 to 152) and section 4.2 (for 32x32 images); Goyal et al.
2017, arXiv 1706.02677 (stride on the 3x3 convolution, zero scale in the last norm of a block); Kolesnikov et al. 2020,
arXiv 1912.11370, section 3 (BiT: pre-activation, GroupNorm, weight standardisation).

B batch, I input channels, H·W pixels, C channels, (h, w) grid, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.nn.bottleneck import BasicBlock, Bottleneck, ConvNorm, PreActBottleneck, Step, make_stages, plan_steps
from vitrail.nn.conv import Conv2d, StdConv2d, channels_last_kernels
from vitrail.nn.init import initialise
from vitrail.nn.tokens import Features


@dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a ResNet: batch norms after the convolutions.

    Attributes:
        img_size: (H, W) it is meant for; any size works.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1).
        depths: blocks of each stage.
        widths: channels that each stage puts out.
        stem: "large" (7x7 convolution of stride 2, then max-pooling: stride 4) or "small" (3x3, stride 1).
        stem_width: channels of the stem.
        output_stride: pixels to a cell of the last map; with 16 (DC5) or 8 the last stages dilate instead.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
    """

    img_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem: Literal["large", "small"] = "large"
    stem_width: int = 64
    output_stride: int = 32
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def steps(self) -> list[Step]:
        """What each stage does to the grid."""
        return plan_steps(len(self.depths), 4 if self.stem == "large" else 1, self.output_stride)


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of BiT; the card of a checkpoint sets it.

    Attributes:
        std_eps: added to the variance of each filter: 1e-8 in timm and transformers, 1e-10 in BiT's own PyTorch code.
    """

    std_eps: float = 1e-8


@dataclass(frozen=True)
class BiTConfig:
    """Architecture of a BiT: pre-activation bottlenecks, group norms, standardised weights.

    Attributes:
        img_size: (H, W) it is meant for; any size works.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        depths: blocks of each stage.
        widths: channels that each stage puts out.
        stem_width: channels of the stem.
        num_groups: groups of each norm.
        output_stride: pixels to a cell of the last map; with 16 or 8 the last stages dilate instead.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        numerics: what differs between sources of the same architecture.
    """

    img_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    num_groups: int = 32
    output_stride: int = 32
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def steps(self) -> list[Step]:
        """What each stage does to the grid."""
        return plan_steps(len(self.depths), 4, self.output_stride)


def _check(config: ResNetConfig | BiTConfig) -> None:
    if len(config.depths) != len(config.widths) or not config.depths:
        raise ValueError(f"expected a depth and a width for each stage, got {config.depths} and {config.widths}")
    if config.output_stride not in (8, 16, 32):
        raise ValueError(f"expected an output_stride of 8, 16 or 32, got {config.output_stride}")


class _Residual(nn.Module):
    """What ResNet and BiT share: maps of all stages, mean over the last one, head."""

    config: ResNetConfig | BiTConfig
    stages: nn.ModuleList

    def _add_head(self) -> None:
        c = self.config
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = nn.Linear(c.widths[-1], c.num_classes) if c.num_classes else nn.Identity()
        channels_last_kernels(self)

    @property
    def feature_channels(self) -> dict[int, int]:
        """Stride of each map of :meth:`features` -> its channels."""
        return {step.reach: width for step, width in zip(self.config.steps, self.config.widths, strict=True)}

    def stem_map(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> the map that the first stage reads."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """The map of the last stage (B, C, h, w) -> what is pooled, and given out as the last map."""
        return x

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> the map of each stage, by its stride; of stages of one stride, the last."""
        x, maps = self.stem_map(images), {}
        for step, stage in zip(self.config.steps, self.stages, strict=True):
            x = stage(x)
            maps[step.reach] = x
        x = self.finish(x)
        return Features(tokens=None, grid=(x.shape[2], x.shape[3]), maps=maps | {self.config.steps[-1].reach: x})

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C) when K is 0."""
        x = self.stem_map(images)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(self.head_drop(self.finish(x).mean((2, 3))))
        return logits


class ResNet(_Residual):
    """Residual network with batch norms: ResNet-18 to 152, and He et al.'s form for 32x32 images.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W).
    """

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = c = config
        kernel, stride = (7, 2) if c.stem == "large" else (3, 1)
        self.stem = ConvNorm(c.in_chans, c.stem_width, kernel, stride, conv=Conv2d, norm=nn.BatchNorm2d)
        self.stages = make_stages(
            BasicBlock if c.block == "basic" else Bottleneck,
            c.stem_width,
            c.depths,
            c.widths,
            steps=c.steps,
            conv=Conv2d,
            norm=nn.BatchNorm2d,
            drop_path_rate=c.drop_path_rate,
        )
        self._add_head()
        initialise(self, "resnet")

    def stem_map(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> map (B, C, ⌈H/4⌉, ⌈W/4⌉), or (B, C, H, W) behind a small stem."""
        x = F.relu_(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.config.stem == "large" else x


class BiT(_Residual):
    """Big Transfer: ResNet v2 with group norms and standardised weights, up to four times as wide.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W). The maps of
    :meth:`features` are those of the stages before any norm, but for the last, which is normed.
    """

    config: BiTConfig

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = c = config
        conv, norm = partial(StdConv2d, eps=c.numerics.std_eps), partial(nn.GroupNorm, c.num_groups)
        self.stem = conv(c.in_chans, c.stem_width, 7, 2)
        self.stages = make_stages(
            PreActBottleneck,
            c.stem_width,
            c.depths,
            c.widths,
            steps=c.steps,
            conv=conv,
            norm=norm,
            drop_path_rate=c.drop_path_rate,
        )
        self.norm = norm(c.widths[-1])
        self._add_head()
        initialise(self, "bit")

    def stem_map(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> map (B, C, ⌈H/4⌉, ⌈W/4⌉); the pool sees zeros around, which are not least here."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)

    def finish(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, normed and active."""
        return F.relu_(self.norm(x))


_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC_WIDTHS = (64, 128, 256, 512)

VARIANTS: dict[str, ResNetConfig | BiTConfig] = {
    # ResNet, table 1
    "resnet18": ResNetConfig(block="basic", depths=_DEPTHS[18], widths=_BASIC_WIDTHS),
    "resnet34": ResNetConfig(block="basic", depths=_DEPTHS[34], widths=_BASIC_WIDTHS),
    "resnet50": ResNetConfig(depths=_DEPTHS[50]),
    "resnet101": ResNetConfig(depths=_DEPTHS[101]),
    "resnet152": ResNetConfig(depths=_DEPTHS[152]),
}
VARIANTS |= {
    # ResNet, section 4.2: three stages, 20 layers; "pico" is the paper's own width, the others are wider; ours
    f"resnet_{size}_32": ResNetConfig(
        (32, 32), block="basic", depths=(3, 3, 3), widths=(width, 2 * width, 4 * width), stem="small", stem_width=width
    )
    for size, width in (("pico", 16), ("nano", 32), ("micro", 64))
}
VARIANTS |= {
    # BiT, section 3 and table 1; the width factor holds for every layer
    f"resnetv2_{layers}x{factor}_bit": BiTConfig(
        depths=_DEPTHS[layers],
        widths=(256 * factor, 512 * factor, 1024 * factor, 2048 * factor),
        stem_width=64 * factor,
    )
    for layers, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
}
VARIANTS["test_resnet"] = ResNetConfig(
    (32, 32), num_classes=10, depths=(1, 2, 1, 1), widths=(16, 32, 48, 64), stem_width=8
)
VARIANTS["test_resnet_small"] = replace(
    VARIANTS["resnet_pico_32"], num_classes=10, depths=(1, 2, 1), widths=(8, 16, 32), stem_width=8
)
VARIANTS["test_bit"] = BiTConfig(
    (32, 32), num_classes=10, depths=(1, 2, 1, 1), widths=(16, 32, 48, 64), stem_width=8, num_groups=2
)

MODELS = {ResNetConfig: ResNet, BiTConfig: BiT}
