"""Bits a pixel: of known logits they are what they must be; hidden pixels alone count; both losses add up."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitrail.models import create_model
from vitrail.tasks.classify import Classify
from vitrail.tasks.evaluate import evaluate
from vitrail.tasks.pixels import HOLE, Pixels, WithPixels, hide


class Knows(nn.Module):
    """A model of 4 colours that gives each pixel's true colour probability ``p``; pictures hold token numbers."""

    def __init__(self, p):
        super().__init__()
        self.p, self.shown = p, []

    def tokens(self, images):
        return images[:, 0].flatten(1).long()

    def forward(self, tokens):
        self.shown.append(tokens)
        true = torch.arange(tokens.shape[1]).expand(tokens.shape) % 4
        logits = torch.full((*tokens.shape, 4), math.log((1 - self.p) / 3))
        return logits.scatter(2, true[..., None], math.log(self.p))


class Pictures(SimpleNamespace):
    def to(self, device):
        return self


def pictures(count=3, broken=()):
    images = (torch.arange(16) % 4).float().view(1, 1, 4, 4).expand(count, 3, 4, 4)
    keep = torch.tensor([i not in broken for i in range(count)])
    return Pictures(images=images, keep=keep, indices=torch.arange(count), labels=torch.arange(count) % 2, targets=None)


def test_bits_are_those_of_the_probabilities():
    found = evaluate(Pixels(4), Knows(0.5), [pictures(), pictures(2)]).metrics
    assert found["bits_per_pixel"] == pytest.approx(1.0)
    assert found["bits_per_dim"] == pytest.approx(1 / 3)
    assert found["negative_bits"] == pytest.approx(-1.0)
    assert found["loss"] == pytest.approx(math.log(2))
    assert found["uniform_bits"] == 2.0
    assert found["marginal_bits"] == pytest.approx(2.0)  # each colour is a quarter of these pictures
    assert found["count"] == 5


def test_the_loss_is_in_nats_and_leaves_out_what_could_not_be_read():
    batch = pictures(3, broken=(1,))
    batch.images = batch.images.clone()
    batch.images[1] = 0  # pixels that are no picture
    loss = Pixels(4).step(Knows(0.25), batch)["loss"]
    assert float(loss) == pytest.approx(math.log(4))
    found = evaluate(Pixels(4), Knows(0.5), [batch]).metrics
    assert (found["count"], found["bits_per_pixel"]) == (2, pytest.approx(1.0))


def test_colours_that_never_occur_take_no_bits():
    found = evaluate(Pixels(64), Knows64(), [pictures()]).metrics
    assert found["uniform_bits"] == 6.0
    assert found["marginal_bits"] == pytest.approx(2.0)


class Knows64(Knows):
    def __init__(self):
        super().__init__(0.5)

    def forward(self, tokens):
        return torch.zeros(*tokens.shape, 64)


def test_hidden_pixels_are_shown_to_nobody_and_counted_alone():
    model, task = Knows(0.5), Pixels(4, hidden=0.25)
    torch.manual_seed(0)
    loss = task.step(model, pictures(8))["loss"]
    assert float(loss) == pytest.approx(math.log(2))
    (shown,) = model.shown
    share = float((shown == HOLE).float().mean())
    assert 0.1 < share < 0.45
    assert ((shown == HOLE) | (shown == torch.arange(16) % 4)).all()


def test_what_is_hidden_in_evaluation_is_the_same_every_time():
    tokens = torch.zeros(3, 50, dtype=torch.int64)
    places = torch.tensor([4, 7, 4])
    hidden = hide(tokens, 0.15, places)
    assert torch.equal(hidden, hide(tokens, 0.15, places))
    assert torch.equal(hidden[0], hidden[2])
    assert not torch.equal(hidden[0], hidden[1])
    assert hide(tokens, 1e-9, places).sum(1).tolist() == [1, 1, 1]


def test_both_losses_add_up_and_answers_are_those_of_the_classes():
    torch.manual_seed(0)
    model = create_model("igpt_nano_8", num_classes=2, joint=True, colours=6)
    nn.init.normal_(model.head.weight)
    batch = Pictures(
        images=torch.rand(4, 3, 8, 8) * 2 - 1, labels=torch.tensor([0, 1, 1, 0]), targets=None, keep=torch.ones(4) > 0
    )
    task = WithPixels(Classify(2))
    losses = task.step(model.train(), batch)
    assert float(losses["pixels"].detach()) == pytest.approx(math.log(6), rel=1e-4)  # its output starts at zero
    assert torch.equal(losses["loss"], losses["label"] + losses["pixels"])
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(task.predict(model.eval(), batch).scores, model(batch.images).softmax(1))
    with pytest.raises(ValueError, match=r"joint=true"):
        task.step(create_model("igpt_nano_8", num_classes=2), batch)


@pytest.mark.parametrize("options", [{"colours": 0}, {"colours": 4, "hidden": 1.0}, {"colours": 4, "channels": 0}])
def test_what_makes_no_sense(options):
    with pytest.raises(ValueError, match="expected"):
        Pixels(**options)
