"""Sampling 32 x 32 pictures from an image GPT: Vitrail's against transformers' ``generate``, the same weights.

    python bench/igpt_sampling.py                     # igpt_micro_32 and a network of igpt_s's width
    python bench/igpt_sampling.py --count 4 --rounds 5

Both draw 1,024 pixels a picture with a cache of keys and values, from the same probabilities (temperature 1, top-k 40),
in float32. They take turns in one process, so that what else the machine does hits both alike. Told are the median
seconds a sheet, the ratio of each round, and the processor time beside the wall clock. Chance is drawn differently, so
the pictures are not the same; that the logits are is checked first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.peers import transformers

from vitrail.infer.pixels import Painter
from vitrail.models import build, variants
from vitrail.weights import Card, export_weights
from vitrail.weights.configs import to_transformers

SIDE, TOP_K = 32, 40
NETWORKS = {"igpt_micro_32": {}, "igpt_s, 2 blocks of 24": {"embed_dim": 512, "depth": 2, "num_heads": 8}}


def pair(fields: dict[str, Any]) -> tuple[Painter, Any]:
    """Return our painter and transformers' model, of the same random weights."""
    torch.manual_seed(0)
    config = replace(variants()["igpt_micro_32"], **fields)
    model = build(config).eval()
    torch.nn.init.normal_(model.pixel_head.weight, std=0.05)
    theirs = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**to_transformers(config, None)))
    theirs.load_state_dict(export_weights(model, "transformers"))
    return Painter(model, Card(input_size=(SIDE, SIDE)), device="cpu"), theirs.eval()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return (seconds, processor seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(fields: dict[str, Any], count: int, rounds: int) -> dict[str, Any]:
    """Return what both took, round by round."""
    painter, theirs = pair(fields)
    start = torch.full((count, 1), painter.model.config.start)
    pixels = torch.randint(painter.model.config.colours, (count, 64))
    with torch.inference_mode():
        gap = painter.model(pixels) - theirs(torch.cat([start, pixels[:, :-1]], 1)).logits

    def ours() -> Any:
        return painter.sample(count, top_k=TOP_K)

    def peer() -> Any:
        with torch.inference_mode():
            return theirs.generate(start, max_length=SIDE * SIDE + 1, do_sample=True, top_k=TOP_K, temperature=1.0)

    found = [(timed(ours), timed(peer)) for _ in range(rounds)]
    mine, other = ([pair[i] for pair in found] for i in (0, 1))
    return {
        "pictures": count,
        "largest difference of logits": float(gap.abs().max()),
        "ours_s": statistics.median(s for s, _ in mine),
        "transformers_s": statistics.median(s for s, _ in other),
        "ours_cpu_s": statistics.median(c for _, c in mine),
        "transformers_cpu_s": statistics.median(c for _, c in other),
        "ratios": [round(b[0] / a[0], 2) for a, b in zip(mine, other, strict=True)],
        "cpu_ratios": [round(b[1] / a[1], 2) for a, b in zip(mine, other, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4, help="pictures at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    chosen = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    for name in chosen.networks:
        print(name, json.dumps(compare(NETWORKS[name], chosen.count, chosen.rounds), indent=1), flush=True)


if __name__ == "__main__":
    main()
