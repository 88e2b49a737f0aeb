"""From an image with boxes to one of the size a network takes: cuts, flips, sizes, colours, the boxes along with it.

Sources: shorter and longer side, the crop branch: Carion et al. 2020, arXiv 2005.12872, section 4; scale jitter: Ghiasi
et al. 2021, arXiv 2012.07177, section 3 (LSJ). A stage is a pure function of a sample and its draws: it has no state.
H rows, W columns, n objects; boxes ``xyxy`` float64 (n, 4) in pixels; masks bool (n, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.coloring import ColorJitter
from vitrail.data.resample import resize
from vitrail.errors import UsageError

from .masks import mask_of
from .sets import Annotations, Scene

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """An image on its way: uint8 (3, H, W), corners of its objects, and which of the scene's objects they are."""

    image: Tensor
    xyxy: NDArray[np.float64]
    which: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[-2], self.image.shape[-1]

    def keep(self, chosen: NDArray[np.bool_]) -> Drawn:
        """Return the same with these objects alone."""
        masks = None if self.masks is None else self.masks[chosen]
        return replace(self, xyxy=self.xyxy[chosen], which=self.which[chosen], masks=masks)


@dataclass(frozen=True)
class Fit:
    """Resize, the ratio kept, so that the shorter side is ``shorter`` unless the longer one would pass ``longer``.

    Sides are then brought to the nearest ``multiple``. Networks that read several maps know how much of each is padding
    in whole cells only: a side that fills no whole cells would put a box a few pixels off.
    """

    shorter: int
    longer: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.shorter <= self.longer:
            raise UsageError(f"expected 0 < shorter <= longer, got {self.shorter} and {self.longer}")
        if self.multiple < 1:
            raise UsageError(f"expected a multiple of at least 1, got {self.multiple}")

    def target(self, size: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
        """(H, W) of what comes out of an image of ``size``."""
        height, width = size
        scale = factor * min(self.shorter / min(height, width), self.longer / max(height, width))
        m = self.multiple
        return max(m, m * round(height * scale / m)), max(m, m * round(width * scale / m))

    def __call__(self, drawn: Drawn, factor: float = 1.0) -> Drawn:
        return resized(drawn, self.target(drawn.size, factor))


@dataclass(frozen=True)
class Prepared:
    """A sample ready for a batch: uint8 ``image`` (3, h, w); what training learns, ``labels`` int64 (n,) and
    ``boxes_cxcywh01`` float32 (n, 4) of this image; what an evaluation compares with: the scene's own ``objects`` and
    ``size`` (H, W) before anything was done to it.
    """

    image: Tensor
    labels: Tensor
    boxes_cxcywh01: Tensor
    objects: Annotations
    size: tuple[int, int]
    masks: Tensor | None = None


@dataclass(frozen=True)
class BoxPrepare:
    """What happens to a training image, or (``None`` for everything random) to one that is measured.

    Attributes:
        fit: the size.
        hflip: chance of a left-right flip.
        crop: chance of a random cut, ``crop_share`` its least share of each side.
        scales: low and high factor on the size: below 1 the image comes out smaller; above 1 it is cut to ``fit``.
        jitter: colours.
        min_visible: an object stays if this share of its box is left after a cut.
        masks: also give the objects' masks.
    """

    fit: Fit
    hflip: float = 0.0
    crop: float = 0.0
    crop_share: float = 0.5
    scales: tuple[float, float] = (1.0, 1.0)
    jitter: ColorJitter | None = None
    min_visible: float = 0.25
    masks: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.hflip <= 1 and 0 <= self.crop <= 1 and 0 < self.crop_share <= 1):
            raise UsageError(
                f"expected chances between 0 and 1, got hflip={self.hflip}, crop={self.crop}, "
                f"crop_share={self.crop_share}"
            )
        if not 0 < self.scales[0] <= self.scales[1]:
            raise UsageError(f"expected scales above 0 as (low, high), got {self.scales}")

    @property
    def random(self) -> bool:
        """Whether anything is left to chance."""
        return bool(self.hflip or self.crop or self.jitter or self.scales != (1.0, 1.0))

    @property
    def draws(self) -> int:
        """Uniform numbers used by one image: flip; cut (whether, height, width, top, left); scale, its cut; colours."""
        return 9 + (self.jitter.draws if self.jitter else 0) if self.random else 0

    def __call__(self, sample: Scene, draws: Draws) -> Prepared:
        """A scene and its draws (D,) -> what goes into a batch."""
        drawn = start(sample, masks=self.masks)
        drawn = self._random(drawn, draws) if self.random else self.fit(drawn)
        height, width = drawn.size
        corners = np.clip(drawn.xyxy, 0, [width, height, width, height]) / [width, height, width, height]
        centre = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        return Prepared(
            drawn.image,
            torch.from_numpy(sample.objects.labels[drawn.which]),
            torch.from_numpy(centre.astype(np.float32)),
            sample.objects,
            sample.size,
            None if drawn.masks is None else torch.from_numpy(drawn.masks),
        )

    def _random(self, drawn: Drawn, draws: Draws) -> Drawn:
        if draws[0] < self.hflip:
            drawn = flipped(drawn)
        if draws[1] < self.crop:
            drawn = self._cut(drawn, draws[2:6])
        low, high = self.scales
        factor = low * (high / low) ** draws[6]
        limit = self.fit.target(drawn.size)
        drawn = self.fit(drawn, factor)
        if factor > 1:
            drawn = cut(drawn, *_place(drawn.size, limit, draws[7:9]), self.min_visible)
        if self.jitter:
            drawn = replace(drawn, image=self.jitter(drawn.image[None], draws[None, 9:])[0])
        return drawn

    def _cut(self, drawn: Drawn, draws: Draws) -> Drawn:
        """Cut a random box out of the image."""
        shares = self.crop_share + (1 - self.crop_share) * draws[:2]
        size = tuple(max(1, round(side * share)) for side, share in zip(drawn.size, shares, strict=True))
        return cut(drawn, *_place(drawn.size, size, draws[2:4]), self.min_visible)


