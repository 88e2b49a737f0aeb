"""Hybrid ViT: a vision transformer whose patches are cut from the map of a residual network.

Sources: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1 and appendix B.1.2 (R50+B/16); Steiner et al. 2022,
arXiv 2106.10270, table 2 (R+Ti/16, R26+S/32, R50+L/32).

B batch, I input channels, H·W pixels, N patch tokens, T prefix tokens (class token), C width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.nn.bottleneck import Bottleneck, ConvNorm, Step, in_place, make_stages, plan_steps
from vitrail.nn.checks import require_positive
from vitrail.nn.conv import StdConv2d, StdForm, channels_last_kernels, pad_same
from vitrail.nn.patches import MapEmbed

from .vit import SIZES, ViT, ViTConfig
from .vit import Numerics as ViTNumerics


@dataclass(frozen=True)
class Numerics(ViTNumerics):
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        std_eps: keeps the standardised filters finite: 1e-8 in timm, 1e-5 in Flax.
        std_form: where ``std_eps`` is added: to the "variance" (timm) or to the standard "deviation" (Flax).
        group_eps: epsilon of the group norms: 1e-5 in timm, 1e-6 in Flax.
    """

    std_eps: float = 1e-8
    std_form: StdForm = "variance"
    group_eps: float = 1e-5


@dataclass(frozen=True)
class HybridConfig(ViTConfig):
    """Architecture of a hybrid: a ViT, and the residual network below it.

    Attributes:
        patch_size: side of a token in pixels: a multiple of the network's stride, which is 4, and twice that for each
            stage after the first.
        stages: (blocks, channels that come out) of each stage of the network; none leaves its stem.
        stem_width: channels of its stem.
        num_groups: groups of its norms.
    """

    patch_size: int = 32
    stages: tuple[tuple[int, int], ...] = ((3, 256), (4, 512), (6, 1024), (3, 2048))
    stem_width: int = 64
    num_groups: int = 32
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(vars(self), "stem_width", "num_groups")
        for stage in self.stages:
            require_positive({"stages": stage}, "stages")
        if self.patch_size % self.map_stride:
            raise ValueError(f"expected a patch_size that is a multiple of {self.map_stride}, got {self.patch_size}")

    @property
    def steps(self) -> list[Step]:
        """What each stage does to the grid."""
        return plan_steps(len(self.stages), 4, 2 ** (len(self.stages) + 1))

    @property
    def map_stride(self) -> int:
        """Pixels to a cell of the network's map."""
        return self.steps[-1].reach if self.stages else 4


class Backbone(nn.Module):
    """Residual network with group norms and standardised weights, padded as Flax does: images to one map."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        numerics = config.numerics
        conv = partial(StdConv2d, padding="same", eps=numerics.std_eps, form=numerics.std_form)
        norm = partial(nn.GroupNorm, config.num_groups, eps=numerics.group_eps)
        depths, widths = (tuple(s[k] for s in config.stages) for k in (0, 1))
        self.stride = config.map_stride
        self.out_chans = widths[-1] if widths else config.stem_width
        self.stem = ConvNorm(config.in_chans, config.stem_width, 7, 2, conv=conv, norm=norm)
        self.stages = make_stages(
            Bottleneck,
            config.stem_width,
            depths,
            widths,
            steps=config.steps,
            conv=conv,
            norm=norm,
        )
        channels_last_kernels(self)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of an image; cells at the right and bottom may hang over."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> map (B, C, h, w)."""
        relu, _ = in_place(self.stem)
        x = relu(self.stem(images.contiguous(memory_format=torch.channels_last)))
        x = F.max_pool2d(pad_same(x, 3, 2), 3, stride=2)  # zeros are as good as nothing here: x has no less
        out: Tensor = self.stages(x)
        return out


class Hybrid(ViT):
    """A ViT on the map of a residual network.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W) that holds one patch.
    """

    config: HybridConfig

    def _patch_embed(self) -> MapEmbed:
        c = self.config
        return MapEmbed(Backbone(c), c.patch_size // c.map_stride, c.embed_dim)


_R26, _R50 = ((2, 256), (2, 512), (2, 1024), (2, 2048)), ((3, 256), (4, 512), (6, 1024), (3, 2048))
_R50_S16 = ((3, 256), (4, 512), (9, 1024))  # the fourth stage's blocks moved to the third: stride 16


def _hybrid(size: str, stages: tuple[tuple[int, int], ...], patch: int, side: int) -> HybridConfig:
    width, depth, heads, hidden = SIZES[size]
    return HybridConfig(
        img_size=(side, side),
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        stages=stages,
    )


VARIANTS: dict[str, HybridConfig] = {
    f"vit_{size}_{name}_{side}": _hybrid(size, stages, patch, side)
    for size, name, stages, patch, sides in (
        ("tiny", "r_s16_p8", (), 32, (224, 384)),  # AugReg's R+Ti/16: 8x8 patches of the stem's map
        ("small", "r26_s32", _R26, 32, (224, 384)),
        ("base", "r26_s32", _R26, 32, (224,)),
        ("base", "r50_s16", _R50_S16, 16, (224, 384)),  # ViT, appendix B.1.2
        ("large", "r50_s32", _R50, 32, (224, 384)),
    )
    for side in sides
}
VARIANTS["test_hybrid"] = HybridConfig(
    (32, 32),
    8,
    num_classes=10,
    embed_dim=32,
    depth=2,
    num_heads=2,
    stages=((1, 32), (2, 64)),
    stem_width=16,
    num_groups=2,
)
VARIANTS["test_hybrid_stem"] = HybridConfig(
    (32, 32), 16, num_classes=10, embed_dim=32, depth=2, num_heads=2, stages=(), stem_width=16, num_groups=2
)

MODELS = {HybridConfig: Hybrid}
