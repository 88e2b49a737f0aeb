"""Segmentation beside transformers: UPerNet and SegFormer with the same weights, one process, turn by turn.

    python bench/segment.py inference                  # float32 eager
    python bench/segment.py train                      # a step with the auxiliary head: bf16 and float32
    python bench/segment.py train segformer_b0 --side 256

What is compared are processor seconds (they depend less on what else runs than the clock does), in ratios of a round:
the median, and the quartiles. Each line is a row of the table in docs/benchmarks/segmentation.md. transformers' UPerNet
resizes its logits to the image in its forward pass; ours are resized with it, so that both do the same work. Each model
runs in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from pairs import Peer, peers, peers_of
from speed import Run, alternate
from vitrail.data.masks import MaskBatch
from vitrail.models import build, config_of, configure
from vitrail.nn.dense import resize_map
from vitrail.tasks.segment import Segment
from vitrail.training.optim import Masters
from vitrail.weights import load_weights

MODELS = ("upernet_swin_tiny", "segformer_b0")
CLASSES = 150


def report(what: str, times: dict[str, list[float]], ours: str, others: list[str]) -> None:
    """Print how many times faster ``ours`` is than others."""
    for name in others:
        ratios = [t / o for t, o in zip(times[name], times[ours], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        seconds = statistics.median(times[ours])
        print(f"| {what} | {ours} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {seconds:.2f} s |", flush=True)


def ours_of(peer: Peer) -> nn.Module:
    """Return our model with the weights of a peer."""
    model = build(peer.config).eval()
    load_weights(model, peer.model.state_dict())
    return model


@torch.inference_mode()
def inference(name: str, peer: Peer, batch: int, side: int, rounds: int) -> None:
    """Float32 eager forward, logits at the size that transformers gives them."""
    images, ours = torch.randn(batch, 3, side, side), ours_of(peer)
    size = tuple(peer.run(images).shape[2:])
    gap = peers.relative_difference(resize_map(ours(images), size), peer.run(images))
    if gap > 1e-5:
        raise SystemExit(f"{name}: transformers computes something else, {gap:.1e} away")
    runs: dict[str, Run] = {
        "Vitrail": lambda: resize_map(ours(images), size),
        "transformers": lambda: peer.run(images),
    }
    what = f"`{name}`, inference, {side} x {side}, batch {batch}"
    report(what, alternate(runs, rounds, time.process_time), "Vitrail", ["transformers"])


def train(name: str, peer: Peer, batch: int, side: int, rounds: int) -> None:
    """A step: forward, cross entropy at the masks' size and of the auxiliary head, backward, AdamW."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator)
    masks = torch.randint(0, CLASSES, (batch, side, side), generator=generator, dtype=torch.uint8)
    bf16, float32, theirs = "Vitrail, bf16", "Vitrail, float32", "transformers, float32"
    runs = {
        bf16: our_step(peer, torch.bfloat16, images, masks),
        float32: our_step(peer, torch.float32, images, masks),
        theirs: their_step(peer, images, masks),
    }
    times = alternate(runs, rounds, time.process_time)
    what = f"`{name}`, training step, {side} x {side}, batch {batch}"
    report(what, times, float32, [theirs])
    report(what, times, bf16, [theirs, float32])


def our_step(peer: Peer, dtype: torch.dtype, images: Tensor, masks: Tensor) -> Run:
    """Return a step of Vitrail's loop: working weights in ``dtype``, float32 masters."""
    model = ours_of(peer).train()
    settings = {"name": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    masters = Masters(model, SimpleNamespace(**settings, layer_decay=None, head_weight_decay=None), dtype)
    task, count = Segment(CLASSES), len(images)
    keep, indices = torch.ones(count, dtype=torch.bool), torch.arange(count)
    batch = MaskBatch(images.to(dtype), keep, indices, tuple(masks))

    def step() -> float:
        loss = task.step(model, batch)["loss"]
        loss.backward()
        masters.gather()
        masters.update(1e-5)
        return float(loss.detach())

    return step


def their_step(peer: Peer, images: Tensor, masks: Tensor) -> Run:
    """Return the same step with their model and torch's AdamW, fused, in float32."""
    model = peer.model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
    labels = masks.long()

    def step() -> float:
        optimizer.zero_grad()
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inference", "train"])
    parser.add_argument("models", nargs="*", help=f"names; default: {', '.join(MODELS)}")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one model, in this process
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.alone:
        (name,) = args.models
        config = configure(config_of(name), {"img_size": args.side, "num_classes": CLASSES})
        peer = peers_of(name, config)[0]()
        {"inference": inference, "train": train}[args.what](name, peer, args.batch, args.side, args.rounds)
        return
    versions = ", ".join(f"{p.__name__} {p.__version__}" for p in (torch, peers.transformers))
    print(f"{versions}, {torch.get_num_threads()} threads")
    print("| what | of | against | times as fast | processor time |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in args.models or MODELS:
        more = ["--batch", str(args.batch), "--side", str(args.side), "--rounds", str(args.rounds)]
        subprocess.run([sys.executable, __file__, args.what, name, *more, "--alone"], check=True)


if __name__ == "__main__":
    main()
