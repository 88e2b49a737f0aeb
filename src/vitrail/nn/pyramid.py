"""Feature pyramids: the maps of a backbone as a list, and four maps made of the one map of an isotropic model.

Source: Li et al. 2022, arXiv 2203.16527, section 3 (ViTDet: the simple feature pyramid).

B batch, C channels, (h, w) map, H·W pixels, p patch side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .norms import LayerNorm2d

STRIDES = (4, 8, 16, 32)


class SimplePyramid(nn.Module):
    """One map (B, C, h, w) of stride p -> stride -> map (B, D, h', w'): transposed convolutions up, max-pooling down.

    A patch side that is no power of two gets its map resized to the nearest such stride first.

    Args:
        dim: channels C.
        patch_size: stride p of the map.
        out_dim: channels D of every level.
        strides: levels to make, powers of two.
    """

    def __init__(self, dim: int, patch_size: int, *, out_dim: int = 256, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        self.stride = 2 ** round(math.log2(patch_size))
        self.factor = patch_size / self.stride
        self.levels = nn.ModuleDict({str(s): _level(dim, out_dim, self.stride / s) for s in strides})

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """(B, C, h, w) -> stride -> (B, D, h', w')."""
        if self.factor != 1:
            size = [max(1, math.ceil(n * self.factor)) for n in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        return {int(stride): level(x) for stride, level in self.levels.items()}


def _level(dim: int, out_dim: int, scale: float) -> nn.Sequential:
    """Return the layers that scale a map by a power of two and bring it to ``out_dim`` channels."""
    layers: list[nn.Module] = []
    while scale > 1:
        layers.append(nn.ConvTranspose2d(dim, dim // 2, 2, stride=2))
        dim, scale = dim // 2, scale / 2
        if scale > 1:
            layers += [LayerNorm2d(dim), nn.GELU()]
    if scale < 1:
        layers.append(nn.MaxPool2d(round(1 / scale), ceil_mode=True))
    layers += [nn.Conv2d(dim, out_dim, 1, bias=False), LayerNorm2d(out_dim)]
    layers += [nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False), LayerNorm2d(out_dim)]
    return nn.Sequential(*layers)


class FeatureInfo:
    """Channels and strides of the maps a :class:`FeaturePyramid` gives, asked for as in timm."""

    def __init__(self, channels: dict[int, int]) -> None:
        self._channels = channels

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return list(self._channels.values())

    def reduction(self) -> list[int]:
        """Return the stride of each map in pixels."""
        return list(self._channels)


class Dropped(nn.Identity):
    """Stands where a part was that only the head reads."""


def drop_unread(backbone: Any) -> None:
    """Take out of a backbone, in place, what no map of it reads."""
    for name in getattr(backbone, "after_maps", ()):
        if isinstance(getattr(backbone, name), nn.Module):
            setattr(backbone, name, Dropped())


class FeaturePyramid(nn.Module):
    """A backbone without its classifier: images -> list of maps, the finest first.

    A backbone with one map only (ViT, DeiT, hybrids) gets a :class:`SimplePyramid`, whose layers are new: train them.
    What no map reads (``backbone.after_maps`` names it: the final norm of some, the head) is taken out of the backbone,
    so that every parameter gets a gradient: load weights before.

    Args:
        backbone: a model with ``features(images)`` and ``feature_channels``.
        out_indices: which of the maps to give, in increasing order, counted from the finest; below 0 from the
            coarsest; default all.

    Raises:
        ValueError: ``out_indices`` that are no such numbers.

    Attributes:
        feature_info: channels and strides of the maps given.
    """

    def __init__(self, backbone: Any, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        channels: dict[int, int] = backbone.feature_channels
        self.pyramid = None
        single = len(channels) == 1
        strides = list(STRIDES) if single else sorted(channels)
        self.strides = [strides[i] for i in _chosen(out_indices, len(strides))]
        if single:
            ((stride, dim),) = channels.items()
            self.pyramid = SimplePyramid(dim, stride, strides=self.strides)
            channels = dict.fromkeys(STRIDES, 256)
        drop_unread(backbone)
        self.feature_info = FeatureInfo({s: channels[s] for s in self.strides})

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, I, H, W), normalised -> maps (B, C, h, w), in the order of ``feature_info``."""
        maps: dict[int, Tensor] = self.backbone.features(images).maps
        if self.pyramid is not None:
            (only,) = maps.values()
            maps = self.pyramid(only)
        return [maps[stride] for stride in self.strides]


def _chosen(out_indices: Sequence[int] | None, count: int) -> list[int]:
    """Return the indices of the maps asked for, counted from the finest; ValueError if they are none."""
    if out_indices is None:
        return list(range(count))
    wanted = (
        f"expected out_indices as a list of numbers from 0 (the finest map) to {count - 1}, or from -{count} to -1,"
    )
    if not isinstance(out_indices, Sequence) or isinstance(out_indices, str):
        raise ValueError(f"{wanted} such as (0, 1), got {out_indices!r}")
    wrong = [i for i in out_indices if not isinstance(i, int) or isinstance(i, bool) or not -count <= i < count]
    if wrong or not out_indices:
        raise ValueError(f"{wanted} at least one, got {wrong[0]!r}" if wrong else f"{wanted} at least one, got none")
    found = [i % count for i in out_indices]
    if found != sorted(set(found)):
        raise ValueError(f"{wanted} each once and in increasing order, got {tuple(out_indices)}")
    return found
