"""Relative position bias: which number each pair of cells gets, in both kinds, and what resizing keeps."""

from __future__ import annotations

import pytest
import torch

from vitrail.nn.relative import (
    LogRelativePositionBias,
    RelativePositionBias,
    relative_index,
    resize_bias_table,
)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4)])
def test_each_offset_has_its_own_row(grid):
    h, w = grid
    index = relative_index(grid, torch.device("cpu")).view(h * w, h * w)
    for q in range(h * w):
        for k in range(h * w):
            dy, dx = q // w - k // w, q % w - k % w
            assert index[q, k] == (dy + h - 1) * (2 * w - 1) + dx + w - 1


def test_bias_is_the_table_spread_over_pairs():
    bias = RelativePositionBias(3, (2, 3))
    found = bias()
    assert found.shape == (1, 3, 6, 6)
    for head in range(3):
        assert torch.equal(found[0, head].flatten(), bias.table[relative_index((2, 3), torch.device("cpu")), head])


def test_every_offset_learns():
    bias = RelativePositionBias(2, (3, 2))
    bias().square().sum().backward()
    assert (bias.table.grad != 0).all()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_a_resized_table_keeps_its_middle_and_its_symmetry(mode):
    table = torch.randn(7 * 5, 2)
    even = (table + table.flip(0)) / 2  # the same for an offset and its opposite
    bigger = resize_bias_table(even, (4, 3), (7, 6), mode)
    assert bigger.shape == (13 * 11, 2)
    torch.testing.assert_close(bigger, bigger.flip(0))
    torch.testing.assert_close(bigger[13 * 11 // 2], even[7 * 5 // 2])
    assert resize_bias_table(table, (4, 3), (4, 3)) is table


def test_another_grid_at_run_time():
    bias = RelativePositionBias(2, (4, 4), resize="bilinear")
    assert bias((2, 7)).shape == (1, 2, 14, 14)


def test_logs_give_every_grid_a_bias_of_the_offset_alone():
    bias = LogRelativePositionBias(2, (4, 4), hidden_dim=8)
    small, large = bias((3, 3))[0].view(2, 9, 9), bias((5, 4))[0].view(2, 20, 20)
    # from cell (0, 0) to its right neighbour, in both grids
    torch.testing.assert_close(small[:, 0, 1], large[:, 0, 1])
    torch.testing.assert_close(small[:, 4, 0], large[:, 5, 0])


def test_offsets_made_in_inference_serve_training():
    with torch.inference_mode():
        RelativePositionBias(1, (5, 3))()
    RelativePositionBias(1, (5, 3))().sum().backward()
