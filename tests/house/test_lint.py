"""Style and types hold in every commit: what `make lint` runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .source import REPOSITORY


@pytest.mark.parametrize("words", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_lint(words):
    done = subprocess.run([sys.executable, "-m", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
