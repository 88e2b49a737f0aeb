"""Batches for training and evaluation: a pure function of (seed, epoch, batch index).

Neither the worker count, nor where iteration starts, nor what is cached changes a single value; so resuming needs to
know only the step (docs/reliability.md 1.2, T6). A file that cannot be read becomes a masked sample, never another
image (D3), and is listed.
Shapes: B batch, K classes; images (B, 3, h, w) float32, normalised.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import DataError, UsageError

from . import rng
from .augment import Augment, Normalize
from .cache import ImageCache, cache_budget
from .decode import BrokenImage
from .imageset import ImageSet, too_many_broken
from .mixing import Mix
from .order import InOrder, Order, Shuffled, draw_keys
from .samples import persistently, too_broken
from .transforms import Crop, crop_images
from .workers import Workers, require_workers


@dataclass(frozen=True)
class Batch:
    """``images`` float32 (B, 3, h, w); ``labels`` int64 (B,), or bool (B, K) of several an image;
    ``targets`` float32 (B, K), None where labels say it all;
    ``keep`` bool (B,), False where the image could not be read (its pixels are zero); ``indices`` int64 (B,) are
    positions in the set.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor | None
    keep: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def count(self) -> int:
        """Images that could be read: what a mean loss is over."""
        return int(self.keep.sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def without_inputs(self) -> Batch:
        """Return the batch without pixels: what a result is compared with."""
        return replace(self, images=self.images[:, :0])

    def without_first(self) -> Batch:
        """Return the batch without its first image."""
        return replace(self, **{name: value[1:] for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Problem:
    """An image that could not be read: position in the set, name, class, reason code and a sentence."""

    index: int
    name: str
    class_name: str
    reason: str
    message: str


@dataclass(frozen=True)
class Share:
    """What one process loads of batch ``number``: ``indices`` int64 (b,) at ``rows`` (b,) of the whole batch.

    ``keys`` int64 (b,) are what each visit draws its crop and augmentation by. ``whole`` is the size of the batch; rows
    from there on are fillers. With ``neighbour`` the first image is only there to be mixed with the second, as the last
    image of the process before, and is dropped afterwards.
    """

    number: int
    indices: NDArray[np.int64]
    keys: NDArray[np.int64]
    rows: NDArray[np.int64]
    whole: int
    neighbour: bool

    @classmethod
    def of(
        cls, number: int, batch: NDArray[np.int64], keys: NDArray[np.int64], part: tuple[int, int], *, mixed: bool
    ) -> Share:
        """Cut part (rank, processes) out of the positions (B,) and keys (B,) of a whole batch."""
        (rank, processes), whole = part, len(batch)
        each = -(-whole // processes)
        neighbour = mixed and processes > 1
        rows = np.arange(rank * each - neighbour, (rank + 1) * each)
        here = rows % whole
        return cls(number, batch[here], keys[here], np.where(rows < 0, rows + whole, rows), whole, neighbour)

    @property
    def fillers(self) -> NDArray[np.bool_]:
        """(b,) True where there is no image of the batch left."""
        return self.rows >= self.whole


class _Job:
    """One batch under way: uint8 (B, 3, h, w), filled piece by piece by several threads.

    ``share`` says which images, and what each visit draws its crop and augmentation by.
    """

    def __init__(self, share: Share, size: tuple[int, int], pieces: int) -> None:
        self.share, self.indices, self.keys = share, share.indices, share.keys
        self.images = torch.zeros((len(self.indices), 3, *size), dtype=torch.uint8)
        self.keep = torch.ones(len(self.indices), dtype=torch.bool)
        self.done: Future[Batch | None] = Future()
        self._open = pieces
        self._lock = threading.Lock()

    def piece_done(self) -> bool:
        """True for the piece that was the last one."""
        with self._lock:
            self._open -= 1
            return self._open == 0


class Loader:
    """Loads, crops, augments and batches an :class:`~vitrail.data.imageset.ImageSet`, to train or to evaluate.

    Args:
        dataset: the images.
        batch_size: images a batch; the last batch is shorter unless ``drop_last``.
        crop: brings images to one size (``transforms``); ``normalize``: the weights' mean and std.
        augment, mix: what else happens in training (``augment``, ``mixing``); None for evaluation.
        seed, shuffle: the order is ``permutation(seed, epoch)``, or the set's own.
        order: another order of training (``order``), in the place of that permutation.
        workers: threads; None is one a core, 0 loads in the calling thread.
        cache: ``auto``, ``none`` or ``all`` (``cache``).
        max_broken: where ``shuffle`` is on, the share of unreadable images past which loading stops with
            :class:`DataError` (a single one never stops it). In evaluation each is reported by ``keep`` instead.
        device: where augmentation runs and batches lie; crops and decoding are on the CPU.
        part: (rank, processes): this loader's equal share of every batch, ``batch_size`` being that of all processes.
            Together they are the batches of one process, mixing included; where a batch cannot be cut equally, the
            last ones are filled up with images whose ``keep`` is False.
    """

    def __init__(
        self,
        dataset: ImageSet,
        *,
        batch_size: int,
        crop: Crop,
        normalize: Normalize,
        augment: Augment | None = None,
        mix: Mix | None = None,
        seed: int = 0,
        shuffle: bool = False,
        order: Order | None = None,
        workers: int | None = None,
        drop_last: bool = False,
        cache: str = "auto",
        max_broken: float = 0.01,
        device: torch.device | str = "cpu",
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1 or (drop_last and batch_size > len(dataset)):
            raise UsageError(
                f"expected a batch size between 1 and the {len(dataset)} images of the set, got {batch_size}"
            )
        if not len(dataset):
            raise DataError("expected a set with images, got an empty one")
        if not 0 <= max_broken <= 1:
            raise UsageError(f"expected max_broken as a share between 0 and 1, got {max_broken}")
        if mix is not None and mix.num_classes != len(dataset.classes):
            raise UsageError(f"expected Mix of {len(dataset.classes)} classes, got {mix.num_classes}")
        if order is not None and not shuffle:
            raise UsageError("order has no effect without shuffle; mend: shuffle=True, or leave order out")
        self.dataset = dataset
        self.batch_size = batch_size
        self.crop, self.normalize, self.augment, self.mix = crop, normalize, augment, mix
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self._order = order or (Shuffled(len(dataset), seed) if shuffle else InOrder(len(dataset)))
        self.workers = require_workers(workers)
        self.max_broken = max_broken
        self.device = torch.device(device)
        self.part = part
        self.cache = ImageCache(len(dataset), cache_budget(cache))
        self._problems: dict[int, Problem] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def problems(self) -> list[Problem]:
        """The images that could not be read so far, by position."""
        with self._lock:
            return [self._problems[i] for i in sorted(self._problems)]

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The positions of an epoch's images, in the order they are visited, int64 (n,)."""
        order = self._order(epoch)
        assert len(order) == len(self.dataset), "an epoch has as many visits as the set has images"
        return order

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from batch ``start`` on, at no cost for those before it.

        Raises :class:`DataError` when too many training images cannot be read. Threads end with the iteration, however
        it ends.
        """
        if not 0 <= start <= len(self):
            raise UsageError(f"expected start between 0 and {len(self)} (batches an epoch), got {start}")
        return self._epoch(epoch, start)

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch)
        keys = draw_keys(order, len(self.dataset))
        waiting: deque[_Job] = deque()
        ahead = min(self.workers, 8) + 1 if self.workers else 1
        numbers = iter(range(start, len(self)))
        with Workers(self.workers) as pool:
            while True:
                while len(waiting) < ahead and (number := next(numbers, None)) is not None:
                    waiting.append(self._start(pool, epoch, number, order, keys))
                if not waiting:
                    return
                job = waiting.popleft()
                batch = job.done.result()
                yield batch if batch is not None else self._finish(job, epoch)

    def _start(self, pool: Workers, epoch: int, number: int, order: NDArray[np.int64], keys: NDArray[np.int64]) -> _Job:
        """Hand one batch to the pool: in one piece where nothing need be read, else in a piece a worker."""
        here = slice(number * self.batch_size, (number + 1) * self.batch_size)
        share = Share.of(number, order[here], keys[here], self.part, mixed=self.mix is not None)
        indices = share.indices
        ready = all(self.cache.get(i) is not None for i in indices.tolist())
        length = len(indices) if ready or not pool.count else -(-len(indices) // pool.count)
        starts = range(0, len(indices), length)
        job = _Job(share, self.crop.size, len(starts))
        draws = rng.uniforms(self.seed, epoch, job.keys, self.crop.draws, rng.CROP)
        for first in starts:
            piece = slice(first, first + length)
            pool.submit(lambda piece=piece: self._piece(pool, job, piece, draws, epoch))  # type: ignore[misc]
        return job

    def _piece(self, pool: Workers, job: _Job, piece: slice, draws: NDArray[np.float64], epoch: int) -> None:
        try:
            self._fill(pool, job, piece, draws)
            if job.piece_done() and not job.done.done():
                # On another device the batch is finished by whoever asks for it.
                job.done.set_result(self._finish(job, epoch) if self.device.type == "cpu" else None)
        except BaseException as error:  # handed over to whoever waits for the batch
            with self._lock:
                if not job.done.done():
                    job.done.set_exception(error)

    def _fill(self, pool: Workers, job: _Job, piece: slice, draws: NDArray[np.float64]) -> None:
        images: list[Tensor] = []
        places: list[int] = []
        fillers = job.share.fillers
        for place in range(*piece.indices(len(job.indices))):
            if pool.stopping:
                return
            image = None if fillers[place] else self._read(int(job.indices[place]))
            if image is None:
                job.keep[place] = False
            else:
                images.append(image)
                places.append(place)
        if not images:
            return
        whole = len(images) == len(job.indices[piece])
        where = piece if whole else torch.tensor(places)
        if self.crop.draws:
            job.images[where] = crop_images(self.crop, images, draws[piece if whole else places])
        else:
            job.images[where] = torch.stack(images)  # cropped when they were read

    def _read(self, i: int) -> Tensor | None:
        """The image at a position (already cropped, if the crop is not random), or None if it cannot be read."""
        image = self.cache.get(i)
        if image is not None:
            return image
        try:
            image = persistently(self.dataset, i)
        except BrokenImage as error:
            self._broken(i, error)
            return None
        if not self.crop.draws:
            image = self.crop(image[None], np.empty((1, 0)))[0]
        self.cache.put(i, image)
        return image

    def _broken(self, i: int, error: BrokenImage) -> None:
        name = self.dataset.label_words(i)
        with self._lock:
            self._problems[i] = Problem(i, self.dataset.name(i), name, error.reason, error.message)
            count = len(self._problems)
        if self.shuffle and count > too_many_broken(self.max_broken, len(self.dataset)):
            raise too_broken(self.problems, self.max_broken, len(self.dataset))

    def _finish(self, job: _Job, epoch: int) -> Batch:
        """Augment, normalise and mix a batch whose crops are ready."""
        images = job.images.to(self.device)
        if self.augment:
            draws = rng.uniforms(self.seed, epoch, job.keys, self.augment.draws, rng.AUGMENT)
            out = self.augment(images, draws, self.normalize)
        else:
            out = self.normalize(images)
        keep = job.keep.to(self.device)
        if not job.keep.all():
            out[~keep] = 0.0
        labels = torch.from_numpy(self.dataset.labels[job.indices]).to(self.device)
        targets = None
        if self.dataset.soft is not None:
            own = self.dataset.soft.of(job.indices, self.dataset.labels[job.indices])
            targets = torch.from_numpy(own).to(self.device)
        share, indices = job.share, torch.from_numpy(job.indices.copy()).to(self.device)
        if self.mix:
            place = {"seed": self.seed, "epoch": epoch, "batch_index": share.number}
            out, targets = self.mix(out, labels, keep, own=targets, rows=share.rows, whole=share.whole, **place)
        batch = Batch(out, labels, targets, keep, indices)
        return batch.without_first() if share.neighbour else batch
