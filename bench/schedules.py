"""The picture of all learning-rate schedules in the documentation: the functions themselves, drawn.

python bench/schedules.py        # writes docs/images/schedules.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import PALETTE
from vitrail.training.schedule import Schedule

EPOCHS, PER_EPOCH = 100, 10
CURVES = {
    "cosine": Schedule("cosine", 1.0, 1000, warmup=50, min_lr=0.01),
    "linear": Schedule("linear", 1.0, 1000, warmup=50, min_lr=0.01),
    "constant, cooled": Schedule("constant", 1.0, 1000, warmup=50, cooldown=200),
    "rsqrt": Schedule("rsqrt", 1.0, 1000, warmup=50, cooldown=200, timescale=50),
}
STOPPED = Schedule("rsqrt", 1.0, 500, warmup=50, cooldown=100, timescale=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/schedules.svg"))
    args = parser.parse_args()
    series = [
        Series(name, [(i / PER_EPOCH, s(i)) for i in range(0, s.total + 1, 5)], PALETTE[n])
        for n, (name, s) in enumerate(CURVES.items())
    ]
    early = STOPPED.total - STOPPED.cooldown
    points = [(i / PER_EPOCH, STOPPED(i)) for i in range(early, STOPPED.total + 1, 5)]
    series.append(Series("rsqrt, stopped at 50", points, PALETTE[len(series) - 1], dashed=True))
    plot = Plot(
        "Learning rate over a run of 100 epochs, 5 of warm-up",
        "epoch",
        "share of the highest rate",
        (0.0, float(EPOCHS)),
        (0.0, 1.05),
        (760, 380),
    )
    args.picture.write_text(plot.svg(series), encoding="utf-8")


if __name__ == "__main__":
    main()
