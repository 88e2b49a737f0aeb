"""`vitrail val`: measure a trained model on data it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.errors import DataError

from .console import Json, result, say, table
from .heldout import HeldOut, held_out
from .source import existing

if TYPE_CHECKING:
    from vitrail.classes import ClassMap
    from vitrail.data.loader import Problem

MOST_CLASSES = 30


def val(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hf-hub:org/name.")],
    data: Annotated[str | None, typer.Option(help="Other data with the same classes; default: the run's own.")] = None,
    split: Annotated[str | None, typer.Option(help="test, val or train; default: test if there is one.")] = None,
    batch: Annotated[int, typer.Option(help="Images through the model at once.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure a model on held-out data."""
    from vitrail.infer.predictor import pick_device
    from vitrail.tasks import create_task
    from vitrail.tasks.evaluate import evaluate
    from vitrail.training.pipeline import eval_loader
    from vitrail.weights import load_model

    network, card, classes = load_model(existing(model))
    chosen = held_out(model, data, split)
    _require_classes(model, classes, card.num_classes, chosen)
    target = pick_device(device)
    loader = eval_loader(chosen.images, card, batch_size=min(batch, len(chosen.images)))
    task = create_task("classify", num_classes=len(chosen.images.classes))
    found = evaluate(task, network.to(target), loader.epoch(0), device=target)
    details = found.accumulator.describe(chosen.images.classes.names)
    _show(chosen, found.metrics, details["per_class"], list(loader.problems))
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


def _require_classes(model: str, classes: ClassMap | None, count: int, chosen: HeldOut) -> None:
    """Refuse data whose classes are not the model's; a model without names is held to their number."""
    if classes is not None:
        classes.require_equal(chosen.images.classes, mine="the model", theirs=chosen.source)
    elif len(chosen.images.classes) != count:
        raise DataError(
            f"expected data of {count} classes as {model} has, got {len(chosen.images.classes)} in {chosen.source}; "
            "mend: name data with the classes the model was trained on"
        )


def _show(chosen: HeldOut, metrics: dict[str, float], per_class: list[dict[str, Any]], problems: list[Problem]) -> None:
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
    if problems:
        say(f"\n{len(problems)} images could not be read and are not in these figures, the first:")
        say(f"  {problems[0].name}: {problems[0].message}")
