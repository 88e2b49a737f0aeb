"""The task of detection against brute force, transformers' losses, and its own promises."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import peers  # noqa: F401 - makes transformers importable
from vitrail.data.boxes import cxcywh_to_xyxy, paired_giou
from vitrail.data.detection.batches import DetectionBatch
from vitrail.nn.detection import Detections, Noise
from vitrail.tasks.denoise import Denoising, noised
from vitrail.tasks.detect import Detect, answers
from vitrail.tasks.matching import match
from vitrail.training.batches import pieces

from .scenes import CLASSES, batch_of, detections

BOTH = pytest.mark.parametrize("background", [True, False])


def task_of(background: bool, **more: Any) -> Detect:
    return Detect(CLASSES, background=background, loss="ce" if background else "focal", **more)


class Said(nn.Module):
    """A network that says what it was given, and remembers what it was asked."""

    def __init__(self, found: Detections) -> None:
        super().__init__()
        self.found = found
        self.asked: Any = None

    def forward(self, images: Tensor, keep: Tensor | None, noise: Noise | None = None) -> Detections:
        self.asked = (keep, noise)
        return self.found


@BOTH
def test_the_losses_are_their_definitions_with_the_best_of_all_pairs(background: bool) -> None:
    batch, found = batch_of([2, 0, 3]), detections(1, 3, 4, CLASSES + background)
    task = task_of(background)
    pairs = match(*(t.detach() for t in found.layer(0)), batch.labels, batch.boxes_cxcywh01, task.costs)
    logits, boxes = found.layer(0)
    mine = boxes[pairs.image, pairs.query]
    true = batch.boxes_cxcywh01[pairs.image, pairs.place]
    l1 = (mine - true).abs().sum() / 5
    overlap = (1 - paired_giou(cxcywh_to_xyxy(mine), cxcywh_to_xyxy(true))).sum() / 5
    label = batch.labels[pairs.image, pairs.place]
    if background:
        target = torch.full((3, 4), CLASSES)
        target[pairs.image, pairs.query] = label
        weight = torch.tensor([1.0] * CLASSES + [0.1])
        cls = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight)
    else:
        yes = torch.zeros(3, 4, CLASSES)
        yes[pairs.image, pairs.query, label] = 1
        prob = logits.sigmoid()
        right = torch.where(yes > 0, prob, 1 - prob)
        cls = (torch.where(yes > 0, 0.25, 0.75) * (1 - right) ** 2 * -right.log()).sum() / 5
    losses = task.losses(found, batch)
    for name, value, weight_ in (("cls", cls, task.weights.cls), ("l1", l1, 5), ("giou", overlap, 2)):
        assert torch.allclose(losses[name], weight_ * value, atol=1e-5), name
    assert torch.allclose(losses["loss"], task.weights.cls * cls + 5 * l1 + 2 * overlap, atol=1e-5)


@BOTH
def test_losses_and_gradients_are_those_of_transformers(background: bool) -> None:
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    counts = [3, 0, 4, 1]
    batch, found = batch_of(counts), detections(1, 4, 6, CLASSES + background)
    loss = task_of(background).losses(found, batch)["loss"]
    loss.backward()
    ours = [found.logits.grad, found.boxes_cxcywh01.grad]
    theirs = detections(1, 4, 6, CLASSES + background)
    rows = [{"class_labels": batch.labels[i, :n], "boxes": batch.boxes_cxcywh01[i, :n]} for i, n in enumerate(counts)]
    config = SimpleNamespace(
        class_cost=1 if background else 2, bbox_cost=5, giou_cost=2, num_labels=CLASSES, eos_coefficient=0.1,
        auxiliary_loss=False, bbox_loss_coefficient=5, giou_loss_coefficient=2, focal_alpha=0.25, two_stage=False,
        with_box_refine=False,
    )  # fmt: skip
    peer: Any = ForObjectDetectionLoss if background else DeformableDetrForObjectDetectionLoss
    _, parts, _ = peer(theirs.logits[0], rows, torch.device("cpu"), theirs.boxes_cxcywh01[0], config)
    expected = config.class_cost * parts["loss_ce"] + 5 * parts["loss_bbox"] + 2 * parts["loss_giou"]
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    for a, b in zip(ours, [theirs.logits.grad, theirs.boxes_cxcywh01.grad], strict=True):
        assert a is not None
        assert b is not None
        assert torch.allclose(a, b, atol=1e-6)


@BOTH
def test_earlier_layers_are_matched_anew_and_count_alike(background: bool) -> None:
    batch, found = batch_of([2, 3]), detections(3, 2, 5, CLASSES + background)
    task = task_of(background)
    single = [
        task.losses(Detections(found.logits[i : i + 1], found.boxes_cxcywh01[i : i + 1]), batch)["loss"]
        for i in range(3)
    ]
    losses = task.losses(found, batch)
    assert torch.allclose(losses["auxiliary"], single[0] + single[1], atol=1e-5)
    assert torch.allclose(losses["loss"], sum(single, start=torch.zeros(())), atol=1e-5)


@BOTH
def test_pieces_of_a_batch_add_up_to_the_batch(background: bool) -> None:
    batch, found = batch_of([2, 0, 3, 1], keep=[True, True, True, True]), detections(2, 4, 5, CLASSES + background)
    task = task_of(background)
    whole = task.losses(found, batch)["loss"]
    total = torch.zeros(())
    for i, piece in enumerate(pieces(batch, 2)):
        part = Detections(found.logits[:, 2 * i : 2 * i + 2], found.boxes_cxcywh01[:, 2 * i : 2 * i + 2])
        total = total + task.losses(part, piece)["loss"] * piece.count / batch.count
    assert torch.allclose(total, whole, atol=1e-5)


def test_an_image_that_could_not_be_read_teaches_nothing() -> None:
    batch, found = batch_of([2, 0], keep=[True, False]), detections(1, 2, 5, CLASSES)
    task_of(False).losses(found, batch)["loss"].backward()
    assert found.logits.grad is not None
    assert not found.logits.grad[:, 1].any()
    assert found.logits.grad[:, 0].any()


def test_a_batch_without_objects_has_a_finite_loss() -> None:
    for background in (True, False):
        losses = task_of(background, repeats=2).losses(detections(2, 2, 4, CLASSES + background), batch_of([0, 0]))
        assert torch.isfinite(losses["loss"])
        assert float(losses["l1"].detach()) == 0


def test_varifocal_asks_the_score_to_be_the_overlap() -> None:
    batch = batch_of([1], most=1)
    logits = torch.full((1, 1, 2, CLASSES), -9.0)
    boxes = batch.boxes_cxcywh01.expand(1, 1, 2, 4).clone()
    boxes[0, 0, 1] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    task = Detect(CLASSES, background=False, loss="varifocal")
    best, least = None, float("inf")
    for score in (0.3, 0.5, 0.7, 0.9, 0.99):
        logits[0, 0, 0, batch.labels[0, 0]] = float(torch.logit(torch.tensor(score)))
        value = float(task.losses(Detections(logits, boxes), batch)["cls"])
        best, least = (score, value) if value < least else (best, least)
    assert best == 0.99  # the box is exact


def test_one_question_of_a_proposal_is_whether_anything_is_there() -> None:
    batch = batch_of([2, 3])
    proposals = detections(1, 2, 8, 1, seed=5)
    task = task_of(False)
    losses = task.losses(replace(detections(1, 2, 5, CLASSES), proposals=proposals), batch)
    anything = replace(batch, labels=batch.labels.clamp(max=0))
    alone = Detect(1, background=False, loss="focal").losses(proposals, anything)["loss"]
    assert torch.allclose(losses["proposals"], alone, atol=1e-5)


def test_noise_keeps_to_its_strength_and_groups() -> None:
    batch = batch_of([2, 0, 4])
    made = noised(batch.labels, batch.boxes_cxcywh01, CLASSES, Denoising(queries=24, box=0.4, label=0.0))
    assert made is not None
    noise, pairs = made
    assert noise.groups == 3
    assert noise.labels.shape == (3, 24)
    assert int(noise.keep.sum()) == 6 * 6  # six objects, near and far, three groups
    assert len(pairs) == 6 * 3
    true = batch.boxes_cxcywh01[pairs.image, pairs.place]
    near = noise.boxes_cxcywh01[pairs.image, pairs.query]
    moved = (cxcywh_to_xyxy(near) - cxcywh_to_xyxy(true)).abs() / true[:, [2, 3, 2, 3]]
    assert float(moved.max()) <= 0.2 + 1e-6
    assert torch.equal(noise.labels[pairs.image, pairs.query], batch.labels[pairs.image, pairs.place])
    far = noise.keep.clone()
    far[pairs.image, pairs.query] = False
    assert int(far.sum()) == 6 * 3


def test_noise_of_labels_is_drawn_by_torch_and_repeatable() -> None:
    batch = batch_of([4, 4, 4])

    def draw(seed: int) -> Noise:
        torch.manual_seed(seed)
        made = noised(batch.labels, batch.boxes_cxcywh01, CLASSES, Denoising(queries=80, label=1.0))
        assert made is not None
        return made[0]

    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(first.boxes_cxcywh01, again.boxes_cxcywh01)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    kept = first.boxes_cxcywh01[first.keep]
    corners = cxcywh_to_xyxy(kept)
    assert float(corners.min()) >= -1e-6
    assert float(corners.max()) <= 1 + 1e-6


def test_nothing_is_noised_where_there_is_no_object() -> None:
    batch = batch_of([0, 0])
    assert noised(batch.labels, batch.boxes_cxcywh01, CLASSES, Denoising()) is None


def test_noised_queries_are_set_right_or_rejected() -> None:
    batch = batch_of([2, 1])
    task = task_of(False, denoising=Denoising(queries=8, label=0.0))
    made = noised(batch.labels, batch.boxes_cxcywh01, CLASSES, task.denoising)  # type: ignore[arg-type]
    assert made is not None
    noise, pairs = made
    logits = torch.full((1, 2, noise.labels.shape[1], CLASSES), -12.0)
    logits[0, pairs.image, pairs.query, batch.labels[pairs.image, pairs.place]] = 12.0
    boxes = noise.boxes_cxcywh01[None].clone()
    boxes[0, pairs.image, pairs.query] = batch.boxes_cxcywh01[pairs.image, pairs.place]
    plain = detections(1, 2, 5, CLASSES)
    right = task.losses(replace(plain, noised=Detections(logits, boxes)), batch, pairs)["denoising"]
    wrong = task.losses(replace(plain, noised=Detections(-logits, boxes)), batch, pairs)["denoising"]
    assert float(right) < 1e-3 < float(wrong)


def test_noise_is_given_in_training_alone() -> None:
    batch, model = batch_of([2, 1]), Said(detections(1, 2, 5, CLASSES))
    task = task_of(False, denoising=Denoising(queries=8))
    task.step(model.train(), batch)
    assert model.asked[1] is not None
    task.predict(model.eval(), batch)
    assert model.asked[1] is None


def test_padding_is_told_to_the_network_only_where_there_is_some() -> None:
    batch, model = batch_of([1, 1]), Said(detections(1, 2, 3, CLASSES))
    task_of(False).predict(model, batch)
    assert model.asked[0] is None
    padded = replace(batch, pixels=batch.pixels.clone())
    padded.pixels[0, 10:] = False
    task_of(False).predict(model, padded)
    assert torch.equal(model.asked[0], padded.pixels)


def test_answers_come_in_pixels_of_the_users_image_best_first() -> None:
    logits = torch.full((1, 1, 3, CLASSES), -5.0)
    logits[0, 0, 1, 2], logits[0, 0, 2, 0], logits[0, 0, 2, 4] = 3.0, 1.0, 2.0
    found = Detections(logits, torch.tensor([[[[0.5, 0.5, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5]]]]))
    boxes, scores, labels, queries = answers(found, torch.tensor([[100, 200]]), background=False, top=3)
    assert labels.tolist() == [[2, 4, 0]]
    assert queries.tolist() == [[1, 2, 2]]
    assert scores[0].tolist() == pytest.approx(torch.tensor([3.0, 2.0, 1.0]).sigmoid().tolist())
    assert boxes[0].tolist() == [[50, 25, 150, 75], [0, 50, 100, 100], [0, 50, 100, 100]]
    alone = answers(found, torch.tensor([[100, 200]]), background=False, top=3, one_class=True)
    assert (alone.labels.tolist()[0][:2], alone.queries.tolist()) == ([2, 4], [[1, 2, 0]])


def test_a_second_answer_of_one_class_is_left_out_where_that_is_asked_for() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1], [0.5, 0.51, 0.4, 0.4]])
    logits = torch.full((1, 1, 4, CLASSES), -20.0)
    for query, (label, value) in enumerate([(1, 3.0), (1, 2.0), (1, 1.0), (2, 0.5)]):
        logits[0, 0, query, label] = value
    found = Detections(logits, boxes[None, None])
    _, scores, labels, queries = answers(found, torch.tensor([[100, 100]]), background=False, top=4, nms=0.7)
    expected = [*torch.tensor([3.0, 1.0, 0.5]).sigmoid().tolist(), 0.0]
    assert scores[0].tolist() == pytest.approx(expected)
    assert labels[0].tolist() == [1, 1, 2, 1]
    assert queries[0].tolist() == [0, 2, 3, 1]


def test_no_object_is_no_answer() -> None:
    logits = torch.zeros(1, 1, 2, CLASSES + 1)
    logits[0, 0, 0, -1] = 9.0
    logits[0, 0, 1, 3] = 2.0
    _, scores, labels, queries = answers(
        Detections(logits, torch.rand(1, 1, 2, 4)), torch.tensor([[10, 10]]), background=True
    )
    assert (int(labels[0, 0]), int(queries[0, 0])) == (3, 1)
    assert scores.shape == (1, 2)
    assert float(scores[0, 0]) == pytest.approx(float(logits[0, 0, 1].softmax(0)[3]))


def test_perfect_answers_are_measured_as_perfect() -> None:
    batch = batch_of([2, 0, 4])
    logits = torch.full((1, 3, 4, CLASSES), -20.0)
    image, place = torch.nonzero(batch.labels >= 0, as_tuple=True)
    logits[0, image, place, batch.labels[image, place]] = 20.0
    task = task_of(False)
    metrics = task.metrics()
    found = task.predict(Said(Detections(logits, batch.boxes_cxcywh01[None])), batch)
    metrics.update(found, batch)
    numbers = metrics.compute()
    assert numbers["ap"] == pytest.approx(1.0)
    assert numbers["count"] == 3
    assert metrics.without_classes() == pytest.approx(1.0)


def test_masks_are_learned_with_their_boxes() -> None:
    batch = batch_of([2, 1])
    masks = torch.zeros(2, 4, 16, 24, dtype=torch.bool)
    masks[:, :, 4:12, 4:12] = True
    batch = replace(batch, masks=masks)
    right = torch.where(F.max_pool2d(masks[:, :1].float(), 2) > 0, 9.0, -9.0).expand(2, 5, 8, 12)
    task = task_of(False)
    good = task.losses(replace(detections(1, 2, 5, CLASSES), masks=right), batch)
    bad = task.losses(replace(detections(1, 2, 5, CLASSES), masks=-right), batch)
    assert float(good["mask"].detach() + good["dice"].detach()) < 0.1
    assert float(bad["dice"].detach()) > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": True, "loss": "focal"}, "expected loss 'ce'"),
        ({"background": False, "loss": "ce"}, "expected loss 'focal'"),
        ({"background": True, "monitor": "top1"}, "expected monitor"),
        ({"background": True, "repeats": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Detect(CLASSES, **options)


def test_a_batch_for_comparison_has_no_pixels() -> None:
    batch: DetectionBatch = batch_of([1, 2]).without_inputs()
    assert batch.images.numel() == batch.pixels.numel() == 0
    assert len(batch) == 2
