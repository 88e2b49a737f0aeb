"""Why average precision stays at nothing: what detections do get right, in sentences.

The kinds of error are those of Bolya et al. 2020, arXiv 2008.08115 (TIDE), section 3: class, place, both, nothing.
n objects and k detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detection import DetectionMetrics, Image

NOTHING = 0.01  # AP50 up to which it counts as nothing
TALKING = 0.05  # a score below which nothing is said
ASKED = 20  # surest detections of an image that are looked at


@dataclass(frozen=True)
class Signs:
    """What is seen in the surest detections.

    Attributes:
        ap50: average precision at an overlap of 0.50.
        anyway: the same if classes did not matter.
        surest: the highest score of all.
        overlap: mean over objects of the best overlap with a detection of any class.
        own: the same with detections of the object's class.
        named: share of objects whose class is among the detections of their image.
        classes: how many classes are detected, of how many that are there.
    """

    ap50: float
    anyway: float
    surest: float
    overlap: float
    own: float
    named: float
    classes: tuple[int, int]


def signs_of(metrics: DetectionMetrics) -> Signs:
    """Look at all images of an evaluation."""
    best: list[float] = []
    own: list[float] = []
    named: list[float] = []
    said: set[int] = set()
    there: set[int] = set()
    for image in metrics.images:
        boxes, classes = image.found_xyxy[:ASKED], image.classes[:ASKED]
        real = ~image.crowd
        overlap = _overlaps(image, boxes)[real]
        same = image.labels[real, None] == classes[None]
        said |= set(classes.tolist())
        there |= set(image.labels[real].tolist())
        if overlap.size:
            best += overlap.max(1).tolist()
            own += np.where(same, overlap, 0).max(1).tolist()
            named += same.any(1).tolist()
    surest = max((float(image.scores.max()) for image in metrics.images if len(image.scores)), default=0.0)
    ap50 = max(0.0, float(metrics.run.stats[1]))
    counts = (len(said & there), len(there))
    return Signs(ap50, metrics.without_classes(), surest, _mean(best), _mean(own), _mean(named), counts)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _overlaps(image: Image, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each object (n, 4) with each box (k, 4): (n, k)."""
    mine = np.concatenate([image.xywh[:, :2], image.xywh[:, :2] + image.xywh[:, 2:]], 1)
    low = np.maximum(mine[:, None, :2], boxes[None, :, :2])
    high = np.minimum(mine[:, None, 2:], boxes[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(-1) for b in (mine, boxes)]
    found: NDArray[np.float64] = inner / np.maximum(areas[0][:, None] + areas[1][None] - inner, 1e-9)
    return found


def why_nothing(signs: Signs, losses: Sequence[float], lr: float) -> list[str]:
    """Return sentences on why AP50 is nothing, the likeliest cause first; none where it is something.

    ``losses``: those of the evaluations so far, in order; ``lr``: the highest learning rate.
    """
    if signs.ap50 > NOTHING:
        return []
    seen, all_classes = signs.classes
    told = []
    if len(losses) > 1 and losses[-1] > 0.98 * losses[0]:
        told.append(
            f"the loss has not fallen ({losses[0]:.2f} at first, {losses[-1]:.2f} now): the learning rate {lr:g} is "
            "too high or too low; mend: --lr a third of it, or three times it"
        )
    if signs.surest < TALKING:
        told.append(
            f"no answer has a score above {signs.surest:.3f}: the network says of everything that it is nothing, as "
            "all do at first; mend: train longer; train.selftest=true says whether the data can be learned"
        )
    if signs.anyway > 10 * NOTHING:
        told.append(
            f"the boxes are right, the classes wrong: AP50 would be {100 * signs.anyway:.0f} % if classes did not "
            f"matter, and {seen} of {all_classes} classes are named at all; mend: compare the category ids of the "
            "splits; if they agree, train longer"
        )
    elif signs.named > 0.5 and signs.own < 0.4:
        told.append(
            f"the classes are right ({100 * signs.named:.0f} % of the objects are named), the boxes off: they overlap "
            f"their object by {signs.own:.2f} on average; mend: look at the form of the boxes (data.boxes), or train "
            "longer"
        )
    elif signs.overlap < 0.2:
        told.append(
            f"neither boxes nor classes are right: the nearest of {ASKED} answers overlaps an object by "
            f"{signs.overlap:.2f}; mend: train longer first; then a larger model.img_size, if objects are small"
        )
    if seen <= 1 < all_classes:
        told.append(f"one class is answered always, of {all_classes}: look at the counts of `vitrail data check`")
    return told or [f"the answers get better slowly: boxes overlap by {signs.overlap:.2f}; mend: train longer"]
