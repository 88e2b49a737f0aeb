"""A run that waits for its images hears of it once, with numbers and what would help in its case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitrail.classes import ClassMap
from vitrail.data.augment import Normalize
from vitrail.data.imageset import ArrayStore, ImageSet
from vitrail.data.loader import Loader
from vitrail.data.transforms import EvalCrop
from vitrail.data.workers import default_workers
from vitrail.training.recipe import Recipe
from vitrail.training.starving import Starving


def starving(**loading: Any) -> tuple[Starving, list[str]]:
    images = ImageSet(
        ArrayStore("x", np.zeros((8, 8, 8, 3), np.uint8)), np.arange(8), np.arange(8) % 2, ClassMap.of("ab")
    )
    settings = {"workers": 0, "cache": "none", **loading}
    loader = Loader(
        images, batch_size=4, crop=EvalCrop((224, 224)), normalize=Normalize((0.5,) * 3, (0.5,) * 3), **settings
    )
    said: list[str] = []
    return Starving(Recipe.check({"data": {"source": "my photos"}}), loader, said.append), said


def feed(judge: Starving, lines: int, data_s: float, step_s: float = 1.0, first: int = 0) -> None:
    for line in range(lines):
        judge.see(first + 10 * (line + 1), {"data_s": data_s, "step_s": step_s})


def test_it_is_said_once_with_numbers_and_what_to_do() -> None:
    judge, said = starving()
    feed(judge, 20, data_s=0.5)
    assert len(said) == 1
    assert "waits for images 50 % of the time (500 of 1,000 ms a step, over 20 steps)" in said[0]
    assert f"data.workers={default_workers()} (now 0)" in said[0]
    assert "data.cache=auto" in said[0]
    assert "vitrail data shard 'my photos' OUT --resize 256" in said[0]


@pytest.mark.parametrize(("lines", "data_s", "step_s"), [(50, 0.15, 1.0), (2, 0.9, 1.0), (50, 0.009, 0.01)])
def test_nothing_is_said_without_need_or_before_enough_was_measured(lines: int, data_s: float, step_s: float) -> None:
    judge, said = starving()
    feed(judge, lines, data_s, step_s)
    assert said == []


def test_the_first_line_of_a_process_does_not_count() -> None:
    judge, said = starving()
    judge.see(1000, {"data_s": 100.0, "step_s": 100.0})
    feed(judge, 10, data_s=0.0, first=1000)
    assert said == []


def test_a_cache_that_is_being_filled_and_will_hold_all_is_given_time() -> None:
    judge, said = starving(cache="all")
    images = judge.loader.dataset
    judge.loader.cache.put(0, images.read(0))
    feed(judge, 9, data_s=0.5)
    assert said == []
    for i in range(8):
        judge.loader.cache.put(i, images.read(i))
    feed(judge, 9, data_s=0.5, first=90)
    assert len(said) == 1
    assert "data.cache" not in said[0]


def test_a_cache_too_small_is_told_with_what_it_would_take() -> None:
    judge, said = starving(cache="all", workers=default_workers())
    judge.loader.cache.budget = 1200
    for i in range(8):
        judge.loader.cache.put(i, judge.loader.dataset.read(i))
    feed(judge, 9, data_s=0.5)
    assert "data.cache=all, if there are 0.0 GiB" in said[0]
    assert "data.workers" not in said[0]
