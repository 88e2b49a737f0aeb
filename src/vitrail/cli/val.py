"""`vitrail val`: measure a trained model on data it was not trained on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vitrail.errors import DataError

from .answers import ValOptions, refuse_options, verbs_of
from .console import Json, result, say, table
from .heldout import HeldOut, held_out, require_classes
from .pixels import measure_pixels, predicts_pixels
from .source import existing
from .translate import measure, reads_text

MOST_CLASSES = 30


def val(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hf-hub:org/name.")],
    data: Annotated[str | None, typer.Option(help="Other data with the same classes; default: the run's own.")] = None,
    split: Annotated[str | None, typer.Option(help="test, val or train; default: test if there is one.")] = None,
    batch: Annotated[int, typer.Option(help="Images or lines through the model at once.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    beam: Annotated[int | None, typer.Option(help="Of a translation: hypotheses kept; 1: greedy.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on held-out data."""
    if reads_text(model):
        measure(model, data, split, beam=beam, device=device, batch=batch, as_json=as_json)
        return
    refuse_options(model, "does not translate", beam=beam)
    if (verbs := verbs_of(model)) is not None:
        return verbs.val(model, ValOptions(data, split, batch, device, as_json))
    from vitrail.infer.predictor import pick_device
    from vitrail.tasks import create_task
    from vitrail.tasks.evaluate import evaluate
    from vitrail.training.pipeline import eval_loader
    from vitrail.weights import load_model

    network, card, classes = load_model(existing(model))
    if predicts_pixels(network):
        measure_pixels(network, card, model, data, split, batch=batch, device=device, as_json=as_json)
        return
    chosen = held_out(model, data, split, labels="multi" if card.multi_label else "auto")
    if chosen.images.multi_label and not card.multi_label:
        raise DataError(f"expected one label an image as {model} gives, got several in {chosen.source}")
    require_classes(model, classes, card.num_classes, chosen)
    target = pick_device(device)
    loader = eval_loader(chosen.images, card, batch_size=min(batch, len(chosen.images)))
    kind, options = ("multilabel", {"thresholds": card.thresholds}) if card.multi_label else ("classify", {})
    task = create_task(kind, num_classes=len(chosen.images.classes), options=options)
    found = evaluate(task, network.to(target), loader.epoch(0), device=target)
    details = found.accumulator.describe(chosen.images.classes.names)
    show = _show_several if card.multi_label else _show
    show(chosen, found.metrics, details["per_class"])
    if loader.problems:
        say(f"\n{len(loader.problems)} images could not be read and are not in these figures, the first:")
        say(f"  {loader.problems[0].name}: {loader.problems[0].message}")
    result(
        "val",
        as_json,
        model=model,
        data=chosen.source,
        split=chosen.split,
        metrics=found.metrics,
        unreadable=[vars(problem) for problem in loader.problems],
        **details,
    )


def _show(chosen: HeldOut, metrics: dict[str, float], per_class: list[dict[str, Any]]) -> None:
    say(f"{chosen.words}: {metrics['count']:.0f} images, {len(per_class)} classes\n")
    rows = [("accuracy (top 1)", f"{metrics['top1']:.2%}")]
    if len(per_class) > 5:
        rows.append(("among the best five", f"{metrics['top5']:.2%}"))
    rows += [
        ("balanced accuracy, mean over classes", f"{metrics['macro_recall']:.2%}"),
        ("F1, mean over classes", f"{metrics['macro_f1']:.2%}"),
        ("loss (cross entropy)", f"{metrics['loss']:.4f}"),
        ("calibration error", f"{metrics['ece']:.2%}"),
    ]
    table(("figure", "value"), rows, right=("value",))
    say()
    shown = per_class if len(per_class) <= MOST_CLASSES else sorted(per_class, key=lambda row: row["f1"])[:MOST_CLASSES]
    if len(shown) < len(per_class):
        say(f"the {len(shown)} weakest of {len(per_class)} classes (--json gives all):")
    columns = ("class", "precision", "recall", "F1", "images")
    cells = [
        (row["name"], f"{row['precision']:.1%}", f"{row['recall']:.1%}", f"{row['f1']:.1%}", row["support"])
        for row in shown
    ]
    table(columns, cells, right=columns[1:])


def _show_several(chosen: HeldOut, metrics: dict[str, float], per_class: list[dict[str, Any]]) -> None:
    """Print figures and classes where an image may have several labels."""
    say(f"{chosen.words}: {metrics['count']:.0f} images, {len(per_class)} classes, any number of them an image\n")
    names = {
        "map": "mean average precision (mAP)",
        "micro_f1": "F1 of all answers, at 0.5",
        "micro_f1_tuned": "F1 of all answers, at each class's threshold",
        "macro_f1": "F1, mean over classes, at 0.5",
        "macro_f1_tuned": "F1, mean over classes, at its threshold",
        "exact_tuned": "images with every label right",
    }
    rows = [(words, f"{metrics[key]:.2%}") for key, words in names.items()]
    table(("figure", "value"), [*rows, ("loss (binary cross entropy)", f"{metrics['loss']:.4f}")], right=("value",))
    say()
    shown = per_class if len(per_class) <= MOST_CLASSES else sorted(per_class, key=lambda row: row["ap"])[:MOST_CLASSES]
    if len(shown) < len(per_class):
        say(f"the {len(shown)} weakest of {len(per_class)} classes (--json gives all):")
    columns = ("class", "AP", "precision", "recall", "F1", "threshold", "images")
    shares = ("ap", "precision", "recall", "f1")
    cells = [
        (row["name"], *(f"{row[key]:.1%}" for key in shares), f"{row['threshold']:.3f}", row["support"])
        for row in shown
    ]
    table(columns, cells, right=columns[1:])
