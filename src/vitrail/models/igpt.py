"""Image GPT: pixels as a sequence of colours, each predicted from those before it.

Source: Chen et al. 2020, "Generative Pretraining from Pixels", section 3 and appendix A, with the authors' code
(openai/image-gpt) where the text is silent: a norm without mean, QuickGELU, no biases, an output matrix of its own.

B batch, I input channels, H·W pixels in raster order, N = H · w tokens (one a pixel), C width, K classes, V colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.nn import onestep
from vitrail.nn.attention import Attention
from vitrail.nn.cache import KVCache, caches
from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.dropout import Dropout
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.palette import nearest, spread
from vitrail.nn.positions import PositionResize, resize_positions
from vitrail.nn.residual import PreNormBlock, drop_path_rates
from vitrail.nn.tokens import Features, as_map

Grid = tuple[int, int]
Objective = Literal["autoregressive", "masked"]
HOLE = -1
"""The token of a pixel that is hidden from a masked model: its embedding is zero."""


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        norm_eps: epsilon of the norms.
        shift: what classes and features are read from: the sequence that predicts pixels, which begins with the start
            token and ends before the last pixel (the authors), or the pixels themselves (transformers).
        pos_resize: how positions are resized; see :func:`~vitrail.nn.positions.resize_positions`.
        init: name of the initial weights; see :mod:`vitrail.nn.init`.
    """

    norm_eps: float = 1e-5
    shift: bool = True
    pos_resize: PositionResize = "bicubic_antialias"
    init: Literal["igpt"] = "igpt"


@dataclass(frozen=True)
class IGPTConfig:
    """Architecture of an image GPT.

    Attributes:
        img_size: (H, W) that the positions are made for; any other size up to ``most_pixels`` works at run time.
        in_chans: input channels.
        num_classes: classes of the head; 0: none, and the model predicts pixels.
        colours: colours of the palette, V.
        embed_dim: width C.
        depth: number of blocks.
        num_heads: heads of each block.
        mlp_ratio: hidden width of the feed-forward network over C.
        objective: "autoregressive" (each pixel from those before it) or "masked" (hidden pixels from all others).
        joint: with classes, whether the model predicts pixels too: ``model(images)`` then gives both in training.
        bias: whether linear layers have one: False in the paper's models, True in transformers'.
        drop_rate: dropout after positions, in the feed-forward network, after projections and before the head.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        numerics: what differs between sources of the same architecture.
    """

    img_size: Grid = (32, 32)
    in_chans: int = 3
    num_classes: int = 0
    colours: int = 512
    embed_dim: int = 512
    depth: int = 24
    num_heads: int = 8
    mlp_ratio: float = 4.0
    objective: Objective = "autoregressive"
    joint: bool = False
    bias: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        require_positive(vars(self), "img_size", "in_chans", "colours", "embed_dim", "depth", "num_heads")
        require_heads([self.embed_dim], [self.num_heads])
        if self.joint and not self.num_classes:
            raise ValueError("joint=True has no effect without classes: set num_classes, or leave it out")
        if self.joint and not self.shifted:
            raise ValueError(
                'expected objective="autoregressive" and numerics.shift=True with joint=True: pixels are predicted from'
                " the sequence the classes are read from, and a pixel must not be in what predicts it"
            )

    @property
    def shifted(self) -> bool:
        """Whether the sequence that classes are read from begins with the start token."""
        return self.objective == "autoregressive" and self.numerics.shift

    @property
    def paints(self) -> bool:
        """Whether the model predicts pixels."""
        return self.num_classes == 0 or self.joint

    @property
    def start(self) -> int:
        """The token that stands before the first pixel: the number after the last colour."""
        return self.colours

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward network."""
        return int(self.embed_dim * self.mlp_ratio)


class PixelState:
    """What an image GPT remembers of the rows it is painting: keys and values of each block, and the positions."""

    def __init__(self, depth: int, positions: Tensor) -> None:
        self.caches = caches(depth)
        self.positions = positions
        self.weights: list[onestep.Weights] | None = None
        self.memories: list[onestep.Memory] = []

    def take_steps(self, blocks: nn.ModuleList) -> None:
        """Go on by the bare operators, if the blocks allow it."""
        self.weights = onestep.gather(blocks)
        if self.weights is not None:
            self.memories = [onestep.Memory(self.positions.shape[1], cache) for cache in self.caches]
            self.caches = []

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return (self.memories or self.caches)[0].length

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order, repeats allowed: in place."""
        for cache in self.caches:
            cache.select(rows)
        for memory in self.memories:
            memory.select(rows)


