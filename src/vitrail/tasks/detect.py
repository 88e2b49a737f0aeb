"""Finding objects: a set of queries, each a class and a box, against the set of objects that are there.

Sources: Carion et al. 2020, arXiv 2005.12872, section 3.1, appendix A.2 (matching, losses, those of earlier layers);
Zhu et al. 2021, arXiv 2010.04159, appendix A.4 (focal loss, proposals); Zhang et al. 2022, arXiv 2203.03605, section
3.3 (denoising); Jia et al. 2023, arXiv 2207.13080 (one to many, here on earlier layers and proposals).
L layers, B batch, Q queries, K classes, M places for objects, k answers an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vitrail.data.boxes import cxcywh_to_xyxy, repeated, scale
from vitrail.metrics.detection import DetectionMetrics
from vitrail.nn.detection import Detections

from . import setloss
from .base import Losses
from .denoise import Denoising, noised
from .matching import Costs, Matches, match

MONITORS = ("ap", "ap50", "ap75")
TOP = 100  # answers an image, COCO's own limit


class Scenes(Protocol):
    """The part of a batch this task reads (:class:`vitrail.data.detection.batches.DetectionBatch` has it)."""

    images: Tensor
    keep: Tensor
    indices: Tensor
    pixels: Tensor
    labels: Tensor
    boxes_cxcywh01: Tensor
    sizes: Tensor
    true_xywh: Tensor
    true_labels: Tensor
    true_crowd: Tensor
    true_area: Tensor
    objects_an_image: float
    masks: Tensor | None

    @property
    def count(self) -> int:
        """Images that could be read."""


@dataclass(frozen=True)
class Weights:
    """What each loss counts: of the answer, of each earlier layer, of the proposals, and of the noised boxes."""

    cls: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    auxiliary: float = 1.0
    proposals: float = 1.0
    denoising: float = 1.0
    mask: float = 1.0
    dice: float = 1.0


@dataclass(frozen=True)
class Found:
    """Objects found in a batch, the surest first: ``boxes_xyxy`` float32 (B, k, 4) in pixels of the user's image,
    ``scores`` float32 (B, k), ``labels`` int64 (B, k); ``losses`` (B,) the batch's loss, where it was asked for.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    losses: Tensor

    def rows(self, batch: Scenes) -> dict[str, Tensor]:
        """Return what is kept of each image."""
        return {"boxes_xyxy": self.boxes_xyxy, "scores": self.scores, "labels": self.labels}


