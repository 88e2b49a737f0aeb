"""The accuracy curve of a finished run, as a picture for the documentation.

python bench/curve.py runs/classify/NAME --out docs/images/NAME.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import PALETTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the picture, an .svg")
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((args.run / "summary.json").read_text())
    points = [(line["epoch"], line["top1"]) for line in lines if line["kind"] == "val"]
    test = summary["results"]["test"]["top1"]
    plot = Plot(
        f"{summary['model']}: {100 * test:.1f} % on {summary['images']['test']:,} test images",
        "epoch",
        "accuracy on validation",
        (0.0, max(x for x, _ in points)),
        (min(y for _, y in points) - 0.03, max(test, *(y for _, y in points)) + 0.03),
        (680, 380),
        percent=True,
        x_whole=True,
    )
    args.out.write_text(plot.svg([Series("validation", points, PALETTE[2])]), encoding="utf-8")


if __name__ == "__main__":
    main()
