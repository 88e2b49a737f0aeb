"""Is the plan right? What `vitrail plan` predicts from two small batches, beside what the run then takes.

    python bench/plan.py                       # the table of docs/guide/plan.md, some minutes on two cores
    python bench/plan.py --only vit_nano       # the rows of some models

For each row one fresh process plans, and another one builds the run and takes three of its steps at the full batch.
Memory is that of torch's allocators at the highest moment of the steps, all weights and moments included, and the
highest resident size of the process; time is the fastest of the last two steps, with the making of the batch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

# model, image side, batch, accumulation, recompute, precision, optimiser
ROWS: list[tuple[str, int, int, int, bool, str, str]] = [
    ("vit_nano_patch4_32", 32, 64, 1, False, "fp32", "adamw"),
    ("vit_small_patch16_224", 112, 16, 4, True, "fp32", "adamw"),
    ("resnet50", 96, 16, 2, False, "fp32", "adamw"),
    ("vit_nano_patch4_32", 32, 64, 4, False, "bf16", "muon"),
    ("vit_small_patch16_224", 112, 16, 1, False, "fp32", "adamw"),
    ("swin_tiny_patch4_window7_224", 112, 8, 1, False, "fp32", "adamw"),
    ("vit_nano_patch4_32", 32, 96, 1, True, "fp32", "adamw"),
    ("vit_small_patch16_224", 112, 16, 2, False, "bf16", "adamw"),
    ("pvt_v2_b0", 112, 16, 1, True, "fp32", "adamw"),
]


def recipe_of(row: tuple[str, int, int, int, bool, str, str]):
    """Return the resolved recipe of a row, its data and what they are like."""
    from vitrail.training.planning import prepare
    from vitrail.training.recipe import Recipe

    model, side, batch, accumulation, recompute, precision, optimizer = row
    settings = {
        "data.source": "digits", "model.name": model, "model.img_size": side, "train.batch_size": batch,
        "train.accumulation": accumulation, "train.recompute": recompute, "train.precision": precision,
        "optim.name": optimizer, "train.device": "cpu", "data.workers": 0, "train.threads": 1,
        "model.drop_path_rate": 0.1, "data.cache": "none",
    }  # fmt: skip
    return prepare(Recipe.load(settings, environment={}), lambda text: None)


def planned(row: tuple[str, int, int, int, bool, str, str]) -> dict[str, float]:
    """Return the prediction of a row, by a probe in this process."""
    from vitrail.training.planning import budget_of, make_plan
    from vitrail.training.probe import probe

    prepared = recipe_of(row)
    began = time.perf_counter()
    found = probe(prepared.recipe, prepared.splits, prepared.facts, lambda text: None)
    took = time.perf_counter() - began
    plan = make_plan(prepared.recipe, prepared.splits, found, prepared.device, budget_of(prepared.device))
    memory = plan.asked.memory
    return {
        "tensors": memory.total - memory.process,
        "rss": memory.total,
        "step_s": plan.asked.step_s,
        "probe_s": took,
        "exact": plan.exact,
    }


def taken(row: tuple[str, int, int, int, bool, str, str], watched: bool) -> dict[str, float]:
    """Return what a row takes: tensors if ``watched``, otherwise the process and the time."""
    from vitrail.training.precision import use_threads
    from vitrail.training.probe import session_of
    from vitrail.training.timeline import peak, record

    prepared, times = recipe_of(row), []

    def run() -> None:
        session = session_of(prepared.recipe, prepared.splits, lambda text: None)
        loop = session.loop()
        began = time.perf_counter()
        for step, batch in enumerate(session.batches.epoch(0)):
            loop._one_step(batch, len(batch))
            times.append(time.perf_counter() - began)
            if step == (1 if watched else 2):
                return
            began = time.perf_counter()

    with use_threads(1):
        if watched:
            return {"tensors": peak(record(run, prepared.device))}
        run()
    return {"rss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "step_s": min(times[1:])}


def fresh(number: int, what: str) -> dict[str, float]:
    """Return the answer of a process of its own."""
    words = [sys.executable, __file__, "--row", str(number), "--what", what]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def line(number: int) -> str:
    """Return a row of the table."""
    model, side, batch, accumulation, recompute, precision, optimizer = ROWS[number]
    said = fresh(number, "plan")
    seen = fresh(number, "tensors") | fresh(number, "process")
    cells = [f"`{model}`", side, f"{batch} / {accumulation}", "yes" if recompute else "", precision, optimizer]
    for key in ("tensors", "rss"):
        cells += [f"{said[key] / 1e6:.0f}", f"{seen[key] / 1e6:.0f}", f"{100 * (said[key] / seen[key] - 1):+.1f} %"]
    cells += [f"{said['step_s']:.2f}", f"{seen['step_s']:.2f}", f"{said['step_s'] / seen['step_s']:.2f}"]
    return f"| {' | '.join(str(c) for c in cells)} | {said['probe_s']:.0f} s{'' if said['exact'] else ' (not exact)'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose model has this in its name")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("plan", "tensors", "process"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is not None:
        row = ROWS[args.row]
        print(json.dumps(planned(row) if args.what == "plan" else taken(row, args.what == "tensors")))
        return
    print(
        "| model | side | batch / pieces | recompute | type | optimiser | tensors, MB: planned | taken | | "
        "process, MB: planned | taken | | step, s: planned | taken | ratio | probe |\n|" + " --- |" * 16
    )
    for number, row in enumerate(ROWS):
        if args.only in row[0]:
            print(line(number), flush=True)


if __name__ == "__main__":
    main()
