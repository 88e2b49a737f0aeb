"""Small stand-ins for the loop's surroundings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vitrail.data.loader import Batch
from vitrail.models import create_model
from vitrail.tasks.classify import Classify
from vitrail.training.batches import memory_advice
from vitrail.training.ema import Ema
from vitrail.training.loop import Loop, Pace
from vitrail.training.optim import Masters
from vitrail.training.schedule import Schedule
from vitrail.training.signals import Stop

ONE_RATE = {"layer_decay": None, "head_weight_decay": None}
OPTIM = SimpleNamespace(name="adamw", betas=(0.9, 0.99), eps=1e-8, weight_decay=0.05, **ONE_RATE)
PACE = {
    "epochs": 2,
    "accumulation": 1,
    "clip_norm": 1.0,
    "seed": 0,
    "eval_every": 1,
    "log_every": 1,
    "save_every_steps": None,
    "save_every_minutes": None,
}


def batch(number: int, size: int = 6, classes: int = 4) -> Batch:
    """Return a batch that depends on its number alone."""
    g = torch.Generator().manual_seed(number)
    return Batch(
        images=torch.randn(size, 3, 16, 16, generator=g),
        labels=torch.randint(0, classes, (size,), generator=g),
        targets=None,
        keep=torch.ones(size, dtype=torch.bool),
        indices=torch.arange(size) + number * size,
    )


class FakeBatches:
    """Four batches an epoch; ``change`` may spoil some of them."""

    def __init__(self, change: Callable[[int, Batch], Batch] = lambda n, b: b, length: int = 4) -> None:
        self.change, self.length = change, length

    def __len__(self) -> int:
        return self.length

    def epoch(self, epoch: int, start: int = 0) -> Iterable[Batch]:
        for i in range(start, self.length):
            n = epoch * self.length + i
            yield self.change(n, batch(n))


class Recorder:
    """Hooks that remember what they were asked."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.evaluated: list[int] = []
        self.saved: list[bool] = []
        self.during_evaluation: Callable[[Stop], None] = lambda stop: None

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self.lines.append({"kind": kind, "step": step, **values})

    def evaluate(self, epoch: int, stop: Stop) -> None:
        self.during_evaluation(stop)
        self.evaluated.append(epoch)

    def save(self, *, wait: bool) -> None:
        self.saved.append(wait)

    def last_good(self) -> str:
        return "the last good checkpoint is here"

    def show(self, **numbers: Any) -> None:
        pass


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("test_vit", num_classes=4, img_size=16, drop_rate=dropout)
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def loop(batches: FakeBatches | None = None, dropout: float = 0.0, ema: float | None = 0.9, **pace: Any) -> Loop:
    """Return a loop over fakes; its hooks are ``loop.hooks``, what it says is ``loop.said``."""
    model, said = network(dropout), []
    masters = Masters(model, OPTIM)
    batches = batches or FakeBatches()
    settings = Pace(**{**PACE, **pace})
    made = Loop(
        task=Classify(4),
        model=model,
        masters=masters,
        ema=Ema(masters, ema) if ema else None,
        batches=batches,
        schedule=Schedule("cosine", 1e-2, settings.epochs * len(batches), warmup=2),
        pace=settings,
        hooks=Recorder(),
        say=said.append,
        advise=lambda error: memory_advice((6, 16, 16), settings.accumulation, error),
    )
    made.said = said
    return made
