"""Semantic segmentation: a class for every pixel, by a decoder on the maps of any backbone.

Sources: Xiao et al. 2018, arXiv 1807.10221 (UPerNet), on Swin as in Liu et al. 2021, arXiv 2103.14030, section 4.3;
Kirillov et al. 2019, arXiv 1901.02446 (Semantic FPN), on PVT as in Wang et al. 2021, arXiv 2102.12122, section 5.3, and
Wang et al. 2022, arXiv 2106.13797; Xie et al. 2021, arXiv 2105.15203 (SegFormer, whose encoder is a PVT v2 with a
feed-forward ratio of 4 everywhere); Strudel et al. 2021, arXiv 2105.05633, section 3.2 (a linear layer on tokens).

A backbone of one map (ViT, DeiT, hybrids) gets four of it through a simple pyramid, but for the linear head. Networks
answer at the stride of the finest map; who asks resizes the logits, bilinear, to the image's size.

B batch, I input channels, H·W pixels, (h, w) finest map, D channels of the decoder, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from vitrail.nn.checks import require_positive
from vitrail.nn.dense import ConvNormReLU, MLPDecoder, SemanticFPNDecoder, UPerDecoder
from vitrail.nn.init import initialise
from vitrail.nn.pyramid import FeaturePyramid, drop_unread
from vitrail.nn.tokens import Features

from . import build, pvt, pvt_v2, swin, vit

Head = Literal["upernet", "fpn", "segformer", "linear"]


@dataclass(frozen=True)
class SegmenterConfig:
    """Architecture of a network that segments.

    Attributes:
        backbone: config of the network that makes the maps. Its image size and input channels are those given here,
            and it takes the form of dense networks: Swin norms each stage and shifts all windows, PVT has no class
            token.
        head: "upernet", "fpn" (Semantic FPN), "segformer" (its MLP), or "linear" (for backbones of one map).
        channels: D; the linear head has none.
        neck_channels: of the FPN below head "fpn".
        auxiliary: channels of a second, fully convolutional head on the last map but one, for training; None: none.
        pool_scales: sides of the grids of UPerNet's pyramid pooling.
        img_size: (H, W) the model is meant for; any other size works at run time.
        in_chans: input channels.
        num_classes: K.
        drop_rate: dropout of whole channels before the classifiers.
    """

    answers: ClassVar[str] = "masks"

    backbone: Any = field(default_factory=lambda: dense(swin.VARIANTS["swin_tiny_patch4_window7_224"]))
    head: Head = "upernet"
    channels: int = 512
    neck_channels: int = 256
    auxiliary: int | None = None
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    img_size: tuple[int, int] = (512, 512)
    in_chans: int = 3
    num_classes: int = 150
    drop_rate: float = 0.1

    def __post_init__(self) -> None:
        require_positive(vars(self), "channels", "neck_channels", "pool_scales", "in_chans", "num_classes")
        if self.auxiliary is not None:
            require_positive(vars(self), "auxiliary")
        object.__setattr__(self, "backbone", dense(self.backbone))

    def built_backbone(self) -> Any:
        """Return the backbone's config with the image size and the input channels of this one."""
        return replace(self.backbone, img_size=self.img_size, in_chans=self.in_chans)


def dense(backbone: Any) -> Any:
    """Return a backbone's config in the form that dense networks are trained in, without a classifier."""
    if isinstance(backbone, swin.SwinConfig):
        always = replace(backbone.numerics, always_shift=True)
        return replace(backbone, num_classes=0, stage_norms=True, numerics=always)
    if isinstance(backbone, pvt.PVTConfig):
        return replace(backbone, num_classes=0, class_token=False)
    return replace(backbone, num_classes=0)


class OneMap(nn.Module):
    """A backbone of one map, given as it is: images (B, I, H, W) -> [(B, C, h, w)]."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        ((self.stride, self.channels),) = backbone.feature_channels.items()
        drop_unread(backbone)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, I, H, W) -> [(B, C, h, w)]."""
        return list(self.backbone.features(images).maps.values())