class IGPT(nn.Module):
    """Image GPT: the nearest colour of each pixel, positions, pre-norm blocks, and one output or both.

    ``model(images)`` maps normalised images (B, I, H, W) to class logits (B, K), and ``model(tokens)``, int64 (B, N),
    to those of pixels (B, N, V): a decoder that goes by :mod:`vitrail.nn.steps`.

    Attributes:
        palette: colours (V, I) on the scale of normalised images; saved with the weights. Set it before training.
        most_pixels: of a picture: each is a token, and attention takes the square of their number.
    """

    after_maps: tuple[str, ...] = ("head_drop", "head", "pixel_head")
    most_pixels = 2**14
    palette: Tensor

    def __init__(self, config: IGPTConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("palette", spread(c.colours, c.in_chans))
        self.embed = nn.Embedding(c.colours + (c.objective == "autoregressive"), c.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, c.img_size[0] * c.img_size[1], c.embed_dim))
        self.pos_drop = Dropout(c.drop_rate)
        self.blocks = nn.ModuleList(self._block(rate) for rate in drop_path_rates(c.drop_path_rate, c.depth))
        self.norm = nn.RMSNorm(c.embed_dim, eps=c.numerics.norm_eps)
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = Linear(c.embed_dim, c.num_classes, bias=False) if c.num_classes else nn.Identity()
        self.pixel_head = Linear(c.embed_dim, c.colours, bias=False) if c.paints else None
        initialise(self, c.numerics.init)

    def _block(self, drop_path: float) -> PreNormBlock:
        c = self.config
        return PreNormBlock(
            Attention(c.embed_dim, c.num_heads, qkv_bias=c.bias, proj_bias=c.bias, proj_drop=c.drop_rate),
            FeedForward(c.embed_dim, c.hidden_dim, act="quick_gelu", drop=c.drop_rate, bias=c.bias),
            c.embed_dim,
            eps=c.numerics.norm_eps,
            drop_path=drop_path,
            norm=nn.RMSNorm,
        )

    # ---- images to tokens, tokens to the network's input

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> the number of the nearest colour of each pixel, (B, N) int64."""
        height, width = images.shape[-2:]
        if height * width > self.most_pixels:
            raise ValueError(
                f"expected at most {self.most_pixels} pixels, each of which is a token, got {height}x{width}. mend:"
                f" resize the images, to {self.config.img_size[0]}x{self.config.img_size[1]} say"
            )
        return nearest(images, self.palette)

    def positions(self, grid: Grid) -> Tensor:
        """Return the position table (1, h·w, C) for a grid (h, w)."""
        return resize_positions(self.pos_embed, self.config.img_size, grid, self.config.numerics.pos_resize)

    def _after_start(self, tokens: Tensor) -> Tensor:
        """Put the start token before the pixels (B, N), and leave the last one out."""
        shifted: Tensor = F.pad(tokens[:, :-1], (1, 0), value=self.config.start)
        return shifted

    def _look_up(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, N, C); a hole gives zeros."""
        if self.config.objective == "autoregressive":
            embedded: Tensor = self.embed(tokens)
            return embedded
        shown = (tokens != HOLE)[..., None]
        seen: Tensor = self.embed(tokens.clamp_min(0)) * shown
        return seen

    # ---- the network

    def _blocks(self, x: Tensor) -> list[Tensor]:
        """Input of the first block (B, N, C) -> that, and what each block gives: depth + 1 of them."""
        causal = self.config.objective == "autoregressive"
        found = [x]
        for block in self.blocks:
            found.append(block(found[-1], causal=causal))
        return found

    def _run(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens as the network reads them (B, N) -> (B, N, C) after the last block and norm."""
        x = self.pos_drop(self._look_up(tokens) + self.positions(grid)[:, : tokens.shape[1]])
        normed: Tensor = self.norm(self._blocks(x)[-1])
        return normed

    def _read(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Images -> (the tokens that classes are read from (B, N), grid)."""
        tokens = self.tokens(images)
        shown = self._after_start(tokens) if self.config.shifted else tokens
        return shown, (images.shape[-2], images.shape[-1])

    @property
    def feature_channels(self) -> dict[int, int]:
        """Return stride -> channels of the map that :meth:`features` gives."""
        return {1: self.config.embed_dim}

    def features(self, images: Tensor, layer: int | None = None) -> Features:
        """Images (B, I, H, W) -> tokens (B, N, C) after ``layer`` blocks and the norm behind them, and as one map.

        ``layer`` is 0 to depth; default the depth. What follows the blocks before the last is the first norm of the
        next one: section 3.3 reads its linear probes there.
        """
        shown, grid = self._read(images)
        (tokens,) = self._layers(shown, grid, (self.config.depth if layer is None else layer,))
        return Features(tokens=tokens, grid=grid, maps={1: as_map(tokens, grid)})

    def pooled(self, images: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """Images (B, I, H, W) -> the mean over all tokens after each of ``layers`` blocks, (B, L, C).

        Default all of them, 0 (embeddings) to depth; in one pass. See :meth:`features`.
        """
        wanted = range(self.config.depth + 1) if layers is None else layers
        return torch.stack([x.mean(1) for x in self._layers(*self._read(images), wanted)], dim=1)

    def _layers(self, shown: Tensor, grid: Grid, layers: Sequence[int]) -> list[Tensor]:
        depth = self.config.depth
        norms: list[Any] = [*(block.norm1 for block in self.blocks), self.norm]
        wrong = [i for i in layers if not 0 <= i <= depth]
        if wrong:
            raise ValueError(f"expected a layer of 0 (the embeddings) to {depth}, got {wrong[0]}")
        outs = self._blocks(self.pos_drop(self._look_up(shown) + self.positions(grid)))
        return [norms[i](outs[i]) for i in layers]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, I, H, W), normalised -> class logits (B, K), or pooled features (B, C) when K is 0.

        A joint model in training gives (class logits, logits of the pixels (B, N, V)). Tokens (B, N) int64 instead of
        images: see :meth:`pixels`.
        """
        if not images.is_floating_point():
            return self.pixels(images)
        x = self._run(*self._read(images))
        logits: Tensor = self.head(self.head_drop(x.mean(1)))
        if self.training and self.config.joint:
            assert self.pixel_head is not None
            return logits, self.pixel_head(x)
        return logits

    def pixels(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Colours of pixels (B, N) int64 -> logits (B, N, V): those at i say what pixel i is.

        They are made from the pixels before it, or, by a masked model, from all that are no :data:`HOLE`. ``grid`` is
        the picture's (h, w), default the one the model was made for; of its N = h · w pixels an autoregressive model
        takes any number, in raster order.

        Raises:
            ValueError: another number of tokens, or a model that has no output for pixels.
        """
        grid = self.config.img_size if grid is None else grid
        ordered = self.config.objective == "autoregressive"
        count = tokens.shape[1]
        if self.pixel_head is None:
            raise ValueError("expected a model that predicts pixels, got a classifier; mend: joint=True, or no classes")
        if count > grid[0] * grid[1] or (count < grid[0] * grid[1] and not ordered):
            raise ValueError(f"expected the {grid[0] * grid[1]} tokens of {grid[0]}x{grid[1]} pixels, got {count}")
        logits: Tensor = self.pixel_head(self._run(self._after_start(tokens) if ordered else tokens, grid))
        return logits

    # ---- step by step (vitrail.nn.steps)

    def begin(self, source: Tensor, keep: Tensor | None = None, *, grid: Grid | None = None) -> PixelState:
        """Return the state after reading the tokens ``source`` (B, S): nothing (S = 0), or the start token and pixels.

        ``grid`` is the (h, w) of the picture to paint, default the one the model was made for.

        Raises:
            ValueError: a masked model, which has no order to go by; rows that are padded.
        """
        if self.config.objective != "autoregressive" or self.pixel_head is None:
            raise ValueError("expected an autoregressive model that predicts pixels: this one cannot paint")
        if keep is not None and not bool(keep.all()):
            raise ValueError("expected rows without padding: all pictures of a batch begin with as many pixels")
        state = PixelState(self.config.depth, self.positions(self.config.img_size if grid is None else grid))
        if source.shape[1]:
            self._advance(source, state)
        state.take_steps(self.blocks)
        return state

    def step(self, tokens: Tensor, state: PixelState) -> Tensor:
        """Read one more token a row, (B,) int64, and return logits (B, V) of the next pixel; ``state`` moves on.

        The first token of a picture is the start token, ``config.start``. Raises ValueError after the last pixel.
        """
        assert self.pixel_head is not None
        logits: Tensor = self.pixel_head(self.norm(self._advance(tokens[:, None], state)[:, -1]))
        return logits

    def _advance(self, tokens: Tensor, state: PixelState) -> Tensor:
        """Read tokens (B, n) after those the state holds; returns (B, n, C) after the last block."""
        first, last = state.length, state.length + tokens.shape[1]
        if last > state.positions.shape[1]:
            raise ValueError(f"expected at most {state.positions.shape[1]} tokens, one a pixel, got {last}")
        cache: KVCache
        x: Tensor = self.pos_drop(self._look_up(tokens) + state.positions[:, first:last])
        if state.weights is not None:
            return onestep.step(x[:, 0], state.weights, state.memories)[:, None]
        for block, cache in zip(self.blocks, state.caches, strict=True):
            x = block(x, causal=True, cache=cache)
        return x


# name: width, depth, heads
SIZES: dict[str, tuple[int, int, int]] = {
    # for pictures of 8 to 32 pixels, on one core; ours
    "nano": (64, 4, 4),
    "micro": (128, 6, 4),
    "mini": (192, 8, 6),
    # section 3.2 and the authors' code; heads of XL are not stated
    "s": (512, 24, 8),
    "m": (1024, 36, 8),
    "l": (1536, 48, 16),
    "xl": (3072, 60, 16),
}


def sized(size: str, side: int, **changes: object) -> IGPTConfig:
    """Return the config of a named size for pictures of ``side`` pixels."""
    width, depth, heads = SIZES[size]
    config = IGPTConfig(img_size=(side, side), embed_dim=width, depth=depth, num_heads=heads)
    return replace(config, **changes)  # type: ignore[arg-type]


VARIANTS: dict[str, IGPTConfig] = {
    "igpt_s": sized("s", 32),
    "igpt_m": sized("m", 32),
    "igpt_l": sized("l", 32),
    "igpt_l_48": sized("l", 48),
    "igpt_xl": sized("xl", 64),
    **{f"igpt_{size}_{side}": sized(size, side) for size in ("nano", "micro", "mini") for side in (8, 16, 32)},
    "test_igpt": IGPTConfig((32, 32), num_classes=10, colours=24, embed_dim=32, depth=2, num_heads=2),
}

MODELS = {IGPTConfig: IGPT}
