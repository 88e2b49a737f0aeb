"""The recipe of a run that learns to find objects: its sections, and what ``auto`` becomes.

Sources of the numbers: DETR's own (Carion et al. 2020, arXiv 2005.12872, section 4 and A.4) where a DETR is asked for;
for the default, which must converge on small sets, they were tried on the built-in scenes (docs/benchmarks/
detection.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from vitrail.errors import UsageError
from vitrail.models import config_of

from .baserecipe import BaseRecipe
from .defaults import Decision
from .scenerecipe import (
    Auto,
    SceneData,
    SceneModel,
    SceneTrain,
    Section,
    Settling,
    Share,
    Usual,
    settle_machine,
    settle_running,
)

Factor = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class DetectData(SceneData):
    """Which images, and how their boxes are written."""

    source: str = Field(
        "scenes",
        description="COCO json, YOLO's data.yaml, Pascal VOC, parquet with objects: a folder or a file; scenes",
    )
    boxes: Literal["xywh", "xyxy", "cxcywh"] = Field(
        "xywh", description="what boxes of COCO json and parquet really are, in pixels"
    )


class BoxAugment(Section):
    """What happens to training images, and to their boxes with them."""

    hflip: Share | Auto = Field("auto", description="probability of a left-right flip")
    crop: Share | Auto = Field("auto", description="probability of a random cut")
    crop_share: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="least share of each side that is cut out")
    scales: tuple[Factor, Factor] | Auto = Field(
        "auto", description="lowest and highest factor on the size (multi-scale; 0.1 to 2: large-scale jitter)"
    )
    jitter: Share | Auto = Field("auto", description="brightness, contrast and colour by up to this share")
    min_visible: Share = Field(0.25, description="share of a box that a cut must leave for its object to stay")

    @model_validator(mode="after")
    def _low_and_high(self) -> BoxAugment:
        if isinstance(self.scales, tuple) and self.scales[0] > self.scales[1]:
            raise ValueError(f"expected scales as (low, high), got {self.scales}")
        return self


class Matching(Section):
    """How queries are matched with objects, and what each loss counts."""

    loss: Literal["ce", "focal", "varifocal"] | Auto = Field(
        "auto",
        description="of the classes; ce: of a softmax with no-object (DETR); varifocal: the score is the overlap",
    )
    repeats: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="queries an object on earlier layers and proposals; the answer is one to one"
    )
    denoising: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="denoising queries an image; 0: none")
    box_noise: Annotated[float, Field(gt=0, le=2)] = Field(
        1.0, description="of denoising: share of half a side that a corner moves at most"
    )
    label_noise: Share = Field(0.25, description="of denoising: chance of another class")
    nms: Annotated[float, Field(gt=0, le=1)] | Auto | None = Field(
        "auto", description="overlap from which on a second answer of one class is left out; null: all stay"
    )
    cls: Weight | Auto = Field("auto", description="weight of the class, in cost and loss (DETR 1, Deformable DETR 2)")
    l1: Weight = Field(5.0, description="weight of the distance of the boxes")
    giou: Weight = Field(2.0, description="weight of their overlap")


class DetectTrain(SceneTrain):
    """Training on boxes."""

    monitor: Literal["ap", "ap50", "ap75"] = Field("ap", description="metric that chooses the best weights")
    selftest: bool = Field(
        False, description="first overfit eight training images with a copy, and say whether that works"
    )

    @model_validator(mode="after")
    def _no_smoothing(self) -> DetectTrain:
        if self.label_smoothing not in ("auto", 0):
            raise ValueError("label_smoothing has no effect on the losses of detection; mend: leave it out")
        return self


class DetectRecipe(BaseRecipe):
    """The whole description of a run that learns to find objects."""

    job: ClassVar[str] = "detectjob:DetectJob"

    task: Literal["detect"] = Field("detect", description="find objects: boxes with classes")
    model: SceneModel = Field(default_factory=SceneModel)
    data: DetectData = Field(default_factory=DetectData)
    augment: BoxAugment = Field(default_factory=BoxAugment)
    matching: Matching = Field(default_factory=Matching)
    train: DetectTrain = Field(default_factory=DetectTrain)


@dataclass(frozen=True)
class BoxFacts:
    """What the training set is like: images, classes, median longer side, objects of the fullest image, median side of
    an object as a share of its image's longer side.
    """

    count: int
    classes: int
    longer: int
    most: int
    objects: float
    synthetic: bool = False


SIZES = (
    (144, 128, "deformable_detr_pico"),
    (400, 320, "deformable_detr_micro"),
    (1 << 30, 512, "deformable_detr_micro"),
)
"""Images whose longer side is up to the first number: the size they are brought to at most, and the network."""


def resolve_detect(recipe: DetectRecipe, facts: BoxFacts, device: torch.device) -> tuple[DetectRecipe, list[Decision]]:
    """Return the recipe without any ``auto``, and what was decided."""
    settle = Settling(recipe)
    _, most, usual_name = next(row for row in SIZES if facts.longer <= row[0])
    typical = f"images with a longer side of {facts.longer}"
    if usual_name.endswith("pico") and facts.most > config_of(usual_name).num_queries:
        usual_name = "deformable_detr_nano"
    name = settle("model.name", usual_name, typical)
    config = config_of(name)
    if getattr(config, "answers", None) != "boxes":
        raise UsageError(f"expected a model that finds objects, such as deformable_detr_nano, got {name}")
    side = min(most, 16 * round(facts.longer / 16)) if facts.longer >= 32 else 32
    settle("model.img_size", side if device.type == "cpu" else max(side, min(facts.longer, 640)), typical)
    settle("model.drop_path_rate", 0.0, "none from scratch on small sets")
    _augmenting(settle, facts)
    _matching(settle, config, facts)
    detr = bool(config.background)
    seen = 40_000 if side > 144 else 96_000
    basis = "DETR's, scaled to small sets" if detr else "tried on the built-in scenes"
    usual = Usual(
        batch=min(16, max(4, facts.count // 10)), seen=seen, epochs=(8, 500),
        optimizer="adamw" if detr else "muon", lr=3e-4 if detr else 2e-3, weight_decay=1e-4, basis=basis, longest=2.0,
    )  # fmt: skip
    settle_running(settle, usual, facts.count)
    settle("data.workers", 0 if device.type == "cpu" and side <= 144 else 2, "small images are read fast")
    settle_machine(settle, device)
    return settle.settled(DetectRecipe), settle.made


def _augmenting(settle: Settling, facts: BoxFacts) -> None:
    if facts.synthetic:
        settle("augment.hflip", 0.0, "digits have sides")
        settle("augment.crop", 0.0, "scenes are many")
        settle("augment.scales", (0.8, 1.25), "so that no scene is seen twice alike")
        settle("augment.jitter", 0.0, "scenes have all colours")
        return
    settle("augment.hflip", 0.5, "a usual value; 0 where left and right matter")
    settle("augment.crop", 0.5, "DETR's")
    settle("augment.scales", (0.6, 1.2), "several sizes")
    settle("augment.jitter", 0.2, "a usual value")


def _matching(settle: Settling, config: Any, facts: BoxFacts) -> None:
    detr = bool(config.background)
    settle("matching.loss", "ce" if detr else "varifocal", "DETR's softmax" if detr else "scores that say the overlap")
    settle("matching.repeats", 1 if detr else 4, "DETR's" if detr else "one to many: earlier layers learn faster")
    repeats = settle.recipe.flat()["matching.repeats"]
    several = not detr if repeats == "auto" else repeats > 1
    settle("matching.nms", 0.7 if several else None, "one to many leaves doubles" if several else "the paper's")
    if getattr(config, "takes_noise", False):
        settle("matching.denoising", max(32, min(100, 6 * facts.most)), "three groups of the fullest image, 32 to 100")
    else:
        settle("matching.denoising", 0, "this network takes none")
    settle("matching.cls", 1.0 if detr else 2.0, "the paper's")
