"""The verbs of models that find objects: boxes on pictures, COCO's figures, what a query looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import DataError, UsageError

from .answers import ExplainOptions, PredictOptions, ValOptions, free_stem, give_predictions, refuse_options
from .console import partial_result, result, say, table
from .heldout import SPLITS, recipe_of, same_source
from .settings import size_option
from .source import existing

if TYPE_CHECKING:
    from vitrail.data.detection.sets import DetectionSet
    from vitrail.infer.detector import DetectionResult, Detector

Row = tuple[str, str, str, str]
MOST_CLASSES = 30
SAMPLES = 6  # held-out images that `explain` draws
FIGURES = {
    "ap": "AP (mean over overlaps 0.50 to 0.95)",
    "ap50": "AP at an overlap of 0.50",
    "ap75": "AP at an overlap of 0.75",
    "ap_small": "AP of small objects (below 32 x 32)",
    "ap_medium": "AP of medium ones",
    "ap_large": "AP of large ones (96 x 96 and more)",
    "ar100": "recall with 100 answers an image",
}


def predict(model: str, images: list[str], options: PredictOptions) -> None:
    """Find objects; with ``out`` write a picture an image and ``detections.json`` in COCO's form."""
    from vitrail.infer.detector import results_to_coco

    refuse_options(model, "finds objects", tile=options.tile, csv=options.csv)
    detector = open_detector(
        model,
        device=options.device,
        batch=options.batch,
        img_size=options.img_size,
        threshold=options.threshold,
    )
    out = options.out
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    rows, found, broken, taken = list[Row](), list[dict[str, Any]](), list["DetectionResult"](), set[str]()
    coco: list[dict[str, Any]] = []
    pictures: list[Path] = []
    for answer in detector.stream(images):  # its masks are not kept
        rows += _rows(answer)
        found.append(answer.to_json())
        if not answer.ok:
            broken.append(answer)
        elif out is not None:
            coco += results_to_coco([answer], detector.classes)
            pictures.append(out / f"{free_stem(answer.name, taken)}.png")
            answer.plot(pictures[-1])
    table(("image", "object", "score", "left, top, right, bottom"), rows, right=("score",))
    files: dict[str, Any] = {}
    if out is not None:
        (out / "detections.json").write_text(json.dumps(coco), encoding="utf-8")
        files = {"pictures": pictures, "coco": out / "detections.json"}
        say(f"wrote {len(pictures)} pictures and detections.json to {out.resolve()}")
    give_predictions(broken, found, options.as_json, **files)


def _rows(answer: DetectionResult) -> list[Row]:
    if not answer.ok:
        return [(answer.name, "error", "", str(answer.error))]
    if not len(answer):
        return [(answer.name, "nothing", "", "")]
    return [
        (answer.name, answer.names[label], f"{score:.2f}", ", ".join(f"{v:.0f}" for v in box))
        for box, score, label in zip(answer.boxes_xyxy, answer.scores, answer.labels, strict=True)
    ]


def open_detector(
    model: str, *, device: str, batch: int = 8, img_size: str | None = None, threshold: float | None = None
) -> Detector:
    """Load the model of a verb."""
    from vitrail.infer.detector import THRESHOLD, load_detector

    return load_detector(
        existing(model),
        device=device,
        batch_size=min(batch, 16),
        img_size=size_option(img_size),
        threshold=THRESHOLD if threshold is None else threshold,
    )


@dataclass(frozen=True)
class HeldOutBoxes:
    """Images with boxes, the source they come from, and what they are in words."""

    images: DetectionSet
    source: str
    split: str
    words: str


def held_out_boxes(model: str, data: str | None, split: str | None) -> HeldOutBoxes:
    """Return the images to measure on: the run's own test or val split, or those of other data."""
    from vitrail.data.detection.check import judge
    from vitrail.data.detection.source import read_boxes
    from vitrail.training.detectjob import DetectJob

    if split is not None and split not in SPLITS:
        raise UsageError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    recipe: Any = recipe_of(model)
    if data is None or (recipe is not None and same_source(data, recipe.data.source)):
        if recipe is None:
            raise UsageError(f"expected --data: {model} is not a run, so it does not say which data it belongs to")
        parts: dict[str, Any] = dict(DetectJob.open_splits(recipe).parts())
        source = recipe.data.source
    else:
        layout = read_boxes(data)
        judge(layout)
        parts, source = {name: part.to_set(layout.classes) for name, part in layout.parts.items()}, data
    name = split or next(name for name in SPLITS if name in parts)
    if name not in parts:
        raise UsageError(f"expected data with a {name} split, got {source}, which has only {', '.join(parts)}")
    return HeldOutBoxes(parts[name], source, name, f"the {name} split of {source}")


