"""Distillation against its definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.tasks.classify import Classify
from vitrail.tasks.distil import Distil

from .test_classify import FakeBatch, TwoHeads, batch, linear


def teacher(b: FakeBatch) -> Tensor:
    """A function of the images alone."""
    return 3 * linear()(b.images.flip(1))


def by_hand(logits: Tensor, told: Tensor, temperature: float) -> Tensor:
    """Sum over classes of p log(p / q), written out."""
    p, q = (told / temperature).softmax(1), (logits / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_soft_answers_are_hintons_divergence(temperature: float, weight: float) -> None:
    model, b, told = linear(), batch(), teacher(batch())
    losses = Distil(Classify(4), teacher, weight=weight, temperature=temperature).step(model, b)
    logits = model(b.images)
    torch.testing.assert_close(losses["teacher"], by_hand(logits, told, temperature))
    torch.testing.assert_close(losses["label"], F.cross_entropy(logits, b.labels))
    want = (1 - weight) * F.cross_entropy(logits, b.labels) + weight * by_hand(logits, told, temperature)
    torch.testing.assert_close(losses["loss"], want)


def test_the_gradient_keeps_its_size_at_any_temperature() -> None:
    """What T² is for: at high temperature the gradient nears that of matching logits, (s - t) / K, mean-free."""
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    told = torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    task = Distil(Classify(4), teacher, temperature=1e3)
    (gradient,) = torch.autograd.grad(task.answers(logits.double(), told.double()).sum(), logits)
    difference = logits.detach() - told
    want = (difference - difference.mean()) / 4
    torch.testing.assert_close(gradient, want, rtol=1e-2, atol=1e-4)


def test_hard_answers_are_labels_without_smoothing() -> None:
    model, b = linear(), batch()
    losses = Distil(Classify(4, label_smoothing=0.1), teacher, how="hard", weight=0.5).step(model, b)
    logits, told = model(b.images), teacher(b).argmax(1)
    torch.testing.assert_close(losses["teacher"], F.cross_entropy(logits, told))
    torch.testing.assert_close(losses["label"], F.cross_entropy(logits, b.labels, label_smoothing=0.1))
    torch.testing.assert_close(losses["loss"], (losses["label"] + losses["teacher"]) / 2)


def test_hard_answers_are_very_cold_soft_ones() -> None:
    model, b, cold = linear(), batch(), 1e-3
    hard = Distil(Classify(4), teacher, how="hard", weight=1.0).step(model, b)["loss"]
    scaled = lambda x: 1e3 * teacher(x)  # noqa: E731 - at T = 1: probabilities of 0 and 1
    soft = Distil(Classify(4), scaled, how="soft", weight=1.0, temperature=1.0).step(model, b)["loss"]
    torch.testing.assert_close(hard, soft, rtol=cold, atol=cold)


def test_a_teacher_that_knows_the_labels_teaches_what_labels_do() -> None:
    model, b = linear(), batch()
    told = lambda x: 1e4 * F.one_hot(x.labels, 4).float()  # noqa: E731
    for how in ("soft", "hard"):
        taught = Distil(Classify(4), told, how=how, weight=0.7).step(model, b)["loss"]
        torch.testing.assert_close(taught, Classify(4).step(model, b)["loss"])


def test_a_student_as_good_as_its_teacher_has_nothing_to_learn() -> None:
    model, b = linear(), batch()
    loss = Distil(Classify(4), lambda x: model(x.images), weight=1.0, temperature=2.0).step(model, b)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad is not None and p.grad.abs().max() < 1e-6 for p in model.parameters())


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_of_two_heads_one_learns_the_labels_and_one_the_teacher(how: str) -> None:
    torch.manual_seed(0)
    model, b = TwoHeads(4), batch()
    losses = Distil(Classify(4), teacher, how=how, weight=0.25).step(model, b)
    flat = b.images.flatten(1)
    torch.testing.assert_close(losses["label"], F.cross_entropy(model.a(flat), b.labels))
    told = teacher(b)
    want = F.cross_entropy(model.b(flat), told.argmax(1)) if how == "hard" else by_hand(model.b(flat), told, 1.0)
    torch.testing.assert_close(losses["teacher"], want)
    losses["label"].backward(retain_graph=True)
    assert model.b.weight.grad is None or not model.b.weight.grad.any(), "labels do not reach the distillation head"
    model.zero_grad()
    losses["teacher"].backward()
    assert model.a.weight.grad is None or not model.a.weight.grad.any(), "the teacher does not reach the class head"


def test_mixed_targets_reach_the_label_part() -> None:
    b = batch(soft=True)
    losses = Distil(Classify(4), teacher).step(linear(), b)
    torch.testing.assert_close(losses["label"], F.cross_entropy(linear()(b.images), b.targets))


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_unread_images_teach_nothing(how: str) -> None:
    model, b = linear(), batch()
    keep = torch.tensor([True, False, True, True, False, True])
    only = FakeBatch(b.images[keep], b.labels[keep], None, keep[keep], b.indices[keep])
    found = []
    for part in (replace(b, keep=keep), only):
        loss = Distil(Classify(4), teacher, how=how).step(model, part)["loss"]
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(found[0], found[1])
    nothing = Distil(Classify(4), teacher, how=how).step(model, replace(b, keep=torch.zeros_like(keep)))
    assert nothing["loss"].item() == 0.0


def test_no_gradient_reaches_the_teacher() -> None:
    net, model, b = linear(), linear(), batch()
    Distil(Classify(4), lambda x: net(x.images)).step(model, b)["loss"].backward()
    assert all(p.grad is None for p in net.parameters())


def test_prediction_and_metrics_are_the_tasks() -> None:
    model, b, task = linear(), batch(), Distil(Classify(4), teacher)
    assert torch.equal(task.predict(model, b).scores, Classify(4).predict(model, b).scores)
    assert (task.name, task.monitor) == ("classify", "top1")
    metrics = task.metrics()
    metrics.update(task.predict(model, b), b)
    assert metrics.compute()["count"] == 6


def test_wrong_use_is_refused() -> None:
    for wrong, message in (
        ({"how": "medium"}, "how of soft, hard"),
        ({"weight": 0}, "weight above 0"),
        ({"weight": 1.1}, "weight above 0"),
        ({"temperature": 0}, "temperature above 0"),
        ({"how": "hard", "temperature": 2.0}, "of soft answers alone"),
    ):
        with pytest.raises(ValueError, match=message):
            Distil(Classify(4), teacher, **wrong)
    with pytest.raises(ValueError, match=r"logits \(6, 4\) of the teacher, got \(6, 3\)"):
        Distil(Classify(4), lambda b: teacher(b)[:, :3]).step(linear(), batch())
