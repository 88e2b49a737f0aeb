"""Seconds of training until a small ViT reaches a given accuracy: Vitrail's defaults beside timm's training loop.

    python bench/time_to_accuracy.py --data PATH/TO/cifar10                       # all arms, one core each
    python bench/time_to_accuracy.py --data PATH/TO/cifar10 --arms vitrail timm-tuned

Every arm trains the same network (vit_pico_patch4_32, 308,042 parameters) on the same training images and is measured
on the same validation images after every epoch; time spent on measuring is not counted in any arm. An arm is one
process of one thread, bound to one core. Beside the seconds of the clock stand the seconds of the processor, which
work of others on the machine cannot lengthen. The learning rates of timm's tuned arms are the best of three, found by
short runs that are not counted. Arms that are finished are not run again. Writes the picture and prints
the tables of docs/benchmarks/time-to-accuracy.md.

timm's loop is written from timm's own parts in the order of its train.py (``bench/timm_loop.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import PALETTE

MODEL = "vit_pico_patch4_32"
SEED = 0
CHANCE = 0.1  # accuracy before the first step
EPOCHS = 13  # what Vitrail picks for 45,000 images
# arm -> (name in the picture, settings beside the defaults: dotted keys of Vitrail's recipe, or timm's loop's).
# A step of 128 images took timm's network 379 ms of one core in float32, 586 ms under bf16 autocast, compiled 389 and
# 663 ms: tuned arms have neither.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "vitrail": ("Vitrail, defaults", {}),
    "vitrail-tuned": ("Vitrail, rate tuned", {"optim.lr": 2e-3}),
    "timm-default": ("timm, defaults of train.py", {}),
    "timm-tuned": (
        "timm, tuned AdamW",
        {"opt": "adamw", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1, "sched_on_updates": True,
         "clip_grad": 1.0, "light": True, "ema": 0.995},
    ),
    "timm-muon": (
        "timm, tuned Muon",
        {"opt": "muon", "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1, "sched_on_updates": True,
         "clip_grad": 1.0, "light": True, "ema": 0.995},
    ),
}  # fmt: skip


class Clock:
    """Seconds of the wall and of this process, while it runs; stopped during evaluation."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._from = (time.perf_counter(), time.process_time())

    def stop(self) -> tuple[float, float]:
        """Stand still; return (wall, cpu) seconds counted so far."""
        self.wall += time.perf_counter() - self._from[0]
        self.cpu += time.process_time() - self._from[1]
        return self.wall, self.cpu

    def go(self) -> None:
        """Count again from now."""
        self._from = (time.perf_counter(), time.process_time())


class Reached(Exception):
    """Ends an arm that has met the last target."""


class Curve:
    """What an arm writes down after every epoch; kept on the disk, so that an arm that is cut off is not lost."""

    def __init__(self, path: Path, limit: float, stop: float) -> None:
        self.path, self.limit, self.stop = path, limit, stop
        self.points, self.clock = list[dict[str, float]](), Clock()

    def measure(self, epoch: int, evaluate: Callable[[], float]) -> None:
        """Stop the clock, evaluate, write, go on. Raises :class:`Reached` when there is nothing left to learn."""
        wall, cpu = self.clock.stop()
        point = {"epoch": epoch, "seconds": wall, "cpu_seconds": cpu, "top1": evaluate()}
        self.points.append(point)
        self.path.with_suffix(".part").write_text(json.dumps(self.points))
        print(json.dumps(point), flush=True)
        if cpu > self.limit or point["top1"] >= self.stop:
            raise Reached
        self.clock.go()

    def finish(self, **facts: Any) -> None:
        """Write the result that marks the arm as done."""
        self.path.write_text(json.dumps({**facts, "points": self.points}, indent=1))


def vitrail_arm(curve: Curve, changes: dict[str, Any], args: argparse.Namespace) -> None:
    """Train as ``vitrail train DATA --model NAME`` does; only the clock around evaluation is ours."""
    from vitrail.training.run import train
    from vitrail.training.session import Session

    plain_evaluate, plain_train = Session.evaluate, Session.train

    def evaluate(session: Session, epoch: int, stop: Any) -> None:
        def measured() -> float:
            plain_evaluate(session, epoch, stop)
            lines = (session.folder / "metrics.jsonl").read_text().splitlines()
            return float(next(v["top1"] for v in map(json.loads, reversed(lines)) if v["kind"] == "val"))

        curve.measure(epoch, measured)

    def started(session: Session) -> Any:
        curve.clock = Clock()  # neither side pays for opening the data and building the network
        return plain_train(session)

    Session.evaluate, Session.train = evaluate, started  # type: ignore[method-assign]
    settings: dict[str, Any] = {"data.source": str(args.data), "model.name": MODEL, "out": str(args.runs)}
    settings["data.train_fraction"] = args.share
    settings |= {"train.epochs": args.epochs} if args.epochs else {}
    train(settings | changes, say=lambda line: print(line, flush=True))


def run_arm(name: str, args: argparse.Namespace) -> None:
    """Be the process of one arm."""
    import torch

    torch.set_num_threads(1)
    curve = Curve(args.runs / f"{name}.json", args.limit, args.stop)
    label, options = ARMS[name]
    options = options | json.loads(args.change)
    with suppress(Reached):
        if name.startswith("vitrail"):
            vitrail_arm(curve, options, args)
        else:
            from timm_loop import Settings, train  # type: ignore[import-not-found]

            train(MODEL, args.data, args.share, args.epochs or EPOCHS, Settings(**options), curve, SEED)
    curve.finish(label=label, settings=options)