class Segmenter(nn.Module):
    """``model(images)`` maps normalised images (B, I, H, W) to logits (B, K, h, w) at the stride of the finest map.

    ``model.training_logits(images)`` gives those of the auxiliary head too, or None where there is none.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        backbone = build(config.built_backbone())
        single = len(cast(Any, backbone).feature_channels) == 1
        if config.head == "linear" and not single:
            raise ValueError(
                "expected a backbone of one map (ViT, DeiT) below the linear head, got a pyramid;"
                " mend: head upernet, fpn or segformer"
            )
        self.backbone = OneMap(backbone) if config.head == "linear" else FeaturePyramid(backbone)
        self.feature_channels = self._levels()
        self.decode = self._decoder(list(self.feature_channels), list(self.feature_channels.values()))
        initialise(self.decode, "dense")
        self._add_heads(list(self.feature_channels.values()))

    def _levels(self) -> dict[int, int]:
        """Return stride -> channels of the maps that the decoder reads."""
        if isinstance(self.backbone, OneMap):
            return {self.backbone.stride: self.backbone.channels}
        info = self.backbone.feature_info
        return dict(zip(info.reduction(), info.channels(), strict=True))

    def _decoder(self, strides: Sequence[int], widths: Sequence[int]) -> nn.Module:
        c = self.config
        if c.head == "upernet":
            return UPerDecoder(widths, c.channels, c.pool_scales)
        if c.head == "fpn":
            return SemanticFPNDecoder(widths, strides, neck_channels=c.neck_channels, channels=c.channels)
        return MLPDecoder(widths, c.channels) if c.head == "segformer" else TheOnly()

    def _add_heads(self, widths: Sequence[int]) -> None:
        c = self.config
        self.head_drop = nn.Dropout2d(c.drop_rate)
        self.head = nn.Conv2d(widths[-1] if c.head == "linear" else c.channels, c.num_classes, 1)
        self.auxiliary = self.head_auxiliary = None
        if c.auxiliary is not None:
            self.auxiliary = ConvNormReLU(widths[max(len(widths) - 2, 0)], c.auxiliary, 3)
            self.head_auxiliary = nn.Conv2d(c.auxiliary, c.num_classes, 1)
            initialise(self.auxiliary, "dense")
        for name in ("head", "head_auxiliary"):
            initialise(nn.ModuleDict({name: getattr(self, name)}), "dense")

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> what the backbone gives."""
        backbone: Any = self.backbone.backbone
        found: Features = backbone.features(images)
        return found

    def forward(self, images: Tensor, auxiliary: bool = False) -> Any:
        """Images (B, I, H, W), normalised -> logits (B, K, h, w); with ``auxiliary`` as :meth:`training_logits`."""
        maps = self.backbone(images)
        logits: Tensor = self.head(self.head_drop(self.decode(maps)))
        if not auxiliary:
            return logits
        if self.auxiliary is None or self.head_auxiliary is None:
            return logits, None
        return logits, self.head_auxiliary(self.head_drop(self.auxiliary(maps[max(len(maps) - 2, 0)])))

    def training_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, I, H, W), normalised -> logits (B, K, h, w) and the auxiliary head's (B, K, h', w'), or None."""
        found: tuple[Tensor, Tensor | None] = self(images, auxiliary=True)
        return found


class TheOnly(nn.Module):
    """What a linear head reads: the one map there is."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[(B, C, h, w)] -> (B, C, h, w)."""
        (only,) = maps
        return only


def _mit(wide: bool, depths: tuple[int, ...]) -> SegmenterConfig:
    """SegFormer's MiT encoders: PVT v2 with a feed-forward ratio of 4 in every stage."""
    encoder = pvt_v2.PVTv2Config(
        depths=depths,
        embed_dims=(64, 128, 320, 512) if wide else (32, 64, 160, 256),
        mlp_ratios=(4, 4, 4, 4),
        drop_path_rate=0.1,
    )
    return SegmenterConfig(encoder, "segformer", 256 if sum(depths) == 8 else 768)


