"""Deformable attention equals the sum over its points that the paper writes, forwards and backwards."""

import math

import pytest
import torch

from vitrail.nn import deformable
from vitrail.nn.deformable import DeformableAttention, Points, corners, pad, sample, start_points, unpad, whole_matrix

GRIDS = ((3, 5), (2, 2))
B, Q, H, D, P = 2, 4, 2, 3, 2
S = sum(h * w for h, w in GRIDS)


def drawn(seed=0):
    """Return values, places (some outside the maps, some far outside) and weights."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(B, S, H, D, generator=generator, dtype=torch.float64)
    places = 2.2 * torch.rand(B, Q, H, len(GRIDS), P, 2, generator=generator, dtype=torch.float64) - 0.6
    weights = torch.rand(B, Q, H, len(GRIDS), P, generator=generator, dtype=torch.float64)
    return values, places, weights


def explicit(values, places, weights):
    """The sum, point by point and cell by cell: a cell counts by its distance along each side."""
    out = values.new_zeros(B, Q, H, D)
    start = 0
    for level, (rows, columns) in enumerate(GRIDS):
        for b in range(B):
            for q in range(Q):
                for h in range(H):
                    for p in range(P):
                        x = places[b, q, h, level, p, 0] * columns - 0.5
                        y = places[b, q, h, level, p, 1] * rows - 0.5
                        for i in range(rows):
                            for j in range(columns):
                                near = (1 - (x - j).abs()).clamp_min(0) * (1 - (y - i).abs()).clamp_min(0)
                                share = weights[b, q, h, level, p] * near
                                out[b, q, h] = out[b, q, h] + share * values[b, start + i * columns + j, h]
        start += rows * columns
    return out.flatten(2)


def ours(values, places, weights):
    return sample(values, Points(places, weights), GRIDS)


@pytest.mark.parametrize("dense", [0, 10**6])
def test_equals_the_sum_over_points(dense, monkeypatch):
    monkeypatch.setattr(deformable, "DENSE", dense)  # both backward passes
    found, expected = [], []
    for kind, into in ((explicit, expected), (ours, found)):
        parts = [t.float().requires_grad_() for t in drawn()]
        out = kind(*parts)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        into += [out.detach(), *(t.grad for t in parts)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_grid_sample_gives_the_same():
    values, places, weights = (t.float() for t in drawn())
    by_grid = deformable._by_grid_sample(values, Points(places, weights), GRIDS)
    torch.testing.assert_close(by_grid, ours(values, places, weights), atol=1e-5, rtol=1e-4)


def test_the_whole_matrix_gives_the_same():
    values, places, weights = (t.float() for t in drawn())
    matrix = unpad(whole_matrix(*corners(Points(places, weights), GRIDS), GRIDS, values.dtype), GRIDS)
    assert matrix.shape == (B, H, Q, S)
    mixed = (matrix @ values.transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, ours(values, places, weights), atol=1e-5, rtol=1e-4)


def test_a_border_is_put_around_and_taken_off():
    values = drawn()[0].float()
    framed = pad(values, GRIDS)
    assert framed.shape[1] == 5 * 7 + 4 * 4
    assert torch.equal(unpad(framed.permute(0, 2, 3, 1), GRIDS).permute(0, 3, 1, 2), values)
    assert float(framed.abs().sum()) == pytest.approx(float(values.abs().sum()), rel=1e-6)


def attention(**changes):
    torch.manual_seed(0)
    layer = DeformableAttention(12, 3, **{"levels": 2, "points": 2, **changes})
    torch.nn.init.normal_(layer.points.weight, std=0.2)
    return layer


@pytest.mark.parametrize("parts", [2, 4])
def test_a_tape_records_what_counts(parts):
    layer = attention()
    x, memory, reference = torch.randn(B, Q, 12), torch.randn(B, S, 12), 0.2 + 0.5 * torch.rand(B, Q, 1, parts)
    plain = layer(x, memory, reference, GRIDS)
    layer.tape, layer.looked = [], []
    torch.testing.assert_close(layer(x, memory, reference, GRIDS), plain, atol=1e-5, rtol=1e-4)
    (matrix,), (looked,) = layer.tape, layer.looked
    assert matrix.shape == (B, 3, Q, S)
    assert float(matrix.detach().sum(-1).max()) <= 1 + 1e-5
    torch.testing.assert_close(looked.weights.sum((-2, -1)), torch.ones(B, Q, 3))


def test_padding_counts_nothing():
    layer = attention()
    x, memory, reference = torch.randn(B, Q, 12), torch.randn(B, S, 12), torch.rand(B, Q, 1, 2)
    keep = torch.arange(S) % 3 > 0
    keep = keep.expand(B, S)
    other = torch.where(keep[..., None], memory, torch.randn(B, S, 12))
    torch.testing.assert_close(layer(x, memory, reference, GRIDS, keep), layer(x, other, reference, GRIDS, keep))


def test_points_start_in_all_directions():
    layer = DeformableAttention(16, 4, levels=1, points=2)
    start_points(layer)
    with torch.no_grad():
        looked = layer.look(torch.zeros(1, 1, 16), torch.full((1, 1, 1, 2), 0.5), [(10, 10)])
    steps = (looked.places[0, 0, :, 0] - 0.5) * 10  # in cells: (heads, points, 2)
    for head, (x, y) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        for point in range(2):
            expected = torch.tensor([x, y]) * (point + 1.0)
            torch.testing.assert_close(steps[head, point], expected, atol=1e-5, rtol=0)
    assert float(looked.weights[0, 0, 0].sum()) == pytest.approx(1.0)
    assert math.isclose(float(looked.weights.min()), 0.5, abs_tol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads"):
        DeformableAttention(10, 3, levels=1, points=1)
