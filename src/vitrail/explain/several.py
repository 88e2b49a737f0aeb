"""The parts of a report that are particular to several labels an image: its numbers and its table of classes.

There is no confusion matrix: a class is not taken for another where each is a question by itself.
N images, K classes.
"""

from __future__ import annotations

import torch

from vitrail.metrics.multilabel import MultiLabelMetrics

from .page import Cell, table
from .runfolder import Predictions, Run

MOST_ROWS = 400


def measure(found: Predictions) -> MultiLabelMetrics:
    """Return the metrics of a split's predictions, at the thresholds found on validation."""
    metrics = MultiLabelMetrics(found.scores.shape[1], thresholds=found.thresholds)
    metrics.update(torch.from_numpy(found.scores), torch.from_numpy(found.labels))
    return metrics


def numbers(metrics: MultiLabelMetrics, split: str) -> list[tuple[str, str]]:
    """Return the figures of the head of the page, with their names."""
    found = metrics.compute()
    return [
        (f"{100 * found['map']:.1f} %", f"{split} mean average precision"),
        (f"{100 * found['micro_f1_tuned']:.1f} %", "F1 of all answers"),
        (f"{100 * found['macro_f1_tuned']:.1f} %", "mean F1 of the classes"),
        (f"{100 * found['exact_tuned']:.1f} %", "images with every label right"),
        (f"{found['count']:,.0f}", f"{split} images"),
        (f"{metrics.num_classes:,}", "classes"),
    ]


def per_class(run: Run, metrics: MultiLabelMetrics) -> str:
    """Return the sortable table of classes; the weakest classes alone where there are very many."""
    rows = metrics.per_class(run.classes.names)
    note = (
        "<p>Precision, recall and F1 at each class's own threshold, the best on validation; average precision needs "
        "none.</p>"
    )
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda r: (r["ap"], r["name"]))[:MOST_ROWS]
        note += f"<p>The {MOST_ROWS} classes with the lowest average precision of {len(run.classes):,}.</p>"
    cells: list[list[Cell | str]] = [
        [
            r["name"],
            Cell(str(r["support"]), r["support"]),
            *(Cell(f"{100 * r[key]:.1f} %", r[key]) for key in ("ap", "precision", "recall", "f1")),
            Cell(f"{r['threshold']:.3f}", r["threshold"]),
        ]
        for r in rows
    ]
    heads = ["class", "images", "average precision", "precision", "recall", "F1", "threshold"]
    return note + table(heads, cells, sortable=True)
