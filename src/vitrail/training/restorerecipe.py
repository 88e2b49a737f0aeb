"""The recipe of a restoration: its sections, and what ``auto`` becomes."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from vitrail.data.degrade import Degradation, Downscale, Jpeg, Noise, RealWorld
from vitrail.errors import UsageError
from vitrail.models import config_of
from vitrail.weights import open_folder

from .baserecipe import BaseRecipe
from .defaults import Decision
from .scenerecipe import SceneData, SceneModel, SceneTrain, Settling, Usual, settle_machine, settle_running
from .sections import Auto, Positive, Section

Kind = Literal["downscale", "noise", "jpeg", "realworld"]
Level = Annotated[float, Field(ge=0)]
Quality = Annotated[int, Field(ge=1, le=100)]
SHRINKING = ("downscale", "realworld")
SEEN = {"cpu": 50_000, "gpu": 2_000_000}
"""Patches a run looks at, where the recipe does not say."""
UPDATES = 100
"""Of an epoch, at least: a set of photos is small, and each has many patches."""


class Degrade(Section):
    """What makes good pictures bad; where pairs are given, their scale."""

    kind: Kind | Auto = Field(
        "auto",
        description="downscale (bicubic), noise, jpeg, realworld (blur, downscale, noise, jpeg); auto: the model's",
    )
    scale: Positive | Auto = Field("auto", description="how much smaller the bad picture is; auto: the model's")
    sigma: Level | tuple[Level, Level] | None = Field(None, description="noise: of 255, one level (25) or a range")
    quality: Quality | tuple[Quality, Quality] | None = Field(None, description="jpeg: one, or a range (10 to 40)")

    @model_validator(mode="after")
    def _no_idle_option(self) -> Degrade:
        for key, kind in (("sigma", "noise"), ("quality", "jpeg")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f"{key} has no effect with kind: {self.kind}; mend: kind: {kind}, or leave it out")
        return self


class Patches(Section):
    """What is cut out of the pictures; a patch is as large as ``model.img_size``."""

    visits: Positive | Auto = Field("auto", description="patches cut out of a picture in an epoch")
    turn: bool = Field(True, description="flip and turn patches by quarters at random")
    channels: Literal[1, 3] | Auto = Field("auto", description="3: colour; 1: luminance; auto: the model's")
    val_crop: Positive | None = Field(
        96, description="validation cuts the middle of this many pixels a side (before scaling); null: whole pictures"
    )


class Measure(Section):
    """How PSNR and SSIM are measured, as papers state it."""

    border: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="pixels cut off; auto: the scale, or none")
    channel: Literal["y", "rgb"] | Auto = Field(
        "auto", description="auto: y (luminance) for super-resolution, else rgb"
    )


class RestoreTrain(SceneTrain):
    """Training on pairs of pictures."""

    loss: Literal["l1", "charbonnier"] | Auto = Field(
        "auto", description="auto: l1 where pictures grow, else charbonnier"
    )


class RestoreRecipe(BaseRecipe):
    """The whole description of a run on pairs of a bad and a good picture."""

    job: ClassVar[str] = "restorejob:RestoreJob"

    task: Literal["restore"] = Field("restore", description="a picture from a smaller, noisy or compressed one")
    model: SceneModel = Field(default_factory=SceneModel)
    data: SceneData
    degrade: Degrade = Field(default_factory=Degrade)
    patches: Patches = Field(default_factory=Patches)
    measure: Measure = Field(default_factory=Measure)
    train: RestoreTrain = Field(default_factory=RestoreTrain)

    @model_validator(mode="after")
    def _no_backbone(self) -> RestoreRecipe:
        if self.model.backbone is not None:
            raise ValueError("model.backbone has no effect: a SwinIR has none; mend: model.pretrained, or leave it out")
        for key, place in (("upscale", "degrade.scale"), ("in_chans", "patches.channels")):
            if key in self.model.options:
                raise ValueError(f"expected {key} as {place}, got it in model.options")
        return self


def settle_what(recipe: RestoreRecipe) -> tuple[RestoreRecipe, list[Decision]]:
    """Settle network, degradation, patches and measure: what the data are opened with."""
    settle = Settling(recipe)
    d, folder = recipe.degrade, recipe.model.pretrained and open_folder(recipe.model.pretrained)
    wanted = "downscale" if d.kind == "auto" else d.kind
    shrinks = wanted in SHRINKING
    scale = d.scale if d.scale != "auto" else 2 if shrinks else 1
    small = f"swinir_nano_x{scale}" if shrinks else "swinir_nano_denoise"
    if folder:
        name = settle("model.name", folder.name, f"what {recipe.model.pretrained} holds")
    else:
        name = settle("model.name", small, "the smallest for this")
    config = folder.config if folder else config_of(name)
    if not hasattr(config, "upscale"):
        raise UsageError(f"expected a model for restoration, such as swinir_light_x2, got {name}")
    kind = settle("degrade.kind", _kind_of(name, config), f"what {name} is for")
    settle("degrade.scale", config.upscale, f"that of {name}")
    settle("patches.channels", config.in_chans, f"those of {name}")
    settle("model.img_size", _patch(config), "whole windows")
    settle("model.drop_path_rate", 0.0, "few steps need no regularisation")
    grows = config.upscale > 1
    settle("measure.border", config.upscale if grows else 0, "as papers do")
    settle("measure.channel", "y" if grows else "rgb", "as papers do")
    settle("train.loss", "l1" if grows else "charbonnier", "the paper's")
    settled = settle.settled(RestoreRecipe)
    if settled.degrade.scale != config.upscale:
        raise UsageError(
            f"expected degrade.scale {config.upscale} of {name}, got {settled.degrade.scale}; mend: another model"
        )
    if (kind in SHRINKING) != grows:
        raise UsageError(
            f"expected degrade.kind {' or '.join(SHRINKING)} for a model that makes pictures larger, else noise or "
            f"jpeg, got {kind} for {name}"
        )
    if not isinstance(settled.model.img_size, int):
        raise UsageError(f"expected model.img_size as one number: patches are square, got {settled.model.img_size}")
    return _with_levels(settled), settle.made


def _with_levels(recipe: RestoreRecipe) -> RestoreRecipe:
    """Fill in the level of noise or the quality, where the recipe leaves them out."""
    content = recipe.model_dump(mode="json")
    d = content["degrade"]
    if d["kind"] == "noise" and d["sigma"] is None:
        d["sigma"] = 25
    if d["kind"] == "jpeg" and d["quality"] is None:
        d["quality"] = [10, 40]
    found: RestoreRecipe = RestoreRecipe.check(content)
    return found


def _kind_of(name: str, config: Any) -> Kind:
    if config.upscale > 1:
        return "realworld" if config.head == "nearest+conv" else "downscale"
    return "jpeg" if config.img_range == 255 else "noise"


def _patch(config: Any) -> int:
    """Whole windows, about 32 pixels when pictures grow and 48 when they do not."""
    return int(config.window_size * round((32 if config.upscale > 1 else 48) / config.window_size))


def degradation(recipe: RestoreRecipe) -> Degradation:
    """Return what a settled recipe makes pictures bad with."""
    d = recipe.degrade
    if d.kind == "noise":
        low, high = d.sigma if isinstance(d.sigma, tuple) else (d.sigma, d.sigma)
        return Noise((float(low or 0), float(high or 0)))
    if d.kind == "jpeg":
        assert d.quality is not None, "a settled recipe has a quality"
        return Jpeg(d.quality if isinstance(d.quality, tuple) else (d.quality, d.quality))
    return Downscale(int(d.scale)) if d.kind == "downscale" else RealWorld(int(d.scale))


def resolve_restore(recipe: RestoreRecipe, count: int, device: torch.device) -> tuple[RestoreRecipe, list[Decision]]:
    """Return the recipe without any ``auto``, and what was decided; ``count`` training pictures."""
    recipe, made = settle_what(recipe)
    settle = Settling(recipe)
    batch = recipe.train.batch_size if isinstance(recipe.train.batch_size, int) else 8
    visits = settle("patches.visits", max(1, math.ceil(UPDATES * batch / count)), f"{UPDATES} updates an epoch")
    usual = Usual(
        batch=batch,
        seen=SEEN["cpu" if device.type == "cpu" else "gpu"],
        epochs=(1, 500),
        optimizer="muon",
        lr=2e-3,
        weight_decay=0.0,
        basis="tried on Set5",
        longest=1.0,
    )
    settle_running(settle, usual, count, int(visits))
    settle_machine(settle, device)
    return settle.settled(RestoreRecipe), [*made, *settle.made]
