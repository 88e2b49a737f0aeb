"""`vitrail plan`: what a training would take in memory and time, and the settings that fit, before its first step."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.errors import UsageError

from .console import Json, result, say, table
from .train import asked_for

if TYPE_CHECKING:
    from vitrail.training.plan import Choice, Memory
    from vitrail.training.planning import Plan

PARTS = {  # of a process's memory, in words
    "weights": "working weights",
    "masters": "weights (float32)",
    "gradients": "gradients (float32)",
    "moments": "optimiser",
    "average": "averaged weights",
    "shown": "copy for evaluation",
    "buffers": "buffers",
    "others": "frozen weights, a teacher",
    "gathered": "blocks gathered whole",
    "data": "batches and cached images",
    "work": "activations and gradients of a piece",
    "process": "Python and its libraries",
}


def plan(
    words: Annotated[
        list[str],
        typer.Argument(metavar="DATA | RECIPE.yaml [KEY=VALUE]...", help="What you would give to `vitrail train`."),
    ],
    data: Annotated[str | None, typer.Option(help="The data, where the argument is a recipe.")] = None,
    model: Annotated[str | None, typer.Option(help="A name of `vitrail models`.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times through the training images.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images an update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    img_size: Annotated[str | None, typer.Option(help="224, or height x width: 224x192.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")] = None,
    name: Annotated[str | None, typer.Option(help="Taken as `vitrail train` takes it; no folder is made.")] = None,
    out: Annotated[str | None, typer.Option(help="Taken as `vitrail train` takes it; no folder is made.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of a recipe.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="8G, 800M: of a process; default: what is free on the device.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that share the batch, as under torchrun.", min=1)] = 1,
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="ddp|fsdp", help="Whole weights in each process, or a slice; default: the recipe's, or ddp."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the memory and time of a training from two small batches, and find settings that fit."""
    given = {"data": data, "model": model, "epochs": epochs, "batch": batch, "lr": lr, "img-size": img_size}
    given |= {"device": device, "seed": seed, "name": name, "out": out}
    source, changes = asked_for(words, given, settings or [], "plan")
    if parallel not in (None, "ddp", "fsdp"):
        raise UsageError(f"expected --parallel ddp or fsdp, got {parallel!r}")
    if parallel is not None and processes == 1:
        raise UsageError("--parallel has no effect with one process; mend: --processes 2 or more, or leave it out")
    most = None if memory is None else parse_bytes(memory)

    from vitrail.training.planning import budget_of, make_plan, prepare, share_of
    from vitrail.training.probe import probe
    from vitrail.training.recipe import Recipe

    prepared = prepare(Recipe.load(source or {}, changes), say)
    share_of(prepared.recipe, processes)  # refused now, not after the probe
    found = probe(prepared.recipe, prepared.splits, prepared.facts, say)
    budget = budget_of(prepared.device, most)
    asked = prepared.recipe.train.parallel
    how: Any = parallel or (asked if processes > 1 and asked in ("ddp", "fsdp") else "ddp")
    made = make_plan(
        prepared.recipe, prepared.splits, found, prepared.device, budget, parallel=how, processes=processes
    )
    _show(made, processes, how)
    result("plan", as_json, **_data(made, processes, how))


def parse_bytes(text: str) -> int:
    """Read a size in powers of a thousand: ``8G``, ``7.5GB``, ``800M``; ``8GiB`` in powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise UsageError(f"expected a size like 8G or 800M, got {text!r}")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** ("KMGT".index(found[2].upper()) + 1))


def _show(made: Plan, processes: int, parallel: str) -> None:
    from vitrail.training.planning import gigabytes

    recipe, best = made.recipe, made.choices[0]
    say(
        f"{recipe.model.name} at {recipe.model.img_size}, {recipe.train.precision}, {recipe.optim.name}; "
        f"{made.images} images a step and process on {made.device}, {gigabytes(made.budget)} to plan for"
    )
    if processes > 1:
        say(f"{processes} processes, {'whole weights' if parallel == 'ddp' else 'a slice of the weights'} each")
    say()
    table(
        ("images at a time", "accumulation", "recompute", "memory", "fits", "step", "epoch", "run"),
        [_row(made, choice) for choice in made.choices],
        right=("images at a time", "accumulation", "memory", "step", "epoch", "run"),
    )
    say()
    rows = [(PARTS[part], gigabytes(count)) for part, count in asdict(best.memory).items() if count]
    table(("of the first line", "memory"), rows, right=("memory",))
    say()
    for note in notes(made, processes):
        say(note)


def _row(made: Plan, choice: Choice) -> tuple[str, ...]:
    from vitrail.training.planning import gigabytes
    from vitrail.training.progress import clock

    assert choice.step_s is not None, "the command times its choices"
    step = f"{choice.step_s:.2f} s" if choice.step_s >= 1 else f"{1000 * choice.step_s:.0f} ms"
    times = (step, clock(made.epoch_s(choice)), clock(made.run_s(choice)))
    own = " (the recipe)" if choice == made.asked else ""
    return (
        str(choice.micro), str(choice.accumulation), "yes" if choice.recompute else "no",
        gigabytes(choice.memory.total), ("yes" if choice.fits else "no") + own, *times,
    )  # fmt: skip


def notes(made: Plan, processes: int) -> list[str]:
    """Return what to do, and what the figures leave out, as lines for people."""
    best, found = made.choices[0], []
    if not best.fits:
        found.append(
            "nothing fits, not even one image at a time; mend: a smaller --model or --img-size, or more memory"
        )
    elif (best.micro, best.recompute) == (made.asked.micro, made.asked.recompute):
        found.append("the recipe as it is fits and is the fastest; nothing to add")
    else:
        why = "is faster" if made.asked.fits else "fits"
        found.append(f"this {why}; add: " + " ".join(f"--set {pair}" for pair in best.settings))
    if not made.exact:
        found.append("the two probes did not allocate alike: memory is a rough guess here")
    if made.batch_norms and best.accumulation > 1:
        found.append("batch norms see a piece at a time: with accumulation the result is another one")
    if made.recipe.train.compile:
        found.append("measured without train.compile, which usually lowers both figures")
    if processes > 1:
        found.append("time is that of one process: what they send each other comes on top")
    return found


def _data(made: Plan, processes: int, parallel: str) -> dict[str, Any]:
    def plain(choice: Choice) -> dict[str, Any]:
        return {
            "micro_batch": choice.micro,
            "accumulation": choice.accumulation,
            "recompute": choice.recompute,
            "fits": choice.fits,
            "memory_bytes": choice.memory.total,
            "memory": _parts(choice.memory),
            "step_s": choice.step_s,
            "epoch_s": made.epoch_s(choice),
            "run_s": made.run_s(choice),
            "settings": choice.settings,
        }

    return {
        "model": made.recipe.model.name,
        "device": made.device,
        "batch_size": made.recipe.train.batch_size,
        "processes": processes,
        "parallel": parallel if processes > 1 else None,
        "budget_bytes": made.budget,
        "exact": made.exact,
        "asked": plain(made.asked),
        "choices": [plain(choice) for choice in made.choices],
        "best": plain(made.choices[0]) if made.choices[0].fits else None,
        "notes": notes(made, processes),
    }


def _parts(memory: Memory) -> dict[str, int]:
    return {part: count for part, count in asdict(memory).items() if count}
