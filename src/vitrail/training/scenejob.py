"""What runs of detection, segmentation and restoration share: all of a job but data, recipe, network and task.

A job of one task derives from :class:`SceneJob` and gives what is marked so there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from vitrail.data.samples import SampleLoader, SampleSplits
from vitrail.errors import UsageError, VitrailError
from vitrail.models import answers, build, config_of, configure, variants_that
from vitrail.tasks import Task
from vitrail.tasks.evaluate import Evaluation
from vitrail.weights import Card, load_folder, load_weights, open_folder, save_folder
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD

from .batches import memory_advice
from .defaults import Decision, sentences
from .folder import write_json
from .job import Identity, Say
from .world import ALONE, World


class SceneJob:
    """A recipe and the images it names."""

    unit = "images"
    answer: ClassVar[str]
    """What the networks of this task answer, see :func:`vitrail.models.answers`."""
    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    def __init__(self, recipe: Any, splits: SampleSplits) -> None:
        self.recipe, self.splits = recipe, splits

    # What each task gives.

    @classmethod
    def open_splits(cls, recipe: Any) -> SampleSplits:
        """Open the data of a recipe, split as it says; raises :class:`DataError` for data that cannot be used."""
        raise NotImplementedError

    def resolve(self, device: torch.device) -> tuple[Any, list[Decision]]:
        """Return the recipe without any ``auto``, and what was decided."""
        raise NotImplementedError

    def build_task(self, card: Card, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """Return loss, metrics and postprocess."""
        raise NotImplementedError

    def train_batches(self, card: Card, device: torch.device, part: tuple[int, int]) -> SampleLoader:
        """Return the batches to train on."""
        raise NotImplementedError

    def batches(self, name: str, card: Card, part: tuple[int, int]) -> SampleLoader:
        """Return the batches of a held-out split (or of "train"), in order, not varied."""
        raise NotImplementedError

    def model_fields(self) -> dict[str, Any]:
        """Return the fields of the network's config that the data set, beside the recipe's ``options``."""
        classes = self.splits.classes
        return {} if classes is None else {"num_classes": len(classes)}

    def kept(self) -> dict[str, Any]:
        """Return what is kept beside the weights (``extra`` of the folder), for whoever loads them."""
        return {}

    # What all of them share.

    @classmethod
    def open(cls, recipe: Any, folder: Path | None, say: Say, world: World = ALONE) -> Self:
        """Open the data."""
        return cls(recipe, cls.open_splits(recipe))

    @property
    def notes(self) -> list[str]:
        """What was decided about the data."""
        return self.splits.notes

    @property
    def names(self) -> list[str]:
        """The held-out splits."""
        return [name for name in self.splits.parts() if name != "train"]

    def settle(self, device: torch.device, say: Say, world: World) -> list[str]:
        """Work out every ``auto``; the first process's recipe is that of all."""
        settled, made = self.resolve(device)
        self.recipe = type(settled).check(world.share(settled.model_dump(mode="json")))
        name = self.recipe.model.name
        if answers(config_of(name)) != self.answer:
            known = sorted(n for n in variants_that(self.answer) if not n.startswith("test_"))
            raise UsageError(
                f"expected a model for the task {self.recipe.task} ({', '.join(known[:6])}, ...), got {name}; mend: "
                "`vitrail models` lists all"
            )
        return sentences(made)

    def identity(self) -> Identity:
        """The images and what is drawn on them, the classes, the recipe."""
        classes = self.splits.classes
        told = {"hash": "", "names": []} if classes is None else classes.to_json()
        digests = {name: samples.digest() for name, samples in self.splits.parts().items()}
        return Identity(digests, told, self.recipe.flat())

    def keep_data(self, folder: Path) -> None:
        """Everything can be made again from the source."""

    def build_model(self, say: Say) -> tuple[nn.Module, Card]:
        """Return the network with fresh weights, those of another run, or a backbone's, and its card."""
        m = self.recipe.model
        size = m.img_size if isinstance(m.img_size, tuple) else (m.img_size, m.img_size)
        options = dict(m.options)
        backbone = options.get("backbone", {})
        if isinstance(backbone, dict) and m.drop_path_rate != "auto" and hasattr(config_of(m.name), "backbone"):
            options["backbone"] = {"drop_path_rate": m.drop_path_rate, **backbone}
        base = config_of(m.name) if m.pretrained is None else open_folder(m.pretrained).config
        torch.manual_seed(self.recipe.train.seed)
        model: Any = build(configure(base, {"img_size": size, **self.model_fields(), **options}))
        card = Card(name=m.name, input_size=size, mean=self.mean, std=self.std, interpolation="bilinear")
        if m.pretrained is not None:
            report = load_weights(model, m.pretrained, new_head=True)
            say(f"pretrained: {report}")
            card = report.card or card
        if m.backbone is not None:
            report = load_weights(model.backbone.backbone, m.backbone, new_head=True)
            say(f"backbone: {report}")
            card = replace(card, mean=report.card.mean, std=report.card.std) if report.card else card
        origin = f"trained by Vitrail on {Path(self.recipe.data.source).name}"
        start = m.pretrained or m.backbone
        origin += f", starting from {start}" if start else ""
        return model, replace(card, name=m.name, input_size=size, origin=origin, crop_pct=1.0)

    def watch(self, batches: Any, say: Say) -> Callable[[int, dict[str, Any]], None]:
        """Nothing is said."""
        return lambda step, values: None

    def require_world(self, world: World) -> None:
        """A batch of images is cut into equal parts."""
        world.require_divisor(int(self.recipe.train.batch_size))

    def introduction(self, params: int, device: torch.device) -> str:
        """Model, images, classes, device."""
        s, r = self.splits, self.recipe
        held = ", ".join(f"{len(samples):,} {name}" for name, samples in s.parts().items() if name != "train")
        classes = "" if s.classes is None else f" {len(s.classes)} classes;"
        return (
            f"{r.model.name}: {params:,} parameters; {len(s.train):,} training images, {held};{classes} {device}, "
            f"{r.train.precision}"
        )

    def save(self, path: Path, model: nn.Module, card: Card, extra: dict[str, Any]) -> None:
        """Write a Vitrail folder with the classes."""
        save_folder(path, model, card=card, classes=self.splits.classes, extra={**extra, **self.kept()})

    def load(self, path: Path) -> nn.Module:
        """Read it back."""
        return load_folder(path)[0]

    def taught(self, card: Card, found: Evaluation) -> Card:
        """Evaluation teaches nothing that the weights do not hold."""
        return card

    def use_taught(self, task: Task, folder: Path) -> None:
        """See :meth:`taught`."""

    def finals(self, task: Task, name: str) -> Task:
        """The same task."""
        return task

    def record(self, folder: Path, name: str, found: Evaluation) -> None:
        """Write the figures, and what the metrics tell beyond them."""
        classes = self.splits.classes
        details = found.accumulator.describe(None if classes is None else classes.names)
        write_json(folder / f"details_{name}.json", {"metrics": found.finite(), **details})

    def summary(self) -> dict[str, Any]:
        """Images and classes."""
        told = {"images": {name: len(samples) for name, samples in self.splits.parts().items()}}
        return told if self.splits.classes is None else {**told, "classes": len(self.splits.classes)}

    def report(self, folder: Path, name: str) -> Path | None:
        """Pictures, where a task draws any."""
        return None

    def memory_advice(self, card: Card, error: RuntimeError) -> VitrailError:
        """Batch and image size are what can be made smaller."""
        t = self.recipe.train
        return memory_advice((int(t.batch_size), *card.input_size), int(t.accumulation), error)
