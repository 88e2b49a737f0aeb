"""The recipe of a translation: its sections, and what ``auto`` becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from vitrail.models import config_of

from .baserecipe import BaseRecipe, merge, nested
from .defaults import NARROW, Decision, settle_schedule
from .habits import ALL_OPTIONS, HABITS
from .precision import pick_precision
from .sections import Auto, Decay, Positive, Running, Section


class TextModel(Section):
    """Which network, and where its weights come from."""

    name: str = Field("auto", description="a name of `vitrail models` that reads text; auto: by the number of pairs")
    drop_rate: Decay | Auto = Field("auto", description="dropout; auto: the more, the fewer pairs there are")
    pretrained: str | None = Field(None, description="a run or a folder that Vitrail wrote; its tokenizer is used too")
    options: dict[str, Any] = Field(default_factory=dict, description="other fields of the model's config")

    @model_validator(mode="after")
    def _one_place(self) -> TextModel:
        places = {"drop_rate": "model.drop_rate", "vocab_size": "tokenizer.vocab_size"}
        for key, place in places.items():
            if key in self.options:
                raise ValueError(f"expected {key} as {place}, got it in model.options")
        if "specials" in self.options:
            raise ValueError("specials come from the tokenizer; leave them out of model.options")
        return self


class TextData(Section):
    """Which sentences."""

    source: str = Field("numbers", description="a folder (train.en, train.de, ...), a .tsv, a .tar, or a built-in name")
    languages: tuple[str, str] | Auto = Field("auto", description="from which to which; auto: from English")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="held out if there is no val split")
    train_fraction: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the training pairs to use")
    seed: int = Field(0, description="of held-out pairs; kept apart from train.seed so that runs compare")
    max_tokens: Positive = Field(256, description="longer sentences are cut, and counted")


class Vocabulary(Section):
    """The tokenizer."""

    vocab_size: Positive | Auto = Field("auto", description="tokens at most; auto: by the words there are")


class Decoding(Section):
    """How translations are found at the end, and by whoever loads the weights."""

    beam: Positive = Field(4, description="hypotheses kept at a time; 1: greedy")
    length_penalty: Annotated[float, Field(ge=0)] = Field(0.6, description="alpha of ((5 + n) / 6) ** alpha")
    extra: Positive = Field(50, description="tokens a translation may be longer than its source")


class TextTrain(Running):
    """Training on sentences."""

    batch_tokens: Positive | Auto = Field("auto", description="tokens an update, on the longer side, with padding")
    monitor: Literal["bleu", "accuracy"] = Field("bleu", description="metric that chooses the best weights")


class TranslateRecipe(BaseRecipe):
    """The whole description of a run on parallel text."""

    job: ClassVar[str] = "textjob:TextJob"

    task: Literal["translate"] = Field("translate", description="from one language to another")
    model: TextModel = Field(default_factory=TextModel)
    data: TextData = Field(default_factory=TextData)
    tokenizer: Vocabulary = Field(default_factory=Vocabulary)
    decoding: Decoding = Field(default_factory=Decoding)
    train: TextTrain = Field(default_factory=TextTrain)


@dataclass(frozen=True)
class TextFacts:
    """What the training pairs are like: their number, words on both sides, the direction."""

    pairs: int
    words: int
    languages: tuple[str, str]


def resolve_text(
    recipe: TranslateRecipe, facts: TextFacts, device: torch.device
) -> tuple[TranslateRecipe, list[Decision]]:
    """Return the recipe without any ``auto``, and what was decided."""
    made: list[Decision] = []
    given = recipe.flat() | {"task": "auto"}

    def settle(key: str, value: Any, reason: str) -> Any:
        if given.get(key) != "auto":
            return given.get(key)
        if key not in {d.key for d in made}:
            made.append(Decision(key, value, reason))
        return value

    few = facts.pairs < 200_000
    settle("task", "translate", "parallel text")
    settle("data.languages", list(facts.languages), "as the data are read")
    name = settle("model.name", "transformer_tiny" if few else "transformer_base", f"{facts.pairs:,} pairs")
    settle("model.drop_rate", 0.3 if few else 0.1, f"{facts.pairs:,} pairs")
    size = 2 ** round(math.log2(max(300, facts.words / 100)))
    settle("tokenizer.vocab_size", min(32_000, max(512, size)), f"{facts.words:,} words on both sides")
    _rates(recipe, _steps(facts, device, settle), settle)
    _machine(recipe, name, device, settle)
    chosen = nested({d.key: d.value for d in made}, "the defaults")
    settled = TranslateRecipe.check(merge(recipe.model_dump(mode="json"), chosen))
    assert isinstance(settled, TranslateRecipe)
    return settled, made


def _steps(facts: TextFacts, device: torch.device, settle: Any) -> int:
    """Settle how long; return the epochs."""
    tokens = round(0.7 * facts.words)  # on the longer side: a word is a little more than a token
    largest = 4096 if device.type == "cpu" else 16_384
    batch = settle("train.batch_tokens", min(largest, max(512, tokens // 60 // 256 * 256)), f"{facts.words:,} words")
    epochs = settle("train.epochs", min(40, max(4, round(900_000 / facts.pairs))), f"{facts.pairs:,} pairs")
    updates = max(1, tokens // batch) * epochs
    decay = round(min(0.9995, max(0.9, 1 - 20 / updates)), 5)
    settle("train.ema_decay", decay, f"an average over about a twentieth of the {updates} updates")
    settle("train.eval_every", max(1, math.ceil(epochs / 20)), "at most 20 evaluations")
    settle("train.log_every", max(1, min(50, updates // 200)), "about 200 lines")
    settle("train.label_smoothing", 0.1, "the paper's value")
    return int(epochs)


def _rates(recipe: TranslateRecipe, epochs: int, settle: Any) -> None:
    """Settle the optimiser: AdamW with the paper's second beta."""
    name, tried = settle("optim.name", "adamw", "what these models are trained with"), "tried on Multi30k"
    base = 3e-3 if name == "muon" else 2e-3
    lr = settle("optim.lr", base, tried)
    settle("optim.weight_decay", 0.01, tried)
    if name == "adamw":
        settle("optim.betas", [0.9, 0.98], "the paper's values")
    for key in ALL_OPTIONS:
        settle(f"optim.{key}", HABITS[name].options.get(key), HABITS[name].reason)
    settle_schedule(recipe, lr, epochs, settle, longest=4.0)


def _machine(recipe: TranslateRecipe, model: str, device: torch.device, settle: Any) -> None:
    settle("train.device", str(device), "the fastest here")
    settle("train.precision", *pick_precision(recipe.train.precision, device))
    width = recipe.model.options.get("embed_dim", getattr(config_of(model), "embed_dim", NARROW + 1))
    narrow = width <= 2 * NARROW
    threads = 1 if narrow else torch.get_num_threads()
    settle("train.threads", threads, f"a network {width} wide gains nothing from more" if narrow else "the cores here")
    settle("train.accumulation", 1, "text takes little memory")
