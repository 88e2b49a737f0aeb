"""PVT: a pyramid vision transformer, four stages whose attention reads a reduced map.

Source: Wang et al. 2021, arXiv 2102.12122, section 3 and table 1.

Each stage cuts its map in squares (4 pixels first, then 2), adds learned positions, and runs pre-norm blocks whose keys
and values are made of squares of R x R tokens. A class token joins in the last stage, where R is 1.

B batch, I input channels, H·W pixels, stages i = 1 .. 4 with width C_i on a grid (h_i, w_i) = side // stride, R_i
reduction ratio, N last stage's tokens, T class token (0 or 1), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_each, require_heads, require_positive
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.patches import SquareEmbed
from vitrail.nn.positions import Grid, PositionResize, resize_positions
from vitrail.nn.reduction import ReducedBlock, StridedReduction
from vitrail.nn.residual import PreNormBlock, drop_path_rates
from vitrail.nn.shortcuts import watched
from vitrail.nn.tokens import Features, as_map, prepend


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        norm_eps: epsilon of the norms of blocks and of the final one.
        embed_eps: epsilon of the norms after patch embedding and after reduction; transformers has 1e-6 here too.
        pos_resize: how learned positions are resized; see :func:`~vitrail.nn.positions.resize_positions`.
    """

    norm_eps: float = 1e-6
    embed_eps: float = 1e-5
    pos_resize: PositionResize = "bilinear"


@dataclass(frozen=True)
class PVTConfig:
    """Architecture of a PVT; where there are four numbers, one is for each stage.

    Attributes:
        img_size: (H, W) that the position tables are made for; any other size works at run time.
        patch_size: side of the first stage's patches in pixels; later stages have 2.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        embed_dims: widths.
        depths: numbers of blocks.
        num_heads: heads of each block.
        mlp_ratios: hidden widths of the feed-forward networks over the widths.
        sr_ratios: sides of the squares that become one key; the last is 1, which keeps all.
        class_token: whether the last stage has one; without, the head reads the mean of its tokens. Dense heads were
            trained without (the paper's detection code); a model without class token and head has no final norm.
        drop_rate: dropout after positions, in the feed-forward network, after projections and before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        numerics: what differs between sources of the same architecture.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    class_token: bool = True
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        require_each(vars(self), "embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
        require_positive(vars(self), "patch_size", "in_chans", "embed_dims", "depths", "num_heads", "sr_ratios")
        require_heads(self.embed_dims, self.num_heads)
        if self.sr_ratios[-1] != 1:
            raise ValueError(
                f"expected no reduction in the last stage, where a class token joins, got {self.sr_ratios}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between two tokens of each stage."""
        return tuple(self.patch_size * 2**i for i in range(len(self.depths)))

    def grid(self, index: int) -> Grid:
        """Return the grid (h, w) of stage ``index`` for an image of ``img_size``."""
        h, w = (max(side // self.strides[index], 1) for side in self.img_size)
        return h, w


class PVTStage(nn.Module):
    """Patches, positions, blocks.

    Args:
        config: the whole model's.
        index: which stage, from 0.
        rates: stochastic depth of each block.
    """

    def __init__(self, config: PVTConfig, index: int, rates: list[float]) -> None:
        super().__init__()
        dim = config.embed_dims[index]
        patch, chans = (2, config.embed_dims[index - 1]) if index else (config.patch_size, config.in_chans)
        self.patch_embed = SquareEmbed(patch, chans, dim, eps=config.numerics.embed_eps)
        self.base_grid = config.grid(index)
        self.pos_resize = config.numerics.pos_resize
        self.num_prefix_tokens = int(config.class_token and index == len(config.depths) - 1)
        rows = self.num_prefix_tokens + self.base_grid[0] * self.base_grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, dim))
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.blocks = nn.Sequential(*(_block(config, index, rate) for rate in rates))

    def positions(self, grid: Grid) -> Tensor:
        """Return the position table (1, T + h·w, C) for ``grid``; the row of a class token is never resized."""
        own = self.num_prefix_tokens
        if grid == self.base_grid:
            return self.pos_embed
        patches = resize_positions(self.pos_embed[:, own:], self.base_grid, grid, self.pos_resize)
        return torch.cat([self.pos_embed[:, :own], patches], dim=1) if own else patches

    def embed(self, x: Tensor, *prefix: Tensor) -> tuple[Tensor, Grid]:
        """Pixels, or tokens of the stage before, (B, H', W', C') -> (with positions (B, T + N, C), grid (h, w))."""
        squares = self.patch_embed(x)
        grid = (squares.shape[1], squares.shape[2])
        tokens = squares.flatten(1, 2)
        if prefix:
            tokens = prepend(tokens, *prefix)
        return self.pos_drop(tokens + self.positions(grid)), grid

    def forward(self, x: Tensor) -> Tensor:
        """What a stage without class token does: (B, H', W', C') -> (B, h, w, C)."""
        tokens, grid = self.embed(x)
        out: Tensor = self.blocks(tokens.view(tokens.shape[0], *grid, tokens.shape[2]))
        return out


