"""Model soups: members fine-tuned from one start on other pictures, averaged; the best member beside both soups.

    python bench/soup.py --data PATH/TO/sign-digits --weights runs/small-data/classify/vit_pico_patch4_32-1-5/best

The weights come from CIFAR-10 (what bench/small_data.py trains on all of it). The data are 2,062 photographs of hands
that show a digit (Apache-2.0, github.com/ardamavi/Sign-Language-Digits-Dataset), a folder a class. One run fine-tunes
on them with a new head; members go on from it, each as its own ``vitrail train`` with one thread: the same images held
out, another rate, seed or augmentation. Runs that are finished are not run again. Prints the table of
docs/benchmarks/soup.md; exit code 1 if the greedy soup is below its best member on the validation images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PLAIN = ["augment.mixup=0.0", "augment.randaugment=null"]
START, START_SEED, START_EPOCHS = ["optim.lr=2e-3", *PLAIN], 3, 6
MEMBERS = {  # name -> settings of its own; the seed is 10 and the place in this list, from 1
    "rate 2e-3": ["optim.lr=2e-3", *PLAIN],
    "rate 2e-3, another seed": ["optim.lr=2e-3", *PLAIN],
    "rate 3e-3": ["optim.lr=3e-3", *PLAIN],
    "rate 1e-3": ["optim.lr=1e-3", *PLAIN],
    "rate 2e-3, RandAugment": ["optim.lr=2e-3", "augment.randaugment={num_ops: 2, magnitude: 5}", PLAIN[0]],
}
COMMON = [
    "model.options={global_pool: gap, class_token: false, pos_embed: sincos2d}",
    "data.val_fraction=0.2",
    "data.test_fraction=0.3",
    "augment.crop=resized",
    "augment.scale=[0.5, 1.0]",
    "augment.hflip=0.0",
    "augment.erasing=0.0",
    "augment.cutmix=0.0",
    "optim={name: muon, weight_decay: 0.05, betas: [0.9, 0.99]}",
    "train.threads=1",
]


def vitrail(command: list[str], log: Path) -> dict[str, Any]:
    """Run one command with --json; return its result line."""
    with log.open("w") as said:
        line = [sys.executable, "-m", "vitrail", *command, "--json"]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=said)
    if done.returncode:
        raise SystemExit(f"vitrail {command[0]} failed; see {log}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def train(name: str, source: Path, seed: int, epochs: int, settings: list[str], args: argparse.Namespace) -> Path:
    """Fine-tune one model from the weights in ``source``, unless that was done; return its folder."""
    folder: Path = args.runs / "classify" / name
    if not (folder / "summary.json").exists():
        command = ["train", str(args.data), "--model", "vit_pico_patch4_32", "--seed", str(seed), "--name", name]
        command += ["--epochs", str(epochs), "--batch", "32", "--out", str(args.runs)]
        own = [*COMMON, *settings, f"model.pretrained={source}"]
        vitrail([*command, *(part for setting in own for part in ("--set", setting))], args.runs / f"{name}.log")
    print(folder, flush=True)
    return folder


def soup(folders: list[Path], method: str, runs: Path) -> dict[str, Any]:
    """Soup the members; return what ``vitrail soup`` says."""
    out = runs / method
    shutil.rmtree(out, ignore_errors=True)
    return vitrail(["soup", *map(str, folders), f"--{method}", "--out", str(out)], runs / f"{method}.log")


def test_accuracy(folder: Path) -> float:
    """Return what a run reached on its test images."""
    found: float = json.loads((folder / "summary.json").read_text())["results"]["test"]["top1"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="sign-digits, or any folder of classes")
    parser.add_argument("--weights", type=Path, required=True, help="trained vit_pico_patch4_32 of bench/small_data.py")
    parser.add_argument("--epochs", type=int, default=4, help="of each member")
    parser.add_argument("--runs", type=Path, default=Path("runs/soup"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    start = train("start", args.weights, START_SEED, START_EPOCHS, START, args)
    folders = [
        train(f"member-{i}", start / "best", 10 + i, args.epochs, settings, args)
        for i, settings in enumerate(MEMBERS.values(), start=1)
    ]
    greedy, uniform = (soup(folders, method, args.runs) for method in ("greedy", "uniform"))
    print("\n| model | validation | test | in the greedy soup |\n|---|---|---|---|")
    print(f"| start | | {test_accuracy(start):.2%} | |")
    for name, folder, member in zip(MEMBERS, folders, greedy["members"], strict=True):
        kept = "yes" if member["kept"] else "no"
        print(f"| {name} | {member['val']['top1']:.2%} | {test_accuracy(folder):.2%} | {kept} |")
    for name, made in (("greedy soup", greedy), ("uniform soup", uniform)):
        print(f"| **{name}** | {made['val']['top1']:.2%} | {made['test']['top1']:.2%} | |")
    return int(greedy["val"]["top1"] < greedy["best"]["val"]["top1"])


if __name__ == "__main__":
    raise SystemExit(main())
