"""Patches, positions, residual branches, pooling, initial weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from vitrail.nn import (
    Attention,
    AttentionPool,
    DropPath,
    FeedForward,
    LayerNorm2d,
    LayerScale,
    PatchEmbed,
    as_map,
    drop_path_rates,
    initialise,
    prepend,
    resize_positions,
    sincos_1d,
    sincos_2d,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3))
def test_patches_are_the_convolution(patch, more_h, more_w, chans):
    embed = PatchEmbed(patch, chans, 6)
    images = torch.randn(2, chans, patch + more_h, 2 * patch + more_w)
    expected = embed.proj(images)
    assert embed.grid(*images.shape[-2:]) == tuple(expected.shape[-2:])
    torch.testing.assert_close(embed(images), expected.flatten(2).transpose(1, 2))


def test_image_smaller_than_a_patch():
    with pytest.raises(ValueError, match=r"at least one patch \(8x8 pixels\), got 7x20"):
        PatchEmbed(8, 3, 4)(torch.randn(1, 3, 7, 20))


def test_resize_keeps_a_table_of_the_same_grid():
    table = torch.randn(1, 12, 5)
    assert resize_positions(table, (3, 4), (3, 4)) is table


@pytest.mark.parametrize("mode", ["bicubic_antialias", "bicubic", "bilinear", "bilinear_aligned"])
def test_resize_keeps_constants_and_the_order_of_rows_and_columns(mode):
    flat = torch.full((1, 12, 2), 3.0)
    torch.testing.assert_close(resize_positions(flat, (3, 4), (5, 9), mode), torch.full((1, 45, 2), 3.0))
    columns = torch.arange(4.0).repeat(3)[None, :, None]
    wide = resize_positions(columns, (3, 4), (3, 8), mode).reshape(3, 8)
    assert (wide.diff(dim=1) > 0).sum() > 12
    torch.testing.assert_close(wide[0], wide[2])


def test_aligned_resize_is_the_original_codes_zoom():
    table = torch.randn(1, 12, 3)
    ours = resize_positions(table, (3, 4), (6, 10), "bilinear_aligned").reshape(6, 10, 3)
    theirs = ndimage.zoom(table.reshape(3, 4, 3).numpy(), (6 / 3, 10 / 4, 1), order=1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)


def test_resize_says_which_grid_was_expected():
    with pytest.raises(ValueError, match="expected 3x3 = 9 positions, got 12"):
        resize_positions(torch.randn(1, 12, 3), (3, 3), (6, 6))


def test_sincos_1d_in_both_orders():
    table = sincos_1d(7, 6)
    for pos, i in ((p, i) for p in range(7) for i in range(3)):
        angle = pos / 10000 ** (2 * i / 6)
        assert table[pos, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[pos, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)
    halves = sincos_1d(7, 6, layout="halves")
    torch.testing.assert_close(halves, torch.cat([table[:, 0::2], table[:, 1::2]], 1))
    with pytest.raises(ValueError, match="even width"):
        sincos_1d(3, 5)


def test_sincos_2d_holds_columns_first():
    table = sincos_2d((2, 3), 8)[0]
    row, column = 1, 2
    x, y = sincos_1d(3, 4, layout="halves")[column], sincos_1d(2, 4, layout="halves")[row]
    torch.testing.assert_close(table[row * 3 + column], torch.cat([x, y]))
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d((2, 2), 6)


def test_sincos_2d_stretches_over_its_base():
    wide = sincos_2d((3, 9), 8, base=(3, 3)).reshape(3, 9, 8)
    torch.testing.assert_close(wide[:, 1::3], sincos_2d((3, 3), 8).reshape(3, 3, 8))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    path = DropPath(0.25)
    out = path(torch.ones(4000, 3, 2))
    rows = out.flatten(1)
    assert ((rows == 0).all(1) | torch.isclose(rows, torch.tensor(4 / 3)).all(1)).all()
    assert abs(float(out.mean()) - 1) < 0.05
    assert torch.equal(path.eval()(out), out)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        DropPath(1.0)


def test_drop_path_rates_end_at_the_full_rate():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_layer_scale_multiplies_channels():
    scale = LayerScale(3, 0.1)
    torch.testing.assert_close(scale(torch.ones(2, 4, 3)), torch.full((2, 4, 3), 0.1))


def test_gelu_forms_differ_as_known():
    exact = FeedForward(8, 16, act="gelu")
    close = FeedForward(8, 16, act="gelu_tanh")
    close.load_state_dict(exact.state_dict())
    x = torch.randn(2, 5, 8) * 3
    gap = float((exact(x) - close(x)).detach().abs().max())
    assert 1e-6 < gap < 1e-2
    with pytest.raises(ValueError, match="expected an activation of gelu"):
        FeedForward(8, 16, act="erf")


def test_norm_2d_is_layer_norm_at_each_position():
    norm = LayerNorm2d(5)
    x = torch.randn(2, 5, 3, 4)
    expected = nn.functional.layer_norm(x[1, :, 2, 3], (5,), eps=1e-6)
    torch.testing.assert_close(norm(x)[1, :, 2, 3], expected)


def test_attention_pool_is_one_query_and_a_residual_network():
    pool = AttentionPool(8, 2, 16, eps=1e-6)
    initialise(pool, "trunc_normal")
    x = torch.randn(3, 5, 8)
    query = pool.attn(pool.latent.expand(3, -1, -1), x)
    torch.testing.assert_close(pool(x), (query + pool.mlp(pool.norm(query)))[:, 0])
    shuffled = x[:, torch.randperm(5)]
    torch.testing.assert_close(pool(shuffled), pool(x))


def test_tokens_before_and_back_to_a_map():
    x = torch.randn(2, 6, 4)
    extra = torch.randn(1, 1, 4)
    assert torch.equal(prepend(x, extra)[:, 1:], x)
    assert torch.equal(prepend(x), x)
    assert torch.equal(as_map(x, (2, 3))[1, :, 1, 2], x[1, 5])


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 64))
        self.pos_embed = nn.Parameter(torch.ones(1, 50, 64))
        self.proj = nn.Conv2d(3, 64, 8, 8)
        self.attn = Attention(64, 4)
        self.mlp = FeedForward(64, 256)
        self.head = nn.Linear(64, 10)


def test_jax_initialiser():
    toy = Toy()
    initialise(toy, "jax")
    bound = math.sqrt(6 / 128)  # Xavier of one square matrix, not of the (192, 64) whole
    assert 0.95 * bound < float(toy.attn.qkv.weight.detach().abs().max()) <= bound
    assert not toy.head.weight.any()
    assert not toy.cls_token.any()
    assert float(toy.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(toy.proj.weight.detach().std()) == pytest.approx(math.sqrt(1 / 192), rel=0.1)
    assert 0 < float(toy.mlp.fc1.bias.detach().abs().max()) < 1e-5
    assert not toy.attn.proj.bias.any()


def test_truncated_normal_initialiser():
    toy = Toy()
    initialise(toy, "trunc_normal")
    for tensor in (toy.attn.qkv.weight, toy.head.weight, toy.pos_embed):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not toy.mlp.fc1.bias.any()
    with pytest.raises(ValueError, match=r"expected an initialiser of .*jax, .*trunc_normal, got 'xavier'"):
        initialise(toy, "xavier")