def _upernet(backbone: Any, side: int = 512, drop_path_rate: float = 0.3) -> SegmenterConfig:
    own = replace(backbone, drop_path_rate=drop_path_rate)
    return SegmenterConfig(own, auxiliary=256, img_size=(side, side))


def _fpn(backbone: Any, drop_path_rate: float = 0.1) -> SegmenterConfig:
    return SegmenterConfig(replace(backbone, drop_path_rate=drop_path_rate), "fpn", 128)


VARIANTS: dict[str, SegmenterConfig] = {
    # Swin, section 4.3
    "upernet_swin_tiny": _upernet(swin.VARIANTS["swin_tiny_patch4_window7_224"]),
    "upernet_swin_small": _upernet(swin.VARIANTS["swin_small_patch4_window7_224"]),
    "upernet_swin_base": _upernet(swin.VARIANTS["swin_base_patch4_window7_224"]),
    "upernet_swin_base_window12": _upernet(swin.VARIANTS["swin_base_patch4_window12_384"]),
    "upernet_swin_large": _upernet(swin.VARIANTS["swin_large_patch4_window7_224"], 640),
    "upernet_swin_large_window12": _upernet(swin.VARIANTS["swin_large_patch4_window12_384"], 640),
    # isotropic backbones through the simple pyramid (Li et al. 2022, arXiv 2203.16527), and with a linear head
    "upernet_vit_base_patch16": _upernet(vit.VARIANTS["vit_base_patch16_224"], drop_path_rate=0.1),
    "linear_vit_tiny_patch16": SegmenterConfig(vit.VARIANTS["vit_tiny_patch16_224"], "linear"),
    "linear_vit_small_patch16": SegmenterConfig(vit.VARIANTS["vit_small_patch16_224"], "linear"),
    "linear_vit_base_patch16": SegmenterConfig(vit.VARIANTS["vit_base_patch16_224"], "linear"),
    # PVT, section 5.3
    **{f"fpn_pvt_{size}": _fpn(pvt.VARIANTS[f"pvt_{size}"]) for size in ("tiny", "small", "medium", "large")},
    # PVT v2, section 4.3
    **{f"fpn_pvt_v2_b{i}": _fpn(pvt_v2.VARIANTS[f"pvt_v2_b{i}"]) for i in range(6)},
    # SegFormer, table 6
    "segformer_b0": _mit(False, (2, 2, 2, 2)),
    "segformer_b1": _mit(True, (2, 2, 2, 2)),
    "segformer_b2": _mit(True, (3, 4, 6, 3)),
    "segformer_b3": _mit(True, (3, 4, 18, 3)),
    "segformer_b4": _mit(True, (3, 8, 27, 3)),
    "segformer_b5": _mit(True, (3, 6, 40, 3)),
}
VARIANTS |= {
    # for training from scratch on a few hundred small pictures; ours
    "upernet_swin_nano": SegmenterConfig(
        swin.SwinConfig(embed_dim=48, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16)),
        channels=64,
        auxiliary=32,
        img_size=(168, 224),
    ),
    "fpn_pvt_v2_nano": SegmenterConfig(
        pvt_v2.PVTv2Config(embed_dims=(32, 64, 128, 192), depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 6)),
        "fpn",
        64,
        64,
        img_size=(192, 256),
    ),
}
_TEST: dict[str, Any] = {"channels": 16, "img_size": (32, 32), "num_classes": 5}
VARIANTS |= {
    "test_segmenter": SegmenterConfig(swin.VARIANTS["test_swin"], auxiliary=12, pool_scales=(1, 2), **_TEST),
    "test_segmenter_fpn": SegmenterConfig(pvt_v2.VARIANTS["test_pvt_v2"], "fpn", neck_channels=12, **_TEST),
    "test_segmenter_mlp": SegmenterConfig(pvt_v2.VARIANTS["test_pvt_v2"], "segformer", **_TEST),
    "test_segmenter_vit": SegmenterConfig(vit.VARIANTS["test_vit"], pool_scales=(1, 2), **_TEST),
    "test_segmenter_linear": SegmenterConfig(vit.VARIANTS["test_vit"], "linear", **_TEST),
}

MODELS = {SegmenterConfig: Segmenter}
