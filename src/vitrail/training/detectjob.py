"""Runs that learn to find objects in images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.data.coloring import ColorJitter
from vitrail.data.detection.batches import BoxCollate
from vitrail.data.detection.sets import DetectionSet
from vitrail.data.detection.source import BUILTIN, open_boxes
from vitrail.data.detection.transforms import BoxPrepare, Fit
from vitrail.data.samples import SampleLoader, SampleSplits
from vitrail.errors import UsageError, require_extra
from vitrail.infer.detector import fit_of
from vitrail.metrics.diagnosis import NOTHING, signs_of, why_nothing
from vitrail.models import config_of, configure
from vitrail.tasks.denoise import Denoising
from vitrail.tasks.detect import Detect, Weights
from vitrail.tasks.evaluate import Evaluation
from vitrail.tasks.matching import Costs
from vitrail.weights import Card

from .defaults import Decision
from .detectrecipe import BoxFacts, DetectRecipe, resolve_detect
from .job import Say
from .pipeline import normalization, threads
from .scenejob import SceneJob
from .selftest import selftest
from .world import ALONE, World

PATIENCE = 3  # evaluations after which it is asked why nothing is found


class DetectJob(SceneJob):
    """A recipe, and the images with boxes it names."""

    answer = "boxes"
    recipe: DetectRecipe

    def __init__(self, recipe: DetectRecipe, splits: SampleSplits) -> None:
        super().__init__(recipe, splits)
        self._fresh = True
        self._say: Say = lambda text: None
        self._losses: list[float] = []

    @classmethod
    def open(cls, recipe: DetectRecipe, folder: Path | None, say: Say, world: World = ALONE) -> DetectJob:
        """Open the data; a resumed run has had its self-test."""
        job = cls(recipe, cls.open_splits(recipe))
        job._fresh = folder is None
        return job

    @classmethod
    def open_splits(cls, recipe: DetectRecipe) -> SampleSplits:
        """Open and judge the data; :class:`DataError` names what is wrong with file and annotation."""
        require_extra("faster_coco_eval", "coco", "measuring detection")
        d = recipe.data
        return open_boxes(
            d.source,
            form=d.boxes,
            val_fraction=d.val_fraction,
            test_fraction=d.test_fraction,
            train_fraction=d.train_fraction,
            seed=d.seed,
            max_broken=d.max_broken,
        )

    def resolve(self, device: torch.device) -> tuple[DetectRecipe, list[Decision]]:
        """See :func:`.detectrecipe.resolve_detect`."""
        images = self.images("train")
        settled, made = resolve_detect(self.recipe, facts_of(images, self.recipe.data.source), device)
        config: Any = configure(config_of(settled.model.name), settled.model.options)
        if images.most > config.num_queries:
            self.splits.notes.append(
                f"the fullest image has {images.most} objects, {settled.model.name} finds {config.num_queries} at "
                "most: --set model.options.num_queries=N for more"
            )
        return settled, made

    def images(self, name: str) -> DetectionSet:
        """Return a split by name."""
        found: Any = self.splits.parts()[name]
        return found

    def model_fields(self) -> dict[str, Any]:
        """The classes."""
        assert self.splits.classes is not None
        return {"num_classes": len(self.splits.classes)}

    def build_task(self, card: Card, device: torch.device, say: Say, world: World = ALONE) -> Detect:
        """Return matching, losses and COCO's metrics."""
        assert self.splits.classes is not None
        m, t = self.recipe.matching, self.recipe.train
        config: Any = configure(config_of(self.recipe.model.name), self.recipe.model.options)
        if m.denoising and not getattr(config, "takes_noise", False):
            raise UsageError(
                f"matching.denoising has no effect on {self.recipe.model.name}, whose queries are no boxes; "
                "mend: matching.denoising: 0, or a deformable_detr"
            )
        noise = Denoising(int(m.denoising), m.box_noise, m.label_noise) if m.denoising else None
        task = Detect(
            len(self.splits.classes),
            background=bool(config.background),
            loss=m.loss,  # type: ignore[arg-type]
            costs=Costs(float(m.cls), m.l1, m.giou, bool(config.background)),
            weights=Weights(float(m.cls), m.l1, m.giou),
            repeats=int(m.repeats),
            denoising=noise,
            nms=m.nms,  # type: ignore[arg-type]
            monitor=t.monitor,
        )
        self._say = say
        if t.selftest and self._fresh and world.first:
            selftest(self, task, card, device, say)
        return task

    def taught(self, card: Card, found: Evaluation) -> Card:
        """Evaluation teaches nothing; but where it finds nothing, say what that may come from."""
        self._losses.append(found.metrics["loss"])
        if len(self._losses) >= PATIENCE and found.metrics["ap50"] <= NOTHING:
            accumulator: Any = found.accumulator
            reasons = why_nothing(signs_of(accumulator), self._losses, float(self.recipe.optim.lr))
            words = f"AP50 is {100 * found.metrics['ap50']:.1f} % after {len(self._losses)} evaluations"
            self._say("\n- ".join([words, *reasons]))
        return card

    def kept(self) -> dict[str, Any]:
        """What answers are made of beside the network."""
        return {"nms": self.recipe.matching.nms}

    def fit(self) -> Fit:
        """The size images are brought to."""
        return fit_of(self.recipe.model.img_size, config_of(self.recipe.model.name))

    def masks(self) -> bool:
        """Whether the network gives masks."""
        config = configure(config_of(self.recipe.model.name), self.recipe.model.options)
        return bool(getattr(config, "masks", False))

    def train_batches(self, card: Card, device: torch.device, part: tuple[int, int]) -> SampleLoader:
        """Shuffled and varied."""
        r, a, images = self.recipe, self.recipe.augment, self.images("train")
        jitter = ColorJitter(float(a.jitter)) if a.jitter else None
        prepare = BoxPrepare(
            self.fit(), float(a.hflip), float(a.crop), a.crop_share, tuple(a.scales), jitter, a.min_visible,  # type: ignore[arg-type]
            self.masks(),
        )  # fmt: skip
        return SampleLoader(
            images,
            batch_size=int(r.train.batch_size),
            prepare=prepare,
            collate=BoxCollate(images.most, normalization(card), truth=False, masks=self.masks()),
            seed=r.train.seed,
            shuffle=True,
            workers=threads(r),  # type: ignore[arg-type]
            drop_last=True,
            cache=r.data.cache,
            max_broken=r.data.max_broken,
            part=part,
        )

    def batches(self, name: str, card: Card, part: tuple[int, int]) -> SampleLoader:
        """Every image of a split once, in order."""
        r = self.recipe
        piece = -(-int(r.train.batch_size) // int(r.train.accumulation))
        images = self.images(name)
        return measuring_loader(images, card, self.fit(), min(piece, len(images)), threads(r), r.data.cache, part)  # type: ignore[arg-type]

    def record(self, folder: Path, name: str, found: Evaluation) -> None:
        """Write figures, classes, and the detections as COCO's result json."""
        super().record(folder, name, found)
        images = self.images(name)
        results = coco_results(images, found.rows)
        (folder / f"predictions_{name}.json").write_text(json.dumps(results), encoding="utf-8")


def measuring_loader(
    images: DetectionSet,
    card: Card,
    fit: Fit,
    batch_size: int,
    workers: int | None = None,
    cache: str = "auto",
    part: tuple[int, int] = (0, 1),
) -> SampleLoader:
    """Return the loader that evaluates a split: whole images, in order."""
    return SampleLoader(
        images,
        batch_size=batch_size,
        prepare=BoxPrepare(fit),
        collate=BoxCollate(images.most, normalization(card)),
        workers=workers,
        cache=cache,
        part=part,
    )


def facts_of(images: DetectionSet, source: str) -> BoxFacts:
    """Look at a training set."""
    sizes = images.sizes[(images.sizes > 0).all(1)]
    longer = int(np.median(sizes.max(1))) if len(sizes) else 512
    objects = float(np.mean([len(found) for found in images.objects]))
    return BoxFacts(len(images), len(images.classes), longer, images.most, objects, source in BUILTIN)


def coco_results(images: DetectionSet, rows: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return detections in the form of COCO's result files, with the ids of the source."""
    found = []
    parts = (rows[key].tolist() for key in ("index", "boxes_xyxy", "scores", "labels"))
    for position, boxes, scores, labels in zip(*parts, strict=True):
        for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True):
            found.append(
                {
                    "image_id": images.ids[position],
                    "category_id": images.classes.ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    return found
