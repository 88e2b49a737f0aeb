"""PVT v2: a pyramid of four stages whose attention reads a reduced map, with convolutions where ViT has positions.

Source: Wang et al. 2022, arXiv 2106.13797, section 3 and table 1.

Three things are new beside PVT: overlapping patches; a depthwise convolution in the feed-forward network, whose zero
padding tells tokens where they are, so that no position table is left; and a linear variant, whose attention reads
7 x 7 pooled tokens whatever the size of the image.

B batch, I input channels, H·W pixels, stages i = 1 .. 4 with width C_i on a grid (h_i, w_i) = ceil(side / stride), R_i
reduction ratio, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_each, require_heads, require_positive
from vitrail.nn.feedforward import ConvFeedForward
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.patches import OverlapPatchEmbed
from vitrail.nn.reduction import PooledReduction, ReducedBlock, StridedReduction
from vitrail.nn.residual import drop_path_rates
from vitrail.nn.tokens import Features


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        norm_eps: epsilon of the norms of blocks and stages.
        embed_eps: epsilon of the norms after patch embedding and after reduction; transformers has 1e-6 here too.
    """

    norm_eps: float = 1e-6
    embed_eps: float = 1e-5


@dataclass(frozen=True)
class PVTv2Config:
    """Architecture of a PVT v2; where there are four numbers, one is for each stage.

    Attributes:
        img_size: (H, W) the model is meant for; nothing depends on it, any other size works at run time.
        patch_size: kernel of the first patch embedding, odd; later ones have 3.
        stride: stride of the first patch embedding; later ones have 2.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        embed_dims: widths.
        depths: numbers of blocks.
        num_heads: heads of each block.
        mlp_ratios: hidden widths of the feed-forward networks over the widths.
        sr_ratios: sides of the squares that become one key; 1 keeps all. The linear variant does not use them.
        linear: the linear variant: pooled keys, and a ReLU before the depthwise convolution.
        drop_rate: dropout in the feed-forward network, after projections and before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        numerics: what differs between sources of the same architecture.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 7
    stride: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    linear: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        require_each(vars(self), "embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
        require_positive(vars(self), "patch_size", "in_chans", "embed_dims", "depths", "num_heads", "sr_ratios")
        require_positive(vars(self), "stride")
        require_heads(self.embed_dims, self.num_heads)
        if self.patch_size % 2 == 0:
            raise ValueError(f"expected an odd patch_size, whose squares have a middle, got {self.patch_size}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between two tokens of each stage."""
        return tuple(self.stride * 2**i for i in range(len(self.depths)))


