"""The verbs of models that segment: masks as PNG files, a table of classes, what an answer was read from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import UsageError

from .answers import ExplainOptions, PredictOptions, ValOptions, free_stem, give_predictions, refuse_options
from .console import result, say, table
from .settings import size_option
from .source import existing

if TYPE_CHECKING:
    from vitrail.classes import ClassMap
    from vitrail.data.samples import Samples
    from vitrail.infer.segmentation import SegmentationResult
    from vitrail.infer.segmenter import Segmenter

MOST_CLASSES = 40


def open_segmenter(model: str, *, device: str, batch: int = 4, img_size: str | None = None) -> Segmenter:
    """Load the model of a verb."""
    from vitrail.infer.segmenter import load_segmenter

    return load_segmenter(
        existing(model),
        device=device,
        batch_size=batch,
        img_size=size_option(img_size),
    )


def predict(model: str, images: list[str], options: PredictOptions) -> None:
    """Answer every pixel of images; ``--out`` gets a mask and a picture of each, ``--csv`` the share of each class."""
    from vitrail.infer import results_to_csv, table_rows

    refuse_options(model, "answers every pixel with a class", threshold=options.threshold, tile=options.tile)
    out = options.out
    segmenter = open_segmenter(model, device=options.device, batch=min(options.batch, 4), img_size=options.img_size)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    rows, written, broken, taken = list[list[str]](), list[dict[str, Any]](), list["SegmentationResult"](), set[str]()

    def told() -> Iterator[SegmentationResult]:
        """Answer image after image; of each its files, row and JSON are kept, but no pixels."""
        for answer in segmenter.stream(images):
            files = _save(answer, out, taken) if out is not None and answer.ok else {}
            written.append({**answer.to_json(), **files})
            rows.extend(table_rows([answer], top=3)[1])
            if not answer.ok:
                broken.append(answer)
            yield answer

    if options.csv is not None:
        results_to_csv(told(), options.csv)
    else:
        deque(told(), maxlen=0)
    table(table_rows([], top=3)[0], rows)
    if out is not None:
        say(f"\nmasks and pictures: {out.resolve()}")
    give_predictions(broken, written, options.as_json)


def _save(answer: Any, out: Path, taken: set[str]) -> dict[str, str]:
    """Write ``NAME.png`` (the mask) and ``NAME-overlay.png``; return their paths."""
    stem = free_stem(answer.name, taken)
    mask, picture = out / f"{stem}.png", out / f"{stem}-overlay.png"
    answer.save_mask(mask)
    answer.plot(picture)
    return {"mask": str(mask.resolve()), "overlay": str(picture.resolve())}


def val(model: str, options: ValOptions) -> None:
    """Measure on held-out images: a table of the classes, the mean IoU."""
    from vitrail.data.maskcrops import CollateMasks, Whole
    from vitrail.data.samples import SampleLoader
    from vitrail.infer.predictor import pick_device
    from vitrail.tasks.evaluate import evaluate
    from vitrail.tasks.segment import Segment

    segmenter = open_segmenter(model, device=options.device)
    samples, classes, words = held_out(model, options.data, options.split)
    segmenter.classes.require_equal(classes, mine="the model", theirs=words)
    loader = SampleLoader(
        samples,
        batch_size=1,
        prepare=Whole(segmenter.normalize, segmenter.short_side),
        collate=CollateMasks(segmenter.window),
    )
    window = segmenter.window if segmenter.in_windows else None
    task, target = Segment(len(classes), window=window), pick_device(options.device)
    found = evaluate(task, segmenter.model, loader.epoch(0), device=target)
    details = found.accumulator.describe(classes.names)
    say(f"{words}: {found.metrics['count']:.0f} images, {len(classes)} classes\n")
    names = {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy of the classes"}
    rows = [(text, f"{found.metrics[key]:.2%}") for key, text in names.items()]
    table(("figure", "value"), [*rows, ("loss (nats a pixel)", f"{found.metrics['loss']:.4f}")], right=("value",))
    say()
    _show_classes(details["per_class"])
    if loader.problems:
        say(f"\n{len(loader.problems)} images could not be read and are not in these figures, the first:")
        say(f"  {loader.problems[0].name}: {loader.problems[0].message}")
    unreadable = [vars(problem) for problem in loader.problems]
    result("val", options.as_json, model=model, data=words, metrics=found.metrics, unreadable=unreadable, **details)


def _show_classes(per_class: list[dict[str, Any]]) -> None:
    shown = per_class
    if len(per_class) > MOST_CLASSES:
        shown = sorted(per_class, key=lambda row: row["iou"])[:MOST_CLASSES]
        say(f"the {len(shown)} weakest of {len(per_class)} classes (--json gives all):")
    whole = sum(row["pixels"] for row in per_class)
    columns = ("class", "IoU", "accuracy", "precision", "of the pixels")
    cells = [
        (
            row["name"],
            *(f"{row[key]:.1%}" if row["pixels"] else "-" for key in ("iou", "accuracy", "precision")),
            f"{row['pixels'] / whole:.2%}",
        )
        for row in shown
    ]
    table(columns, cells, right=columns[1:])


def held_out(model: str, data: str | None, split: str | None) -> tuple[Samples, ClassMap, str]:
    """Return images with masks to measure on, their classes, and what they are in words.

    Of the data of its own run the test split, or the validation split; of other data their test or val part, or all.
    """
    from vitrail.data.masks import mask_parts
    from vitrail.training.segmentjob import SegmentJob

    from .heldout import SPLITS, recipe_of, same_source

    if split is not None and split not in SPLITS:
        raise UsageError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    recipe: Any = recipe_of(model)
    if recipe is None and data is None:
        raise UsageError(f"expected --data: {model} is not a run, so it does not say which data it belongs to")
    if recipe is not None and (data is None or same_source(data, recipe.data.source)):
        opened = SegmentJob.open_splits(recipe)
        parts, classes, source = opened.parts(), opened.classes, recipe.data.source
        assert classes is not None, "masks have classes"
    else:
        source = str(data)
        d = None if recipe is None else recipe.data
        how = {} if d is None else {k: getattr(d, k) for k in ("classes", "ignore", "reduce_zero_label")}
        parts, classes, _ = mask_parts(source, **how)
    name = split or next(name for name in SPLITS if name in parts)
    if name not in parts:
        raise UsageError(f"expected data with a {name} split, got {source}, which has only {', '.join(parts)}")
    return parts[name], classes, f"the {name} split of {source}"


def explain(model: str, images: list[str], options: ExplainOptions) -> None:
    """Draw what the answer at a pixel, or of the commonest class, was read from (Grad-CAM of the deepest map)."""
    if images and options.data is not None:
        raise UsageError("--data has no effect beside images; mend: leave one out")
    segmenter = open_segmenter(model, device=options.device)
    folder, at = options.folder(model), options.at
    pictures: list[tuple[str, Any]] = [(path, Path(path)) for path in images]
    if not images:
        samples, _, _ = held_out(model, options.data, None)
        pictures = [(f"{i}.png", samples.read(i).image) for i in range(min(4, len(samples)))]
    drawn: list[dict[str, Any]] = []
    for name, image in pictures:
        found = segmenter.explain(image, at=at)
        where = "" if at is None else f"-{at[0]:g}-{at[1]:g}"
        path = (folder / f"{Path(name).stem}-grad-cam{where}.png").resolve()
        found.plot(path)
        say(f"{path}  {found.label}, {found.score:.1%}")
        drawn.append({**found.to_json(), "name": name, "pictures": [path]})
    result("explain", options.as_json, pictures=[path for one in drawn for path in one["pictures"]], explanations=drawn)
