"""Checkpoints: what is written comes back, damage is seen, a full disk is survived."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitrail.errors import VitrailError
from vitrail.training import checkpoint
from vitrail.training.checkpoint import Checkpoints, Saved, Snapshot
from vitrail.training.tensorfile import write_tensors


def snap(step: int) -> Snapshot:
    g = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g)}
    return Snapshot(step, {"model": weights, "optimizer": {"exp_avg.b": torch.zeros(5)}}, {"loss": 0.1 * step})


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2, warn=said.append)


def same(path: Path, there: Snapshot) -> bool:
    """Tell whether the checkpoint in ``path`` is ``there``, to the bit."""
    saved = Saved.open(path)
    return (saved.step, saved.state) == (there.step, there.state) and all(
        torch.equal(t, saved.read(kind, there.tensors[kind])[name])
        for kind in there.tensors
        for name, t in there.tensors[kind].items()
    )


def test_writer_makes_files_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3).bfloat16(),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "none": torch.zeros(0, 4),
    }
    digest = write_tensors(tmp_path / "x.safetensors", tensors, {"made": "here"})
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype
    import hashlib

    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()


def test_round_trip_and_pruning(store: Checkpoints) -> None:
    for step in (2, 4, 11):
        store.save(snap(step))
    store.finish()
    assert store.steps() == [11, 4]
    path = store.latest()
    assert path is not None
    assert same(path, snap(11))


def test_saving_runs_beside_training(store: Checkpoints) -> None:
    gate = threading.Event()
    store.point = lambda name: None if name != "before rename" else _assert(gate.wait(5))
    store.save(snap(1))  # returns although the commit cannot end yet
    assert store.steps() == []
    gate.set()
    store.finish()
    assert store.steps() == [1]


def _assert(condition: bool) -> None:
    assert condition


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda p: _flip(p / "model.safetensors"),
    "flipped state": lambda p: _flip(p / "state.json"),
    "truncated": lambda p: os.truncate(p / "optimizer.safetensors", 40),
    "file lost": lambda p: (p / "model.safetensors").unlink(),
    "manifest lost": lambda p: (p / "manifest.json").unlink(),
    "manifest cut": lambda p: os.truncate(p / "manifest.json", 30),
    "manifest of another kind": lambda p: (p / "manifest.json").write_text("[1]"),
    "newer format": lambda p: (p / "manifest.json").write_text('{"format": 9, "files": {}}'),
    "empty manifest": lambda p: (p / "manifest.json").write_text('{"format": 1, "files": {}}'),
}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_and_the_one_before_is_used(store: Checkpoints, said: list[str], how: str) -> None:
    for step in (1, 2):
        store.save(snap(step))
    store.finish()
    DAMAGE[how](store.folder / "step-2")
    path = store.latest()
    assert path is not None
    assert same(path, snap(1))
    assert len(said) == 1
    assert "step-2 is damaged" in said[0]
    assert (store.folder / "bad-step-2").is_dir()
    store.save(snap(2))  # the replayed step is saved again
    store.finish()
    assert store.steps() == [2, 1]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["wrote model", "wrote state.json", "wrote manifest.json", "before rename"])
def test_a_kill_before_the_rename_leaves_the_old_one(store: Checkpoints, said: list[str], where: str) -> None:
    store.save(snap(1), final=True)

    def kill(name: str) -> None:
        if name == where:
            raise Killed

    store.point = kill
    with pytest.raises(Killed):
        store.save(snap(2), final=True)
    assert (store.folder / "step-2.tmp").is_dir()
    again = Checkpoints(store.folder, warn=said.append)
    assert again.latest() == store.folder / "step-1"
    assert not said
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-1"]


@pytest.mark.parametrize("where", ["after rename", "before prune"])
def test_a_kill_after_the_rename_leaves_the_new_one(tmp_path: Path, said: list[str], where: str) -> None:
    store = Checkpoints(tmp_path, keep=1, warn=said.append)
    store.save(snap(1), final=True)

    def kill(name: str) -> None:
        if name == where:
            raise Killed

    store.point = kill
    with pytest.raises(Killed):
        store.save(snap(2), final=True)
    assert Checkpoints(tmp_path, warn=said.append).latest() == tmp_path / "step-2"


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_warns_then_stops(store: Checkpoints, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(snap(1), final=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        for step in (2, 3):
            store.save(snap(step))
            store.finish()
        assert len(said) == 2
        assert all(words in said[0] for words in ("No space left on device", "MiB free", "1 of 3"))
        assert "the last good one is step-1" in said[1]
        store.save(snap(4))
        with pytest.raises(VitrailError, match="3 times in a row"):
            store.finish()
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-1"]  # untouched, and nothing half-written beside it
    assert checkpoint.verify(store.folder / "step-1") is None


def test_failures_must_be_in_a_row(store: Checkpoints, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(6):
        with monkeypatch.context() as patch:
            if step % 3 != 2:
                patch.setattr(os, "write", full_disk)
            store.save(snap(step))
            store.finish()
    assert store.steps() == [5, 2]
    assert len(said) == 4


def test_the_last_save_must_succeed(store: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(VitrailError, match="mend: free some space"):
        store.save(snap(1), final=True)


def test_no_pickle(store: Checkpoints) -> None:
    store.save(snap(3), final=True)
    names = sorted(p.name for p in (store.folder / "step-3").iterdir())
    assert names == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    manifest = json.loads((store.folder / "step-3" / "manifest.json").read_text())
    assert set(manifest["files"]) == set(names) - {"manifest.json"}
