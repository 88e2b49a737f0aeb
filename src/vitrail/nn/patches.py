"""Patches: an image cut into squares, each projected to one token.

Source: Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1, equation 1.

B batch, I input channels, H·W pixels, p patch side, h = H // p, w = W // p, N = h · w tokens, C width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
        pixels = images[:, :, : h * p, : w * p].reshape(b, chans, h, p, w, p)
        rows = pixels.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, chans * p * p)
        return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)
