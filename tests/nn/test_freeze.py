"""A frozen backbone gives the same numbers whatever the head does, in training too, copies included."""

import copy

import pytest
import torch

from vitrail import models
from vitrail.nn import freeze_backbone
from vitrail.nn.freeze import last_norm

NAMES = sorted(name for name in models.image_variants() if name.startswith("test_"))


def step(model, x):
    """Return what the head reads in training mode, after a backward pass."""
    read = []
    model.train()
    hook = model.head.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    out = model(x)
    sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    hook.remove()
    return read[0].detach()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_drop_path_and_statistics_rest(name):
    torch.manual_seed(0)
    model = models.create_model(name, drop_path_rate=0.5)
    for part in (model.head, getattr(model, "head_dist", model.head)):
        torch.nn.init.normal_(part.weight)
    x = torch.randn(4, 3, 32, 32)
    trained = freeze_backbone(model)
    assert {n.partition(".")[0] for n in trained} <= {"head", "head_dist"}
    for net in (model, copy.deepcopy(model)):
        before = {n: t.clone() for n, t in net.state_dict().items()}
        torch.testing.assert_close(step(net, x), step(net, x), rtol=0, atol=0)
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
        assert {n for n, p in net.named_parameters() if p.grad is not None} == set(trained)
        assert net.training
        assert net.head_drop.training
        assert not net.eval().training


def test_the_copy_has_its_own_mode():
    model = models.create_model("test_vit")
    freeze_backbone(model)
    other = copy.deepcopy(model)
    model.train()
    other.eval()
    assert model.head.training
    assert not other.head.training


@pytest.mark.parametrize("name", NAMES)
def test_the_last_norm_may_learn_too(name):
    model = models.create_model(name)
    torch.nn.init.normal_(model.head.weight)
    norm = last_norm(model)
    trained = freeze_backbone(model, but=[norm])
    step(model, torch.randn(4, 3, 32, 32))
    assert {n for n in trained if not n.startswith("head")} == {
        f"{norm}.{kind}" for kind, _ in model.get_submodule(norm).named_parameters()
    }
    assert model.get_submodule(norm).training
    assert model.get_submodule(norm).weight.grad.any()


def test_without_a_head_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match="a head to train"):
        freeze_backbone(models.create_model("test_vit", num_classes=0))
