"""The plan: arithmetic of memory, timelines from two small runs, what a run then really allocates, and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.models import create_model
from vitrail.training import train
from vitrail.training.plan import Network, cuts, gathered, predict_memory
from vitrail.training.planning import Plan, budget_of, make_plan, prepare, settle_accumulation
from vitrail.training.precision import use_threads
from vitrail.training.probe import _held, probe, session_of
from vitrail.training.recipe import Recipe
from vitrail.training.timeline import Timeline, peak, record

CPU = torch.device("cpu")
NETWORK = Network(params=1000, exact=0, blocks=(300, 300), whole=1000, buffers=0)


def recipe(data: Path, **changes: Any) -> Recipe:
    settings = {
        "model": {"name": "test_vit", "img_size": 32},
        "augment": {"randaugment": None, "erasing": 0, "mixup": 0, "cutmix": 0, "crop": "none"},
        "train": {"epochs": 2, "batch_size": 12, "precision": "fp32", "device": "cpu"},
        "data": {"source": str(data), "workers": 0},
    }
    return Recipe.load(settings, changes, environment={})


def planned(data: Path, budget: int | None = None, timed: bool = False, **changes: Any) -> Plan:
    ready = prepare(recipe(data, **changes), lambda text: None)
    found = probe(ready.recipe, ready.splits, ready.facts, lambda text: None, timed=timed)
    return make_plan(ready.recipe, ready.splits, found, CPU, budget_of(CPU, budget))


def allocated(data: Path, **changes: Any) -> int:
    """Return the most bytes of tensors alive while the run itself is built, trained for two epochs and evaluated."""
    ready = prepare(recipe(data, **{"data.cache": "none", **changes}), lambda text: None)

    def run() -> None:
        session = session_of(ready.recipe, ready.splits, lambda text: None)
        loop = session.loop()
        for epoch in (0, 1):  # the second batch is made while the first one is still held
            for batch in session.batches.epoch(epoch):
                loop._one_step(batch, len(batch))
        session.measure(session.shown, session.val.epoch(0))

    with use_threads(1):
        run()  # what is made once a process
        return peak(record(run, CPU))


# Timelines.


def test_a_record_holds_every_allocation_in_order() -> None:
    def work() -> None:
        first = torch.zeros(100)
        second = torch.zeros(50)
        del first
        third = torch.zeros(25)
        del second, third

    sizes = [size for _, size in record(work, CPU)]
    assert sizes == [400, 200, -400, 100, -200, -100]
    assert peak(record(work, CPU)) == 600


def test_a_timeline_finds_the_peak_of_sizes_it_never_saw() -> None:
    """Few images: the weights' part at the end is highest; many: the images' part before it."""

    def work(images: int) -> None:
        kept = torch.zeros(images, 100)
        del kept
        weights = torch.zeros(1000)
        del weights

    few, many = (record(lambda n=n: work(n), CPU) for n in (2, 4))
    line = Timeline.of(few, 2, many, 4)
    assert line.exact
    assert [line.peak(n) for n in (1, 4, 10, 11, 100)] == [4000, 4000, 4000, 4400, 40000]
    assert peak(few) == peak(many) == 4000, "a line through two peaks would say that images cost nothing"
    assert (line.each, line.once) == (400.0, 0.0)


def test_scratch_memory_of_the_larger_run_grows_with_the_images() -> None:
    few = [("a", 100), ("b", 50), ("b", -50), ("a", -100)]
    many = [("a", 200), ("c", 1), ("c", -1), ("b", 100), ("b", -100), ("a", -200)]
    line = Timeline.of(few, 2, many, 4)
    assert line.exact
    assert line.peak(8) == 600
    assert not Timeline.of(few, 2, [("x", 300), ("x", -300)], 4).exact


# The arithmetic.


def test_memory_of_one_process_is_the_sum_of_its_buffers() -> None:
    plain = predict_memory(NETWORK, precision="fp32", moments=8000, ema=True, work=77)
    assert plain.total == 4000 * 5 + 77  # weights, gradients, two moments, average; the model's own are views
    half = predict_memory(NETWORK, precision="bf16", moments=8000, ema=False, work=0)
    assert half.total == 4000 * 4 + 2000
    norms = Network(params=1000, exact=100, blocks=(), whole=1000, buffers=8)
    assert predict_memory(norms, precision="bf16", moments=8000, ema=False, work=0).weights == 2 * 900 + 4 * 100


def test_slices_divide_all_but_what_is_gathered() -> None:
    whole = predict_memory(NETWORK, precision="bf16", moments=8000, ema=True, work=500)
    half = predict_memory(NETWORK, precision="bf16", moments=8000, ema=True, work=500, parallel="fsdp", processes=2)
    assert (half.masters, half.gradients, half.moments, half.average) == (2000, 2000, 4000, 2000)
    assert (half.weights, half.shown) == (1000, 2000)
    assert half.gathered == gathered(NETWORK, "bf16") == 2 * 400 + max((3 * 2 + 4) * 300, (2 + 4) * 400)
    assert half.total < whole.total + half.gathered
    large = predict_memory(NETWORK, precision="bf16", moments=8000, ema=True, work=500, parallel="fsdp", processes=1000)
    assert large.total < half.total


@pytest.mark.parametrize(
    ("network", "processes"),
    [(NETWORK, 1), (Network(10, 0, (), 10, 0), 2), (Network(10, 1, (5,), 10, 0), 2)],
    ids=["one process", "no blocks", "batch norms"],
)
def test_what_cannot_be_sliced_is_refused(network: Network, processes: int) -> None:
    with pytest.raises(UsageError, match="ddp"):
        predict_memory(network, precision="fp32", moments=0, ema=False, work=0, parallel="fsdp", processes=processes)


def test_a_network_is_counted_once() -> None:
    model = create_model("test_resnet", num_classes=4)
    model.head.requires_grad_(False) if hasattr(model, "head") else None
    found = Network.of(model)
    assert found.whole == sum(p.numel() for p in model.parameters())
    assert found.params == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < found.exact < found.params
    assert 0 < sum(found.blocks) < found.whole


@pytest.mark.parametrize("images", [1, 2, 7, 12, 64])
def test_pieces_are_those_the_loop_makes(images: int) -> None:
    for micro, count in cuts(images):
        assert (count - 1) * micro < images <= count * micro
    assert cuts(images)[0] == (images, 1)
    assert cuts(images)[-1][0] == 1


# Against what a run allocates.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.accumulation": 3},
        {"train.recompute": True},
        {"train.precision": "bf16", "train.accumulation": 2},
        {"train.ema_decay": None, "model.img_size": 64},
        {"optim.name": "muon"},
        {"model": {"name": "test_resnet", "img_size": 32}, "train.recompute": True},
    ],
    ids=["plain", "pieces", "recompute", "bf16", "no-ema", "muon", "resnet"],
)
def test_the_plan_is_what_the_run_allocates(photos: Path, changes: dict[str, Any]) -> None:
    changes = {"data.cache": "none", **changes}
    plan = planned(photos, **changes)
    memory = plan.asked.memory
    assert plan.exact
    assert memory.total - memory.process == pytest.approx(allocated(photos, **changes), rel=0.15)


def test_the_fixed_part_is_what_a_run_holds(photos: Path) -> None:
    ready = prepare(recipe(photos, **{"train.precision": "bf16"}), lambda text: None)
    session = session_of(ready.recipe, ready.splits, lambda text: None)
    moments = sum(t.nbytes for t in session.masters.moments().values())
    network = Network.of(session.model)
    memory = predict_memory(network, precision="bf16", moments=moments, ema=True, work=0)
    held = _held(session) + sum(b.nbytes for b in session.ema.buffers)
    shown = sum(b.nbytes for b in session.ema.buffers)  # counted by both: what is shown is views of the average
    assert memory.total == pytest.approx(held - shown, rel=0.03)  # weights start on 64-byte boundaries


def test_recomputing_takes_less_and_the_batch_stays(photos: Path) -> None:
    plan = planned(photos)
    totals = {(c.micro, c.recompute): c.memory.total for c in plan.choices}
    assert totals[12, True] < totals[12, False]
    assert totals[3, False] < totals[12, False]
    assert all((c.accumulation - 1) * c.micro < 12 <= c.accumulation * c.micro for c in plan.choices)


# What it chooses.


def test_the_fastest_that_fits_is_first(photos: Path) -> None:
    planned(photos, timed=True)  # what a first probe loads stays resident: two plans are compared below
    plan = planned(photos, timed=True)
    assert plan.choices[0].fits
    assert plan.choices[0].step_s == min(c.step_s for c in plan.choices)
    least, most = (f(c.memory.total for c in plan.choices) for f in (min, max))
    tight = planned(photos, budget=int((least + most) / 2 / 0.9))
    assert tight.choices[0].fits
    assert not tight.choices[-1].fits
    assert plan.epoch_s(plan.choices[0]) > plan.steps_an_epoch * plan.choices[0].step_s
    assert plan.run_s(plan.choices[0]) == pytest.approx(2 * plan.epoch_s(plan.choices[0]))


def test_processes_share_the_batch(photos: Path) -> None:
    ready = prepare(recipe(photos), lambda text: None)
    found = probe(ready.recipe, ready.splits, ready.facts, lambda text: None, timed=False)
    alone = make_plan(ready.recipe, ready.splits, found, CPU, 10**12)
    half = make_plan(ready.recipe, ready.splits, found, CPU, 10**12, processes=2)
    assert (alone.images, half.images) == (12, 6)
    assert half.asked.memory.total < alone.asked.memory.total
    with pytest.raises(UsageError, match="--batch 10"):
        make_plan(ready.recipe, ready.splits, found, CPU, 10**12, processes=5)


def test_auto_accumulation_takes_the_fewest_pieces_that_fit(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepare(recipe(photos, **{"train.accumulation": "auto"}), lambda text: None)
    assert ready.recipe.train.accumulation == "auto"

    def settle(budget: int) -> Any:
        monkeypatch.setattr("vitrail.training.planning.budget_of", lambda device: budget)
        return settle_accumulation(ready.recipe, ready.splits, ready.facts, CPU, lambda text: None)

    settled, decision = settle(10**12)
    assert (settled.train.accumulation, decision.key, decision.value) == (1, "train.accumulation", 1)
    totals = {c.accumulation: c.memory for c in planned(photos).choices if not c.recompute}
    between = (totals[1].total + totals[2].total) / 2 / 0.9
    settled, decision = settle(int(between))
    assert settled.train.accumulation >= 2
    assert "images at a time" in decision.reason
    with pytest.raises(UsageError, match="--model"):
        settle(1000)


def test_a_run_with_auto_accumulation_is_written_down_with_a_number(photos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = train(recipe(photos, **{"train.accumulation": "auto", "out": str(tmp_path)}), say=said.append)
    assert Recipe.load(found.folder / "recipe.yaml", environment={}).train.accumulation == 1
    assert any("accumulation 1" in line and "free on cpu" in line for line in said)


def test_a_run_that_recomputes_ends_with_the_same_bits(photos: Path, tmp_path: Path) -> None:
    def weights(recompute: bool) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        changes = {
            "train.recompute": recompute,
            "out": str(tmp_path),
            "model.drop_path_rate": 0.2,
            "name": f"r{recompute}",
        }
        found = train(recipe(photos, **changes), say=lambda text: None)
        return load_file(found.folder / "last" / "model.safetensors")

    plain, light = weights(False), weights(True)
    assert plain.keys() == light.keys()
    assert all(torch.equal(plain[name], light[name]) for name in plain)
