"""In which order an epoch visits the images: small objects, each a pure function of the epoch.

Class-balanced sampling: Kang et al. 2020, arXiv 1910.09217, section 3 (probability of class c proportional to n_c**q:
q = 1 as the data are, 1/2 "square-root sampling", 0 "class-balanced"). Repeated augmentation: Hoffer et al. 2020, arXiv
1901.09335; in DeiT's form (arXiv 2012.12877, section 6) an epoch keeps its length. Nothing here has state, so an
interrupted epoch is resumed by counting. An order may visit an image more than once; :func:`draw_keys` tells the visits
apart.
Shapes: n images, K classes, m visits an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError, UsageError, require_known

from . import rng
from .labels import Labels, is_multi

POWERS = {"none": 1.0, "sqrt": 0.5, "equal": 0.0}
"""Kinds of balanced sampling -> the power of a class's count that its share of an epoch is proportional to."""


class Order(Protocol):
    """The order of an epoch."""

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Return the positions visited, int64 (m,); the same array for the same epoch, always."""


@dataclass(frozen=True)
class InOrder:
    """Every image once, as the set has them: evaluation."""

    count: int

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """See :class:`Order`."""
        return np.arange(self.count, dtype=np.int64)


@dataclass(frozen=True)
class Shuffled:
    """Every image once, in an order of its own each epoch."""

    count: int
    seed: int

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """See :class:`Order`."""
        return rng.permutation(self.seed, epoch, self.count)


@dataclass(frozen=True)
class Windowed:
    """Every image once, the shards in an order of their own each epoch, ``window`` of them mixed at a time.

    So reading is nearly sequential, which slow and remote disks need; what it costs is that images of far-off shards
    never meet in a batch. ``shards`` int64 (n,) is the shard of each image. A window of all shards is ``Shuffled``.
    """

    shards: NDArray[np.int64]
    seed: int
    window: int

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """See :class:`Order`."""
        numbers, shard = np.unique(self.shards, return_inverse=True)
        turn = np.empty(len(numbers), dtype=np.int64)
        keys = rng.bits(self.seed, epoch, numbers, 1, rng.WINDOW).reshape(-1)
        turn[np.argsort(keys, kind="stable")] = np.arange(len(numbers))
        within = rng.bits(self.seed, epoch, np.arange(len(shard)), 1, rng.ORDER).reshape(-1)
        order: NDArray[np.int64] = np.lexsort((within, turn[shard] // self.window)).astype(np.int64)
        return order


@dataclass(frozen=True)
class Balanced:
    """As many visits an epoch as there are images, shared out over the classes by ``n_c ** power``.

    Each class goes through its images one permutation after another, over the borders of epochs too: no image of a
    class comes again before all others of it were seen. ``labels`` int64 (n,).
    """

    labels: NDArray[np.int64]
    seed: int
    power: float
    _members: list[NDArray[np.int64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise DataError("expected labelled images to balance, got none")
        groups = [np.flatnonzero(self.labels == c) for c in np.unique(self.labels)]
        object.__setattr__(self, "_members", groups)

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """See :class:`Order`."""
        begin, end = self._seen(epoch), self._seen(epoch + 1)
        drawn = [self._stream(members, a, b) for members, a, b in zip(self._members, begin, end, strict=True)]
        return np.concatenate(drawn)[rng.permutation(self.seed, epoch, len(self.labels))]

    def _seen(self, epochs: int) -> NDArray[np.int64]:
        """Visits of each class in the first ``epochs`` epochs: the exact share, rounded so that the sum is exact.

        A class present has a share of one visit an epoch or more (power <= 1), so rounding never takes a visit back.
        """
        weight = np.array([len(members) for members in self._members], dtype=np.float64) ** self.power
        total = len(self.labels) * epochs
        exact = weight / weight.sum() * total
        seen = np.floor(exact).astype(np.int64)
        seen[np.argsort(seen - exact, kind="stable")[: total - int(seen.sum())]] += 1
        return seen

    def _stream(self, members: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
        """Visits ``begin`` to ``end`` of one class: its permutations laid end to end."""
        cycles = range(begin // len(members), -(-end // len(members)))
        laid = [members[np.argsort(self._keys(cycle, members), kind="stable")] for cycle in cycles]
        first = begin - cycles.start * len(members)
        return np.concatenate([members[:0], *laid])[first : first + end - begin]

    def _keys(self, cycle: int, members: NDArray[np.int64]) -> NDArray[np.uint64]:
        return rng.bits(self.seed, cycle, members, 1, rng.CYCLE).reshape(-1)


def windowed(shards: NDArray[np.int64] | None, seed: int, window: int) -> Windowed:
    """Return the order that mixes ``window`` shards at a time; :class:`UsageError` where that would be no window."""
    if shards is None:
        raise UsageError(
            "data.window has no effect: these images lie in no shards; mend: pack them (`vitrail data shard`), or "
            "leave data.window out"
        )
    count = len(np.unique(shards))
    if not 1 <= window < count:
        raise UsageError(
            f"expected data.window between 1 and {count - 1} (there are {count} shards; all of them would be the usual "
            f"shuffle), got {window}; mend: leave data.window out, or make smaller shards"
        )
    return Windowed(shards, seed, window)


@dataclass(frozen=True)
class Repeated:
    """Each of the first m / ``repeats`` visits of another order, ``repeats`` times, within about one batch.

    A batch is ``repeats`` rounds through the same images, so that neighbours, which MixUp and CutMix blend, are copies
    of different images. What tells the copies apart is :func:`draw_keys`.
    """

    order: Order
    repeats: int
    batch: int

    def __post_init__(self) -> None:
        if not 2 <= self.repeats <= self.batch:
            raise UsageError(f"expected repeats between 2 and the batch size, {self.batch}, got {self.repeats}")

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """See :class:`Order`."""
        order = self.order(epoch)
        group = max(1, min(self.batch, len(order)) // self.repeats)
        rounds = -(-len(order) // (group * self.repeats))
        distinct = order[: rounds * group].reshape(rounds, 1, group)
        return np.broadcast_to(distinct, (rounds, self.repeats, group)).reshape(-1)[: len(order)]


def training_order(labels: Labels, seed: int, balance: str = "none", repeats: int = 1, batch: int = 1) -> Order:
    """Return the order of a training set with these labels, int64 (n,): shuffled, or balanced (:data:`POWERS`).

    With ``repeats`` above 1 each image visited is visited that often in its batch of ``batch`` images.
    """
    require_known([balance], POWERS, "kind of balanced sampling")
    if balance != "none" and is_multi(labels):
        raise UsageError(
            f"data.balance: {balance} is for one label an image: an image of several classes cannot be drawn for one "
            "alone; mend: train.class_weights=balanced"
        )
    order = Shuffled(len(labels), seed) if balance == "none" else Balanced(labels, seed, POWERS[balance])
    return order if repeats == 1 else Repeated(order, repeats, batch)


def draw_keys(order: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the index by which each visit draws its crop and augmentation, int64 (m,): ``position + count * times``.

    ``times`` counts the earlier visits of the same image in this epoch, so a first visit draws as it always did and no
    two visits draw the same. ``order`` is the whole epoch's, whatever part of it is loaded here.
    """
    by_image = np.argsort(order, kind="stable")
    image = order[by_image]
    keys = np.empty_like(order)
    keys[by_image] = image + count * (np.arange(len(order)) - np.searchsorted(image, image))
    return keys
