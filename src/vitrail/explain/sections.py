"""The parts of a report that are numbers: result, curves, confusion, classes, calibration, recipe, commands.

Each function returns markup, or an empty string where a run has nothing to show. N images, K classes.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.metrics.classification import ClassificationMetrics
from vitrail.metrics.multilabel import MultiLabelMetrics

from . import several
from .charts import Plot, Series, span_of, text_of
from .colors import BLUE, GREEN, MUTED, ORANGE
from .matrix import confusion_svg, most_confused
from .page import Cell, commands, facts, figure, table
from .runfolder import Predictions, Run

MOST_ROWS, MOST_BROKEN = 400, 20
FEW_POINTS = 40  # a curve of fewer is drawn as it is


def measure(found: Predictions, classes: int) -> ClassificationMetrics:
    """Return the metrics of a split's predictions."""
    metrics = ClassificationMetrics(classes)
    metrics.update(torch.from_numpy(found.scores), torch.from_numpy(found.labels))
    return metrics


def percent(value: float) -> str:
    """Return a share of 1 with as many digits as a reader needs: 97.8 %."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def margin(share: float, count: int) -> float:
    """Return half the width of the 95 % Wilson interval of a share measured on ``count`` images."""
    z = 1.96
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))


def header(run: Run, metrics: ClassificationMetrics | MultiLabelMetrics | None) -> str:
    """Say what was trained, on what, and with which result."""
    model, data = dig(run.recipe, "model", "name"), dig(run.recipe, "data", "source")
    title = f"<h1>{text_of(model or 'A model')} on {text_of(Path(data).name if data else 'data')}</h1>"
    said = []
    if run.summary.get("params"):
        said.append(f"{run.summary['params']:,} parameters")
    if dig(run.summary, "images", "train"):
        said.append(f"{run.summary['images']['train']:,} training images")
    if run.summary.get("epochs"):
        said.append(f"{run.summary['epochs']:,} epochs")
    if run.summary.get("seconds"):
        said.append(f"{duration(float(run.summary['seconds']))} on {run.environment.get('device', 'this machine')}")
    line = f'<p class="muted">{text_of(", ".join(said))}<br>{text_of(run.folder)}</p>'
    if metrics is None or run.predictions is None:
        return title + line + "<p>There are no predictions in this run yet.</p>"
    split = run.predictions.split
    shown = several.numbers(metrics, split) if isinstance(metrics, MultiLabelMetrics) else _numbers(run, metrics, split)
    note = f"Measured with the best weights (chosen on validation) on {split}; ± is half the 95 % interval."
    note = note if isinstance(metrics, ClassificationMetrics) else note.partition(";")[0] + "."
    return f'{title}{line}{facts(shown)}<p class="note">{note}</p>'


def _numbers(run: Run, metrics: ClassificationMetrics, split: str) -> list[tuple[str, str]]:
    numbers = metrics.compute()
    count, top1 = int(numbers["count"]), numbers["top1"]
    shown = [
        (percent(top1), f"{split} accuracy, ± {100 * margin(top1, count):.1f}"),
        (percent(numbers["macro_recall"]), "balanced accuracy"),
        (percent(numbers["macro_f1"]), "mean F1 of the classes"),
        (percent(numbers["ece"]), "calibration error"),
        (f"{count:,}", f"{split} images"),
        (f"{len(run.classes):,}", "classes"),
    ]
    if len(run.classes) > 10:
        shown.insert(1, (percent(numbers["top5"]), "top-5 accuracy"))
    return shown


def data(run: Run) -> str:
    """Say which images there were, what was decided about them, and what could not be used."""
    counts = run.summary.get("images")
    parts = []
    if isinstance(counts, dict) and counts:
        parts.append(f"<p>Images: {text_of(', '.join(f'{n:,} {name}' for name, n in counts.items()))}.</p>")
    said = [str(note) for note in run.summary.get("notes") or []]
    if run.summary.get("skipped"):
        said.append(f"{run.summary['skipped']} training steps were skipped; metrics.jsonl says why.")
    if said:
        parts.append("<ul>" + "".join(f"<li>{text_of(note)}</li>" for note in said) + "</ul>")
    broken = [str(name) for name in run.summary.get("unreadable") or []]
    if broken:
        listed = "".join(f"<li>{text_of(name)}</li>" for name in broken[:MOST_BROKEN])
        more = f"<li>and {len(broken) - MOST_BROKEN} more</li>" if len(broken) > MOST_BROKEN else ""
        parts.append(f"<h3>{len(broken)} images that could not be read</h3><ul>{listed}{more}</ul>")
    return "".join(parts)


def dig(tree: dict[str, Any], *keys: str) -> Any:
    """Return a nested value, or None."""
    found: Any = tree
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def duration(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def curves(run: Run) -> str:
    """Draw loss, accuracy and learning rate by epoch."""
    best = run.summary.get("best") if isinstance(run.summary.get("best"), dict) else None
    marks = [(float(best["epoch"]), "best")] if best and best.get("epoch") is not None else []
    raw = run.curve("train", "loss")
    losses = [Series("train", smooth(raw), BLUE), Series("validation", run.curve("val", "loss"), ORANGE)]
    if len(raw) >= FEW_POINTS:
        losses.insert(0, Series("", raw, BLUE, faint=True))
    key, title = ("map", "Mean average precision") if run.curve("val", "map") else ("top1", "Accuracy")
    accuracy = [Series("validation", run.curve("val", key), GREEN)]
    rate = [Series("learning rate", run.curve("train", "lr"), MUTED)]
    charts = [
        _curve("Loss", "cross entropy", losses, marks),
        _curve(f"{title} on validation", "", accuracy, marks, percent_axis=True),
        _curve("Learning rate", "", rate, [], zero=True),
    ]
    drawn = "".join(figure(svg) for svg in charts if svg)
    softened = [
        dig(run.recipe, "train", "label_smoothing"),
        *(dig(run.recipe, "augment", k) for k in ("mixup", "cutmix")),
    ]
    note = "Training loss is measured on softened labels (smoothing, mixing) and varied images; validation loss is not."
    said = f'<p class="note">{note}</p>' if any(isinstance(s, float | int) and s > 0 for s in softened) else ""
    return f'<div class="row">{drawn}</div>{said}' if drawn else ""


def _curve(
    title: str,
    y_label: str,
    series: list[Series],
    marks: list[tuple[float, str]],
    *,
    zero: bool = False,
    percent_axis: bool = False,
) -> str:
    series = [s for s in series if s.points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points if math.isfinite(y)]
    plot = Plot(
        title,
        "epoch",
        y_label,
        (0.0, max(xs) or 1.0),
        span_of(ys, zero=zero),
        (340, 250),
        marks=marks,
        marks_below=percent_axis,
        percent=percent_axis,
    )
    return plot.svg(series)


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a running mean over a twentieth of the points, each side alike; short curves are left as they are."""
    half = len(points) // 40 if len(points) >= FEW_POINTS else 0
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        near = [y for _, y in points[i - reach : i + reach + 1] if math.isfinite(y)]
        out.append((x, sum(near) / len(near) if near else math.nan))
    return out


