"""Several processes train what one process trains; one that dies, stops or goes astray takes the others with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, photo_folder: Callable[..., Path]) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("together")
    data = photo_folder(work / "data", classes=("across", "down", "both"), each=9)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.together", str(data), str(work / "runs")],
        capture_output=True, text=True, timeout=400, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    scenes: dict[str, Any] = json.loads(done.stdout)
    return scenes


def test_two_processes_end_with_the_bits_of_one_that_works_in_two_pieces(found: dict[str, Any]) -> None:
    assert found["ways"]["two"] == 0.0


def test_slices_end_where_whole_models_do(found: dict[str, Any]) -> None:
    assert found["ways"]["sliced"] < 2e-5
    assert found["ways"]["nodes"] < 2e-5
    assert found["ways"]["half"] == pytest.approx(found["ways"]["half_one"], abs=2e-3)
    assert found["ways"]["files"] == [f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]


def test_running_statistics_are_those_of_all_and_a_replay_proves_it(found: dict[str, Any]) -> None:
    for said in found["statistics"]["said"]:
        assert "are equal bit for bit" in said


def test_any_number_of_processes_goes_on_from_any_other(found: dict[str, Any]) -> None:
    whole = found["other_sizes"]["whole"]
    assert len(whole) == 6
    for name, losses in found["other_sizes"]["found"].items():
        assert losses == pytest.approx(whole, abs=2e-5), name


def test_a_signal_to_one_stops_all_and_nothing_is_lost(found: dict[str, Any]) -> None:
    assert found["told_to_stop"] == {"codes": [143, 143], "marked": True, "difference": 0.0}


def test_a_dead_process_is_missed_and_the_run_goes_on_later(found: dict[str, Any]) -> None:
    scene = found["lost"]
    assert scene["codes"] == [[1, -9]] * 2
    for error in scene["errors"]:
        assert "PeerLost" in error
        assert "the last good checkpoint is" in error
        assert "vitrail resume" in error
    assert scene["difference"] == 0.0


def test_one_loss_that_is_not_finite_is_skipped_by_all(found: dict[str, Any]) -> None:
    assert found["poisoned"] == {"steps": [3], "images": 8, "finite": True}


def test_a_full_disk_of_one_process_stops_all_at_the_last_good_checkpoint(found: dict[str, Any]) -> None:
    scene = found["full"]
    assert scene["codes"] == [1, 1]
    for error in scene["errors"]:
        assert "could not be written" in error
        assert "the last good one is step-2" in error
    assert scene["folders"] == ["step-2"]
    assert scene["same"] == 0.0


def test_torchrun_may_start_the_same_command_again(found: dict[str, Any]) -> None:
    scene = found["started_anew"]
    assert scene["difference"] == 0.0
    assert "exists" in scene["again"][0]  # a new launch is a new run


def test_what_cannot_be_cut_is_refused_with_the_fix(found: dict[str, Any]) -> None:
    scene = found["refused"]
    assert "--batch 8" in scene["batch"]
    assert "optim.name=adamw" in scene["muon"]
    assert "train.parallel=ddp" in scene["norms"]
    assert "train.parallel=fsdp" in scene["nodes"]
