"""Batches of samples: a function of (seed, epoch, number), whoever loads them and however."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vitrail.data import samples as samples_module
from vitrail.data.decode import BrokenImage
from vitrail.data.samples import SampleBatch, SampleLoader
from vitrail.errors import DataError, UsageError


@dataclass(frozen=True)
class Number:
    """A sample: one number, and the draw it was prepared with."""

    value: int
    draw: float = 0.0
    nbytes: int = 8


class Numbers:
    """Ten samples, some of them broken; counts how often each is read."""

    def __init__(self, broken=(), transient=False):
        self.broken, self.transient, self.reads = set(broken), transient, [0] * 10

    def __len__(self):
        return 10

    def name(self, i):
        return f"number {i}"

    def read(self, i):
        self.reads[i] += 1
        if i in self.broken and not (self.transient and self.reads[i] > 1):
            raise BrokenImage("unreadable" if self.transient else "damaged", f"number {i} is damaged")
        return Number(i)

    def digest(self):
        return "0"


class Draw:
    draws = 1

    def __call__(self, sample, draws):
        return Number(sample.value, float(draws[0]))


def collate(found, indices):
    keep = torch.tensor([n is not None for n in found])
    values = torch.tensor([[n.value, n.draw] if n else [-1.0, -1.0] for n in found], dtype=torch.float64)
    return SampleBatch(values[:, :, None, None], keep, indices)


def loader(samples=None, **options):
    given = {"batch_size": 4, "prepare": Draw(), "collate": collate, "seed": 3, "shuffle": True, **options}
    return SampleLoader(samples or Numbers(), **given)


def values(batches):
    return [batch.images[:, :, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 3}, {"cache": "none"}, {"cache": "all"}], ids=str)
def test_neither_threads_nor_cache_change_a_batch(options):
    plain, other = loader(workers=1), loader(**options)
    for epoch in range(2):
        assert values(plain.epoch(epoch)) == values(other.epoch(epoch))


def test_an_epoch_visits_each_sample_once_and_the_next_in_another_order():
    one, two = (np.concatenate(values(loader().epoch(epoch)))[:, 0] for epoch in range(2))
    assert sorted(one) == sorted(two) == list(range(10))
    assert one.tolist() != two.tolist()


def test_starting_in_the_middle_gives_the_same_batches():
    whole = loader()
    assert values(whole.epoch(1, start=2)) == values(whole.epoch(1))[2:]
    with pytest.raises(UsageError, match="between 0 and 3"):
        whole.epoch(0, start=4)


def test_several_visits_draw_anew():
    found = np.concatenate(values(loader(visits=3).epoch(0)))
    assert sorted(found[:, 0]) == sorted([*range(10)] * 3)
    assert len(set(found[:, 1])) == 30


def test_shares_of_processes_are_the_batch_of_one():
    whole = values(loader().epoch(0))
    shares = [values(loader(part=(rank, 2)).epoch(0)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch == [row for part in parts for row in part]
    odd = loader(batch_size=5, part=(1, 2), workers=0)
    assert [batch.keep.tolist() for batch in odd.epoch(0)] == [[True, True, False]] * 2


def test_a_broken_sample_is_a_row_without_keep_and_is_listed():
    found = loader(Numbers(broken=[7]), shuffle=False)
    last = list(found.epoch(0))[1]
    assert last.keep.tolist() == [True, True, True, False]
    assert (last.count, last.indices.tolist()) == (3, [4, 5, 6, 7])
    assert [(p.name, p.message) for p in found.problems] == [("number 7", "number 7 is damaged")]


def test_too_many_broken_samples_stop_training_with_their_names():
    with pytest.raises(DataError, match=r"at most 1 % unreadable training images, got 2 of 10(?s:.*)number"):
        list(loader(Numbers(broken=[2, 5]), workers=0).epoch(0))


def test_what_hiccups_is_read_again(monkeypatch):
    monkeypatch.setattr(samples_module, "_PAUSE", 0.001)
    found = loader(Numbers(broken=[1], transient=True))
    assert all(bool(batch.keep.all()) for batch in found.epoch(0))
    assert not found.problems


def test_what_is_kept_in_memory_is_read_once():
    samples = Numbers()
    found = loader(samples, cache="all")
    for epoch in range(3):
        list(found.epoch(epoch))
    assert samples.reads == [1] * 10


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match="between 1 and 10"):
        loader(batch_size=11, drop_last=True)
    with pytest.raises(UsageError, match="at least one visit"):
        loader(visits=0)
    assert len(loader(batch_size=15, visits=3, drop_last=True)) == 2
