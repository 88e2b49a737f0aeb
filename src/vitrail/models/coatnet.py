"""CoAtNet: two stages of MBConv, then two of attention with relative positions over the whole map.

Source: Dai et al. 2021, arXiv 2106.04803: section 2 and appendix A.1 (blocks), table 3 (0 to 4), tables 4 and 11
(5 to 7). The networks that timm published differ in details (:class:`CoAtNetForm`); their names end in ``_rw_224`` and
the like. ``coatnet_0`` is the paper's network, ``coatnet_0_224`` timm's reading of it.

B batch, I input channels, H·W pixels, C width, (h, w) map of a stage, N = h · w tokens, K classes.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_each, require_multiple, require_positive
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import ACTIVATIONS, Linear
from vitrail.nn.init import initialise
from vitrail.nn.mbconv import MBConv, MBConvForm, Pool, Shortcut, halve
from vitrail.nn.norms import LayerNorm2d
from vitrail.nn.relative import LogRelativePositionBias, RelativePositionBias
from vitrail.nn.residual import DropPath, LayerScale, drop_path_rates
from vitrail.nn.tokens import Features, as_map, as_tokens

Grid = tuple[int, int]


@dataclass(frozen=True)
class CoAtNetForm:
    """In what published CoAtNets differ beside their sizes; the defaults are the paper's.

    Attributes:
        conv: form of the MBConv blocks.
        expand_output: MBConv expands to four times its output width instead of its input width.
        gate_ratio: hidden width of squeeze-excitation over the output width, or over the expanded width without
            ``expand_output``.
        pool: how attention stages halve their map.
        attn_expand_first: the heads of a widening attention have the output width instead of the input width.
        shortcut_bias: whether the shortcut's projection in attention stages has a bias.
        positions: relative positions from a "table" or a network on "logs" of the offsets.
        positions_dim: hidden width of that network.
        norm: "layer" or "batch" in attention stages.
        init_values: starting value of LayerScale in attention stages; None leaves it out.
    """

    conv: MBConvForm = field(default_factory=MBConvForm)
    expand_output: bool = True
    gate_ratio: float = 0.25
    pool: Pool = "max"
    attn_expand_first: bool = True
    shortcut_bias: bool = True
    positions: Literal["table", "logs"] = "table"
    positions_dim: int = 512
    norm: Literal["layer", "batch"] = "layer"
    init_values: float | None = None


@dataclass(frozen=True)
class CoAtNetConfig:
    """Architecture of a CoAtNet.

    Attributes:
        img_size: (H, W) that the relative position tables are made for; any other size works at run time.
        in_chans: input channels.
        num_classes: classes of the head; 0 leaves the head out.
        stem_widths: channels of the two 3x3 convolutions of the stem.
        stem_stride: stride of the first of them.
        kinds: for each stage, "C" for MBConv or "T" for attention.
        widths: channels of each stage.
        depths: blocks of each stage.
        strides: 2 where the first block of a stage halves the map, else 1.
        head_dim: width of one attention head.
        representation_size: width of the tanh layer before the classifier; None leaves it out.
        drop_rate: dropout in attention stages and before the classifier.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        form: details in which published networks differ.
    """

    img_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    num_classes: int = 1000
    stem_widths: tuple[int, int] = (64, 64)
    stem_stride: int = 2
    kinds: str = "CCTT"
    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 3, 5, 2)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    head_dim: int = 32
    representation_size: int | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    form: CoAtNetForm = field(default_factory=CoAtNetForm)

    def __post_init__(self) -> None:
        require_each(vars(self), "kinds", "widths", "depths", "strides")
        require_positive(vars(self), "in_chans", "stem_widths", "stem_stride", "widths", "depths", "head_dim")
        if set(self.kinds) - set("CT"):
            raise ValueError(f'expected kinds made of "C" and "T", got {self.kinds!r}')
        if set(self.strides) - {1, 2}:
            raise ValueError(f"expected strides of 1 or 2, since a stage halves its map at most, got {self.strides}")
        attending = [i for i, kind in enumerate(self.kinds) if kind == "T"]
        inner = [self.widths[i] for i in attending]
        if not self.form.attn_expand_first:  # the heads of a stage's first block share the width that comes in
            inner += [(self.stem_widths[1], *self.widths)[i] for i in attending]
        require_multiple("stages of attention", inner, "head_dim", self.head_dim)

    @property
    def embed_dim(self) -> int:
        """Width of the last stage."""
        return self.widths[-1]

    @property
    def reductions(self) -> list[int]:
        """Pixels of the image for each step of a stage's map."""
        return list(accumulate(self.strides, initial=self.stem_stride, func=operator.mul))[1:]

    @property
    def grids(self) -> list[Grid]:
        """(h, w) of each stage's map for an image of ``img_size``; a layer that halves an odd side rounds up."""
        return [(-(-self.img_size[0] // step), -(-self.img_size[1] // step)) for step in self.reductions]


class RelativeBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))`` on maps; the first part may halve the map and widen it.

    Args:
        dim: input channels.
        out_dim: output channels; other than ``dim`` only where the map is halved or the stage begins.
        grid: (h, w) of the output that the relative positions are made for.
        head_dim: width of one head.
        stride: 2 to halve the map.
        form: details, see :class:`CoAtNetForm`.
        drop: dropout after projections.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        grid: Grid,
        head_dim: int,
        stride: int,
        form: CoAtNetForm,
        drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        pool = form.pool if stride == 2 else None
        self.shortcut = (
            nn.Identity() if pool is None and dim == out_dim else Shortcut(dim, out_dim, pool, bias=form.shortcut_bias)
        )
        inner = out_dim if form.attn_expand_first else dim
        heads = inner // head_dim
        self.norm1 = _norm(form, dim) if pool is None else HalvedNorm(_norm(form, dim), pool)
        self.attn = Attention(dim, heads, inner_dim=inner, out_dim=out_dim, proj_drop=drop)
        self.positions = (
            RelativePositionBias(heads, grid, resize="bilinear")
            if form.positions == "table"
            else LogRelativePositionBias(heads, grid, hidden_dim=form.positions_dim)
        )
        self.ls1 = nn.Identity() if form.init_values is None else LayerScale(out_dim, form.init_values)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = _norm(form, out_dim)
        self.mlp = FeedForward(out_dim, 4 * out_dim, drop=drop)
        self.ls2 = nn.Identity() if form.init_values is None else LayerScale(out_dim, form.init_values)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, h, w) -> (B, out_dim, h, w), or half the height and width, rounded up."""
        normed = self.norm1(x)
        grid = (normed.shape[2], normed.shape[3])
        mixed = self.attn(as_tokens(normed), bias=self.positions(grid))
        tokens = as_tokens(self.shortcut(x)) + self.drop_path1(self.ls1(mixed))
        mixed = self.mlp(as_tokens(self.norm2(as_map(tokens, grid))))
        return as_map(tokens + self.drop_path2(self.ls2(mixed)), grid)


def _norm(form: CoAtNetForm, dim: int) -> nn.Module:
    return LayerNorm2d(dim) if form.norm == "layer" else nn.BatchNorm2d(dim, eps=1e-6)


class HalvedNorm(nn.Module):
    """A norm, then pooling that halves the map."""

    def __init__(self, norm: nn.Module, pool: Pool) -> None:
        super().__init__()
        self.norm, self.pool = norm, pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ⌈h/2⌉, ⌈w/2⌉)."""
        return halve(self.norm(x), self.pool)


