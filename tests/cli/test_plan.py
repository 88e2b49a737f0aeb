"""`vitrail plan`: the line for machines, the words for people, and what it refuses."""

from __future__ import annotations

import pytest

from vitrail.cli.plan import parse_bytes
from vitrail.errors import UsageError

from .conftest import tiny


def test_plan_prints_its_choices_and_makes_no_folder(vitrail, photos, tmp_path):
    done = vitrail(*tiny("plan", photos, "--out", tmp_path), "--set", "train.accumulation=2", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["verb"] == "plan"
    assert found["asked"]["accumulation"] == 2
    assert found["best"] == found["choices"][0]
    assert found["best"]["step_s"] == min(choice["step_s"] for choice in found["choices"])
    assert all(choice["memory_bytes"] == sum(choice["memory"].values()) for choice in found["choices"])
    assert not list(tmp_path.rglob("recipe.yaml"))


def test_plan_says_that_nothing_fits_and_plans_for_several(vitrail, photos):
    words = tiny("plan", photos)
    done = vitrail(*words, "--memory", "1M")
    assert done.code == 0, done.err
    assert "nothing fits" in done.out
    slices = vitrail(*words, "--processes", "2", "--parallel", "fsdp", "--json")
    assert slices.json["choices"][0]["memory"]["gathered"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parallel", "fsdp"], "no effect"),
        (["--parallel", "tensor", "--processes", "2"], "ddp or fsdp"),
        (["--memory", "much"], "8G"),
        (["--processes", "5"], "--batch"),
    ],
)
def test_plan_refuses(words, said, vitrail, photos):
    done = vitrail(*tiny("plan", photos), *words)
    assert done.code == 2
    assert said in done.err


def test_sizes_are_read_as_people_write_them():
    assert [parse_bytes(text) for text in ("8G", "7.5GB", "800m", "1GiB")] == [
        8 * 10**9,
        75 * 10**8,
        8 * 10**8,
        1 << 30,
    ]
    for text in ("0G", "8", "-1G", "G"):
        with pytest.raises(UsageError, match="8G or 800M"):
            parse_bytes(text)
