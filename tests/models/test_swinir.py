"""SwinIR: what its sizes say, what its config refuses, and how it is padded."""

import numpy as np
import pytest
import torch

from vitrail import models
from vitrail.errors import UsageError
from vitrail.nn.upsample import reflect_to_multiple


def test_padding_is_numpys_reflection_however_small_the_picture():
    for size in [(16, 16), (13, 15), (9, 20), (5, 3), (2, 1), (1, 1)]:
        x = torch.rand(2, 3, *size)
        padded = reflect_to_multiple(x, 8)
        edges = [(0, 0), (0, 0), *((0, -n % 8) for n in size)]
        assert np.array_equal(padded.numpy(), np.pad(x.numpy(), edges, mode="reflect")), size


def test_whole_windows_are_not_padded():
    x = torch.rand(1, 3, 16, 24)
    assert reflect_to_multiple(x, 8) is x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"upscale": 1}, "upscale 1 with head 'residual'"),
        ({"head": "residual"}, "upscale 1 with head 'residual'"),
        ({"head": "bicubic"}, "head"),
        ({"num_heads": (3, 3)}, "num_heads that divide"),
        ({"depths": (2,)}, "num_heads with 1 values"),
        ({"embed_dim": 6, "num_heads": (2, 2), "connection": "3conv"}, "that 4 divides"),
        ({"img_range": 0.0}, "img_range above 0"),
        ({"head": "nearest+conv", "upscale": 3}, "a scale of 2, 4 or 8"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        models.create_model("test_swinir", **changes)


def test_windows_are_shifted_in_every_other_block_unless_training_saw_one_window():
    shifts = lambda model: [b.attn.shift for stage in model.stages for b in stage.blocks]  # noqa: E731
    assert shifts(models.create_model("test_swinir")) == ["never", "always"] * 2
    assert shifts(models.create_model("test_swinir", img_size=4)) == ["never"] * 4


def test_colour_means_are_taken_off_and_grey_ones_are_not():
    colour = models.create_model("test_swinir_denoise")
    assert colour.mean.flatten().tolist() == pytest.approx([0.4488, 0.4371, 0.4040])
    assert not models.create_model("test_swinir_jpeg").mean.any()
    assert "mean" not in colour.state_dict()
