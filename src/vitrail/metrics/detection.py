"""COCO's metrics of boxes and masks: average precision over thresholds of overlap, sizes, and per class.

Source: cocodataset.org, "Detection evaluation" (Lin et al. 2014, arXiv 1405.0312); computed by the package
faster-coco-eval, which gives pycocotools' numbers. Crowds: a detection inside one is neither right nor wrong.
n images, m objects of an image, k detections of an image, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import require_extra

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium",
           "ar_large")  # fmt: skip
MOST = 100  # detections an image that count
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
"""Areas in square pixels of the user's image."""


class Answers(Protocol):
    """Detections of a batch: corners in pixels (B, k, 4), scores (B, k), classes (B, k), and its losses (B,)."""

    @property
    def boxes_xyxy(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def losses(self) -> Tensor: ...


class Truth(Protocol):
    """What is really there: ``true_xywh`` (B, M, 4) float64 pixels, ``true_labels`` (B, M) (-1: none), ``true_crowd``
    (B, M), ``true_area`` (B, M); ``keep`` (B,), False where the image could not be read; ``indices`` (B,).
    """

    @property
    def keep(self) -> Tensor: ...
    @property
    def indices(self) -> Tensor: ...
    @property
    def true_xywh(self) -> Tensor: ...
    @property
    def true_labels(self) -> Tensor: ...
    @property
    def true_crowd(self) -> Tensor: ...
    @property
    def true_area(self) -> Tensor: ...


@dataclass(frozen=True)
class Image:
    """One image's truth and detections, plain arrays; masks, where they are measured, as compressed run lengths."""

    xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    found_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    masks: Sequence[dict[str, Any]] = ()
    found_masks: Sequence[dict[str, Any]] = ()


def evaluator(
    images: Sequence[Image], num_classes: int, *, use_classes: bool = True, of: Literal["bbox", "segm"] = "bbox"
) -> Any:
    """Run COCO's evaluation ``of`` boxes or masks and return faster-coco-eval's evaluator: its ``eval`` holds precision
    (T, R, K, A, D).
    """
    require_extra("faster_coco_eval", "coco", "measuring detection")
    from faster_coco_eval import COCO, COCOeval_faster

    truth: dict[str, Any] = {
        "images": [{"id": i + 1, "width": 1, "height": 1} for i in range(len(images))],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(num_classes)],
        "annotations": [],
    }
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for i, (box, label, crowd, area) in enumerate(
            zip(image.xywh, image.labels, image.crowd, image.area, strict=True)
        ):
            row = {
                "id": len(truth["annotations"]) + 1, "image_id": number, "category_id": int(label) + 1,
                "bbox": box.tolist(), "area": float(area), "iscrowd": int(crowd),
            }  # fmt: skip
            truth["annotations"].append(row if of == "bbox" else {**row, "segmentation": image.masks[i]})
        for i, ((x1, y1, x2, y2), score, label) in enumerate(
            zip(image.found_xyxy.tolist(), image.scores, image.classes, strict=True)
        ):
            said = {"image_id": number, "category_id": int(label) + 1, "score": float(score)}
            where = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if of == "bbox" else {"segmentation": image.found_masks[i]}
            found.append({**said, **where})
    known = COCO(truth)
    run = COCOeval_faster(known, known.loadRes(found), of, print_function=_quiet)
    run.params.useCats = int(use_classes)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run


def _quiet(*words: object) -> None:
    """Say nothing."""


def figures_of(run: Any) -> dict[str, float]:
    """Return COCO's twelve figures of an evaluator. Those of a size that no object has are left out; ``ap``, ``ap50``
    and ``ap75`` of images without any object are 0.
    """
    stats = dict(zip(FIGURES, run.stats.tolist(), strict=True))
    return {k: max(v, 0.0) for k, v in stats.items() if v >= 0 or k in ("ap", "ap50", "ap75")}


class DetectionMetrics:
    """Gathers detections and truth image by image."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.images: list[Image] = []
        self.positions: list[int] = []
        self._loss = 0.0
        self._run: Any = None

    def update(self, result: Answers, batch: Truth) -> None:
        """Add a batch; images that could not be read are left out."""
        self._run = None
        for row in np.flatnonzero(batch.keep.cpu().numpy()).tolist():
            labels = batch.true_labels[row].cpu().numpy()
            real = labels >= 0
            parts = (batch.true_xywh[row], batch.true_crowd[row], batch.true_area[row])
            xywh, crowd, area = (part.cpu().numpy()[real] for part in parts)
            boxes = result.boxes_xyxy[row].cpu().double().numpy()
            scores, classes = result.scores[row].cpu().double().numpy(), result.labels[row].cpu().numpy()
            self.images.append(Image(xywh, labels[real], crowd, area, boxes, scores, classes))
            self.positions.append(int(batch.indices[row]))
            self._loss += float(result.losses[row])

    @property
    def run(self) -> Any:
        """The evaluator, once all images are there."""
        if self._run is None:
            order = np.argsort(self.positions, kind="stable")  # where scores are equal the order of the images matters
            self._run = evaluator([self.images[i] for i in order], self.num_classes)
        return self._run

    def compute(self) -> dict[str, float]:
        """Return COCO's twelve figures (:func:`figures_of`), ``loss`` and ``count``."""
        found = figures_of(self.run)
        return {**found, "loss": self._loss / max(1, len(self.images)), "count": float(len(self.images))}

    def thresholds(self) -> None:
        """Scores are compared by whoever looks at them."""

    def per_class(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return a row a class: ``name``, ``ap``, ``ap50`` (NaN: no object of it), ``objects``."""
        precision = np.asarray(self.run.eval["precision"])  # (T, R, K, A, D)
        precision = precision[:, :, :, 0, -1]
        objects = np.zeros(self.num_classes, dtype=np.int64)
        for image in self.images:
            objects += np.bincount(image.labels[~image.crowd], minlength=self.num_classes)
        rows = []
        for label in range(self.num_classes):
            name = str(label) if names is None else names[label]
            own = precision[:, :, label]
            ap, ap50 = (float(p[p > -1].mean()) if (p > -1).any() else math.nan for p in (own, own[0]))
            rows.append({"name": name, "ap": ap, "ap50": ap50, "objects": int(objects[label])})
        return rows

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the table of classes, NaN as None."""
        rows = self.per_class(names)
        return {"per_class": [{k: None if v != v else v for k, v in row.items()} for row in rows]}

    def without_classes(self) -> float:
        """AP50 if classes did not matter: what the boxes alone are worth."""
        run = evaluator(self.images, self.num_classes, use_classes=False)
        return max(0.0, float(run.stats[1]))
