"""Does training in bf16 follow training in float32? Both losses in one picture, and the time each took.

    python bench/precision.py PATH/TO/IMAGES --out docs/images/bf16-tracks-float32.svg

Trains ViT-Ti/16 at 224 twice from the same initial weights on the same batches (the loop is a function of the seed),
once with float32 weights, once with bf16 weights and float32 masters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from vitrail.explain.charts import Plot, Series, span_of
from vitrail.explain.colors import PALETTE
from vitrail.training import train


def losses(data: str, precision: str, args: argparse.Namespace, out: str) -> list[tuple[float, float]]:
    """Return (step, training loss) of a run."""
    result = train(
        {
            "out": out,
            "name": precision,
            "model.name": args.model,
            "data.source": data,
            "train.epochs": args.epochs,
            "train.batch_size": args.batch,
            "train.precision": precision,
            "train.log_every": args.every,
            "train.ema_decay": None,
            "optim.lr": args.lr,
            "schedule.warmup_epochs": 0.5,
        }
    )
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    print(f"{precision}: {result.summary['images_per_s']} images/s, last losses {[round(v, 3) for _, v in found[-3:]]}")
    return found


def picture(curves: dict[str, list[tuple[float, float]]], args: argparse.Namespace) -> str:
    """Return both curves as SVG."""
    drawn = [
        Series("float32", curves["fp32"], PALETTE[0]),
        Series("bf16, float32 masters", curves["bf16"], PALETTE[1], dashed=True),
    ]
    points = [p for series in drawn for p in series.points]
    plot = Plot(
        f"{args.model}, batch {args.batch}, the same seed",
        "step",
        "training loss",
        (0.0, max(x for x, _ in points)),
        span_of([y for _, y in points]),
        (680, 380),
    )
    return plot.svg(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--every", type=int, default=4, help="steps that one point averages over")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--out", type=Path, required=True, help="the picture, an .svg")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: losses(args.data, name, args, folder) for name in ("fp32", "bf16")}
    apart = [abs(a - b) for (_, a), (_, b) in zip(curves["fp32"], curves["bf16"], strict=True)]
    print(f"mean distance of the two curves {sum(apart) / len(apart):.4f}, largest {max(apart):.4f}")
    args.out.write_text(picture(curves, args), encoding="utf-8")


if __name__ == "__main__":
    main()
