"""Trains students by one process and by two, and prints how they differ as one JSON line.

Run as a program: ``taught.py DATA UNLABELLED TEACHER WORK``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .group import run_group
from .together import CALM, Runs, fine

STILL = {
    "augment.crop": "none", "augment.hflip": 0, "augment.erasing": 0, "augment.mixup": 0, "augment.cutmix": 0,
    "augment.mix_prob": None, "augment.randaugment": None,
}  # fmt: skip


def main(data: str, unlabelled: str, teacher: str, work: Path) -> None:
    runs = Runs(data, work)
    given = {**CALM, "distill.teacher": teacher}
    unknown = {"distill.unlabelled": unlabelled, "distill.confidence": 0.0}
    found = {}
    for name, changes in (("asked", given), ("kept", {**given, **STILL}), ("labelled", {**given, **unknown})):
        for count in (1, 2):
            fine(run_group(runs.begin(f"{name}{count}", {**changes, "train.accumulation": 3 - count}), count))
        found[name] = {"difference": runs.difference(f"{name}1", f"{name}2")}
    tables = [(runs.folder(f"labelled{count}") / "pseudo_labels.csv").read_text() for count in (1, 2)]
    fine(run_group(runs.go_on("labelled1"), 2))  # what one process was told, two read from the folder
    found["labelled"]["tables"] = tables
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]))
