"""The two-batch probe: build a run as ``train`` would, take a step with 2 and with 4 images, note what they took.

Data, network, optimiser, average and the step are those of the run itself (session.py, loop.py); no folder is made and
nothing is kept. Memory comes from allocator events (timeline.py), so that it is the same each time; time from a clock.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import itertools
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.data.loader import Batch, Loader
from vitrail.data.sources import Splits
from vitrail.errors import UsageError

from .defaults import Facts
from .imagejob import ImageJob
from .loop import Loop
from .pipeline import train_loader
from .plan import Network
from .precision import use_threads
from .progress import Progress
from .recipe import Recipe
from .rework import can_recompute, rework
from .session import Session
from .timeline import Timeline, record

FEW, MANY = 2, 4  # images of the two probes; a single one takes ways that no other number takes
LONG = 0.4  # seconds of a timed piece from which on a longer one would not be more like a long run


@dataclass(frozen=True)
class Pace:
    """Seconds of a piece of m images, ``base + each * m``."""

    base: float
    each: float

    def __call__(self, images: float) -> float:
        """Return the seconds of ``images``."""
        return self.base + self.each * images


@dataclass(frozen=True)
class Probe:
    """What was measured of a run.

    ``network``: what is trained and kept; ``moments``: bytes the optimiser remembers. ``steps`` and ``paces`` are by
    whether blocks recompute; ``False`` alone where blocks cannot. ``resting`` are the bytes of an image in a
    batch that waits or is worked on, ``waiting`` the batches that are ready at a time, ``held_out`` the images of the
    largest split that is evaluated, ``process`` what is taken besides tensors.
    """

    network: Network
    moments: int
    steps: dict[bool, Timeline]
    evaluation: Timeline
    loading: Timeline
    resting: int
    waiting: int
    threaded: bool
    cached: int
    held_out: int
    process: int
    paces: dict[bool, Pace]
    update_s: float
    loading_s: float
    evaluation_s: float


def probe(recipe: Recipe, splits: Splits, facts: Facts, say: Callable[[str], None], *, timed: bool = True) -> Probe:
    """Measure the run of a resolved recipe (its accumulation may still be ``auto``); memory alone if not ``timed``."""
    plain = altered(recipe, accumulation=1, recompute=False, compile=False)
    if len(splits.train) < MANY:
        raise UsageError(f"expected {MANY} training images or more to plan by, got {len(splits.train)}")
    gc.collect()
    with use_threads(plain.train.threads):
        session = session_of(plain, splits, say)
        try:
            return _measure(session, plain, facts, timed)
        finally:
            session.checkpoints.close()


def altered(recipe: Recipe, **train: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def session_of(recipe: Recipe, splits: Splits, say: Callable[[str], None]) -> Session:
    nowhere = Path(os.devnull) / "vitrail-plan"  # a session makes nothing there before it saves
    return Session(nowhere, ImageJob(recipe, splits), Progress(say))


def _splits(session: Session) -> Splits:
    assert isinstance(session.job, ImageJob), "only runs on images are probed"
    return session.job.splits


def _measure(session: Session, recipe: Recipe, facts: Facts, timed: bool) -> Probe:
    network, loop, device = Network.of(session.model, others=_others(session)), session.loop(), session.device
    loader = _loader(session, recipe, int(recipe.train.batch_size))
    began = time.perf_counter()
    batch = next(loader.epoch(0)).to(device)
    loading_s = time.perf_counter() - began
    resting = sum(t.nbytes for t in vars(batch).values() if isinstance(t, torch.Tensor)) // len(batch)
    evaluation = _two(lambda n: session.task.predict(session.shown.eval(), _few(batch, n)), device)
    steps = {False: _steps(loop, batch)}
    _give_back()
    process = resident() - _held(session) - len(batch) * resting  # before large pieces leave holes in the heap
    paces = {False: _pace(loop, batch)} if timed else {}
    update_s = _seconds(lambda: _update(loop), device) if timed else 0.0
    evaluation_s = _evaluation(session, batch) if timed else 0.0
    if can_recompute(session.model):
        rework(session.model, recompute=True, compile=False)
        steps[True] = _steps(loop, batch)
        if timed:
            paces[True] = _pace(loop, batch)
    count = session.batches.workers
    on_cpu = device.type == "cpu"
    return Probe(
        network=network,
        moments=sum(t.nbytes for t in session.masters.moments().values()),
        steps=steps,
        evaluation=evaluation,
        loading=_two(lambda n: next(_loader(session, recipe, n).epoch(0)), device),
        resting=resting + (batch.images[0].numel() if on_cpu else 0),  # beside it the uint8 images it was made of
        waiting=(min(count, 8) + 1 if count else 1) if on_cpu else 1,
        threaded=bool(count) and on_cpu,
        held_out=max(len(images) for images in (_splits(session).val, _splits(session).test) if images is not None),
        cached=_cached(session, facts) if on_cpu else 0,
        process=max(0, process) if on_cpu else 0,
        paces=paces,
        update_s=update_s,
        loading_s=loading_s / len(batch),
        evaluation_s=evaluation_s,
    )


def _loader(session: Session, recipe: Recipe, images: int) -> Loader:
    """Return the run's loader at another batch size; it keeps nothing, so that each batch is made in full."""
    changed = altered(recipe, batch_size=images)
    changed = changed.model_copy(update={"data": recipe.data.model_copy(update={"cache": "none", "workers": 0})})
    return train_loader(changed, _splits(session).train, session.card, session.device)


