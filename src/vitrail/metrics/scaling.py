"""Scaling laws: the error as a saturating power of model size, data or compute, with what the runs cannot tell.

    E(x) = c + a (x + d)^-b             one amount: images D, parameters N, or training FLOPs C
    E(N, D) = c + a N^-alpha + b D^-beta    both at once

The first is Zhai et al. 2022, arXiv 2106.04560, section 2 (c: error that no scale removes; d: what is there at no
compute at all), the second Hoffmann et al. 2022, arXiv 2203.15556, section 3.3, there for the loss.

A run that errs on k of n test images has the error k / n with the variance E (1 - E) / n + (s E)^2: the binomial of
the test set, and s, the relative spread from run to run. E in it is the curve's own, so that a lucky run gets no more
weight (quasi-likelihood: Wedderburn 1974), and no logarithm of 0 is taken for a run without error. s makes the weighted
squares as large as they should be (Paule and Mandel 1982). Few runs say little of s, and one seed nothing, so what is
usual stands beside them as a few runs more (moderated variance: Smyth 2004): :data:`USUAL_SPREAD` is that of
ResNet-110 on CIFAR-10, 6.61 +- 0.16 % over five seeds (He et al. 2016, arXiv 1512.03385, table 6).
Intervals are of the profile likelihood (:mod:`.separable`), by Student's t as far as s matters.

Amounts are reckoned in ``unit``, a power of ten near them, so that a is a number one can read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, stats

from vitrail.errors import DataError

from .separable import Array, Columns, Linear, Optimum, Region, best

LEAST_SIZES = 3  # different amounts: a line through two says nothing of where it bends
SHIFT_SIZES = 4  # from here on d can be asked for: with fewer it would bend as the runs happen to lie
LEAST_SPAN = 1.5  # largest amount over smallest
JOINT_RUNS = 7  # two more than a joint law has parameters
EXPONENTS = np.geomspace(0.01, 5.0, 240)
USUAL_SPREAD, USUAL_DOF = 0.16 / 6.61, 3.0  # of errors between seeds, and how many degrees of freedom it is worth
ROUNDS = 30  # of weights and spread settling on each other


@dataclass(frozen=True, order=True)
class Sample:
    """One run: how much it had of what is varied, and on how many of ``count`` test images it erred."""

    amount: float
    wrong: float
    count: int

    @property
    def error(self) -> float:
        """Share of test images that are wrong."""
        return self.wrong / self.count


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float


class Curve:
    """A fitted law: the best curve, and all that are nearly as good."""

    def __init__(self, columns: Columns, axes: Sequence[Array], samples: Sequence[Sample], level: float) -> None:
        error = np.array([s.error for s in samples])
        count = np.array([float(s.count) for s in samples])
        free = sum(len(axis) > 1 for axis in axes)
        fitted, self.spread = (error * count + 0.5) / (count + 1), USUAL_SPREAD
        for _ in range(ROUNDS):
            weights = 1 / variance(fitted, count, self.spread)
            self.optimum: Optimum = best(columns, axes, error, weights)
            now = columns(self.optimum.theta[None])[0] @ self.optimum.beta
            used = int(
                np.count_nonzero(self.optimum.beta)
            )  # a beta held at 0 fits nothing; without powers no theta does
            self.dof: int = max(0, len(samples) - used - (free if self.optimum.beta[1:].any() else 0))
            spread = estimate_spread(error - now, now, count, self.dof)
            settled = np.allclose(now, fitted, rtol=1e-7, atol=0) and math.isclose(spread, self.spread, abs_tol=1e-7)
            fitted, self.spread = now, spread
            if settled:
                break
        self.level = level
        self.misfit = self._misfit(columns(self.optimum.theta[None])[0], error, count, fitted)
        self.residuals = (error - fitted) / np.sqrt(variance(fitted, count, self.spread))
        rise = self._quantile(fitted, count) ** 2
        self.region = Region(columns, axes, error, weights, self.optimum, rise)

    def _misfit(self, points: Array, error: Array, count: Array, fitted: Array) -> float:
        """Return how likely the law misses by so much if it holds: against the scatter of runs of one amount alone."""
        _, same = np.unique(points, axis=0, return_inverse=True)
        means = np.bincount(same, error) / np.bincount(same)
        own = estimate_spread(error - means[same], fitted, count, len(error) - len(means))
        squares = float(((error - fitted) ** 2 / variance(fitted, count, own)).sum())
        return float(stats.chi2.sf(squares, self.dof)) if self.dof else 1.0

    def _quantile(self, fitted: Array, count: Array) -> float:
        """Return how many standard errors an interval reaches, more where the spread matters (Welch 1947)."""
        share = float(np.mean((self.spread * fitted) ** 2 / variance(fitted, count, self.spread)))
        return float(stats.t.ppf((1 + self.level) / 2, (self.dof + USUAL_DOF) / share**2))

    def estimate(self, quantity: Linear) -> Estimate:
        """Return a quantity that is linear in the betas, with its interval."""
        value = float(quantity(self.optimum.theta[None])[0] @ self.optimum.beta)
        low, high = self.region.interval(quantity)
        return Estimate(value, min(low, value), max(high, value))

    def theta(self, which: int) -> Estimate:
        """Return an exponent or shift with its interval."""
        value, (low, high) = float(self.optimum.theta[which]), self.region.theta(which)
        return Estimate(value, min(low, value), max(high, value))

    def measured(self, expected: Estimate, count: int) -> Estimate:
        """Return where one more run, measured on ``count`` images, would be found: its own chance comes on top."""
        reach = float(stats.norm.ppf((1 + self.level) / 2))
        own = [
            reach**2 * float(variance(np.array([e]), np.array([float(count)]), self.spread)[0])
            for e in (expected.low, expected.high)
        ]
        below = math.hypot(expected.value - expected.low, math.sqrt(own[0]))
        above = math.hypot(expected.high - expected.value, math.sqrt(own[1]))
        return Estimate(expected.value, max(0.0, expected.value - below), min(1.0, expected.value + above))


def variance(error: Array, count: Array, spread: float) -> Array:
    """Return the variance of measured errors; an error of 0 counts as half an image, as does one of 1."""
    inner = np.clip(error, 0.5 / count, 1 - 0.5 / count)
    result: Array = inner * (1 - inner) / count + (spread * inner) ** 2
    return result


def estimate_spread(rest: Array, fitted: Array, count: Array, dof: int) -> float:
    """Return the relative spread between runs that explains their squares and those of the usual runs."""

    def excess(spread: float) -> float:
        own = float((rest**2 / variance(fitted, count, spread)).sum())
        return own - dof + USUAL_DOF * ((USUAL_SPREAD / spread) ** 2 - 1)

    low, high = USUAL_SPREAD, USUAL_SPREAD
    while excess(low) < 0:
        low /= 2
    while excess(high) > 0:
        high *= 2
    return low if low == high else float(optimize.brentq(excess, low, high, xtol=1e-12))


@dataclass(frozen=True)
class PowerLaw:
    """E(x) = c + a (x / unit + d)^-b over one amount.

    Attributes:
        samples: the runs, by amount.
        unit: what amounts are reckoned in.
        shifted: whether d was fitted; else it is 0.
        curve: the fit.
    """

    samples: tuple[Sample, ...]
    unit: float
    shifted: bool
    curve: Curve = field(repr=False)

    @property
    def a(self) -> Estimate:
        """Error at one unit (with d = 0) above c."""
        return self.curve.estimate(lambda cells: np.stack([np.zeros(len(cells)), np.ones(len(cells))], 1))

    @property
    def b(self) -> Estimate:
        """The exponent: twice the amount leaves 2^-b of what can be removed.

        Where d was fitted and neither c nor d can be told from 0, its interval holds less often than it says (in 8 of
        10 families, not 9.5): both bend the curve as a larger b would. Those of errors and gains hold there too.
        """
        return self.curve.theta(0)

    @property
    def c(self) -> Estimate:
        """The error that stays however large the amount."""
        return self.curve.estimate(lambda cells: np.stack([np.ones(len(cells)), np.zeros(len(cells))], 1))

    @property
    def d(self) -> Estimate:
        """The shift, in units."""
        return self.curve.theta(1)

    @property
    def falls(self) -> bool:
        """Whether the runs tell that the error falls at all."""
        return not self.curve.region.zero(1)

    @property
    def saturates(self) -> bool:
        """Whether the runs tell c from 0."""
        return not self.curve.region.zero(0)

    @property
    def bounded(self) -> bool:
        """Whether the interval of b ends within what was searched."""
        b, (least, most) = self.b, self.curve.region.limits[0]
        return self.falls and b.low > least * 1.001 and b.high < most * 0.999

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest amount of the runs."""
        return self.samples[0].amount, self.samples[-1].amount

    def error(self, amount: float) -> Estimate:
        """Return the error expected at an amount."""
        return self.curve.estimate(self._at(amount))

    def gain(self, amount: float, more: float) -> Estimate:
        """Return by how much the error falls from one amount to a larger."""
        first, second = self._at(amount), self._at(more)
        return self.curve.estimate(lambda cells: first(cells) - second(cells))

    def measured(self, amount: float, count: int) -> Estimate:
        """Return where one more run at an amount, measured on ``count`` images, would be found."""
        return self.curve.measured(self.error(amount), count)

    def left(self, times: float) -> float:
        """Return which part of the error above c is left at so many times the largest amount."""
        (b, d), now = self.curve.optimum.theta, self.span[1] / self.unit
        return float(((times * now + d) / (now + d)) ** -b)

    def far(self, amount: float) -> bool:
        """Whether an amount lies farther beyond the runs than half of what they span (in logarithms)."""
        low, high = self.span
        return math.log(amount / high) > 0.5 * math.log(high / low) + 1e-9

    def _at(self, amount: float) -> Linear:
        x = amount / self.unit
        return lambda cells: np.stack([np.ones(len(cells)), (x + cells[:, 1]) ** -cells[:, 0]], 1)


