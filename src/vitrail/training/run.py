"""``train`` and ``resume``: the doors. A run ends with its best weights measured once more, a summary and a report."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError
from vitrail.tasks import headline_words

from .baserecipe import BaseRecipe
from .checkpoint import Checkpoints, Saved, replace_bytes
from .folder import environment, locked, make_folder, started_before, write_json
from .job import job_type
from .precision import own_device, use_threads
from .progress import Progress, clock
from .recipe import Recipe
from .session import Session
from .signals import Interrupted
from .world import PeerLost, World, open_world, peers_needed, restart_advice

# Keys that may change between the start of a run and its resumption: they do not change what is computed.
FREE = (
    "name", "out", "data.source", "data.cache", "data.workers", "train.device", "train.keep", "train.track",
    "train.threads", "train.parallel", "train.timeout_minutes", "distill.teacher", "distill.unlabelled",
    "train.save_every_steps", "train.save_every_minutes", "train.log_every",
)  # fmt: skip
RESUMABLE = "RESUMABLE"


@dataclass(frozen=True)
class RunResult:
    """What a run reached. ``metrics`` are those of the test split, or of validation where there is none."""

    folder: Path
    split: str
    metrics: dict[str, float]
    best: dict[str, Any]
    summary: dict[str, Any] = field(repr=False)


def train(
    recipe: Recipe | Mapping[str, Any] | str | PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> RunResult:
    """Train what ``recipe`` (a YAML file, a dictionary or a :class:`Recipe`) describes, in a new run folder.

    ``overrides`` (dotted or nested keys) win over the recipe. ``say`` receives the lines meant for people (default:
    stderr, with a progress bar on a terminal).

    Raises:
        UsageError: a recipe that does not hold together, or a run name that exists.
        DataError: data that cannot be used.
        WeightsError: pretrained weights that do not fit.
        Interrupted: Ctrl-C or SIGTERM; the state is saved and :func:`resume` goes on.
        VitrailError: lasting NaN, lack of memory, a disk that stays full.
    """
    asked = Recipe.load(recipe, overrides)
    with open_world(asked.train.timeout_minutes) as world, Progress(say, world.first) as progress:
        begun = started_before(world, asked.out)
        if begun is not None:
            return _resume(begun, (), world, progress)
        device = own_device(asked.train.device, world)
        job = job_type(asked).open(asked, None, progress.say, world)
        for note in job.notes:
            progress.say(note)
        lines = job.settle(device, progress.say, world)
        for line in lines:
            progress.say(line)
        settled = job.recipe
        folder = make_folder(settled.out, settled.task, settled.name, settled.model.name, world)
        with locked(folder, world):
            if world.first:
                header = "\n".join(["Made by vitrail train; nothing in it is left to chance.", "", *lines])
                replace_bytes(folder / "recipe.yaml", settled.to_yaml(header).encode())
                write_json(folder / "environment.json", environment(device))
                job.keep_data(folder)
            try:
                session = Session(folder, job, progress, world)
            except Exception:
                if world.first:
                    shutil.rmtree(folder, ignore_errors=True)  # nothing was trained: the name stays free
                raise
            _introduce(session)
            with use_threads(settled.train.threads):
                return _run(session)


def resume(
    folder: str | PathLike[str], *, force: Sequence[str] = (), say: Callable[[str], None] | None = None
) -> RunResult:
    """Go on with a run from its newest healthy checkpoint (from the start if there is none yet).

    On the device it began on, the result is bit for bit that of a run that was never stopped. If the recipe, the data
    or the classes are not those of the checkpoint, :class:`UsageError` lists the differences; ``force`` takes dotted
    recipe keys (or ``data``) whose change is meant.
    """
    path = Path(folder)
    recipe = recipe_of(path)
    with open_world(recipe.train.timeout_minutes) as world, Progress(say, world.first) as progress:
        return _resume(path, force, world, progress)


def recipe_of(path: Path) -> BaseRecipe:
    """Return the recipe of a run folder; :class:`UsageError` if it is none."""
    if not (path / "recipe.yaml").is_file():
        raise UsageError(f"expected a run folder with a recipe.yaml, got {path}; mend: `vitrail train` makes one")
    return Recipe.load(path / "recipe.yaml", environment={})


def _resume(path: Path, force: Sequence[str], world: World, progress: Progress) -> RunResult:
    recipe = recipe_of(path)
    with locked(path, world):
        session, saved = restored(path, recipe, force, world, progress)
        where = f"step {saved.step} ({saved.path})" if saved is not None else "the start: there is no checkpoint yet"
        progress.say(f"going on from {where}")
        with use_threads(recipe.train.threads):
            return _run(session)


def restored(
    path: Path, recipe: BaseRecipe, force: Sequence[str], world: World, progress: Progress
) -> tuple[Session, Saved | None]:
    """Return a session at the newest healthy checkpoint of the run in ``path``, and that checkpoint, if any."""
    job = job_type(recipe).open(recipe, path, progress.say, world)
    saved = newest(path, world, progress)
    if saved is not None:
        require_same(saved.state["identity"], job.identity().to_json(), force)
    session = Session(path, job, progress, world)
    if saved is not None:
        session.restore(saved)
        session.checkpoints.last_good = saved.step
    return session, saved


def newest(path: Path, world: World, progress: Progress) -> Saved | None:
    """Return the newest checkpoint that verifies; the first process looks, all take what it found."""

    def look() -> str | None:
        found = Checkpoints(path / "checkpoints", warn=progress.say).latest()
        return None if found is None else str(found)

    shared = world.lead(look)
    return None if shared is None else Saved.open(Path(shared))


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], force: Sequence[str] = ()) -> None:
    """Raise :class:`UsageError` that lists what differs between a checkpoint and the run as it would go on."""
    old, new = before["recipe"], now["recipe"]
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in FREE]
    lines = [f"  {k}: {old.get(k)!r} then, {new.get(k)!r} now" for k in changed if k not in force]
    if before["classes"]["hash"] != now["classes"]["hash"]:
        then, here = (", ".join(side["classes"]["names"]) for side in (before, now))
        lines.append(f"  classes: {then} then, {here} now")
    elif before["data"] != now["data"] and "data" not in force:
        splits = sorted(before["data"].keys() | now["data"].keys())
        parts = [k for k in splits if before["data"].get(k) != now["data"].get(k)]
        lines.append(f"  data: other images, labels or file sizes in {', '.join(parts)}")
    unknown = [k for k in force if k != "data" and k not in changed]
    if unknown:
        raise UsageError(f"force has no effect on {', '.join(unknown)}: nothing changed there")
    if lines:
        raise UsageError(
            "expected the run as it was when it stopped, got:\n" + "\n".join(lines) + "\n"
            "mend: undo the change, or say that it is meant (force), or train anew"
        )


def _introduce(session: Session) -> None:
    say = session.progress.say
    say(session.job.introduction(session.params, session.device))
    if not session.world.alone:
        how = "a slice of the model each" if session.slices is not None else "the whole model each"
        say(f"{session.world.size} processes, {how}")
    advice = restart_advice(session.world)
    if advice is not None:
        say(advice)
    say(f"run folder: {session.folder.resolve()}")


def _run(session: Session) -> RunResult:
    folder, say, first = session.folder, session.progress.say, session.world.first
    again = f"vitrail resume {shlex.quote(str(folder))}"
    try:
        with peers_needed(session.world):
            session.train()
    except Interrupted as stopped:
        if first:
            replace_bytes(folder / RESUMABLE, f"{again}\n".encode())
        raise Interrupted(f"{stopped}; go on with: {again}", stopped.exit_code) from None
    except PeerLost as lost:
        raise PeerLost(f"{lost}; {session.last_good()}; go on with: {again}") from lost
    if first:
        (folder / RESUMABLE).unlink(missing_ok=True)
    summary = _finish(session)
    split = next((name for name in summary["results"] if name != "val"), "val")
    metrics = summary["results"][split]
    count = f"{metrics['count']:.0f} {session.task.counted}"
    say(f"{split} {headline_words(metrics)} on {count} (best weights)")
    if first:
        _report(session, split)
    session.world.wait()
    return RunResult(folder, split, metrics, summary["best"], summary)


def _finish(session: Session) -> dict[str, Any]:
    """Save the last weights, measure the best ones on every held-out split as they lie on the disk, and sum up."""
    state, job, recipe = session.state, session.job, session.recipe
    if state.best is None:
        raise VitrailError("the best weights could not be written; mend: free some space, then `vitrail resume`")
    session.save_weights("last", {"epoch": recipe.train.epochs, "step": state.step})
    session.world.wait()
    best = session.best()
    job.use_taught(session.task, session.folder / "best")
    results, problems = {}, list(session.batches.problems)
    for name in job.names:
        batches = session.val if name == "val" else session.held_out(name)
        found = session.measure(best, batches.epoch(0), job.finals(session.task, name))
        if session.world.first:
            job.record(session.folder, name, found)
        results[name] = found.finite()
        problems += batches.problems
    problems = {p.name: p.message for p in problems}
    summary = {
        "task": recipe.task,
        "model": recipe.model.name,
        "params": session.params,
        "source": recipe.data.source,
        **job.summary(),
        "epochs": recipe.train.epochs,
        "steps": state.step,
        "skipped": state.skipped,
        "seconds": round(state.seconds, 1),
        f"{job.unit}_per_s": round(state.images / max(state.seconds, 1e-9), 1),
        "precision": recipe.train.precision,
        "best": state.best,
        "results": results,
        "notes": job.notes,
        "unreadable": [f"{name}: {message}" for name, message in problems.items()],
    }
    if session.world.first:
        write_json(session.folder / "summary.json", summary)
    session.progress.say(f"trained {clock(state.seconds)}, best at epoch {state.best['epoch']}")
    if problems:
        what = f"{len(problems)} {session.task.counted} could not be read and were left out"
        session.progress.say(f"{what}; summary.json names them")
    return summary


def _report(session: Session, split: str) -> None:
    """Write report.html. The training is done and saved: a fault in the report is said and does not undo it."""
    try:
        path = session.job.report(session.folder, split)
    except Exception as error:  # whatever it is, the weights are safe and the user must hear of both
        session.progress.say(f"the report could not be written ({type(error).__name__}: {error}); all else is in place")
    else:
        if path is not None:
            session.progress.say(f"report: {path.resolve()}")
