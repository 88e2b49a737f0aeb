"""The classification task against its definitions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import DataError, UsageError
from vitrail.tasks import create_task
from vitrail.tasks.classify import Classify
from vitrail.tasks.evaluate import evaluate


@dataclass(frozen=True)
class FakeBatch:
    images: Tensor
    labels: Tensor
    targets: Tensor | None
    keep: Tensor
    indices: Tensor

    def to(self, device: Any) -> FakeBatch:
        return self


class TwoHeads(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, k), nn.Linear(12, k)

    def forward(self, x: Tensor) -> Any:
        pair = self.a(x.flatten(1)), self.b(x.flatten(1))
        return pair if self.training else (pair[0] + pair[1]) / 2


def batch(n: int = 6, k: int = 4, soft: bool = False) -> FakeBatch:
    g = torch.Generator().manual_seed(1)
    return FakeBatch(
        images=torch.randn(n, 3, 2, 2, generator=g),
        labels=torch.randint(0, k, (n,), generator=g),
        targets=torch.rand(n, k, generator=g).softmax(1) if soft else None,
        keep=torch.ones(n, dtype=torch.bool),
        indices=torch.arange(n),
    )


def linear(k: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, k))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_that_are_one_hot_equal_hard_labels(smoothing: float) -> None:
    task, model, hard = Classify(4, label_smoothing=smoothing), linear(), batch()
    soft = replace(hard, targets=F.one_hot(hard.labels, 4).float())
    torch.testing.assert_close(task.step(model, hard)["loss"], task.step(model, soft)["loss"])


def test_smoothing_is_the_papers_mixture() -> None:
    model, b = linear(), batch(soft=True)
    assert b.targets is not None
    want = -((b.targets * 0.8 + 0.2 / 4) * model(b.images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Classify(4, label_smoothing=0.2).step(model, b)["loss"], want)


def test_unread_images_change_neither_loss_nor_gradient() -> None:
    model, b = linear(), batch()
    keep = torch.tensor([True, False, True, True, False, True])
    only = FakeBatch(b.images[keep], b.labels[keep], None, keep[keep], b.indices[keep])
    images = torch.where(keep[:, None, None, None], b.images, 1e3)  # anything may stand there
    found = []
    for part in (replace(b, images=images, keep=keep), only):
        loss = Classify(4).step(model, part)["loss"]
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(found[0], found[1])


def test_nothing_kept_is_zero_not_nan() -> None:
    b = replace(batch(), keep=torch.zeros(6, dtype=torch.bool))
    assert Classify(4).step(linear(), b)["loss"].item() == 0.0


def test_two_heads_are_named_and_averaged() -> None:
    torch.manual_seed(0)
    model, b, task = TwoHeads(4), batch(), Classify(4)
    losses = task.step(model, b)
    assert set(losses) == {"loss", "cls", "dist"}
    torch.testing.assert_close(losses["loss"], (losses["cls"] + losses["dist"]) / 2)
    logits = [h(b.images.flatten(1)) for h in (model.a, model.b)]
    torch.testing.assert_close(losses["dist"], F.cross_entropy(logits[1], b.labels))
    trained, evaluated = task.predict(model, b).scores, task.predict(model.eval(), b).scores
    torch.testing.assert_close(trained, evaluated)


def test_scores_are_float32_probabilities() -> None:
    result = Classify(4).predict(linear().bfloat16(), replace(batch(), images=batch().images.bfloat16()))
    assert result.scores.dtype == torch.float32
    torch.testing.assert_close(result.scores.sum(1), torch.ones(6))
    best, index = result.top(2)
    assert torch.equal(index[:, 0], result.scores.argmax(1))
    assert (best[:, 0] >= best[:, 1]).all()


def test_evaluate_is_the_same_in_one_batch_or_many_and_restores_the_mode() -> None:
    task, b = Classify(4), batch(9)
    keep = torch.tensor([True] * 8 + [False])
    b = replace(b, keep=keep)
    model = nn.Sequential(nn.Dropout(0.5), linear()).train()
    parts = [FakeBatch(b.images[s], b.labels[s], None, keep[s], b.indices[s]) for s in (slice(0, 4), slice(4, 9))]
    one, many = evaluate(task, model, [b]), evaluate(task, model, parts)
    assert model.training
    assert one.metrics == pytest.approx(many.metrics)
    assert one.metrics["count"] == 8
    assert torch.equal(one.index, torch.arange(8))
    torch.testing.assert_close(one.scores, many.scores)
    details = one.accumulator.describe(list("abcd"))
    assert sum(map(sum, details["confusion"])) == 8
    assert details["per_class"][0]["name"] == "a"


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(B, 5\)"):
        Classify(5).step(linear(4), batch())
    with pytest.raises(ValueError, match="label_smoothing"):
        Classify(5, label_smoothing=1.0)
    with pytest.raises(UsageError, match="Did you mean 'classify'"):
        create_task("clasify", num_classes=2)
    with pytest.raises(UsageError, match="label_smoothing"):
        create_task("classify", num_classes=2, options={"smoothing": 0.1})
    with pytest.raises(DataError, match="can be read, got none of the images"):
        evaluate(Classify(4), linear(), [replace(batch(), keep=torch.zeros(6, dtype=torch.bool))])
