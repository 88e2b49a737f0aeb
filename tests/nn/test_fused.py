"""A layer and its activation in one pass give the numbers of the two steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vitrail.nn import FeedForward, fused
from vitrail.nn.fused import ACTIVATIONS, Linear, conv_act, linear_act


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of oneDNN's kernels."""
    made = []
    find = fused._find

    def spy(name):
        made.append(name)
        return find(name)

    monkeypatch.setattr(fused, "_find", spy)
    return made


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(act, bias, calls):
    x, weight = torch.randn(3, 5, 7), torch.randn(9, 7)
    shift = torch.randn(9) if bias else None
    with torch.inference_mode():
        found = linear_act(x, weight, shift, act)
    torch.testing.assert_close(found, ACTIVATIONS[act](F.linear(x, weight, shift)), atol=1e-5, rtol=1e-5)
    assert calls == ["_linear_pointwise"] * (act in fused._NAMES)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (6, 1), (6, 2)])
def test_convolution(act, groups, stride, calls):
    x, weight, bias = torch.randn(2, 6, 9, 7), torch.randn(6, 6 // groups, 3, 3), torch.randn(6)
    with torch.no_grad():
        found = conv_act(x, weight, bias, act, stride=stride, padding=1, groups=groups)
    expected = ACTIVATIONS[act](F.conv2d(x, weight, bias, stride, 1, groups=groups))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert calls == ["_convolution_pointwise"] * (act in fused._NAMES)


def test_with_gradients_the_two_steps_are_made(calls):
    x, weight = torch.randn(3, 7), torch.randn(9, 7, requires_grad=True)
    linear_act(x, weight, None, "gelu").sum().backward()
    assert weight.grad is not None
    assert calls == []


def test_mixed_types_and_other_devices_are_left_to_torch(calls):
    with torch.no_grad():
        assert linear_act(torch.empty(3, 7, device="meta"), torch.empty(9, 7, device="meta"), None, "relu").is_meta
        assert linear_act(torch.randn(3, 7).double(), torch.randn(9, 7).double(), None, "relu").dtype == torch.float64
    assert calls == []


def test_a_torch_without_the_kernels_gives_the_same(monkeypatch):
    x, net = torch.randn(2, 4, 8), FeedForward(8, 16)
    with torch.no_grad():
        quick = net(x)
        monkeypatch.setattr(fused, "_find", lambda name: None)
        torch.testing.assert_close(net(x), quick, atol=1e-6, rtol=1e-5)


def test_who_hooks_into_a_layer_gets_it(calls):
    net, seen = FeedForward(8, 16), []
    net.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        net(torch.randn(2, 4, 8))
    assert seen[0].shape == (2, 4, 16)
    assert calls == []


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_linear_layer_is_torchs_to_rounding(bias, calls):
    layer = Linear(256, 512, bias=bias)
    x = torch.randn(2, 256, 64, 8).transpose(1, 2).flatten(2)[:, :, :256]
    plain = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    with torch.no_grad():
        torch.testing.assert_close(layer(x.repeat(1, 2, 1)), plain.float().repeat(1, 2, 1), atol=1e-5, rtol=1e-5)
        assert calls == ["_linear_pointwise"]
        layer(x[:, :1])
    assert calls == ["_linear_pointwise"], "for a small one the kernel's start would count"
    layer(x.repeat(1, 2, 1)).sum().backward()
    assert layer.weight.grad is not None
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autocast_traces_and_weights_of_other_kinds_are_left_to_torch(calls):
    layer, x = Linear(256, 512), torch.randn(256, 256)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        traced = torch.jit.trace(layer, x, check_trace=False)
        layer.weight = torch.nn.Parameter(torch.randn(512, 256).as_subclass(OtherTensor))
        assert layer(x).shape == (256, 512)
    assert "mkldnn" not in str(traced.inlined_graph)
    assert calls == []


class OtherTensor(torch.Tensor):
    """What libraries that quantise or shard put in a weight's place."""
