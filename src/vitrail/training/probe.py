"""The two-batch probe: build a run as ``train`` would, take a step with 2 and with 4 images, and plan by what they took.

Data, network, optimiser, average and the step are those of the run itself (session.py, loop.py); no folder is made and
nothing is kept. Memory comes from allocator events (timeline.py), so that it is the same each time; time from a clock.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.data.loader import Batch, Loader
from vitrail.data.memory import available_bytes
from vitrail.data.sources import Splits
from vitrail.errors import UsageError

from .defaults import Decision, Facts, measure, resolve
from .loop import Loop
from .pipeline import train_loader
from .plan import HEADROOM, Choice, Memory, Network, Parallel, cuts, predict_memory, rank
from .precision import pick_device, use_threads
from .progress import Progress
from .recipe import Recipe
from .rework import rework
from .session import Identity, Session
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

    ``steps`` and ``paces`` are by whether blocks recompute; ``False`` alone for a network without blocks. ``resting``
    are the bytes of an image in a batch that waits or is worked on, ``waiting`` the batches that are ready at a time.
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
    process: int
    paces: dict[bool, Pace]
    update_s: float
    loading_s: float
    evaluation_s: float


@dataclass(frozen=True)
class Prepared:
    """What is known of a run before its network is built."""

    recipe: Recipe
    splits: Splits
    facts: Facts
    device: torch.device
    decisions: list[Decision]


def prepare(asked: Recipe, say: Callable[[str], None]) -> Prepared:
    """Open the data of a recipe and settle its ``auto`` as ``train`` does; ``train.accumulation`` may stay ``auto``."""
    from .run import _open, _own_splits

    device = pick_device(asked.train.device)
    splits = _open(asked)
    for note in splits.notes:
        say(note)
    facts = measure(splits.train)
    settled, made = resolve(asked, facts, device, has_val="val" in _own_splits(asked))
    return Prepared(settled, splits, facts, device, made)


def probe(recipe: Recipe, splits: Splits, facts: Facts, say: Callable[[str], None], *, timed: bool = True) -> Probe:
    """Measure the run of a resolved recipe (its accumulation may still be ``auto``); memory alone if not ``timed``."""
    plain = _with(recipe, accumulation=1, recompute=False, compile=False)
    if len(splits.train) < MANY:
        raise UsageError(f"expected {MANY} training images or more to plan by, got {len(splits.train)}")
    with use_threads(plain.train.threads):
        session = _session(plain, splits, say)
        try:
            return _measure(session, plain, facts, timed)
        finally:
            session.checkpoints.close()


def _with(recipe: Recipe, **train: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def _session(recipe: Recipe, splits: Splits, say: Callable[[str], None]) -> Session:
    nowhere = Path(os.devnull) / "vitrail-plan"  # a session makes nothing there before it saves
    return Session(nowhere, recipe, splits, Identity({}, {}, {}), Progress(say))


def _measure(session: Session, recipe: Recipe, facts: Facts, timed: bool) -> Probe:
    network, loop, device = Network.of(session.model), session.loop(), session.device
    loader = _loader(session, recipe, int(recipe.train.batch_size))
    began = time.perf_counter()
    batch = next(loader.epoch(0)).to(device)
    loading_s = time.perf_counter() - began
    resting = sum(t.nbytes for t in vars(batch).values() if isinstance(t, torch.Tensor)) // len(batch)
    evaluation = _two(lambda n: session.task.predict(session.shown.eval(), _few(batch, n)), device)
    steps = {False: _steps(loop, batch)}
    process = _resident() - _held(session) - len(batch) * resting  # before large pieces leave holes in the heap
    paces = {False: _pace(loop, batch)} if timed else {}
    update_s = _seconds(lambda: _update(loop), device) if timed else 0.0
    evaluation_s = _evaluation(session, batch) if timed else 0.0
    if network.blocks:
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
        cached=_cached(session, facts) if on_cpu else 0,
        process=max(0, process) if on_cpu else 0,
        paces=paces,
        update_s=update_s,
        loading_s=loading_s / len(batch),
        evaluation_s=evaluation_s,
    )


def _loader(session: Session, recipe: Recipe, images: int) -> Loader:
    """Return the run's loader at another batch size; it keeps nothing, so that each batch is made in full."""
    changed = _with(recipe, batch_size=images)
    changed = changed.model_copy(update={"data": recipe.data.model_copy(update={"cache": "none", "workers": 0})})
    return train_loader(changed, session.splits.train, session.card, session.device)


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
    return _two(lambda n: loop._one_step(ready[n]), loop.device)


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
    return kept + min(session.val.cache.budget, 3 * height * width * len(session.splits.val))


def _held(session: Session) -> int:
    """Return the bytes of weights, gradients, moments, averages and buffers of a run on one device."""
    masters = session.masters
    kept = [*session.model.parameters(), *session.model.buffers(), *session.shown.parameters(), *session.shown.buffers()]
    kept += [*masters.weights, *(w.grad for w in masters.weights if w.grad is not None), *masters.moments().values()]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept}
    return sum(storages.values())