@dataclass(frozen=True)
class Job:
    """One process to start: an arm, the folder its result goes to, and options of this script in place of the given."""

    arm: str
    folder: Path
    options: dict[str, Any]

    @property
    def result(self) -> Path:
        """The file that is there when the job is done."""
        return self.folder / f"{self.arm}.json"

    def start(self, core: int, args: argparse.Namespace) -> subprocess.Popen[bytes]:
        """Start the process on one core."""
        self.folder.mkdir(parents=True, exist_ok=True)
        given = {key: getattr(args, key) for key in ("data", "share", "epochs", "limit", "stop")}
        command = [sys.executable, __file__, "--arm", self.arm, "--runs", str(self.folder)]
        for key, value in (given | self.options).items():
            command += [f"--{key}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self.result.with_suffix(".log").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        os.sched_setaffinity(process.pid, {core})
        return process


def run_all(jobs: list[Job], args: argparse.Namespace) -> None:
    """Run the jobs that are not finished, as many at a time as there are cores to bind them to."""
    waiting = [job for job in jobs if not job.result.exists()]
    free = sorted(os.sched_getaffinity(0))[: args.jobs]
    running: list[tuple[Job, int, subprocess.Popen[bytes]]] = []
    while waiting or running:
        while waiting and free:
            job, core = waiting.pop(0), free.pop(0)
            running.append((job, core, job.start(core, args)))
        time.sleep(1)
        for entry in [e for e in running if e[2].poll() is not None]:
            job, core, process = entry
            if process.returncode:
                raise SystemExit(f"{job.arm} failed; see {job.result.with_suffix('.log')}")
            free.append(core)
            running.remove(entry)


def best_rates(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the best learning rate of each tuned arm, by short runs on a fifth of the images."""
    keys = {arm: next((key for key in ARMS[arm][1] if key.endswith("lr")), None) for arm in args.arms}
    tuned = {arm: key for arm, key in keys.items() if key is not None}
    short = {"share": 0.2 * args.share, "epochs": 3, "stop": 1.0}
    jobs = {
        (arm, lr): Job(arm, args.runs / f"rate-{lr:g}", {**short, "change": json.dumps({key: lr})})
        for arm, key in tuned.items()
        for lr in args.rates
    }
    run_all(list(jobs.values()), args)
    found = {key: json.loads(job.result.read_text())["points"][-1]["top1"] for key, job in jobs.items()}
    for (arm, lr), top1 in found.items():
        print(f"{arm} at {lr:g}, {short['epochs']} epochs of a fifth of the images: {100 * top1:.1f} %")
    return {arm: {key: max(args.rates, key=lambda lr: found[arm, lr])} for arm, key in tuned.items()}


def reached(points: list[dict[str, float]], target: float, clock: str) -> float | None:
    """Seconds at which the accuracy, drawn as straight lines between epochs from chance, first meets the target."""
    before = {clock: 0.0, "top1": CHANCE}
    for point in points:
        if point["top1"] >= target:
            way = (target - before["top1"]) / (point["top1"] - before["top1"])
            return before[clock] + way * (point[clock] - before[clock])
        before = point
    return None


def print_table(found: dict[str, dict[str, Any]], targets: list[float]) -> None:
    """Print the tables of the documentation: seconds to each target, and how many times longer than Vitrail."""
    for clock, words in (("cpu_seconds", "processor"), ("seconds", "wall clock")):
        print(f"\n| {words} seconds to reach | " + " | ".join(f"{100 * t:g} %" for t in targets) + " | an epoch |")
        print("| --- |" + " --- |" * (len(targets) + 1))
        ours = [reached(found["vitrail"]["points"], t, clock) for t in targets]
        for result in found.values():
            cells = []
            for own, target in zip(ours, targets, strict=True):
                took = reached(result["points"], target, clock)
                ratio = f" ({took / own:.1f} x)" if took and own and result is not found["vitrail"] else ""
                cells.append(f"{took:,.0f}{ratio}" if took else f"not in {result['points'][-1][clock]:,.0f}")
            each = result["points"][-1][clock] / len(result["points"])
            print(f"| {result['label']} | " + " | ".join(cells) + f" | {each:.0f} |")


def draw(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the picture: accuracy against seconds of the processor."""
    series = [
        Series(result["label"], [(0.0, CHANCE), *((p["cpu_seconds"] / 60, p["top1"]) for p in result["points"])], color)
        for result, color in zip(found.values(), PALETTE, strict=False)
    ]
    points = [p for result in found.values() for p in result["points"]]
    plot = Plot(
        f"CIFAR-10 from scratch, {MODEL}, one core",
        "minutes of training (processor time)",
        "accuracy on 5,000 validation images",
        (0.0, max(p["cpu_seconds"] for p in points) / 60),
        (CHANCE, max(p["top1"] for p in points) + 0.03),
        (680, 400),
        percent=True,
    )
    args.picture.write_text(plot.svg(series), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: train.parquet and test.parquet")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="tried for tuned arms")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.55, 0.6])
    parser.add_argument("--epochs", type=int, default=0, help=f"0: what Vitrail picks ({EPOCHS})")
    parser.add_argument("--share", type=float, default=1.0, help="of the training images, to try things out")
    parser.add_argument("--limit", type=float, default=1500, help="processor seconds after which an arm stops")
    parser.add_argument("--stop", type=float, default=0.6, help="accuracy after which an arm stops")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-accuracy"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/time-to-accuracy.svg"))
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--change", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run_arm(args.arm, args)
        return
    rates = best_rates(args)
    changes = {arm: {"change": json.dumps(rates[arm])} if arm in rates else {} for arm in args.arms}
    jobs = {arm: Job(arm, args.runs, changes[arm]) for arm in args.arms}
    run_all(list(jobs.values()), args)
    found = {arm: json.loads(job.result.read_text()) for arm, job in jobs.items()}
    print_table(found, args.targets)
    draw(found, args)


if __name__ == "__main__":
    main()