def _few(batch: Batch, images: int) -> Batch:
    """Return the first images of a batch; a batch of fewer is gone through again."""
    index = torch.arange(images, device=batch.labels.device) % len(batch)
    fields = {name: value[index] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **fields)


def _two(work: Callable[[int], object], device: torch.device) -> Timeline:
    """Return the timeline of ``work``, by two numbers of images, after a first run that fills caches and tables."""
    work(FEW)
    few, many = (record(lambda n=n: work(n), device) for n in (FEW, MANY))  # type: ignore[misc]
    return Timeline.of(few, FEW, many, MANY)


def _steps(loop: Loop, batch: Batch) -> Timeline:
    """Return the timeline of a step without its batch."""
    ready = {n: _few(batch, n) for n in (FEW, MANY)}
    return _two(lambda n: loop._one_step(ready[n], n), loop.device)


def _pace(loop: Loop, batch: Batch) -> Pace:
    """Time pieces of 2, 4, 8, ... images until one takes long or is the whole batch; the last two give the line."""
    times: list[tuple[int, float]] = []
    for images in itertools.takewhile(lambda n: n <= max(MANY, len(batch)), (FEW * 2**i for i in itertools.count())):
        piece = _few(batch, images)
        times.append((images, _seconds(lambda piece=piece: _piece(loop, piece), loop.device)))  # type: ignore[misc]
        if times[-1][1] > LONG and len(times) > 1:
            break
    (few, short), (many, long) = times[-2:]
    each = max((long - short) / (many - few), 0.5 * long / many)  # a machine that was disturbed must not give less
    return Pace(max(0.0, long - many * each), each)


def _piece(loop: Loop, piece: Batch) -> None:
    """Do what each piece of a batch costs: forward, backward, and its gradient added to the sums."""
    loop.model.train()
    loop.task.step(loop.model, piece)["loss"].backward()
    loop.masters.gather()


def _update(loop: Loop) -> None:
    """Do what each step costs besides its pieces."""
    loop.masters.norm()
    loop.masters.update(0.0)
    if loop.ema is not None:
        loop.ema.update()


def _evaluation(session: Session, batch: Batch) -> float:
    """Return the seconds an image takes in evaluation."""
    piece = _few(batch, min(8, max(MANY, len(batch))))
    model = session.shown.eval()
    return _seconds(lambda: session.task.predict(model, piece), session.device) / len(piece)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of up to three runs after a first one; long ones are not repeated."""
    found: list[float] = []
    while len(found) < 4 and (len(found) < 2 or found[-1] < 2 * LONG):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def _cached(session: Session, facts: Facts) -> int:
    """Return the bytes of decoded images that stay in memory: training's whole, the others as they are cropped."""
    kept = min(session.batches.cache.budget, 3 * facts.height * facts.width * facts.count)
    height, width = session.card.input_size
    if session.batches.crop.draws == 0:
        kept = min(session.batches.cache.budget, 3 * height * width * facts.count)
    return kept + min(session.val.cache.budget, 3 * height * width * len(_splits(session).val))


def _others(session: Session) -> int:
    """Return the bytes of weights that are not trained: frozen ones, in the model and as they are shown; a teacher."""
    models = [session.model, session.shown]
    frozen = sum(p.nbytes for model in models for p in _frozen(session.model, model))
    teacher = getattr(getattr(session.task, "teacher", None), "model", None)
    return frozen + (sum(t.nbytes for t in (*teacher.parameters(), *teacher.buffers())) if teacher is not None else 0)


def _frozen(trained: nn.Module, model: nn.Module) -> list[nn.Parameter]:
    learns = {name for name, p in trained.named_parameters() if p.requires_grad}
    return [p for name, p in model.named_parameters() if name not in learns]


def _held(session: Session) -> int:
    """Return the bytes of weights, gradients, moments, averages and buffers of a run."""
    masters = session.masters
    kept = [
        *session.model.parameters(),
        *session.model.buffers(),
        *session.shown.parameters(),
        *session.shown.buffers(),
    ]
    kept += [*masters.weights, *(w.grad for w in masters.weights if w.grad is not None), *masters.moments().values()]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(storages.values())


def _give_back() -> None:
    """Let the C library return what was freed; it would otherwise count as taken. Elsewhere than on Linux: nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def resident() -> int:
    """Return the bytes of memory that this process has at the moment: Python and its libraries."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the most it ever had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
