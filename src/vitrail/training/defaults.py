"""What ``auto`` becomes: a full recipe worked out from the size and number of the images, each value with its reason.

The presets follow DeiT (arXiv 2012.12877, table 9) and AugReg (arXiv 2106.10270, section 4: the fewer the images, the
more augmentation). Those for digits were tuned, optimiser and rate at 32 pixels measured on CIFAR-10; the rest is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitrail.data.decode import BrokenImage
from vitrail.data.imageset import ImageSet
from vitrail.data.memory import available_bytes
from vitrail.errors import DataError, UsageError
from vitrail.models import config_of, reads_text

from .augmenting import Augment
from .baserecipe import BaseRecipe, merge, nested
from .habits import ALL_OPTIONS, HABITS, usual_decay, usual_rate
from .precision import pick_precision
from .recipe import Recipe, varied
from .schedule import ENDLESS
from .sections import HUB_PREFIX, Distill
from .start import adopt, digest, folder_of, source_of

# width up to which one thread is as good as two: on a busy machine pico's fastest step took 197 ms and 200 ms
NARROW = 64
SAMPLES = 64  # images read to learn their sizes


@dataclass(frozen=True)
class Facts:
    """What the training set is like: median height and width of a sample in pixels, images, classes."""

    height: int
    width: int
    count: int
    classes: int
    multi_label: bool = False

    @property
    def side(self) -> int:
        """The shorter side of a typical image."""
        return min(self.height, self.width)


@dataclass(frozen=True)
class Preset:
    """Training of a network from nothing on images whose shorter side is at most ``side``."""

    side: int
    model: str
    gpu_model: str
    patch: int
    largest: int
    """Side that images are brought to, at most."""
    seen: int
    """Images a run looks at in all on a CPU; five times as many on a GPU."""
    epochs: tuple[int, int]
    batch: int
    optimizer: str
    lr: float
    """At a batch of REFERENCE_BATCH."""
    drop_path: float
    basis: str
    """Where optimiser, rate and drop path come from, in words for the user."""
    augment: Mapping[str, Any]


_OFF = {"mixup": 0.0, "cutmix": 0.0, "mix_prob": None, "randaugment": None, "erasing": 0.0}
_MIX = {"mixup": 0.2, "cutmix": 1.0, "mix_prob": 0.5}
_FULL = {**_MIX, "randaugment": {"num_ops": 2, "magnitude": 7.0}, "erasing": 0.1, "hflip": 0.5}
_PADDED = {"crop": "padded", "padding": 4, "scale": None, "ratio": None}
_RESIZED = {"crop": "resized", "ratio": [0.75, 1.3333], "padding": None}
_WHOLE = {"crop": "none", "padding": None, "scale": None, "ratio": None, "hflip": 0.0}

_UNTRIED = "carried over from smaller images, not tuned"
# On digits (val and test together, AdamW at 4e-3, 60 epochs, one seed each): whole images with MixUp 98.4 %, without
# 96.0 %. Shifting by a pixel slowed learning: at 4e-3 after 20 epochs 73.8 % against 96.2 % of whole images.
PRESETS = (
    Preset(
        16, "vit_pico_patch2_8", "vit_pico_patch2_8",
        2, 16, 110_000, (20, 90), 64, "adamw", 5.7e-3, 0.0, "tuned on digits",
        {**_OFF, **_WHOLE, "mixup": 0.4, "mix_prob": 1.0},
    ),
    Preset(
        40, "vit_nano_patch4_32", "vit_micro_patch4_32",
        4, 32, 600_000, (12, 100), 128, "muon", 2e-3, 0.0, "optimiser and rate measured on CIFAR-10",
        {**_PADDED, **_FULL},
    ),
    Preset(
        80, "vit_nano_patch8_64", "vit_micro_patch8_64",
        8, 64, 150_000, (12, 80), 64, "muon", 2e-3, 0.0, _UNTRIED,
        {**_RESIZED, **_FULL, "scale": [0.3, 1.0]},
    ),
    Preset(
        128, "vit_nano_patch8_64", "vit_micro_patch8_96",
        8, 64, 150_000, (12, 80), 64, "muon", 2e-3, 0.0, _UNTRIED,
        {**_RESIZED, **_FULL, "scale": [0.3, 1.0]},
    ),
    Preset(
        1 << 30, "vit_micro_patch16_224", "vit_small_patch16_224",
        16, 224, 60_000, (12, 300), 64, "muon", 1e-3, 0.1, _UNTRIED,
        {**_RESIZED, **_FULL, "scale": [0.2, 1.0]},
    ),
)  # fmt: skip
SHORT = 40  # epochs below which strong augmentation slows learning more than it helps
FINE_TUNE = {**_OFF, **_RESIZED, "scale": [0.5, 1.0]}


@dataclass(frozen=True)
class Decision:
    """One value that ``auto`` became, and why."""

    key: str
    value: Any
    reason: str


def measure(images: ImageSet) -> Facts:
    """Read a spread sample of the images for their sizes; :class:`DataError` if none of them can be read."""
    shapes = []
    for i in np.unique(np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(int)):
        try:
            shapes.append(images.read(int(i)).shape[-2:])
        except BrokenImage:
            continue
    if not shapes:
        raise DataError(
            f"expected readable images, but none of {min(SAMPLES, len(images))} tried could be read; "
            "mend: `vitrail data check` names what is wrong with each"
        )
    height, width = np.median(np.array(shapes), axis=0)
    return Facts(int(height), int(width), len(images), len(images.classes), images.multi_label)


def resolve(recipe: Recipe, facts: Facts, device: torch.device, *, has_val: bool) -> tuple[Recipe, list[Decision]]:
    """Return the recipe without any ``auto``, and what was decided.

    ``has_val`` tells whether the data come with a validation split: a ``val_fraction`` would then have no effect.
    Raises :class:`UsageError` where the values chosen do not go with those given.
    """
    if has_val and isinstance(recipe.data.val_fraction, float):
        raise UsageError("data.val_fraction has no effect: the data have a validation split of their own; leave it out")
    recipe, made = _start(recipe)
    given = recipe.flat()

    def settle(key: str, value: Any, reason: str) -> None:
        if given.get(key) == "auto" and key not in {d.key for d in made}:
            made.append(Decision(key, value, reason))

    _labels(recipe, facts, settle)
    _model(recipe, facts, device, settle)
    _augmentation(recipe, facts, _length(recipe, facts, device, settle), settle)
    _machine(recipe, facts, device, settle, has_val)
    if recipe.distill is not None:
        _teacher(recipe, recipe.distill, {d.key: d.value for d in made}, facts, settle)
    chosen = nested({d.key: d.value for d in made}, "the defaults")
    settled = Recipe.check(merge(recipe.model_dump(mode="json"), chosen))
    count = settled.train.batch_size
    assert isinstance(count, int)
    if count > facts.count:
        raise UsageError(f"expected train.batch_size of at most {facts.count}, the training images, got {count}")
    return settled, made


def _labels(recipe: Recipe, facts: Facts, settle: Any) -> None:
    """Settle what depends on whether an image has one label or several."""
    task = "multilabel" if facts.multi_label else "classify"
    reason = "several labels an image" if facts.multi_label else "one label an image"
    if recipe.task not in ("auto", task):
        raise UsageError(f"expected task {task}, because the data have {reason}, got {recipe.task}; mend: leave it out")
    settle("task", task, reason)
    settle("data.labels", "multi" if facts.multi_label else "single", "as the data have it")
    settle("train.loss", "bce" if facts.multi_label else "ce", reason)
    settle("train.monitor", "map" if facts.multi_label else "top1", "chooses the best weights")
    smoothing = (0.0, "scores stay probabilities") if facts.multi_label else (0.1, "DeiT's value")
    settle("train.label_smoothing", *smoothing)


def preset_for(facts: Facts) -> Preset:
    """Return the preset for images of this size."""
    return next(p for p in PRESETS if facts.side <= p.side)


def _pretrained(recipe: Recipe) -> bool:
    return source_of(recipe.model) is not None


def _start(recipe: Recipe) -> tuple[Recipe, list[Decision]]:
    """Name the network that the weights are of, where the recipe leaves that to them, and the weights themselves."""
    chosen: dict[str, tuple[Any, str]] = {}
    if recipe.model.pretrained and recipe.model.name == "auto":
        found = adopt(recipe.model)
        chosen = {key: (value, f"what {recipe.model.pretrained} holds") for key, value in found.items()}
        recipe = Recipe.check(merge(recipe.model_dump(mode="json"), {"model": found}))
    source = source_of(recipe.model)
    if recipe.model.head == "auto":
        chosen["head"] = (
            None if source is None else "keep",
            "rows of the pretrained head whose class the data name too",
        )
    if recipe.model.sha256 == "auto":
        chosen["sha256"] = (None if source is None else digest(source), "which weights they are")
    made = [Decision(f"model.{key}", value, reason) for key, (value, reason) in chosen.items() if value != {}]
    return recipe, made


def _model(recipe: Recipe, facts: Facts, device: torch.device, settle: Any) -> None:
    asked = recipe.model.name
    if asked != "auto" and not asked.startswith(HUB_PREFIX) and reads_text(config_of(asked)):
        raise UsageError(f"expected a model that reads images, got {asked}, which reads text")
    preset, typical = preset_for(facts), f"images of {facts.height} x {facts.width}"
    name = preset.model if device.type == "cpu" else preset.gpu_model
    settle("model.name", name, f"{typical}, trained on a {device.type}")
    if recipe.model.name in ("auto",):
        side = max(preset.patch, min(preset.largest, facts.side // preset.patch * preset.patch))
        settle("model.img_size", side, f"{typical} in patches of {preset.patch}")
    else:
        folder = folder_of(recipe.model) if recipe.model.img_size == "auto" else None
        size = config_of(recipe.model.name).img_size if folder is None else folder.card.input_size
        maker = recipe.model.name if folder is None else source_of(recipe.model)
        settle("model.img_size", list(size), f"the size {maker} is made for")
    if recipe.model.freeze != "none":
        settle("model.drop_path_rate", 0.0, "the backbone runs as in evaluation")
    settle("model.drop_path_rate", preset.drop_path, preset.basis)


def _augmentation(recipe: Recipe, facts: Facts, epochs: int, settle: Any) -> None:
    preset, a = preset_for(facts), recipe.augment
    values, reason = dict(preset.augment), f"images of {facts.height} x {facts.width}"
    if _pretrained(recipe):
        values, reason = {**FINE_TUNE, "hflip": values["hflip"]}, "fine-tuning asks for little"
    elif epochs < SHORT and preset.side > 16:
        values, reason = {**values, **_OFF}, f"{epochs} epochs are too few for more"
    crop = _or(a.crop, values["crop"])
    fallback = {"scale": [0.3, 1.0], "ratio": [0.75, 1.3333], "padding": max(1, facts.side // 8)}
    for key, owner in (("scale", "resized"), ("ratio", "resized"), ("padding", "padded")):
        values[key] = (values.get(key) or fallback[key]) if crop == owner else None
    mixed = any(_or(given, values[key]) for key, given in (("mixup", a.mixup), ("cutmix", a.cutmix)))
    if not mixed and a.mix_prob not in ("auto", None) and "auto" in (a.mixup, a.cutmix):
        values |= {"mixup": _MIX["mixup"], "cutmix": _MIX["cutmix"]}  # asked for, so it must do something
        mixed = True
    values["mix_prob"] = (values["mix_prob"] or _MIX["mix_prob"]) if mixed else None
    if a.three_augment:
        values["randaugment"] = None  # DeiT III has the one in place of the other
    for key, value in values.items():
        settle(f"augment.{key}", value, reason)


def _or(given: Any, default: Any) -> Any:
    return default if given == "auto" else given


def _length(recipe: Recipe, facts: Facts, device: torch.device, settle: Any) -> int:
    """Settle optimiser and schedule; return the epochs."""
    preset, tuned = preset_for(facts), _pretrained(recipe)
    room = 2 ** int(math.log2(max(2, facts.count / 10)))
    batch = _or(recipe.train.batch_size, max(2, min(preset.batch, room, facts.count)))
    settle("train.batch_size", batch, f"{facts.count} images: {facts.count // batch} updates an epoch")
    seen, (least, most) = (20_000, (5, 20)) if tuned else (preset.seen, preset.epochs)
    seen *= 1 if device.type == "cpu" else 5
    epochs: int = _or(recipe.train.epochs, min(most, max(least, round(seen / facts.count))))
    settle("train.epochs", epochs, f"about {epochs * facts.count:,} images seen")
    few = recipe.model.lora is not None or recipe.model.freeze != "none"  # fresh weights alone stand a higher rate
    name, base = ("adamw", 1e-3 if few else 1e-4) if tuned else (preset.optimizer, preset.lr)
    settle("optim.name", name, "fine-tuning" if tuned else preset.basis)
    lr = _optimizer(recipe, _or(recipe.optim.name, name), base, batch, settle)
    settle_schedule(recipe, lr, epochs, settle)
    updates = max(1, facts.count // batch) * epochs
    decay = round(min(0.9998, max(0.9, 1 - 20 / updates)), 5)
    settle("train.ema_decay", decay, f"an average over about a twentieth of the {updates} updates")
    settle("train.eval_every", max(1, math.ceil(epochs / 50)), "at most 50 evaluations")
    settle("train.log_every", max(1, min(50, updates // 200)), "about 200 lines")
    return epochs


def _optimizer(recipe: Recipe, name: str, base: float, batch: int, settle: Any) -> float:
    """Settle what the optimiser needs; return its rate. ``base`` is AdamW's at a batch of REFERENCE_BATCH."""
    tuned, habit = _pretrained(recipe), HABITS[name]
    lr, reason = usual_rate(name, base, batch, tuned=tuned)
    settle("optim.lr", lr, reason)
    settle("optim.weight_decay", *usual_decay(name, tuned=tuned))
    for key in ALL_OPTIONS:
        settle(f"optim.{key}", habit.options.get(key), habit.reason)
    found: float = _or(recipe.optim.lr, lr)
    return found


