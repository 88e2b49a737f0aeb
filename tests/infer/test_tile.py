"""Tiles: what covers a picture is the picture; what is cut is blended without a seam; memory bounds their size."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.contract.every import randomise
from vitrail import models
from vitrail.errors import UsageError
from vitrail.infer.tile import Tiling, pixel_bytes, restore_tiled, seam_error, tiling_for


def noise(height, width, channels=3, dtype=np.uint8):
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(0).integers(0, top, (height, width, channels)).astype(dtype)


def nearest(scale):
    return lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


@pytest.mark.parametrize("length", [1, 7, 16, 17, 24, 31, 40, 63, 64, 65, 100, 333])
@pytest.mark.parametrize(("side", "overlap"), [(16, 8), (24, 8), (32, 4)])
def test_tiles_cover_a_side_and_their_weights_sum_to_one(length, side, overlap):
    tiling = Tiling(side, overlap, 4, 2)
    cuts = tiling.cuts(length)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == length
    assert all(start % 4 == 0 for start, _ in cuts)
    assert all(stop - start <= side for start, stop in cuts)
    assert all(one[1] - other[0] >= min(overlap, length) for one, other in pairwise(cuts))
    total = torch.zeros(2 * length)
    for (start, stop), weight in zip(cuts, tiling.weights(length), strict=True):
        assert bool((weight >= 0).all())
        total[2 * start : 2 * stop] += weight
    torch.testing.assert_close(total, torch.ones(2 * length))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(5, 9), (40, 61), (16, 100)])
def test_what_a_network_does_to_each_pixel_alone_shows_no_tiles(size, scale, dtype):
    picture = noise(*size, dtype=dtype)
    made = restore_tiled(nearest(scale), picture, Tiling(16, 8, 4, scale), dtype=dtype)
    assert made.dtype == dtype
    assert np.array_equal(made, picture.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize("name", ["test_swinir", "test_swinir_x3", "test_swinir_denoise"])
def test_one_tile_is_the_whole_picture(name):
    model = randomise(models.create_model(name)).eval()
    with torch.inference_mode():
        assert seam_error(model, noise(21, 30), tiling_for(model.config, 64)) == 0
        whole = model(torch.rand(1, 3, 9, 9))
    assert whole.isfinite().all()


def test_windows_of_tiles_are_those_of_the_picture():
    """Two blocks without shifts see at most 15 pixels past a tile's edge; an overlap of 44 uses nothing so near to it.

    Were windows cut elsewhere than in the whole picture, no overlap would help.
    """
    config = dataclasses.replace(models.config_of("test_swinir"), depths=(1, 1))
    model = randomise(models.build(config)).eval()
    picture = noise(50, 150)
    with torch.inference_mode():
        assert seam_error(model, picture, Tiling(88, 44, 4, 2)) < 1e-5
        assert seam_error(model, picture, Tiling(32, 4, 4, 2)) > 1e-3


def test_the_side_of_a_tile_follows_the_free_memory():
    config = models.config_of("swinir_light_x2")
    each = pixel_bytes(config)
    assert tiling_for(config, free=10**12).side == 512
    assert tiling_for(config, free=0).side == 64
    side = tiling_for(config, free=2 * each * 200**2).side
    assert side == 200
    assert side**2 * each <= each * 200**2
    wide = models.config_of("swinir_real_l_x4")
    assert pixel_bytes(wide) > pixel_bytes(config)
    assert tiling_for(models.config_of("swinir_color_jpeg"), free=10**12).side % 7 == 0


def test_tiles_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="at least two windows"):
        tiling_for(models.config_of("swinir_light_x2"), 15)
    with pytest.raises(UsageError, match="whole windows"):
        Tiling(30, 8, 8, 2)
    with pytest.raises(UsageError, match="at most half"):
        Tiling(32, 24, 8, 2)
    with pytest.raises(UsageError, match="uint8 or uint16"):
        restore_tiled(nearest(1), np.zeros((4, 4, 3)), Tiling(16, 8, 8, 1))
