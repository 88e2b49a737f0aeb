"""COCO's figures of masks: each image of a set answered by a detector with a mask head, beside the set's outlines.

H, W pixels of the user's image.
"""

from __future__ import annotations

import numpy as np

from vitrail.data.decode import BrokenImage
from vitrail.data.detection.masks import compressed
from vitrail.data.detection.sets import DetectionSet, Scene
from vitrail.data.detection.transforms import shape_mask
from vitrail.metrics.detection import Image, evaluator, figures_of

from .detector import Detector


def has_outlines(images: DetectionSet) -> bool:
    """Tell whether any object has an outline; of those that have none in such a set, the box is taken."""
    return any(shape is not None for objects in images.objects for shape in objects.shapes)


def mask_figures(detector: Detector, images: DetectionSet) -> dict[str, float]:
    """Return COCO's figures of the masks that ``detector`` (with threshold 0) gives for a set; images that cannot be
    read are left out.
    """
    found = []
    for i in range(len(images)):
        try:
            scene = images.read(i)
        except BrokenImage:
            continue
        found.append(_measured(detector, scene))
    return figures_of(evaluator(found, len(images.classes), of="segm"))


def _measured(detector: Detector, scene: Scene) -> Image:
    """One image's outlines, and what was found, as compressed run lengths."""
    o = scene.objects
    ((_, boxes, scores, labels, masks),) = detector.find([scene.image])
    assert masks is not None, "the network has a mask head"
    corners = np.clip(o.xyxy, 0, [scene.size[1], scene.size[0]] * 2)
    true = [compressed(shape_mask(shape, box, scene.size)) for shape, box in zip(o.shapes, corners, strict=True)]
    return Image(o.xywh, o.labels, o.crowd, o.area, boxes, scores, labels, true, [compressed(mask) for mask in masks])