def confusion(run: Run, metrics: ClassificationMetrics) -> str:
    """Draw the confusion matrix and list the pairs that are confused most."""
    matrix = metrics.confusion.numpy().astype(np.int64)
    pairs = most_confused(matrix, 12)
    rows: list[list[Cell | str]] = [
        [
            run.classes.names[c.true],
            run.classes.names[c.predicted],
            Cell(str(c.count), c.count),
            Cell(percent(c.share), c.share),
        ]
        for c in pairs
    ]
    picture = figure(
        confusion_svg(matrix, run.classes.names), "Blue: right. Orange: mistakes. Strength: share of the row."
    )
    if not rows:
        return picture + "<p>No image was taken for another class.</p>"
    listed = table(["true class", "taken for", "images", "of the class"], rows)
    return f'<div class="beside"><div>{picture}</div><div><h3>Most confused</h3>{listed}</div></div>'


def per_class(run: Run, metrics: ClassificationMetrics) -> str:
    """Return the sortable table of classes; the weakest classes alone where there are very many."""
    rows = metrics.per_class(run.classes.names)
    note = ""
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda r: (r["f1"], r["name"]))[:MOST_ROWS]
        note = f"<p>The {MOST_ROWS} classes with the lowest F1 of {len(run.classes):,}.</p>"
    cells: list[list[Cell | str]] = [
        [
            r["name"],
            Cell(str(r["support"]), r["support"]),
            *(Cell(percent(r[key]), r[key]) for key in ("precision", "recall", "f1")),
        ]
        for r in rows
    ]
    return note + table(["class", "images", "precision", "recall", "F1"], cells, sortable=True)


def calibration(metrics: ClassificationMetrics) -> str:
    """Draw accuracy by confidence, and how many images fall in each bin."""
    bins = [b for b in metrics.reliability() if b["count"]]
    if not bins:
        return ""
    plot = Plot("Accuracy by confidence", "confidence", "", (0.0, 1.0), (0.0, 1.0), percent=True, size=(460, 300))
    plot.add(Series("", [(0.0, 0.0), (1.0, 1.0)], MUTED, dashed=True))
    for b in bins:
        plot.bar(b["low"] + 0.004, b["high"] - 0.004, b["accuracy"], "#9ecae9")
    line = Series("", [(b["confidence"], b["accuracy"]) for b in bins], BLUE, dots=True)
    plot.add(line)
    most = max(b["count"] for b in bins)
    counts = Plot("Images by confidence", "confidence", "images", (0.0, 1.0), (0.0, most * 1.06), size=(460, 300))
    for b in bins:
        counts.bar(b["low"] + 0.004, b["high"] - 0.004, b["count"], "#b8bfc8")
    error, numbers = metrics.calibration_error(), metrics.compute()
    mean = sum(b["confidence"] * b["count"] for b in bins) / sum(b["count"] for b in bins)
    tone = "too sure of itself" if mean > numbers["top1"] else "too careful"
    said = (
        f"Expected calibration error {percent(error)}: confidence is {percent(mean)} on average, accuracy "
        f"{percent(numbers['top1'])}" + (f", so the model is {tone}." if abs(mean - numbers["top1"]) > 0.01 else ".")
    )
    return f'<p>{text_of(said)}</p><div class="row">{figure(plot.svg())}{figure(counts.svg())}</div>'


def recipe(run: Run) -> str:
    """Show the resolved recipe, and the machine and versions it ran with."""
    path = run.folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    rows = [[str(k), _short(v)] for k, v in run.environment.items() if v is not None]
    machine = f"<h3>Environment</h3>{table(['what', 'value'], rows)}" if rows else ""
    return (f"<pre>{text_of(text)}</pre>" if text else "") + machine


def _short(value: Any) -> str:
    text = shlex.join(str(v) for v in value) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:119] + "…"


def next_commands(run: Run) -> str:
    """Return what to type next, with this run's own paths."""
    folder = shlex.quote(str(run.folder))
    return commands(
        [
            (f"vitrail predict {folder} PHOTO.jpg", "classify images, folders or globs"),
            (f"vitrail explain {folder} PHOTO.jpg", "where the answer was read from"),
            (f"vitrail val {folder} --data FOLDER", "measure it on other data"),
            (f"vitrail train {folder}/recipe.yaml --epochs 50", "train again, with a change"),
        ]
    )
