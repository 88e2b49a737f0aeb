"""The loader: batches are arithmetic, bad files are masked and counted, threads always end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.making import picture, write_image
from vitrail.classes import ClassMap
from vitrail.data import samples as samples_module
from vitrail.data.augment import Augment, Normalize, RandomErasing
from vitrail.data.cache import ImageCache, cache_budget
from vitrail.data.decode import BrokenImage
from vitrail.data.imageset import ArrayStore, ImageSet
from vitrail.data.loader import Batch, Loader
from vitrail.data.mixing import Mix
from vitrail.data.order import Balanced
from vitrail.data.randaugment import RandAugment
from vitrail.data.sources import open_dataset
from vitrail.data.transforms import Crop, EvalCrop, PadCrop, TrainCrop
from vitrail.data.workers import Workers, require_workers
from vitrail.errors import DataError, UsageError

PLAIN = Normalize((0.5,) * 3, (0.25,) * 3)
N = 23


def array_set(size: tuple[int, int] = (12, 12), n: int = N) -> ImageSet:
    pixels = np.stack([picture(i, size) for i in range(n)])
    return ImageSet(ArrayStore("made", pixels), np.arange(n), np.arange(n) % 3, ClassMap.of(["a", "b", "c"]))


@pytest.fixture
def file_set(tmp_path: Path) -> ImageSet:
    """Files of several sizes, some larger than what goes through matrices."""
    sizes = [(12, 10), (90, 70), (30, 99), (12, 10)]
    for i in range(N):
        write_image(tmp_path / "files" / "abc"[i % 3] / f"{i:02d}.png", i, size=sizes[i % 4])
    return open_dataset(tmp_path / "files", val_fraction=0.1).train


def make(data: ImageSet, crop: Crop | None = None, **options: object) -> Loader:
    settings = {"batch_size": 5, "crop": crop or PadCrop((12, 12), 2), "normalize": PLAIN, "workers": 0, **options}
    return Loader(data, **settings)  # type: ignore[arg-type]


FULL = {
    "augment": Augment(vflip=0.2, randaugment=RandAugment(), erasing=RandomErasing()),
    "mix": Mix(3, per_sample=True),
    "shuffle": True,
    "seed": 7,
}


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.indices, y.indices)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.keep, y.keep)
        and (x.targets is y.targets is None or torch.equal(x.targets, y.targets))  # type: ignore[arg-type]
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("crop", [PadCrop((12, 12), 2), TrainCrop((12, 12)), EvalCrop((12, 12))])
@pytest.mark.parametrize("kind", ["array", "files"])
def test_batches_do_not_depend_on_workers_cache_or_start(kind: str, crop: Crop, file_set: ImageSet) -> None:
    data = array_set() if kind == "array" else file_set
    reference = list(make(data, crop, cache="none", **FULL).epoch(3))
    for workers in (0, 1, 2, 3):
        loader = make(data, crop, workers=workers, cache="all", **FULL)
        assert same(list(loader.epoch(3)), reference)  # filling the cache
        assert same(list(loader.epoch(3)), reference)  # from the cache
        assert same(list(loader.epoch(3, start=2)), reference[2:])
    torch.manual_seed(99)
    fresh = make(data, crop, workers=2, **FULL)
    assert same(list(fresh.epoch(3, start=len(fresh) - 1)), reference[-1:])
    assert list(fresh.epoch(3, start=len(fresh))) == []


def test_an_image_is_augmented_the_same_in_any_batch() -> None:
    data = array_set()
    options = {**FULL, "mix": None}

    def by_index(batch_size: int) -> dict[int, torch.Tensor]:
        batches = make(data, batch_size=batch_size, **options).epoch(1)
        return {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}

    small, large = by_index(4), by_index(N)
    assert all(torch.equal(small[i], large[i]) for i in range(N))


def test_each_image_once_an_epoch_in_new_order() -> None:
    loader = make(array_set(), **FULL)
    orders = [torch.cat([batch.indices for batch in loader.epoch(e)]).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] == torch.cat([b.indices for b in make(array_set(), **FULL).epoch(0)]).tolist()
    other = make(array_set(), **{**FULL, "seed": 8})
    assert orders[0] != torch.cat([b.indices for b in other.epoch(0)]).tolist()


def test_epochs_and_seeds_change_the_augmentation() -> None:
    def first(epoch: int, seed: int) -> torch.Tensor:
        loader = make(array_set(), **{**FULL, "seed": seed, "shuffle": False, "mix": None})
        return next(iter(loader.epoch(epoch))).images

    assert not torch.equal(first(0, 0), first(1, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert torch.equal(first(4, 2), first(4, 2))


def test_evaluation_is_plain_and_in_order() -> None:
    data = array_set()
    batches = list(make(data, EvalCrop((12, 12), 1.0), workers=2).epoch())
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(N))
    assert torch.cat([b.labels for b in batches]).tolist() == data.labels.tolist()
    images = torch.cat([b.images for b in batches])
    assert torch.equal(images, PLAIN(torch.stack([data.read(i) for i in range(N)])))
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert all(b.targets is None and b.keep.all() for b in batches)
    assert [len(b) for b in batches] == [5, 5, 5, 5, 3]


def test_lengths() -> None:
    assert len(make(array_set())) == 5
    loader = make(array_set(), drop_last=True, shuffle=True)
    assert len(loader) == 4
    assert [len(b) for b in loader.epoch()] == [5] * 4


def test_batches_move() -> None:
    batch = next(iter(make(array_set(), **FULL).epoch()))
    moved = batch.to("meta")
    assert moved.images.device.type == moved.targets.device.type == "meta"  # type: ignore[union-attr]


# Broken files


def broken_set(tmp_path: Path, broken: list[int], n: int = N) -> ImageSet:
    for i in range(n):
        write_image(tmp_path / "some" / "ab"[i % 2] / f"{i:03d}.png", i)
    data = open_dataset(tmp_path / "some", val_fraction=0.05).train
    for i in broken:
        path = data.path(i)
        assert path is not None
        path.write_bytes(path.read_bytes()[:60])
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_masked_never_replaced(tmp_path: Path, workers: int) -> None:
    data = broken_set(tmp_path, [4, 9])
    loader = make(data, EvalCrop((12, 12), 1.0), workers=workers)
    for _ in range(2):
        batches = list(loader.epoch())
        keep = torch.cat([b.keep for b in batches])
        assert (~keep).nonzero()[:, 0].tolist() == [4, 9]
        images = torch.cat([b.images for b in batches])
        assert (images[[4, 9]] == 0).all()
        assert torch.equal(images[3], PLAIN(loader.crop(data.read(3)[None], np.empty((1, 0))))[0])
        assert torch.cat([b.labels for b in batches]).tolist() == data.labels.tolist()
    assert [(p.index, p.name, p.reason) for p in loader.problems] == [
        (4, data.name(4), "truncated"),
        (9, data.name(9), "truncated"),
    ]
    assert loader.problems[0].class_name == data.classes.names[data.labels[4]]


def test_a_broken_file_changes_no_other_sample(tmp_path: Path) -> None:
    options = {**FULL, "mix": Mix(2), "batch_size": 30}
    whole = next(iter(make(broken_set(tmp_path / "w", []), **options).epoch(2)))
    torn = next(iter(make(broken_set(tmp_path / "t", [4]), **options).epoch(2)))
    bad = int((~torn.keep).nonzero())
    assert int(torn.indices[bad]) == 4
    others = [i for i in range(len(torn)) if i not in (bad, (bad + 1) % len(torn))]  # the next one had it as partner
    assert torch.equal(whole.images[others], torn.images[others])
    assert (torn.images[bad] == 0).all()


def test_too_many_broken_training_files_stop_with_a_table(tmp_path: Path) -> None:
    data = broken_set(tmp_path, [1, 5], n=100)
    with pytest.raises(DataError) as caught:
        list(make(data, **{**FULL, "mix": None}).epoch())
    for said in ("1 %", "2 of 95", data.name(1), data.name(5), "truncated", "mend"):
        assert said in str(caught.value)
    assert len(list(make(data, **{**FULL, "mix": None}, max_broken=0.03, workers=2).epoch())) == 19
    assert len(list(make(data).epoch())) == 19  # evaluation goes on


def test_a_single_broken_file_stops_no_small_set(tmp_path: Path) -> None:
    data = broken_set(tmp_path, [1])
    assert len(list(make(data, **{**FULL, "mix": None}).epoch())) == 5
    with pytest.raises(DataError):
        list(make(data, **{**FULL, "mix": None}, max_broken=0.0, workers=2).epoch())


class Flaky(ArrayStore):
    """Fails the first reads of row 3, as a network disk may."""

    failures = 0
    reason = "unreadable"
    calls: list[int]

    def read(self, row: int) -> torch.Tensor:
        if row == 3:
            type(self).calls.append(row)
            if len(type(self).calls) <= type(self).failures:
                raise BrokenImage(type(self).reason, "gone")
        return super().read(row)


@pytest.mark.parametrize(
    ("failures", "reason", "calls", "kept"),
    [(2, "unreadable", 3, True), (9, "unreadable", 3, False), (9, "corrupt", 1, False)],
)
def test_passing_failures_are_tried_again(
    failures: int, reason: str, calls: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "_PAUSE", 0.001)
    monkeypatch.setattr(Flaky, "failures", failures)
    monkeypatch.setattr(Flaky, "reason", reason)
    monkeypatch.setattr(Flaky, "calls", [], raising=False)
    base = array_set()
    data = ImageSet(Flaky("flaky", base.store.pixels), base.rows, base.labels, base.classes)  # type: ignore[attr-defined]
    loader = make(data)
    batches = list(loader.epoch())
    assert len(Flaky.calls) == calls
    assert bool(batches[0].keep[3]) is kept
    assert len(loader.problems) == (not kept)
    assert torch.equal(batches[0].images[2], next(iter(make(base).epoch())).images[2])


# Cache


def test_cache_keeps_to_its_budget_and_decodes_once(file_set: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = type(file_set.store).read
    monkeypatch.setattr(type(file_set.store), "read", lambda self, row: reads.append(row) or original(self, row))
    loader = make(file_set, workers=2, cache="all", **FULL)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert sorted(reads) == sorted(file_set.rows.tolist())
    assert len(loader.cache) == len(file_set)
    reads.clear()
    loader = make(file_set, workers=2, cache="none", **FULL)
    for epoch in range(2):
        list(loader.epoch(epoch))
    assert len(reads) == 2 * len(file_set)
    assert loader.cache.used == 0


def test_cache_budget() -> None:
    cache = ImageCache(3, 2 * (75 + 400))
    image = torch.zeros(3, 5, 5, dtype=torch.uint8)
    for i in range(3):
        cache.put(i, image)
    assert len(cache) == 2
    assert cache.get(2) is None
    assert cache.used <= cache.budget
    view = torch.zeros(3, 100, 100, dtype=torch.uint8)[:, :5, :5]
    other = ImageCache(1, 10_000)
    other.put(0, view)
    assert other.get(0).untyped_storage().nbytes() == 75  # type: ignore[union-attr]
    assert cache_budget("none") == 0
    assert 0 < cache_budget("auto") < cache_budget("all")
    with pytest.raises(UsageError, match="Did you mean 'auto'"):
        cache_budget("autto")


def test_evaluation_caches_the_crop(file_set: ImageSet) -> None:
    loader = make(file_set, EvalCrop((12, 12)), cache="all")
    list(loader.epoch())
    assert loader.cache.used == len(file_set) * (3 * 12 * 12 + 400)


# Threads


def our_threads() -> int:
    return sum(thread.name.startswith("vitrail-data") for thread in threading.enumerate())


def test_threads_end_however_the_iteration_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(array_set(), workers=3, **FULL)
    iterator = loader.epoch()
    next(iterator)
    assert our_threads() == 3
    iterator.close()  # type: ignore[attr-defined]
    assert our_threads() == 0
    for batch in loader.epoch():
        assert len(batch)
        break
    del iterator
    assert our_threads() == 0
    list(loader.epoch())
    assert our_threads() == 0

    def interrupted() -> None:
        for _ in loader.epoch():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert our_threads() == 0


def test_a_fault_in_a_worker_reaches_the_caller() -> None:
    class Bad(PadCrop):
        def __call__(self, images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
            raise RuntimeError("our own mistake")

    for workers in (0, 2):
        with pytest.raises(RuntimeError, match="our own mistake"):
            list(make(array_set(), Bad((12, 12), 2), workers=workers).epoch())
        assert our_threads() == 0


def test_interrupt_while_waiting_ends_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    base = array_set()
    original = ArrayStore.read
    monkeypatch.setattr(ArrayStore, "read", lambda self, row: (time.sleep(0.02), original(self, row))[1])

    def read_on() -> None:
        for epoch in range(50):
            list(make(base, workers=2, batch_size=20).epoch(epoch))

    timer = threading.Timer(0.1, __import__("_thread").interrupt_main)
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        read_on()
    assert time.monotonic() - start < 3
    timer.join()
    assert our_threads() == 0


def test_workers_leave_torch_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: dict[str, int] = {}
        with Workers(2) as pool:
            done = threading.Event()
            pool.submit(lambda: (seen.update(worker=torch.get_num_threads()), done.set())[0])
            assert done.wait(5)
            seen["caller"] = torch.get_num_threads()
            other = threading.Thread(target=lambda: seen.update(other=torch.get_num_threads()))
            other.start()
            other.join()
        assert seen == {"worker": 1, "caller": 2, "other": 2}
    finally:
        torch.set_num_threads(before)


def test_two_epochs_side_by_side() -> None:
    loader = make(array_set(), workers=2, **FULL)
    a, b = loader.epoch(0), loader.epoch(1)
    mixed = [(next(a), next(b)) for _ in range(len(loader))]
    assert same([x for x, _ in mixed], list(loader.epoch(0)))
    assert same([y for _, y in mixed], list(loader.epoch(1)))


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": N + 1, "drop_last": True},
        {"workers": -1},
        {"max_broken": 2.0},
        {"cache": "disk"},
        {"mix": Mix(9)},
    ],
)
def test_impossible_settings(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"expected .*got"):
        make(array_set(), **options)


def test_impossible_start_and_empty_sets() -> None:
    with pytest.raises(UsageError, match="start"):
        make(array_set()).epoch(0, start=6)
    with pytest.raises(DataError, match="empty"):
        make(array_set().subset([]))
    assert require_workers(None) >= 1


# Orders that visit an image more than once


def test_repeated_visits_are_augmented_each_in_their_own_way() -> None:
    data = array_set()
    order = Balanced(np.where(np.arange(N) < 2, 0, 1), 7, 0.0)
    loader = make(data, shuffle=True, order=order, seed=7, workers=2)
    batches = list(loader.epoch(1))
    indices = torch.cat([b.indices for b in batches])
    images = torch.cat([b.images for b in batches])
    visits = images[indices == 0]
    assert len(visits) >= 5
    assert len({v.numpy().tobytes() for v in visits}) > 3  # nine shifts by two pixels and less are possible
    plain = {
        int(i): x for b in make(data, shuffle=True, seed=7).epoch(1) for i, x in zip(b.indices, b.images, strict=True)
    }
    assert torch.equal(visits[0], plain[0])  # a first visit draws as it does in a plain epoch
    assert same(list(loader.epoch(1, start=2)), batches[2:])


def test_an_order_without_shuffle_is_refused() -> None:
    with pytest.raises(UsageError, match="without shuffle"):
        make(array_set(), order=Balanced(np.arange(N) % 2, 7, 0.0))
