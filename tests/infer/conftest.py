"""A tiny random classifier saved as a Vitrail folder, and a predictor of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.infer import Predictor, load
from vitrail.models import create_model
from vitrail.weights import Card, save_folder

CLASSES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Vitrail folder of a random two-layer ViT with five classes, made for 32 x 32."""
    generator = torch.Generator().manual_seed(0)
    model = create_model("test_vit", num_classes=len(CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    card = Card(name="test_vit", input_size=(32, 32), crop_pct=0.8, licence="apache-2.0")
    return save_folder(tmp_path_factory.mktemp("weights") / "best", model, card=card, classes=ClassMap.of(CLASSES))


@pytest.fixture
def predictor(folder: Path) -> Predictor:
    """Return a predictor on the CPU that runs two images at a time."""
    return load(folder, device="cpu", batch_size=2)