class Detect:
    """Set prediction: matching, losses of all layers, and COCO's metrics."""

    name = "detect"
    counted = "images"

    def __init__(
        self,
        num_classes: int,
        *,
        background: bool,
        loss: Literal["ce", "focal", "varifocal"] = "ce",
        costs: Costs | None = None,
        weights: Weights | None = None,
        repeats: int = 1,
        denoising: Denoising | None = None,
        nms: float | None = None,
        monitor: str = "ap",
    ) -> None:
        """Set what is computed.

        Args:
            num_classes: K, without "no object".
            background: the network's logits end with "no object" under one softmax (DETR); else yes-or-no questions.
            loss: of the classes: "ce" with a background; "focal" or "varifocal" without.
            costs: of the matching; default: DETR's, or Deformable DETR's.
            weights: of the losses.
            repeats: queries an object on the earlier layers and the proposals; the answer is always one to one.
            denoising: noise of denoising queries; None: there are none.
            nms: overlap from which on a second answer of one class is left out; None: all stay, as the papers have it.
            monitor: the metric that chooses the best weights, of :data:`MONITORS`.
        """
        if num_classes < 1 or repeats < 1:
            raise ValueError(f"expected num_classes and repeats of at least 1, got {num_classes} and {repeats}")
        if background != (loss == "ce"):
            kind = "'ce'" if background else "'focal' or 'varifocal'"
            raise ValueError(f"expected loss {kind} with background={background}, got {loss!r}")
        if monitor not in MONITORS:
            raise ValueError(f"expected monitor as one of {', '.join(MONITORS)}, got {monitor!r}")
        self.num_classes, self.background, self.loss_kind = num_classes, background, loss
        self.costs = costs or Costs(cls=1.0 if background else 2.0, background=background)
        self.weights = weights or Weights(cls=1.0 if background else 2.0)
        self.repeats, self.denoising, self.nms, self.monitor = repeats, denoising, nms, monitor

    def step(self, model: nn.Module, batch: Scenes) -> Losses:
        """Return the losses of a batch: the total, and its parts by name."""
        made = None
        if self.denoising is not None and model.training:
            made = noised(batch.labels, batch.boxes_cxcywh01, self.num_classes, self.denoising)
        if made is None:
            return self.losses(model(batch.images, _keep(batch)), batch)
        noise, pairs = made
        return self.losses(model(batch.images, _keep(batch), noise), batch, pairs)

    def losses(self, found: Detections, batch: Scenes, noised: Matches | None = None) -> Losses:
        """Return the losses of what a network said of a batch; ``noised`` pairs its noised queries with objects."""
        found, w = found.float(), self.weights
        scaled = {name: value * getattr(w, name) for name, value in self._layer(found, -1, batch).items()}
        total = sum(scaled.values(), start=found.logits.new_zeros(()))
        parts: Losses = dict(scaled)
        extra = {"auxiliary": self._earlier(found, batch)}
        if found.proposals is not None:
            extra["proposals"] = self._weighted(found.proposals, 0, batch, self.repeats)
        if found.noised is not None and noised is not None:
            extra["denoising"] = self._denoised(found.noised, batch, noised)
        for name, value in extra.items():
            parts[name] = value * getattr(w, name)
            total = total + parts[name]
        return {"loss": total, **parts}

    def _earlier(self, found: Detections, batch: Scenes) -> Tensor:
        """The sum over all layers but the last, each matched anew."""
        layers = [self._weighted(found, i, batch, self.repeats) for i in range(found.layers - 1)]
        return sum(layers, start=found.logits.new_zeros(()))

    def _weighted(self, found: Detections, layer: int, batch: Scenes, repeats: int) -> Tensor:
        each = self._layer(found, layer, batch, repeats)
        return sum((v * getattr(self.weights, k) for k, v in each.items()), start=found.logits.new_zeros(()))

    def _denoised(self, found: Detections, batch: Scenes, pairs: Matches) -> Tensor:
        """The mean over groups, summed over layers: every noised query has its object, or none, by its making."""
        groups = max(1.0, len(pairs) / max(1, int((batch.labels >= 0).sum())))
        total = found.logits.new_zeros(())
        for layer in range(found.layers):
            logits, boxes = found.layer(layer)
            each = self._of(logits, boxes, pairs, batch, groups)
            total = total + sum(v * getattr(self.weights, k) for k, v in each.items())
        return total

    def _layer(self, found: Detections, layer: int, batch: Scenes, repeats: int = 1) -> Losses:
        logits, boxes = found.layer(layer)
        costs = self.costs
        labels = batch.labels if logits.shape[-1] > 1 else batch.labels.clamp(max=0)
        pairs = match(logits.detach(), boxes.detach(), labels, batch.boxes_cxcywh01, costs, repeats=repeats)
        each = self._of(logits, boxes, pairs, batch, repeats)
        if found.masks is not None and layer == -1 and batch.masks is not None:
            focal, dice = setloss.mask_losses(found.masks, batch.masks, pairs)
            each |= {"mask": focal / self._objects(batch), "dice": dice / self._objects(batch)}
        return each

    def _of(self, logits: Tensor, boxes: Tensor, pairs: Matches, batch: Scenes, repeats: float) -> Losses:
        """Class, L1 and overlap of one layer, each object counting once however many queries it has."""
        objects = self._objects(batch) * repeats
        l1, giou = setloss.box_losses(boxes, batch.boxes_cxcywh01, pairs)
        return {"cls": self._classes(logits, boxes, pairs, batch, objects), "l1": l1 / objects, "giou": giou / objects}

    def _classes(self, logits: Tensor, boxes: Tensor, pairs: Matches, batch: Scenes, objects: float) -> Tensor:
        if self.background:
            total = setloss.softmax_loss(logits, batch.labels, pairs, batch.keep)
            matched = min(batch.objects_an_image * objects / self._objects(batch), logits.shape[1])
            weight = matched + setloss.NO_OBJECT * (logits.shape[1] - matched)
            return total / (weight * max(1, batch.count))
        target = setloss.yes_or_no(logits, batch.labels, pairs)
        if self.loss_kind == "focal":
            return setloss.focal_loss(logits, target, batch.keep) / objects
        quality = setloss.qualities(boxes, batch.boxes_cxcywh01, pairs)
        return setloss.varifocal_loss(logits, target, quality, batch.keep) / objects

    @staticmethod
    def _objects(batch: Scenes) -> float:
        """Objects of this piece, were they spread evenly over the batch's images: what sums are divided by."""
        return max(batch.objects_an_image * batch.count, 1.0)

    def predict(self, model: nn.Module, batch: Scenes) -> Found:
        """Return the surest answers, in pixels of the user's images, and the loss. The model's mode is the caller's."""
        with torch.no_grad():
            found = model(batch.images, _keep(batch)).float()
            loss = self.losses(found, batch)["loss"]
        told = answers(found, batch.sizes, background=self.background, nms=self.nms)
        return Found(told.boxes_xyxy, told.scores, told.labels, loss.expand(len(batch.keep)))

    def metrics(self) -> DetectionMetrics:
        """Return a fresh accumulator of COCO's metrics over K classes."""
        return DetectionMetrics(self.num_classes)


