"""Speed of detectors beside transformers: same weights, one process, turn by turn, in seconds of one processor.

    python bench/detr.py inference detr_resnet50 --size 320 416     # float32 eager forward
    python bench/detr.py train detr_resnet50 --size 256 320         # our bf16 and float32 steps, their float32 step
    python bench/detr.py train deformable_detr_resnet50 --layers 2   # of fewer layers

A step is forward, a loss of all that the network gives (of every decoder layer on our side, of the last on theirs),
backward and AdamW. Ratios are of processor seconds, which neighbours on the machine disturb less than they disturb
clocks; each is the median of its rounds, with the quartiles. Each line is a row of docs/benchmarks/detr.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn

from pairs import peers, transformers_peer
from speed import Run, alternate, report
from vitrail.models import build, config_of, configure
from vitrail.weights import configs, load_weights


def pair(name: str, size: tuple[int, int], layers: int | None) -> tuple[nn.Module, nn.Module]:
    """Return (ours, theirs) with the same weights, in evaluation."""
    changes: dict[str, Any] = {"img_size": size}
    if layers is not None:
        changes |= {"encoder_layers": layers, "decoder_layers": layers}
    config = configure(config_of(name), changes)
    theirs = transformers_peer(configs.to_transformers(config, None), config).model
    ours = build(config).eval()
    load_weights(ours, theirs.state_dict())
    return ours, theirs


@torch.inference_mode()
def inference(name: str, ours: nn.Module, theirs: nn.Module, images: Tensor, rounds: int) -> None:
    """Float32 eager forward."""
    logits, boxes = ours(images).layer(-1)
    given = theirs(pixel_values=images)
    mine, other = torch.cat((logits, boxes), -1), torch.cat((given.logits, given.pred_boxes), -1)
    if "two_stage" in name:  # proposals whose scores differ in the last bits come in another order
        other = other.gather(1, torch.cdist(mine, other).argmin(-1)[..., None].expand_as(other))
    gap = peers.relative_difference(mine, other)
    if gap > 1e-4:
        raise SystemExit(f"{name}: transformers computes something else, {gap:.1e} away")
    runs: dict[str, Run] = {
        "Vitrail": lambda: ours(images),
        "transformers, float32": lambda: theirs(pixel_values=images),
    }
    report(f"`{name}`, {tuple(images.shape)}, float32", alternate(runs, rounds, time.process_time), "Vitrail")


def our_step(model: nn.Module, dtype: torch.dtype, images: Tensor) -> Run:
    """Return a step of ours, all layers in the loss; working weights in ``dtype``."""
    model = model.to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        found = model(images.to(dtype))
        (found.logits.float().square().mean() + found.boxes_cxcywh01.square().mean()).backward()
        optimizer.step()

    return step


def their_step(model: nn.Module, images: Tensor) -> Run:
    """Return the same step with transformers' model."""
    model = model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        found = model(pixel_values=images)
        (found.logits.square().mean() + found.pred_boxes.square().mean()).backward()
        optimizer.step()

    return step


def train(name: str, ours: nn.Module, theirs: nn.Module, images: Tensor, rounds: int) -> None:
    """A training step: theirs in float32, ours in bf16 and in float32. The same parameters learn on both sides."""
    for name_of, parameter in ours.named_parameters():
        parameter.requires_grad_(not name_of.startswith(("backbone.backbone.stem", "backbone.backbone.stages.0")))
    half = build(ours.config)
    half.load_state_dict(ours.state_dict())
    for mine, other in zip(half.parameters(), ours.parameters(), strict=True):
        mine.requires_grad_(other.requires_grad)
    runs = {
        "Vitrail, bf16": our_step(half, torch.bfloat16, images),
        "Vitrail, float32": our_step(ours, torch.float32, images),
        "transformers, float32": their_step(theirs, images),
    }
    times = alternate(runs, rounds, time.process_time)
    shape = tuple(images.shape)
    report(f"`{name}`, {shape}, step in bf16", times, "Vitrail, bf16")
    del times["Vitrail, bf16"]
    report(f"`{name}`, {shape}, step in float32", times, "Vitrail, float32")


def main() -> None:
    """Read the arguments, run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inference", "train"])
    parser.add_argument("name", nargs="?", default="detr_resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416))
    parser.add_argument("--layers", type=int, help="of encoder and decoder, where fewer are to be measured")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    ours, theirs = pair(args.name, tuple(args.size), args.layers)
    images = torch.randn(args.batch, 3, *args.size)
    (inference if args.what == "inference" else train)(args.name, ours, theirs, images, args.rounds)


if __name__ == "__main__":
    main()
