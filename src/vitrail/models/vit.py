"""Vision Transformer.

Sources: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1 and table 1 (B, L, H); Steiner et al. 2022, arXiv
2106.10270 (Ti, S); Zhai et al. 2022, arXiv 2106.04560, table 2 (g, G; MAP); Chen et al. 2023, arXiv 2209.06794 (e).

B batch, I input channels, H·W pixels, p patch side, h = H // p, w = W // p, N = h · w patch tokens,
T prefix tokens (class token), C width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.feedforward import ACTS, FeedForward, Gelu
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.patches import MapEmbed, PatchEmbed
from vitrail.nn.positions import PositionResize, resize_positions, sincos_2d
from vitrail.nn.residual import PreNormBlock, drop_path_rates
from vitrail.nn.shortcuts import watched
from vitrail.nn.tokens import AttentionPool, Features, as_map, prepend

Pool = Literal["token", "avg", "gap", "map"]
Positions = Literal["learn", "learn_patches", "sincos2d"]


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        norm_eps: epsilon of the layer norms.
        gelu: "erf" (PyTorch's models) or "tanh" (Flax's).
        pos_resize: how learned positions are resized; see :func:`~vitrail.nn.positions.resize_positions`.
        init: name of the initial weights; see :mod:`vitrail.nn.init`.
    """

    norm_eps: float = 1e-6
    gelu: Gelu = "erf"
    pos_resize: PositionResize = "bicubic_antialias"
    init: Literal["jax", "trunc_normal"] = "jax"


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a ViT.

    Attributes:
        img_size: (H, W) that the position table is made for; any other size works at run time.
        patch_size: side of a patch in pixels.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        embed_dim: width C.
        depth: number of blocks.
        num_heads: heads of each block.
        mlp_ratio: hidden width of the feed-forward network over C.
        global_pool: "token" (class token), "avg" (mean of the patch tokens, then a norm: timm, MAE), "gap" (norm, then
            mean: the JAX code), "map" (attention pooling of the patch tokens).
        class_token: whether there is one.
        pos_embed: "learn" (a row for each prefix token too), "learn_patches" (patch tokens only; timm's
            ``no_embed_class``), "sincos2d" (fixed, patch tokens only).
        representation_size: width of the hidden tanh layer of the pre-training head; None leaves it out.
        drop_rate: dropout after positions, in the feed-forward network, after projections and before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        init_values: starting value of LayerScale; None leaves it out.
        numerics: what differs between sources of the same architecture.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    global_pool: Pool = "token"
    class_token: bool = True
    pos_embed: Positions = "learn"
    representation_size: int | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init_values: float | None = None
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        if self.global_pool == "token" and not self.class_token:
            raise ValueError('expected class_token=True for global_pool="token"; without it use "avg", "gap" or "map"')
        if self.representation_size is not None and self.num_classes == 0:
            raise ValueError("representation_size has no effect without a head: set num_classes or leave it out")
        require_positive(vars(self), "patch_size", "in_chans", "embed_dim", "depth", "num_heads")
        require_heads([self.embed_dim], [self.num_heads])

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward network."""
        return int(self.embed_dim * self.mlp_ratio)


class ViT(nn.Module):
    """Vision Transformer: patches, positions, pre-norm blocks, pooling, head.

    ``model(images)`` maps normalised images (B, I, H, W) to logits (B, K), at any (H, W) that holds one patch.
    """

    after_maps: tuple[str, ...] = ("attn_pool", "fc_norm", "pre_logits", "head_drop", "head")

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim, eps = config.embed_dim, config.numerics.norm_eps
        self.patch_embed = self._patch_embed()
        self.base_grid = self.patch_embed.grid(*config.img_size)
        self._add_prefix_tokens()
        self._add_positions()
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.blocks = nn.Sequential(*(self._block(rate) for rate in self._rates()))
        after_pool = config.global_pool == "avg"
        self.norm = nn.Identity() if after_pool else nn.LayerNorm(dim, eps=eps)
        self.attn_pool = (
            AttentionPool(dim, config.num_heads, config.hidden_dim, eps=eps, gelu=config.numerics.gelu)
            if config.global_pool == "map"
            else None
        )
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if after_pool else nn.Identity()
        self._add_head()
        initialise(self, config.numerics.init)

    def _patch_embed(self) -> PatchEmbed | MapEmbed:
        return PatchEmbed(self.config.patch_size, self.config.in_chans, self.config.embed_dim)

    def _add_prefix_tokens(self) -> None:
        self.num_prefix_tokens = int(self.config.class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.config.embed_dim)) if self.config.class_token else None

    def _add_positions(self) -> None:
        config = self.config
        if config.pos_embed == "sincos2d":
            table = sincos_2d(self.base_grid, config.embed_dim)
            self.register_buffer("pos_embed", table, persistent=False)
            return
        rows = self.base_grid[0] * self.base_grid[1]
        rows += self.num_prefix_tokens if config.pos_embed == "learn" else 0
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, config.embed_dim))

    def _rates(self) -> list[float]:
        return drop_path_rates(self.config.drop_path_rate, self.config.depth)

    def _block(self, drop_path: float) -> PreNormBlock:
        c = self.config
        return PreNormBlock(
            Attention(c.embed_dim, c.num_heads, proj_drop=c.drop_rate),
            FeedForward(c.embed_dim, c.hidden_dim, act=ACTS[c.numerics.gelu], drop=c.drop_rate),
            c.embed_dim,
            eps=c.numerics.norm_eps,
            drop_path=drop_path,
            init_values=c.init_values,
        )

    def _add_head(self) -> None:
        c = self.config
        width = c.embed_dim if c.representation_size is None else c.representation_size
        self.pre_logits = (
            nn.Identity()
            if c.representation_size is None
            else nn.Sequential(Linear(c.embed_dim, c.representation_size), nn.Tanh())
        )
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = Linear(width, c.num_classes) if c.num_classes else nn.Identity()

    def prefix_tokens(self) -> list[Tensor]:
        """Return the learned tokens (1, 1, C) that stand before the patch tokens."""
        return [] if self.cls_token is None else [self.cls_token]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position table (1, rows, C) for ``grid``; rows of prefix tokens, if any, are never resized."""
        c = self.config
        if c.pos_embed == "sincos2d":
            if grid == self.base_grid:
                return self.pos_embed
            return sincos_2d(grid, c.embed_dim, base=self.base_grid).to(self.pos_embed)
        if grid == self.base_grid:
            return self.pos_embed
        own = self.num_prefix_tokens if c.pos_embed == "learn" else 0
        patches = resize_positions(self.pos_embed[:, own:], self.base_grid, grid, c.numerics.pos_resize)
        return torch.cat([self.pos_embed[:, :own], patches], dim=1)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, I, H, W) -> (tokens with positions (B, T + N, C), as the first block gets them; grid (h, w))."""
        grid = self.patch_embed.grid(images.shape[-2], images.shape[-1])
        x = self.patch_embed(images)
        if self.config.pos_embed == "learn":
            x = prepend(x, *self.prefix_tokens()) + self.positions(grid)
        else:
            x = prepend(x + self.positions(grid), *self.prefix_tokens())
        return self.pos_drop(x), grid

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, I, H, W) -> (all tokens (B, T + N, C) after the last block and norm, grid (h, w))."""
        x, grid = self.embed(images)
        return self.norm(self.blocks(x)), grid

    def read(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> the normed tokens that the head may read: all, or (B, T, C) where it reads no patch.

        The last block's work on patch tokens that nobody reads is left out: a twelfth of a 12-block model, forward and
        backward. Whoever hooks into that block or records its attention gets all of it.
        """
        last = self.blocks[-1]
        if self.config.global_pool != "token" or watched(last):
            return self.encode(images)[0]
        x, _ = self.embed(images)
        read: Tensor = self.norm(last(self.blocks[:-1](x), first=self.num_prefix_tokens))
        return read

    @property
    def feature_channels(self) -> dict[int, int]:
        """Return stride -> channels of the map that :meth:`features` gives."""
        return {self.config.patch_size: self.config.embed_dim}

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> patch tokens (B, N, C) after the last block, and the same as one map."""
        tokens, grid = self.encode(images)
        patches = tokens[:, self.num_prefix_tokens :]
        return Features(tokens=patches, grid=grid, maps={self.config.patch_size: as_map(patches, grid)})

    def pool(self, tokens: Tensor) -> Tensor:
        """All tokens (B, T + N, C) -> one vector a sample (B, C)."""
        if self.attn_pool is not None:
            pooled: Tensor = self.attn_pool(tokens[:, self.num_prefix_tokens :])
        elif self.config.global_pool == "token":
            pooled = tokens[:, 0]
        else:
            pooled = tokens[:, self.num_prefix_tokens :].mean(dim=1)
        normed: Tensor = self.fc_norm(pooled)
        return normed

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C) when K is 0."""
        logits: Tensor = self.head(self.head_drop(self.pre_logits(self.pool(self.read(images)))))
        return logits


# name: width, depth, heads, hidden width of the feed-forward network
SIZES: dict[str, tuple[int, int, int, int]] = {
    # for pictures of 8 to 64 pixels, on one core; ours
    "pico": (64, 6, 4, 256),
    "nano": (128, 6, 4, 512),
    "micro": (192, 9, 6, 768),
    "tiny": (192, 12, 3, 768),  # AugReg, table 1; DeiT, table 1
    "small": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),  # DeiT III
    "base": (768, 12, 12, 3072),  # ViT, table 1
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),  # Scaling ViT, table 2
    "gigantic": (1664, 48, 16, 8192),
    "enormous": (1792, 56, 16, 15360),  # PaLI, section 3.1
}


def sized(size: str, patch: int, side: int, **changes: object) -> ViTConfig:
    """Return the config of a named size at a patch and image side in pixels."""
    width, depth, heads, hidden = SIZES[size]
    config = ViTConfig(
        img_size=(side, side),
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


# size -> (patch, image side) pairs that exist
_SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "pico": ((2, 8), (2, 16), (4, 32)),
    "nano": ((2, 16), (4, 32), (8, 64)),
    "micro": ((4, 32), (8, 64), (8, 96), (16, 224)),
    "tiny": ((16, 224), (16, 384)),
    "small": ((32, 224), (32, 384), (16, 224), (16, 384), (8, 224)),
    "base": ((32, 224), (32, 384), (16, 224), (16, 384), (8, 224)),
    "large": ((32, 224), (32, 384), (16, 224), (16, 384), (14, 224)),
    "huge": ((14, 224),),
    "giant": ((14, 224),),
    "gigantic": ((14, 224),),
    "enormous": ((14, 224),),
}

VARIANTS: dict[str, ViTConfig] = {
    f"vit_{size}_patch{patch}_{side}": sized(size, patch, side)
    for size, shapes in _SHAPES.items()
    for patch, side in shapes
}
VARIANTS |= {
    # no class token, norm and then mean (Beyer et al. 2022, arXiv 2205.01580, section 2)
    f"vit_{size}_patch16_gap_224": sized(size, 16, 224, global_pool="gap", class_token=False)
    for size in ("small", "base", "large")
}
VARIANTS |= {
    # Scaling ViT, section 3.3: no class token, attention pooling
    f"vit_{size}_patch{patch}_map_224": sized(size, patch, 224, global_pool="map", class_token=False)
    for size, patch in (("base", 16), ("giant", 14), ("gigantic", 14), ("enormous", 14))
}
VARIANTS["test_vit"] = ViTConfig((32, 32), 8, num_classes=10, embed_dim=32, depth=2, num_heads=2)

MODELS = {ViTConfig: ViT}
