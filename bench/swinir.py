"""SwinIR beside spandrel's with the same weights, and large pictures in tiles.

    python bench/swinir.py inference                 # float32 eager, turn by turn, in processor seconds
    python bench/swinir.py train                     # our bf16 training step against their float32 step
    python bench/swinir.py memory                    # bytes a pixel of each kind of network, beside what is assumed
    python bench/swinir.py tiles [--run RUN] [--picture FILE] [--side 3000x4000]   # time, peak memory, seam error

Each line is a row of a table in docs/benchmarks/restoration.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.peers import relative_difference

from speed import Run, alternate, report
from vitrail.data.decode import read_image
from vitrail.infer.restorer import Restorer, load_restorer
from vitrail.infer.tile import pixel_bytes, restore_tiled, seam_error, tiling_for
from vitrail.models import build, config_of, create_model
from vitrail.training.optim import Masters
from vitrail.weights import Card, load_weights

INFERENCE = {"swinir_light_x2": 96, "swinir_light_x4": 64, "swinir_color_denoise": 48, "swinir_classical_m_x2": 48}
TRAINING = {"swinir_light_x2": (4, 48), "swinir_light_denoise": (4, 48), "swinir_classical_m_x2": (1, 48)}
KINDS = (
    "swinir_classical_m_x2",
    "swinir_classical_m_x4",
    "swinir_classical_m_x8",
    "swinir_light_x2",
    "swinir_light_x4",
    "swinir_real_m_x2",
    "swinir_real_m_x4",
    "swinir_real_l_x4",
    "swinir_color_denoise",
    "swinir_gray_jpeg",
    "swinir_nano_x2",
    "swinir_nano_denoise",
)


def both(name: str) -> tuple[Any, Any]:
    """Return our network and theirs, with the same random weights."""
    from tests.parity.test_swinir import filled  # here, so that it takes no memory elsewhere

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = filled(config_of(name))
    ours = build(config_of(name)).eval()
    load_weights(ours, theirs.state_dict())
    return ours, theirs


def inference(name: str, rounds: int) -> None:
    """Float32 forward of one picture."""
    (ours, theirs), side = both(name), INFERENCE[name]
    x = torch.rand(1, ours.config.in_chans, side, side)
    with torch.inference_mode():
        gap = relative_difference(ours(x), theirs(x))
        if gap > 1e-5:
            raise SystemExit(f"{name}: spandrel computes something else, {gap:.1e} away")
        runs: dict[str, Run] = {"Vitrail": lambda: ours(x), "spandrel, float32": lambda: theirs(x)}
        report(f"`{name}`, {side} x {side}, float32", alternate(runs, rounds, time.process_time), "Vitrail")


def train(name: str, rounds: int) -> None:
    """A whole step: forward, L1, backward, AdamW."""
    (ours, theirs), (batch, side) = both(name), TRAINING[name]
    settings = {"name": "adamw", "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    masters = Masters(
        ours.train(), SimpleNamespace(**settings, layer_decay=None, head_weight_decay=None), torch.bfloat16
    )
    optimizer = torch.optim.AdamW(theirs.train().parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    s, c = ours.config.upscale, ours.config.in_chans
    x, y = torch.rand(batch, c, side, side), torch.rand(batch, c, s * side, s * side)

    def our_step() -> None:
        (ours(x.bfloat16()).float() - y).abs().mean().backward()
        masters.gather()
        masters.update(1e-4)

    def their_step() -> None:
        optimizer.zero_grad()
        (theirs(x) - y).abs().mean().backward()
        optimizer.step()

    runs: dict[str, Run] = {"Vitrail, bf16": our_step, "spandrel, float32": their_step}
    times = alternate(runs, rounds, time.process_time)
    report(f"`{name}`, {batch} patches of {side} x {side}, bf16", times, "Vitrail, bf16")


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def memory(name: str) -> None:
    """Bytes a pixel, of two groups of two blocks: inference keeps no more of a deeper network."""
    config = config_of(name)
    config = dataclasses.replace(config, depths=(2, 2), num_heads=config.num_heads[:1] * 2)
    model, x = build(config).eval(), torch.rand(1, config.in_chans, 256, 256)
    with torch.inference_mode():
        model(x[:, :, :32, :32])
        before = peak()
        model(x)
    print(f"| `{name}` | {(peak() - before) / 256**2:,.0f} | {pixel_bytes(config):,} |", flush=True)


def tiles(run: str | None, picture: str | None, side: str, depths: tuple[int, ...]) -> None:
    """A large picture in tiles: seconds, peak memory, and the seam error of a part of it that fits whole."""
    height, width = (int(n) for n in side.split("x"))
    if run:
        restorer = load_restorer(run)
    else:
        model = create_model("swinir_light_x2", depths=depths, num_heads=(6,) * len(depths))
        restorer = Restorer(model, Card(name="swinir_light_x2"))
    if picture:
        small = np.ascontiguousarray(read_image(picture).permute(1, 2, 0).numpy())
        large = np.tile(small, (-(-height // small.shape[0]), -(-width // small.shape[1]), 1))[:height, :width]
    else:
        large = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    tiling = restorer.tiling()
    start, before = time.process_time(), peak()
    made = restore_tiled(restorer.run, large, tiling)
    seconds = time.process_time() - start
    megabytes = [n / 2**20 for n in (before, peak(), made.nbytes)]
    print(
        f"{width} x {height} to {made.shape[1]} x {made.shape[0]} in tiles of {tiling.side}: {seconds:,.0f} processor "
        f"seconds; {megabytes[0]:,.0f} MiB before, {megabytes[1]:,.0f} MiB at most, of which {megabytes[2]:,.0f} the "
        "result"
    )
    if picture:
        for cut in (64, 128, 256):
            found = tiling_for(restorer.model.config, cut)
            error = seam_error(restorer.run, small[:384, :384], found)
            print(f"seam error in tiles of {found.side} with an overlap of {found.overlap}: {error:.2e} of the range")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["inference", "train", "memory", "tiles"])
    parser.add_argument("models", nargs="*", help="names; default: one of each kind")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--run", help="of tiles: a trained run; default: random weights of swinir_light_x2")
    parser.add_argument("--picture", help="of tiles: an image that is laid side by side; default: noise")
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[6] * 4, help="of tiles with random weights: memory is that of any"
    )
    parser.add_argument("--side", default="3000x4000", help="of tiles: height x width")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.what == "tiles":
        return tiles(args.run, args.picture, args.side, tuple(args.depths))
    if len(args.models) == 1:  # one network, in this process
        one = {"inference": inference, "train": train}.get(args.what)
        return memory(args.models[0]) if one is None else one(args.models[0], args.rounds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    usual = {"inference": INFERENCE, "train": TRAINING, "memory": KINDS}[args.what]
    for name in args.models or usual:
        subprocess.run([sys.executable, __file__, args.what, name, "--rounds", str(args.rounds)], check=True)


if __name__ == "__main__":
    main()
