"""``train`` and ``resume``: the doors. A run ends with its best weights measured once more, a summary and a report."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.imageset import ImageSet
from vitrail.data.sources import Splits
from vitrail.errors import UsageError, VitrailError
from vitrail.tasks import headline
from vitrail.tasks.evaluate import Evaluation
from vitrail.tasks.multilabel import MultiLabel

from .build import about_imbalance
from .checkpoint import Checkpoints, Saved, replace_bytes
from .defaults import measure, resolve, sentences
from .folder import environment, fingerprint, locked, make_folder, started_before, write_json
from .pipeline import eval_loader, open_data, parts_of
from .precision import own_device, use_threads
from .progress import Progress, clock
from .recipe import Recipe
from .selftrain import with_unlabelled
from .session import Identity, Session, finite
from .signals import Interrupted
from .world import ALONE, PeerLost, World, open_world, peers_needed, restart_advice

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
        splits = with_unlabelled(asked, open_data(asked), None, progress.say, world)
        for note in splits.notes:
            progress.say(note)
        facts = measure(splits.train)
        settled, made = resolve(asked, facts, device, has_val="val" in parts_of(asked))
        settled = _for_all(settled, asked, world)
        if settled.train.accumulation == "auto":
            from .planning import settle_accumulation

            settled, decision = settle_accumulation(settled, splits, facts, device, progress.say, world)
            made.append(decision)
        for line in [*sentences(made), about_imbalance(settled, splits)]:
            if line is not None:
                progress.say(line)
        identity = Identity(fingerprint(splits), splits.classes.to_json(), settled.flat())
        folder = make_folder(settled.out, settled.task, settled.name, settled.model.name, world)
        with locked(folder, world):
            if world.first:
                header = "\n".join(["Made by vitrail train; nothing in it is left to chance.", "", *sentences(made)])
                replace_bytes(folder / "recipe.yaml", settled.to_yaml(header).encode())
                write_json(folder / "environment.json", environment(device))
                if splits.pseudo is not None:
                    splits.pseudo.save(folder, splits.train)
            try:
                session = Session(folder, settled, splits, identity, progress, world)
            except Exception:
                if world.first:
                    shutil.rmtree(folder, ignore_errors=True)  # nothing was trained: the name stays free
                raise
            _introduce(session)
            with use_threads(settled.train.threads):
                return _run(session)


def _for_all(settled: Recipe, asked: Recipe, world: World) -> Recipe:
    """Return the first process's recipe on all; a batch that was left to us is made to fit the processes."""
    if world.alone:
        return settled
    content = settled.model_dump(mode="json")
    if asked.train.batch_size == "auto":
        content["train"]["batch_size"] = max(1, round(settled.train.batch_size / world.size)) * world.size
    return Recipe.check(world.share(content))


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


def recipe_of(path: Path) -> Recipe:
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
    path: Path, recipe: Recipe, force: Sequence[str], world: World, progress: Progress
) -> tuple[Session, Saved | None]:
    """Return a session at the newest healthy checkpoint of the run in ``path``, and that checkpoint, if any."""
    splits, identity = prepared(path, recipe, progress, world)
    saved = newest(path, world, progress)
    if saved is not None:
        require_same(saved.state["identity"], identity.to_json(), force)
    session = Session(path, recipe, splits, identity, progress, world)
    if saved is not None:
        session.restore(saved)
        session.checkpoints.last_good = saved.step
    return session, saved