class Stem(nn.Module):
    """Convolution 3x3, norm, activation, convolution 3x3."""

    def __init__(self, config: CoAtNetConfig) -> None:
        super().__init__()
        first, second = config.stem_widths
        self.conv1 = nn.Conv2d(config.in_chans, first, 3, stride=config.stem_stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.act = ACTIVATIONS[config.form.conv.act]
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, C, h, w)."""
        out: Tensor = self.conv2(self.act(self.norm1(self.conv1(x))))
        return out


class CoAtNet(nn.Module):
    """Convolution and attention, stage by stage; ``model(images)`` maps images (B, I, H, W) to logits (B, K).

    Any (H, W) works: odd maps are halved rounding up, and the tables of relative positions are resized.
    """

    after_maps = ("norm", "pre_logits", "head_drop", "head")

    def __init__(self, config: CoAtNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        dim, stages = config.stem_widths[1], []
        plan = zip(config.kinds, config.widths, config.depths, config.strides, config.grids, strict=True)
        for kind, width, depth, stride, grid in plan:
            blocks = []
            for i in range(depth):
                make = self._conv_block if kind == "C" else self._attention_block
                blocks.append(make(width if i else dim, width, 1 if i else stride, grid, next(rates)))
            dim = width
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        self.stages = nn.ModuleList(stages)
        self.norm = _norm(config.form, dim)
        self._add_head()
        initialise(self, "coatnet")

    def _conv_block(self, dim: int, width: int, stride: int, grid: Grid, drop_path: float) -> MBConv:
        form = self.config.form
        hidden = 4 * (width if form.expand_output else dim)
        gate = int(form.gate_ratio * (width if form.expand_output else hidden))
        return MBConv(dim, width, hidden_dim=hidden, gate_dim=gate, stride=stride, form=form.conv, drop_path=drop_path)

    def _attention_block(self, dim: int, width: int, stride: int, grid: Grid, drop_path: float) -> RelativeBlock:
        c = self.config
        return RelativeBlock(
            dim,
            width,
            grid=grid,
            head_dim=c.head_dim,
            stride=stride,
            form=c.form,
            drop=c.drop_rate,
            drop_path=drop_path,
        )

    def _add_head(self) -> None:
        c = self.config
        hidden = c.representation_size
        self.pre_logits = nn.Identity() if hidden is None else nn.Sequential(Linear(c.embed_dim, hidden), nn.Tanh())
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head = Linear(hidden or c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    @property
    def feature_channels(self) -> dict[int, int]:
        """Return stride -> channels of the maps that :meth:`features` gives."""
        return dict(zip(self.config.reductions, self.config.widths, strict=True))

    def maps(self, images: Tensor) -> dict[int, Tensor]:
        """Images (B, I, H, W) -> stride -> map (B, C, h, w) after the last stage of that stride."""
        x: Tensor = self.stem(images.contiguous(memory_format=torch.channels_last))
        found = {}
        for stride, stage in zip(self.config.reductions, self.stages, strict=True):
            found[stride] = x = stage(x)
        return found

    def features(self, images: Tensor) -> Features:
        """Images (B, I, H, W) -> normed tokens of the last stage, and the map of each stride, not normed."""
        maps = self.maps(images)
        last = self.norm(maps[max(maps)])
        return Features(tokens=as_tokens(last), grid=(last.shape[2], last.shape[3]), maps=maps)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W), normalised -> logits (B, K), or pooled features (B, C) when K is 0."""
        maps = self.maps(images)
        last = maps[max(maps)]
        if self.config.representation_size is None:
            pooled = self.norm(last).mean((2, 3))
        else:  # the norm belongs to the head, behind pooling
            pooled = self.norm(last.mean((2, 3), keepdim=True)).flatten(1)
        logits: Tensor = self.head(self.head_drop(self.pre_logits(pooled)))
        return logits


