"""The images that a model is measured and shown on: those it was not trained on, whoever names them.

For the data of its own run that is the test split, or the validation split, cut exactly as the run cut it. Other data
give their test part, or their val part, or, if they have neither, all of their images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import DataError, UsageError

if TYPE_CHECKING:
    from vitrail.classes import ClassMap
    from vitrail.data.imageset import ImageSet
    from vitrail.data.sources import Splits
    from vitrail.training.recipe import Recipe

SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class HeldOut:
    """Images, the source they come from, and what they are in words."""

    images: ImageSet
    source: str
    split: str
    words: str


def held_out(model: str, data: str | None = None, split: str | None = None, *, labels: str = "auto") -> HeldOut:
    """Return the images to measure ``model`` on; :class:`UsageError` if nobody says which.

    ``labels``: how those of other data are read, ``multi`` for a model of several labels an image.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    recipe = recipe_of(model)
    if data is not None and (recipe is None or not same_source(data, recipe.data.source)):
        return _foreign(data, split, labels)
    if recipe is None:
        raise UsageError(f"expected --data: {model} is not a run, so it does not say which data it belongs to")
    return _own(recipe, split)


def recipe_of(model: str) -> Recipe | None:
    """Return the recipe of the run that ``model`` (the run, its best/ or last/) belongs to, or None."""
    from vitrail.training.recipe import Recipe

    for folder in (Path(model), Path(model).absolute().parent):
        if (folder / "recipe.yaml").is_file():
            found: Recipe = Recipe.load(folder / "recipe.yaml", environment={})
            return found
    return None


def same_source(one: str, other: str) -> bool:
    """Tell whether two names of data mean the same: one path, or one built-in name."""
    """Whether two words name the same data."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _own(recipe: Recipe, split: str | None) -> HeldOut:
    from vitrail.training.pipeline import open_data

    splits, source = open_data(recipe), recipe.data.source
    name = split or ("val" if splits.test is None else "test")
    return HeldOut(_part(splits, name, source), source, name, f"the {name} split of {source}")


def _part(splits: Splits, name: str, source: str) -> ImageSet:
    found: ImageSet | None = getattr(splits, name)
    if found is None:
        raise UsageError(f"expected data with a {name} split, got {source}, which has none; mend: --split val")
    return found


def _foreign(data: str, split: str | None, labels: str) -> HeldOut:
    import numpy as np

    from vitrail.data.imageset import ImageSet
    from vitrail.data.sources import read_layout

    layout = read_layout(data, labels=labels)
    name = split or next(name for name in SPLITS if name in layout.parts)
    if name not in layout.parts:
        raise UsageError(f"expected data with a {name} split, got {data}, which has only {', '.join(layout.parts)}")
    part = layout.parts[name]
    images = ImageSet(part.store, np.arange(len(part.store), dtype=np.int64), part.labels, layout.classes)
    whole = list(layout.parts) == ["train"]
    return HeldOut(images, data, name, f"all images of {data}" if whole else f"the {name} split of {data}")


def require_classes(model: str, classes: ClassMap | None, count: int, chosen: HeldOut) -> None:
    """Refuse data whose classes are not the model's; a model without names is held to their number."""
    if classes is not None:
        classes.require_equal(chosen.images.classes, mine="the model", theirs=chosen.source)
    elif len(chosen.images.classes) != count:
        raise DataError(
            f"expected data of {count} classes as {model} has, got {len(chosen.images.classes)} in {chosen.source}; "
            "mend: name data with the classes the model was trained on"
        )
