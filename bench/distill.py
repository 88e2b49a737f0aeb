"""Does a teacher help? A small ViT on a share of CIFAR-10, alone and beside a teacher, over several seeds.

    python bench/distill.py --data PATH/TO/cifar10 --teacher all=RUN --teacher same=OTHER_RUN

Each run is its own ``vitrail train`` with one thread; those that are finished are not run again. The students differ in
the teacher alone: data, epochs, seeds, augmentation and optimiser are equal. Writes the table of the documentation.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from trained import trained

STUDENT = "vit_pico_patch4_32"
SETTINGS = [
    "model.options={global_pool: gap, class_token: false, pos_embed: sincos2d}",
    "model.drop_path_rate=0.0",
    "data.val_fraction=0.02",
    "augment={crop: padded, padding: 4, hflip: 0.5, randaugment: null, erasing: 0.0, mixup: 0.0, cutmix: 0.0}",
    "optim={name: muon, lr: 2.0e-3, weight_decay: 0.05, betas: [0.9, 0.99], clip_norm: 1.0}",
    "schedule={name: cosine, warmup_epochs: 0.5}",
    "train.label_smoothing=0.1",
    "train.threads=1",
]
ALONE = "none"


def run(teacher: str, seed: int, args: argparse.Namespace) -> float:
    """Train one student, unless that was done; return its accuracy on the test images."""
    name = f"{STUDENT}-{args.share:g}-{args.epochs}-{teacher}-{seed}"
    words = [str(args.data), "--model", STUDENT, "--epochs", str(args.epochs), "--batch", "64", "--seed", str(seed)]
    settings = [*SETTINGS, f"data.train_fraction={args.share}"]
    if teacher != ALONE:
        settings += [f"distill.teacher={args.teachers[teacher]}", *args.set]
    _, summary = trained(args.runs, name, words, settings)
    top1: float = summary["results"]["test"]["top1"]
    print(f"{name}: {100 * top1:.2f} % in {summary['seconds']:.0f} s", flush=True)
    return top1


def row(label: str, values: list[float], alone: list[float]) -> str:
    """Return a line of the table: each seed, mean, spread (standard deviation), and the mean lift of equal seeds."""
    shown = [f"{100 * v:.2f} %" for v in values]
    spread = f"{100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    lift = statistics.mean(v - a for v, a in zip(values, alone, strict=True))
    cells = [*shown, f"{100 * statistics.mean(values):.2f} %", spread, f"{100 * lift:+.2f}" if lift else ""]
    return f"| {label} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: train.parquet and test.parquet")
    parser.add_argument("--teacher", action="append", required=True, metavar="LABEL=RUN", help="more than one may come")
    parser.add_argument("--set", action="append", default=[], metavar="distill.KEY=VALUE", help="of the distilled runs")
    parser.add_argument("--share", type=float, default=0.1, help="of the training images, for the student")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/distill"))
    args = parser.parse_args()
    args.teachers = dict(pair.split("=", 1) for pair in args.teacher)
    args.runs.mkdir(parents=True, exist_ok=True)
    found = {}
    for label in args.teachers:  # the first teacher's figure is whole before the second is begun
        for seed in args.seeds:
            for teacher in (ALONE, label):
                found[teacher, seed] = run(teacher, seed, args)
    print("\n| teacher | " + " | ".join(f"seed {s}" for s in args.seeds) + " | mean | spread | lift |")
    print("|---|" + "---|" * (len(args.seeds) + 3))
    alone = [found[ALONE, seed] for seed in args.seeds]
    for label in (ALONE, *args.teachers):
        print(row(label, [found[label, seed] for seed in args.seeds], alone))


if __name__ == "__main__":
    main()
