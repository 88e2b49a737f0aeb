"""Orders of an epoch: pure functions of it; balanced ones keep their shares and waste no image."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.data import rng
from vitrail.data.order import (
    POWERS,
    Balanced,
    InOrder,
    Repeated,
    Shuffled,
    Windowed,
    draw_keys,
    training_order,
    windowed,
)
from vitrail.errors import DataError, UsageError

LABELS = np.repeat([0, 1, 3], [40, 9, 3])[np.random.default_rng(0).permutation(52)].astype(np.int64)


def test_plain_orders_are_what_they_were() -> None:
    assert InOrder(5)(3).tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(Shuffled(52, 7)(4), rng.permutation(7, 4, 52))
    assert training_order(LABELS, 7) == Shuffled(52, 7)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_an_epoch_is_arithmetic_and_has_its_shares(power: float) -> None:
    order = Balanced(LABELS, 3, power)
    seen = np.zeros(4)
    for epoch in range(30):
        visits = order(epoch)
        assert np.array_equal(visits, Balanced(LABELS.copy(), 3, power)(epoch))
        assert visits.dtype == np.int64
        assert visits.shape == (52,)
        seen += np.bincount(LABELS[visits], minlength=4)
        share = np.bincount(LABELS, minlength=4) ** np.float64(power) * [1, 1, 0, 1]
        assert np.abs(seen - 52 * (epoch + 1) * share / share.sum()).max() < 1
    assert not np.array_equal(order(0), Balanced(LABELS, 4, power)(0))


@pytest.mark.parametrize("power", [0.5, 0.0])
def test_each_class_goes_through_all_its_images_before_one_comes_again(power: float) -> None:
    order = Balanced(LABELS, 1, power)
    times, smallest = np.zeros(52), 0.0
    for epoch in range(40):
        times += np.bincount(order(epoch), minlength=52)
        for c in (0, 1, 3):
            assert np.ptp(times[c == LABELS]) <= 1
        smallest = min(times[LABELS == 3])
    assert smallest > 100


def test_at_power_one_every_epoch_is_a_permutation() -> None:
    order = Balanced(LABELS, 1, 1.0)
    assert all(sorted(order(epoch)) == list(range(52)) for epoch in range(5))


def test_permutations_of_a_class_differ_and_epochs_mix_classes() -> None:
    order = Balanced(np.repeat([0, 1], [500, 20]), 0, 0.0)
    first, second = order(0), order(1)
    assert not np.array_equal(first, second)
    halves = np.bincount(order(0)[:260] >= 500, minlength=2)
    assert 90 < halves[1] < 170  # half of 260, give or take


def test_draw_keys_tell_visits_apart_and_leave_first_visits_alone() -> None:
    order = np.array([4, 1, 4, 0, 1, 4])
    assert draw_keys(order, 5).tolist() == [4, 1, 9, 0, 6, 14]
    plain = rng.permutation(0, 0, 100)
    assert np.array_equal(draw_keys(plain, 100), plain)
    visits = Balanced(LABELS, 3, 0.0)(2)
    keys = draw_keys(visits, len(LABELS))
    assert len(set(keys.tolist())) == len(keys)
    assert np.array_equal(keys % len(LABELS), visits)


@pytest.mark.parametrize(("count", "repeats", "batch"), [(52, 3, 12), (52, 3, 16), (50, 2, 7), (5, 4, 5), (7, 2, 64)])
@pytest.mark.parametrize("balance", ["none", "equal"])
def test_repeated_visits_stand_together_and_keep_the_length(count: int, repeats: int, batch: int, balance: str) -> None:
    plain = training_order(LABELS[:count], 5, balance)
    order = training_order(LABELS[:count], 5, balance, repeats, batch)
    assert isinstance(order, Repeated)
    seen = set()
    for epoch in range(6):
        visits = order(epoch)
        assert visits.shape == (count,)
        assert np.array_equal(visits, training_order(LABELS[:count], 5, balance, repeats, batch)(epoch))
        assert len(set(draw_keys(visits, count).tolist())) == count  # no two visits draw the same
        if balance == "none":
            distinct = visits[np.sort(np.unique(visits, return_index=True)[1])]
            assert np.array_equal(distinct, plain(epoch)[: len(distinct)])
            times = np.bincount(visits)
            assert times.max() == repeats
            for image in distinct:
                assert np.ptp(np.flatnonzero(visits == image)) < batch
        seen |= set(visits.tolist())
    assert len(seen) > count / repeats  # each epoch takes other images


def test_whole_batches_hold_each_image_as_often_as_asked() -> None:
    visits = Repeated(Shuffled(48, 0), 3, 12)(1).reshape(4, 12)
    for row in visits:
        assert set(np.bincount(row)) == {0, 3}
        assert (row != np.roll(row, 1)).all()  # what MixUp blends is another image
    assert len(set(visits.ravel().tolist())) == 16


def test_once_is_the_plain_order() -> None:
    assert training_order(LABELS, 7, "none", 1, 4) == Shuffled(52, 7)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="between 2 and the batch size, 4, got 5"):
        training_order(LABELS, 0, "none", 5, 4)
    with pytest.raises(UsageError, match=r"squrt.*Did you mean 'sqrt'"):
        training_order(LABELS, 0, "squrt")
    with pytest.raises(DataError, match="got none"):
        Balanced(LABELS[:0], 0, 0.0)
    assert set(POWERS) == {"none", "sqrt", "equal"}


SHARDS = np.repeat([4, 0, 2, 7, 9, 1], [5, 9, 1, 7, 6, 8])


def test_a_window_of_all_shards_is_the_usual_shuffle() -> None:
    for epoch in range(3):
        windowed = Windowed(SHARDS, seed=3, window=6)(epoch)
        assert windowed.tolist() == Shuffled(len(SHARDS), 3)(epoch).tolist()


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_window_visits_its_shards_together_and_every_image_once(window: int) -> None:
    order = Windowed(SHARDS, seed=3, window=window)
    for epoch in range(4):
        visits = order(epoch)
        assert sorted(visits.tolist()) == list(range(len(SHARDS)))
        shards, at, seen = SHARDS[visits], 0, set()
        while at < len(shards):
            together = set(list(dict.fromkeys(shards[at:].tolist()))[:window])
            length = int(np.isin(SHARDS, list(together)).sum())
            assert set(shards[at : at + length].tolist()) == together, "a window is over before the next begins"
            assert not together & seen
            seen |= together
            at += length
        assert order(epoch).tolist() == visits.tolist()
    assert order(0).tolist() != order(1).tolist() != Windowed(SHARDS, 4, window)(1).tolist()


def test_a_window_mixes_within_itself() -> None:
    visits = Windowed(np.repeat(np.arange(8), 50), seed=0, window=4)(0)
    first = (visits // 50)[:100]
    assert len(set(first.tolist())) == 4
    assert np.abs(np.diff(visits)).mean() > 50


def test_a_window_that_would_be_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no shards"):
        windowed(None, 0, 2)
    for window in (0, 6, 100):
        with pytest.raises(UsageError, match="between 1 and 5"):
            windowed(SHARDS, 0, window)
    assert windowed(SHARDS, 0, 5).window == 5
