"""Trains with several processes in all the ways there are, and prints what came out as one JSON line.

Run as a program: ``together.py DATA WORK``. Every group of processes is forked, so that torch loads once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vitrail.training import loop, resume, run, train
from vitrail.training.log import read_metrics
from vitrail.training.verify import verify_resume

from .group import Ended, run_group

BASE: dict[str, Any] = {
    "model": {"name": "test_vit", "img_size": 16, "drop_path_rate": 0.2},
    "augment": {"crop": "resized", "mixup": 0.5, "cutmix": 1.0, "mix_prob": 0.8, "hflip": 0.5, "erasing": 0.2},
    "optim": {"name": "adamw", "lr": 1e-3},
    "schedule": {"warmup_epochs": 1},
    "train": {
        "epochs": 2, "batch_size": 8, "ema_decay": 0.9, "precision": "fp32", "device": "cpu", "log_every": 1,
        "save_every_steps": 2, "save_every_minutes": None, "seed": 3, "timeout_minutes": 0.5, "keep": 9,
    },
}  # fmt: skip
CALM = {"model.drop_path_rate": 0.0}  # nothing random in the network: any number of processes computes the same


class Runs:
    """Starts runs in one folder on one set of images."""

    def __init__(self, data: str, work: Path) -> None:
        self.data, self.work = data, work

    def folder(self, name: str) -> Path:
        return self.work / "classify" / name

    def begin(self, name: str, changes: dict[str, Any]) -> Callable[[], Any]:
        """Return the action that trains a run of this name."""

        def action() -> Any:
            run._report = lambda *_: None  # the report is tested elsewhere and has no part in this
            source = {"data.source": self.data, "data.workers": 0, "out": str(self.work), "name": name}
            train(BASE, {**source, **changes}, say=lambda text: None)

        return action

    def go_on(self, name: str) -> Callable[[], Any]:
        def action() -> Any:
            run._report = lambda *_: None
            resume(self.folder(name), say=lambda text: None)

        return action

    def losses(self, name: str) -> list[float]:
        lines = read_metrics(self.folder(name) / "metrics.jsonl")
        return [line["loss"] for line in lines if line["kind"] == "train"]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = load_file(self.folder(name) / "last" / "model.safetensors")
        return found

    def difference(self, name: str, other: str) -> float:
        """Return the largest difference of a single weight."""
        a, b = self.weights(name), self.weights(other)
        return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)

    def forget_after(self, name: str, step: int) -> None:
        """Remove the checkpoints after ``step``, as if the run had been killed there."""
        import shutil

        for path in (self.folder(name) / "checkpoints").glob("step-*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)


def fine(ended: Ended) -> None:
    assert not any(ended.codes), (ended.codes, ended.errors)


def ways(runs: Runs) -> dict[str, Any]:
    """The same run by one process in pieces, by two and by four, whole and in slices."""
    for name, count, nodes, changes in (
        ("one", 1, 1, {"train.accumulation": 2}),
        ("two", 2, 1, {}),
        ("sliced", 2, 1, {"train.parallel": "fsdp"}),
        ("one4", 1, 1, {"train.accumulation": 4}),
        ("nodes", 4, 2, {"train.parallel": "hsdp"}),
        ("half", 2, 1, {"train.parallel": "fsdp", "train.precision": "bf16"}),
        ("half_one", 1, 1, {"train.accumulation": 2, "train.precision": "bf16"}),
    ):
        fine(run_group(runs.begin(name, changes), count, nodes=nodes))
    return {
        "two": runs.difference("one", "two"),
        "sliced": runs.difference("one", "sliced"),
        "nodes": runs.difference("one4", "nodes"),
        "half": runs.losses("half"),
        "half_one": runs.losses("half_one"),
        "files": sorted(p.name for p in (runs.folder("sliced") / "checkpoints" / "step-2" / "ema").iterdir()),
    }


def statistics(runs: Runs) -> dict[str, Any]:
    """A model with batch norms: every process must end with the same running means."""
    fine(run_group(runs.begin("norms", {"model.name": "test_coatnet"}), 2))
    ended = run_group(lambda: str(verify_resume(runs.folder("norms"), say=lambda text: None)), 2)
    fine(ended)
    return {"said": ended.values}


def other_sizes(runs: Runs) -> dict[str, Any]:
    """Go on with another number of processes, from slices to whole and back."""
    fine(run_group(runs.begin("calm", {**CALM, "train.parallel": "fsdp"}), 2))
    fine(run_group(runs.begin("calm_whole", CALM), 2))
    whole = runs.losses("calm")
    found = {}
    for start in ("calm", "calm_whole"):
        for count in (1, 4):
            runs.forget_after(start, 2)
            fine(run_group(runs.go_on(start), count))
            found[f"{start} by {count}"] = runs.losses(start)
    return {"whole": whole, "found": found}


def told_to_stop(runs: Runs) -> dict[str, Any]:
    """SIGTERM reaches one process of two in the middle; both stop, and go on later."""
    fine(run_group(runs.begin("unstopped", {}), 2))

    def action() -> Any:
        taken = loop.Loop._one_step

        def doomed(self: loop.Loop, batch: Any, kept: int) -> None:
            if self.world.rank == 1 and self.state.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            taken(self, batch, kept)

        loop.Loop._one_step = doomed  # type: ignore[method-assign]
        runs.begin("stopped", {})()

    ended = run_group(action, 2)
    marked = (runs.folder("stopped") / "RESUMABLE").exists()
    fine(run_group(runs.go_on("stopped"), 2))
    return {"codes": ended.codes, "marked": marked, "difference": runs.difference("unstopped", "stopped")}


def lost(runs: Runs) -> dict[str, Any]:
    """One of two processes dies in the middle, without a word."""

    def action() -> Any:
        taken = loop.Loop._one_step

        def doomed(self: loop.Loop, batch: Any, kept: int) -> None:
            if self.world.rank == 1 and self.state.step == 3:
                self.hooks.last_good()  # what is being written may end
                os.kill(os.getpid(), signal.SIGKILL)
            taken(self, batch, kept)

        loop.Loop._one_step = doomed  # type: ignore[method-assign]
        runs.begin(name, changes)()

    name, changes = "lost_slices", {"train.parallel": "fsdp"}
    sliced = run_group(action, 2)
    name, changes = "lost", {}
    ended = run_group(action, 2)
    fine(run_group(runs.go_on("lost"), 2))
    errors = [ended.errors[0], sliced.errors[0]]
    return {"codes": [ended.codes, sliced.codes], "errors": errors, "difference": runs.difference("unstopped", "lost")}


def poisoned(runs: Runs) -> dict[str, Any]:
    """The loss of one process is not finite once: all skip that step."""

    def action() -> Any:
        from vitrail.tasks.classify import Classify

        taken, seen = Classify.step, [0]

        def spoilt(self: Classify, model: Any, batch: Any) -> Any:
            losses = taken(self, model, batch)
            seen[0] += 1
            if os.environ["RANK"] == "1" and seen[0] == 3:
                losses["loss"] = losses["loss"] * float("nan")
            return losses

        Classify.step = spoilt  # type: ignore[method-assign]
        runs.begin("poisoned", {})()

    fine(run_group(action, 2))
    lines = read_metrics(runs.folder("poisoned") / "metrics.jsonl")
    skipped = [line for line in lines if line["kind"] == "skip"]
    finite = all(t.isfinite().all() for t in runs.weights("poisoned").values())
    return {"steps": [line["step"] for line in skipped], "images": len(skipped[0]["images"]), "finite": finite}


def full(runs: Runs) -> dict[str, Any]:
    """The disk of one process of two is full after step 2; both say so, and nothing half-written stays."""

    def action() -> Any:
        import resource

        taken = loop.Loop._one_step

        def limited(self: loop.Loop, batch: Any, kept: int) -> None:
            if self.world.rank == 1 and self.state.step == 3:
                self.hooks.last_good()  # what is being written may end
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            taken(self, batch, kept)

        loop.Loop._one_step = limited  # type: ignore[method-assign]
        runs.begin("full", {"train.parallel": "fsdp"})()

    ended = run_group(action, 2)
    folders = sorted(p.name for p in (runs.folder("full") / "checkpoints").iterdir())
    fine(run_group(runs.go_on("full"), 2))
    return {"codes": ended.codes, "errors": ended.errors, "folders": folders, "same": runs.difference("sliced", "full")}


def started_anew(runs: Runs) -> dict[str, Any]:
    """torchrun starts the same command again after a crash: the run goes on instead of asking for another name."""
    os.environ["TORCHELASTIC_RUN_ID"] = "launch"
    try:
        runs.folder("x").parent.mkdir(parents=True, exist_ok=True)
        killed = run_group(runs.begin("anew", {}), 2, kill_after=2.0)
        ended = run_group(runs.begin("anew", {}), 2, restarts=1)
        again = run_group(runs.begin("anew", {}), 2, restarts=0)
    finally:
        del os.environ["TORCHELASTIC_RUN_ID"]
    fine(ended)
    return {"killed": killed.codes, "difference": runs.difference("unstopped", "anew"), "again": again.errors}


def refused(runs: Runs) -> dict[str, Any]:
    """What cannot work is said by the first process before anything is trained."""
    cases = {
        "batch": {"train.batch_size": 7},
        "muon": {"train.parallel": "fsdp", "optim.name": "muon"},
        "norms": {"train.parallel": "fsdp", "model.name": "test_coatnet"},
        "nodes": {"train.parallel": "hsdp"},
    }
    return {name: run_group(runs.begin(f"no-{name}", changes), 2).errors[0] for name, changes in cases.items()}


SCENES = (ways, statistics, other_sizes, told_to_stop, lost, poisoned, full, started_anew, refused)


def main(data: str, work: Path) -> None:
    print(json.dumps({scene.__name__: scene(Runs(data, work)) for scene in SCENES}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
