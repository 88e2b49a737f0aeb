"""A process killed at any moment leaves a whole folder, the old one or the new one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from vitrail.weights import atomic

WRITER = """
import runpy, sys
from pathlib import Path
new_folder = runpy.run_path(sys.argv[1])["new_folder"]
path, n = Path(sys.argv[2]), 0
while True:
    with new_folder(path) as folder:
        for name in "abc":
            (folder / name).write_text(str(n) * 1000)
    n += 1
    print(n, flush=True)
"""


def test_killed_at_random_moments(tmp_path):
    path = tmp_path / "f"
    rng = random.Random(0)
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-I", "-c", WRITER, atomic.__file__, str(path)], stdout=subprocess.PIPE, text=True
        )
        writer.stdout.readline()
        time.sleep(rng.random() * 0.02)
        writer.kill()
        writer.communicate()
        texts = {(path / name).read_text() for name in "abc"}
        assert len(texts) == 1
        assert len(texts.pop()) >= 1000


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with atomic.new_folder(tmp_path / "f") as folder:
            (folder / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    gone = subprocess.Popen([sys.executable, "-I", "-c", ""])
    gone.wait()
    (tmp_path / f".f.{gone.pid}-abc").mkdir()
    (tmp_path / f".f.{os.getpid()}-abc").mkdir()
    (tmp_path / ".f.txt").mkdir()
    with atomic.new_folder(tmp_path / "f"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".f.{os.getpid()}-abc", ".f.txt", "f"]


def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path):
    """Where folders cannot be swapped, a kill between two renames leaves the old one aside."""
    (tmp_path / ".f.123-abc.old").mkdir()
    (tmp_path / ".f.123-abc.old" / "a").write_text("old")
    atomic.recover(tmp_path / "f")
    assert (tmp_path / "f" / "a").read_text() == "old"


def test_permissions_are_those_of_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    with atomic.new_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode
