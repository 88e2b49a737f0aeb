"""Parquet by row group: the same images as from memory, in bounded memory, each group unpacked once in a window."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.data.making import encoded, write_parquet
from vitrail.data import parquet as parquet_module
from vitrail.data.order import Windowed
from vitrail.data.rowgroups import Group, GroupCache, GroupStore, require_room
from vitrail.data.sources import read_layout
from vitrail.errors import DataError, UsageError

NAMES = ["ape", "bee"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four files of ten rows in groups of three."""
    for i in range(4):
        labels: list[object] = [j % 2 for j in range(10)]
        write_parquet(tmp_path / f"train-0000{i}-of-00004.parquet", labels, NAMES, first_seed=10 * i)
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "available_bytes", lambda: 0)


def store_of(table: Path, sequential: bool = True) -> GroupStore:
    store = read_layout(table, sequential=sequential).parts["train"].store
    assert isinstance(store, GroupStore)
    return store


def test_all_three_ways_of_reading_are_one(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = read_layout(table).parts["train"].store
    monkeypatch.setattr(parquet_module, "available_bytes", lambda: 0)
    mapped, grouped = (read_layout(table, sequential=s).parts["train"].store for s in (False, True))
    assert [type(s).__name__ for s in (inside, mapped, grouped)] == ["TableStore", "TableStore", "GroupStore"]
    for row in range(40):
        assert inside.blob(row) == mapped.blob(row) == grouped.blob(row) == encoded(row)
        assert inside.name(row) == mapped.name(row) == grouped.name(row)
    rows = np.arange(40)
    groups = [s.shard_of(rows).tolist() for s in (inside, mapped, grouped)]  # type: ignore[attr-defined]
    assert groups[0] == groups[1] == groups[2]
    assert groups[0][:11] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4], "the order must not hang on how much memory there is"
    mapped.holder.cleanup()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("small")
def test_a_window_unpacks_each_group_once(table: Path) -> None:
    store = store_of(table)
    cache = store.cache
    cache.budget = 3 * max(group.size for group in cache.groups)
    order = Windowed(store.shard_of(np.arange(40)), seed=1, window=2)(0)
    assert sorted(order.tolist()) == list(range(40))
    assert all(store.blob(row) == encoded(row) for row in order.tolist())
    assert cache.loads == len(cache.groups) == 16
    assert cache.used <= cache.budget


@pytest.mark.usefixtures("small")
def test_a_window_larger_than_the_cache_is_refused(table: Path) -> None:
    store = store_of(table)
    store.cache.budget = 2 * max(group.size for group in store.cache.groups)
    require_room(store, 2)
    with pytest.raises(UsageError, match="3 row groups"):
        require_room(store, 3)


@pytest.mark.usefixtures("small")
def test_one_group_is_always_kept_and_threads_share_it(table: Path) -> None:
    store = store_of(table)
    store.cache.budget = 0
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(row for row in (0, 1, 2) if store.blob(row) != encoded(row))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.cache.loads == 1
    store.blob(39)
    assert store.cache.loads == 2
    assert len(store.cache._held) == 1


def test_a_group_that_cannot_be_unpacked_may_be_tried_again() -> None:
    tries: list[int] = []

    def load(group: Group) -> object:
        tries.append(group.number)
        if len(tries) == 1:
            raise OSError("the disk hiccups")
        return "images"

    cache = GroupCache([Group("a", 0, 3, 10)], load, budget=100)
    with pytest.raises(OSError, match="hiccups"):
        cache.get(0)
    assert cache.get(0) == "images"


@pytest.mark.usefixtures("small")
def test_a_disk_too_small_to_unpack_to_is_told_before(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DataError, match=r"data\.window"):
        read_layout(table)


def test_patterns_of_parquet(table: Path) -> None:
    layout = read_layout(f"{table}/train-{{00000..00002}}-of-00004.parquet")
    assert (layout.kind, len(layout.parts["train"].labels)) == ("parquet", 30)
