"""Reduced tokens, square and overlapping patches, the convolutional feed-forward network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vitrail.nn import (
    Attention,
    ConvFeedForward,
    FeedForward,
    OverlapPatchEmbed,
    PooledReduction,
    PreNormBlock,
    ReducedBlock,
    SquareEmbed,
    StridedReduction,
    initialise,
    project_squares,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rows(map_):
    """(B, C, h, w) -> (B, h, w, C)."""
    return map_.permute(0, 2, 3, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 5))
def test_squares_are_the_convolution(side, more_h, more_w):
    conv = nn.Conv2d(3, 5, side, stride=side)
    x = torch.randn(2, 3, side + more_h, side + more_w)
    torch.testing.assert_close(project_squares(rows(x), conv), rows(conv(x)))


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (9, 2)])
def test_a_map_smaller_than_a_square_is_filled_up_with_zeros(size):
    conv = nn.Conv2d(3, 5, 4, stride=4)
    x = torch.randn(2, 3, *size)
    full = F.pad(x, (0, max(4 - size[1], 0), 0, max(4 - size[0], 0)))
    torch.testing.assert_close(project_squares(rows(x), conv), rows(conv(full)))


def test_square_embedding_and_strided_reduction_are_one_thing():
    reduction, embed = StridedReduction(6, 2, eps=1e-5), SquareEmbed(2, 6, 6, eps=1e-5)
    embed.load_state_dict(reduction.state_dict())
    x = torch.randn(2, 5, 4, 6)
    assert reduction(x).shape == (2, 4, 6)
    assert torch.equal(reduction(x), embed(x).flatten(1, 2))


@pytest.mark.parametrize(("size", "grid"), [((8, 8), (2, 2)), ((9, 13), (3, 4)), ((1, 2), (1, 1))])
def test_overlapping_patches_cover_the_whole_image(size, grid):
    embed = OverlapPatchEmbed(7, 4, 3, 8, eps=1e-5)
    x = torch.randn(2, 3, *size)
    found = embed(rows(x))
    assert found.shape == (2, *grid, 8)
    torch.testing.assert_close(found, F.layer_norm(rows(embed.proj(x)), (8,), eps=1e-5))
    x[:, :, -1, -1] += 1
    assert not torch.equal(embed(rows(x))[:, -1, -1], found[:, -1, -1])


def test_overlapping_patches_have_a_middle():
    with pytest.raises(ValueError, match="odd patch size"):
        OverlapPatchEmbed(4, 2, 3, 8, eps=1e-5)


@pytest.mark.parametrize("size", [(14, 21), (9, 5), (2, 3)])
def test_pooled_reduction_has_one_size(size):
    reduce = PooledReduction(6, eps=1e-5)
    x = torch.randn(2, *size, 6)
    found = reduce(x)
    assert found.shape == (2, 49, 6)
    pooled = reduce.proj(F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 7))
    torch.testing.assert_close(found, F.gelu(reduce.norm(rows(pooled).flatten(1, 2))))


def test_block_without_reduction_is_the_plain_block():
    def block(kind, **more):
        torch.manual_seed(1)
        return kind(Attention(8, 2), FeedForward(8, 16), 8, eps=1e-6, **more)

    x = torch.randn(2, 3, 4, 8)
    expected = block(PreNormBlock)(x.flatten(1, 2)).view(x.shape)
    torch.testing.assert_close(block(ReducedBlock, reduce=None)(x), expected)


def test_block_attends_the_reduced_tokens():
    block = ReducedBlock(Attention(8, 2), nn.Identity(), 8, reduce=StridedReduction(8, 2, eps=1e-5), eps=1e-6)
    block.attn.tape = []
    x = torch.randn(2, 4, 6, 8)
    normed = block.norm1(x)
    mixed = x + block.attn(normed.flatten(1, 2), context=block.reduce(normed)).view(x.shape)
    torch.testing.assert_close(block(x), mixed + block.norm2(mixed))
    assert block.attn.tape[-1].shape == (2, 2, 24, 6)


@pytest.mark.parametrize("relu", [False, True])
def test_convolutional_feed_forward(relu):
    mlp = ConvFeedForward(6, 12, relu=relu)
    x = torch.randn(2, 5, 4, 6)
    hidden = mlp.fc1(x)
    hidden = hidden.relu() if relu else hidden
    mixed = rows(F.conv2d(hidden.permute(0, 3, 1, 2), mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=12))
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mixed)))


def test_the_zeros_around_the_map_tell_where_a_token_is():
    mlp = ConvFeedForward(6, 12)
    same = mlp(torch.ones(1, 3, 3, 6))[0]
    assert not torch.allclose(same[0, 0], same[1, 1])
    torch.testing.assert_close(mlp(torch.ones(1, 5, 5, 6))[0, 2, 2], mlp(torch.ones(1, 5, 5, 6))[0, 2, 3])


def test_initial_spread_of_convolutions():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(512, 512, 3, groups=512), nn.Linear(256, 256))
    initialise(model, "pvt_v2")
    spreads = [float(m.weight.detach().std()) for m in model]
    torch.testing.assert_close(spreads, [(2 / (9 * 64)) ** 0.5, (2 / 9) ** 0.5, 0.02], rtol=0.05, atol=0.0)
    assert all(not m.bias.any() for m in model)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [(3, 40, 28), (2, 130, 130)])  # images apart; channels apart too
@torch.inference_mode()
def test_pieces_of_a_hidden_layer_add_up(size, relu):
    """What stays in the cache without a backward pass is the same function; a hook makes it run whole."""
    mlp = ConvFeedForward(6, 192, relu=relu).eval()
    x = torch.randn(*size, 6)
    apart = mlp(x)
    calls = []
    mlp.dwconv.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    torch.testing.assert_close(mlp(x), apart, atol=1e-5, rtol=1e-5)
    assert calls == [(size[0], 192, *size[1:])]
