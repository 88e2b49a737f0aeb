"""The loop: exact accumulation, faults that leave the weights alone, and an orderly end."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitrail.data.loader import Batch
from vitrail.errors import VitrailError
from vitrail.training.batches import pieces
from vitrail.training.loop import Halt, Loop, step_seed
from vitrail.training.signals import Interrupted, Stop

from .fakes import FakeBatches, batch, loop


def step(made: Loop, given: Batch) -> None:
    made._one_step(given, int(given.keep.sum()))


def gradients(made: Loop, given: Batch) -> list[Tensor]:
    made._gradient(given, int(given.keep.sum()))
    return [w.grad.clone() for w in made.masters.weights]


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_accumulation_is_the_same_gradient(count: int) -> None:
    given = replace(batch(0), keep=torch.tensor([True, True, False, True, True, True]))
    whole, cut = (gradients(loop(accumulation=k), given) for k in (1, count))
    for a, b in zip(whole, cut, strict=True):
        assert (a - b).abs().max() <= 1e-6 * a.abs().max()


def test_pieces_cover_the_batch_once() -> None:
    given = batch(0)
    for count in (1, 2, 4, 5, 6):
        cut = list(pieces(given, count))
        assert len(cut) <= count
        assert torch.equal(torch.cat([p.indices for p in cut]), given.indices)
        assert torch.equal(torch.cat([p.images for p in cut]), given.images)
        assert cut[0].targets is None


def test_loss_falls_and_every_step_is_logged_once() -> None:
    repeated = FakeBatches(lambda n, b: batch(n % 2))
    made = loop(repeated, epochs=6)
    state = made.run()
    lines = [line for line in made.hooks.lines if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert state.images == 24 * 6
    assert made.hooks.evaluated == [1, 2, 3, 4, 5, 6]
    assert made.hooks.saved == [True]


def test_an_interval_reports_the_mean_of_its_steps() -> None:
    every, some = loop(), loop(log_every=3)
    for made in (every, some):
        made.run()
    losses = [line["loss"] for line in every.hooks.lines]
    got = {line["step"]: line["loss"] for line in some.hooks.lines}
    assert got == pytest.approx({3: sum(losses[:3]) / 3, 4: losses[3], 6: sum(losses[4:6]) / 2, 8: sum(losses[6:]) / 2})


def spoil(*numbers: int) -> FakeBatches:
    return FakeBatches(lambda n, b: replace(b, images=b.images * float("nan")) if n in numbers else b)


def weights(made: Loop) -> list[Tensor]:
    return [*(w.detach().clone() for w in made.masters.weights), *(b.clone() for b in made.ema.buffers)]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    made = loop(spoil(1))
    step(made, batch(0))
    before = weights(made)
    step(made, spoil(1).change(1, batch(1)))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True))
    assert (made.state.step, made.state.skipped, made.masters.updates) == (2, 1, 1)
    line = made.hooks.lines[-1]
    assert line["kind"] == "skip"
    assert line["problem"] == "the loss is not finite"
    assert line["images"] == batch(1).indices.tolist()
    step(made, batch(2))
    assert made.masters.updates == 2
    assert all(torch.isfinite(w).all() for w in weights(made))


def test_a_gradient_that_is_not_finite_is_caught_too() -> None:
    made = loop()
    handle = made.model.head.weight.register_hook(lambda g: g * float("inf"))
    step(made, batch(0))
    handle.remove()
    assert made.hooks.lines[-1]["problem"] == "the gradient is not finite"
    assert made.masters.updates == 0


def test_two_bad_steps_pass_and_three_in_a_row_stop_the_run() -> None:
    assert loop(spoil(1, 2, 4, 5)).run().skipped == 4
    with pytest.raises(VitrailError, match=r"3 steps in a row; the last good checkpoint is here; mend: a lower --lr"):
        loop(spoil(1, 2, 3)).run()


def test_a_batch_without_a_readable_image_is_skipped_and_never_stops_the_run() -> None:
    made = loop(FakeBatches(lambda n, b: replace(b, keep=torch.zeros_like(b.keep)) if n < 5 else b))
    state = made.run()
    assert (state.skipped, state.images, made.masters.updates) == (5, 18, 3)
    assert "no image of the batch could be read" in made.said[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_stops(number: signal.Signals, code: int) -> None:
    def send(n: int, b: Batch) -> Batch:
        if n == 2:
            os.kill(os.getpid(), number)
        return b

    before = signal.getsignal(number)
    made = loop(FakeBatches(send))
    with pytest.raises(Interrupted, match=number.name) as caught:
        made.run()
    assert caught.value.exit_code == code
    assert made.state.step == 3
    assert made.hooks.saved == [True]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    def send(n: int, b: Batch) -> Batch:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return b

    made = loop(FakeBatches(send))
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.hooks.saved == []


def test_an_evaluation_that_was_cut_off_is_made_up_for() -> None:
    def stop_asked(stop: Stop) -> None:
        stop._heard(signal.SIGTERM, None)
        raise Halt

    made = loop()
    made.hooks.during_evaluation = stop_asked
    with pytest.raises(Interrupted):
        made.run()
    assert (made.state.step, made.state.evaluated, made.hooks.saved) == (4, 0, [True])
    made.hooks.during_evaluation = lambda stop: None
    made.run()
    assert made.hooks.evaluated == [1, 2]


def test_evaluation_keeps_its_distance_but_never_misses_the_end() -> None:
    made = loop(epochs=5, eval_every=2)
    made.run()
    assert made.hooks.evaluated == [2, 4, 5]


def test_saves_by_steps() -> None:
    made = loop(save_every_steps=3)
    made.run()
    assert made.hooks.saved == [False, False, True]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_says_what_to_change(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise error

    made = loop(accumulation=2)
    monkeypatch.setattr(made.task, "step", full)
    with pytest.raises(
        VitrailError, match=r"6 images of 16 x 16.*\n.*train\.accumulation=4.*train\.recompute.*--batch 3.*vitrail plan"
    ) as caught:
        made.run()
    assert caught.value.exit_code == 1


def test_other_runtime_errors_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes differ")

    made = loop()
    monkeypatch.setattr(made.task, "step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        made.run()


def test_dropout_depends_on_seed_and_step_alone() -> None:
    def after_three(disturb: bool, seed: int) -> list[Tensor]:
        made = loop(dropout=0.3, seed=seed)
        for i in range(3):
            if disturb:
                torch.rand(i + 1)
            step(made, batch(i))
        return weights(made)

    calm, disturbed, other = after_three(False, 1), after_three(True, 1), after_three(False, 2)
    assert all(torch.equal(a, b) for a, b in zip(calm, disturbed, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(calm, other, strict=True))


def test_step_seeds_do_not_repeat() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= s < 2**63 for s in seeds)
