"""metrics.jsonl: whole lines, cut at a checkpoint, patient with a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from vitrail.training.log import MetricsLog, read_metrics


def test_lines_after_the_checkpoint_and_half_lines_are_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": 0.1 * step, "norm": float("inf")})
    log.close()
    with open(log.path, "a") as file:
        file.write('{"kind": "train", "st')
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2, 3]
    again = MetricsLog(tmp_path, from_step=2)
    again.write("train", 3, {"loss": 9.0})
    again.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.1), (2, 0.2), (3, 9.0)]
    assert lines[0]["norm"] == "inf"


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    log, write, calls = MetricsLog(tmp_path, warn=said.append), os.write, [0]

    def flaky(descriptor: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] == 1:
            return write(descriptor, data[:5])
        if calls[0] < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", flaky)
        for step in range(1, 5):
            log.write("train", step, {"loss": 1.0})
    log.close()
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2, 3, 4]
    assert len(said) == 1
    assert "training goes on" in said[0]
