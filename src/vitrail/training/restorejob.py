"""Runs on pairs of a bad and a good picture: super-resolution, denoising, JPEG artefacts."""

from __future__ import annotations

from typing import Any

import torch

from vitrail.data.degrade import Degradation
from vitrail.data.restoration import Photos, RandomPatch, Whole, collate, open_splits
from vitrail.data.samples import SampleLoader, SampleSplits
from vitrail.tasks import Task
from vitrail.tasks.restore import Restore
from vitrail.weights import Card

from .defaults import Decision
from .job import Say
from .pipeline import threads
from .restorerecipe import RestoreRecipe, degradation, resolve_restore, settle_what
from .scenejob import SceneJob
from .world import ALONE, World


class RestoreJob(SceneJob):
    """A recipe and the pictures it names."""

    answer = "pictures"
    mean, std = (0.0,) * 3, (1.0,) * 3
    recipe: RestoreRecipe

    @classmethod
    def open_splits(cls, recipe: RestoreRecipe) -> SampleSplits:
        """Open photos or pairs; what does not fit is named."""
        settled, _ = settle_what(recipe)
        d, p = settled.data, settled.patches
        splits = open_splits(
            d.source,
            degradation(settled),
            channels=int(p.channels),
            patch=_side(settled),
            val_fraction=d.val_fraction,
            test_fraction=d.test_fraction,
            seed=d.seed,
        )
        if d.train_fraction == 1.0:
            return splits
        assert isinstance(splits.train, Photos), "open_splits gives photos"
        kept = splits.train.subset(range(max(1, round(d.train_fraction * len(splits.train)))))
        return SampleSplits(kept, splits.val, splits.test, None, [*splits.notes, f"{len(kept)} pictures used"])

    def resolve(self, device: torch.device) -> tuple[Any, list[Decision]]:
        """Work out every ``auto``."""
        return resolve_restore(self.recipe, len(self.splits.train), device)

    @property
    def degrade(self) -> Degradation:
        """What makes the pictures bad."""
        return degradation(self.recipe)

    def model_fields(self) -> dict[str, Any]:
        """The channels of the pictures, and drop path."""
        return {"in_chans": self.recipe.patches.channels, "drop_path_rate": self.recipe.model.drop_path_rate}

    def kept(self) -> dict[str, Any]:
        """What the network was trained to undo, and how it is measured."""
        r = self.recipe.model_dump(mode="json")
        return {"degrade": r["degrade"], "measure": r["measure"]}

    def build_task(self, card: Card, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """Return the loss and how it is measured."""
        r = self.recipe
        loss: Any = r.train.loss
        channel: Any = r.measure.channel
        return Restore(loss=loss, border=int(r.measure.border), channel=channel)

    def train_batches(self, card: Card, device: torch.device, part: tuple[int, int]) -> SampleLoader:
        """Random patches."""
        r = self.recipe
        return SampleLoader(
            self.splits.train,
            batch_size=int(r.train.batch_size),
            prepare=RandomPatch(_side(r), self.degrade, r.patches.turn),
            collate=collate,
            seed=r.train.seed,
            shuffle=True,
            visits=int(r.patches.visits),
            workers=threads(r),
            drop_last=True,
            cache=r.data.cache,
            max_broken=r.data.max_broken,
            part=part,
        )

    def batches(self, name: str, card: Card, part: tuple[int, int]) -> SampleLoader:
        """Whole pictures one by one, or their middles."""
        r = self.recipe
        prepare = Whole(self.degrade, r.patches.val_crop)
        samples = self.splits.parts()[name]
        return SampleLoader(
            samples,
            batch_size=part[1],
            prepare=prepare,
            collate=collate,
            workers=threads(r),
            cache=r.data.cache,
            part=part,
        )


def _side(recipe: RestoreRecipe) -> int:
    size = recipe.model.img_size
    assert isinstance(size, int), "settled: patches are square"
    return size