def settle_schedule(recipe: BaseRecipe, lr: float, epochs: int, settle: Any, *, longest: float = 5.0) -> None:
    """Settle warm-up (``longest`` epochs at most), cooldown and where the rate ends, whatever is trained."""
    s = recipe.schedule
    warmup = _or(s.warmup_epochs, round(min(longest, 0.1 * epochs), 2))
    settle("schedule.warmup_epochs", warmup, f"a tenth of the run, at most {longest:g} epochs")
    cooldown = _or(s.cooldown_epochs, round(min(0.2 * epochs, epochs - warmup), 2) if s.name in ENDLESS else None)
    settle("schedule.cooldown_epochs", cooldown, "a fifth of the run")
    basis = "as long as the warm-up" if warmup else "there is no warm-up to go by"
    settle("schedule.timescale_epochs", (warmup or 1.0) if s.name == "rsqrt" else None, basis)
    if s.name in ENDLESS:
        settle("schedule.min_lr", 0.0 if cooldown else None, "the cooldown ends at nothing")
    else:
        settle("schedule.min_lr", float(f"{lr / 100:.4g}"), "a hundredth of the rate")


def _machine(recipe: Recipe, facts: Facts, device: torch.device, settle: Any, has_val: bool) -> None:
    if has_val:
        settle("data.val_fraction", None, "the data have a validation split")
    else:
        settle("data.val_fraction", 0.1, "the data have no validation split")
    settle("train.device", str(device), "the fastest here")
    settle("train.precision", *pick_precision(recipe.train.precision, device))
    width = _width(recipe, facts)
    if width <= NARROW:
        settle("train.threads", 1, f"a network {width} wide gains nothing from more")
    else:
        settle("train.threads", torch.get_num_threads(), "the cores of this machine")
    if device.type == "cpu" and facts.side <= 128:
        settle("data.workers", 0, "small images: the cores are busy with training")


