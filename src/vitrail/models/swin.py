"""Swin Transformer: attention within windows that are shifted from block to block, in a pyramid of four maps.

Source: Liu et al. 2021, arXiv 2103.14030, section 3 and appendix A1 (T, S, B, L).

Any image size works, as in the paper's detection code: pixels, windows and squares to merge that are not full are
filled up with zeros at the right and bottom. A map that fits in one window along a side is not shifted along it, as in
the paper's classification code; the detection code shifts it nevertheless (:class:`Numerics`).

B batch, I input channels, H·W pixels, p patch side, (h, w) map and C width of a stage, M window side, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from vitrail.nn.checks import require_each, require_heads, require_positive
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.patches import PatchMerging, SquareEmbed, pad_to_multiple
from vitrail.nn.residual import PreNormBlock, drop_path_rates
from vitrail.nn.tokens import Features
from vitrail.nn.windows import Shift, WindowAttention

EPS = 1e-5
"""Epsilon of every layer norm."""


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        always_shift: shift windows along a side that has only one, too: detection and segmentation networks were
            trained so (timm's ``always_partition``).
    """

    always_shift: bool = False


@dataclass(frozen=True)
class SwinConfig:
    """Architecture of a Swin Transformer.

    Attributes:
        img_size: (H, W) the model is meant for; any other size works at run time.
        patch_size: side of a patch in pixels.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        embed_dim: width C of the first stage; each later one has twice the width of the one before.
        depths: blocks of each stage.
        num_heads: heads in the blocks of each stage.
        window_size: side M of a window, in tokens. Weights made for another one are resized when they are loaded.
        mlp_ratio: hidden width of the feed-forward network over C.
        stage_norms: a layer norm after each stage for :meth:`Swin.features`, as detection and segmentation networks
            have, instead of after the last stage only.
        drop_rate: dropout after the patches, in the feed-forward network, after projections and before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        numerics: what differs between sources of the same architecture.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    stage_norms: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        require_each(vars(self), "depths", "num_heads")
        require_positive(
            vars(self), "patch_size", "in_chans", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"
        )
        require_heads(self.widths, self.num_heads)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a token of each stage stands for, along a side."""
        return tuple(self.patch_size * 2**i for i in range(len(self.depths)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each stage."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


class SwinStage(nn.Module):
    """Merging of 2 x 2 tokens (not before the first stage), then blocks whose windows are shifted in every other one.

    Args:
        merge: from the width of the stage before to this one's, or Identity.
        blocks: token mixers on (B, h, w, C).
    """

    def __init__(self, merge: nn.Module, blocks: list[PreNormBlock]) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C / 2) -> (B, ceil(h / 2), ceil(w / 2), C); in the first stage (B, h, w, C) -> the same."""
        out: Tensor = self.blocks(self.merge(x))
        return out


class Swin(nn.Module):
    """Swin Transformer: ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W)."""

    after_maps = ("head_drop", "head")

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = SquareEmbed(config.patch_size, config.in_chans, config.embed_dim, eps=EPS)
        self.embed_drop = nn.Dropout(config.drop_rate)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            SwinStage(
                PatchMerging(config.widths[i - 1], eps=EPS) if i else nn.Identity(),
                [self._block(i, j, next(rates)) for j in range(depth)],
            )
            for i, depth in enumerate(config.depths)
        )
        earlier = config.widths[:-1] if config.stage_norms else ()
        self.stage_norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in earlier)
        self.norm = nn.LayerNorm(config.widths[-1], eps=EPS)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = Linear(config.widths[-1], config.num_classes) if config.num_classes else nn.Identity()
        initialise(self, "trunc_normal")

    def _block(self, stage: int, index: int, drop_path: float) -> PreNormBlock:
        c, dim = self.config, self.config.widths[stage]
        shifted: Shift = "always" if c.numerics.always_shift else "between"
        attn = WindowAttention(
            dim,
            c.num_heads[stage],
            (c.window_size, c.window_size),
            shift=shifted if index % 2 else "never",
            proj_drop=c.drop_rate,
        )
        mlp = FeedForward(dim, int(dim * c.mlp_ratio), drop=c.drop_rate)
        return PreNormBlock(attn, mlp, dim, eps=EPS, drop_path=drop_path)

    @property
    def feature_channels(self) -> dict[int, int]:
        """Stride -> channels of each map of :meth:`features`."""
        return dict(zip(self.config.strides, self.config.widths, strict=True))

    def set_window(self, window_size: int) -> None:
        """Change the side M of all windows, in place; tables of relative positions are resized bicubically.

        The parameters that hold these tables are new ones: make the optimiser afterwards.
        """
        self.config = replace(self.config, window_size=window_size)
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.set_window((window_size, window_size))

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> tokens on their grid (B, ceil(H / p), ceil(W / p), C), as the first block gets them.

        Raises ValueError for an image smaller than one patch.
        """
        p = self.config.patch_size
        if min(images.shape[-2:]) < p:
            raise ValueError(f"expected an image of at least {p}x{p} pixels, got {tuple(images.shape[-2:])}")
        tokens: Tensor = self.embed_drop(self.patch_embed(pad_to_multiple(images.permute(0, 2, 3, 1), p)))
        return tokens

    def encode(self, images: Tensor) -> Iterator[Tensor]:
        """Images (B, I, H, W) -> the tokens (B, h, w, C) of each stage, the last after the final norm."""
        x = self.embed(images)
        for stage in self.stages[:-1]:
            x = stage(x)
            yield x
        yield self.norm(self.stages[-1](x))

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> the tokens of the last stage (B, N, C), normed, and a map for each stage.

        Earlier maps are normed if the config has ``stage_norms``. Maps are in channels-last memory.
        """
        found = list(self.encode(images))
        if self.config.stage_norms:
            found = [*(norm(x) for norm, x in zip(self.stage_norms, found, strict=False)), found[-1]]
        maps = {s: x.permute(0, 3, 1, 2) for s, x in zip(self.config.strides, found, strict=True)}
        last = found[-1]
        return Features(tokens=last.flatten(1, 2), grid=(last.shape[1], last.shape[2]), maps=maps)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C) when K is 0."""
        *_, tokens = self.encode(images)
        logits: Tensor = self.head(self.head_drop(tokens.mean(dim=(1, 2))))
        return logits


# name: width, depths, heads
SIZES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    # three stages, for pictures of 32 and 64 pixels; ours
    "nano": (64, (2, 2, 2), (2, 4, 8)),
    "micro": (96, (2, 4, 2), (3, 6, 12)),
    # section 3.3
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

# size -> (patch, window, image side) that exist
_SHAPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "nano": ((2, 4, 32), (4, 4, 64)),
    "micro": ((2, 4, 32), (4, 4, 64)),
    "tiny": ((4, 7, 224),),
    "small": ((4, 7, 224),),
    "base": ((4, 7, 224), (4, 12, 384)),
    "large": ((4, 7, 224), (4, 12, 384)),
}

VARIANTS: dict[str, SwinConfig] = {
    f"swin_{size}_patch{patch}_window{window}_{side}": SwinConfig(
        img_size=(side, side),
        patch_size=patch,
        embed_dim=SIZES[size][0],
        depths=SIZES[size][1],
        num_heads=SIZES[size][2],
        window_size=window,
    )
    for size, shapes in _SHAPES.items()
    for patch, window, side in shapes
}
VARIANTS["test_swin"] = SwinConfig(
    img_size=(32, 32),
    patch_size=2,
    num_classes=10,
    embed_dim=16,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    window_size=4,
)

MODELS = {SwinConfig: Swin}
