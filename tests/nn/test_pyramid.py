"""The simple pyramid: strides, patches of other sides, and what its layers pass on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrail.nn.pyramid import FeaturePyramid, SimplePyramid
from vitrail.nn.tokens import Features


@pytest.mark.parametrize(("patch", "grid"), [(8, (8, 6)), (16, (4, 3)), (32, (3, 5)), (14, (16, 16))])
def test_levels_have_their_strides(patch, grid):
    maps = SimplePyramid(16, patch, out_dim=8)(torch.randn(2, 16, *grid))
    assert list(maps) == [4, 8, 16, 32]
    for stride, found in maps.items():
        assert found.shape[:2] == (2, 8)
        for side, cells in zip(found.shape[2:], grid, strict=True):
            assert abs(side - cells * patch / stride) < 1.01


def test_every_layer_learns():
    pyramid = SimplePyramid(16, 16, out_dim=8)
    sum(found.square().sum() for found in pyramid(torch.randn(1, 16, 4, 4)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pyramid.parameters())


def test_each_cell_sees_its_own_place():
    """A change in one corner of the map changes that corner of every level, and not the opposite one."""
    torch.manual_seed(0)
    pyramid = SimplePyramid(8, 16, out_dim=8).eval()
    x = torch.randn(1, 8, 16, 16)
    changed = x.clone()
    changed[..., 0, 0] += 1
    for found, other in zip(pyramid(x).values(), pyramid(changed).values(), strict=True):
        moved = (found - other).abs().sum(1)[0] > 1e-6
        assert moved[0, 0]
        assert not moved[-1, -1]


class _Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.feature_channels = {4: 3, 8: 5}

    def features(self, images):
        maps = {s: torch.zeros(1, c, images.shape[2] // s, images.shape[3] // s) for s, c in ((4, 3), (8, 5))}
        return Features(None, (1, 1), maps)


def test_a_pyramid_backbone_keeps_its_own_maps():
    found = FeaturePyramid(_Backbone())
    assert found.pyramid is None
    assert [tuple(m.shape) for m in found(torch.zeros(1, 3, 16, 16))] == [(1, 3, 4, 4), (1, 5, 2, 2)]
    with pytest.raises(ValueError, match=r"out_indices .* to 1"):
        FeaturePyramid(_Backbone(), (2,))


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ((1, 1), r"each once and in increasing order, got \(1, 1\)"),
        ((1, -1), r"each once and in increasing order, got \(1, -1\)"),
        ((1, 0), "in increasing order"),
        (2, "list of numbers .* such as .* got 2"),
        ("01", "got '01'"),
        ((1.5,), "got 1.5"),
        (("1",), "got '1'"),
        ((True,), "got True"),
        ((-3,), "from -2 to -1, at least one, got -3"),
        ((), "got none"),
    ],
)
def test_indices_that_name_no_maps(indices, words):
    with pytest.raises(ValueError, match=words):
        FeaturePyramid(_Backbone(), indices)


@pytest.mark.parametrize(("indices", "strides"), [((-1,), [8]), ([0, -1], [4, 8]), (range(1), [4])])
def test_what_is_given_is_what_the_info_says(indices, strides):
    found = FeaturePyramid(_Backbone(), indices)
    assert found.feature_info.reduction() == strides
    assert [m.shape[1] for m in found(torch.zeros(1, 3, 16, 16))] == found.feature_info.channels()
