"""The lesson of the lectures: on a small set convolutions beat pure attention, and more data closes the gap.

    python bench/small_data.py --data PATH/TO/cifar10                  # nine runs of 5 epochs, 2 at a time
    python bench/small_data.py --data PATH/TO/cifar10 --epochs 1 --shares 0.1

Three networks of equal size (0.3 M parameters) are trained from scratch for equal epochs on 10, 30 and 100 % of the
images, each as its own ``vitrail train`` with one thread. Runs that are finished are not run again. Writes the table
and the picture into the documentation.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trained import trained
from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import PALETTE

# model -> (name in the picture, settings of its own); the rates are those that trials found better, see the page
MODELS = {
    "resnet_pico_32": ("ResNet-20", ["optim.lr=6e-3"]),
    "coatnet_femto_32": ("CoAtNet", ["optim.lr=6e-3"]),
    "vit_pico_patch4_32": (
        "ViT",
        ["optim.lr=2e-3", "model.options={global_pool: gap, class_token: false, pos_embed: sincos2d}"],
    ),
}
COMMON = [
    "data.val_fraction=0.02",
    "augment={crop: padded, padding: 4, hflip: 0.5, randaugment: null, erasing: 0.0, mixup: 0.0, cutmix: 0.0}",
    "optim={name: muon, weight_decay: 0.05, betas: [0.9, 0.99], clip_norm: 1.0}",
    "schedule={name: cosine, warmup_epochs: 0.5}",
    "model.drop_path_rate=0.0",
    "train.label_smoothing=0.1",
    "train.threads=1",
]


def run(model: str, share: float, args: argparse.Namespace) -> float:
    """Train one network on one share of the data, unless that was done; return its accuracy on the test images."""
    name = f"{model}-{share:g}-{args.epochs}"
    words = [str(args.data), "--model", model, "--epochs", str(args.epochs), "--batch", "64"]
    _, summary = trained(args.runs, name, words, [*COMMON, *MODELS[model][1], f"data.train_fraction={share}"])
    top1: float = summary["results"]["test"]["top1"]
    print(f"{name}: {100 * top1:.2f} %", flush=True)
    return top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: train.parquet and test.parquet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--runs", type=Path, default=Path("runs/small-data"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/small-data.svg"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    pairs = [(model, share) for share in sorted(args.shares, reverse=True) for model in MODELS]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(pairs, pool.map(lambda pair: run(*pair, args), pairs), strict=True))
    print_table(found, args.shares)
    draw(found, args)


def print_table(found: dict[tuple[str, float], float], shares: list[float]) -> None:
    """Print the table of the documentation."""
    print("\n| network | " + " | ".join(f"{100 * s:g} % of the images" for s in shares) + " |")
    print("|---|" + "---|" * len(shares))
    for model, (label, _) in MODELS.items():
        print(f"| {label} (`{model}`) | " + " | ".join(f"{100 * found[model, s]:.2f} %" for s in shares) + " |")


def draw(found: dict[tuple[str, float], float], args: argparse.Namespace) -> None:
    """Write the picture: accuracy against the number of images."""
    series = [
        Series(label, [(49_000 * s, found[model, s]) for s in sorted(args.shares)], PALETTE[i])
        for i, (model, (label, _)) in enumerate(MODELS.items())
    ]
    low, high = min(found.values()), max(found.values())
    plot = Plot(
        f"CIFAR-10 from scratch, 0.3 M parameters, {args.epochs} epochs",
        "training images",
        "accuracy on the test images",
        (0.0, 50_000.0),
        (low - 0.03, high + 0.03),
        (680, 380),
        percent=True,
    )
    args.picture.write_text(plot.svg(series), encoding="utf-8")


if __name__ == "__main__":
    main()
