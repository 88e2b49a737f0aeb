"""Batches of images with something drawn on them (boxes, masks, another image): as exact as those of loader.py.

A batch is a pure function of (seed, epoch, batch number): neither the number of threads, nor where iteration starts,
nor what is cached changes a value, so resuming needs to know only the step. An image that cannot be read becomes a row
whose ``keep`` is False, never another image, and is listed. What a sample is, the split and its ``prepare`` and
``collate`` know; this file knows order, threads, faults and memory.

B batch, D draws a sample, n samples.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError

from . import rng
from .cache import cache_budget
from .decode import BrokenImage
from .imageset import too_many_broken
from .workers import Workers, require_workers

_TRIES, _PAUSE = 3, 0.05  # a network disk that hiccups gets three tries
_SHOWN = 20


class Samples(Protocol):
    """A split: images in a fixed order, each with what is known of it."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What people call this sample: a printable path or ``file#row``."""

    def read(self, i: int) -> Any:
        """Return the sample, decoded; raises :class:`BrokenImage`. It has ``nbytes``, and is never written into."""

    def digest(self) -> str:
        """Return hex digits that change with the names, the sizes of the files or what is drawn on them."""


class Prepare(Protocol):
    """From a sample as it was read to one as a batch holds it: crops, flips, sizes."""

    @property
    def draws(self) -> int:
        """Uniform numbers used by one sample; 0: nothing is random."""

    def __call__(self, sample: Any, draws: NDArray[np.float64]) -> Any:
        """A sample and its draws (D,) -> the prepared sample; the first is left as it was."""


Collate = Callable[[Sequence[Any], Tensor], Any]
"""Prepared samples (None: unreadable) and their positions int64 (B,) -> a :class:`SampleBatch`."""


@dataclass(frozen=True)
class SampleBatch:
    """``images`` float32 (B, 3, H, W), normalised; ``keep`` bool (B,), False where the image could not be read;
    ``indices`` int64 (B,), positions in the split. What else there is has B entries: tensors, or tuples.
    """

    images: Tensor
    keep: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.keep)

    @property
    def count(self) -> int:
        """Images that could be read: what a mean loss is over."""
        return int(self.keep.sum())

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on another device."""
        changes = {f.name: _moved(getattr(self, f.name), device) for f in dataclasses.fields(self)}
        return replace(self, **changes)

    def without_inputs(self) -> Self:
        """Return the batch without pixels: what a result is compared with."""
        return replace(self, images=self.images[:, :0])


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_moved(v, device) for v in value)
    return value.to(device) if hasattr(value, "to") else value


@dataclass(frozen=True)
class SampleSplits:
    """The splits of a data set for one task. ``notes`` are sentences to show to the user."""

    train: Samples
    val: Samples
    test: Samples | None = None
    classes: ClassMap | None = None
    notes: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, Samples]:
        """Return name -> split, training first."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}


@dataclass(frozen=True)
class Fault:
    """A sample that could not be read: position, name, reason code and a sentence."""

    index: int
    name: str
    reason: str
    message: str