def val(model: str, options: ValOptions) -> None:
    """Measure a detector: COCO's figures, and a row a class."""
    from vitrail.infer.detector import fit_of
    from vitrail.infer.maskap import has_outlines, mask_figures
    from vitrail.infer.network import open_network
    from vitrail.infer.predictor import pick_device
    from vitrail.tasks.detect import create_detect
    from vitrail.tasks.evaluate import evaluate
    from vitrail.training.detectjob import measuring_loader

    network = open_network(existing(model))
    chosen = held_out_boxes(model, options.data, options.split)
    images = chosen.images
    if network.classes is not None:
        network.classes.require_equal(images.classes, mine="the model", theirs=chosen.source)
    target = pick_device(options.device)
    size = min(options.batch, len(images), 32)
    loader = measuring_loader(images, network.card, fit_of(network.card.input_size, network.config), size, 0)
    loss = "ce" if network.config.background else "varifocal"
    task = create_detect(len(images.classes), network.config, loss=loss, nms=network.extra.get("nms"))
    found = evaluate(task, network.model.to(target), loader.epoch(0), device=target)
    details = found.accumulator.describe(images.classes.names)
    _show_figures(chosen, found.metrics, details["per_class"])
    if getattr(network.config, "masks", False) and has_outlines(images):
        detector = open_detector(model, device=options.device, batch=1, threshold=0.0)
        details["masks"] = mask_figures(detector, images)
        say("\nmasks:")
        table(("figure", "value"), [(FIGURES[k], _percent(details["masks"].get(k))) for k in FIGURES], right=("value",))
    if loader.problems:
        say(f"\n{len(loader.problems)} images could not be read and are not in these figures, the first:")
        say(f"  {loader.problems[0].name}: {loader.problems[0].message}")
    result(
        "val",
        options.as_json,
        model=model,
        data=chosen.source,
        split=chosen.split,
        metrics=found.finite(),
        unreadable=[vars(problem) for problem in loader.problems],
        **details,
    )


def _show_figures(chosen: HeldOutBoxes, metrics: dict[str, float], per_class: list[dict[str, Any]]) -> None:
    say(f"{chosen.words}: {metrics['count']:.0f} images, {len(per_class)} classes\n")
    shares = [(words, _percent(metrics.get(key))) for key, words in FIGURES.items()]
    table(("figure", "value"), shares, right=("value",))
    say()
    seen = [row for row in per_class if row["ap"] is not None]
    shown = seen if len(seen) <= MOST_CLASSES else sorted(seen, key=lambda row: row["ap"])[:MOST_CLASSES]
    if len(shown) < len(per_class):
        without = len(per_class) - len(seen)
        words = f"the {len(shown)} weakest of {len(seen)} classes" if len(shown) < len(seen) else "the classes"
        say(f"{words} that have objects here ({without} have none; --json gives all):")
    columns = ("class", "AP", "AP50", "objects")
    cells = [(row["name"], _percent(row["ap"]), _percent(row["ap50"]), row["objects"]) for row in shown]
    table(columns, cells, right=columns[1:])


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2%}"


def explain(model: str, images: list[str], options: ExplainOptions) -> None:
    """Draw what the query of the surest answer, or of the one at a pixel, read from the image."""
    from vitrail.infer.looking import draw_looking

    detector = open_detector(model, device=options.device, batch=1)
    folder = options.folder(model)
    if images:
        from vitrail.infer.inputs import items_of

        if options.data is not None:
            raise UsageError("--data has no effect beside images; mend: leave one out")
        items = [(item.name, item.read()) for item in items_of(images)]
    else:
        chosen = held_out_boxes(model, options.data, None).images
        items = [(chosen.name(i), chosen.read(i).image) for i in range(min(SAMPLES, len(chosen)))]
    drawn = []
    for number, (name, pixels) in enumerate(items):
        path = folder / f"query-{number}-{Path(name).stem.replace('#', '-')}.png"
        told = draw_looking(detector, pixels, options.at, path)
        drawn.append({"image": name, "picture": path, **told})
        say(path)
    result("explain", options.as_json, explanations=drawn, pictures=[one["picture"] for one in drawn])


def check(source: str, csv: Path | None, as_json: bool) -> None:
    """Report what is in a set of images with boxes, what is wrong, and what to do."""
    from vitrail.data.detection.report import check_boxes
    from vitrail.data.detection.source import in_words

    report = check_boxes(source)
    counts = ", ".join(f"{n:,} {split}" for split, n in report.images.items())
    say(f"{source}: {report.kind}; images: {counts}; {len(report.classes)} classes\n")
    splits = list(report.objects)
    rows = [(name, *(f"{report.objects[s][name]:,}" for s in splits)) for name in report.classes[:MOST_CLASSES]]
    if len(report.classes) > MOST_CLASSES:
        rows.append((f"... {len(report.classes) - MOST_CLASSES} more", *("" for _ in splits)))
    rows.append(("all objects", *(f"{sum(report.objects[s].values()):,}" for s in splits)))
    rows.append(("crowds (measured, not learned)", *(f"{report.crowds[s]:,}" for s in splits)))
    table(("class", *splits), rows, right=splits)
    say()
    for words in report.notes:
        say(f"- {words}")
    for finding in report.findings:
        say(f"{finding.severity}: {in_words(finding).removeprefix('- ')}")
    if not report.findings:
        say("- nothing to mend was found")
    if csv is not None:
        report.write_csv(csv)
        say(f"wrote {csv.resolve()}")
    stopping = [finding.what for finding in report.findings if finding.severity == "error"]
    if stopping:
        error = DataError(f"training could not start: {'; '.join(stopping)}; mend: see what to do above")
        partial_result("data check", as_json, error, report=report.to_json())
    say(f"\nTrain on it:  vitrail train {source}")
    result("data check", as_json, report=report.to_json())
