"""Intervals against scipy's own."""

import pytest
from scipy import stats

from vitrail.metrics.intervals import mean_interval, share_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (7, 9), (930, 1000)])
def test_a_share_is_wilsons(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert share_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_is_students():
    values = [0.2, 0.5, 0.4, 0.45]
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_what_has_no_interval_is_refused():
    for wrong in [(1, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="expected"):
            share_interval(*wrong)
    with pytest.raises(ValueError, match="two values"):
        mean_interval([0.5])
