"""The recipe of a run that segments: its sections, and what ``auto`` becomes.

Usual values: mmseg's (scale 0.5 to 2, crops, AdamW, poly) for long runs on a GPU; on a CPU, networks and crops that
learn within an hour from a few hundred small pictures (docs/benchmarks/segmentation.md has the measurements).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from vitrail.data.decode import BrokenImage
from vitrail.data.samples import Samples
from vitrail.errors import UsageError

from .baserecipe import BaseRecipe
from .defaults import Decision
from .scenerecipe import (
    Auto,
    Positive,
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

CPU = Usual(
    batch=16,
    seen=16_000,
    epochs=(5, 200),
    optimizer="muon",
    lr=3e-3,
    weight_decay=0.05,
    basis="what served CamVid from scratch",
    longest=2.0,
    evaluations=8,
)
GPU = Usual(
    batch=16,
    seen=640_000,
    epochs=(20, 400),
    optimizer="adamw",
    lr=1e-4,
    weight_decay=0.05,
    basis="near mmseg's for fine-tuning",
)
_MOST = {"cpu": 256, "gpu": 512}  # side of a crop
_LOOKED = 50  # images that sizes are taken from


class SegmentData(SceneData):
    """Which images and masks, and what their values mean."""

    classes: list[str] | dict[str, Any] | None = Field(
        None, description="names of values 0, 1, ...; or name: value, or name: [r, g, b]; null: of the folder's file"
    )
    ignore: list[int] | None = Field(None, description="values that are no class; null: 255 if it has no name")
    reduce_zero_label: bool = Field(False, description="0 is no class, and the first name is value 1 (ADE20K)")
    short_side: Positive | Auto | None = Field(
        "auto", description="images are brought to this shorter side first, to train and to answer; null: as they are"
    )


class SegmentTask(Section):
    """What is learned of, and how it is varied."""

    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (0.5, 2.0), description="factor on the size of a training image, before the crop"
    )
    hflip: Share = Field(0.5, description="probability of a left-right flip")
    jitter: Share = Field(0.4, description="strength of the change of brightness, contrast and colour; 0: none")
    most: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="share of a crop that one class may cover before another place is tried"
    )
    class_weights: Literal["none", "root", "median"] = Field(
        "none",
        description="of the loss; median: the median frequency of all classes over that of each (1411.4734); root: the "
        "square root of that",
    )
    dice: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the Dice loss beside cross entropy")
    auxiliary_weight: Annotated[float, Field(ge=0)] = Field(0.4, description="of the auxiliary head, if there is one")
    answer: Literal["whole", "windows"] = Field(
        "whole",
        description="images are answered in one piece, or in windows of model.img_size that overlap by half: for "
        "networks that must see no more than a crop",
    )


class SegmentRecipe(BaseRecipe):
    """The whole description of a run that segments."""

    job: ClassVar[str] = "segmentjob:SegmentJob"

    task: Literal["segment"] = Field("segment", description="a class for every pixel")
    model: SceneModel = Field(default_factory=SceneModel)
    data: SegmentData
    segment: SegmentTask = Field(default_factory=SegmentTask)
    train: SceneTrain = Field(default_factory=SceneTrain)


@dataclass(frozen=True)
class Sizes:
    """Of training images: the median height and width, and whether they are all alike."""

    height: int
    width: int
    alike: bool


def sizes_of(samples: Samples) -> Sizes:
    """Look at up to fifty images, spread over the split."""
    found = []
    for i in np.linspace(0, len(samples) - 1, min(_LOOKED, len(samples))).astype(int).tolist():
        try:
            found.append(tuple(samples.read(i).image.shape[1:]))
        except BrokenImage:
            continue
    if not found:
        raise UsageError("expected training images that can be read, got none; mend: `vitrail data check`")
    height, width = np.median(np.array(found), axis=0).astype(int).tolist()
    return Sizes(height, width, len(set(found)) == 1)


def resolve_segment(recipe: SegmentRecipe, train: Samples, device: torch.device) -> tuple[Any, list[Decision]]:
    """Return the recipe without any ``auto``, and what was decided."""
    settle, sizes = Settling(recipe), sizes_of(train)
    kind = "cpu" if device.type == "cpu" else "gpu"
    typical = f"images of {sizes.height} x {sizes.width}"
    fresh = recipe.model.pretrained is None and recipe.model.backbone is None
    if recipe.model.pretrained is not None:
        from vitrail.weights import open_folder

        settle("model.name", open_folder(recipe.model.pretrained).name, "what the weights are of")
    name = "fpn_pvt_v2_b0" if kind == "cpu" else "upernet_swin_tiny"
    settle("model.name", name, f"learns on a {kind} in reasonable time")
    short = settle("data.short_side", *_short_side(sizes, _MOST[kind]))
    factor = 1.0 if short is None else short / min(sizes.height, sizes.width)
    crop = [max(32, min(_MOST[kind], int(side * factor)) // 32 * 32) for side in (sizes.height, sizes.width)]
    settle("model.img_size", crop, f"{typical}: crops of whole cells at stride 32")
    settle("model.drop_path_rate", 0.0 if fresh and kind == "cpu" else 0.1, "a short run" if fresh else "fine-tuning")
    settle("data.workers", 0 if kind == "cpu" else 8, "the cores are busy with training" if kind == "cpu" else "a GPU")
    settle_running(settle, CPU if kind == "cpu" else GPU, len(train))
    settle_machine(settle, device)
    settled = settle.settled(SegmentRecipe)
    pieces = int(settled.train.accumulation)
    if int(settled.train.batch_size) // pieces < 2:
        raise UsageError(
            f"expected pieces of two images at least, for batch norm, got a batch of {settled.train.batch_size} in"
            f" {pieces}; mend: a larger --batch, or fewer pieces"
        )
    return settled, settle.made


def _short_side(sizes: Sizes, most: int) -> tuple[int | None, str]:
    side = min(sizes.height, sizes.width)
    if side <= 1.5 * most:
        return None, f"images of {sizes.height} x {sizes.width} are read as they are"
    return most, f"images of {sizes.height} x {sizes.width} are made smaller"
