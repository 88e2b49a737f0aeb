"""Swin: sizes, windows and pyramids; how it compares is in tests/parity/test_swin.py."""

from __future__ import annotations

import pytest
import torch

from vitrail import create_model
from vitrail.errors import UsageError
from vitrail.nn import WindowAttention


def windows(model):
    return [m for m in model.modules() if isinstance(m, WindowAttention)]


def test_every_other_block_is_shifted():
    shifts = [m.shift for m in windows(create_model("test_swin"))]
    assert shifts == ["never", "between"] * 3
    shifts = [m.shift for m in windows(create_model("test_swin", numerics={"always_shift": True}))]
    assert shifts == ["never", "always"] * 3


def test_at_its_own_size_the_last_map_is_one_window():
    last = windows(create_model("swin_nano_patch2_window4_32"))[-1]
    assert last.windows((4, 4)).shift == (0, 0)
    assert last.windows((8, 8)).shift == (2, 2)


@pytest.mark.parametrize("name", ["swin_nano_patch2_window4_32", "swin_nano_patch4_window4_64"])
@torch.inference_mode()
def test_feature_channels_are_those_of_the_maps(name):
    model = create_model(name).eval()
    maps = model.features(torch.randn(1, 3, *model.config.img_size)).maps
    assert {stride: found.shape[1] for stride, found in maps.items()} == model.feature_channels


@torch.inference_mode()
def test_stage_norms():
    model = create_model("test_swin", num_classes=0, stage_norms=True).eval()
    for found in model.features(torch.randn(2, 3, 32, 40)).maps.values():
        torch.testing.assert_close(found.mean(1), torch.zeros_like(found[:, 0]), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_another_image_size_changes_no_parameter():
    """Windows do not grow with the image, so there is nothing to resize."""
    small, large = (create_model("test_swin", img_size=size).eval() for size in (32, (64, 48)))
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 64, 48)
    assert torch.equal(small(x), large(x))


def test_settings_that_cannot_be():
    with pytest.raises(UsageError, match="num_heads with 3 values"):
        create_model("test_swin", num_heads=(1, 2))
    with pytest.raises(UsageError, match="window_size of at least 1"):
        create_model("test_swin", window_size=0)
    with pytest.raises(ValueError, match="at least 2x2 pixels"):
        create_model("test_swin")(torch.randn(1, 3, 1, 8))
