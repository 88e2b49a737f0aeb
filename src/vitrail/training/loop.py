"""The one training loop: it knows steps, gradients and faults, and nothing of tasks, models or files.

A run killed at any moment and resumed is the same run, bit for bit: data is a function of (seed, epoch, index), random
numbers inside the model of (seed, step), the rate of the step; the rest is in :class:`State` and the masters.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from vitrail.errors import VitrailError
from vitrail.tasks import Task

from .batches import out_of_memory, pieces
from .ema import Ema
from .job import Batches
from .optim import Masters
from .schedule import Schedule
from .signals import Interrupted, Stop
from .state import Pace, State
from .world import ALONE, World

MOST_BAD_STEPS = 3


class Hooks(Protocol):
    """What the run does for the loop."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one line."""

    def evaluate(self, epoch: int, stop: Stop) -> None:
        """Evaluate, remember the best weights. Raises :class:`Halt` if ``stop`` was asked for meanwhile."""

    def save(self, *, wait: bool) -> None:
        """Write a checkpoint of the present state."""

    def last_good(self) -> str:
        """Return words for the newest checkpoint."""

    def show(self, **numbers: Any) -> None:
        """Move the progress bar."""


class Halt(Exception):
    """Raised inside an evaluation that a signal cuts off."""


class Loop:
    """Trains ``model`` (whose float32 weights ``masters`` holds) on ``batches`` until ``pace.epochs`` are done."""

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Module,
        masters: Masters,
        ema: Ema | None,
        batches: Batches,
        schedule: Schedule,
        pace: Pace,
        hooks: Hooks,
        state: State | None = None,
        say: Callable[[str], None] = print,
        world: World = ALONE,
        unit: str = "images",
        advise: Callable[[RuntimeError], Exception] | None = None,
    ) -> None:
        self.unit, self.advise = unit, advise
        self.task, self.model, self.masters, self.ema = task, model, masters, ema
        self.batches, self.schedule, self.pace, self.hooks = batches, schedule, pace, hooks
        self.state, self.say, self.world = state or State(), say, world
        self.device = masters.weights[0].device
        self.per_epoch = len(batches)
        self._saved = time.monotonic()
        self._data_seconds = self._started = self._interval = 0.0
        self._due = self._told = False

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.pace.epochs * self.per_epoch

    def run(self) -> State:
        """Train to the end and save.

        Raises :class:`Interrupted` after a signal (state saved) and :class:`VitrailError` on lasting non-finite
        numbers, lack of memory, or checkpoints that cannot be written.
        """
        state = self.state
        with Stop(self.say) as stop:
            self._started = self._interval = time.monotonic()
            images = state.images
            self._finish_epoch(stop)  # a run that was cut off between an epoch's last step and its evaluation
            while state.step < self.total:
                epoch, start = divmod(state.step, self.per_epoch)
                waiting = time.monotonic()
                for batch in self.batches.epoch(epoch, start=start):
                    self._data_seconds += time.monotonic() - waiting
                    self._one_step(self._joined(batch), self._agree(batch, stop))
                    images = self._report(images)
                    self._finish_epoch(stop)
                    self._save_if_due(stop)
                    waiting = time.monotonic()
        self._clock()
        self.hooks.save(wait=True)
        return state

    def replay(self, steps: int) -> None:
        """Take ``steps`` steps from the present state and do nothing else: no evaluation, no saving."""
        with Stop(self.say) as stop:
            last = self.state.step + steps
            while self.state.step < last:
                epoch, start = divmod(self.state.step, self.per_epoch)
                for batch in self.batches.epoch(epoch, start=start):
                    self._one_step(self._joined(batch), self._agree(batch, stop))
                    if self.state.step == last or stop.asked is not None:
                        break
                if stop.asked is not None:
                    raise Interrupted("stopped before the end of the replay", stop.exit_code)

    def _agree(self, batch: Any, stop: Stop) -> int:
        """Return how much this step counts on all processes; agree on whether to stop, and to save, after it."""
        kept, minutes = batch.count, (time.monotonic() - self._saved) / 60
        most = self.pace.save_every_minutes
        due = self.world.first and most is not None and minutes >= most  # one clock decides
        total, asked, self._due = (int(n) for n in self.world.sum([kept, stop.asked is not None, due]))
        if asked and stop.asked is None:
            stop.asked = signal.SIGTERM  # another process was told
        self._told = bool(asked)
        return total

    def _joined(self, batch: Any) -> Any:
        """Tell a batch what the parts of all processes hold together, where its loss is divided by that."""
        return batch if self.world.alone or not hasattr(batch, "joined") else batch.joined(self.world.sum)

    def _one_step(self, batch: Any, kept: int) -> None:
        state = self.state
        self.model.train()
        try:
            loss, norm, problem = self._gradient(batch.to(self.device), kept)
        except RuntimeError as error:
            if self.advise is not None and out_of_memory(error):
                raise self.advise(error) from error
            raise
        if problem is None:
            clip = self.pace.clip_norm
            scale = 1.0 if clip is None or norm <= clip else clip / (norm + 1e-6)
            self.masters.update(self.schedule(state.step), scale=scale)
            if self.ema is not None:
                self.ema.update()
            state.bad_in_a_row = 0
            for key, value in (("loss", loss), ("norm", norm), ("steps", 1)):
                state.window[key] += value
        state.step += 1
        state.images += kept
        if problem is not None:
            self._skip(batch, problem, loss, norm)

    def _gradient(self, batch: Any, kept: int) -> tuple[float, float, str | None]:
        """Gather the gradient of the mean loss over the ``kept`` images (or tokens) of all processes.

        Returns loss, norm, and what is wrong, the same on every process.
        """
        if not kept:
            return 0.0, 0.0, f"no {self.unit.removesuffix('s')} of the batch could be read"
        loss, world = 0.0, self.world
        whole = world.size if self.masters.sliced else 1  # the sum over slices is a mean over processes
        for number, piece in enumerate(pieces(batch, self.pace.accumulation)):
            share = piece.count / kept
            if not share and world.alone:
                continue  # where there are others, all must compute the same pieces
            torch.manual_seed(step_seed(self.pace.seed, self.state.step, world.rank * self.pace.accumulation + number))
            part = self.task.step(self.model, piece)["loss"] * share
            (part * whole).backward()
            self.masters.gather()
            loss += float(part.detach())
        (loss,) = world.sum([loss])
        self.masters.reduce(world)
        norm = self.masters.norm(world)
        problem = None
        if not math.isfinite(loss):
            problem = "the loss is not finite"
        elif not math.isfinite(norm):
            problem = "the gradient is not finite"
        return loss, norm, problem

    def _skip(self, batch: Any, problem: str, loss: float, norm: float) -> None:
        """Leave weights and averages as they were; count, log, and stop at the third time in a row."""
        state = self.state
        self.masters.drop_gradients()
        state.skipped += 1
        images = [i for part in self.world.collect(batch.indices.tolist()) for i in part]
        line = {"problem": problem, "loss": loss, "grad_norm": norm, "images": images}
        self.hooks.log("skip", state.step, line)
        self.say(f"step {state.step}: {problem}; the step was skipped, weights are untouched")
        if problem.endswith("not finite"):
            state.bad_in_a_row += 1
        if state.bad_in_a_row >= MOST_BAD_STEPS:
            raise VitrailError(
                f"{problem} at step {state.step}, {state.bad_in_a_row} steps in a row; {self.hooks.last_good()}; "
                f"mend: a lower --lr, a longer schedule.warmup_epochs, or --set train.precision=fp32"
            )

    def _report(self, images_before: int) -> int:
        """Write a line when one is due; return the image count that the next line's pace starts from."""
        state, window = self.state, self.state.window
        seconds = max(time.monotonic() - self._interval, 1e-9)
        waited = min(1.0, self._data_seconds / seconds)
        self.hooks.show(step=state.step, loss=window["loss"] / max(1, window["steps"]), data=waited)
        if state.step % self.pace.log_every and state.step % self.per_epoch:
            return images_before
        steps = window["steps"]
        taken = max(1, steps)
        self._clock()
        values = {
            "epoch": state.step / self.per_epoch,
            "loss": window["loss"] / steps if steps else None,
            "grad_norm": window["norm"] / steps if steps else None,
            "lr": self.schedule(state.step - 1),
            "skipped": state.skipped,
            f"{self.unit}_per_s": (state.images - images_before) / seconds,
            "step_s": seconds / taken,
            "data_s": self._data_seconds / taken,
            "seconds": state.seconds,
        }
        self.hooks.log("train", state.step, values)
        state.window = State().window
        self._data_seconds, self._interval = 0.0, time.monotonic()
        return state.images

    def _finish_epoch(self, stop: Stop) -> None:
        state = self.state
        epoch, rest = divmod(state.step, self.per_epoch)
        if rest or not epoch or state.evaluated == state.step:
            return
        if epoch % self.pace.eval_every and epoch != self.pace.epochs:
            return
        try:
            self.hooks.evaluate(epoch, stop)
        except Halt:
            self._interrupt(stop)
        state.evaluated = state.step
        self._interval = time.monotonic()  # the next interval's pace is that of training alone

    def _save_if_due(self, stop: Stop) -> None:
        if self._told or (self.world.alone and stop.asked is not None):
            self._interrupt(stop)
        by_step = self.pace.save_every_steps is not None and self.state.step % self.pace.save_every_steps == 0
        if by_step or self._due:
            self._clock()
            self.hooks.save(wait=False)
            self._saved = time.monotonic()

    def _interrupt(self, stop: Stop) -> None:
        assert stop.asked is not None, "nothing was asked"
        self._clock()
        self.hooks.save(wait=True)
        raise Interrupted(f"stopped by {stop.asked.name} after step {self.state.step}; state saved", stop.exit_code)

    def _clock(self) -> None:
        """Add the time since the last call to the run's wall clock."""
        now = time.monotonic()
        self.state.seconds += now - self._started
        self._started = now


def step_seed(seed: int, step: int, piece: int = 0) -> int:
    """Return the seed of dropout and drop path in a piece of a step: mixed, so that neighbours share nothing.

    Pieces are counted over all processes: two processes of one piece each draw what one process of two pieces draws.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03 + piece * 0x8CB92BA72F3D8DD7) & (2**64 - 1)
    mixed = (mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    return (mixed ^ (mixed >> 29)) & (2**63 - 1)
