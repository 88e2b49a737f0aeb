"""What regularisation does where images are few: the same network, equal steps, with and without it.

    python bench/regularisation.py --data PATH/TO/cifar10                 # two runs, one thread each, side by side
    python bench/regularisation.py --data PATH/TO/cifar10 --epochs 2 --share 0.02

AugReg (Steiner et al. 2022, arXiv 2106.10270) in small: a ViT of 0.3 M parameters, from scratch, on a fifth of
CIFAR-10, 40 epochs. "none" sees the images as they are; "reg" has RandAugment, MixUp and drop path. Everything else is
equal, initial weights and the order of the images too. Runs that are finished are not run again. Prints the table of
docs/benchmarks/regularisation.md and writes its picture.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trained import trained
from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import PALETTE

ARMS = {
    "none": (
        "none",
        "model.drop_path_rate=0.0",
        "augment={crop: none, hflip: 0.0, randaugment: null, erasing: 0.0, mixup: 0.0, cutmix: 0.0}",
    ),
    "reg": (
        "RandAugment, MixUp, drop path",
        "model.drop_path_rate=0.05",
        "augment={crop: none, hflip: 0.0, randaugment: {num_ops: 2, magnitude: 7}, erasing: 0.0, mixup: 0.2, "
        "cutmix: 0.0, mix_prob: 0.5}",
    ),
}
COMMON = [
    "data.val_fraction=0.02",
    "optim={name: muon, lr: 2e-3, weight_decay: 0.05, betas: [0.9, 0.99], clip_norm: 1.0}",
    "schedule={name: cosine, warmup_epochs: 2}",
    "model.options={global_pool: gap, class_token: false, pos_embed: sincos2d}",
    "train.label_smoothing=0.0",
    "train.threads=1",
]


def run(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one arm, unless that was done; return its curves and its result on the test images."""
    name = f"{arm}-{args.seed}"
    words = [str(args.data), "--model", "vit_pico_patch4_32", "--epochs", str(args.epochs), "--batch", "64"]
    settings = [*COMMON, *ARMS[arm][1:], f"data.train_fraction={args.share}"]
    folder, summary = trained(args.runs, name, [*words, "--seed", str(args.seed)], settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    val = [line for line in lines if line["kind"] == "val"]
    train = [line for line in lines if line["kind"] == "train" and float(line["epoch"]).is_integer()]
    return {"val": val, "train": train, "test": summary["results"]["test"], "images": summary["images"]}


def lowest(result: dict[str, Any]) -> str:
    """Return the lowest validation loss and its epoch."""
    loss, epoch = min((v["loss"], v["epoch"]) for v in result["val"])
    return f"{loss:.2f} (epoch {epoch})"


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Print the table of the documentation."""
    print("| | " + " | ".join(ARMS[arm][0] for arm in found) + " |")
    print("| --- |" + " --- |" * len(found))
    rows = {
        "test accuracy (best weights by validation)": lambda r: f"{100 * r['test']['top1']:.2f} %",
        "test loss": lambda r: f"{r['test']['loss']:.2f}",
        "validation accuracy, last epoch": lambda r: f"{100 * r['val'][-1]['top1']:.1f} %",
        "validation loss, lowest": lowest,
        "validation loss, last epoch": lambda r: f"{r['val'][-1]['loss']:.2f}",
        "training loss, last epoch": lambda r: f"{r['train'][-1]['loss']:.4f}",
    }
    for name, cell in rows.items():
        print(f"| {name} | " + " | ".join(cell(r) for r in found.values()) + " |")


def draw(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the picture: validation accuracy by epoch."""
    curves = {arm: [(v["epoch"], v["top1"]) for v in result["val"]] for arm, result in found.items()}
    heights = [y for points in curves.values() for _, y in points]
    images = next(iter(found.values()))["images"]
    plot = Plot(
        f"A ViT of 0.3 M parameters on {images['train']:,} images of CIFAR-10",
        "epoch",
        f"accuracy on {images['val']:,} validation images",
        (0.0, float(args.epochs)),
        (min(heights) - 0.03, max(heights) + 0.06),
        (680, 380),
        percent=True,
        x_whole=True,
    )
    series = [Series(ARMS[arm][0], points, PALETTE[i]) for i, (arm, points) in enumerate(curves.items())]
    args.picture.write_text(plot.svg(series), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: train.parquet and test.parquet")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.2, help="of the training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/regularisation"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/regularisation.svg"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(ARMS, pool.map(lambda arm: run(arm, args), ARMS), strict=True))
    print_table(found)
    draw(found, args)


if __name__ == "__main__":
    main()
