"""Trains one run without a stop and others that are killed again and again, and prints what they ended with.

Run as a program: ``survivor.py DATA WORK``. Each life of a run is a forked child, so that torch loads once; the parent
kills it with SIGKILL after a random time, or the child kills itself at a random moment of a checkpoint's commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitrail.training import checkpoint, resume, run, train
from vitrail.training.log import TIMED, read_metrics

RECIPE = {
    # attention, and batch norms with statistics of their own
    "model": {"name": "test_coatnet", "img_size": 16, "drop_path_rate": 0.3, "options": {"drop_rate": 0.1}},
    "augment": {"crop": "resized", "mixup": 0.5, "cutmix": 1.0, "mix_prob": 0.8, "hflip": 0.5, "erasing": 0.2},
    "schedule": {"warmup_epochs": 1},
    "train": {
        "epochs": 3, "batch_size": 5, "accumulation": 2, "ema_decay": 0.9, "precision": "bf16", "device": "cpu",
        "log_every": 3, "save_every_steps": 1, "save_every_minutes": None, "seed": 3,
    },
}  # fmt: skip


def life(action: Callable[[], object], *, kill_after: float | None = None) -> int:
    """Run ``action`` in a child; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            action()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(9)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def once(work: Path, data: str, name: str) -> Callable[[], object]:
    """Begin the run, or go on with it."""

    def action() -> object:
        run._report = lambda *_: None  # the report is tested elsewhere and has no part in this
        folder = work / "classify" / name
        quiet = lambda text: None  # noqa: E731
        if (folder / "recipe.yaml").exists():
            return resume(folder, say=quiet)
        return train({**RECIPE, "data": {"source": data, "workers": 1}, "out": str(work), "name": name}, say=quiet)

    return action


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


def ending(folder: Path) -> dict[str, object]:
    """Return what must not depend on how often a run was killed."""
    newest = max((folder / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    state = json.loads((newest / "state.json").read_text())
    state["run"].pop("seconds")
    state["identity"]["recipe"].pop("name")
    lines = [{k: v for k, v in line.items() if k not in TIMED} for line in read_metrics(folder / "metrics.jsonl")]
    files = [*sorted(newest.glob("*.safetensors")), *(folder / n / "model.safetensors" for n in ("best", "last"))]
    digests = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return {"state": state, "lines": lines, "digests": digests}


def main(data: str, work: Path) -> None:
    chance = random.Random(7)
    begun = time.monotonic()
    assert life(once(work, data, "whole")) == 0
    length = time.monotonic() - begun
    kills = 0
    for name, doom in (("timed", True), ("pointed", False)):
        for _ in range(3):
            action = once(work, data, name)
            if doom:
                code = life(action, kill_after=chance.uniform(0.2, 0.7) * length)
            else:
                code = life(at_point(action, chance.randrange(1, 50)))
            assert code in (0, -signal.SIGKILL), code
            kills += code != 0
        assert life(once(work, data, name)) == 0
    print(json.dumps({"kills": kills, **{n: ending(work / "classify" / n) for n in ("whole", "timed", "pointed")}}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