def _keep(batch: Scenes) -> Tensor | None:
    """The real pixels; None where there is no padding, so that nothing is masked in vain."""
    return None if bool(batch.pixels.all()) else batch.pixels


class Answers(NamedTuple):
    """The answers of a batch, the surest first: corners (B, k, 4) in pixels, scores, classes, and which query gave each
    (B, k).
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    queries: Tensor


def answers(
    found: Detections,
    sizes: Tensor,
    *,
    background: bool,
    top: int = TOP,
    nms: float | None = None,
    one_class: bool = False,
) -> Answers:
    """Return the answers of the last layer, the surest first.

    Args:
        found: what the network said.
        sizes: (B, 2), height and width of each image in the user's pixels.
        background: as in :class:`Detect`: each query answers with its best class; else the best of all (query, class).
        one_class: each query answers with its best class, also without a background.
        top: answers an image at most, k.
        nms: overlap from which on a second answer of one class gets the score 0, and goes to the end; None: none does.
    """
    logits, boxes = found.layer(-1)
    if background or one_class:
        scores, labels = (logits.softmax(-1)[..., :-1] if background else logits.sigmoid()).max(-1)
        scores, query = scores.topk(min(top, scores.shape[1]), dim=1)
        labels = labels.gather(1, query)
    else:
        classes = logits.shape[-1]
        scores, place = logits.sigmoid().flatten(1).topk(min(top, logits[0].numel()), dim=1)
        query, labels = place // classes, place % classes
    corners = cxcywh_to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4))
    if nms is not None:
        scores = scores.masked_fill(repeated(corners, labels, nms), 0.0)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        labels, query = labels.gather(1, order), query.gather(1, order)
        corners = corners.gather(1, order[..., None].expand(-1, -1, 4))
    return Answers(scale(corners, sizes[:, None].to(corners)), scores, labels, query)


def create_detect(num_classes: int, config: Any, **options: Any) -> Detect:
    """Return the task that suits a network's config."""
    return Detect(num_classes, background=bool(config.background), **options)
