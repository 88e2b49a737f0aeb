"""The recipe of a run on pixels: its sections, and what ``auto`` becomes."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from vitrail.errors import UsageError
from vitrail.models import config_of

from .baserecipe import BaseRecipe, merge, nested
from .defaults import NARROW, Decision, Facts, settle_schedule
from .habits import ALL_OPTIONS, HABITS
from .precision import pick_precision
from .sections import Auto, Data, Decay, Positive, Running, Section, Share, Size
from .start import adopt, folder_of

SEEN = {"cpu": 40_000_000, "gpu": 2_000_000_000}  # pixels a run looks at


class PixelModel(Section):
    """Which network, and where its weights come from."""

    name: str = Field("auto", description="an igpt name of `vitrail models`; auto: by the size of the images")
    img_size: Size | Auto = Field("auto", description="pixels: one number, or [height, width]; each pixel is a token")
    drop_path_rate: Share = Field(0.0, description="stochastic depth of the last block")
    drop_rate: Decay = Field(0.0, description="dropout; the paper has none")
    pretrained: str | None = Field(None, description="a run, a folder or hf-hub:org/name; its palette is kept")
    options: dict[str, Any] = Field(default_factory=dict, description="other fields of the model's config")

    @model_validator(mode="after")
    def _one_place(self) -> PixelModel:
        places = {key: f"model.{key}" for key in ("img_size", "drop_path_rate", "drop_rate")}
        places |= {"colours": "pixels.colours", "objective": "pixels.objective"}
        for key, place in places.items():
            if key in self.options:
                raise ValueError(f"expected {key} as {place}, got it in model.options")
        for key in ("num_classes", "joint"):
            if self.options.get(key):
                raise ValueError(f"{key} is for classes, and this task has none; mend: leave it out")
        return self


class PixelTask(Section):
    """What is predicted."""

    objective: Literal["autoregressive", "masked"] = Field(
        "autoregressive", description="each pixel from those before it, or hidden ones from all others"
    )
    hidden: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="masked: share of the pixels that is hidden (0.15)"
    )
    palette: Literal["kmeans", "levels"] | None = Field(
        "kmeans", description="kmeans: fitted to the training images; levels: each channel cut evenly; null: pretrained"
    )
    colours: Positive | None = Field(512, description="at most; 512: 9 bits a pixel; null: the pretrained palette's")
    hflip: Share | Auto = Field("auto", description="probability of a left-right flip: all the augmentation there is")

    @model_validator(mode="after")
    def _no_idle_option(self) -> PixelTask:
        if self.objective == "masked" and self.hidden is None:
            self.hidden = 0.15
        if self.objective != "masked" and self.hidden is not None:
            raise ValueError("hidden has no effect with objective: autoregressive; mend: leave it out")
        return self


class PixelTrain(Running):
    """Training on pixels."""

    batch_size: Positive | Auto = Field("auto", description="images an update")

    @model_validator(mode="after")
    def _no_smoothing(self) -> PixelTrain:
        if self.label_smoothing not in ("auto", 0):
            raise ValueError("label_smoothing would be counted as bits; mend: leave it out")
        return self


class PixelRecipe(BaseRecipe):
    """The whole description of a run on the pixels of images."""

    job: ClassVar[str] = "pixeljob:PixelJob"

    task: Literal["pixels"] = Field("pixels", description="predict the pixels of images; no classes are needed")
    model: PixelModel = Field(default_factory=PixelModel)
    data: Data = Field(default_factory=Data)
    pixels: PixelTask = Field(default_factory=PixelTask)
    train: PixelTrain = Field(default_factory=PixelTrain)

    @model_validator(mode="after")
    def _palette_of_one_origin(self) -> PixelRecipe:
        if self.model.pretrained is None and None in (self.pixels.palette, self.pixels.colours):
            raise ValueError("expected pixels.palette and pixels.colours without pretrained weights, got null")
        return self


def start(recipe: PixelRecipe) -> tuple[PixelRecipe, list[Decision]]:
    """Take the network, the palette and the objective of the weights that a run starts from, where there are any."""
    m = recipe.model
    if m.pretrained is None:
        return recipe, []
    folder = folder_of(m)
    name = adopt(m)["name"] if m.name == "auto" else m.name
    objective = recipe.pixels.objective if folder is None else getattr(folder.config, "objective", None)
    if objective is None:
        raise UsageError(f"expected the weights of an image GPT, got {folder.name} in {m.pretrained}")
    if recipe.pixels.objective == "masked" != objective:
        raise UsageError(f"expected pixels.objective: {objective} as {m.pretrained} was trained, got masked")
    task = {"palette": None, "colours": None, "objective": objective}
    content = merge(recipe.model_dump(mode="json"), {"model": {"name": name}, "pixels": task})
    return PixelRecipe.check(content), [Decision("model.name", name, f"what {m.pretrained} holds")]


def resolve_pixels(
    recipe: PixelRecipe, facts: Facts, device: torch.device, *, has_val: bool
) -> tuple[PixelRecipe, list[Decision]]:
    """Return the recipe without any ``auto``, and what was decided."""
    if has_val and isinstance(recipe.data.val_fraction, float):
        raise UsageError("data.val_fraction has no effect: the data have a validation split of their own; leave it out")
    recipe, made = start(recipe)
    given = recipe.flat()

    def settle(key: str, value: Any, reason: str) -> Any:
        if given.get(key) != "auto":
            return given.get(key)
        made.append(Decision(key, value, reason))
        return value

    typical = f"images of {facts.height} x {facts.width}"
    side = max(8, min(32, facts.side))
    name = settle("model.name", "igpt_nano_8" if side <= 10 else f"igpt_micro_{16 if side <= 20 else 32}", typical)
    config = config_of(name)
    if not hasattr(config, "colours"):
        raise UsageError(f"expected a model that reads pixels, such as igpt_nano_8, got {name}")
    size: Any = side if given["model.name"] == "auto" else list(_made_for(recipe))
    size = settle("model.img_size", size, typical if isinstance(size, int) else f"the size {name} is made for")
    settle("pixels.hflip", 0.0 if side <= 10 else 0.5, "digits and letters have sides" if side <= 10 else typical)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    _rates(recipe, _length(facts, height * width, device, settle), settle)
    settle("data.val_fraction", None if has_val else 0.1, "as the data have it")
    settle("data.labels", "multi" if facts.multi_label else "single", "as the data have it")
    settle("train.device", str(device), "the fastest here")
    settle("train.precision", *pick_precision(recipe.train.precision, device))
    wide = int(recipe.model.options.get("embed_dim", config.embed_dim))
    settle("train.threads", 1 if wide <= NARROW else torch.get_num_threads(), f"a network {wide} wide")
    if device.type == "cpu":
        settle("data.workers", 0, "small images: the cores are busy with training")
    chosen = nested({d.key: d.value for d in made}, "the defaults")
    settled = PixelRecipe.check(merge(recipe.model_dump(mode="json"), chosen))
    if int(settled.train.batch_size) > facts.count:
        raise UsageError(f"expected train.batch_size of at most {facts.count}, the training images")
    return settled, made


def _made_for(recipe: PixelRecipe) -> tuple[int, int]:
    """Return the (H, W) that the weights, or else the network, are made for."""
    folder = folder_of(recipe.model)
    found: tuple[int, int] = config_of(recipe.model.name).img_size if folder is None else folder.card.input_size
    return found


def _length(facts: Facts, pixels: int, device: torch.device, settle: Any) -> int:
    """Settle how long; return the epochs."""
    room = 2 ** int(math.log2(max(2, facts.count / 10)))
    batch = settle("train.batch_size", max(2, min(64, room)), f"{facts.count} images")
    seen = SEEN["cpu" if device.type == "cpu" else "gpu"] / pixels
    epochs = settle("train.epochs", min(200, max(1, round(seen / facts.count))), f"about {seen:,.0f} images seen")
    updates = max(1, facts.count // batch) * epochs
    decay = round(min(0.9998, max(0.9, 1 - 20 / updates)), 5)
    settle("train.ema_decay", decay, f"an average over about a twentieth of the {updates} updates")
    settle("train.eval_every", max(1, math.ceil(epochs / 20)), "at most 20 evaluations")
    settle("train.log_every", max(1, min(50, updates // 200)), "about 200 lines")
    settle("train.label_smoothing", 0.0, "bits are measured, not answers")
    settle("train.accumulation", 1, "small images")
    return int(epochs)


def _rates(recipe: PixelRecipe, epochs: int, settle: Any) -> None:
    name = settle("optim.name", "adamw", "the paper's Adam")
    lr = settle("optim.lr", 3e-3 if name in ("adamw", "muon") else 1e-3, "the paper's rate of its smallest model")
    settle("optim.weight_decay", 0.01, "the paper's fine-tuning value")
    for key in ALL_OPTIONS:
        value = HABITS[name].options.get(key)
        settle(f"optim.{key}", (0.9, 0.95) if key == "betas" and name == "adamw" else value, "the paper's value")
    settle_schedule(recipe, lr, epochs, settle, longest=2.0)
