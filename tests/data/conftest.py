"""Small data sets in class folders, made where the test runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.making import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six images, no splits."""
    root = tmp_path / "animals"
    for i in range(12):
        write_image(root / ("cat" if i < 6 else "dog") / f"{i:02d}.png", i)
    return root


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """train (8), val (4), test (4) of two classes."""
    root = tmp_path / "split"
    seed = 0
    for split, n in (("train", 4), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(n):
                write_image(root / split / name / f"{i}.png", seed)
                seed += 1
    return root