def start(scene: Scene, *, masks: bool = False) -> Drawn:
    """Return a scene with what is learned of it: no crowds, no boxes without area inside the image."""
    objects, (height, width) = scene.objects, scene.size
    corners = objects.xyxy
    inside = np.clip(corners, 0, [width, height, width, height])
    fine = ~objects.crowd & ((inside[:, 2:] - inside[:, :2]) > 0).all(1)
    which = np.flatnonzero(fine)
    drawn = None
    if masks:
        found = [shape_mask(objects.shapes[i], inside[i], scene.size) for i in which]
        drawn = np.stack(found) if found else np.zeros((0, height, width), dtype=bool)
    return Drawn(scene.image, inside[which], which, drawn)


def shape_mask(shape: Any, box: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of an object with corners ``box``; of one without an outline, its box."""
    if shape is not None:
        return mask_of(shape, size)
    found = np.zeros(size, dtype=bool)
    left, top, right, bottom = np.rint(box).astype(int)
    found[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return found


def flipped(drawn: Drawn) -> Drawn:
    """Mirror left and right."""
    width = drawn.size[1]
    corners = drawn.xyxy.copy()
    corners[:, [0, 2]] = width - corners[:, [2, 0]]
    masks = None if drawn.masks is None else drawn.masks[:, :, ::-1].copy()
    return replace(drawn, image=drawn.image.flip(-1), xyxy=corners, masks=masks)


def cut(drawn: Drawn, top: int, left: int, height: int, width: int, min_visible: float) -> Drawn:
    """Cut a box of pixels out; objects of which less than ``min_visible`` of the box is left go."""
    image = drawn.image[:, top : top + height, left : left + width]
    corners = drawn.xyxy - [left, top, left, top]
    inside = np.clip(corners, 0, [width, height, width, height])
    was, now = _areas(corners), _areas(inside)
    masks = None if drawn.masks is None else drawn.masks[:, top : top + height, left : left + width]
    return replace(drawn, image=image, xyxy=inside, masks=masks).keep((now > 0) & (now >= min_visible * was))


def resized(drawn: Drawn, size: tuple[int, int]) -> Drawn:
    """Resize to (H, W)."""
    if size == drawn.size:
        return drawn
    was = drawn.size
    factor = np.array([size[1] / was[1], size[0] / was[0]])
    masks = drawn.masks
    if masks is not None:
        rows = ((np.arange(size[0]) + 0.5) * was[0] / size[0]).astype(int)
        columns = ((np.arange(size[1]) + 0.5) * was[1] / size[1]).astype(int)
        masks = masks[:, rows][:, :, columns]
    image = resize(drawn.image.contiguous(), size, "bilinear")
    return replace(drawn, image=image, xyxy=drawn.xyxy * np.tile(factor, 2), masks=masks)


def _areas(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.clip(xyxy[:, 2:] - xyxy[:, :2], 0, None).prod(1)
    return found


def _place(size: tuple[int, int], wanted: tuple[int, ...], draws: Draws) -> tuple[int, int, int, int]:
    """Return top, left, height, width of a random box of the ``wanted`` size, cut to the image."""
    height, width = (min(a, b) for a, b in zip(size, wanted, strict=True))
    top = math.floor(draws[0] * (size[0] - height + 1))
    left = math.floor(draws[1] * (size[1] - width + 1))
    return top, left, height, width
