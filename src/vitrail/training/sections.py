"""The sections of a recipe: every option, its meaning, its default.

``auto`` is worked out from the data by defaults.py before a run starts; a run's ``recipe.yaml`` holds no ``auto``.
Combinations in which an option would do nothing are refused here. The section ``augment`` is in augmenting.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .habits import ALL_OPTIONS, HABITS

Auto = Literal["auto"]
T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Size = Positive | tuple[Positive, Positive]
HUB_PREFIX = "hf-hub:"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True)


class Lora(Section):
    """Adapters beside frozen weights; Hu et al. 2022, arXiv 2106.09685."""

    rank: Positive = Field(8, description="of each adapter; q, k and v of a fused layer have one each")
    alpha: Rate = Field(16.0, description="what an adapter adds counts alpha / rank")
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("qkv",), description="names of linear layers in the blocks: qkv, proj, fc1, fc2"
    )


class Model(Section):
    """Which network, where its weights come from, and what of it learns."""

    name: str = Field("auto", description="a name of `vitrail models`, or auto: by the weights, or by the images' size")
    img_size: Size | Auto = Field("auto", description="pixels: one number, or [height, width]")
    drop_path_rate: Share | Auto = Field("auto", description="stochastic depth of the last block")
    drop_rate: Decay | None = Field(None, description="dropout; null: what the model has, usually none")
    attn_drop_rate: Decay = Field(0.0, description="dropout of the attention weights")
    pretrained: str | bool | None = Field(None, description="path, folder, hf-hub:org/name; true: the default origin")
    sha256: str | Auto | None = Field(
        "auto", description="of the pretrained weights; a run fills it in, and then takes no others"
    )
    head: Literal["auto", "keep", "match", "new"] | None = Field(
        "auto", description="keep: the pretrained head's rows of classes the data name too; match: or fail if none is"
    )
    freeze: Literal["none", "backbone", "fixres"] = Field(
        "none", description="backbone: only the head learns; fixres: the head and the last norm"
    )
    lora: Lora | None = Field(None, description="adapters on frozen weights, and the head, learn; null: none")
    options: dict[str, Any] = Field(default_factory=dict, description="other fields of the model's config")

    @model_validator(mode="after")
    def _one_place(self) -> Model:
        for key in ("img_size", "drop_path_rate", "drop_rate"):
            if key in self.options:
                raise ValueError(f"expected {key} as model.{key}, got it in model.options")
        if "num_classes" in self.options:
            raise ValueError("num_classes comes from the data; leave it out of model.options")
        if self.pretrained is False:
            self.pretrained = None
        return self

    @model_validator(mode="after")
    def _no_idle_option(self) -> Model:
        named = self.name.startswith(HUB_PREFIX)
        if named and self.pretrained:
            raise ValueError(f"pretrained has no effect with name: {self.name}, which names the weights too")
        if self.lora is not None and self.freeze != "none":
            raise ValueError(f"expected lora or freeze: {self.freeze}, got both; mend: lora freezes the rest by itself")
        learns = "lora" if self.lora is not None else f"freeze: {self.freeze}" if self.freeze != "none" else ""
        if not named and not self.pretrained:
            if learns:
                raise ValueError(
                    f"{learns} needs pretrained weights: little can be learned from frozen random features; "
                    "mend: model.pretrained, or train the whole network"
                )
            if self.head not in ("auto", None):
                raise ValueError(f"head: {self.head} has no effect without pretrained weights; mend: leave it out")
            if self.sha256 not in ("auto", None):
                raise ValueError("sha256 has no effect without pretrained weights; mend: leave it out")
        for key in ("drop_path_rate", "attn_drop_rate"):
            if self.freeze != "none" and getattr(self, key) not in ("auto", 0):
                raise ValueError(
                    f"{key} has no effect with freeze: {self.freeze}, which runs the backbone as in evaluation"
                )
        return self


class Data(Section):
    """Which images."""

    source: str = Field("digits", description="a folder, a CSV, parquet, tar shards (or a pattern), or a built-in name")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | Auto | None = Field(
        "auto", description="share of train held out, only where there is no val split (0.1)"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="held out if there is no test split")
    train_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the training images to use, to see what more data bring"
    )
    seed: int = Field(0, description="of the held-out splits; kept apart from train.seed so that runs compare")
    balance: Literal["none", "sqrt", "equal"] = Field(
        "none", description="how often an epoch visits a class: as it has images, the root of that, or all alike"
    )
    labels: Literal["single", "multi"] | Auto = Field(
        "auto", description="labels an image: one, or any number; auto: seen from the table or parquet"
    )
    window: Positive | None = Field(
        None, description="shards (tar files, row groups) mixed at a time, for slow disks; null: the whole set"
    )
    cache: Literal["auto", "none", "all"] = Field("auto", description="keep images in memory; auto: what fits well")
    workers: Annotated[int, Field(ge=0)] | Auto = Field("auto", description="reading threads; auto: one a core")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the side that evaluation cuts out of the centre; null: what suits weights and crop"
    )
    max_broken: Share = Field(0.01, description="share of unreadable training images that is put up with")
    allow_empty: bool = Field(False, description="accept classes that have no training image")

    @model_validator(mode="after")
    def _something_left(self) -> Data:
        if isinstance(self.val_fraction, float) and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("expected val_fraction + test_fraction below 1: nothing would be left to train on")
        if self.window is not None and self.balance != "none":
            raise ValueError(
                f"window and balance: {self.balance} exclude each other: balanced classes are drawn from the whole "
                "set; mend: leave one out"
            )
        return self


class Optim(Section):
    """The optimiser."""

    name: Literal["adamw", "muon", "sgd", "lion", "adafactor"] | Auto = Field(
        "auto",
        description="no decay on biases, norms, positions, tokens; muon: in the blocks, AdamW elsewhere",
    )
    lr: Rate | Auto = Field("auto", description="highest learning rate")
    betas: tuple[Decay, Decay] | Auto | None = Field(
        "auto",
        description="adamw, muon: of the averages of gradient and square; lion: for the step, for the memory; "
        "adafactor: of the momentum, and where the decay of the squares ends",
    )
    eps: Rate | Auto | None = Field("auto", description="adamw, muon: added to the root of the square")
    weight_decay: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="decoupled, times the rate; sgd: added to the gradient"
    )
    head_weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="of the classifier alone; null: as weight_decay"
    )
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="factor on the rate from each block to the one before it; null: one rate for all"
    )
    momentum: Decay | Auto | None = Field("auto", description="sgd, muon: of the average of the gradient")
    nesterov: bool | None = Field(None, description="sgd: look ahead along the momentum")
    clip_norm: Rate | None = Field(1.0, description="gradients are scaled down to this norm; null: never")

    @model_validator(mode="after")
    def _options_of_the_optimizer(self) -> Optim:
        if self.name == "auto":
            return self
        own = HABITS[self.name].options
        for key in ALL_OPTIONS:
            value = getattr(self, key)
            if key in own and value is None:
                setattr(self, key, own[key] if key == "nesterov" else "auto")
            if key not in own and value not in ("auto", None):
                takers = " or ".join(name for name, habit in HABITS.items() if key in habit.options)
                raise ValueError(
                    f"{key} has no effect with name: {self.name}; mend: name: {takers}, or leave {key} out"
                )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov has no effect with momentum: 0; mend: momentum: 0.9, or leave nesterov out")
        return self


class Distill(Section):
    """A teacher: learnt from in every step, or asked once for labels of images that have none."""

    teacher: str = Field(description="run folder, model folder or hf-hub:org/name; the same classes in any order")
    sha256: str | Auto = Field("auto", description="of the teacher; a run fills it in, and then takes no other teacher")
    how: Literal["soft", "hard"] = Field("soft", description="learn the teacher's probabilities, or its one answer")
    temperature: Rate | None = Field(
        None, description="softens soft answers: 3; of soft labels of unlabelled images: 1"
    )
    weight: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="of the teacher in the loss, the labels have the rest: 0.5"
    )
    cache: Literal["auto", "on", "off"] = Field(
        "auto", description="ask the teacher once an image; only where training images are not varied"
    )
    unlabelled: str | None = Field(
        None, description="a folder of images without labels: self-training, the teacher's answers are their labels"
    )
    confidence: Share | None = Field(None, description="the least score of an unlabelled image that is used: 0.3")
    balance: Positive | None = Field(None, description="unlabelled images used of each class: the surest, or repeated")

    @field_validator("cache", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _no_idle_option(self) -> Distill:
        if self.how == "hard" and self.temperature is not None:
            raise ValueError("temperature has no effect with how: hard; mend: how: soft, or leave temperature out")
        if self.unlabelled is None:
            idle, why = {"confidence": self.confidence, "balance": self.balance}, "without unlabelled"
        else:
            idle, why = {"weight": self.weight, "cache": self.cache if self.cache == "on" else None}, "with unlabelled"
        for key, value in idle.items():
            if value is not None:
                raise ValueError(f"{key} has no effect {why}; mend: leave {key} out")
        self._fill_in()
        return self

    def _fill_in(self) -> None:
        if self.how == "soft" and self.temperature is None:
            self.temperature = 3.0 if self.unlabelled is None else 1.0
        if self.unlabelled is None and self.weight is None:
            self.weight = 0.5
        if self.unlabelled is not None and self.confidence is None:
            self.confidence = 0.3


class Schedule(Section):
    """The learning rate over time."""

    name: Literal["cosine", "linear", "rsqrt", "constant"] = Field(
        "cosine", description="after the warm-up; rsqrt: 1 / root of the time; constant: flat"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] | Auto = Field("auto", description="linear rise at the start")
    min_lr: Annotated[float, Field(ge=0)] | Auto | None = Field(
        "auto", description="where cosine and linear end, and where a cooldown ends"
    )
    cooldown_epochs: Annotated[float, Field(ge=0)] | Auto | None = Field(
        None, description="rsqrt, constant: linear fall at the end; 0: none; null: none for constant, auto for rsqrt"
    )
    timescale_epochs: Rate | Auto | None = Field(
        None, description="rsqrt: three times this long after the warm-up the rate has halved; null: auto"
    )

    @model_validator(mode="after")
    def _no_idle_option(self) -> Schedule:
        if self.name == "rsqrt":
            self._fill("cooldown_epochs", "timescale_epochs")
        elif self.timescale_epochs not in ("auto", None):
            raise ValueError(
                f"timescale_epochs has no effect with name: {self.name}; mend: name: rsqrt, or leave it out"
            )
        if self.name in ("cosine", "linear") and self.cooldown_epochs not in ("auto", None):
            raise ValueError(
                f"cooldown_epochs has no effect with name: {self.name}, which falls to its end; "
                "mend: name: constant or rsqrt, or leave cooldown_epochs out"
            )
        if self.name in ("rsqrt", "constant") and not self.cooldown_epochs and self.min_lr not in ("auto", None):
            raise ValueError(
                f"min_lr has no effect with name: {self.name} without a cooldown; "
                "mend: name: cosine, or cooldown_epochs, or leave min_lr out"
            )
        return self

    def _fill(self, *keys: str) -> None:
        for key in keys:
            if getattr(self, key) is None:
                setattr(self, key, "auto")


class Running(Section):
    """How long, how exactly, and what is kept: what all tasks share."""

    epochs: Positive | Auto = Field("auto", description="times through the training images")
    accumulation: Positive | Auto = Field(
        1, description="pieces a batch is computed in: less memory, the same gradient; auto: the fewest that fit"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | Auto = Field("auto", description="spread over all classes")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | Auto | None = Field("auto", description="null: no average")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 keeps float32 master weights")
    parallel: Literal["ddp", "fsdp", "hsdp"] | None = Field(
        None,
        description="several processes: each holds all of the model (ddp), a slice (fsdp), or a slice of its node's "
        "copy (hsdp); null: all of it while that takes less than 40 % of the device's memory",
    )
    timeout_minutes: Rate = Field(10.0, description="how long a process waits for the others before it gives up")
    recompute: bool = Field(False, description="keep a block's input alone, compute it twice: less memory, same result")
    compile: bool = Field(False, description="torch.compile, block by block (a minute at first)")
    device: str = Field("auto", description="cpu, cuda, cuda:1, or auto")
    threads: Positive | Auto = Field("auto", description="of a CPU; another number rounds sums differently")
    seed: int = Field(0, description="of initial weights, data order, augmentation, dropout")
    eval_every: Positive | Auto = Field("auto", description="epochs between evaluations; the last is always evaluated")
    log_every: Positive | Auto = Field("auto", description="steps between lines of metrics.jsonl")
    save_every_steps: Positive | None = Field(None, description="steps between checkpoints")
    save_every_minutes: Rate | None = Field(5.0, description="minutes between checkpoints")
    keep: Positive = Field(2, description="checkpoints kept")
    track: Literal["none", "tensorboard"] = Field("none", description="tensorboard: events beside metrics.jsonl")

    @model_validator(mode="after")
    def _evaluated_once_at_least(self) -> Self:
        if isinstance(self.epochs, int) and isinstance(self.eval_every, int) and self.eval_every > self.epochs:
            raise ValueError(f"expected eval_every <= epochs ({self.epochs}), got {self.eval_every}")
        return self


class Train(Running):
    """Training on images with labels."""

    batch_size: Positive | Auto = Field("auto", description="images an update")
    loss: Literal["ce", "bce", "asymmetric"] | Auto = Field(
        "auto",
        description="ce: cross entropy; bce: a yes-or-no question a class (DeiT III); asymmetric: of several labels an "
        "image, many of them rare (arXiv 2009.14119); auto: ce, or bce with several labels",
    )
    bce_threshold: Decay | None = Field(
        None, description="mixed targets above this count as whole ones in loss: bce; null: as they are"
    )
    class_weights: Literal["none", "balanced", "effective"] = Field(
        "none", description="of the loss; balanced: by inverse count; effective: by effective number (arXiv 1901.05555)"
    )
    effective_beta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="of effective class weights, 0.999: a class's number of images levels off at 1 / (1 - beta)"
    )
    logit_adjustment: Annotated[float, Field(ge=0)] = Field(
        0.0, description="tau: tau times the log share of each class is added to its logit in training (2007.07314)"
    )
    monitor: Literal["top1", "macro_recall", "macro_f1", "micro_f1", "map"] | Auto = Field(
        "auto", description="metric that chooses the best weights; macro_recall: the mean accuracy of the classes"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.loss != "bce" and self.bce_threshold is not None:
            raise ValueError(
                f"bce_threshold has no effect with loss: {self.loss}; mend: loss: bce, or leave bce_threshold out"
            )
        pieces = self.accumulation if isinstance(self.accumulation, int) else 1
        if isinstance(self.batch_size, int) and pieces > self.batch_size:
            raise ValueError(
                f"expected accumulation <= batch_size: a batch of {self.batch_size} cannot be cut in {pieces} pieces"
            )
        return self

    @model_validator(mode="after")
    def _beta_is_of_effective_weights(self) -> Train:
        if self.class_weights == "effective" and self.effective_beta is None:
            self.effective_beta = 0.999
        if self.class_weights != "effective" and self.effective_beta is not None:
            raise ValueError(
                f"effective_beta has no effect with class_weights: {self.class_weights}; "
                "mend: class_weights: effective, or leave effective_beta out"
            )
        return self
