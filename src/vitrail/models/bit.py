"""BiT, Big Transfer: ResNet v2 with group norms and standardised weights, the baseline of the first ViT.

Sources: Kolesnikov et al. 2020, arXiv 1912.11370, section 3 and table 1; He et al. 2016, arXiv 1603.05027
(pre-activation); Qiao et al. 2019, arXiv 1903.10520 (weight standardisation).

B batch, I input channels, H·W pixels, C channels, (h, w) grid, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.nn.bottleneck import PreActBottleneck, Step, make_stages, plan_steps, stage_maps
from vitrail.nn.checks import require_positive
from vitrail.nn.conv import StdConv2d, channels_last_kernels
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.tokens import Features

from .resnet import DEPTHS, check_stages


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
        require_positive(vars(self), "in_chans", "stem_width", "num_groups")
        check_stages(vars(self), stem_stride=4)

    @property
    def steps(self) -> list[Step]:
        """What each stage does to the grid."""
        return plan_steps(len(self.depths), 4, self.output_stride)


class BiT(nn.Module):
    """Big Transfer: ResNet v2 with group norms and standardised weights, up to four times as wide.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W). The maps of
    :meth:`features` are those of the stages before any norm, but for the last, which is normed.
    """

    after_maps = ("head_drop", "head")

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
        self.act = nn.ReLU()
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = Linear(c.widths[-1], c.num_classes) if c.num_classes else nn.Identity()
        channels_last_kernels(self)
        initialise(self, "bit")

    def stem_map(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> map (B, C, ⌈H/4⌉, ⌈W/4⌉).

        The pool sees zeros around the map, whose values may be negative: not the same as padding inside the pool.
        """
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)

    def finish(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, normed and active."""
        out: Tensor = self.act(self.norm(x))
        return out

    @property
    def feature_channels(self) -> dict[int, int]:
        """Stride of each map of :meth:`features` -> its channels."""
        return {step.reach: width for step, width in zip(self.config.steps, self.config.widths, strict=True)}

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> the map of each stage, by its stride; of stages of one stride, the last."""
        maps = stage_maps(self.stages, self.config.steps, self.stem_map(images))
        reach = self.config.steps[-1].reach
        maps[reach] = self.finish(maps[reach])
        _, _, h, w = maps[reach].shape
        return Features(tokens=None, grid=(h, w), maps=maps)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C) when K is 0."""
        x = self.finish(self.stages(self.stem_map(images)))
        logits: Tensor = self.head(self.head_drop(x.mean((2, 3))))
        return logits


VARIANTS: dict[str, BiTConfig] = {
    # section 3 and table 1; the width factor holds for every layer
    f"resnetv2_{layers}x{factor}_bit": BiTConfig(
        depths=DEPTHS[layers],
        widths=(256 * factor, 512 * factor, 1024 * factor, 2048 * factor),
        stem_width=64 * factor,
    )
    for layers, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
}
VARIANTS["test_bit"] = BiTConfig(
    (32, 32), num_classes=10, depths=(1, 2, 1, 1), widths=(16, 32, 48, 64), stem_width=8, num_groups=2
)

MODELS = {BiTConfig: BiT}
