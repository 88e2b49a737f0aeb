"""Trains one run without a stop and others that are killed again and again, and prints what they ended with.

Run as a program, from the root of the repository:

    python -m tests.training.survivor DATA WORK [--processes 2] [--lives 20] [--parallel fsdp]

Each life of a run is a group of forked processes, so that torch loads once. The parent kills one or all of them with
SIGKILL after a random time, or the first kills itself at a random moment of a checkpoint's commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from vitrail.training import checkpoint, resume, run, train
from vitrail.training.log import TIMED, read_metrics

from .group import run_group

RECIPE = {
    # attention, and batch norms with statistics of their own
    "model": {
        "name": "test_coatnet", "img_size": 16, "drop_path_rate": 0.3, "drop_rate": 0.1, "attn_drop_rate": 0.1,
    },
    "augment": {
        "crop": "resized", "mixup": 0.5, "cutmix": 1.0, "mix_prob": 0.8, "mix_by": "image", "hflip": 0.5,
        "erasing": 0.2, "three_augment": True, "color_jitter": 0.3, "repeats": 2,
    },
    "schedule": {"warmup_epochs": 1},
    "train": {
        "epochs": 3, "batch_size": 6, "accumulation": 2, "ema_decay": 0.9, "precision": "bf16", "device": "cpu",
        "log_every": 3, "save_every_steps": 1, "save_every_minutes": None, "seed": 3,
    },
}  # fmt: skip

SLICED = {"model.name": "test_vit", "optim.name": "adamw"}  # what can be cut


def once(work: Path, data: str, name: str, parallel: str | None = None) -> Callable[[], object]:
    """Begin the run, or go on with it."""

    def action() -> object:
        run._report = lambda *_: None  # the report is tested elsewhere and has no part in this
        folder = work / "classify" / name
        quiet = lambda text: None  # noqa: E731
        if (folder / "recipe.yaml").exists():
            resume(folder, say=quiet)
        else:
            where = {"data.source": data, "data.workers": 1, "out": str(work), "name": name}
            train(RECIPE, {**where, "train.parallel": parallel, **(SLICED if parallel else {})}, say=quiet)
        return None

    return action


def forget_unborn(folder: Path) -> None:
    """Remove the folder of a run that was killed before its recipe was written: there is nothing to go on with."""
    if folder.exists() and not (folder / "recipe.yaml").exists():
        shutil.rmtree(folder)


def at_point(action: Callable[[], object], number: int) -> Callable[[], object]:
    """Let the process kill itself at the ``number``-th moment of its commits."""

    def doomed() -> object:
        left = [number]

        def point(name: str) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        made = checkpoint.Checkpoints.__init__

        def init(self: checkpoint.Checkpoints, *args: object, **kwargs: object) -> None:
            made(self, *args, **kwargs)
            self.point = point

        checkpoint.Checkpoints.__init__ = init
        return action()

    return doomed


def digest(path: Path) -> str:
    """Return a hash of all tensors of a file by name: the writer of slices puts them in any order."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def ending(folder: Path) -> dict[str, object]:
    """Return what must not depend on how often a run was killed."""
    newest = max((folder / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    state = json.loads((newest / "state.json").read_text())
    state["run"].pop("seconds")
    state["identity"]["recipe"].pop("name")
    lines = [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(folder / "metrics.jsonl")]
    files = [*sorted(newest.rglob("*.safetensors")), *(folder / n / "model.safetensors" for n in ("best", "last"))]
    digests = {str(f.relative_to(folder)): digest(f) for f in files}
    return {"state": state, "lines": lines, "digests": digests}


def main(args: argparse.Namespace) -> None:
    chance, count = random.Random(args.seed), args.processes
    begun = time.monotonic()
    whole = run_group(once(args.work, args.data, "whole", args.parallel), count)
    assert not any(whole.codes), whole.errors
    length = time.monotonic() - begun
    kills = 0
    for name in ("timed", "pointed"):
        for _ in range(args.lives // 2):
            action = once(args.work, args.data, name, args.parallel)
            forget_unborn(args.work / "classify" / name)
            if name == "timed":
                victims = None if chance.random() < 0.5 else [chance.randrange(count)]
                ended = run_group(action, count, kill_after=chance.uniform(0.2, 0.7) * length, victims=victims)
            else:
                ended = run_group(at_point(action, chance.randrange(1, 50)), count)
            # 1: the others missed the one that was killed
            assert set(ended.codes) <= {0, 1, -signal.SIGKILL}, (ended.codes, ended.errors)
            kills += -signal.SIGKILL in ended.codes
        forget_unborn(args.work / "classify" / name)
        ended = run_group(once(args.work, args.data, name, args.parallel), count)
        assert not any(ended.codes), ended.errors
    found = {n: ending(args.work / "classify" / n) for n in ("whole", "timed", "pointed")}
    same = found["whole"] == found["timed"] == found["pointed"]
    print(json.dumps({"kills": kills, "same": same, **found}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("work", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--lives", type=int, default=6)
    parser.add_argument("--parallel", choices=("fsdp",))
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
