"""Memory of a process that holds a slice of a model, or all of it: measured, and as `vitrail plan` predicts it.

    torchrun --standalone --nproc-per-node=2 bench/slices.py                    # ViT-L's width, 6 blocks, in slices
    torchrun --standalone --nproc-per-node=2 bench/slices.py --depth 12 --precision bf16 --parallel ddp

It is a real session of the training loop on random images. The memory is the peak of the process's resident set
during some steps, less what Python and its libraries took before (Linux; large blocks are given back at once:
MALLOC_MMAP_THRESHOLD_ is set). The prediction is `predict_memory` of `vitrail plan`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
if os.environ.get("MALLOC_TOP_PAD_") is None:  # read when the process starts: begin again with both set
    os.environ["MALLOC_TOP_PAD_"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import torch

from vitrail.classes import ClassMap
from vitrail.data.imageset import ArrayStore, ImageSet
from vitrail.data.sources import Splits
from vitrail.training.defaults import measure, resolve
from vitrail.training.plan import Network, predict_memory
from vitrail.training.progress import Progress
from vitrail.training.recipe import Recipe
from vitrail.training.session import Identity, Session
from vitrail.training.signals import Stop
from vitrail.training.world import World, open_world

MIB = 2**20


def noise(count: int, side: int) -> Splits:
    """Return random pictures of two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    images = ImageSet(ArrayStore("noise", pixels), np.arange(count), labels, ClassMap(("a", "b"), ("a", "b")))
    return Splits(images, images, None, images.classes)


def status(name: str) -> int:
    """Return one line of /proc/self/status (VmRSS, VmHWM) in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"expected {name} in /proc/self/status; this bench needs Linux")


def recipe_for(args: argparse.Namespace, parallel: str) -> Recipe:
    content: dict[str, Any] = {
        "model": {"name": args.model, "img_size": args.side, "options": {"depth": args.depth}},
        "optim": {"name": "adamw"},
        "train": {"batch_size": args.batch, "epochs": 1, "precision": args.precision, "parallel": parallel},
    }
    return Recipe.load(content, environment={})


def session_of(args: argparse.Namespace, parallel: str, splits: Splits, world: World) -> Session:
    """Return a session on random images, in a folder that is thrown away."""
    settled, _ = resolve(recipe_for(args, parallel), measure(splits.train), torch.device("cpu"), has_val=True)
    identity = Identity({}, splits.classes.to_json(), settled.flat())
    return Session(Path(tempfile.mkdtemp()), settled, splits, identity, Progress(None, world.first), world)


def run(args: argparse.Namespace, parallel: str, world: World) -> None:
    """Train some steps one way; the first process prints the line."""
    splits = noise(args.batch * args.steps, args.side)
    before = status("VmRSS")
    session = session_of(args, parallel, splits, world)
    loop = session.loop()
    loop.replay(1)  # lazy buffers are made
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: building is not training
    with Stop(print):
        loop.replay(args.steps - 1)
    peak = status("VmHWM") - before
    network = Network.of(session.slices.skeleton if session.slices is not None else session.model)
    # what a step takes with next to no activations: of whole copies the gradients in the model's own type
    work = network.working(args.precision) if parallel == "ddp" else 0
    predicted = predict_memory(
        network, precision=args.precision, moments=8 * network.params, ema=session.ema is not None, work=work,
        parallel=parallel, processes=world.size,
    )  # fmt: skip
    peaks = world.collect(peak)
    if world.first:
        worst = max(peaks)
        print(
            f"{parallel}, {world.size} processes, {args.precision}, {network.whole / 1e6:.0f} M parameters: "
            f"{worst / MIB:,.0f} MiB a process, {predicted.total / MIB:,.0f} MiB predicted without activations, "
            f"ratio {worst / predicted.total:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--side", type=int, default=32, help="pixels: few, so that weights decide")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="fsdp")
    args = parser.parse_args()
    with open_world() as world:
        run(args, args.parallel, world)


if __name__ == "__main__":
    main()
