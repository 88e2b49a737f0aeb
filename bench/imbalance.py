"""Long-tailed digits: what balanced sampling, class weights and logit adjustment do for the rare classes.

    python bench/imbalance.py                       # 12 short runs on one thread, some minutes; prints the table
    python bench/imbalance.py --seeds 0 --epochs 10

The training images of scikit-learn's digits are thinned so that class c keeps ``ratio ** (-c / 9)`` of what the
smallest class has (Cui et al. 2019, arXiv 1901.05555, section 5.1); validation and test stay whole, so that top-1
there is nearly the mean over classes. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail import train
from vitrail.data.sources import open_dataset

WAYS = {
    "plain": [],
    "`data.balance=equal`": ["data.balance=equal"],
    "`train.class_weights=balanced`": ["train.class_weights=balanced"],
    "`train.logit_adjustment=1`": ["train.logit_adjustment=1"],
}
RARE = 3  # the rarest classes, shown apart


def make_tail(folder: Path, ratio: float) -> list[int]:
    """Write the digits as class folders with a thinned train part; return the training images of each class."""
    splits = open_dataset("digits")
    assert splits.test is not None, "digits have a test part"
    most = int(splits.train.counts().min())
    kept = [round(most * ratio ** (-c / 9)) for c in range(10)]
    for split, images in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        seen = np.zeros(10, dtype=int)
        for i, label in enumerate(images.labels.tolist()):
            seen[label] += 1
            if split == "train" and seen[label] > kept[label]:
                continue
            path = folder / split / str(label) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.read(i).permute(1, 2, 0).numpy()).save(path)
    return kept


def run(data: Path, way: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train once, unless that was done; return test figures and the recall of the rarest classes."""
    name = f"{'-'.join(WAYS[way]) or 'plain'}-{args.epochs}-{seed}".replace("=", "-")
    folder = args.runs / "classify" / name
    if not (folder / "summary.json").exists():
        pairs = [*args.set, "train.monitor=macro_recall", "train.threads=1", *WAYS[way]]
        settings: dict[str, object] = dict(pair.split("=", 1) for pair in pairs)
        settings |= {"data.source": str(data), "train.epochs": args.epochs, "train.seed": seed, "train.eval_every": 5}
        train({"name": name, "out": str(args.runs)}, settings, say=lambda line: None)
    details = json.loads((folder / "details_test.json").read_text())
    rare = [row["recall"] for row in details["per_class"][-RARE:]]
    found = {key: details["metrics"][key] for key in ("top1", "macro_recall", "macro_f1")}
    found["rare"] = sum(rare) / RARE
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=20.0, help="largest to smallest class")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of all runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/imbalance"))
    args = parser.parse_args()
    data = args.runs / f"digits-1-to-{args.ratio:g}"
    args.runs.mkdir(parents=True, exist_ok=True)
    print("training images by class:", make_tail(data, args.ratio))
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in args.seeds:
        for way, runs in found.items():
            runs.append(run(data, way, seed, args))
    print(f"\n| | mean accuracy of the classes | of the {RARE} rarest | top-1 |\n|---|---|---|---|")
    for way, runs in found.items():
        cells = []
        for key in ("macro_recall", "rare", "top1"):
            values = [100 * one[key] for one in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} %")
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