def _teacher(recipe: Recipe, given: Distill, chosen: Mapping[str, Any], facts: Facts, settle: Any) -> None:
    """Settle which teacher it is, and whether its answers are kept."""
    from .teacher import digest

    if given.sha256 == "auto":
        settle("distill.sha256", digest(given.teacher), "which teacher it is")
    own = {key.removeprefix("augment."): value for key, value in chosen.items() if key.startswith("augment.")}
    causes = varied(Augment(**{**recipe.augment.model_dump(), **own}))
    size = 4 * facts.count * facts.classes
    if given.unlabelled is not None:
        settle("distill.cache", "off", "the teacher is asked once, before training")
    elif causes:
        settle("distill.cache", "off", causes[0])
    elif size > available_bytes() // 4:
        settle("distill.cache", "off", f"the answers would fill {size / 1e9:.1f} GB")
    else:
        settle("distill.cache", "on", "training images are not varied")


def _width(recipe: Recipe, facts: Facts) -> int:
    name = preset_for(facts).model if recipe.model.name == "auto" else recipe.model.name
    own = None if name.startswith("hf-hub:") else getattr(config_of(name), "embed_dim", None)
    return int(recipe.model.options.get("embed_dim", own or NARROW + 1))  # a pyramid without one width is wide


def sentences(made: list[Decision]) -> list[str]:
    """Return the decisions as lines for people: one a reason; values that only say "not used" are left out."""
    groups: dict[tuple[str, str], list[str]] = {}
    for d in made:
        section, _, key = d.key.partition(".")
        if d.value is not None:
            groups.setdefault((section, d.reason), []).append(f"{key} {d.value}".strip())
    return [f"{section}: {', '.join(values)} ({reason})" for (section, reason), values in groups.items()]
