"""Decoders whose steps change places give the numbers of the steps in their written order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vitrail.nn.dense import FuseLevels, MLPDecoder, resize_map

GRIDS = [[(16, 24), (8, 12), (4, 6), (2, 3)], [(17, 23), (9, 12), (5, 6), (3, 3)], [(5, 3), (5, 3), (1, 1)]]


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_levels_are_fused_as_if_laid_side_by_side(grids, training):
    torch.manual_seed(0)
    fuse = FuseLevels(len(grids), 6).train(training).double()
    maps = [torch.randn(2, 6, *grid, dtype=torch.double, requires_grad=True) for grid in grids]
    found = fuse(maps)
    whole = torch.cat([resize_map(x, grids[0]) for x in maps], dim=1)
    expected = F.relu(fuse.norm(F.conv2d(whole, fuse.conv.weight, padding=1)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), [fuse.conv.weight, *maps])
    theirs = torch.autograd.grad((expected * weights).sum(), [fuse.conv.weight, *maps])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_segformers_decoder_is_its_three_steps(grids):
    torch.manual_seed(0)
    widths = [3, 5, 7, 4][: len(grids)]
    decoder = MLPDecoder(widths, 6).eval()
    maps = [torch.randn(2, width, *grid) for width, grid in zip(widths, grids, strict=True)]
    steps = [
        resize_map(project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), grids[0])
        for project, x in zip(decoder.projections, maps, strict=True)
    ]
    expected = F.relu(decoder.fuse.norm(decoder.fuse.conv(torch.cat(steps[::-1], dim=1))))
    torch.testing.assert_close(decoder(maps), expected, atol=1e-5, rtol=1e-4)
