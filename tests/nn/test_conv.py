"""Convolutions with norms that fold, standardised weights, padding, and the stages of residual networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.nn import initialise
from vitrail.nn.bottleneck import BasicBlock, Bottleneck, Step, make_stages, plan_steps, stage_maps
from vitrail.nn.conv import Conv2d, StdConv2d, conv_norm, pad_same, standardise
from vitrail.nn.norms import affine
from vitrail.nn.patches import MapEmbed


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def a_norm(channels):
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.add_(torch.randn(channels))
    norm.running_var.add_(torch.rand(channels))
    return norm.eval()


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Names of the operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def norms(self):
        return sum("batch_norm" in name for name in self.names)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)]
)
@pytest.mark.parametrize("make", [Conv2d, StdConv2d])
def test_a_norm_folds_into_the_kernel(make, kernel, stride, dilation):
    conv, norm = make(4, 6, kernel, stride, dilation), a_norm(6)
    x = torch.randn(3, 4, 15, 18)
    expected = norm(F.conv2d(x, conv.kernel(), None, stride, dilation * (kernel - 1) // 2, dilation))
    with torch.no_grad(), Count() as ran:
        torch.testing.assert_close(conv_norm(conv, norm, x), expected, atol=1e-4, rtol=1e-5)
    assert ran.norms == 0
    torch.testing.assert_close(conv_norm(conv, norm, x), expected, atol=1e-4, rtol=1e-5)  # layer by layer


def runs_both(conv, norm, x):
    with Count() as ran:
        conv_norm(conv, norm, x)
    return ran.norms > 0


def test_a_norm_does_not_fold_where_someone_could_tell():
    conv, norm, x = Conv2d(4, 6, 3), a_norm(6), torch.randn(2, 4, 8, 8)
    assert runs_both(conv, norm, x), "gradients"
    with torch.no_grad():
        assert not runs_both(conv, norm, x)
        assert runs_both(conv, norm, torch.randn(1, 4, 3, 3)), "a kernel larger than the map"
        assert runs_both(conv, norm.train(), x), "training"
        norm.eval()
        seen = []
        for layer in (norm, conv):
            handle = layer.register_forward_hook(lambda module, args, out: seen.append(out))
            assert runs_both(conv, norm, x), "a hook"
            handle.remove()
        assert len(seen) == 2
        assert not runs_both(conv, norm, x)


def test_a_norm_in_float32_folds_into_a_kernel_in_bf16():
    """Runs in bf16 keep batch norms in float32."""
    conv, norm, x = Conv2d(4, 6, 3).bfloat16(), a_norm(6), torch.randn(2, 4, 8, 8).bfloat16()
    with torch.no_grad():
        folded = conv_norm(conv, norm, x)
    assert folded.dtype == torch.bfloat16
    torch.testing.assert_close(folded, norm(conv(x)), atol=0.1, rtol=0.02)


def test_a_compiled_graph_keeps_the_norm():
    conv, norm, x = Conv2d(4, 6, 3), a_norm(6), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        program = torch.export.export(Pair(conv, norm).eval(), (x,))
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)


class Pair(nn.Module):
    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x):
        return conv_norm(self.conv, self.norm, x)


def test_affine_is_what_a_norm_does():
    norm, x = a_norm(5), torch.randn(2, 5, 3, 3)
    scale, shift = affine(norm)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], norm(x))
    with pytest.raises(ValueError, match="running statistics"):
        affine(nn.BatchNorm2d(5, track_running_stats=False))


def test_filters_are_standardised():
    weight = torch.randn(6, 4, 3, 3) * 3 + 1
    found = standardise(weight, 0.0)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.var((1, 2, 3), correction=0), torch.ones(6))
    std = weight.flatten(1).std(1, correction=0)[:, None, None, None]
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(standardise(weight, 0.5, "deviation"), centred / (std + 0.5))  # Flax
    torch.testing.assert_close(standardise(weight, 0.5, "variance"), centred / (std.square() + 0.5).sqrt())
    assert standardise(weight.bfloat16(), 1e-5).dtype == torch.bfloat16


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([3, 7]), st.integers(1, 3))
def test_same_padding_fits_every_size(height, width, extent, stride):
    padded = pad_same(torch.ones(1, 1, height, width), extent, stride)
    for given_side, axis in ((height, 2), (width, 3)):
        side = padded.shape[axis]
        assert (side - extent) // stride + 1 == -(-given_side // stride)
        before = int((padded.amax(5 - axis).squeeze() == 0).nonzero().lt(side // 2).sum()) if side > given_side else 0
        assert before == (side - given_side) // 2, "the odd pixel stands at the end"


@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_same_padding_differs_from_symmetric_only_when_striding(size):
    x = torch.randn(1, 4, *size)
    for stride in (1, 2):
        same, symmetric = Conv2d(4, 4, 3, stride, padding="same"), Conv2d(4, 4, 3, stride)
        symmetric.load_state_dict(same.state_dict())
        equal = torch.allclose(same(x), symmetric(x))
        assert same(x).shape == symmetric(x).shape
        assert equal == (stride == 1 or all(n % 2 for n in size))


def test_steps():
    assert [s.reach for s in plan_steps(4, 4, 32)] == [4, 8, 16, 32]
    assert plan_steps(4, 4, 16)[-1] == Step(1, (1, 2), 16)  # DC5: the first block keeps dilation 1
    assert plan_steps(4, 4, 8)[2:] == [Step(1, (1, 2), 8), Step(1, (2, 4), 8)]
    assert [s.reach for s in plan_steps(3, 1, 32)] == [1, 2, 4]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_fresh_blocks_are_their_shortcuts(block):
    layers = block(8, 8, conv=Conv2d, norm=nn.BatchNorm2d)
    initialise(layers, "resnet")
    x = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(layers(x), x)


class Net(nn.Module):
    """The smallest backbone that patches can be cut from."""

    def __init__(self):
        super().__init__()
        self.out_chans = 8
        self.steps = plan_steps(2, 1, 32)
        self.stages = make_stages(
            BasicBlock, 3, (1, 1), (4, 8), steps=self.steps, conv=Conv2d, norm=nn.BatchNorm2d, drop_path_rate=0.1
        )

    def grid(self, height, width):
        return -(-height // 2), -(-width // 2)

    def forward(self, images):
        return self.stages(images)


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_of_any_map(patch):
    net = Net().eval()
    embed, images = MapEmbed(net, patch, 5), torch.randn(2, 3, 14, 19)
    expected = embed.patches.proj(net(images))
    assert embed.grid(14, 19) == tuple(expected.shape[2:])
    torch.testing.assert_close(embed(images), expected.flatten(2).transpose(1, 2))
    maps = stage_maps(net.stages, net.steps, images)
    assert {stride: tuple(m.shape) for stride, m in maps.items()} == {1: (2, 4, 14, 19), 2: (2, 8, 7, 10)}
    torch.testing.assert_close(maps[2], net(images))
