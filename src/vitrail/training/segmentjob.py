"""Runs that segment: images and their masks, networks that answer every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from vitrail.data.coloring import ColorJitter
from vitrail.data.maskcrops import CollateMasks, TrainCrop, Whole
from vitrail.data.masks import Cut, image_counts, open_masks
from vitrail.data.samples import SampleLoader, SampleSplits
from vitrail.infer.segmenter import normalize_of
from vitrail.tasks import Task
from vitrail.tasks.segment import Segment, median_frequency
from vitrail.weights import Card

from .defaults import Decision
from .job import Say
from .scenejob import SceneJob
from .segmentrecipe import SegmentRecipe, resolve_segment, sizes_of
from .world import ALONE, World


class SegmentJob(SceneJob):
    """A recipe and the images and masks it names."""

    recipe: SegmentRecipe
    answer = "masks"

    @classmethod
    def open_splits(cls, recipe: SegmentRecipe) -> SampleSplits:
        """Open the folder; every mask is looked at."""
        d = recipe.data
        cut = Cut(d.val_fraction, d.test_fraction, d.train_fraction, d.seed)
        return open_masks(d.source, classes=d.classes, ignore=d.ignore, reduce_zero_label=d.reduce_zero_label, cut=cut)

    def resolve(self, device: torch.device) -> tuple[Any, list[Decision]]:
        """See :func:`.segmentrecipe.resolve_segment`."""
        return resolve_segment(self.recipe, self.splits.train, device)

    def build_task(self, card: Card, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """Cross entropy of pixels, by the recipe's weights."""
        s, classes = self.recipe.segment, self.splits.classes
        assert classes is not None, "masks have classes"
        weights: NDArray[Any] | None = None
        if s.class_weights != "none":
            weights = median_frequency(*image_counts(self.splits.train, len(classes)))
            weights = weights if s.class_weights == "median" else weights**0.5
            told = (f"{name} {weight:.2f}" for name, weight in zip(classes.names, weights, strict=True))
            say(f"weights of the classes: {', '.join(told)}")
        return Segment(
            len(classes),
            auxiliary_weight=s.auxiliary_weight,
            class_weights=weights,
            label_smoothing=float(self.recipe.train.label_smoothing),
            dice=s.dice,
            window=card.input_size if s.answer == "windows" else None,
        )

    def train_batches(self, card: Card, device: torch.device, part: tuple[int, int]) -> SampleLoader:
        """Shuffled, scaled, cropped, flipped, with other colours."""
        r, s = self.recipe, self.recipe.segment
        prepare = TrainCrop(
            card.input_size,
            normalize_of(card),
            self._short_side,
            s.scale,
            s.hflip,
            ColorJitter(s.jitter) if s.jitter else None,
            s.most,
        )
        return SampleLoader(
            self.splits.train,
            batch_size=int(r.train.batch_size),
            prepare=prepare,
            collate=CollateMasks(card.input_size),
            seed=r.train.seed,
            shuffle=True,
            workers=int(r.data.workers),
            drop_last=True,
            cache=r.data.cache,
            max_broken=r.data.max_broken,
            part=part,
        )

    def batches(self, name: str, card: Card, part: tuple[int, int]) -> SampleLoader:
        """Whole images, in order; one at a time unless all are of one size."""
        r, samples = self.recipe, self.splits.parts()[name]
        size = max(1, int(r.train.batch_size) // int(r.train.accumulation)) if sizes_of(samples).alike else 1
        return SampleLoader(
            samples,
            batch_size=max(size, part[1]),
            prepare=Whole(normalize_of(card), self._short_side),
            collate=CollateMasks(card.input_size),
            workers=int(r.data.workers),
            cache=r.data.cache,
            part=part,
        )

    @property
    def _short_side(self) -> int | None:
        side = self.recipe.data.short_side
        assert side != "auto", "a settled recipe has no auto"
        return side

    def report(self, folder: Path, name: str) -> Path:
        """Write answers_<split>.png: images, truth, and what the best weights answer."""
        from vitrail.infer.maskreport import draw_answers
        from vitrail.infer.segmenter import load_segmenter

        segmenter = load_segmenter(folder, device=self.recipe.train.device)
        title = f"{self.recipe.model.name}: images of {name} that it was not trained on"
        return draw_answers(segmenter, self.splits.parts()[name], folder / f"answers_{name}.png", title=title)

    def kept(self) -> dict[str, Any]:
        """What images are brought to before the network sees them, and whether it sees them whole."""
        return {"short_side": self._short_side, "answer": self.recipe.segment.answer}
