"""Before a long run: can these data be learned at all? A copy of the network learns eight images by heart.

A network, a task and data that work together do that in a minute; wrong boxes, classes or rates do not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vitrail.metrics.diagnosis import signs_of, why_nothing
from vitrail.tasks.detect import Detect
from vitrail.tasks.evaluate import evaluate

from .job import Say
from .optim import Masters
from .world import ALONE

if TYPE_CHECKING:
    from vitrail.data.detection.batches import DetectionBatch
    from vitrail.weights import Card

    from .detectjob import DetectJob

IMAGES = 8
STEPS = 200
WARMUP = 20
GOOD = 0.5  # AP50 on the eight from which on it has worked


def selftest(job: DetectJob, task: Detect, card: Card, device: torch.device, say: Say, steps: int = STEPS) -> float:
    """Overfit eight training images with a copy of the network; say what came of it and return the AP50.

    Nothing else changes: neither the network of the run nor its random numbers.
    """
    from .detectjob import measuring_loader

    images = job.images("train")
    some = np.flatnonzero([bool((~found.crowd).any()) for found in images.objects])[:IMAGES]
    few = images.subset(some)
    loader = measuring_loader(few, card, job.fit(), len(few), 0)
    with torch.random.fork_rng(devices=[]):
        model = job.build_model(lambda text: None)[0].to(device).train()
        losses = _learn(model, task, next(iter(loader.epoch(0))).to(device), job.recipe.optim, steps)
        found = evaluate(task, model, loader.epoch(0), device=device)
    ap50, accumulator = found.metrics["ap50"], found.accumulator
    _tell(losses, ap50, len(few), steps, accumulator, float(job.recipe.optim.lr), say)
    return ap50


def _learn(model: nn.Module, task: Detect, batch: DetectionBatch, optim: Any, steps: int) -> list[float]:
    """Take steps on one batch with the run's own optimiser, its rate falling to nothing; return the losses."""
    masters, losses = Masters(model, optim), []
    for step in range(steps):
        torch.manual_seed(step)
        loss = task.step(model, batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        masters.gather()
        norm = float(masters.norm(ALONE))
        rate = float(optim.lr) * min((step + 1) / WARMUP, 1 - step / steps)
        masters.update(rate, scale=min(1.0, (optim.clip_norm or math.inf) / max(norm, 1e-6)))
    return losses


def _tell(losses: list[float], ap50: float, count: int, steps: int, accumulator: Any, lr: float, say: Say) -> None:
    fell = f"{count} images, {steps} steps: the loss went from {losses[0]:.2f} to {losses[-1]:.2f}"
    if ap50 >= GOOD:
        say(f"self-test: {fell}, AP50 is {100 * ap50:.0f} %: these data can be learned")
        return
    reasons = why_nothing(signs_of(accumulator), losses, lr)
    if losses[-1] < 0.6 * losses[0]:
        reasons = reasons or ["it learns, but slowly: the run may need many epochs"]
    say(
        f"self-test: {fell}, but AP50 is only {100 * ap50:.0f} % on the very images it learned"
        + "".join(f"\n- {reason}" for reason in reasons)
    )
