"""Nearest colours: by squared distance, in raster order, however many pixels at a time."""

import pytest
import torch

from vitrail.nn import palette
from vitrail.nn.palette import decode, nearest, spread


def test_the_nearest_colour_in_raster_order():
    colours = spread(30, 3)
    images = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = nearest(images, colours)
    pixels = images.permute(0, 2, 3, 1).reshape(3, 35, 1, 3).double()
    assert torch.equal(found, (pixels - colours.double()).square().sum(-1).argmin(-1))


def test_in_pieces_too(monkeypatch):
    colours, images = spread(16, 2), torch.randn(9, 2, 4, 4)
    whole = nearest(images, colours)
    monkeypatch.setattr(palette, "PIECE", 16 * 16 * 2)
    assert torch.equal(nearest(images, colours), whole)


def test_autocast_changes_nothing():
    colours, images = spread(512, 3), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = nearest(images, colours)
    assert torch.equal(rough, nearest(images, colours))


def test_there_and_back():
    colours = spread(40, 3)
    tokens = torch.arange(40).view(1, 40)
    assert torch.equal(nearest(decode(tokens, colours, (5, 8)), colours), tokens)


def test_spread_is_even():
    points = spread(512, 3)
    assert points.shape == (512, 3)
    assert len(points.unique(dim=0)) == 512
    assert float(points.abs().max()) <= 1
    assert float(points.mean(0).abs().max()) < 0.05


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\)"):
        nearest(torch.zeros(1, 1, 4, 4), spread(8, 3))
    with pytest.raises(ValueError, match="4x4 picture"):
        decode(torch.zeros(1, 15, dtype=torch.int64), spread(8, 3), (4, 4))