def _resident() -> int:
    """Return the bytes of memory that this process has at the moment: Python and its libraries."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the most it ever had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Plan:
    """What a run will need, and the ways to compute its batch, the best first."""

    recipe: Recipe
    device: str
    budget: int
    images: int
    """Of a process, in a step."""
    choices: list[Choice]
    asked: Choice
    """That of the recipe."""
    steps_an_epoch: int
    evaluation_s: float
    exact: bool
    batch_norms: bool

    def epoch_s(self, choice: Choice) -> float:
        """Return the seconds of an epoch with ``choice``, evaluations included."""
        evaluations = math.ceil(self.recipe.train.epochs / self.recipe.train.eval_every) / self.recipe.train.epochs
        return (choice.step_s or 0.0) * self.steps_an_epoch + self.evaluation_s * evaluations

    def run_s(self, choice: Choice) -> float:
        """Return the seconds of the whole run with ``choice``."""
        return self.recipe.train.epochs * self.epoch_s(choice)


def make_plan(
    recipe: Recipe, splits: Splits, found: Probe, device: torch.device, budget: int, *,
    parallel: Parallel = "ddp", processes: int = 1,
) -> Plan:  # fmt: skip
    """Return the ways to compute the batch of a resolved recipe in ``budget`` bytes a process.

    The batch stays what the recipe says; ``processes`` share it. Raises :class:`UsageError` if they cannot.
    """
    t = recipe.train
    images, rest = divmod(t.batch_size, processes)
    if rest or not images:
        raise UsageError(
            f"expected a batch that {processes} processes can share, got {t.batch_size}; "
            f"mend: --batch {max(1, round(t.batch_size / processes)) * processes}"
        )
    asked = -(-images // (t.accumulation if isinstance(t.accumulation, int) else 1))
    pairs = sorted({*cuts(images), (asked, -(-images // asked))})

    def choice(micro: int, count: int, recompute: bool) -> Choice:
        memory = _memory(found, recipe, micro, images, recompute, parallel, processes)
        step = _step_seconds(found, micro, count, images, recompute, device) if found.paces else None
        return Choice(micro, count, recompute, memory, memory.total <= HEADROOM * budget, step)

    return Plan(
        recipe=recipe,
        device=str(device),
        budget=budget,
        images=images,
        choices=rank([choice(*pair, recompute) for pair in pairs for recompute in found.steps]),
        asked=choice(asked, -(-images // asked), t.recompute),
        steps_an_epoch=len(splits.train) // t.batch_size,
        evaluation_s=found.evaluation_s * len(splits.val) / processes,
        exact=all(line.exact for line in found.steps.values()),
        batch_norms=found.network.exact > 0,
    )


def _memory(
    found: Probe, recipe: Recipe, micro: int, images: int, recompute: bool, parallel: Parallel, processes: int
) -> Memory:
    """Return what a process needs in the worst moment: a training step, loading, or evaluation."""
    step, t = found.steps[recompute], recipe.train
    work = step.peak(micro) if parallel == "ddp" else math.ceil(step.once + step.each * micro)
    loading = found.loading.peak(images)
    waiting = found.waiting * found.resting * images
    work = work + loading if found.threaded else max(work, loading)
    # evaluation takes two pieces' images at a time, while the last training batch is still held
    measured = found.evaluation.peak(2 * micro) + found.waiting * found.resting * 2 * micro
    return predict_memory(
        found.network,
        precision=t.precision,
        moments=found.moments,
        ema=t.ema_decay is not None,
        work=max(work, measured),
        data=waiting + found.cached,
        parallel=parallel,
        processes=processes,
        process=found.process,
    )


def _step_seconds(
    found: Probe, micro: int, count: int, images: int, recompute: bool, device: torch.device
) -> float:
    """Return the seconds of a step: its pieces, the update, and the batch's making unless a GPU leaves it time."""
    whole, last = divmod(images, micro)
    pace = found.paces[recompute]
    compute = whole * pace(micro) + (pace(last) if last else 0.0) + found.update_s
    loading = found.loading_s * images
    if device.type == "cpu":
        return compute + loading
    return max(compute, loading / max(1, found.waiting))


def budget_of(device: torch.device, asked: int | None = None) -> int:
    """Return the bytes a process may plan for: those ``asked`` for, or what is free on the device.

    On a CPU what this process has already counts as free, since the run would have it, too.
    """
    if asked is not None:
        return asked
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes() + _resident()


def settle_accumulation(
    recipe: Recipe, splits: Splits, facts: Facts, device: torch.device, say: Callable[[str], None], processes: int = 1
) -> tuple[Recipe, Decision]:
    """Return the recipe with a number in place of ``train.accumulation: auto``: the fewest pieces that fit.

    The device's free memory is what decides; ``train.recompute`` stays as it is. Raises :class:`UsageError` where one
    image at a time does not fit either.
    """
    budget = budget_of(device)
    found = probe(recipe, splits, facts, say, timed=False)
    plan = make_plan(recipe, splits, found, device, budget, processes=processes)
    fitting = [c for c in plan.choices if c.fits and c.recompute == recipe.train.recompute]
    if not fitting:
        least = min(plan.choices, key=lambda c: c.memory.total)
        raise UsageError(
            f"expected a run that fits into the {gigabytes(budget)} of {device}, got {gigabytes(least.memory.total)} "
            f"with {least.micro} image(s) at a time{' and train.recompute=true' if least.recompute else ''}; "
            "mend: a smaller --model or --img-size, or --set train.precision=bf16"
        )
    best = min(fitting, key=lambda c: c.accumulation)
    reason = f"{gigabytes(best.memory.total)} of {gigabytes(budget)} free on {device}, {best.micro} images at a time"
    return _with(recipe, accumulation=best.accumulation), Decision("train.accumulation", best.accumulation, reason)


def gigabytes(count: float) -> str:
    """Return "1.25 GB" (10^9 bytes), below one in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
