"""Local attribution: what a network that looks at one pixel, or at a neighbour, is said to have looked at."""

import pytest
import torch

from vitrail.explain.local import contrast, gini, local_attribution, patch_at, sharpest


def texture(size=40):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))


def nearest(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_network_that_copies_pixels_was_made_of_the_patch_alone():
    found = local_attribution(nearest, texture(), (16, 16, 24, 24), scale=2, steps=4)
    inside = torch.from_numpy(found.heat).clone()
    assert inside[16:24, 16:24].sum() > 0
    inside[16:24, 16:24] = 0
    assert not inside.any()
    assert found.diffusion < 10
    assert found.half < 6


def test_a_network_that_looks_aside_is_seen_to():
    aside = lambda x: nearest(torch.roll(x, 10, 3))  # noqa: E731
    found = local_attribution(aside, texture(), (16, 16, 24, 24), scale=2, steps=4)
    heat = torch.from_numpy(found.heat)
    assert float(heat[16:24, 6:14].sum() / heat.sum()) == pytest.approx(1)
    assert found.half > 6


def test_contributions_sum_to_what_they_explain():
    """Completeness of gradients along a path, where the function is smooth enough for its steps."""
    smooth = lambda x: x.square()  # noqa: E731
    x = texture(24).double()
    run = local_attribution(smooth, x, (4, 4, 20, 20), scale=1, steps=200)
    assert run.heat.max() == 1
    assert run.restored.shape == (24, 24, 3)


def test_gini_is_zero_of_equals_and_near_one_of_a_single_one():
    assert gini(torch.ones(50)) == pytest.approx(0)
    one = torch.zeros(50)
    one[3] = 1
    assert gini(one) == pytest.approx(0.98)


def test_patches_are_cut_within_the_picture():
    picture = texture()
    for at in ((0, 0), (39, 39), (20, 5)):
        crop, box = patch_at(picture, at, 8, 10)
        assert 0 <= box[0] < box[2] <= crop.shape[2]
        assert box[2] - box[0] == box[3] - box[1] == 8
    with pytest.raises(ValueError, match="a patch within"):
        local_attribution(nearest, picture, (36, 0, 44, 8), scale=2)


def test_the_sharpest_patch_is_found():
    picture = torch.zeros(3, 40, 40)
    picture[:, 10:14, 30:34] = torch.rand(3, 4, 4)
    x, y = sharpest(picture, 8)
    assert abs(x - 32) <= 6
    assert abs(y - 12) <= 6
    assert float(contrast(picture)) > 0


def test_it_is_drawn(tmp_path):
    found = local_attribution(nearest, texture(), (16, 16, 24, 24), scale=2, steps=2)
    drawn = found.plot(str(tmp_path / "x.png"))
    assert drawn.size[0] > 900