def fit_power_law(samples: Sequence[Sample], *, shift: bool = False, level: float = 0.95) -> PowerLaw:
    """Fit E(x) = c + a (x + d)^-b to runs in any order; d only with ``shift`` and :data:`SHIFT_SIZES` amounts.

    Raises :class:`DataError`: fewer than :data:`LEAST_SIZES` different amounts, amounts that span too little, or no run
    that errs at all.
    """
    ordered = tuple(sorted(samples))
    amounts = sorted({s.amount for s in ordered})
    if len(amounts) < LEAST_SIZES:
        raise DataError(f"expected runs at {LEAST_SIZES} different amounts or more, got {len(amounts)}")
    if amounts[0] <= 0 or any(not 0 <= s.wrong <= s.count for s in ordered):
        raise DataError("expected amounts above 0, and at most as many wrong images as there are")
    if amounts[-1] < LEAST_SPAN * amounts[0]:
        raise DataError(f"expected amounts that span {LEAST_SPAN:g} times or more, got {amounts[-1] / amounts[0]:.3g}")
    if not any(s.wrong for s in ordered):
        raise DataError("expected a run that errs on some test image, got none: there is nothing left to gain")
    unit = _unit(amounts)
    x = np.array([s.amount for s in ordered]) / unit
    shifted = shift and len(amounts) >= SHIFT_SIZES
    shifts = np.concatenate([[0.0], np.geomspace(x[0] / 30, x[-1], 24)]) if shifted else np.zeros(1)

    def columns(cells: Array) -> Array:
        powers = (x + cells[:, 1:]) ** -cells[:, :1]
        return np.stack([np.ones_like(powers), powers], 2)

    exponents = EXPONENTS[::3] if shifted else EXPONENTS
    return PowerLaw(ordered, unit, shifted, Curve(columns, [exponents, shifts], ordered, level))


