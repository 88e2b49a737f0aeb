"""From a recipe's data and augment sections to loaders.  (H, W) is the model's input size in pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitrail.data.augment import Augment, Normalize, RandomErasing
from vitrail.data.coloring import ColorJitter, ThreeAugment
from vitrail.data.imageset import ImageSet
from vitrail.data.loader import Loader
from vitrail.data.mixing import Mix
from vitrail.data.order import Order, Repeated, training_order, windowed
from vitrail.data.pictures import is_pictures, open_pictures
from vitrail.data.randaugment import RandAugment
from vitrail.data.resample import resize
from vitrail.data.rowgroups import require_room
from vitrail.data.sources import Splits, open_dataset, read_layout
from vitrail.data.transforms import Crop, Draws, EvalCrop, PadCrop, TrainCrop
from vitrail.errors import UsageError
from vitrail.weights import Card

from .recipe import Recipe


def open_data(recipe: Recipe) -> Splits:
    """Return the data of a recipe, split and cut as it says: the same wherever a run is looked at again."""
    d = recipe.data
    fraction = d.val_fraction if isinstance(d.val_fraction, float) else 0.1
    if recipe.task == "pixels" and is_pictures(d.source):
        return open_pictures(d.source, val_fraction=fraction, test_fraction=d.test_fraction, seed=d.seed)
    return open_dataset(
        d.source,
        val_fraction=fraction,
        test_fraction=d.test_fraction,
        train_fraction=d.train_fraction,
        seed=d.seed,
        labels=d.labels,
        allow_empty=d.allow_empty,
        max_broken=d.max_broken,
        sequential=d.window is not None,
    )


def parts_of(recipe: Recipe) -> list[str]:
    """Return the splits that the source itself has, before any is cut off."""
    if recipe.task == "pixels" and is_pictures(recipe.data.source):
        return ["train"]
    return list(read_layout(recipe.data.source, labels=recipe.data.labels, sequential=True).parts)


def train_loader(
    recipe: Recipe,
    images: ImageSet,
    card: Card,
    device: torch.device | str = "cpu",
    part: tuple[int, int] = (0, 1),
) -> Loader:
    """Return the shuffled, augmented loader of a resolved recipe, for part (rank, processes) of every batch."""
    return Loader(
        images,
        batch_size=int(recipe.train.batch_size),
        crop=train_crop(recipe, card),
        augment=augmentation(recipe),
        mix=mixing(recipe, len(images.classes)),
        normalize=normalization(card),
        seed=recipe.train.seed,
        shuffle=True,
        order=train_order(recipe, images),
        workers=threads(recipe),
        drop_last=True,
        cache=recipe.data.cache,
        max_broken=recipe.data.max_broken,
        device=device,
        part=part,
    )


def train_order(recipe: Recipe, images: ImageSet) -> Order:
    """Return the order in which a resolved recipe visits its training images."""
    seed, repeats, batch = recipe.train.seed, recipe.augment.repeats, int(recipe.train.batch_size)
    if recipe.data.window is None:
        return training_order(images.labels, seed, recipe.data.balance, repeats, batch)
    order = windowed(images.shards(), seed, recipe.data.window)
    require_room(images.store, recipe.data.window)
    return order if repeats == 1 else Repeated(order, repeats, batch)


def threads(recipe: Recipe) -> int | None:
    """Return the loader's thread count; None leaves it to the loader."""
    return recipe.data.workers if isinstance(recipe.data.workers, int) else None


def eval_loader(
    images: ImageSet,
    card: Card,
    *,
    batch_size: int,
    workers: int | None = None,
    cache: str = "auto",
    part: tuple[int, int] = (0, 1),
) -> Loader:
    """Return the loader that evaluation and the card's users see: every image once, in order, centre crop."""
    return Loader(
        images,
        batch_size=batch_size,
        crop=eval_crop(card),
        normalize=normalization(card),
        seed=0,
        shuffle=False,
        workers=workers,
        drop_last=False,
        cache=cache,
        part=part,
    )


def normalization(card: Card) -> Normalize:
    """Return mean and std of the card."""
    return Normalize(_three(card.mean), _three(card.std))


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"expected weights for 3 colour channels, got a card with {len(values)}")
    return values[0], values[1], values[2]


def train_crop(recipe: Recipe, card: Card) -> Crop:
    """Return the crop that ``augment.crop`` names."""
    a, size = recipe.augment, card.input_size
    how = a.interpolation or card.interpolation
    if a.crop == "resized":
        return TrainCrop(size, scale=_pair(a.scale), ratio=_pair(a.ratio), interpolation=how)
    if a.crop == "padded":
        assert isinstance(a.padding, int), "a resolved recipe names the padding of a padded crop"
        return PadCrop(size, padding=a.padding, interpolation=how)
    return eval_crop(replace(card, interpolation=how))


def eval_crop(card: Card) -> Crop:
    """Return the crop that the card describes."""
    if card.crop_mode == "squash":
        return Squash(card.input_size, card.interpolation)
    return EvalCrop(card.input_size, crop_pct=card.crop_pct, interpolation=card.interpolation)


@dataclass(frozen=True)
class Squash:
    """The whole image, resized without keeping its proportions: what transformers' ViT cards ask for. Not random."""

    size: tuple[int, int]
    interpolation: str

    @property
    def draws(self) -> int:
        """No random number is used."""
        return 0

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, 3, H, W) -> uint8 (B, 3, h, w)."""
        return resize(images, self.size, self.interpolation)


def augmentation(recipe: Recipe) -> Augment:
    """Return flips, distortions and erasing."""
    a, random = recipe.augment, recipe.augment.randaugment
    return Augment(
        hflip=float(a.hflip),
        vflip=a.vflip,
        randaugment=RandAugment(random.num_ops, random.magnitude, random.noise) if random is not None else None,
        erasing=RandomErasing(prob=float(a.erasing), mode=str(a.erasing_mode)) if a.erasing else None,
        three=ThreeAugment() if a.three_augment else None,
        jitter=ColorJitter(a.color_jitter) if a.color_jitter else None,
    )


def mixing(recipe: Recipe, num_classes: int) -> Mix | None:
    """Return MixUp and CutMix, or None. Label smoothing is the task's, so the targets come unsmoothed."""
    a = recipe.augment
    if not a.mix_prob or (not a.mixup and not a.cutmix):
        return None
    return Mix(
        num_classes,
        mixup_alpha=float(a.mixup),
        cutmix_alpha=float(a.cutmix),
        prob=float(a.mix_prob),
        switch_prob=0.5 if a.mix_switch is None else a.mix_switch,
        per_sample=a.mix_by == "image",
        label_smoothing=0.0,
    )


def _pair(values: Any) -> tuple[float, float]:
    assert isinstance(values, tuple), "a resolved recipe names scale and ratio of a resized crop"
    return values