class SampleLoader:
    """Reads, prepares and batches a split, to train or to evaluate.

    Args:
        samples: the split.
        batch_size: samples a batch, of all processes; the last one is shorter unless ``drop_last``.
        prepare: what happens to each sample; collate: what makes a batch of them.
        seed, shuffle: an epoch's order is ``permutation(seed, epoch)``, or the split's own.
        visits: how often an epoch visits each sample, each time with draws of its own.
        workers: threads; None is one a core, 0 reads in the calling thread.
        cache: ``auto``, ``none`` or ``all``: whether samples stay in memory as they were read.
        max_broken: where ``shuffle`` is on, the share of unreadable samples past which loading stops with
            :class:`DataError`.
        part: (rank, processes): this loader's equal share of every batch. Where a batch cannot be cut equally, the last
            shares are filled up with samples whose ``keep`` is False.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        prepare: Prepare,
        collate: Collate,
        seed: int = 0,
        shuffle: bool = False,
        visits: int = 1,
        workers: int | None = None,
        drop_last: bool = False,
        cache: str = "auto",
        max_broken: float = 0.01,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if not len(samples):
            raise DataError("expected a split with images, got an empty one")
        if visits < 1:
            raise UsageError(f"expected at least one visit an epoch, got {visits}")
        if batch_size < 1 or (drop_last and batch_size > len(samples) * visits):
            raise UsageError(
                f"expected a batch size between 1 and {len(samples) * visits} (what an epoch visits), got {batch_size}"
            )
        self.samples, self.batch_size, self.prepare, self.collate = samples, batch_size, prepare, collate
        self.seed, self.shuffle, self.visits, self.drop_last = seed, shuffle, visits, drop_last
        self.workers, self.max_broken, self.part = require_workers(workers), max_broken, part
        self._kept: dict[int, Any] = {}
        self._room = cache_budget(cache)
        self._faults: dict[int, Fault] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.samples) * self.visits, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def problems(self) -> list[Fault]:
        """The samples that could not be read so far, by position."""
        with self._lock:
            return [self._faults[i] for i in sorted(self._faults)]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The visits of an epoch, int64 (n · visits,): visit ``v`` is of sample ``v % n``."""
        count = len(self.samples) * self.visits
        return rng.permutation(self.seed, epoch, count) if self.shuffle else np.arange(count, dtype=np.int64)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of an epoch, from batch ``start`` on, at no cost for those before it.

        Raises :class:`DataError` when too many training images cannot be read. Threads end with the iteration.
        """
        if not 0 <= start <= len(self):
            raise UsageError(f"expected start between 0 and {len(self)} (batches an epoch), got {start}")
        return self._epoch(epoch, start)

    def _epoch(self, epoch: int, start: int) -> Iterator[Any]:
        order = self.order(epoch)
        waiting: deque[tuple[NDArray[np.int64], list[Future[Any]]]] = deque()
        ahead = 3 if self.workers else 1
        numbers = iter(range(start, len(self)))
        with Workers(self.workers) as pool:
            while True:
                while len(waiting) < ahead and (number := next(numbers, None)) is not None:
                    visits, fillers = self._share(order, number)
                    waiting.append((visits, self._begin(pool, epoch, visits, fillers)))
                if not waiting:
                    return
                visits, coming = waiting.popleft()
                found = [future.result() for future in coming]
                yield self.collate(found, torch.from_numpy(visits % len(self.samples)))

    def _share(self, order: NDArray[np.int64], number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return this process's visits of a batch, and which of them only fill it up."""
        batch = order[number * self.batch_size : (number + 1) * self.batch_size]
        rank, processes = self.part
        each = -(-len(batch) // processes)
        rows = np.arange(rank * each, (rank + 1) * each)
        return batch[rows % len(batch)], rows >= len(batch)

    def _begin(
        self, pool: Workers, epoch: int, visits: NDArray[np.int64], fillers: NDArray[np.bool_]
    ) -> list[Future[Any]]:
        draws = rng.uniforms(self.seed, epoch, visits, self.prepare.draws, rng.CROP)
        coming: list[Future[Any]] = []
        for row, i in enumerate((visits % len(self.samples)).tolist()):
            future: Future[Any] = Future()
            coming.append(future)
            if fillers[row]:
                future.set_result(None)
            else:
                pool.submit(partial(self._one, future, i, draws[row]))
        return coming

    def _one(self, future: Future[Any], i: int, draws: NDArray[np.float64]) -> None:
        try:
            sample = self._read(i)
            future.set_result(None if sample is None else self.prepare(sample, draws))
        except BaseException as error:  # handed over to whoever waits for the batch
            future.set_exception(error)

    def _read(self, i: int) -> Any:
        """The sample at a position, or None if it cannot be read."""
        if (kept := self._kept.get(i)) is not None:
            return kept
        try:
            sample = persistently(self.samples, i)
        except BrokenImage as error:
            self._broken(i, error)
            return None
        with self._lock:
            if i not in self._kept and sample.nbytes <= self._room:
                self._room -= sample.nbytes
                self._kept[i] = sample
        return sample

    def _broken(self, i: int, error: BrokenImage) -> None:
        with self._lock:
            self._faults[i] = Fault(i, self.samples.name(i), error.reason, error.message)
            count = len(self._faults)
        if self.shuffle and count > too_many_broken(self.max_broken, len(self.samples)):
            raise too_broken(self.problems, self.max_broken, len(self.samples))


def too_broken(problems: Sequence[Any], share: float, count: int) -> DataError:
    """Return the error that names the first unreadable images of ``count``, where a ``share`` was put up with."""
    lines = [
        f"expected at most {100 * share:g} % unreadable training images, got {len(problems)} of {count} so far:",
        *(f"  {p.name}: {p.reason}: {p.message}" for p in problems[:_SHOWN]),
    ]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    lines.append("  mend: `vitrail data check` lists them all; repair or remove them, or raise max_broken")
    return DataError("\n".join(lines))


def persistently(samples: Any, i: int) -> Any:
    """Read a sample, again where the failure may pass by itself. Raises the last :class:`BrokenImage`."""
    for left in reversed(range(_TRIES)):
        try:
            return samples.read(i)
        except BrokenImage as error:
            if not (left and error.transient):
                raise
            time.sleep(_PAUSE)
    raise AssertionError("unreachable: the last try returns or raises")
