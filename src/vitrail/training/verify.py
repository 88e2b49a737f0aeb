"""Proof of resume: go back to a checkpoint, take the same steps again, and compare every bit.

Where a run has two healthy checkpoints, the steps from the older one to the newer one are replayed and compared with
what the run itself wrote: this shows that the killed and the unstopped run are one. With a single checkpoint some steps
are taken twice from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import UsageError, VitrailError

from .baserecipe import BaseRecipe
from .checkpoint import Checkpoints, Saved, verify
from .folder import locked
from .job import job_type
from .precision import use_threads
from .progress import Progress
from .run import recipe_of, require_same
from .session import Session
from .state import State
from .world import World, open_world

STEPS = 10  # taken twice where there is nothing on the disk to compare with
SHOWN = 5


@dataclass(frozen=True)
class Replay:
    """What was replayed: steps ``start`` to ``end``, compared with ``against``; names of tensors that differ."""

    start: int
    end: int
    against: str
    tensors: int
    differing: list[str]
    largest: float
    """The largest difference of a single number."""

    def __str__(self) -> str:
        what = f"steps {self.start} to {self.end} replayed and compared with {self.against}"
        if not self.differing:
            return f"{what}: all {self.tensors} tensors are equal bit for bit"
        more = f" and {len(self.differing) - SHOWN} more" if len(self.differing) > SHOWN else ""
        return (
            f"{what}: {len(self.differing)} of {self.tensors} differ, by {self.largest:.3g} at most: "
            f"{', '.join(self.differing[:SHOWN])}{more}"
        )


def verify_resume(folder: str | PathLike[str], *, steps: int | None = None, say: Any = None) -> Replay:
    """Replay a part of the run in ``folder`` and compare; nothing in the folder changes.

    ``steps``: at most so many (default: all between the last two checkpoints, or 10 twice from the only one). Works
    under torchrun, with the number of processes the checkpoints were made with. Raises :class:`UsageError` where there
    is no healthy checkpoint, and :class:`VitrailError` that names the tensors if a single bit differs: then something
    the run depends on is not the same (number of threads, library versions, machine, data).
    """
    path = Path(folder)
    recipe = recipe_of(path)
    if steps is not None and steps < 1:
        raise UsageError(f"expected at least one step to replay, got {steps}")
    with open_world(recipe.train.timeout_minutes) as world, Progress(say, world.first) as progress, locked(path, world):
        found = _healthy(path, world)
        if not found:
            raise UsageError(f"expected a healthy checkpoint in {path / 'checkpoints'}, got none to replay from")
        with use_threads(recipe.train.threads):
            replay = _replay(path, recipe, found, steps, world, progress)
        if replay.differing:
            raise VitrailError(
                f"{replay}; mend: use the threads, libraries and machine that the run had (environment.json)"
            )
        progress.say(str(replay))
        return replay


def _healthy(path: Path, world: World) -> list[Path]:
    """Return the checkpoints that verify, newest first; none is touched."""
    folder = path / "checkpoints"

    def look() -> list[str]:
        paths = (folder / f"step-{step}" for step in Checkpoints(folder, warn=lambda text: None).steps())
        return [str(p) for p in paths if verify(p) is None]

    return [Path(p) for p in world.lead(look)]


def _replay(
    path: Path, recipe: BaseRecipe, found: list[Path], steps: int | None, world: World, progress: Progress
) -> Replay:
    saved = [Saved.open(p) for p in found[:2]]
    job = job_type(recipe).open(recipe, path, progress.say)
    require_same(saved[0].state["identity"], job.identity().to_json())

    def session_after(start: Saved, count: int) -> Session:
        session = Session(path, job, progress, world)
        session.restore(start)
        session.loop().replay(count)
        return session

    if len(saved) == 2 and (steps is None or saved[0].step - saved[1].step <= steps):
        newer, older = saved
        session = session_after(older, newer.step - older.step)
        there = {kind: newer.read(kind, tensors) for kind, tensors in session.labelled().items()}
        return _compare(session, there, State(**newer.state["run"]), older.step, str(newer.path), world)
    count = steps or STEPS
    first, second = (session_after(saved[0], count) for _ in range(2))
    return _compare(first, second.tensors(), second.state, saved[0].step, "a second replay", world)


def _compare(
    session: Session, there: Mapping[str, Mapping[str, Tensor]], then: State, start: int, against: str, world: World
) -> Replay:
    differing, largest, count = [], 0.0, 0
    for kind, tensors in session.tensors().items():
        for name, tensor in tensors.items():
            other = there[kind][name]
            count += 1
            if not torch.equal(tensor.cpu(), other.cpu()):
                differing.append(f"{kind} {name}")
                largest = max(largest, float((tensor.cpu().double() - other.cpu().double()).abs().max()))
    numbers = ("step", "images", "skipped")
    differing += [name for name in numbers if getattr(session.state, name) != getattr(then, name)]
    everywhere = sorted({name for part in world.collect(differing) for name in part})
    return Replay(start, session.state.step, against, count, everywhere, max(world.collect(largest)))
