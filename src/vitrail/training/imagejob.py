"""Runs on images with labels: classification, one label an image or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrail.data.imageset import ImageSet
from vitrail.data.loader import Loader
from vitrail.data.sources import Splits
from vitrail.errors import VitrailError
from vitrail.tasks import Task
from vitrail.tasks.evaluate import Evaluation
from vitrail.tasks.multilabel import MultiLabel
from vitrail.weights import Card, load_folder, open_folder, save_folder

from .batches import memory_advice
from .build import about_imbalance, build_model, build_task
from .defaults import measure, resolve, sentences
from .folder import fingerprint, write_json
from .job import Identity, Say
from .pipeline import eval_loader, open_data, parts_of, threads, train_loader
from .recipe import Recipe
from .selftrain import with_unlabelled
from .starving import Starving
from .world import ALONE, World


class ImageJob:
    """A recipe and the images it names."""

    unit = "images"

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        self.recipe, self.splits = recipe, splits

    @classmethod
    def open(cls, recipe: Recipe, folder: Path | None, say: Say, world: World = ALONE) -> ImageJob:
        """Open the images; those of self-training are labelled by the teacher, once."""
        return cls(recipe, with_unlabelled(recipe, open_data(recipe), folder, say, world))

    @property
    def notes(self) -> list[str]:
        """What was decided about the data."""
        return self.splits.notes

    @property
    def names(self) -> list[str]:
        """The held-out splits."""
        return ["val"] if self.splits.test is None else ["val", "test"]

    def settle(self, device: torch.device, say: Say, world: World) -> list[str]:
        """Work out every ``auto`` from the images; the first process's recipe is that of all."""
        asked, facts = self.recipe, measure(self.splits.train)
        settled, made = resolve(asked, facts, device, has_val="val" in parts_of(asked))
        settled = _for_all(settled, asked, world)
        if settled.train.accumulation == "auto":
            from .planning import settle_accumulation

            settled, decision = settle_accumulation(settled, self.splits, facts, device, say, world)
            made.append(decision)
        self.recipe = settled
        lines = [*sentences(made), about_imbalance(settled, self.splits)]
        return [line for line in lines if line is not None]

    def identity(self) -> Identity:
        """Names, labels and sizes of the images, the classes, the recipe."""
        return Identity(fingerprint(self.splits), self.splits.classes.to_json(), self.recipe.flat())

    def keep_data(self, folder: Path) -> None:
        """Keep the teacher's labels."""
        if self.splits.pseudo is not None:
            self.splits.pseudo.save(folder, self.splits.train)

    def build_model(self, say: Say) -> tuple[nn.Module, Card]:
        """See :func:`.build.build_model`."""
        return build_model(self.recipe, self.splits, say)

    def build_task(self, card: Card, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """See :func:`.build.build_task`."""
        return build_task(self.recipe, self.splits, card, device, say, world)

    def train_batches(self, card: Card, device: torch.device, part: tuple[int, int]) -> Loader:
        """Shuffled and augmented."""
        return train_loader(self.recipe, self.splits.train, card, device, part)

    def batches(self, name: str, card: Card, part: tuple[int, int]) -> Loader:
        """Every image of a split once, in order."""
        r = self.recipe
        assert isinstance(r.train.batch_size, int), "a resolved recipe has a batch size"
        piece = -(-r.train.batch_size // int(r.train.accumulation))  # what memory was found to hold
        images = self._images(name)
        return eval_loader(images, card, batch_size=2 * piece, workers=threads(r), cache=r.data.cache, part=part)

    def _images(self, name: str) -> ImageSet:
        found: ImageSet | None = getattr(self.splits, name)
        assert found is not None, "only splits that exist are asked for"
        return found

    def watch(self, batches: Any, say: Say) -> Callable[[int, dict[str, Any]], None]:
        """Say once if training waits for images."""
        return Starving(self.recipe, batches, say).see

    def require_world(self, world: World) -> None:
        """A batch of images is cut into equal parts."""
        world.require_divisor(int(self.recipe.train.batch_size))

    def introduction(self, params: int, device: torch.device) -> str:
        """Model, images, classes, device."""
        s, r = self.splits, self.recipe
        test = f", {len(s.test):,} test" if s.test is not None else ""
        return (
            f"{r.model.name}: {params:,} parameters; {len(s.train):,} training images, {len(s.val):,} validation{test};"
            f" {len(s.classes)} classes; {device}, {r.train.precision}"
        )

    def save(self, path: Path, model: nn.Module, card: Card, extra: dict[str, Any]) -> None:
        """Write a Vitrail folder with the classes."""
        save_folder(path, model, card=card, classes=self.splits.classes, extra=extra)

    def load(self, path: Path) -> nn.Module:
        """Read it back."""
        return load_folder(path)[0]

    def taught(self, card: Card, found: Evaluation) -> Card:
        """Keep the thresholds of several labels an image."""
        told = found.accumulator.thresholds()
        return card if told is None else replace(card, num_classes=len(told), thresholds=tuple(told))

    def use_taught(self, task: Task, folder: Path) -> None:
        """Thresholds of validation are used on test."""
        if isinstance(task, MultiLabel):
            task.thresholds = open_folder(folder).card.thresholds

    def finals(self, task: Task, name: str) -> Task:
        """The same task."""
        return task

    def record(self, folder: Path, name: str, found: Evaluation) -> None:
        """Write scores of each image, the confusion matrix and the table of classes."""
        save_predictions(folder / f"predictions_{name}.npz", found, self._images(name))
        details = found.accumulator.describe(self.splits.classes.names)
        write_json(folder / f"details_{name}.json", {"metrics": found.finite(), **details})

    def summary(self) -> dict[str, Any]:
        """Images and classes."""
        held = {name: len(self._images(name)) for name in self.names}
        return {"images": {"train": len(self.splits.train), **held}, "classes": len(self.splits.classes)}

    def report(self, folder: Path, name: str) -> Path:
        """Write report.html."""
        from vitrail.explain.report import write_report

        return write_report(folder, dataset=self._images(name))

    def memory_advice(self, card: Card, error: RuntimeError) -> VitrailError:
        """Batch and image size are what can be made smaller."""
        t = self.recipe.train
        height, width = card.input_size
        return memory_advice((int(t.batch_size), height, width), int(t.accumulation), error)


def _for_all(settled: Recipe, asked: Recipe, world: World) -> Recipe:
    """Return the first process's recipe on all; a batch that was left to us is made to fit the processes."""
    if world.alone:
        return settled
    content = settled.model_dump(mode="json")
    if asked.train.batch_size == "auto":
        content["train"]["batch_size"] = max(1, round(settled.train.batch_size / world.size)) * world.size
    return Recipe.check(world.share(content))


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
