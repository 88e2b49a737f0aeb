"""From a resolved recipe and its data to the network and the task that are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.data.imbalance import CORRECTIONS, MULTI_CORRECTIONS, imbalance
from vitrail.data.sources import Splits
from vitrail.errors import UsageError
from vitrail.models import build, config_of, configure
from vitrail.nn.attention import Attention
from vitrail.nn.freeze import freeze_backbone, last_norm
from vitrail.nn.lora import add_lora
from vitrail.tasks import Task, create_task
from vitrail.tasks.classify import Classify
from vitrail.tasks.distil import Distil
from vitrail.tasks.imbalance import BETA, class_weights, log_prior
from vitrail.tasks.multilabel import balance_of
from vitrail.tasks.pixels import WithPixels
from vitrail.weights import Card, HeadSwap, card_for, load_weights, open_folder
from vitrail.weights.cards import MULTI_LABEL, SINGLE_LABEL

from .palettes import fresh_palette, judge, normalised, own_error
from .pipeline import eval_loader, threads
from .precision import use_threads
from .recipe import Recipe
from .sections import HUB_PREFIX, Model
from .start import folder_of, require_start, source_of
from .teacher import Remembered, Teacher, ask
from .world import ALONE, World


def build_model(recipe: Recipe, splits: Splits, say: Callable[[str], None]) -> tuple[nn.Module, Card]:
    """Return the network of a resolved recipe, with fresh or pretrained weights, and the card of what it is fed."""
    m = recipe.model
    size = m.img_size if isinstance(m.img_size, tuple) else (m.img_size, m.img_size)
    own = {"num_classes": len(splits.classes), "img_size": size, "drop_path_rate": m.drop_path_rate, **m.options}
    source = source_of(m)
    require_start(m)
    own |= {} if m.drop_rate is None else {"drop_rate": m.drop_rate}
    torch.manual_seed(recipe.train.seed)
    config = open_folder(m.name).config if m.name.startswith(HUB_PREFIX) else config_of(m.name)
    card = Card(name=m.name, crop_pct=_crop_pct(recipe))
    seen = replace(card, input_size=size, crop_pct=recipe.data.crop_pct or card.crop_pct)
    palette = (
        fresh_palette(configure(config, own), splits.train, seen, seed=recipe.data.seed) if source is None else None
    )
    own |= {} if palette is None else {"colours": len(palette.colours)}
    model: Any = build(configure(config, own))
    if palette is not None:
        model.palette.copy_(normalised(palette.colours, card))
        say(f"palette: {palette}")
    if source is not None:
        assert m.head in ("keep", "match", "new"), "a resolved recipe says what becomes of the head"
        report = load_weights(model, source, head=HeadSwap(splits.classes, m.head))
        say(f"pretrained: {report}")
        card = report.card or card_for(m.name)
        if hasattr(model, "palette"):
            known = folder_of(m)
            seen = replace(card, input_size=size, crop_pct=recipe.data.crop_pct or card.crop_pct)
            say(judge(splits.train, seen, model.palette, None if known is None else own_error(known.extra)))
    if m.attn_drop_rate:
        _drop_attention(model, m.attn_drop_rate)
    if recipe.data.crop_pct is not None:
        card = replace(card, crop_pct=recipe.data.crop_pct)
    _choose_what_learns(model, m, say)
    origin = f"trained by Vitrail on {Path(recipe.data.source).name}" + (
        f", starting from {m.pretrained if m.pretrained else m.name}" if source is not None else ""
    )
    said = {"name": m.name, "input_size": model.config.img_size, "crop_mode": "center", "origin": origin}
    kind = MULTI_LABEL if recipe.task == "multilabel" else SINGLE_LABEL
    return model, replace(card, **said, problem_type=kind, thresholds=None)


def _choose_what_learns(model: nn.Module, m: Model, say: Callable[[str], None]) -> None:
    """Add adapters or freeze as the recipe says, and say how much is trained."""
    try:
        if m.lora is not None:
            made = add_lora(model, rank=m.lora.rank, alpha=m.lora.alpha, layers=m.lora.layers)
            fused = " (q, k and v have one each)" if any(adapter.parts > 1 for adapter in made.values()) else ""
            words = f"lora: adapters of rank {m.lora.rank} on {len(made)} layers, {', '.join(m.lora.layers)}{fused}"
        elif m.freeze == "backbone":
            freeze_backbone(model)
            words = "freeze: only the head learns"
        elif m.freeze == "fixres":
            norm = last_norm(model)
            if norm is None:
                raise ValueError("expected a network with norms, got one without")
            freeze_backbone(model, but=[norm])
            words = f"freeze: the head and the last norm, {norm}, learn"
        else:
            return
    except ValueError as error:
        raise UsageError(f"model.{'lora' if m.lora else 'freeze'}: {error}") from None
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained, total = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
    say(f"{words}; {trained:,} of {total:,} parameters are trained ({trained / total:.1%})")


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


def about_imbalance(recipe: Recipe, splits: Splits) -> str | None:
    """Return a sentence on classes of very unequal size, and what the recipe does about them or could do; or None."""
    found = imbalance(splits.train.counts(), splits.classes.names)
    if found is None:
        return None
    flat = recipe.flat()
    several = recipe.task == "multilabel"
    kinds = ("data.balance", "train.class_weights", "train.logit_adjustment", "train.loss")
    done = [f"{k}={flat[k]}" for k in kinds if flat[k] not in ("none", 0.0, "ce", "bce")]
    fixes = MULTI_CORRECTIONS if several else CORRECTIONS
    what = f"corrected by {done[0]}" if done else f"to make up for it, set one of {fixes}"
    watched = "" if recipe.train.monitor != "top1" else "; train.monitor=macro_recall chooses weights by the class mean"
    return f"{found}: {what}{watched}"


def build_task(
    recipe: Recipe,
    splits: Splits,
    card: Card,
    device: torch.device,
    say: Callable[[str], None] = print,
    world: World = ALONE,
) -> Task:
    """Return the loss, metrics and postprocess of a resolved recipe; ``card`` is that of the network in training."""
    task = create_task(recipe.task, num_classes=len(splits.classes), options=_task_options(recipe, splits))
    d = recipe.distill
    if recipe.model.options.get("joint"):
        if d is not None or not isinstance(task, Classify):
            raise UsageError("model.options.joint is for one label an image and no teacher; mend: leave it out")
        return WithPixels(task)
    if d is None or d.unlabelled is not None:  # in self-training the teacher was asked before
        return task
    assert isinstance(task, Classify), "a recipe with a teacher is one of classification"
    precision, theirs = recipe.train.precision, recipe.data.source
    teacher = Teacher.load(d, splits.classes, card, precision=precision, device=device, theirs=theirs)
    say(f"teacher: {d.teacher} ({teacher.card.name}), {d.how} answers with weight {d.weight:g}")
    answers = _remembered(teacher, recipe, splits, card, device, world) if d.cache == "on" else teacher
    return Distil(task, answers, how=d.how, weight=d.weight, temperature=d.temperature or 1.0)


def _task_options(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    t, counts = recipe.train, splits.train.counts()
    options: dict[str, Any] = {"label_smoothing": t.label_smoothing, "loss": t.loss, "monitor": t.monitor}
    if recipe.task == "multilabel":
        images = len(splits.train)
        options["base_rate"] = counts / images
        if t.class_weights != "none" or t.logit_adjustment:
            weighing = {"kind": t.class_weights, "beta": t.effective_beta or BETA, "tau": t.logit_adjustment}
            options["balance"] = balance_of(counts, images, **weighing)
        return options
    options["bce_threshold"] = t.bce_threshold
    if t.class_weights != "none":
        options["class_weights"] = class_weights(counts, t.class_weights, beta=t.effective_beta or BETA)
    if t.logit_adjustment:
        options["logit_shift"] = t.logit_adjustment * log_prior(counts)
    return options


def _remembered(
    teacher: Teacher, recipe: Recipe, splits: Splits, card: Card, device: torch.device, world: World = ALONE
) -> Remembered:
    """Ask the teacher about each training image, as the training loader will show it."""
    size, part = recipe.train.batch_size, (world.rank, world.size)
    with use_threads(recipe.train.threads):
        loader = eval_loader(splits.train, card, batch_size=size, workers=threads(recipe), cache="none", part=part)
        return Remembered(teacher, ask(teacher, loader, device, world))
