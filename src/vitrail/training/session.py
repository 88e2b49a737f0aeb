"""One run in its folder: model, masters, loaders and checkpoints built from a resolved recipe and its data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.sources import Splits
from vitrail.errors import VitrailError
from vitrail.tasks.evaluate import Evaluation, evaluate
from vitrail.weights import save_folder

from .batches import memory_advice, out_of_memory
from .build import build_model, build_task
from .checkpoint import Checkpoints, Snapshot
from .ema import Ema
from .groups import sentences
from .log import MetricsLog
from .loop import Halt, Loop, Pace, State
from .optim import Masters
from .pipeline import eval_loader, threads, train_loader
from .precision import dtype_of, pick_device
from .progress import Progress
from .recipe import Recipe
from .schedule import schedule_of
from .signals import Stop


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must agree with before a run goes on from it."""

    data: dict[str, str]
    classes: dict[str, Any]
    recipe: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"data": self.data, "classes": self.classes, "recipe": self.recipe}


class Session:
    """Builds all parts, and serves the loop with logging, evaluation and saving."""

    def __init__(self, folder: Path, recipe: Recipe, splits: Splits, identity: Identity, progress: Progress) -> None:
        t = recipe.train
        self.folder, self.recipe, self.splits = folder, recipe, splits
        self.identity, self.progress = identity, progress
        self.device = pick_device(t.device)
        self.model, self.card = build_model(recipe, splits, progress.say)
        self.task = build_task(recipe, splits, self.card, self.device, progress.say)
        self.model.to(self.device)
        self.shown = copy.deepcopy(self.model)  # what is evaluated and saved: float32, its weights views of the average
        dtype = dtype_of(t.precision)
        self.masters = Masters(self.model, recipe.optim, dtype)
        if recipe.optim.layer_decay is not None or recipe.optim.head_weight_decay is not None:
            progress.say("\n".join(sentences(self.masters.groups)))
        self.ema = Ema(self.masters, t.ema_decay, learned_buffers(self.model)) if t.ema_decay is not None else None
        weights = self.ema.buffers if self.ema is not None else [w.detach() for w in self.masters.weights]
        self.masters.attach(self.shown, weights)
        if dtype != torch.float32:
            self.model.register_forward_pre_hook(_to_type(dtype))
        self.batches = train_loader(recipe, splits.train, self.card, self.device)
        self.val = eval_loader(splits.val, self.card, **self._reading())
        self.state = State()
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=t.keep, warn=progress.say)
        self.metrics: MetricsLog | None = None

    def _reading(self) -> dict[str, Any]:
        r = self.recipe
        piece = -(-r.train.batch_size // r.train.accumulation)  # what memory was found to hold
        return {"batch_size": 2 * piece, "workers": threads(r), "cache": r.data.cache}

    @property
    def params(self) -> int:
        """Parameters of the model."""
        return sum(p.numel() for p in self.model.parameters())

    def loop(self) -> Loop:
        """Return the loop, at the state this session has."""
        r, t, per_epoch = self.recipe, self.recipe.train, len(self.batches)
        return Loop(
            task=self.task,
            model=torch.compile(self.model) if t.compile else self.model,  # type: ignore[arg-type]
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
        )

    def train(self) -> State:
        """Train from the present state to the end."""
        t, loop = self.recipe.train, self.loop()
        self.metrics = MetricsLog(self.folder, from_step=self.state.step, track=t.track, warn=self.progress.say)
        self.progress.start(loop.total, self.state.step)
        self.total = loop.total
        try:
            return loop.run()
        finally:
            self.progress.stop()
            self.metrics.close()
            self.checkpoints.close()

    # What the loop asks for.

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl."""
        assert self.metrics is not None, "log() outside train()"
        self.metrics.write(kind, step, values)
        if kind == "train":
            self.last_line = values

    def show(self, **numbers: Any) -> None:
        """Move the bar."""
        self.progress.show(images=self.recipe.train.batch_size, total=self.total, **numbers)

    def last_good(self) -> str:
        """Return words for the newest checkpoint."""
        self.checkpoints.finish()
        step = self.checkpoints.last_good
        if step is None:
            return "no checkpoint was written yet"
        return f"the last good checkpoint is {self.checkpoints.folder / f'step-{step}'}"

    def evaluate(self, epoch: int, stop: Stop) -> None:
        """Evaluate on the validation split; keep the weights if they are the best so far."""
        found = self.measure(self.shown, _until(stop, self.val.epoch(0)))
        self.log("val", self.state.step, {"epoch": epoch, **found.metrics})
        told = found.accumulator.thresholds()
        if told is not None:
            self.card = replace(self.card, num_classes=len(told), thresholds=tuple(told))
        best, words = self.state.best, ""
        if best is None or self._rank(found.metrics) > self._rank(best["metrics"]):
            best = {"epoch": epoch, "step": self.state.step, "metrics": found.metrics}
            if self._keep(best):
                self.state.best, words = best, "  best so far"
        self.progress.say(self._line(epoch, found.metrics) + words)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        return metrics[self.task.monitor], -metrics["loss"]

    def _line(self, epoch: int, metrics: dict[str, float]) -> str:
        last = self.last_line
        loss = "-" if last["loss"] is None else f"{last['loss']:.4f}"
        return (
            f"epoch {epoch}/{self.recipe.train.epochs}  loss {loss}  val {self.task.monitor} "
            f"{100 * metrics[self.task.monitor]:.2f} %  val loss {metrics['loss']:.4f}  lr {last['lr']:.2g}  "
            f"{last['images_per_s']:,.0f} images/s  {self.progress.left(self.state.step, self.total)} left"
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
        """Write the averaged weights (float32) as a Vitrail folder."""
        self._share_buffers()
        save_folder(self.folder / name, self.shown, card=self.card, classes=self.splits.classes, extra=extra)

    def measure(self, model: nn.Module, batches: Iterable[Any]) -> Evaluation:
        """Evaluate ``model`` in float32."""
        self._share_buffers()
        try:
            return evaluate(self.task, model, batches, device=self.device)
        except RuntimeError as error:
            if out_of_memory(error):
                t, (height, width) = self.recipe.train, self.card.input_size
                raise memory_advice((t.batch_size, height, width), t.accumulation, error) from error
            raise

    def _share_buffers(self) -> None:
        own = learned_buffers(self.model) if self.ema is None else self.ema.statistics
        for name, buffer in learned_buffers(self.shown).items():
            buffer.copy_(own[name])

    # Saving and restoring.

    def save(self, *, wait: bool) -> None:
        """Write a checkpoint of the present state; ``wait`` until it is on the disk, or fail."""
        self.checkpoints.save(self.snapshot(), final=wait)

    def snapshot(self) -> Snapshot:
        """Copy everything a resumed run needs."""
        kinds = {k: [t.to("cpu", copy=True) for t in buffers] for k, buffers in self._buffers().items()}
        files = {kind: self.masters.named(buffers) for kind, buffers in kinds.items()}
        files["optimizer"] = {n: t.to("cpu", copy=True) for n, t in self.masters.moments().items()}
        for kind, statistics in self._statistics().items():
            files[kind] = {n: b.detach().to("cpu", copy=True) for n, b in statistics.items()}
        state = {"run": self.state.to_json(), "updates": self.masters.updates, "identity": self.identity.to_json()}
        return Snapshot(self.state.step, files, copy.deepcopy(state))

    def _buffers(self) -> dict[str, list[Tensor]]:
        found = {"model": [w.detach() for w in self.masters.weights]}
        return found if self.ema is None else {**found, "ema": self.ema.buffers}

    def _statistics(self) -> dict[str, dict[str, Tensor]]:
        found = {"buffers": learned_buffers(self.model)}
        if self.ema is not None:
            found["ema_buffers"] = self.ema.statistics
        return {kind: statistics for kind, statistics in found.items() if statistics}

    @torch.no_grad()
    def restore(self, saved: Snapshot) -> None:
        """Set weights, averages, optimiser and state to those of a checkpoint."""
        for kind, buffers in self._buffers().items():
            _fill(self.masters.named(buffers), saved.tensors[kind])
        _fill(self.masters.moments(), saved.tensors["optimizer"])
        for kind, statistics in self._statistics().items():
            _fill(statistics, saved.tensors.get(kind, {}))
        self.masters.set_updates(int(saved.state["updates"]))
        self.masters.write_back()
        self.state = State(**saved.state["run"])


def learned_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that training changes (running means); fixed tables, in no state dict, stay as built."""
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _fill(targets: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        tensor = found.get(name)
        if tensor is None or tensor.shape != target.shape:
            got = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise VitrailError(f"expected {name} of shape {tuple(target.shape)} in the checkpoint, got {got}")
        target.copy_(tensor)


def _to_type(dtype: torch.dtype) -> Any:
    def cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    return cast


def _until(stop: Stop, batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        if stop.asked is not None:
            raise Halt
        yield batch


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Return metrics that JSON can hold: numbers that are not finite become null."""
    return {k: v if math.isfinite(v) else None for k, v in metrics.items()}
