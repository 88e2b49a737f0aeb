"""Windows: cutting undoes merging, masks and biases equal attention written out in full, any size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vitrail.nn import PatchMerging, WindowAttention, Windows
from vitrail.nn.windows import roll

CUTS = [
    Windows((8, 8), (4, 4)),
    Windows((8, 12), (4, 4), (2, 2)),
    Windows((7, 10), (4, 3), (2, 1)),
    Windows((3, 9), (4, 4), (0, 2)),
    Windows((2, 2), (4, 4), (2, 2)),
]


def grid(b, h, w, c, seed=0):
    return torch.randn(b, h, w, c, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_merging_undoes_cutting(cut):
    x = grid(2, *cut.grid, 3)
    windows = cut.partition(x)
    rows, columns = cut.counts
    assert windows.shape == (2, rows * columns, cut.window[0] * cut.window[1], 3)
    assert torch.equal(cut.merge(windows), x)


@pytest.mark.parametrize("steps", [(0, 0), (2, 0), (0, -1), (3, 2), (-2, -3), (5, 9)])
def test_roll_is_torch_roll_with_and_without_gradients(steps):
    x = grid(2, 5, 7, 3)
    expected = torch.roll(x, steps, (1, 2))
    assert torch.equal(roll(x, steps), expected)
    with torch.inference_mode():
        assert torch.equal(roll(x, steps), expected)
        assert torch.equal(roll(x.permute(0, 2, 1, 3), steps), torch.roll(x.permute(0, 2, 1, 3), steps, (1, 2)))


def places(cut):
    """Where each token of each window stands: its row and column in the padded grid, before it was rolled."""
    height, width = cut.padded
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    whole = Windows(cut.padded, cut.window, cut.shift)
    return (whole.partition(t[None, :, :, None])[0, :, :, 0] for t in (y, x))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_masks_part_what_the_roll_brought_together(cut):
    """Two tokens of a window are neighbours if they stand in it as they do in the grid."""
    mask = cut.mask(torch.zeros(1))
    if mask is None:
        assert cut.shift == (0, 0)
        return
    m, n = cut.window
    near = torch.ones(mask.shape[0], m * n, m * n, dtype=torch.bool)
    for place, within in zip(places(cut), (torch.arange(m * n) // n, torch.arange(m * n) % n), strict=True):
        near &= (place[:, :, None] - place[:, None]) == (within[:, None] - within[None])
    assert torch.equal(mask[:, 0] == 0.0, near)
    assert set(mask.unique().tolist()) == {-100.0, 0.0}


def attention(window=(4, 4), shift="between"):
    torch.manual_seed(0)
    attn = WindowAttention(12, 3, window, shift=shift).eval()
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attn


def written_out(attn, x):
    """Each query looks for its keys by itself, in the padded grid: no windows, no roll, no mask."""
    h, w = x.shape[1:3]
    cut = attn.windows((h, w))
    (m, n), (height, width) = cut.window, cut.padded
    x = F.pad(x, (0, 0, 0, width - w, 0, height - h))
    q, k, v = attn.qkv(x).view(len(x), height, width, 3, 3, 4).unbind(3)
    y, z = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    region = torch.stack(
        [(y - cut.shift[0]).div(m, rounding_mode="floor"), (z - cut.shift[1]).div(n, rounding_mode="floor")], -1
    )
    out = torch.zeros_like(q)
    for i in range(height):
        for j in range(width):
            keys = (region == region[i, j]).all(-1).nonzero().tolist()
            rows = [(i - a + m - 1) * (2 * n - 1) + j - b + n - 1 for a, b in keys]
            ks, vs = (torch.stack([t[:, a, b] for a, b in keys], 2) for t in (k, v))
            scores = (q[:, i, j, :, None] * ks).sum(-1) / 2 + attn.positions.table[rows].t()
            out[:, i, j] = (scores.softmax(-1)[..., None] * vs).sum(2)
    return attn.proj(out.flatten(3))[:, :h, :w]


@pytest.mark.parametrize("shift", ["never", "between", "always"])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (4, 9), (3, 2)])
@torch.no_grad()
def test_equals_attention_written_out(size, shift):
    attn, x = attention((4, 3), shift), grid(2, *size, 12)
    torch.testing.assert_close(attn(x), written_out(attn, x), atol=1e-5, rtol=1e-4)


def test_only_sides_with_more_than_one_window_are_shifted():
    attn = attention(shift="between")
    assert attn.windows((4, 9)).shift == (0, 2)
    assert attn.windows((5, 4)).shift == (2, 0)
    assert attention(shift="always").windows((4, 3)).shift == (2, 2)


@pytest.mark.parametrize("shift", ["never", "between"])
def test_all_paths_agree(shift):
    """Fused, sample by sample; plain products, for gradients and on tape; compiled, with windows as heads."""
    attn, x = attention(shift=shift), grid(3, 10, 8, 12)
    with torch.inference_mode():
        fused = attn(x)
        compiled = torch.compile(attn, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, fused, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attn(x).detach(), fused, atol=1e-5, rtol=1e-4)
    attn.tape = []
    torch.testing.assert_close(attn(x).detach(), fused, atol=1e-5, rtol=1e-4)
    (weights,) = attn.tape
    assert weights.shape == (3, 6, 3, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 6, 3, 16))


def test_the_mask_that_is_kept_serves_inference_and_training():
    attn, x = attention(), grid(1, 8, 8, 12)
    with torch.inference_mode():
        attn(x)
    attn(x).sum().backward()
    assert attn.positions.table.grad.any()


@torch.no_grad()
def test_set_window_keeps_the_corners_of_the_table():
    attn = attention((4, 4))
    flat = attention((4, 4))
    flat.positions.table.fill_(0.25)
    flat.set_window((7, 7))
    assert flat.window == (7, 7)
    assert flat.positions.table.shape == (169, 3)
    torch.testing.assert_close(flat.positions.table, torch.full((169, 3), 0.25))
    before = attn.positions.table.clone()
    attn.set_window((4, 4))
    assert torch.equal(attn.positions.table, before)


def test_patch_merging():
    """The four tokens of a square stand in the order of the original code, down first; odd sides get zeros."""
    merging = PatchMerging(3, eps=1e-5)
    x = grid(2, 5, 4, 3)
    whole = F.pad(x, (0, 0, 0, 0, 0, 1))
    squares = torch.cat([whole[:, r::2, c::2] for c in (0, 1) for r in (0, 1)], -1)
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(squares)))
    assert merging(x).shape == (2, 3, 2, 6)
