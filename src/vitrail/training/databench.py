"""How fast are images read, stage by stage, and does that feed a model? Nothing is trained or kept.

Stages build on each other: ``read`` fetches the encoded bytes; ``crop`` decodes and crops as training does; ``full``
augments and normalises too, which is what training waits for. Each measurement goes on where the last one ended, so
that a large set is read from the disk and not from the memory of the operating system.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vitrail.data.decode import BrokenImage
from vitrail.data.imageset import ImageSet
from vitrail.data.loader import Loader
from vitrail.data.sources import Splits, open_dataset
from vitrail.data.workers import Workers, in_order
from vitrail.errors import UsageError
from vitrail.weights import Card

from .build import build_model, build_task
from .defaults import measure, resolve
from .pipeline import augmentation, normalization, train_crop, train_order
from .precision import dtype_of, pick_device, use_threads
from .recipe import Recipe

STAGES = ("read", "crop", "full")
STEPS = 3


@dataclass(frozen=True)
class Pace:
    """What ``workers`` threads (0: none beside the caller) reach in a stage: images and encoded MiB a second."""

    stage: str
    workers: int
    images_per_s: float
    mib_per_s: float | None


@dataclass(frozen=True)
class DataBench:
    """All measurements, and the pace of the model's training where one was named (forward and backward)."""

    images: int
    batch: int
    size: tuple[int, int]
    paces: tuple[Pace, ...]
    model: str | None
    device: str | None
    model_images_per_s: float | None

    def fed(self) -> int | None:
        """The fewest workers that read as fast as the model trains; None where none of those measured does."""
        wanted = self.model_images_per_s or 0.0
        return min((p.workers for p in self.paces if p.stage == "full" and p.images_per_s >= wanted), default=None)


def bench_data(
    settings: Recipe,
    *,
    workers: Sequence[int] = (0, 1, 2),
    batch: int = 32,
    seconds: float = 2.0,
    with_model: bool = False,
    tell: Callable[[Pace], None] | None = None,
) -> DataBench:
    """Measure reading the training images of ``settings.data``, as its crop and augmentation (or the defaults) have it.

    Each of the three stages is measured for each number of ``workers`` for about ``seconds``; ``tell`` hears of each.
    ``with_model`` also times a few training steps of the recipe's model.
    """
    if batch < 1 or seconds <= 0 or not workers or min(workers) < 0:
        raise UsageError(
            f"expected a batch and seconds above 0 and workers of 0 or more, got {batch}, {seconds}, {list(workers)}"
        )
    d = settings.data
    splits = open_dataset(
        d.source, seed=d.seed, allow_empty=d.allow_empty, max_broken=d.max_broken, sequential=d.window is not None
    )
    images, device = splits.train, pick_device(settings.train.device)
    batch = min(batch, len(images))
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": batch})})
    recipe, _ = resolve(settings, measure(images), device, has_val=True)
    size = recipe.model.img_size
    height, width = size if isinstance(size, tuple) else (size, size)
    card = Card(name=recipe.model.name, input_size=(int(height), int(width)))
    cursor = _Cursor(recipe, images, batch)
    paces = []
    for count, stage in itertools.product(workers, STAGES):
        if stage == "read":
            paces.append(_read_pace(images, cursor, count, seconds))
        else:
            loader = _loader(recipe, images, card, (stage, count, batch))
            paces.append(replace(_load_pace(loader, cursor, seconds), stage=stage))
        if tell is not None:
            tell(paces[-1])
    pace = _model_pace(recipe, splits, card, device) if with_model else None
    name, where = (recipe.model.name, str(device)) if with_model else (None, None)
    return DataBench(len(images), batch, card.input_size, tuple(paces), name, where, pace)


class _Cursor:
    """Where in the training order the measurements have come to, in batches."""

    def __init__(self, recipe: Recipe, images: ImageSet, batch: int) -> None:
        self.order, self.batch = train_order(recipe, images), batch
        self.per_epoch = len(images) // batch
        self.at = 0

    def batches(self) -> Iterator[list[int]]:
        """Positions of the next batches, epoch after epoch."""
        while True:
            epoch, number = divmod(self.at, self.per_epoch)
            order = self.order(epoch)
            for place in range(number, self.per_epoch):
                self.at += 1
                yield order[place * self.batch : (place + 1) * self.batch].tolist()


