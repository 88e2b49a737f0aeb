"""What every recipe is, whatever it trains: read from YAML, a dictionary, the environment and the command line.

Order, weakest first: file, environment (``VITRAIL_TRAIN__EPOCHS=3`` is ``train.epochs``), command line. Which sections
there are depends on the task: recipe.py for images, textrecipe.py for text.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from vitrail.errors import UsageError, did_you_mean

from .sections import Optim, Running, Schedule, Section

PREFIX = "VITRAIL_"
FIRST = ("task", "name", "out", "model", "data")
"""What a recipe file begins with: what people look for."""
RECIPES = {
    "classify": ("recipe", "Recipe"),
    "translate": ("textrecipe", "TranslateRecipe"),
    "pixels": ("pixelrecipe", "PixelRecipe"),
    "detect": ("detectrecipe", "DetectRecipe"),
    "segment": ("segmentrecipe", "SegmentRecipe"),
    "restore": ("restorerecipe", "RestoreRecipe"),
}
"""Task -> module and class of its recipe; any other task is one on images with labels."""
TASKS_OF = {"boxes": "detect", "masks": "segment", "pictures": "restore"}
"""What a model answers (:func:`vitrail.models.answers`) -> the task it is for."""


class BaseRecipe(Section):
    """The sections that all recipes have."""

    job: ClassVar[str]
    """Module and class of the job it describes, see job.py."""

    name: str | None = Field(None, description="folder of the run below out/task; null: the model's name and a number")
    out: str = Field("runs", description="folder that holds all runs")
    optim: Optim = Field(default_factory=Optim)
    schedule: Schedule = Field(default_factory=Schedule)

    @property
    def running(self) -> Running:
        """The section ``train``, as far as all tasks have it."""
        found: Running = self.train  # type: ignore[attr-defined]
        return found

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        epochs, warmup = self.running.epochs, self.schedule.warmup_epochs
        if isinstance(epochs, int) and not isinstance(warmup, str) and warmup >= epochs:
            raise ValueError(f"expected schedule.warmup_epochs below train.epochs ({epochs}), got {warmup}")
        cooldown = self.schedule.cooldown_epochs
        if isinstance(epochs, int) and isinstance(cooldown, float):
            rise = warmup if isinstance(warmup, float) else 0.0
            if rise + cooldown > epochs:
                raise ValueError(
                    f"expected schedule.cooldown_epochs of at most {epochs - rise:g}, what {epochs} epochs leave "
                    f"after the warm-up, got {cooldown:g}"
                )
        lr, least = self.optim.lr, self.schedule.min_lr
        if isinstance(lr, float) and isinstance(least, float) and least > lr:
            raise ValueError(f"expected schedule.min_lr <= optim.lr ({lr}), got {least}")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name in (".", "..")):
            raise ValueError(f"expected name as one folder name, got {self.name!r}")
        return self

    @classmethod
    def load(
        cls,
        source: BaseRecipe | Mapping[str, Any] | str | os.PathLike[str],
        overrides: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Any:
        """Read a recipe from a YAML file, a dictionary (nested or dotted keys), or another recipe.

        ``overrides`` (nested or dotted) win over ``environment`` (default: this process's), which wins over
        ``source``; the environment is not read for a ready recipe. Raises :class:`UsageError` with the full
        dotted path of what is wrong, and the nearest name of an unknown key.
        """
        if isinstance(source, BaseRecipe):
            content, environment = source.model_dump(mode="json"), environment or {}
        elif isinstance(source, Mapping):
            content = nested(source, "the recipe")
        else:
            content = _read(Path(source))
        surroundings = nested(_from_environment(os.environ if environment is None else environment), "the environment")
        for layer in (surroundings, nested(overrides or {}, "the command line")):
            content = merge(content, layer)
        return cls.check(content)

    @classmethod
    def check(cls, content: Mapping[str, Any]) -> Any:
        """Build the recipe that nested plain data describe, of its task's class; errors are :class:`UsageError`."""
        kind = kind_of(content)
        content = {k: v for k, v in content.items() if (k, v) != ("task", "auto")}  # the class says the rest
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise UsageError(explain(error, kind)) from None

    def to_yaml(self, header: str = "") -> str:
        """Return the recipe as YAML under ``header`` (made into comments); :meth:`load` reads it back equal."""
        content = self.model_dump(mode="json")
        content = {key: content[key] for key in FIRST} | content
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        return "".join(f"# {line}\n" if line else "#\n" for line in header.splitlines()) + text

    def flat(self) -> dict[str, Any]:
        """Return dotted key -> plain value of every option."""
        return flatten(self.model_dump(mode="json"))


def kind_of(content: Mapping[str, Any]) -> type[BaseRecipe]:
    """Return the class of a recipe: by its task, or, where that is left open, by what its model or its data are for."""
    task, data, model = (content.get(key) for key in ("task", "data", "model"))
    name = model.get("name") if isinstance(model, Mapping) else None
    source = data.get("source") if isinstance(data, Mapping) else None
    if task in (None, "auto") and isinstance(name, str):
        task = task_of_model(name)
    if task in (None, "auto") and isinstance(source, str):
        task = task_of(source)
    module, kind = RECIPES.get(str(task), RECIPES["classify"])
    found: type[BaseRecipe] = getattr(importlib.import_module(f"vitrail.training.{module}"), kind)
    return found


def task_of_model(name: str) -> str:
    """Return the task that a model can do alone; "auto" for backbones, and for names there are not."""
    from vitrail.models import answers, variants

    return TASKS_OF.get(answers(variants().get(name)), "auto")


def task_of(source: str) -> str:
    """Return the task that data are unmistakably for; "auto" where they are images with labels, or nothing known."""
    from vitrail.data.detection.source import is_detection
    from vitrail.data.masks import is_masks
    from vitrail.data.paralleltext import is_parallel
    from vitrail.data.restoration import is_pairs

    if is_parallel(source):
        return "translate"
    if is_pairs(source):
        return "restore"
    if is_detection(source):
        return "detect"
    return "segment" if is_masks(source) else "auto"


def known_keys(section: type[BaseModel], path: str = "") -> list[str]:
    """Return every dotted key of a recipe; ``model.options`` stands for all keys below it."""
    found = []
    for name, field in section.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        inner = [k for k in kinds if issubclass(k, BaseModel)]
        if inner:
            found += known_keys(inner[0], f"{path}{name}.")
        if not inner or field.annotation is not inner[0]:  # a section, or a section that may be left out
            found.append(path + name)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"expected a recipe file, got {path}, which does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"expected a recipe in YAML, got {path}: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UsageError(f"expected a recipe of key: value lines in {path}, got a {type(content).__name__}")
    return nested(content, str(path))


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return dotted key -> text for names with a double underscore; others (VITRAIL_OFFLINE) are not a recipe's."""
    return {
        name[len(PREFIX) :].lower().replace("__", "."): text
        for name, text in environment.items()
        if name.startswith(PREFIX) and "__" in name
    }


def nested(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Unfold dotted keys into sections, and read text that stands for a list, a mapping or nothing."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = nested(value, where) if str(key) != "options" else dict(value)
        elif isinstance(value, str) and (value.startswith(("[", "{")) or value in ("null", "None", "~")):
            value = yaml.safe_load(value.replace("None", "null"))
        layer: dict[str, Any] = {}
        inner = layer
        *parents, last = str(key).split(".")
        for name in parents:
            inner[name] = inner = {}
        inner[last] = value
        clash = flatten(layer).keys() & flatten(found).keys()
        if clash:
            raise UsageError(f"{sorted(clash)[0]} is given twice in {where}")
        found = merge(found, layer)
    return found


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``above`` over ``below``, section by section."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def flatten(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return dotted key -> value of nested plain data."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        inner = flatten(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {path + str(key): value}
        found |= inner
    return found


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return pydantic's findings as sentences, one line an option: dotted path, what was expected, what came."""
    known, lines = known_keys(kind), dict[str, list[str]]()
    heads = {key.rpartition(".")[0] for key in known} | set(known)
    found = error.errors(include_url=False)
    within = {e["loc"][: e["loc"].index("RandAugment")] for e in found if "RandAugment" in e["loc"]}
    for item in found:
        parts = [str(p) for p in item["loc"] if p != "RandAugment"]
        if item["type"] == "extra_forbidden":
            lines[".".join(parts)] = [_unknown(parts, known, heads)]
            continue
        if item["loc"][:2] in within and item["type"] == "literal_error":
            continue  # the other branch of this option says better what is wrong
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] == "value_error" else f", got {item['input']!r}"
        lines.setdefault(_path(parts, heads), []).append((message[:1].lower() + message[1:]).rstrip(".") + got)
    return "\n".join(
        messages[0] if messages[0].startswith("unknown") else f"{path + ': ' if path else ''}{_join(messages)}"
        for path, messages in lines.items()
    )


def _path(parts: list[str], heads: set[str]) -> str:
    """Return the dotted path without the names pydantic gives to the branches of a union."""
    while parts and ".".join(parts) not in heads:
        parts = parts[:-1]
    return ".".join(parts)


def _unknown(parts: list[str], known: list[str], heads: set[str]) -> str:
    key = ".".join(parts)
    beside = [k for k in {*known, *heads} if k and k.rpartition(".")[0] == key.rpartition(".")[0]]
    elsewhere = [k for k in known if k.rpartition(".")[2] == parts[-1]]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(key, beside) or did_you_mean(key, known)
    return f"unknown recipe key {key!r}.{hint}"


def _join(messages: list[str]) -> str:
    """Join what each branch of a union said; the value is named once."""
    unique = list(dict.fromkeys(messages))
    if len(unique) == 1:
        return unique[0]
    tails = {m.rpartition(", got ")[2] for m in unique}
    if len(tails) == 1:
        return ", or ".join(m.rpartition(", got ")[0] for m in unique) + f", got {tails.pop()}"
    return "; or ".join(unique)
