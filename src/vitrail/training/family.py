"""A family of runs that differ in model, share of the data, length and seed only: each an ordinary run.

What is finished is not run again, what was stopped goes on, so that the same command may be typed until it is through.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError
from vitrail.models import config_of

from .baserecipe import flatten, nested
from .folder import write_json
from .recipe import Recipe
from .run import resume, train
from .signals import Interrupted

NOTE = "family.json"
# what a family sets itself, and by which of its own options
VARIED = {
    "model.name": "models", "data.train_fraction": "shares", "train.epochs": "epochs", "train.seed": "seeds",
    "data.source": "source", "name": "out", "out": "out",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Which runs: every model with every share, length and seed.

    Attributes:
        source: the data, as ``data.source`` of a recipe.
        out: folder of the family; its runs lie in ``out/<task>/``.
        models: names of `vitrail models`, or "auto".
        shares: of the training images, each above 0 and at most 1; of one seed a smaller lies within a larger.
        epochs: times through the training images; "auto" lets each run's size decide.
        seeds: how many, from 0 on; the data splits stay the same for all of them.
        settings: any other settings of a recipe, dotted keys, for every run.
    """

    source: str
    out: Path
    models: Sequence[str] = ("auto",)
    shares: Sequence[float] = (1.0,)
    epochs: Sequence[int | str] = ("auto",)
    seeds: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("models", "shares", "epochs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"expected {name} as one or more different values, got {list(values)}")
        if self.seeds < 1:
            raise UsageError(f"expected seeds of at least 1, got {self.seeds}")
        taken = [key for key in flatten(nested(self.settings, "the settings")) if key in VARIED]
        if taken:
            raise UsageError(f"{taken[0]} has no effect in a family; mend: give it as its {VARIED[taken[0]]}")
        for model in self.models:
            if model != "auto" and not model.startswith("hf-hub:"):
                config_of(model)

    def members(self) -> Iterator[Recipe]:
        """Yield the recipe of each run, small shares first: what is wrong with all of them shows soon."""
        for share, epochs, model, seed in product(sorted(self.shares), self.epochs, self.models, range(self.seeds)):
            stem = model.replace("/", "--").replace(":", "-")
            own = {
                "name": f"{stem}-d{share:g}-e{epochs}-s{seed}",
                "out": str(self.out),
                "model.name": model,
                "data.source": self.source,
                "data.train_fraction": share,
                "train.epochs": epochs,
                "train.seed": seed,
            }
            recipe = Recipe.load({}, {**self.settings, **own})
            if not isinstance(recipe, Recipe):
                raise UsageError(f"expected images to fit scaling laws to, got {self.source}, which is text")
            yield recipe


def run_family(family: Family, *, say: Callable[[str], None] | None = None) -> list[Path]:
    """Train every run of a family that is not finished, and return the folders of all of them.

    Raises:
        UsageError: other settings than those the family in this folder began with; a recipe that does not hold.
        Interrupted: Ctrl-C or SIGTERM; all is saved, and the same call goes on.
        VitrailError: what :func:`vitrail.train` raises.
    """
    recipes = list(family.members())  # all of them are checked before the first is trained
    _note_settings(family, recipes[0])
    folders = []
    for number, recipe in enumerate(recipes, 1):
        _tell(say, f"run {number} of {len(recipes)}: {recipe.name}")
        try:
            folders.append(_bring_to_end(family.out, recipe, say))
        except Interrupted as stopped:
            words = f"{stopped}, or with the command of the whole family: it keeps what is finished"
            raise Interrupted(words, stopped.exit_code) from None
    return folders


def _bring_to_end(out: Path, recipe: Recipe, say: Callable[[str], None] | None) -> Path:
    """Train one run, or what is left of it, and return its folder: ``out/<task>/<name>``, the labels say which task."""
    for folder in out.glob(f"*/{recipe.name}"):
        if (folder / "summary.json").is_file():
            _tell(say, f"finished before: {folder}")
            return folder
        if (folder / "recipe.yaml").is_file():
            return resume(folder, say=say).folder
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".lock"}:
            shutil.rmtree(folder)  # killed before it had written a line
    return train(recipe, say=say).folder


def _note_settings(family: Family, recipe: Recipe) -> None:
    """Write down what all runs share, or refuse to go on with something else."""
    path = family.out / NOTE
    shared = {"data.source": family.source} | {k: v for k, v in recipe.flat().items() if k not in VARIED}
    if not path.is_file():
        try:
            family.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VitrailError(f"the family's folder cannot be made: {error}; mend: --out <writable>") from None
        write_json(path, shared)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VitrailError(f"expected {path} to be readable, got: {error}; mend: another --out") from None
    changed = [key for key in sorted(before.keys() | shared.keys()) if before.get(key) != shared.get(key)]
    if changed:
        lines = "\n".join(f"  {key}: {before.get(key)!r} then, {shared.get(key)!r} now" for key in changed)
        raise UsageError(
            f"expected the settings that the family in {family.out} began with, since its runs are compared; got:\n"
            f"{lines}\nmend: the same settings, or another --out"
        )


def _tell(say: Callable[[str], None] | None, words: str) -> None:
    if say is not None:
        say(words)