def _loader(recipe: Recipe, images: ImageSet, card: Card, how: tuple[str, int, int]) -> Loader:
    stage, workers, batch = how
    return Loader(
        images,
        batch_size=batch,
        crop=train_crop(recipe, card),
        augment=augmentation(recipe) if stage == "full" else None,
        normalize=normalization(card),
        seed=recipe.train.seed,
        shuffle=True,
        order=train_order(recipe, images),
        workers=workers,
        drop_last=True,
        cache="none",
        max_broken=recipe.data.max_broken,
    )


def _read_pace(images: ImageSet, cursor: _Cursor, workers: int, seconds: float) -> Pace:
    def fetch(indices: list[int]) -> int:
        return sum(_bytes_of(images, i) for i in indices)

    with Workers(workers) as pool:
        sizes = in_order(pool, cursor.batches(), fetch)
        count, total, spent = _timed(sizes, 4 * workers, seconds)
    return Pace("read", workers, count * cursor.batch / spent, total / spent / 2**20)


def _bytes_of(images: ImageSet, i: int) -> int:
    try:
        return len(images.blob(i))
    except BrokenImage:
        return 0


def _load_pace(loader: Loader, cursor: _Cursor, seconds: float) -> Pace:
    def batches() -> Iterator[int]:
        while True:
            epoch, number = divmod(cursor.at, cursor.per_epoch)
            for _ in loader.epoch(epoch, start=number):
                cursor.at += 1
                yield 0

    count, _, spent = _timed(batches(), loader.workers, seconds)
    return Pace("", loader.workers, count * cursor.batch / spent, None)


def _timed(batches: Iterator[int], ahead: int, seconds: float) -> tuple[int, int, float]:
    """Batches, sum of what they gave, and seconds, once the queue of batches under way is as full as it stays."""
    for _ in range(ahead + 1):
        next(batches)
    count = total = 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or count < 2:
        total += next(batches)
        count += 1
    close = getattr(batches, "close", None)
    if close is not None:
        close()  # its threads end here, not in the next measurement
    return count, total, spent


def _model_pace(recipe: Recipe, splits: Splits, card: Card, device: torch.device) -> float:
    """Images a second of forward and backward, the fastest of a few steps, on a batch that is already there."""
    model, card = build_model(recipe, splits, lambda _: None)
    dtype = dtype_of(recipe.train.precision)
    model = model.to(device=device, dtype=dtype).train()
    task = build_task(recipe, splits, card, device)
    loader = _loader(recipe, splits.train, card, ("full", 0, int(recipe.train.batch_size)))
    batch = next(iter(loader.epoch(0))).to(device)
    batch = replace(batch, images=batch.images.to(dtype))
    times = []
    with use_threads(recipe.train.threads):
        for _ in range(1 + STEPS):  # the first wakes everything up
            _wait(device)
            start = time.perf_counter()
            task.step(model, batch)["loss"].backward()
            model.zero_grad(set_to_none=True)
            _wait(device)
            times.append(time.perf_counter() - start)
    return len(batch) / min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def verdict(found: DataBench) -> str:
    """Return one sentence: do the images come as fast as the model takes them?"""
    if found.model_images_per_s is None:
        return ""
    best = max((p for p in found.paces if p.stage == "full"), key=lambda p: p.images_per_s)
    pace = f"{found.model} trains {found.model_images_per_s:,.0f} images/s on {found.device}"
    enough = found.fed()
    if enough is not None:
        return f"{pace}: {enough} workers feed it"
    short = 1 - best.images_per_s / found.model_images_per_s
    return (
        f"{pace}, reading reaches {best.images_per_s:,.0f} with {best.workers} workers: it would wait "
        f"{100 * short:.0f} % of the time; mend: more workers, data.cache=all where "
        "memory holds the images, `vitrail data shard --resize`"
    )
