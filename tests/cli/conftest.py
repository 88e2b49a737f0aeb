"""Ways to run the command in this process, and things to run it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one line on stdout."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"expected one line on stdout, got {len(lines)}: {self.out!r}"
        return json.loads(lines[0])


@pytest.fixture
def vitrail(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Return a function that runs ``vitrail ARGUMENTS`` as the entry point does."""
    from vitrail.cli.main import main

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with random weights and the classes of ``photos``."""
    import torch

    from vitrail.classes import ClassMap
    from vitrail.models import create_model
    from vitrail.weights import Card, save_folder

    torch.manual_seed(0)
    model = create_model("test_vit", num_classes=2)
    card = Card(name="test_vit", input_size=(32, 32), num_classes=2)
    folder: Path = save_folder(
        tmp_path_factory.mktemp("models") / "small", model, card=card, classes=ClassMap.of(["across", "down"])
    )
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Return the folder of a run that really trained for two epochs on ``photos``."""
    from vitrail.cli.main import main

    out = tmp_path_factory.mktemp("runs")
    assert main(tiny("train", photos, "--out", out, "--name", "tiny")) == 0
    return out / "classify" / "tiny"


def tiny(*words: object) -> list[str]:
    """Return a train command line that ends in a second or two."""
    settings = ["--model", "test_vit", "--epochs", "2", "--batch", "8", "--device", "cpu"]
    return [*(str(word) for word in words), *settings]
