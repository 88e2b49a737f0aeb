"""From a probe to a plan: the ways to compute a recipe's batch, what each takes, and which fits into the memory.

B images a step, N processes that share it, m images at a time: B = N m k with k pieces. B never changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vitrail.data.memory import available_bytes
from vitrail.data.sources import Splits
from vitrail.errors import UsageError

from .defaults import Decision, Facts, measure, resolve
from .pipeline import open_data, parts_of
from .plan import HEADROOM, Choice, Memory, Parallel, cuts, predict_memory, rank
from .precision import pick_device
from .probe import Probe, altered, probe, resident
from .recipe import Recipe
from .world import ALONE, World


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
    from .selftrain import with_unlabelled

    if not isinstance(asked, Recipe):
        raise UsageError(f"expected a run on images to plan, got {asked.task}, whose memory is not predicted yet")
    device = pick_device(asked.train.device)
    splits = with_unlabelled(asked, open_data(asked), None, say)
    for note in splits.notes:
        say(note)
    facts = measure(splits.train)
    settled, made = resolve(asked, facts, device, has_val="val" in parts_of(asked))
    return Prepared(settled, splits, facts, device, made)


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
    t, images = recipe.train, share_of(recipe, processes)
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


def share_of(recipe: Recipe, processes: int) -> int:
    """Return the images of a process in a step. Raises :class:`UsageError` if the batch cannot be shared evenly."""
    batch = recipe.train.batch_size
    images, rest = divmod(batch, processes)
    if rest or not images:
        raise UsageError(
            f"expected a batch that {processes} processes can share, got {batch}; "
            f"mend: --batch {max(1, round(batch / processes)) * processes}"
        )
    return images


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
    seen = min(2 * micro, found.held_out)
    measured = found.evaluation.peak(seen) + found.waiting * found.resting * seen
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


def _step_seconds(found: Probe, micro: int, count: int, images: int, recompute: bool, device: torch.device) -> float:
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
    return available_bytes() + resident()


def settle_accumulation(
    recipe: Recipe,
    splits: Splits,
    facts: Facts,
    device: torch.device,
    say: Callable[[str], None],
    world: World = ALONE,
) -> tuple[Recipe, Decision]:
    """Return the recipe with a number in place of ``train.accumulation: auto``: the fewest pieces that fit.

    The device's free memory is what decides, that of the first process where there are several; ``train.recompute``
    stays as it is. Raises :class:`UsageError` where one image at a time does not fit either.
    """

    def settle() -> tuple[int, str]:
        budget = budget_of(device) // (world.local_size if device.type == "cpu" else 1)
        found = probe(recipe, splits, facts, say, timed=False)
        how: Parallel = "ddp"
        if not world.alone:
            from .sharding import choose  # a second's worth of torch.distributed

            how = "ddp" if choose(recipe.train.parallel, world, found.network.whole, budget) == "ddp" else "fsdp"
        plan = make_plan(recipe, splits, found, device, budget, parallel=how, processes=world.size)
        best = _fewest(plan, recipe.train.recompute)
        said = f"{gigabytes(best.memory.total)} of {gigabytes(budget)} free on {device}, {best.micro} images at a time"
        return best.accumulation, said

    pieces, reason = world.lead(settle)
    return altered(recipe, accumulation=pieces), Decision("train.accumulation", pieces, reason)


def _fewest(plan: Plan, recompute: bool) -> Choice:
    fitting = [c for c in plan.choices if c.fits and c.recompute == recompute]
    if fitting:
        return min(fitting, key=lambda c: c.accumulation)
    least = min(plan.choices, key=lambda c: c.memory.total)
    raise UsageError(
        f"expected a run that fits into the {gigabytes(plan.budget)} of {plan.device}, got "
        f"{gigabytes(least.memory.total)} with {least.micro} image(s) at a time"
        f"{' and train.recompute=true' if least.recompute else ''}; "
        "mend: a smaller --model or --img-size, or --set train.precision=bf16"
    )


def gigabytes(count: float) -> str:
    """Return "1.25 GB" (10^9 bytes), below one in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
