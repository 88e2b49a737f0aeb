"""From a resolved recipe and its data to the network and the task that are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vitrail.data.sources import Splits
from vitrail.errors import UsageError
from vitrail.models import create_model
from vitrail.nn.attention import Attention
from vitrail.tasks import Task, create_task
from vitrail.tasks.classify import Classify
from vitrail.tasks.distil import Distil
from vitrail.weights import Card, card_for, load_folder, load_pretrained

from .pipeline import eval_loader, threads
from .precision import use_threads
from .recipe import Recipe
from .teacher import Remembered, Teacher, ask
from .world import ALONE, World


def build_model(recipe: Recipe, splits: Splits, say: Callable[[str], None]) -> tuple[nn.Module, Card]:
    """Return the network of a resolved recipe, with fresh or pretrained weights, and the card of what it is fed."""
    m = recipe.model
    size = m.img_size if isinstance(m.img_size, tuple) else (m.img_size, m.img_size)
    own = {"num_classes": len(splits.classes), "img_size": size, "drop_path_rate": m.drop_path_rate, **m.options}
    own |= {} if m.drop_rate is None else {"drop_rate": m.drop_rate}
    torch.manual_seed(recipe.train.seed)
    if m.name.startswith("hf-hub:"):
        model, card, _ = load_folder(m.name, **own)
    else:
        model, card = create_model(m.name, **own), Card(name=m.name, crop_pct=_crop_pct(recipe))
    if m.pretrained:
        report = load_pretrained(model, m.name, m.pretrained, new_head=True)
        say(f"pretrained: {report}")
        card = report.card or card_for(m.name)
    if m.attn_drop_rate:
        _drop_attention(model, m.attn_drop_rate)
    if recipe.data.crop_pct is not None:
        card = replace(card, crop_pct=recipe.data.crop_pct)
    origin = f"trained by Vitrail on {Path(recipe.data.source).name}" + (
        f", starting from {m.pretrained if m.pretrained else m.name}" if card.origin or m.pretrained else ""
    )
    return model, replace(card, name=m.name, input_size=model.config.img_size, crop_mode="center", origin=origin)


def _drop_attention(model: nn.Module, rate: float) -> None:
    """Drop this share of the attention weights in every block; it belongs to a run, not to what is saved."""
    blocks = [module for module in model.modules() if isinstance(module, Attention)]
    if not blocks:
        raise UsageError("model.attn_drop_rate has no effect: the network has no attention; mend: leave it out")
    for block in blocks:
        block.attn_drop = rate


def _crop_pct(recipe: Recipe) -> float:
    """Cut a little: a random resized crop shows things larger than the whole image does (arXiv 1906.06423)."""
    size = recipe.model.img_size
    return 0.9 if recipe.augment.crop == "resized" and min(size if isinstance(size, tuple) else (size,)) > 128 else 1.0


def build_task(
    recipe: Recipe,
    splits: Splits,
    card: Card,
    device: torch.device,
    say: Callable[[str], None] = print,
    world: World = ALONE,
) -> Task:
    """Return the loss, metrics and postprocess of a resolved recipe; ``card`` is that of the network in training."""
    t = recipe.train
    options = {"label_smoothing": t.label_smoothing, "loss": t.loss, "bce_threshold": t.bce_threshold}
    task = create_task(recipe.task, num_classes=len(splits.classes), options=options)
    d = recipe.distill
    if d is None or d.unlabelled is not None:  # in self-training the teacher was asked before
        return task
    assert isinstance(task, Classify), "a recipe with a teacher is one of classification"
    precision, theirs = recipe.train.precision, recipe.data.source
    teacher = Teacher.load(d, splits.classes, card, precision=precision, device=device, theirs=theirs)
    say(f"teacher: {d.teacher} ({teacher.card.name}), {d.how} answers with weight {d.weight:g}")
    answers = _remembered(teacher, recipe, splits, card, device, world) if d.cache == "on" else teacher
    return Distil(task, answers, how=d.how, weight=d.weight, temperature=d.temperature or 1.0)


def _remembered(
    teacher: Teacher, recipe: Recipe, splits: Splits, card: Card, device: torch.device, world: World = ALONE
) -> Remembered:
    """Ask the teacher about each training image, as the training loader will show it."""
    size, part = recipe.train.batch_size, (world.rank, world.size)
    with use_threads(recipe.train.threads):
        loader = eval_loader(splits.train, card, batch_size=size, workers=threads(recipe), cache="none", part=part)
        return Remembered(teacher, ask(teacher, loader, device, world))
