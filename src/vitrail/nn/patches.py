"""Patches: an image cut into squares, each projected to one token.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1, equation 1.

B batch, I input channels, H·W pixels, p patch side, h = H // p, w = W // p, N = h · w tokens, C width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from .fused import Linear, linear
from .shortcuts import plain


class PatchEmbed(nn.Module):
    """Project non-overlapping p x p patches to tokens.

    A convolution with kernel = stride = p, computed as the matrix product it is. Pixels at the right and bottom that do
    not fill a patch are dropped.

    Args:
        patch_size: side p of a patch in pixels.
        in_chans: input channels I.
        embed_dim: width C of a token.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of an image; ValueError if it does not hold one patch."""
        p = self.patch_size
        if height < p or width < p:
            raise ValueError(f"expected an image of at least one patch ({p}x{p} pixels), got {height}x{width}")
        return height // p, width // p

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> tokens (B, N, C), in raster order."""
        b, chans, height, width = images.shape
        h, w = self.grid(height, width)
        p = self.patch_size
        if not plain(self.proj, nn.Conv2d):
            map_: Tensor = self.proj(images)
            return map_.flatten(2).transpose(1, 2)
        pixels = images[:, :, : h * p, : w * p].reshape(b, chans, h, p, w, p)
        rows = pixels.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, chans * p * p)
        return linear(rows, self.proj.weight.flatten(1), self.proj.bias)


class MapBackbone(Protocol):
    """A network that makes maps of images."""

    out_chans: int
    stride: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of the map of an image."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> map (B, C, h, w)."""
        ...


class MapEmbed(nn.Module):
    """Patches of the map that another network makes of an image, down to 1x1: the tokens of a hybrid.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1, "Hybrid Architecture".

    Args:
        backbone: a module that makes the map; its stride times p is the side of a patch in pixels.
        patch_size: side p of a patch in cells of the map.
        embed_dim: width C of a token.
    """

    def __init__(self, backbone: MapBackbone, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.patches = PatchEmbed(patch_size, backbone.out_chans, embed_dim)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of an image; ValueError if its map does not hold one patch."""
        cells, p = self.backbone.grid(height, width), self.patches.patch_size
        if min(cells) < p:
            side = p * self.backbone.stride
            raise ValueError(f"expected an image of at least one patch ({side}x{side} pixels), got {height}x{width}")
        return self.patches.grid(*cells)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, I, H, W) -> tokens (B, N, C), in raster order."""
        tokens: Tensor = self.patches(self.backbone(images))
        return tokens


class SquareEmbed(nn.Module):
    """Project non-overlapping squares of tokens to one token each, and norm them.

    Source: Wang et al. 2021, arXiv 2102.12122, section 3.2 (PVT: images, and the maps between stages).

    Args:
        patch_size: side p of a square.
        in_chans: width I of what comes in.
        embed_dim: width C of a token.
        eps: epsilon of the norm.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, *, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels or tokens on their grid (B, H, W, I) -> (B, h, w, C); see :func:`project_squares`."""
        out: Tensor = self.norm(project_squares(x, self.proj))
        return out


class PatchMerging(nn.Module):
    """Merge each 2 x 2 square of tokens to one token of twice the width: concatenate, norm, project.

    Source: Liu et al. 2021, arXiv 2103.14030, section 3.1 (Swin). An odd side is filled up with zeros.

    Args:
        dim: width C of what comes in.
        eps: epsilon of the norm.
    """

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens on their grid (B, h, w, C) -> (B, ceil(h / 2), ceil(w / 2), 2C)."""
        x = pad_to_multiple(x, 2)
        b, h, w, c = x.shape
        squares = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5)  # its rows change faster
        merged: Tensor = self.reduction(self.norm(squares.reshape(b, h // 2, w // 2, 4 * c)))
        return merged


class OverlapPatchEmbed(nn.Module):
    """Project overlapping squares to tokens and norm them: a strided convolution padded by half its kernel.

    Source: Wang et al. 2022, arXiv 2106.13797, section 3.2 (PVT v2).

    Args:
        patch_size: side of a square, odd.
        stride: step between two squares; a side of n holds ``ceil(n / stride)`` of them.
        in_chans: width I of what comes in.
        embed_dim: width C of a token.
        eps: epsilon of the norm.
    """

    def __init__(self, patch_size: int, stride: int, in_chans: int, embed_dim: int, *, eps: float) -> None:
        super().__init__()
        if patch_size % 2 == 0:
            raise ValueError(f"expected an odd patch size, whose squares have a middle, got {patch_size}")
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=stride, padding=patch_size // 2)
        self.norm = nn.LayerNorm(embed_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels or tokens on their grid (B, H, W, I) -> (B, h, w, C)."""
        out: Tensor = self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


def pad_to_multiple(x: Tensor, side: int) -> Tensor:
    """Fill (B, h, w, C) up with zeros at the right and bottom until ``side`` divides h and w."""
    below, right = -x.shape[1] % side, -x.shape[2] % side
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def project_squares(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Tokens on their grid (B, h, w, C) -> (B, h // p, w // p, O): each square of p x p tokens becomes one.

    ``conv`` has kernel = stride = p and a weight (O, C, p, p); it is computed as the matrix product it is. Tokens that
    do not fill a square are dropped; a grid smaller than one square is filled up with zeros at its right and bottom.
    """
    p = conv.kernel_size[0]
    if x.shape[1] < p or x.shape[2] < p:
        x = F.pad(x, (0, 0, 0, max(p - x.shape[2], 0), 0, max(p - x.shape[1], 0)))
    if not plain(conv, nn.Conv2d):
        out: Tensor = conv(x.permute(0, 3, 1, 2))
        return out.permute(0, 2, 3, 1)
    b, h, w, c = x.shape
    h, w = h // p, w // p
    squares = x[:, : h * p, : w * p].reshape(b, h, p, w, p, c).transpose(2, 3).reshape(b, h, w, p * p * c)
    return linear(squares, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
