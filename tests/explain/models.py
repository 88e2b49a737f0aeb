"""Tiny ViTs of every pooling, with weights that are nowhere zero: fresh heads and class tokens hide faults."""

from __future__ import annotations

import torch
from torch import nn

from vitrail.models import create_model

POOLINGS = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "gap": {"global_pool": "gap", "class_token": False},
    "map": {"global_pool": "map", "class_token": False},
}


def randomise(model: nn.Module, seed: int = 0, scale: float = 0.25) -> nn.Module:
    """Fill every parameter with seeded noise and return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, scale, generator=generator)
    return model.eval()


def tiny(pooling: str = "token", **overrides) -> nn.Module:
    """Return a random two-layer ViT, patch 8, two heads, made for 32 x 32."""
    return randomise(create_model("test_vit", **POOLINGS[pooling], **overrides))


def distilled() -> nn.Module:
    """Return a random two-layer distilled DeiT."""
    return randomise(create_model("test_deit_distilled"))


def pictures(height: int = 32, width: int = 32, count: int = 2, seed: int = 1) -> torch.Tensor:
    """Return (count, 3, height, width) noise, as normalised images are."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
