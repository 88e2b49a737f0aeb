"""A run killed at random instants and resumed is, bit for bit, the run that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "options", [[], ["--processes", "2", "--lives", "4"], ["--processes", "2", "--lives", "4", "--parallel", "fsdp"]]
)
def test_killed_runs_end_bit_for_bit_as_the_whole_one(
    tmp_path: Path, photo_folder: Callable[..., Path], options: list[str]
) -> None:
    data = photo_folder(tmp_path / "data", classes=("across", "down", "both"), each=9)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.survivor", str(data), str(tmp_path / "runs"), *options],
        capture_output=True, text=True, timeout=600, env=environment, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    whole = found["whole"]
    assert found["kills"] >= 2, "hardly any kill struck: the test would prove nothing"
    assert whole["state"]["run"]["step"] == 12
    assert [line["step"] for line in whole["lines"] if line["kind"] == "val"] == [4, 8, 12]
    assert [line["step"] for line in whole["lines"] if line["kind"] == "train"] == [3, 4, 6, 8, 9, 12]
    for name in ("timed", "pointed"):
        assert found[name]["digests"] == whole["digests"], name
        assert found[name]["lines"] == whole["lines"], name
        assert found[name]["state"] == whole["state"], name