def paper(depths: tuple[int, ...], widths: tuple[int, ...], stem: int, head_dim: int = 32) -> CoAtNetConfig:
    """Return the config of a network in the paper's tables; with five stages, the fourth keeps the third's map."""
    mixed = len(depths) == 5
    return CoAtNetConfig(
        stem_widths=(stem, stem),
        kinds="CCCTT" if mixed else "CCTT",
        widths=widths,
        depths=depths,
        strides=(2, 2, 2, 1, 2) if mixed else (2, 2, 2, 2),
        head_dim=head_dim,
        representation_size=widths[-1],
    )


VARIANTS: dict[str, CoAtNetConfig] = {
    "coatnet_0": paper((2, 3, 5, 2), (96, 192, 384, 768), 64),  # table 3
    "coatnet_1": paper((2, 6, 14, 2), (96, 192, 384, 768), 64),
    "coatnet_2": paper((2, 6, 14, 2), (128, 256, 512, 1024), 128),
    "coatnet_3": paper((2, 6, 14, 2), (192, 384, 768, 1536), 192),
    "coatnet_4": paper((2, 12, 28, 2), (192, 384, 768, 1536), 192),
    "coatnet_5": paper((2, 12, 28, 2), (256, 512, 1280, 2048), 192, 64),
    # table 11 prints a last width of 2048 for 6, which gives 1348M parameters; 3072 gives the published 1470M
    "coatnet_6": paper((2, 4, 8, 42, 2), (192, 384, 768, 1536, 3072), 192, 128),
    "coatnet_7": paper((2, 4, 8, 42, 2), (256, 512, 1024, 2048, 3072), 192, 128),
}

# timm's reading of the paper: halves in the depthwise convolution, pools by averages, heads of 32 everywhere
TIMM = CoAtNetForm(conv=MBConvForm(stride="depthwise", pool="avg"), pool="avg")
VARIANTS |= {f"coatnet_{i}_224": replace(VARIANTS[f"coatnet_{i}"], head_dim=32, form=TIMM) for i in range(6)}

