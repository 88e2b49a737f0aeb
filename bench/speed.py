"""Speed beside the libraries people would use instead: same weights, one process, turn by turn.

    python bench/speed.py inference                        # float32 eager, a model of each family, at its own size
    python bench/speed.py inference resnet18 --batch 16    # of another model
    python bench/speed.py train                            # our bf16 step against their float32 step
    python bench/speed.py attention                        # plain products against the fused kernel, bf16

Absolute times depend on the machine and its neighbours; the ratio of each round, ours against theirs a moment later, is
what is reported: its median, and the quartiles. Each line is a row of the table in docs/benchmarks/speed.md. Each pair
has a process of its own: in one that has run other models, the allocator keeps more memory, and page faults, which are
a good part of a forward pass, fall to neither side.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pairs import Peer, peers, peers_of
from vitrail.models import build, config_of
from vitrail.nn import attention
from vitrail.training.optim import Masters
from vitrail.weights import load_weights

Run = Callable[[], object]

INFERENCE = {  # model -> batch
    "vit_small_patch16_224": 8,
    "deit_small_distilled_patch16_224": 8,
    "resnet50": 8,
    "resnetv2_50x1_bit": 8,
    "vit_small_r26_s32_224": 8,
    "vit_base_r50_s16_224": 4,
    "swin_tiny_patch4_window7_224": 8,
    "pvt_tiny": 8,
    "pvt_small": 8,
    "pvt_v2_b0": 8,
    "pvt_v2_b2": 8,
    "pvt_v2_b2_li": 8,
    "coatnet_0_224": 8,
    "coatnet_rmlp_1_rw_224": 4,
}
TRAINING = {
    "vit_tiny_patch16_224": 16,
    "resnet50": 8,
    "resnetv2_50x1_bit": 8,
    "vit_small_r26_s32_224": 8,
    "swin_tiny_patch4_window7_224": 16,
    "pvt_tiny": 8,
    "pvt_v2_b2": 8,
    "coatnet_0_224": 8,
}


def alternate(
    runs: dict[str, Run], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; runs take turns, and the order turns round too.

    ``clock``: ``time.process_time`` on a machine that others use too.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            start = clock()
            runs[name]()
            times[name].append(clock() - start)
    return times


def report(what: str, times: dict[str, list[float]], ours: str) -> None:
    """Print how many times faster ``ours`` is than each other one, a row of a table for each."""
    for name in times:
        if name != ours:
            ratios = [t / o for t, o in zip(times[name], times[ours], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"| {what} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


def ours_of(peer: Peer) -> nn.Module:
    """Return our model with the weights of a peer, in evaluation."""
    model = build(peer.config).eval()
    load_weights(model, peer.model.state_dict())
    return model


@torch.inference_mode()
def inference(name: str, peer: Peer, batch: int, rounds: int) -> None:
    """Float32 eager forward of one model, beside one library."""
    images, ours = torch.randn(batch, peer.config.in_chans, *peer.config.img_size), ours_of(peer)
    gap = peers.relative_difference(ours(images), peer.run(images))
    if gap > 1e-5:
        raise SystemExit(f"{name}: {peer.library} computes something else, {gap:.1e} away")
    runs: dict[str, Run] = {"Vitrail": lambda: ours(images), f"{peer.library}, float32": lambda: peer.run(images)}
    report(f"`{name}`, batch {batch}, float32", alternate(runs, rounds), "Vitrail")


def train(name: str, peer: Peer, batch: int, rounds: int) -> None:
    """A whole training step of one model: forward, loss, backward, AdamW; bf16 and float32 beside one library."""
    config = peer.config
    images = torch.randn(batch, config.in_chans, *config.img_size)
    labels = torch.randint(0, config.num_classes, (batch,))
    runs = {
        "Vitrail, bf16": our_step(peer, torch.bfloat16, images, labels),
        "Vitrail, float32": our_step(peer, torch.float32, images, labels),
        f"{peer.library}, float32": their_step(peer, images, labels),
    }
    report(f"`{name}`, batch {batch}, bf16", alternate(runs, rounds), "Vitrail, bf16")


def our_step(peer: Peer, dtype: torch.dtype, images: Tensor, labels: Tensor) -> Run:
    """Return a step of Vitrail's loop: working weights in ``dtype``, float32 masters."""
    model = ours_of(peer).train()
    settings = {"name": "adamw", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}
    masters = Masters(model, SimpleNamespace(**settings, layer_decay=None, head_weight_decay=None), dtype)

    def step() -> float:
        loss = loss_of(model(images.to(dtype)), labels)
        loss.backward()
        masters.gather()
        masters.update(1e-3)
        return float(loss.detach())

    return step


def their_step(peer: Peer, images: Tensor, labels: Tensor) -> Run:
    """Return the same step with their model and torch's AdamW, fused, in float32."""
    model = peer.model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(peer.run(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def loss_of(logits: Tensor | tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy, of both heads of a distilled model."""
    heads = logits if isinstance(logits, tuple) else (logits,)
    return torch.stack([F.cross_entropy(head.float(), labels) for head in heads]).mean()


def kernels(rounds: int) -> None:
    """Forward and backward of attention alone, bf16: plain products against the fused kernel."""
    for b, h, n, d in ((128, 4, 64, 32), (16, 3, 197, 64), (8, 6, 197, 64), (2, 12, 577, 64)):
        q, k, v = (torch.randn(b, h, n, d, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

        def run(most: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            attention.MOST_WEIGHTS = most
            attention.attend(q, k, v).sum().backward()

        times = alternate({"products": lambda r=run: r(2**40), "fused kernel": lambda r=run: r(0)}, rounds)
        report(f"attention alone, B {b}, H {h}, N {n}, D {d}, bf16", times, "products")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inference", "train", "attention"])
    parser.add_argument("models", nargs="*", help="names; default: one or two of each family")
    parser.add_argument("--batch", type=int, help="images at a time; default: by model, else 8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)  # one pair, in this process
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.peer is not None:
        name = args.models[0]
        run = {"inference": inference, "train": train}[args.what]
        run(name, peers_of(name, config_of(name))[args.peer](), args.batch, args.rounds)
        return
    versions = ", ".join(f"{p.__name__} {p.__version__}" for p in (torch, peers.timm, peers.transformers))
    print(f"{versions}, {torch.get_num_threads()} threads")
    print("| what | against | Vitrail is faster by |\n| --- | --- | --- |", flush=True)
    if args.what == "attention":
        kernels(args.rounds)
        return
    usual = INFERENCE if args.what == "inference" else TRAINING
    for name in args.models or usual:
        more = ["--batch", str(args.batch or usual.get(name, 8)), "--rounds", str(args.rounds)]
        for index in range(len(peers_of(name, config_of(name)))):
            subprocess.run([sys.executable, __file__, args.what, name, *more, "--peer", str(index)], check=True)


if __name__ == "__main__":
    main()
