"""Restoration as a task: losses, what is predicted, how it is measured."""

import math

import pytest
import torch
from torch import nn

from vitrail.data.restoration import RestoreBatch
from vitrail.metrics.images import psnr, ssim
from vitrail.tasks.base import headline_words
from vitrail.tasks.evaluate import evaluate
from vitrail.tasks.restore import Restore


class Add(nn.Module):
    """Adds a learned number to a picture."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, x):
        return x + self.value


def batch(keep=(True, True)):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return RestoreBatch(images=x, keep=torch.tensor(keep), indices=torch.arange(2), targets=x.clone())


def test_l1_and_charbonnier_are_what_they_say():
    assert float(Restore().step(Add(0.25), batch())["loss"].detach()) == pytest.approx(0.25, abs=1e-6)
    charbonnier = Restore(loss="charbonnier").step(Add(0.25), batch())["loss"]
    assert float(charbonnier.detach()) == pytest.approx(math.sqrt(0.25**2 + 1e-6), abs=1e-6)


def test_what_could_not_be_read_is_in_no_loss_and_no_gradient():
    data = batch((True, False))
    data.targets[1] = math.nan
    model = Add(0.5)
    loss = Restore().step(model, data)["loss"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5, abs=1e-6)
    assert float(model.value.grad) == pytest.approx(1, abs=1e-5)


def test_predictions_are_clamped_and_measured_as_said():
    data, task = batch(), Restore(border=2, channel="y")
    found = evaluate(task, Add(0.1), [data])
    made = (data.images + 0.1).clamp(0, 1)
    how = {"border": 2, "channel": "y"}
    each = [(psnr(a, b, **how), ssim(a, b, **how)) for a, b in zip(made, data.targets, strict=True)]
    assert found.metrics["psnr"] == pytest.approx(sum(p for p, _ in each) / 2, abs=1e-4)
    assert found.metrics["ssim"] == pytest.approx(sum(s for _, s in each) / 2, abs=1e-5)
    assert found.metrics["count"] == 2
    told = found.accumulator.describe()
    assert (told["border"], told["channel"]) == (2, "y")
    assert [row["psnr"] for row in told["per_picture"]] == pytest.approx([p for p, _ in each], abs=1e-4)
    assert headline_words(found.metrics) == f"PSNR in dB {found.metrics['psnr']:.2f}"


def test_pictures_that_could_not_be_read_do_not_count():
    found = evaluate(Restore(), Add(0.1), [batch((True, False))])
    assert found.metrics["count"] == 1


def test_another_scale_is_refused():
    data = batch()
    wrong = RestoreBatch(data.images, data.keep, data.indices, torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="scale of the data"):
        Restore().step(Add(0), wrong)


def test_options_that_cannot_be_are_refused():
    for options in ({"loss": "l2"}, {"border": -1}, {"channel": "v"}):
        with pytest.raises(ValueError, match="expected"):
            Restore(**options)
