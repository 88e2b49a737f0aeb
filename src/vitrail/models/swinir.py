"""SwinIR: image restoration by Swin's shifted windows at full resolution, in residual groups with convolutions.

Source: Liang et al. 2021, arXiv 2108.10257, section 3 and figure 2; sizes from section 4.1 and the authors' released
weights (classical, lightweight and real-world super-resolution, grey and colour denoising, JPEG artefacts).

Pictures come and go in 0..1, at any size: what does not fill the last window is mirrored, as the authors' network does,
and cut off again. A picture too small to be mirrored is mirrored back and forth (:func:`reflect_to_multiple`; theirs
refuses it).

B batch, I channels of a picture, (H, W) its size, (h, w) the same padded to whole windows, C width, s scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrail.nn.checks import require_each, require_heads, require_positive
from vitrail.nn.conv import channels_last_kernels
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.init import initialise
from vitrail.nn.residual import PreNormBlock, drop_path_rates
from vitrail.nn.upsample import DirectHead, NearestHead, ShuffleHead, reflect_to_multiple
from vitrail.nn.windows import WindowAttention

EPS = 1e-5
"""Epsilon of every layer norm."""
MEANS = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K, which is taken off and put back; grey pictures keep theirs."""

Head = Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", "residual"]
Connection = Literal["1conv", "3conv"]


@dataclass(frozen=True)
class SwinIRConfig:
    """Architecture of a SwinIR.

    Attributes:
        img_size: (H, W) of the pictures it was trained on, before scaling; any other size works.
        in_chans: channels of a picture, the same coming and going.
        upscale: s; 1 for the head "residual", which keeps the size.
        embed_dim: width C.
        depths: blocks of each residual group; even ones shift their windows in every other block.
        num_heads: heads in the blocks of each group.
        window_size: side of a window in pixels.
        mlp_ratio: hidden width of the feed-forward network over C.
        head: how the picture is made: "pixelshuffle" (classical), "pixelshuffledirect" (lightweight), "nearest+conv"
            (real-world), or "residual": what is added to the picture that came (denoising, JPEG).
        connection: convolution at the end of each group, "1conv" or, with fewer weights, "3conv".
        img_range: what a picture of 0..1 is multiplied by inside (255 for JPEG artefacts).
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
    """

    answers: ClassVar[str] = "pictures"
    num_classes: ClassVar[int] = 0

    img_size: tuple[int, int] = (64, 64)
    in_chans: int = 3
    upscale: int = 2
    embed_dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    window_size: int = 8
    mlp_ratio: float = 2.0
    head: Head = "pixelshuffle"
    connection: Connection = "1conv"
    img_range: float = 1.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        require_each(vars(self), "depths", "num_heads")
        require_positive(
            vars(self), "in_chans", "upscale", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"
        )
        require_heads([self.embed_dim] * len(self.depths), self.num_heads)
        if (self.head == "residual") != (self.upscale == 1):
            raise ValueError(
                f"expected upscale 1 with head 'residual', more with the others, got {self.upscale} and {self.head!r}"
            )
        if self.connection == "3conv" and self.embed_dim % 4:
            raise ValueError(f"expected an embed_dim that 4 divides for connection '3conv', got {self.embed_dim}")
        if self.img_range <= 0:
            raise ValueError(f"expected an img_range above 0, got {self.img_range}")


def connect(dim: int, kind: Connection) -> nn.Module:
    """Return the convolution at the end of a group: (B, C, h, w) -> (B, C, h, w)."""
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    narrow = dim // 4
    return nn.Sequential(
        nn.Conv2d(dim, narrow, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, dim, 3, padding=1),
    )


