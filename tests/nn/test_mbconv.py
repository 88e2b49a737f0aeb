"""MBConv: norms inside the weights give the same numbers, in every form; halving counts every cell."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from vitrail.nn.mbconv import MBConv, MBConvForm, SqueezeExcite, halve

FORMS = [
    MBConvForm(stride=stride, pool=pool, act=act, pre_act=pre, gate_early=early)
    for stride, pool, act, pre, early in product(
        ("expand", "depthwise", "pool"), ("max", "avg"), ("gelu", "silu"), (False, True), (False, True)
    )
]


def block(form, dim=6, out_dim=10, stride=2):
    torch.manual_seed(0)
    made = MBConv(dim, out_dim, hidden_dim=12, gate_dim=3, stride=stride, form=form)
    for norm in (made.pre_norm, made.norm1, made.norm2):
        for tensor in (norm.weight, norm.running_var):
            tensor.data.copy_(torch.rand_like(tensor) + 0.5)
        for tensor in (norm.bias, norm.running_mean):
            tensor.data.copy_(torch.randn_like(tensor))
    return made.eval()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_fused_equals_layer_by_layer(form):
    made = block(form)
    x = torch.randn(2, 6, 7, 9)
    fused = made(x)
    handle = made.norm2.register_forward_hook(lambda *_: None)  # somebody watches: every layer runs
    layered = made(x)
    handle.remove()
    assert fused.shape == (2, 10, 4, 5)
    torch.testing.assert_close(fused, layered, atol=1e-5, rtol=1e-5)
    assert not torch.equal(fused, block(replace(form, gate_early=not form.gate_early))(x))


def test_fused_has_the_same_gradients():
    made, x = block(MBConvForm()), torch.randn(2, 6, 4, 4)
    made(x).square().sum().backward()
    fused = {n: p.grad.clone() for n, p in made.named_parameters()}
    made.zero_grad()
    made.depthwise.register_forward_hook(lambda *_: None)
    made(x).square().sum().backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(fused[name], parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_training_uses_the_statistics_of_the_batch():
    made = block(MBConvForm()).train()
    before = made.norm1.running_mean.clone()
    made(torch.randn(4, 6, 4, 4))
    assert not torch.equal(before, made.norm1.running_mean)


def test_a_block_that_keeps_its_map_adds_it():
    made = block(MBConvForm(), dim=8, out_dim=8, stride=1)
    torch.nn.init.zeros_(made.project.weight)
    torch.nn.init.zeros_(made.project.bias)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(made(x), x)


@pytest.mark.parametrize("pool", ["max", "avg", "max3"])
def test_halving_rounds_up_and_pads_with_nothing(pool):
    assert halve(torch.ones(1, 2, 5, 7), pool).shape == (1, 2, 3, 4)
    assert torch.equal(halve(-torch.ones(1, 2, 5, 7), pool), -torch.ones(1, 2, 3, 4))


def test_squeeze_excitation_is_a_gate_of_the_means():
    gate, x = SqueezeExcite(4, 2), torch.randn(3, 4, 5, 6)
    means = x.mean((2, 3))
    expected = torch.sigmoid(gate.fc2(F.silu(gate.fc1(means))))
    torch.testing.assert_close(gate(x), x * expected[:, :, None, None])
