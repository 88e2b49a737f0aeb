"""One run in its folder: model, masters, loaders and checkpoints built from a resolved recipe and its data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitrail.tasks import Task
from vitrail.tasks.base import in_words
from vitrail.tasks.evaluate import Evaluation, evaluate

from .batches import out_of_memory
from .checkpoint import Checkpoints, Saved, Snapshot
from .ema import Ema
from .groups import sentences
from .job import Batches, Identity, Job
from .log import MetricsLog
from .loop import Halt, Loop
from .optim import Masters
from .precision import dtype_of, own_device
from .progress import Progress
from .rework import rework
from .schedule import schedule_of
from .signals import Stop
from .state import Pace, State
from .world import ALONE, PeerLost, World

if TYPE_CHECKING:
    from .sharding import Slices

Tensors = dict[str, dict[str, Tensor]]  # by kind (model, ema, optimizer, ...) and name


class Session:
    """Builds all parts, and serves the loop with logging, evaluation and saving."""

    def __init__(
        self,
        folder: Path,
        job: Job,
        progress: Progress,
        world: World = ALONE,
    ) -> None:
        recipe = job.recipe
        t = recipe.train
        self.folder, self.job, self.recipe, self.world = folder, job, recipe, world
        self.progress = progress
        job.require_world(world)
        self.device = own_device(t.device, world)
        self.model, self.card = job.build_model(progress.say)
        self.task = job.build_task(self.card, self.device, progress.say, world)
        self.params = sum(p.numel() for p in self.model.parameters())
        self.slices = self._slices()
        self.model.to(self.device)
        self.shown = self._second()
        dtype = dtype_of(t.precision)
        self.masters = Masters(self.model, recipe.optim, dtype)
        self.masters.copies = 1 if self.slices is None else self.slices.layout.copies
        if recipe.optim.layer_decay is not None or recipe.optim.head_weight_decay is not None:
            progress.say("\n".join(sentences(self.masters.groups)))
        self.ema = Ema(self.masters, t.ema_decay, learned_buffers(self.model)) if t.ema_decay is not None else None
        self.masters.attach(self.shown, self._average())
        rework(self.model, recompute=t.recompute, compile=t.compile)
        if dtype != torch.float32:
            self.model.register_forward_pre_hook(_to_type(dtype))
        self.part = (world.rank, world.size)
        self.batches = job.train_batches(self.card, self.device, self.part)
        self.val = self.held_out("val")
        self.state = State()
        group = None if self.slices is None else self.slices.group
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=t.keep, warn=progress.say, world=world, group=group)
        self.metrics: MetricsLog | None = None
        self.watch = job.watch(self.batches, progress.say)

    @cached_property
    def identity(self) -> Identity:
        """What a checkpoint of this run must agree with."""
        return self.job.identity()

    def _slices(self) -> Slices | None:
        if self.world.alone:
            return None
        from .sharding import Slices  # imports a second's worth of torch.distributed

        return Slices.of(self.model, self.recipe, self.world, self.device)

    def _second(self) -> nn.Module:
        """Return what is evaluated and saved: float32, its weights views of the average, or slices of their own."""
        if self.slices is None:
            return copy.deepcopy(self.model)
        from .sharding import shard

        shard(self.model, self.slices.layout)  # first, so that no process holds two whole models
        shown = self.job.build_model(lambda text: None)[0].to(self.device)
        shard(shown, self.slices.layout, evaluation=True)
        return shown

    def held_out(self, name: str) -> Batches:
        """Return the batches of a held-out split, this process's part of each."""
        return self.job.batches(name, self.card, self.part)

    def loop(self) -> Loop:
        """Return the loop, at the state this session has."""
        r, t, per_epoch = self.recipe, self.recipe.train, len(self.batches)
        return Loop(
            task=self.task,
            model=self.model,
            masters=self.masters,
            ema=self.ema,
            batches=self.batches,
            schedule=schedule_of(r, per_epoch),
            pace=Pace(
                epochs=t.epochs,
                accumulation=t.accumulation,
                clip_norm=r.optim.clip_norm,
                seed=t.seed,
                eval_every=t.eval_every,
                log_every=t.log_every,
                save_every_steps=t.save_every_steps,
                save_every_minutes=t.save_every_minutes,
            ),
            hooks=self,
            state=self.state,
            say=self.progress.say,
            world=self.world,
            unit=self.job.unit,
            advise=lambda error: self.job.memory_advice(self.card, error),
        )

    def train(self) -> State:
        """Train from the present state to the end."""
        t, loop = self.recipe.train, self.loop()
        if self.world.first:
            self.metrics = MetricsLog(self.folder, from_step=self.state.step, track=t.track, warn=self.progress.say)
        self.progress.start(loop.total, self.state.step)
        self.total = loop.total
        try:
            return loop.run()
        finally:
            self.progress.stop()
            if self.metrics is not None:
                self.metrics.close()
            self.checkpoints.close()

    # What the loop asks for.

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl."""
        if self.metrics is not None:
            self.metrics.write(kind, step, values)
        if kind == "train":
            self.last_line = values
            self.watch(step, values)

    def show(self, **numbers: Any) -> None:
        """Move the bar."""
        each = self.state.images / max(1, self.state.step)
        self.progress.show(each=each, unit=self.job.unit, total=self.total, **numbers)

    def last_good(self) -> str:
        """Return words for the newest checkpoint."""
        with suppress(PeerLost):  # then what was being written is lost too
            self.checkpoints.finish()
        step = self.checkpoints.last_good
        if step is None:
            return "no checkpoint was written yet"
        return f"the last good checkpoint is {self.checkpoints.folder / f'step-{step}'}"

    def evaluate(self, epoch: int, stop: Stop) -> None:
        """Evaluate on the validation split; keep the weights if they are the best so far."""
        self._show()
        batches = self.val.epoch(0)
        # one of several processes must not leave the others alone in the middle
        found = self.measure(self.shown, _until(stop, batches) if self.world.alone else batches)
        self.log("val", self.state.step, {"epoch": epoch, **found.metrics})
        self.card = self.job.taught(self.card, found)
        best, words = self.state.best, ""
        if best is None or self._rank(found.metrics) > self._rank(best["metrics"]):
            best = {"epoch": epoch, "step": self.state.step, "metrics": found.metrics}
            if self._keep(best):
                self.state.best, words = best, "  best so far"
        self.progress.say(self._line(epoch, found.metrics) + words)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        return metrics[self.task.monitor], -metrics["loss"]

    def _line(self, epoch: int, metrics: dict[str, float]) -> str:
        last, unit = self.last_line, self.job.unit
        loss = "-" if last["loss"] is None else f"{last['loss']:.4f}"
        return (
            f"epoch {epoch}/{self.recipe.train.epochs}  loss {loss}  val {self.task.monitor} "
            f"{in_words(self.task.monitor, metrics[self.task.monitor])}  val loss {metrics['loss']:.4f}  "
            f"lr {last['lr']:.2g}  {last[f'{unit}_per_s']:,.0f} {unit}/s  "
            f"{self.progress.left(self.state.step, self.total)} left"
        )

    def _keep(self, best: dict[str, Any]) -> bool:
        try:
            self.save_weights("best", best)
        except OSError as error:
            said = f"the best weights of epoch {best['epoch']} could not be written: {error}"
            self.progress.say(f"{said}; training goes on")
            return False
        return True

    def save_weights(self, name: str, extra: dict[str, Any]) -> None:
        """Write the averaged weights (float32) as a Vitrail folder. Raises OSError on every process if it failed."""
        self._show()
        whole = self.shown if self.slices is None else self.slices.whole(self.shown)
        fault = None
        if self.world.first:
            try:
                self.job.save(self.folder / name, whole, self.card, extra)
            except OSError as error:
                fault = str(error)
        if self.slices is not None:
            self.slices.forget()
        fault = self.world.share(fault)
        if fault is not None:
            raise OSError(fault)

    def measure(self, model: nn.Module, batches: Iterable[Any], task: Task | None = None) -> Evaluation:
        """Evaluate ``model`` in float32, every process its part; all get the same numbers."""
        try:
            return evaluate(task or self.task, model, batches, device=self.device, join=self.world.join)
        except RuntimeError as error:
            if out_of_memory(error):
                raise self.job.memory_advice(self.card, error) from error
            raise

    def _average(self) -> list[Tensor]:
        """Return the buffers of the weights that are shown."""
        return self.ema.buffers if self.ema is not None else [w.detach() for w in self.masters.weights]

    def best(self) -> nn.Module:
        """Return the best weights as they lie on the disk, ready to be measured."""
        best = self.job.load(self.folder / "best") if self.slices is None or self.world.first else None
        if self.slices is None:
            assert best is not None
            return best.to(self.device)
        self.slices.spread({} if best is None else best.state_dict(), self.shown)
        return self.shown

    def _show(self) -> None:
        """Bring the model that is shown up to date: running statistics, and slices, which cannot be views."""
        self.masters.show(self.shown, self._average())
        own = learned_buffers(self.model) if self.ema is None else self.ema.statistics
        for name, buffer in learned_buffers(self.shown).items():
            buffer.copy_(own[name])

    # Saving and restoring.

    def save(self, *, wait: bool) -> None:
        """Write a checkpoint of the present state; ``wait`` until it is on the disk, or fail."""
        self.checkpoints.save(self.snapshot(), final=wait)

    def snapshot(self) -> Snapshot:
        """Copy everything a resumed run needs."""
        files = {
            kind: {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
            for kind, tensors in self.tensors().items()
        }
        files = self.labelled(files)
        state = {"run": self.state.to_json(), "updates": self.masters.updates, "identity": self.identity.to_json()}
        return Snapshot(self.state.step, files, copy.deepcopy(state))

    def tensors(self) -> Tensors:
        """Return kind -> name -> tensor of all that changes in training; views, not copies."""
        masters = self.masters
        found = {"model": masters.named([w.detach() for w in masters.weights]), "optimizer": masters.moments()}
        statistics = {"buffers": learned_buffers(self.model)}
        if self.ema is not None:
            found["ema"] = masters.named(self.ema.buffers)
            statistics["ema_buffers"] = self.ema.statistics
        return found | {kind: tensors for kind, tensors in statistics.items() if tensors}

    def labelled(self, tensors: Tensors | None = None) -> Tensors:
        """Return :meth:`tensors`, or copies of them, as checkpoints know them: slices as parts of whole tensors."""
        tensors = self.tensors() if tensors is None else tensors
        if self.slices is None:
            return tensors
        return {kind: self.slices.label(found, self.masters.shapes) for kind, found in tensors.items()}

    @torch.no_grad()
    def restore(self, saved: Saved) -> None:
        """Set weights, averages, optimiser and state to those of a checkpoint, however many processes wrote it."""
        wanted = self.labelled()
        for kind, tensors in self.tensors().items():
            for name, tensor in saved.read(kind, wanted[kind]).items():
                tensors[name].copy_(tensor)
        self.masters.set_updates(int(saved.state["updates"]))
        self.masters.write_back()
        self.state = State(**saved.state["run"])


def learned_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that training changes (running means); fixed tables, in no state dict, stay as built."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _to_type(dtype: torch.dtype) -> Any:
    def cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    return cast


def _until(stop: Stop, batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        if stop.asked is not None:
            raise Halt
        yield batch
