"""Model soups: members fine-tuned from one start on CIFAR-10, averaged; the best member beside both soups.

    python bench/soup.py --data PATH/TO/cifar10 --start runs/small-data/classify/vit_pico_patch4_32-1-5/best

The start is what bench/small_data.py trains on all images. Each member is its own ``vitrail train`` with one thread:
the same images held out, another rate, seed or augmentation. Runs that are finished are not run again. Prints the
table of docs/benchmarks/soup.md; exit code 1 if the greedy soup is below its best member on the validation images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAIN = ["augment.mixup=0.0", "augment.randaugment=null"]
MEMBERS = {  # name -> settings of its own; the seed is the place in this list, from 1
    "rate 1e-3": ["optim.lr=1e-3", *PLAIN],
    "rate 1e-3, another seed": ["optim.lr=1e-3", *PLAIN],
    "rate 2e-3": ["optim.lr=2e-3", *PLAIN],
    "rate 5e-4": ["optim.lr=5e-4", *PLAIN],
    "rate 1e-3, MixUp 0.2": ["optim.lr=1e-3", "augment.mixup=0.2", "augment.mix_prob=0.5", PLAIN[1]],
    "rate 1e-3, RandAugment": ["optim.lr=1e-3", "augment.randaugment={num_ops: 2, magnitude: 5}", PLAIN[0]],
    "rate 1e-2, ten times too high": ["optim.lr=1e-2", *PLAIN],
}
COMMON = [
    "model.options={global_pool: gap, class_token: false, pos_embed: sincos2d}",
    "data.val_fraction=0.02",  # with data.seed 0 the images that the start did not see either
    "augment.crop=padded",
    "augment.padding=4",
    "augment.hflip=0.5",
    "augment.erasing=0.0",
    "augment.cutmix=0.0",
    "optim={name: muon, weight_decay: 0.05, betas: [0.9, 0.99], clip_norm: 1.0}",
    "schedule={name: cosine, warmup_epochs: 0.1}",
    "model.drop_path_rate=0.0",
    "train.label_smoothing=0.1",
    "train.threads=1",
]


def vitrail(command: list[str], log: Path) -> dict[str, Any]:
    """Run one command with --json; return its result line."""
    with log.open("w") as said:
        done = subprocess.run(
            [sys.executable, "-m", "vitrail", *command, "--json"], stdout=subprocess.PIPE, stderr=said
        )
    if done.returncode:
        raise SystemExit(f"vitrail {command[0]} failed; see {log}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def train(seed: int, settings: list[str], args: argparse.Namespace) -> Path:
    """Fine-tune one member, unless that was done; return its folder."""
    folder: Path = args.runs / "classify" / f"member-{seed}"
    if not (folder / "summary.json").exists():
        command = ["train", str(args.data), "--model", "vit_pico_patch4_32", "--seed", str(seed), "--name", folder.name]
        command += ["--epochs", str(args.epochs), "--batch", "64", "--out", str(args.runs)]
        own = [*COMMON, *settings, f"model.pretrained={args.start}", f"data.train_fraction={args.share}"]
        vitrail([*command, *(part for setting in own for part in ("--set", setting))], args.runs / f"{seed}.log")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: train.parquet and test.parquet")
    parser.add_argument("--start", type=Path, required=True, help="trained vit_pico_patch4_32 of bench/small_data.py")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.3, help="share of the training images each member sees")
    parser.add_argument("--runs", type=Path, default=Path("runs/soup"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    folders = {}
    for seed, (name, settings) in enumerate(MEMBERS.items(), start=1):
        folders[name] = train(seed, settings, args)
        print(f"{name}: {folders[name]}", flush=True)


if __name__ == "__main__":
    main()
