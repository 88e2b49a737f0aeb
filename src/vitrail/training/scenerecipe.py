"""What the recipes of detection, segmentation and restoration share: their sections, and how ``auto`` is settled.

Each task has a recipe file of its own (detectrecipe.py and so on) with its own section, sizes and rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, model_validator

from vitrail.errors import UsageError

from .baserecipe import BaseRecipe, merge, nested
from .defaults import Decision, settle_schedule
from .habits import ALL_OPTIONS, HABITS
from .precision import pick_precision
from .sections import Auto, Decay, Positive, Running, Section, Share, Size

R = TypeVar("R", bound=BaseRecipe)


class SceneModel(Section):
    """Which network, and where its weights come from."""

    name: str = Field("auto", description="a name of `vitrail models` that answers this task; auto: by the images")
    img_size: Size | Auto = Field("auto", description="pixels: one number, or [height, width]")
    drop_path_rate: Share | Auto = Field("auto", description="stochastic depth of the backbone's last block")
    pretrained: str | None = Field(None, description="weights of the whole network: a run, a folder, hf-hub:org/name")
    backbone: str | None = Field(
        None, description="weights of the backbone alone, of a classifier: a run, a folder, hf-hub:org/name"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="other fields of the model's config")

    @model_validator(mode="after")
    def _one_place(self) -> SceneModel:
        for key in ("img_size", "drop_path_rate"):
            if key in self.options:
                raise ValueError(f"expected {key} as model.{key}, got it in model.options")
        if "num_classes" in self.options:
            raise ValueError("num_classes comes from the data; leave it out of model.options")
        if self.pretrained is not None and self.backbone is not None:
            raise ValueError(
                "backbone has no effect with pretrained, which holds the backbone too; mend: leave one of them out"
            )
        return self


class SceneData(Section):
    """Which images, and what is held out."""

    source: str = Field(description="a folder, or a built-in name; see the guide of the task")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="held out if there is no val split")
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="held out if there is no test split")
    train_fraction: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the training images to use")
    seed: int = Field(0, description="of the held-out splits; kept apart from train.seed so that runs compare")
    cache: Annotated[str, Field(pattern="^(auto|none|all)$")] = Field("auto", description="keep images in memory")
    workers: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="reading threads; auto: one a core")
    max_broken: Share = Field(0.01, description="share of unreadable training images that is put up with")

    @model_validator(mode="after")
    def _something_left(self) -> SceneData:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("expected val_fraction + test_fraction below 1: nothing would be left to train on")
        return self


class SceneTrain(Running):
    """Training on images of which more is known than a label."""

    batch_size: Positive | Auto = Field("auto", description="images an update")

    @model_validator(mode="after")
    def _pieces_fit(self) -> SceneTrain:
        pieces = self.accumulation if isinstance(self.accumulation, int) else 1
        if isinstance(self.batch_size, int) and pieces > self.batch_size:
            raise ValueError(
                f"expected accumulation <= batch_size: a batch of {self.batch_size} cannot be cut in {pieces} pieces"
            )
        return self


@dataclass
class Settling:
    """Works out the ``auto`` of a recipe, one key after another, and remembers each decision with its reason."""

    recipe: BaseRecipe
    made: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.given = self.recipe.flat()

    def __call__(self, key: str, value: Any, reason: str) -> Any:
        """Return what was asked for, or, where that is ``auto``, ``value``, which is then decided for ``reason``."""
        if self.given.get(key) != "auto":
            return self.given.get(key)
        if key not in {d.key for d in self.made}:
            self.made.append(Decision(key, value, reason))
        return value

    def settled(self, kind: type[R]) -> R:
        """Return the recipe with all decisions laid over it."""
        chosen = nested({d.key: d.value for d in self.made}, "the defaults")
        found: R = kind.check(merge(self.recipe.model_dump(mode="json"), chosen))
        return found


@dataclass(frozen=True)
class Usual:
    """What a task usually trains with.

    Attributes:
        batch: images an update.
        seen: images that a run looks at in all.
        epochs: fewest and most.
        optimizer: its name, lr: its highest rate, weight_decay, basis: where they come from, in words.
        longest: of the warm-up, in epochs.
        evaluations: at most, in a run.
    """

    batch: int
    seen: int
    epochs: tuple[int, int]
    optimizer: str
    lr: float
    weight_decay: float
    basis: str
    longest: float = 5.0
    evaluations: int = 20


def settle_running(settle: Settling, usual: Usual, count: int, visits: int = 1) -> int:
    """Settle how long, with which optimiser and rate, and how often to look; return the epochs.

    ``count`` training images, each visited ``visits`` times an epoch.
    """
    recipe, each = settle.recipe, count * visits
    batch = settle("train.batch_size", max(1, min(usual.batch, each)), usual.basis)
    if batch > each:
        raise UsageError(f"expected train.batch_size of at most {each}, what an epoch visits, got {batch}")
    least, most = usual.epochs
    seen = f"about {usual.seen:,} images seen"
    epochs = int(settle("train.epochs", min(most, max(least, round(usual.seen / each))), seen))
    updates = max(1, each // batch) * epochs
    decay = round(min(0.9998, max(0.9, 1 - 20 / updates)), 5)
    settle("train.ema_decay", decay, f"an average over about a twentieth of the {updates} updates")
    settle(
        "train.eval_every", max(1, math.ceil(epochs / usual.evaluations)), f"at most {usual.evaluations} evaluations"
    )
    settle("train.log_every", max(1, min(50, updates // 200)), "about 200 lines")
    settle("train.label_smoothing", 0.0, "not used by this task")
    settle("train.accumulation", 1, "the whole batch at once")
    name = settle("optim.name", usual.optimizer, usual.basis)
    lr = settle("optim.lr", usual.lr * (1.0 if name == usual.optimizer else HABITS[name].rate), usual.basis)
    settle("optim.weight_decay", usual.weight_decay, usual.basis)
    for key in ALL_OPTIONS:
        settle(f"optim.{key}", HABITS[name].options.get(key), HABITS[name].reason)
    settle_schedule(recipe, lr, epochs, settle, longest=usual.longest)
    return epochs


def settle_machine(settle: Settling, device: torch.device, *, threads: int | None = None) -> None:
    """Settle device, precision and threads."""
    settle("train.device", str(device), "the fastest here")
    settle("train.precision", *pick_precision(settle.recipe.running.precision, device))
    settle("train.threads", threads or torch.get_num_threads(), "the cores of this machine")


Settle = Callable[[str, Any, str], Any]

__all__ = [
    "Auto",
    "Decay",
    "Positive",
    "SceneData",
    "SceneModel",
    "SceneTrain",
    "Section",
    "Settle",
    "Settling",
    "Share",
    "Size",
    "Usual",
    "settle_machine",
    "settle_running",
]
