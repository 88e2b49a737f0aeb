"""What one kind of task brings to a run: its data, its network, its batches, and the words for people.

The run (run.py), its session (session.py) and the loop (loop.py) know no images and no sentences: they ask the run's
job. :func:`job_type` finds it by the recipe: imagejob.py, pixeljob.py and textjob.py are those there are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vitrail.tasks import Task
from vitrail.tasks.evaluate import Evaluation

from .baserecipe import BaseRecipe
from .world import ALONE, World

Say = Callable[[str], None]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must agree with before a run goes on from it."""

    data: dict[str, str]
    classes: dict[str, Any]
    recipe: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"data": self.data, "classes": self.classes, "recipe": self.recipe}


class Batches(Protocol):
    """The part of a loader that a run uses."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterable[Any]:
        """Batches of an epoch from number ``start`` on: a function of (seed, epoch, number) alone.

        A batch is a dataclass with ``keep`` (B,) bool, ``indices`` (B,) int64, ``count`` (how many things its mean loss
        is over) and ``to(device)``.
        """

    @property
    def problems(self) -> list[Any]:
        """Samples that could not be read so far, each with a ``name`` and a ``message``."""


class Job(Protocol):
    """A recipe with its data, opened; after :meth:`settle` the recipe holds no ``auto``."""

    recipe: Any
    unit: str
    """What the loop counts: "images", "tokens"."""
    notes: list[str]
    """Sentences about the data, for the user."""
    names: list[str]
    """The held-out splits, validation first."""

    @classmethod
    def open(cls, recipe: Any, folder: Path | None, say: Say, world: World = ALONE) -> Job:
        """Open the data of a recipe; of a resumed run from its ``folder``."""

    def settle(self, device: torch.device, say: Say, world: World) -> list[str]:
        """Settle every ``auto`` of the recipe; return the decisions as lines for people."""

    def identity(self) -> Identity:
        """Return what a checkpoint must agree with."""

    def keep_data(self, folder: Path) -> None:
        """Write into a new run's folder what of the data cannot be made again."""

    def build_model(self, say: Say) -> tuple[nn.Module, Any]:
        """Return the network and its card: fresh weights by the recipe's seed, or pretrained ones."""

    def build_task(self, card: Any, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """Return loss, metrics and postprocess."""

    def train_batches(self, card: Any, device: torch.device, part: tuple[int, int]) -> Batches:
        """Return the batches to train on, part (rank, processes) of each."""

    def batches(self, name: str, card: Any, part: tuple[int, int]) -> Batches:
        """Return the batches of a held-out split, in order."""

    def watch(self, batches: Batches, say: Say) -> Callable[[int, dict[str, Any]], None]:
        """Return what looks at each line of the log, and may say that training waits for data."""

    def require_world(self, world: World) -> None:
        """Raise :class:`UsageError` where so many processes cannot share a batch."""

    def introduction(self, params: int, device: torch.device) -> str:
        """Return the line a run begins with."""

    def save(self, path: Path, model: nn.Module, card: Any, extra: dict[str, Any]) -> None:
        """Write a folder of weights that :func:`vitrail.load` opens."""

    def load(self, path: Path) -> nn.Module:
        """Read the network of such a folder."""

    def taught(self, card: Any, found: Evaluation) -> Any:
        """Return the card with what an evaluation taught of the answers (thresholds)."""

    def use_taught(self, task: Task, folder: Path) -> None:
        """Give a task what the folder of the best weights says of the answers."""

    def finals(self, task: Task, name: str) -> Task:
        """Return the task as the end of a run measures with: decoding may then be slower and better."""

    def record(self, folder: Path, name: str, found: Evaluation) -> None:
        """Write predictions and details of a split."""

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` says of the data."""

    def report(self, folder: Path, name: str) -> Path | None:
        """Write the report and return its path; None where this kind of task has none."""

    def memory_advice(self, card: Any, error: RuntimeError) -> Exception:
        """Return the error that says what to change when memory ran out."""


def job_type(recipe: BaseRecipe) -> type[Job]:
    """Return the kind of job that a recipe describes."""
    module, _, name = recipe.job.partition(":")
    found: type[Job] = getattr(importlib.import_module(f"vitrail.training.{module}"), name)
    return found