@dataclass(frozen=True)
class JointLaw:
    """E(N, D) = c + a (N / N0)^-alpha + b (D / D0)^-beta, with N0 and D0 in ``units``."""

    samples: tuple[tuple[float, Sample], ...]
    """(parameters, run over data)"""
    units: tuple[float, float]
    curve: Curve = field(repr=False)

    @property
    def alpha(self) -> Estimate:
        """The exponent of model size."""
        return self.curve.theta(0)

    @property
    def beta(self) -> Estimate:
        """The exponent of data."""
        return self.curve.theta(1)

    @property
    def c(self) -> Estimate:
        """The error that neither removes."""
        return self.curve.estimate(lambda cells: np.eye(3)[[0] * len(cells)])

    def error(self, params: float, images: float) -> Estimate:
        """Return the error expected of a model of a size on an amount of data."""
        return self.curve.estimate(self._at(params, images))

    def gain(self, now: tuple[float, float], then: tuple[float, float]) -> Estimate:
        """Return by how much the error falls from (parameters, images) to others."""
        first, second = self._at(*now), self._at(*then)
        return self.curve.estimate(lambda cells: first(cells) - second(cells))

    def _at(self, params: float, images: float) -> Linear:
        n, d = params / self.units[0], images / self.units[1]
        return lambda cells: np.stack([np.ones(len(cells)), n ** -cells[:, 0], d ** -cells[:, 1]], 1)


def fit_joint_law(samples: Sequence[tuple[float, Sample]], *, level: float = 0.95) -> JointLaw:
    """Fit E(N, D) to runs given as (parameters, sample over images), in any order.

    Raises :class:`DataError`: fewer than :data:`LEAST_SIZES` sizes or amounts of data, or :data:`JOINT_RUNS` pairs.
    """
    ordered = tuple(sorted(samples))
    sizes, amounts = sorted({n for n, _ in ordered}), sorted({s.amount for _, s in ordered})
    pairs = len({(n, s.amount) for n, s in ordered})
    if min(len(sizes), len(amounts)) < LEAST_SIZES or pairs < JOINT_RUNS:
        raise DataError(
            f"expected {LEAST_SIZES} model sizes, {LEAST_SIZES} amounts of data and {JOINT_RUNS} pairs of them, "
            f"got {len(sizes)}, {len(amounts)} and {pairs}"
        )
    units = (_unit(sizes), _unit(amounts))
    n = np.array([size for size, _ in ordered]) / units[0]
    d = np.array([s.amount for _, s in ordered]) / units[1]

    def columns(cells: Array) -> Array:
        one, other = n ** -cells[:, :1], d ** -cells[:, 1:]
        return np.stack([np.ones_like(one), one, other], 2)

    axes = [EXPONENTS[::6], EXPONENTS[::6]]
    return JointLaw(ordered, units, Curve(columns, axes, [s for _, s in ordered], level))


def _unit(amounts: Sequence[float]) -> float:
    """Return the power of ten at or below the geometric mean of amounts."""
    return float(10.0 ** math.floor(np.mean(np.log10(amounts))))