class Group(nn.Module):
    """Residual Swin Transformer block (RSTB): blocks, a convolution, and the way round them.

    Args:
        blocks: token mixers on (B, h, w, C).
        conv: what :func:`connect` gives.
    """

    def __init__(self, blocks: list[PreNormBlock], conv: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        mixed: Tensor = self.conv(self.blocks(x).permute(0, 3, 1, 2))
        return x + mixed.permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """SwinIR: ``model(pictures)`` maps (B, I, H, W) in 0..1 to (B, I, s H, s W) in about 0..1, at any (H, W)."""

    mean: Tensor

    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__()
        self.config = c = config
        mean = torch.tensor(MEANS if c.in_chans == 3 else (0.0,) * c.in_chans)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(c.in_chans, c.embed_dim, 3, padding=1)
        self.embed_norm = nn.LayerNorm(c.embed_dim, eps=EPS)
        rates = iter(drop_path_rates(c.drop_path_rate, sum(c.depths)))
        self.stages = nn.ModuleList(
            Group([self._block(i, j, next(rates)) for j in range(depth)], connect(c.embed_dim, c.connection))
            for i, depth in enumerate(c.depths)
        )
        self.norm = nn.LayerNorm(c.embed_dim, eps=EPS)
        self.conv_after_body = connect(c.embed_dim, c.connection)
        self.reconstruct = self._reconstruction()
        initialise(self, "trunc_normal")
        channels_last_kernels(self)

    def _block(self, group: int, index: int, drop_path: float) -> PreNormBlock:
        c = self.config
        attn = WindowAttention(
            c.embed_dim,
            c.num_heads[group],
            (c.window_size, c.window_size),
            shift="always" if index % 2 and min(c.img_size) > c.window_size else "never",
        )
        mlp = FeedForward(c.embed_dim, int(c.embed_dim * c.mlp_ratio))
        return PreNormBlock(attn, mlp, c.embed_dim, eps=EPS, drop_path=drop_path)

    def _reconstruction(self) -> nn.Module:
        c = self.config
        if c.head == "residual":
            return nn.Conv2d(c.embed_dim, c.in_chans, 3, padding=1)
        kinds = {"pixelshuffle": ShuffleHead, "pixelshuffledirect": DirectHead, "nearest+conv": NearestHead}
        return kinds[c.head](c.embed_dim, c.in_chans, c.upscale)

    def encode(self, x: Tensor) -> Tensor:
        """A picture (B, I, h, w) of whole windows, without its mean -> deep features (B, C, h, w)."""
        shallow: Tensor = self.conv_first(x)
        tokens: Tensor = self.embed_norm(shallow.permute(0, 2, 3, 1))
        for stage in self.stages:
            tokens = stage(tokens)
        deep: Tensor = self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2))
        return deep + shallow

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, I, H, W) in 0..1 -> (B, I, s H, s W), not clamped. ValueError for other channels."""
        c = self.config
        if images.ndim != 4 or images.shape[1] != c.in_chans:
            raise ValueError(f"expected pictures (B, {c.in_chans}, H, W), got {tuple(images.shape)}")
        height, width = images.shape[2:]
        x = (reflect_to_multiple(images, c.window_size) - self.mean) * c.img_range
        x = x.contiguous(memory_format=torch.channels_last)
        made: Tensor = self.reconstruct(self.encode(x))
        made = (x + made if c.head == "residual" else made) / c.img_range + self.mean
        return made[:, :, : height * c.upscale, : width * c.upscale]


# sizes: width, groups of six blocks, heads; section 4.1 (M, S) and the released weights (L)
_SIZES: dict[str, tuple[int, int, int]] = {"m": (180, 6, 6), "light": (60, 4, 6), "l": (240, 9, 8)}


def _variant(size: str, head: Head, upscale: int, img_size: int) -> SwinIRConfig:
    dim, groups, heads = _SIZES[size]
    return SwinIRConfig(
        img_size=(img_size, img_size),
        upscale=upscale,
        embed_dim=dim,
        depths=(6,) * groups,
        num_heads=(heads,) * groups,
        head=head,
    )


def _small(head: Head, upscale: int) -> SwinIRConfig:
    """Two groups of four blocks, for quick training; ours."""
    return SwinIRConfig((32, 32), 3, upscale, 48, (4, 4), (4, 4), head=head)


_DENOISE = _variant("m", "residual", 1, 128)
_JPEG = replace(_DENOISE, img_size=(126, 126), window_size=7, img_range=255.0)

VARIANTS: dict[str, SwinIRConfig] = {
    # section 4.2: trained on patches of 48 (DIV2K) and 64 (with Flickr2K), of which the number of windows differs
    **{f"swinir_classical_m_x{s}": _variant("m", "pixelshuffle", s, 64) for s in (2, 3, 4, 8)},
    **{f"swinir_classical_m_x{s}_48": _variant("m", "pixelshuffle", s, 48) for s in (2, 3, 4, 8)},
    **{f"swinir_light_x{s}": _variant("light", "pixelshuffledirect", s, 64) for s in (2, 3, 4)},
    **{f"swinir_real_m_x{s}": _variant("m", "nearest+conv", s, 64) for s in (2, 4)},
    "swinir_real_l_x4": replace(_variant("l", "nearest+conv", 4, 64), connection="3conv"),
    # sections 4.3 and 4.4
    "swinir_gray_denoise": replace(_DENOISE, in_chans=1),
    "swinir_color_denoise": _DENOISE,
    "swinir_gray_jpeg": replace(_JPEG, in_chans=1),
    "swinir_color_jpeg": _JPEG,
    # ours: the lightweight size without scaling, and smaller ones
    "swinir_light_denoise": _variant("light", "residual", 1, 64),
    **{f"swinir_nano_x{s}": _small("pixelshuffledirect", s) for s in (2, 3, 4)},
    "swinir_nano_denoise": _small("residual", 1),
    "swinir_nano_jpeg": replace(_small("residual", 1), img_range=255.0),
}
_TEST = SwinIRConfig((16, 16), 3, 2, 8, (2, 2), (2, 2), 4, head="pixelshuffledirect")
VARIANTS |= {
    "test_swinir": _TEST,
    "test_swinir_x3": replace(_TEST, upscale=3, head="pixelshuffle", connection="3conv"),
    "test_swinir_x4": replace(_TEST, upscale=4, head="nearest+conv"),
    "test_swinir_denoise": replace(_TEST, upscale=1, head="residual"),
    "test_swinir_jpeg": replace(_TEST, in_chans=1, upscale=1, head="residual", window_size=3, img_range=255.0),
}

MODELS = {SwinIRConfig: SwinIR}
