"""The learning rate as a pure function."""

from __future__ import annotations

import math

import pytest

from vitrail.training.schedule import Schedule


def test_warms_up_linearly_then_falls_as_a_cosine() -> None:
    s = Schedule("cosine", 1.0, 110, warmup=10, min_lr=0.1)
    assert [s(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert s(10) == 1.0
    assert s(60) == pytest.approx(0.55)
    assert s(110) == s(500) == pytest.approx(0.1)
    rates = [s(i) for i in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert s(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_constant_stays() -> None:
    s = Schedule("constant", 0.5, 20, warmup=2)
    assert [s(i) for i in (0, 1, 2, 19)] == [0.25, 0.5, 0.5, 0.5]


def test_a_run_of_warm_up_only_never_divides_by_zero() -> None:
    assert Schedule("cosine", 1.0, 5, warmup=5)(5) == 1.0
