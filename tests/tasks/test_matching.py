"""The matcher against all permutations, and against transformers' matchers."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from tests import peers  # noqa: F401 - makes transformers importable
from vitrail.data.boxes import cxcywh_to_xyxy, giou
from vitrail.tasks.matching import Costs, match, pair_costs

from .scenes import CLASSES, batch_of, detections

BOTH = pytest.mark.parametrize("background", [True, False])


def problem(background: bool, counts: list[int], queries: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Costs]:
    batch = batch_of(counts)
    found = detections(1, len(counts), queries, CLASSES + background)
    return *found.layer(0), batch.labels, batch.boxes_cxcywh01, Costs(background=background)  # type: ignore[return-value]


@BOTH
def test_the_pairs_cost_the_least_of_all_permutations(background: bool) -> None:
    logits, boxes, labels, targets, costs = problem(background, [3, 0, 1, 4])
    found = match(logits, boxes, labels, targets, costs)
    total = pair_costs(logits, boxes, labels, targets, costs)
    for image, count in enumerate([3, 0, 1, 4]):
        mine = found.image == image
        assert sorted(found.place[mine].tolist()) == list(range(count))
        cost = total[image, found.query[mine], found.place[mine]].sum()
        ways = permutations(range(5), count)
        best = min(sum(float(total[image, q, m]) for m, q in enumerate(way)) for way in ways)
        assert float(cost) == pytest.approx(best, abs=1e-6)


@BOTH
def test_the_cost_of_a_pair_is_its_definition(background: bool) -> None:
    logits, boxes, labels, targets, costs = problem(background, [2, 1])
    total = pair_costs(logits, boxes, labels, targets, costs)
    label, target = labels[0, 1], targets[0, 1]
    prob = (logits.softmax(-1) if background else logits.sigmoid())[0, 3, label]
    focal = 0.25 * (1 - prob) ** 2 * -prob.log() - 0.75 * prob**2 * -(1 - prob).log()
    cls = -prob if background else focal
    overlap = giou(cxcywh_to_xyxy(boxes[0, 3][None]), cxcywh_to_xyxy(target[None]))[0, 0]
    expected = cls + 5 * (boxes[0, 3] - target).abs().sum() - 2 * overlap
    assert torch.allclose(total[0, 3, 1], expected, atol=1e-5)


@BOTH
def test_the_pairs_are_those_of_transformers(background: bool) -> None:
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    counts = [3, 1, 4, 2]
    logits, boxes, labels, targets, costs = problem(background, counts, queries=7)
    peer = (HungarianMatcher if background else DeformableDetrHungarianMatcher)(costs.cls, costs.l1, costs.giou)
    rows = [{"class_labels": labels[i, :n], "boxes": targets[i, :n]} for i, n in enumerate(counts)]
    theirs = peer({"logits": logits, "pred_boxes": boxes}, rows)
    found = match(logits, boxes, labels, targets, costs)
    for image, (query, place) in enumerate(theirs):
        mine = found.image == image
        assert dict(zip(found.query[mine].tolist(), found.place[mine].tolist(), strict=True)) == dict(
            zip(query.tolist(), place.tolist(), strict=True)
        )


def test_repeats_give_each_object_as_many_queries_while_there_are_enough() -> None:
    logits, boxes, labels, targets, costs = problem(False, [2, 4], queries=7)
    found = match(logits, boxes, labels, targets, costs, repeats=3)
    assert torch.bincount(found.place[found.image == 0]).tolist() == [3, 3]
    assert torch.bincount(found.place[found.image == 1]).tolist() == [1, 1, 1, 1]  # 7 queries are not enough for 8
    assert len(set(zip(found.image.tolist(), found.query.tolist(), strict=True))) == len(found)


def test_more_objects_than_queries_leave_some_without() -> None:
    logits, boxes, labels, targets, costs = problem(True, [4], queries=2)
    assert len(match(logits, boxes, labels, targets, costs)) == 2


def test_an_empty_batch_has_no_pairs() -> None:
    assert len(match(*problem(True, [0, 0]))) == 0


def test_a_query_that_is_not_finite_is_matched_last() -> None:
    logits, boxes, labels, targets, costs = problem(False, [2], queries=3)
    logits = logits.detach().clone()
    logits[0, 1] = float("nan")
    assert 1 not in match(logits, boxes, labels, targets, costs).query.tolist()
