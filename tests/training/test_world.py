"""The words of several processes, as far as one process can tell; the rest is in test_together.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from vitrail.errors import UsageError
from vitrail.training.folder import make_folder, started_before
from vitrail.training.loop import step_seed
from vitrail.training.sharding import BYTES, SHARE, choose
from vitrail.training.slices import read_slices, require_shape
from vitrail.training.world import ALONE, SHARED_STORE, World, open_world, restart_advice


def test_alone_every_word_is_ones_own() -> None:
    assert ALONE.alone
    assert ALONE.first
    assert ALONE.sum([1, True]) == [1, 1]
    assert ALONE.collect({"a": 1}) == [{"a": 1}]
    assert ALONE.lead(lambda: 7) == 7
    tensor = torch.ones(3)
    ALONE.add(tensor)
    ALONE.average([tensor])
    assert torch.equal(tensor, torch.ones(3))


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with open_world() as world:
        assert world == ALONE


@pytest.mark.parametrize(("batch", "near"), [(7, 8), (1, 4), (10, 8), (11, 12)])
def test_a_batch_that_cannot_be_shared_names_the_nearest(batch: int, near: int) -> None:
    with pytest.raises(UsageError, match=rf"got {batch}; mend: --batch {near}"):
        World(size=4).require_divisor(batch)
    World(size=4).require_divisor(near)


def test_the_model_is_cut_where_copies_would_take_too_much() -> None:
    one_node, two_nodes = World(size=8, local_size=8), World(size=16, local_size=8)
    few = int(SHARE * 80e9 / BYTES) - 1
    assert choose(None, one_node, few, int(80e9)) == "ddp"
    assert choose(None, one_node, few * 2, int(80e9)) == "fsdp"
    assert choose(None, two_nodes, few * 2, int(80e9)) == "hsdp"
    assert choose("fsdp", one_node, few, int(80e9)) == "fsdp"


def test_pieces_draw_by_their_number_among_all_and_the_first_as_ever() -> None:
    seeds = {step_seed(seed, step, piece) for seed in range(4) for step in range(20) for piece in range(8)}
    assert len(seeds) == 4 * 20 * 8
    assert step_seed(3, 5, 0) == step_seed(3, 5)


def test_restarts_that_would_fail_are_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED_STORE, raising=False)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    advice = restart_advice(World(size=2))
    assert advice is not None
    assert SHARED_STORE in advice
    assert restart_advice(ALONE) is None
    monkeypatch.setenv(SHARED_STORE, "1")
    assert restart_advice(World(size=2)) is None


def test_only_a_restart_of_the_same_launch_goes_on(tmp_path: Path) -> None:
    first, again = World(launch="a"), World(launch="a", restarts=1)
    assert started_before(first, str(tmp_path)) is None
    made = make_folder(str(tmp_path), "classify", None, "test_vit", first)
    assert started_before(again, str(tmp_path)) == made
    assert started_before(World(launch="b", restarts=1), str(tmp_path)) is None
    assert started_before(first, str(tmp_path)) is None  # a new launch of the same name
    assert started_before(again, str(tmp_path)) is None


def test_slices_of_another_shape_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vitrail.errors import VitrailError

    save_file({"w": torch.arange(6.0).view(3, 2)}, tmp_path / "shard-00001-model-00001-of-00001.safetensors")
    assert torch.equal(read_slices(tmp_path, {"w": torch.empty(3, 2)})["w"], torch.arange(6.0).view(3, 2))
    with pytest.raises(VitrailError, match=re.escape("expected w of shape (2, 2) in the checkpoint, got shape (3, 2)")):
        read_slices(tmp_path, {"w": torch.empty(2, 2)})
    with pytest.raises(VitrailError, match="got nothing"):
        require_shape("b", None, torch.empty(1))
