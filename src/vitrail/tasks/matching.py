"""Which query answers for which object: the assignment of least cost, one to one, or several queries an object.

Sources: Carion et al. 2020, arXiv 2005.12872, section 3.1 and appendix A.2 (cost: class, L1, generalised IoU; the
Hungarian method); Zhu et al. 2021, arXiv 2010.04159, section 4.1 (the class cost where classes are yes-or-no
questions, from the focal loss); Jia et al. 2023, arXiv 2207.13080, section 3 (objects repeated: one to many).
B batch, Q queries, K classes, M places for objects (labels are -1 where there is none).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vitrail.data.boxes import cxcywh_to_xyxy, paired_giou

ALPHA, GAMMA = 0.25, 2.0  # of the focal cost
_WORST = 1e6  # a cost that is not finite: a query that has lost its mind is matched last


@dataclass(frozen=True)
class Costs:
    """What a pair costs: ``cls`` times its class, ``l1`` times the distance of its boxes, ``giou`` times minus their
    generalised IoU. ``background``: the last class of the logits is "no object", under one softmax.
    """

    cls: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    background: bool = True


@dataclass(frozen=True)
class Matches:
    """Pairs in a batch, (P,) each: the image, its query, and the place of the object the query answers for."""

    image: Tensor
    query: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.image)


@torch.no_grad()
def class_cost(logits: Tensor, labels: Tensor, *, background: bool) -> Tensor:
    """Logits (B, Q, K) and labels (B, M) -> (B, Q, M)."""
    prob = logits.softmax(-1) if background else logits.sigmoid()
    prob = prob.gather(2, labels[:, None].expand(-1, logits.shape[1], -1))
    if background:
        return -prob
    yes = ALPHA * (1 - prob) ** GAMMA * -(prob + 1e-8).log()
    no = (1 - ALPHA) * prob**GAMMA * -(1 - prob + 1e-8).log()
    return yes - no


@torch.no_grad()
def pair_costs(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, costs: Costs) -> Tensor:
    """The cost of each pair: logits (B, Q, K), boxes (B, Q, 4), labels (B, M), targets (B, M, 4), both centre form,
    -> (B, Q, M).
    """
    total = costs.cls * class_cost(logits, labels.clamp(min=0), background=costs.background)
    total = total + costs.l1 * (boxes[:, :, None] - targets[:, None]).abs().sum(-1)
    overlap = paired_giou(cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(targets)[:, None])
    return total - costs.giou * overlap


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, costs: Costs, *, repeats: int = 1) -> Matches:
    """Match the queries of a batch with its objects.

    Args:
        logits: (B, Q, K).
        boxes: (B, Q, 4), centre form, relative.
        labels: (B, M), -1 where there is no object.
        targets: (B, M, 4), centre form, relative.
        repeats: queries an object, where there are enough queries.

    Returns:
        Every object with a query, or with ``repeats`` of them; where objects outnumber queries, as many as fit.
    """
    cost = pair_costs(logits, boxes, labels, targets, costs).cpu().double().numpy()
    cost = np.nan_to_num(cost, nan=_WORST, posinf=_WORST, neginf=-_WORST)
    real = (labels >= 0).cpu().numpy()
    found = np.concatenate(
        [np.zeros((3, 0), dtype=np.int64)] + [_one(i, cost[i], real[i], repeats) for i in range(len(cost))], 1
    )
    image, query, place = torch.from_numpy(found).to(logits.device)
    return Matches(image, query, place)


def _one(image: int, cost: NDArray[np.float64], real: NDArray[np.bool_], repeats: int) -> NDArray[np.int64]:
    """Match one image, cost (Q, M): rows image, query, place of its pairs, (3, P)."""
    where = np.flatnonzero(real)
    if not len(where):
        return np.zeros((3, 0), dtype=np.int64)
    each = max(1, min(repeats, len(cost) // len(where)))
    query, column = linear_sum_assignment(np.tile(cost[:, where], (1, each)))
    return np.stack([np.full_like(query, image), query, where[column % len(where)]])
