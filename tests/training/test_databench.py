"""The measurement of reading: every stage and worker count once, on the images that training would read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrail.data.pack import pack
from vitrail.errors import UsageError
from vitrail.training.databench import STAGES, DataBench, Pace, bench_data, verdict
from vitrail.training.recipe import Recipe

TINY = {"model": {"name": "test_vit", "img_size": 16, "options": {"patch_size": 8}}, "train": {"device": "cpu"}}


def test_every_stage_and_number_of_workers_is_measured(photos: Path, tmp_path: Path) -> None:
    source = pack(photos, tmp_path / "out", shard_bytes=40_000, workers=0).folder
    told: list[Pace] = []
    recipe = Recipe.check({**TINY, "data": {"source": str(source), "window": 1}})
    found = bench_data(recipe, workers=(0, 2), batch=4, seconds=0.01, with_model=True, tell=told.append)
    assert [(p.workers, p.stage) for p in found.paces] == [(w, s) for w in (0, 2) for s in STAGES]
    assert list(found.paces) == told
    assert all(p.images_per_s > 0 and (p.mib_per_s or 0) >= 0 for p in found.paces)
    assert found.size == (16, 16)
    assert found.model_images_per_s is not None
    assert "test_vit trains" in verdict(found)


def made(full: list[float], model: float | None) -> DataBench:
    paces = tuple(Pace("full", workers, pace, None) for workers, pace in enumerate(full))
    return DataBench(100, 8, (32, 32), paces, "vit", "cuda", model)


def test_the_verdict_is_arithmetic() -> None:
    assert verdict(made([10, 20, 30], 15.0)).endswith(": 1 workers feed it")
    assert "reading reaches 30 with 2 workers: it would wait 70 % of the time" in verdict(made([10, 20, 30], 100.0))
    assert verdict(made([1], None)) == ""


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"seconds": 0.0}, {"workers": ()}, {"workers": (-1,)}])
def test_settings_refused(wrong: dict, photos: Path) -> None:
    with pytest.raises(UsageError, match="above 0"):
        bench_data(Recipe.check({**TINY, "data": {"source": str(photos)}}), **wrong)
