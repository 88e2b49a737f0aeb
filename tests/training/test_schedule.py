"""The learning rate as a pure function."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from vitrail.training.defaults import Facts
from vitrail.training.run import resume, train
from vitrail.training.schedule import Schedule, schedule_of

from .test_defaults import settle


def test_warms_up_linearly_then_falls_as_a_cosine() -> None:
    s = Schedule("cosine", 1.0, 110, warmup=10, min_lr=0.1)
    assert [s(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert s(10) == 1.0
    assert s(60) == pytest.approx(0.55)
    assert s(110) == s(500) == pytest.approx(0.1)
    rates = [s(i) for i in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert s(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_constant_stays() -> None:
    s = Schedule("constant", 0.5, 20, warmup=2)
    assert [s(i) for i in (0, 1, 2, 19)] == [0.25, 0.5, 0.5, 0.5]


def test_a_run_of_warm_up_only_never_divides_by_zero() -> None:
    assert Schedule("cosine", 1.0, 5, warmup=5)(5) == 1.0


def test_linear_falls_in_a_line() -> None:
    s = Schedule("linear", 1.0, 110, warmup=10, min_lr=0.1)
    assert [s(i) for i in (10, 60, 110, 300)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    falls = [s(i) - s(i + 1) for i in range(10, 110)]
    assert falls == pytest.approx([0.9 / 100] * 100)


def test_rsqrt_is_the_papers_formula_and_cools_to_the_end() -> None:
    lr, total, warmup, cooldown, timescale = 0.8, 1000, 100, 200, 150
    s = Schedule("rsqrt", lr, total, warmup, 0.0, cooldown, timescale)
    for t in range(warmup, total - cooldown):
        assert s(t) == pytest.approx(lr / math.sqrt((t + timescale - warmup) / timescale))
    assert s(warmup - 1) == s(warmup) == lr
    start = s(total - cooldown)
    assert [s(total - cooldown + i) for i in range(cooldown + 1)] == pytest.approx(
        [start * (1 - i / cooldown) for i in range(cooldown + 1)]
    )
    assert 0 < s(total - 1) < 0.01 * lr


def test_constant_may_cool() -> None:
    s = Schedule("constant", 1.0, 20, warmup=2, min_lr=0.1, cooldown=10)
    assert [s(i) for i in (2, 9, 10, 15, 20)] == pytest.approx([1.0, 1.0, 1.0, 0.55, 0.1])


@pytest.mark.parametrize("name", ["rsqrt", "constant"])
def test_runs_of_any_length_share_the_trunk(name: str) -> None:
    short, long = (Schedule(name, 1.0, total, 10, 0.0, 20, 30) for total in (100, 1000))
    assert [short(i) for i in range(80)] == [long(i) for i in range(80)]
    assert short(99) < 0.1 < long(99)
    cosines = [Schedule("cosine", 1.0, total, 10) for total in (100, 1000)]
    assert cosines[0](40) != cosines[1](40)


def test_a_long_run_stopped_early_is_the_short_run(photos: Path, tmp_path: Path) -> None:
    given = {
        "data.source": str(photos), "out": str(tmp_path), "model.name": "test_vit", "train.device": "cpu",
        "optim.name": "lion", "optim.layer_decay": 0.8, "optim.head_weight_decay": 1.0,
        "schedule.name": "rsqrt", "schedule.warmup_epochs": 1, "schedule.cooldown_epochs": 1,
        "train.batch_size": 8, "train.ema_decay": 0.9, "train.log_every": 1, "train.eval_every": 1, "train.keep": 99,
        "train.save_every_steps": 3,
    }  # fmt: skip
    short = train(given, {"name": "short", "train.epochs": 3}, say=lambda line: None).folder
    long = train(given, {"name": "long", "train.epochs": 5}, say=lambda line: None).folder
    for path in (long / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > 6:  # two epochs: where the short run begins to cool
            shutil.rmtree(path)
    text = (long / "recipe.yaml").read_text()
    (long / "recipe.yaml").write_text(text.replace("epochs: 5", "epochs: 3"))
    resume(long, force=["train.epochs"], say=lambda line: None)
    first, second = ((folder / "last" / "model.safetensors").read_bytes() for folder in (short, long))
    assert first == second


def test_too_long_a_cooldown_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 10 steps, got 5 \\+ 6"):
        Schedule("rsqrt", 1.0, 10, warmup=5, cooldown=6)


def test_a_recipe_in_epochs_becomes_steps() -> None:
    given = {"train.epochs": 10, "schedule.warmup_epochs": 1.5, "optim.lr": 0.5}
    facts = Facts(32, 32, 1000, 10)
    rsqrt = settle(facts, **given, **{"schedule.name": "rsqrt"})
    assert schedule_of(rsqrt, 20) == Schedule("rsqrt", 0.5, 200, 30, 0.0, 40, 30)
    own = {"schedule.cooldown_epochs": 0, "schedule.timescale_epochs": 3}
    assert schedule_of(settle(facts, **given, **own, **{"schedule.name": "rsqrt"}), 20).timescale == 60
    assert schedule_of(settle(facts, **given), 20) == Schedule("cosine", 0.5, 200, 30, 0.005)
    assert schedule_of(settle(facts, **given, **{"schedule.name": "constant"}), 20) == Schedule(
        "constant", 0.5, 200, 30
    )
    cooled = settle(
        facts, **given, **{"schedule.name": "constant", "schedule.cooldown_epochs": 2, "schedule.min_lr": 0.1}
    )
    assert schedule_of(cooled, 20) == Schedule("constant", 0.5, 200, 30, 0.1, 40)
