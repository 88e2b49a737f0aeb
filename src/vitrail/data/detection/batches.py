"""Batches of images with boxes: padded to one size, every row with room for the same number of objects.

B batch, M objects in the fullest image of the split, (H, W) the largest image of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitrail.data.augment import Normalize
from vitrail.data.samples import SampleBatch

from .transforms import Prepared


@dataclass(frozen=True)
class DetectionBatch(SampleBatch):
    """What is learned, and what an evaluation compares with.

    Attributes:
        pixels: (B, H, W) bool, True on the image, False on what was padded.
        labels: (B, M) int64 classes to learn, -1 where there is no object.
        boxes_cxcywh01: (B, M, 4) float32, relative to each image without its padding.
        sizes: (B, 2) int64, height and width of the user's image.
        true_xywh: (B, M, 4) float64, boxes in pixels of the user's image, as its file has them, crowds too.
        true_labels: (B, M) int64, -1 where there is none.
        true_crowd: (B, M) bool.
        true_area: (B, M) float64, square pixels.
        objects_an_image: objects to learn in the whole batch over its images: what a loss is divided by, the same
            whatever pieces the batch is cut into.
        masks: (B, M, H, W) bool, or None.
    """

    pixels: Tensor
    labels: Tensor
    boxes_cxcywh01: Tensor
    sizes: Tensor
    true_xywh: Tensor
    true_labels: Tensor
    true_crowd: Tensor
    true_area: Tensor
    objects_an_image: float
    masks: Tensor | None = None

    def joined(self, total: Callable[[list[float]], list[float]]) -> DetectionBatch:
        """Return the batch as part of a larger one; ``total`` sums numbers over all of its parts."""
        objects, images = total([self.objects_an_image * self.count, float(self.count)])
        return replace(self, objects_an_image=objects / max(1.0, images))

    def without_inputs(self) -> DetectionBatch:
        """Return the batch without pixels, of which every process has others: what a result is compared with."""
        return replace(self, images=self.images[:, :0, :0, :0], pixels=self.pixels[:, :0, :0], masks=None)


class BoxCollate:
    """Makes a :class:`DetectionBatch`; ``most`` is M, ``truth``: whether what an evaluation needs is filled in."""

    def __init__(self, most: int, normalize: Normalize, *, truth: bool = True, masks: bool = False) -> None:
        self.most, self.normalize, self.truth, self.masks = max(1, most), normalize, truth, masks

    def __call__(self, samples: Sequence[Prepared | None], indices: Tensor) -> DetectionBatch:
        """Prepared samples (None: unreadable) and positions (B,) -> a batch."""
        images, pixels = pad([None if s is None else s.image for s in samples], self.normalize)
        count, most = len(samples), self.most
        labels = torch.full((count, most), -1)
        boxes = torch.zeros(count, most, 4)
        sizes = torch.zeros(count, 2, dtype=torch.int64)
        masks = torch.zeros(count, most, *images.shape[-2:], dtype=torch.bool) if self.masks else None
        for row, sample in enumerate(samples):
            if sample is None:
                continue
            found = len(sample.labels)
            labels[row, :found] = sample.labels
            boxes[row, :found] = sample.boxes_cxcywh01
            sizes[row] = torch.tensor(sample.size)
            if masks is not None and sample.masks is not None:
                height, width = sample.image.shape[-2:]
                masks[row, :found, :height, :width] = sample.masks
        keep = torch.tensor([s is not None for s in samples])
        objects = float((labels >= 0).sum()) / max(1, int(keep.sum()))
        truth = self._truth(samples)
        return DetectionBatch(images, keep, indices, pixels, labels, boxes, sizes, *truth, objects, masks)

    def _truth(self, samples: Sequence[Prepared | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, most = len(samples), self.most if self.truth else 0
        xywh = torch.zeros(count, most, 4, dtype=torch.float64)
        labels = torch.full((count, most), -1)
        crowd = torch.zeros(count, most, dtype=torch.bool)
        area = torch.zeros(count, most, dtype=torch.float64)
        for row, sample in enumerate(samples):
            if sample is None or not self.truth:
                continue
            objects = sample.objects
            found = len(objects)
            xywh[row, :found] = torch.from_numpy(objects.xywh)
            labels[row, :found] = torch.from_numpy(objects.labels)
            crowd[row, :found] = torch.from_numpy(objects.crowd)
            area[row, :found] = torch.from_numpy(objects.area)
        return xywh, labels, crowd, area


def pad(images: Sequence[Tensor | None], normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Images uint8 (3, h, w) (None: black) -> float32 (B, 3, H, W), normalised, zero on the padding; and (B, H, W)."""
    height = max((i.shape[1] for i in images if i is not None), default=1)
    width = max((i.shape[2] for i in images if i is not None), default=1)
    found = torch.zeros(len(images), 3, height, width)
    pixels = torch.zeros(len(images), height, width, dtype=torch.bool)
    for row, image in enumerate(images):
        if image is None:
            pixels[row] = True  # attention needs a pixel to look at
            continue
        h, w = image.shape[1:]
        found[row, :, :h, :w] = normalize(image[None])[0]
        pixels[row, :h, :w] = True
    return found, pixels