# what timm trained and published: expansion of the input width, SiLU, no bias behind the depthwise convolution
_CONV = MBConvForm(stride="depthwise", pool="avg", act="silu", pre_act=True, bias=False, gate_act="relu")
_CONV_SILU = replace(_CONV, gate_act="silu")
_CONV_EARLY = replace(_CONV, gate_early=True)
_CONV_EARLY_POOLED = replace(_CONV_EARLY, stride="pool")
_CONV_NEWER = replace(_CONV_SILU, pre_act=False, bias=True)
_CONV_NEWER_POOLED = replace(_CONV_NEWER, stride="pool")
_RW = CoAtNetForm(conv=_CONV, expand_output=False, pool="avg", attn_expand_first=False)
_RW_LOGS = replace(_RW, positions="logs")
_RW_EARLY = replace(_RW, conv=_CONV_EARLY, shortcut_bias=False)
_RW_SILU = replace(_RW, conv=_CONV_SILU, init_values=1e-6)
_RMLP_1 = replace(
    _RW_LOGS, conv=replace(_CONV_EARLY_POOLED, pool="max3"), pool="max3", shortcut_bias=False, positions_dim=384
)


def published(depths: tuple[int, ...], width: int, form: CoAtNetForm) -> CoAtNetConfig:
    """Return the config of a network of timm's by its depths, first width and form."""
    stem = {64: (32, 64), 96: (32, 64), 128: (64, 128), 192: (96, 192)}[width]
    widths = (width, 2 * width, 4 * width, 8 * width)
    return CoAtNetConfig(stem_widths=stem, widths=widths, depths=depths, form=form)


VARIANTS |= {
    "coatnet_pico_rw_224": published((2, 3, 5, 2), 64, replace(_RW, conv=_CONV_NEWER)),
    "coatnet_nano_rw_224": published((3, 4, 6, 3), 64, replace(_RW, conv=_CONV_NEWER_POOLED)),
    "coatnet_0_rw_224": published((2, 3, 7, 2), 96, replace(_RW_EARLY, conv=_CONV_EARLY_POOLED)),
    "coatnet_1_rw_224": published((2, 6, 14, 2), 96, _RW_EARLY),
    "coatnet_2_rw_224": published((2, 6, 14, 2), 128, replace(_RW_SILU, init_values=None)),
    "coatnet_3_rw_224": published((2, 6, 14, 2), 192, _RW_SILU),
    "coatnet_bn_0_rw_224": published((2, 3, 7, 2), 96, replace(_RW_EARLY, norm="batch")),
    "coatnet_rmlp_nano_rw_224": published((3, 4, 6, 3), 64, replace(_RW_LOGS, conv=_CONV_NEWER, positions_dim=384)),
    "coatnet_rmlp_0_rw_224": published((2, 3, 7, 2), 96, _RW_LOGS),
    "coatnet_rmlp_1_rw_224": published((2, 6, 14, 2), 96, _RMLP_1),
    "coatnet_rmlp_1_rw2_224": published((2, 6, 14, 2), 96, _RW_LOGS),
    "coatnet_rmlp_2_rw_224": published((2, 6, 14, 2), 128, replace(_RW_SILU, positions="logs")),
    "coatnet_rmlp_3_rw_224": published((2, 6, 14, 2), 192, replace(_RW_SILU, positions="logs")),
}
VARIANTS["coatnet_rmlp_2_rw_384"] = replace(VARIANTS["coatnet_rmlp_2_rw_224"], img_size=(384, 384))

# for pictures of 32 and 64 pixels, on a laptop; ours
_LITTLE = CoAtNetForm(conv=MBConvForm(stride="pool", pool="avg"), pool="avg")
VARIANTS |= {
    f"coatnet_{size}_{side}": CoAtNetConfig(
        img_size=(side, side),
        stem_widths=(widths[0] // 2, widths[0]),
        stem_stride=side // 32,
        widths=widths,
        depths=depths,
        strides=(2, 2, 1, 2),
        form=_LITTLE,
    )
    for size, widths, depths in (
        ("femto", (32, 64, 64, 64), (2, 2, 2, 2)),
        ("pico", (48, 96, 96, 128), (2, 2, 3, 2)),
        ("nano", (64, 128, 160, 224), (2, 4, 2, 2)),
    )
    for side in (32, 64)
}
VARIANTS["test_coatnet"] = CoAtNetConfig(
    (32, 32), 3, 10, (8, 8), 1, widths=(8, 16, 32, 32), depths=(1, 2, 2, 1), head_dim=8, representation_size=16
)
VARIANTS["test_coatnet_rw"] = replace(
    VARIANTS["test_coatnet"], representation_size=None, form=replace(_RW, init_values=0.1, positions="logs")
)

MODELS = {CoAtNetConfig: CoAtNet}