class PVTv2Stage(nn.Module):
    """Overlapping patches, blocks, and a norm.

    Args:
        config: the whole model's.
        index: which stage, from 0.
        rates: stochastic depth of each block.
    """

    def __init__(self, config: PVTv2Config, index: int, rates: list[float]) -> None:
        super().__init__()
        dim, numerics = config.embed_dims[index], config.numerics
        patch, stride, chans = config.patch_size, config.stride, config.in_chans
        if index:
            patch, stride, chans = 3, 2, config.embed_dims[index - 1]
        self.patch_embed = OverlapPatchEmbed(patch, stride, chans, dim, eps=numerics.embed_eps)
        self.blocks = nn.Sequential(*(self._block(config, index, rate) for rate in rates))
        self.norm = nn.LayerNorm(dim, eps=numerics.norm_eps)

    @staticmethod
    def _block(c: PVTv2Config, index: int, drop_path: float) -> ReducedBlock:
        dim, ratio, eps = c.embed_dims[index], c.sr_ratios[index], c.numerics.embed_eps
        reduce: nn.Module | None = None
        if c.linear:
            reduce = PooledReduction(dim, eps=eps)
        elif ratio > 1:
            reduce = StridedReduction(dim, ratio, eps=eps)
        return ReducedBlock(
            Attention(dim, c.num_heads[index], proj_drop=c.drop_rate),
            ConvFeedForward(dim, int(dim * c.mlp_ratios[index]), relu=c.linear, drop=c.drop_rate),
            dim,
            reduce=reduce,
            eps=c.numerics.norm_eps,
            drop_path=drop_path,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, or the tokens of the stage before, (B, H', W', C') -> (B, h, w, C), normed."""
        out: Tensor = self.norm(self.blocks(self.patch_embed(x)))
        return out


class PVTv2(nn.Module):
    """Pyramid Vision Transformer v2: four stages, mean of the last one's tokens, head.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W).
    """

    after_maps = ("head_drop", "head")

    def __init__(self, config: PVTv2Config) -> None:
        super().__init__()
        self.config = config
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            PVTv2Stage(config, i, [next(rates) for _ in range(depth)]) for i, depth in enumerate(config.depths)
        )
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = Linear(config.embed_dims[-1], config.num_classes) if config.num_classes else nn.Identity()
        initialise(self, "pvt_v2")

    @property
    def feature_channels(self) -> dict[int, int]:
        """Stride -> channels of each map of :meth:`features`."""
        return dict(zip(self.config.strides, self.config.embed_dims, strict=True))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Images (B, I, H, W) -> the normed tokens of each stage, on their grid (B, h_i, w_i, C_i)."""
        found: list[Tensor] = []
        x = images.permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> the normed map of each stage, and the last one's tokens (B, N, C_4)."""
        stages = self.encode(images)
        maps = {stride: x.permute(0, 3, 1, 2) for stride, x in zip(self.config.strides, stages, strict=True)}
        grid = (stages[-1].shape[1], stages[-1].shape[2])
        return Features(tokens=stages[-1].flatten(1, 2), grid=grid, maps=maps)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C_4) when K is 0."""
        logits: Tensor = self.head(self.head_drop(self.encode(images)[-1].mean(dim=(1, 2))))
        return logits


def _sized(depths: tuple[int, ...], *, wide: bool = True, thin_mlp: bool = False, linear: bool = False) -> PVTv2Config:
    return PVTv2Config(
        depths=depths,
        embed_dims=(64, 128, 320, 512) if wide else (32, 64, 160, 256),
        mlp_ratios=(4, 4, 4, 4) if thin_mlp else (8, 8, 4, 4),
        linear=linear,
    )


VARIANTS: dict[str, PVTv2Config] = {
    # table 1
    "pvt_v2_b0": _sized((2, 2, 2, 2), wide=False),
    "pvt_v2_b1": _sized((2, 2, 2, 2)),
    "pvt_v2_b2": _sized((3, 4, 6, 3)),
    "pvt_v2_b2_li": _sized((3, 4, 6, 3), linear=True),
    "pvt_v2_b3": _sized((3, 4, 18, 3)),
    "pvt_v2_b4": _sized((3, 8, 27, 3)),
    "pvt_v2_b5": _sized((3, 6, 40, 3), thin_mlp=True),
}
VARIANTS |= {
    # for pictures of 32 pixels; ours: a first stride of 2, so that the last map is 2 x 2
    f"pvt_v2_{size}_32": PVTv2Config(
        img_size=(32, 32),
        patch_size=3,
        stride=2,
        embed_dims=dims,
        depths=(1, 2, 4, 1),
        num_heads=heads,
        mlp_ratios=(4, 4, 4, 4),
        sr_ratios=(4, 2, 1, 1),
    )
    for size, dims, heads in (("nano", (32, 64, 128, 256), (1, 2, 4, 8)), ("micro", (48, 96, 192, 384), (1, 2, 4, 8)))
}
VARIANTS["test_pvt_v2"] = PVTv2Config(
    img_size=(32, 32),
    num_classes=10,
    embed_dims=(8, 16, 24, 32),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    sr_ratios=(4, 2, 1, 1),
)
VARIANTS["test_pvt_v2_li"] = PVTv2Config(
    img_size=(32, 32),
    num_classes=10,
    embed_dims=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    linear=True,
)

MODELS = {PVTv2Config: PVTv2}