def prepared(path: Path, recipe: Recipe, progress: Progress, world: World = ALONE) -> tuple[Splits, Identity]:
    """Return the data of the run in ``path``, and what a checkpoint must agree with."""
    splits = with_unlabelled(recipe, open_data(recipe), path, progress.say, world)
    return splits, Identity(fingerprint(splits), splits.classes.to_json(), recipe.flat())


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
    splits, say = session.splits, session.progress.say
    test = f", {len(splits.test):,} test" if splits.test is not None else ""
    say(
        f"{session.recipe.model.name}: {session.params:,} parameters; {len(splits.train):,} training images, "
        f"{len(splits.val):,} validation{test}; {len(splits.classes)} classes; {session.device}, "
        f"{session.recipe.train.precision}"
    )
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
    split = "test" if "test" in summary["results"] else "val"
    metrics = summary["results"][split]
    name, value = headline(metrics)
    say(f"{split} {name} {100 * value:.2f} % on {metrics['count']:.0f} images (best weights)")
    if first:
        _report(session, split)
    session.world.wait()
    return RunResult(folder, split, metrics, summary["best"], summary)


def _finish(session: Session) -> dict[str, Any]:
    """Save the last weights, measure the best ones on every held-out split as they lie on the disk, and sum up."""
    from vitrail.weights import open_folder

    state, splits, recipe = session.state, session.splits, session.recipe
    if state.best is None:
        raise VitrailError("the best weights could not be written; mend: free some space, then `vitrail resume`")
    session.save_weights("last", {"epoch": recipe.train.epochs, "step": state.step})
    session.world.wait()
    best = session.best()
    if isinstance(session.task, MultiLabel):
        session.task.thresholds = open_folder(session.folder / "best").card.thresholds  # of validation, used on test
    results, problems = {}, list(session.batches.problems)
    for name, images in (("val", splits.val), ("test", splits.test)):
        if images is None:
            continue
        loader = session.val if name == "val" else eval_loader(images, session.card, **session._reading())
        found = session.measure(best, loader.epoch(0))
        if session.world.first:
            save_predictions(session.folder / f"predictions_{name}.npz", found, images)
            details = found.accumulator.describe(splits.classes.names)
            write_json(session.folder / f"details_{name}.json", {"metrics": finite(found.metrics), **details})
        results[name] = finite(found.metrics)
        problems += loader.problems
    problems = {p.name: p.message for p in problems}
    summary = {
        "task": recipe.task,
        "model": recipe.model.name,
        "params": session.params,
        "source": recipe.data.source,
        "images": {"train": len(splits.train), **{k: int(v["count"] or 0) for k, v in results.items()}},
        "classes": len(splits.classes),
        "epochs": recipe.train.epochs,
        "steps": state.step,
        "skipped": state.skipped,
        "seconds": round(state.seconds, 1),
        "images_per_s": round(state.images / max(state.seconds, 1e-9), 1),
        "precision": recipe.train.precision,
        "best": state.best,
        "results": results,
        "notes": splits.notes,
        "unreadable": [f"{name}: {message}" for name, message in problems.items()],
    }
    if session.world.first:
        write_json(session.folder / "summary.json", summary)
    session.progress.say(f"trained {clock(state.seconds)}, best at epoch {state.best['epoch']}")
    if problems:
        session.progress.say(f"{len(problems)} images could not be read and were left out; summary.json names them")
    return summary


def save_predictions(path: Path, found: Evaluation, images: ImageSet) -> None:
    """Write ``indices``, ``names``, ``labels`` (N,) and ``scores`` (N, K) as .npz; no pickle is needed to read it."""
    names = np.array([images.name(i) for i in found.index.tolist()], dtype=np.str_)
    with open(path, "wb") as file:
        np.savez(
            file,
            indices=found.index.numpy(),
            names=names,
            labels=found.labels.numpy(),
            scores=found.scores.numpy(),
        )


def _report(session: Session, split: str) -> None:
    """Write report.html. The training is done and saved: a fault in the report is said and does not undo it."""
    from vitrail.explain.report import write_report

    images = session.splits.test if split == "test" else session.splits.val
    try:
        path = write_report(session.folder, dataset=images)
    except Exception as error:  # whatever it is, the weights are safe and the user must hear of both
        session.progress.say(f"the report could not be written ({type(error).__name__}: {error}); all else is in place")
    else:
        session.progress.say(f"report: {path.resolve()}")