def _block(c: PVTConfig, index: int, drop_path: float) -> PreNormBlock:
    dim, ratio, eps = c.embed_dims[index], c.sr_ratios[index], c.numerics.norm_eps
    attn = Attention(dim, c.num_heads[index], proj_drop=c.drop_rate)
    mlp = FeedForward(dim, int(dim * c.mlp_ratios[index]), drop=c.drop_rate)
    if index == len(c.depths) - 1:
        return PreNormBlock(attn, mlp, dim, eps=eps, drop_path=drop_path)
    reduce = StridedReduction(dim, ratio, eps=c.numerics.embed_eps) if ratio > 1 else None
    return ReducedBlock(attn, mlp, dim, reduce=reduce, eps=eps, drop_path=drop_path)


class PVT(nn.Module):
    """Pyramid Vision Transformer: four stages, class token, head.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W). What does not fill a patch is
    dropped; a map smaller than a patch is filled up with zeros.
    """

    after_maps = ("norm", "head_drop", "head")

    def __init__(self, config: PVTConfig) -> None:
        super().__init__()
        self.config = config
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            PVTStage(config, i, [next(rates) for _ in range(depth)]) for i, depth in enumerate(config.depths)
        )
        dim = config.embed_dims[-1]
        self.num_prefix_tokens = int(config.class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        bare = not config.class_token and not config.num_classes
        self.norm = nn.Identity() if bare else nn.LayerNorm(dim, eps=config.numerics.norm_eps)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        initialise(self, "trunc_normal")

    @property
    def feature_channels(self) -> dict[int, int]:
        """Stride -> channels of each map of :meth:`features`."""
        return dict(zip(self.config.strides, self.config.embed_dims, strict=True))

    @property
    def last_stage(self) -> PVTStage:
        """The stage that the class token joins."""
        stage = self.stages[-1]
        assert isinstance(stage, PVTStage)
        return stage

    def embed(self, images: Tensor) -> tuple[list[Tensor], Tensor, Grid]:
        """Images (B, I, H, W) -> (tokens of all stages but the last, on their grid (B, h_i, w_i, C_i); tokens with
        positions (B, T + N, C_4), as the last stage's first block gets them; their grid (h_4, w_4))."""
        lower: list[Tensor] = []
        x = images.permute(0, 2, 3, 1)
        for stage in list(self.stages)[:-1]:
            x = stage(x)
            lower.append(x)
        prefix = [] if self.cls_token is None else [self.cls_token]
        tokens, grid = self.last_stage.embed(x, *prefix)
        return lower, tokens, grid

    def read(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> the normed tokens that the head reads: the class token (B, 1, C_4), or all.

        Where there is a class token, the last block's work on other tokens is left out; whoever hooks into that block
        or records its attention gets all of it.
        """
        blocks = self.last_stage.blocks
        _, tokens, _ = self.embed(images)
        if self.cls_token is None:
            tokens = blocks(tokens)
        elif watched(self.last_stage):
            tokens = blocks(tokens)[:, :1]
        else:
            tokens = blocks[-1](blocks[:-1](tokens), first=1)
        read: Tensor = self.norm(tokens)
        return read

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> the map of each stage as its blocks leave it, which dense heads read; and the last
        stage's normed tokens (B, N, C_4), without the class token."""
        lower, tokens, grid = self.embed(images)
        tokens = self.last_stage.blocks(tokens)
        maps = [x.permute(0, 3, 1, 2) for x in lower]
        maps.append(as_map(tokens[:, self.num_prefix_tokens :], grid))
        normed = self.norm(tokens)[:, self.num_prefix_tokens :]
        return Features(tokens=normed, grid=grid, maps=dict(zip(self.config.strides, maps, strict=True)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C_4) when K is 0."""
        logits: Tensor = self.head(self.head_drop(self.read(images).mean(dim=1)))
        return logits


VARIANTS: dict[str, PVTConfig] = {
    # table 1
    "pvt_tiny": PVTConfig(depths=(2, 2, 2, 2)),
    "pvt_small": PVTConfig(depths=(3, 4, 6, 3)),
    "pvt_medium": PVTConfig(depths=(3, 4, 18, 3)),
    "pvt_large": PVTConfig(depths=(3, 8, 27, 3)),
}
VARIANTS["test_pvt"] = PVTConfig(
    img_size=(32, 32),
    num_classes=10,
    embed_dims=(8, 16, 24, 32),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    sr_ratios=(4, 2, 1, 1),
)

MODELS = {PVTConfig: PVT}
