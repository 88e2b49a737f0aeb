"""Every shipped recipe, shrunken to a tiny network of its family and two dozen pictures, resolves and learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.house.source import REPOSITORY
from vitrail.classes import ClassMap
from vitrail.data.sources import open_dataset
from vitrail.models import config_of, create_model
from vitrail.training.build import build_model, build_task
from vitrail.training.defaults import measure, resolve
from vitrail.training.habits import ALL_OPTIONS, HABITS
from vitrail.training.optim import Masters
from vitrail.training.pipeline import train_loader
from vitrail.training.recipe import Recipe
from vitrail.weights import Card, save_folder

CPU = torch.device("cpu")
ALL = sorted((REPOSITORY / "recipes").glob("*.yaml"))
RECIPES = [path for path in ALL if type(Recipe.load(path, environment={})) is Recipe]
PAPERS = [path for path in RECIPES if "imagenet" in path.read_text(encoding="utf-8").lower()]
# what is the machine's, or only says how often something is written, or how many labels an image has
OPEN = {
    "data.workers", "data.cache", "train.device", "train.threads", "train.precision", "train.eval_every",
    "train.log_every", "distill.sha256", "model.sha256", "data.labels", "train.loss", "train.monitor",
}  # fmt: skip
TINY = {
    "deit_tiny_distilled": "test_deit_distilled", "deit": "test_deit", "swin": "test_swin", "pvt_v2": "test_pvt_v2",
    "coatnet": "test_coatnet", "resnetv2": "test_bit", "resnet": "test_resnet", "vit": "test_vit",
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small network for the classes of the photos."""
    folder = tmp_path_factory.mktemp("teacher") / "net"
    model = create_model("test_resnet", num_classes=2)
    classes = ClassMap.of(["across", "down"])
    save_folder(folder, model, card=Card(name="test_resnet", input_size=model.config.img_size), classes=classes)
    return folder


def shrunken(path: Path, teacher: Path) -> Recipe:
    """Return a recipe with its network, batch and length made tiny; everything else as shipped."""
    recipe = Recipe.load(path, environment={})
    name = next(tiny for start, tiny in TINY.items() if recipe.model.name.startswith(start))
    side = config_of(name).img_size[0]
    changes: dict[str, Any] = {"model.name": name, "model.img_size": side, "model.pretrained": None, "model.head": None}
    changes |= {"train.batch_size": 12, "train.epochs": 3, "schedule.warmup_epochs": 0.5, "data.workers": 0}
    changes |= {"train.eval_every": 1, "data.val_fraction": None, "train.device": "cpu", "train.precision": "fp32"}
    if recipe.distill is not None:
        changes["distill.teacher"] = str(teacher)
    return Recipe.load(recipe, changes)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_papers_recipe_leaves_only_the_machine_open(path: Path) -> None:
    recipe = Recipe.load(path, environment={})
    others = {f"optim.{key}" for key in ALL_OPTIONS if key not in HABITS[recipe.optim.name].options}
    others |= {"model.head"} if recipe.model.pretrained is None else set()
    open_keys = {key for key, value in recipe.flat().items() if value == "auto"}
    assert open_keys - others <= OPEN, "the paper says these, or the head must"


def test_the_papers_are_there() -> None:
    assert len(PAPERS) >= 12


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_learns(path: Path, photos: Path, teacher: Path) -> None:
    asked, splits = shrunken(path, teacher), open_dataset(photos)
    recipe, made = resolve(asked, measure(splits.train), CPU, has_val=True)
    own = {d.key for d in made if d.value is not None}
    assert path not in PAPERS or own <= OPEN, "resolving decided what the recipe should say"
    model, card = build_model(recipe, splits, print)
    task = build_task(recipe, splits, card, CPU)
    masters = Masters(model, recipe.optim)
    before = [w.detach().clone() for w in masters.weights]
    batches = list(train_loader(recipe, splits.train, card).epoch(0))
    assert len(batches) == 2
    for batch in batches:
        loss = task.step(model.train(), batch)["loss"]
        loss.backward()
        masters.gather()
        assert torch.isfinite(loss)
        assert 0 < masters.norm() < float("inf")
        masters.update(float(recipe.optim.lr))
    assert all(not torch.equal(a, b) for a, b in zip(before, masters.weights, strict=True))
    if recipe.augment.repeats > 1:
        assert set(torch.bincount(batches[0].indices).tolist()) <= {0, recipe.augment.repeats}
