"""The loss of segmentation equals its definition, pieces of a batch add up, ignored pixels count nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitrail.data.maskrules import IGNORED
from vitrail.data.masks import MaskBatch
from vitrail.tasks.evaluate import evaluate
from vitrail.tasks.segment import Segment, dice_loss, median_frequency
from vitrail.training.batches import pieces

K = 3


class Network(nn.Module):
    """Answers with fixed logits at half the masks' size, one row an image by its first pixel."""

    def __init__(self, auxiliary=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn(8, K, 4, 5, generator=generator))
        self.other = nn.Parameter(torch.randn(8, K, 2, 3, generator=generator)) if auxiliary else None

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]

    def training_logits(self, images):
        return self(images), None if self.other is None else self.other[images[:, 0, 0, 0].long()]


def batch(count=4, keep=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.arange(count).view(-1, 1, 1, 1).expand(count, 3, 8, 10).float()
    masks = torch.randint(0, K, (count, 8, 10), generator=generator, dtype=torch.uint8)
    masks[0, :3] = IGNORED
    keep = torch.ones(count, dtype=torch.bool) if keep is None else keep
    return MaskBatch(images, keep, torch.arange(count), tuple(masks))


def expected(logits, masks, weights=None):
    whole = F.interpolate(logits, size=masks.shape[1:], mode="bilinear", align_corners=False)
    total = 0.0
    for b in range(len(masks)):
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                k = int(masks[b, y, x])
                if k < K:
                    weight = 1.0 if weights is None else weights[k]
                    total += weight * -float(whole[b, :, y, x].log_softmax(0)[k])
    return total / masks.numel()


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_cross_entropy_equals_its_definition(weights):
    model, one = Network(auxiliary=True), batch()
    masks = torch.stack(one.masks)
    with torch.no_grad():
        losses = Segment(K, class_weights=weights).step(model, one)
        main, auxiliary = expected(model.logits[:4], masks, weights), expected(model.other[:4], masks, weights)
    assert float(losses["cross_entropy"]) == pytest.approx(main, rel=1e-5)
    assert float(losses["auxiliary"]) == pytest.approx(auxiliary, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(main + 0.4 * auxiliary, rel=1e-5)


def test_pieces_of_a_batch_have_its_gradient():
    """Although images have different numbers of labelled pixels."""
    task, one = Segment(K, dice=0.5), batch()
    whole, parts = Network(), Network()
    task.step(whole, one)["loss"].backward()
    for piece in pieces(one, 3):
        (task.step(parts, piece)["loss"] * piece.count / one.count).backward()
    torch.testing.assert_close(parts.logits.grad, whole.logits.grad, atol=1e-7, rtol=1e-4)


def test_what_could_not_be_read_counts_nothing():
    task, keep = Segment(K), torch.tensor([True, False, True, True])
    model = Network()
    loss = task.step(model, batch(keep=keep))["loss"]
    loss.backward()
    assert not model.logits.grad[1].any()
    rest = MaskBatch(
        *(t[keep] for t in (batch().images, keep, torch.arange(4))), tuple(torch.stack(batch().masks)[keep])
    )
    assert float(task.step(model, rest)["loss"].detach()) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_dice_equals_its_definition_and_is_zero_for_the_truth():
    masks = torch.stack(batch().masks)
    truth = F.one_hot(torch.where(masks < K, masks, 0).long(), K).movedim(3, 1).float()
    assert float(dice_loss(truth * 200, masks).abs().max()) < 1e-4
    logits = torch.randn(4, K, 8, 10, generator=torch.Generator().manual_seed(3))
    known = masks[0] < K
    p = logits[0].softmax(0)[:, known]
    overlaps = []
    for k in masks[0][known].unique().tolist():
        t = (masks[0][known] == k).float()
        overlaps.append(float(2 * (p[k] * t).sum() / (p[k].square().sum() + t.sum())))
    assert float(dice_loss(logits, masks)[0]) == pytest.approx(1 - sum(overlaps) / len(overlaps), rel=1e-5)


def test_predictions_are_made_at_the_size_of_each_mask():
    model, one = Network().eval(), batch()
    sized = MaskBatch(one.images, one.keep, one.indices, (*one.masks[:3], one.masks[3][:5, :7].clone()))
    found = evaluate(Segment(K), model, [sized])
    whole = F.interpolate(model.logits[:4].detach(), size=(8, 10), mode="bilinear", align_corners=False).argmax(1)
    right = [float((whole[i] == one.masks[i])[one.masks[i] < K].float().mean()) for i in range(3)]
    assert found.rows["accuracy"][:3].tolist() == pytest.approx(right)
    assert found.metrics["count"] == 4
    assert found.metrics["pixels"] == sum(int((m < K).sum()) for m in sized.masks)


def test_median_frequency():
    weights = median_frequency(np.array([50, 10, 40, 0]), np.array([100, 20, 100, 0]), most=5)
    assert weights.tolist() == pytest.approx([1.0, 1.0, 0.5 / 0.4, 1.0])
    assert median_frequency([1000, 1, 10], [1000, 1000, 1000], most=5).tolist() == pytest.approx([0.01, 5.0, 1.0])
    with pytest.raises(ValueError, match="at least one class"):
        median_frequency([0], [0])


@pytest.mark.parametrize(
    "options", [{"dice": -1}, {"label_smoothing": 1.0}, {"class_weights": [1.0]}, {"auxiliary_weight": -0.1}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        Segment(K, **options)


def test_windows_as_large_as_the_image_are_the_image():
    model, one = Network().eval(), batch()
    whole, windows = Segment(K).predict(model, one), Segment(K, window=(8, 10)).predict(model, one)
    assert torch.equal(whole.confusion, windows.confusion)
    torch.testing.assert_close(whole.nll, windows.nll)
