"""ResNet: the residual network that vision transformers are compared with, and that dense models stand on.

Sources: He et al. 2016, arXiv 1512.03385, table 1 (ResNet-18 to 152) and section 4.2 (for 32x32 images); Goyal et al.
2017, arXiv 1706.02677 (stride on the 3x3 convolution, zero scale in the last norm of a block).

B batch, I input channels, H·W pixels, C channels, (h, w) grid, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.nn.bottleneck import BasicBlock, Bottleneck, ConvNorm, Step, in_place, make_stages, plan_steps, stage_maps
from vitrail.nn.checks import require_each, require_positive
from vitrail.nn.conv import Conv2d, channels_last_kernels
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.norms import FrozenBatchNorm2d
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
        norm: "batch", or "frozen": batch norms whose numbers never move, as detectors have them that start from a
            classifier's weights.
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
    norm: Literal["batch", "frozen"] = "batch"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        require_positive(vars(self), "in_chans", "stem_width")
        check_stages(vars(self), stem_stride=4 if self.stem == "large" else 1)

    @property
    def steps(self) -> list[Step]:
        """What each stage does to the grid."""
        return plan_steps(len(self.depths), 4 if self.stem == "large" else 1, self.output_stride)


def check_stages(values: Mapping[str, Any], *, stem_stride: int) -> None:
    """Raise ValueError unless there is a depth for each width, and the stride is one that can be had."""
    require_each(values, "depths", "widths")
    require_positive(values, "depths", "widths")
    asked, own = values["output_stride"], stem_stride * 2 ** (len(values["depths"]) - 1)
    if asked not in (8, 16, 32):
        raise ValueError(f"expected an output_stride of 8, 16 or 32, got {asked}")
    if asked != 32 and asked > own:
        raise ValueError(f"output_stride={asked} has no effect: a cell of this network's last map is {own} pixels")


class ResNet(nn.Module):
    """Residual network with batch norms: ResNet-18 to 152, and He et al.'s form for 32x32 images.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W).
    """

    after_maps = ("head_drop", "head")

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = c = config
        kernel, stride = (7, 2) if c.stem == "large" else (3, 1)
        norm = FrozenBatchNorm2d if c.norm == "frozen" else nn.BatchNorm2d
        self.stem = ConvNorm(c.in_chans, c.stem_width, kernel, stride, conv=Conv2d, norm=norm)
        self.stages = make_stages(
            BasicBlock if c.block == "basic" else Bottleneck,
            c.stem_width,
            c.depths,
            c.widths,
            steps=c.steps,
            conv=Conv2d,
            norm=norm,
            drop_path_rate=c.drop_path_rate,
        )
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = Linear(c.widths[-1], c.num_classes) if c.num_classes else nn.Identity()
        channels_last_kernels(self)
        initialise(self, "resnet")

    def stem_map(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> map (B, C, ⌈H/4⌉, ⌈W/4⌉), or (B, C, H, W) behind a small stem."""
        relu, _ = in_place(self.stem)
        x = relu(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.config.stem == "large" else x

    @property
    def feature_channels(self) -> dict[int, int]:
        """Stride of each map of :meth:`features` -> its channels."""
        return {step.reach: width for step, width in zip(self.config.steps, self.config.widths, strict=True)}

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> the map of each stage, by its stride; of stages of one stride, the last."""
        maps = stage_maps(self.stages, self.config.steps, self.stem_map(images))
        _, _, h, w = maps[self.config.steps[-1].reach].shape
        return Features(tokens=None, grid=(h, w), maps=maps)

    def every_map(self, images: Tensor) -> list[Tensor]:
        """Images (B, I, H, W) -> the map of each stage, those of one stride too."""
        x, maps = self.stem_map(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C) when K is 0."""
        x = self.stages(self.stem_map(images))
        logits: Tensor = self.head(self.head_drop(x.mean((2, 3))))
        return logits


DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC_WIDTHS = (64, 128, 256, 512)

VARIANTS: dict[str, ResNetConfig] = {
    # ResNet, table 1
    "resnet18": ResNetConfig(block="basic", depths=DEPTHS[18], widths=_BASIC_WIDTHS),
    "resnet34": ResNetConfig(block="basic", depths=DEPTHS[34], widths=_BASIC_WIDTHS),
    "resnet50": ResNetConfig(depths=DEPTHS[50]),
    "resnet101": ResNetConfig(depths=DEPTHS[101]),
    "resnet152": ResNetConfig(depths=DEPTHS[152]),
}
VARIANTS |= {
    # ResNet, section 4.2: three stages, 20 layers; "pico" is the paper's own width, the others are wider; ours
    f"resnet_{size}_32": ResNetConfig(
        (32, 32), block="basic", depths=(3, 3, 3), widths=(width, 2 * width, 4 * width), stem="small", stem_width=width
    )
    for size, width in (("pico", 16), ("nano", 32), ("micro", 64))
}
VARIANTS["test_resnet"] = ResNetConfig(
    (32, 32), num_classes=10, depths=(1, 2, 1, 1), widths=(16, 32, 48, 64), stem_width=8
)
VARIANTS["test_resnet_small"] = replace(
    VARIANTS["resnet_pico_32"], num_classes=10, depths=(1, 2, 1), widths=(8, 16, 32), stem_width=8
)

MODELS = {ResNetConfig: ResNet}
