"""Cost against the published tables and against counting by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrail.metrics.cost import cost
from vitrail.models import create_model


# architectures.md section 5 and 8: thousands of millions of multiply-adds at the size given
@pytest.mark.parametrize(
    ("name", "size", "params", "gmacs"),
    [
        ("vit_tiny_patch16_224", 224, 5_717_416, 1.26),
        ("vit_small_patch16_224", 224, 22_050_664, 4.61),
        ("vit_base_patch32_224", 224, 88_224_232, 4.41),
        ("vit_base_patch16_224", 224, 86_567_656, 17.58),
        ("vit_base_patch16_384", 384, 86_859_496, 55.5),
        ("vit_large_patch16_224", 224, 304_326_632, 61.6),
        ("deit_small_distilled_patch16_224", 224, 22_436_432, 4.63),
        ("vit_base_patch16_map_224", 224, 93_653_224, 17.71),
    ],
)
def test_published_figures(name: str, size: int, params: int, gmacs: float) -> None:
    found = cost(lambda: create_model(name), size)
    assert found.params == params
    assert found.gmacs == pytest.approx(gmacs, rel=0.006)
    assert found.gflops == 2 * found.gmacs


def test_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 2 * 3, 5))
    assert cost(model, (4, 6)).macs == 4 * 6 * 12 + 24 * 5


def test_a_built_model_is_left_untouched() -> None:
    model = create_model("test_vit").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = cost(model, (24, 40))
    assert found.img_size == (24, 40)
    assert found == cost(lambda: create_model("test_vit"), (24, 40))
    assert model.training
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())
