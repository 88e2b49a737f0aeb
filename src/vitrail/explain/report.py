"""``report.html`` of a run: one file, no request to anywhere, that says what was trained and how good it is.

Sections that a run has nothing for (no predictions yet, images that are gone, a model without patches) are left out,
and what is left out for a fault is said on the page.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from vitrail.errors import VitrailError
from vitrail.metrics.classification import ClassificationMetrics
from vitrail.metrics.multilabel import MultiLabelMetrics

from . import gallery as pictures
from . import sections, several
from .charts import text_of
from .gallery import Gallery, Pictures
from .page import Section, page
from .preprocess import Preprocess
from .runfolder import Run, read_run


def write_report(folder: str | Path, *, dataset: Pictures | None = None) -> Path:
    """Write ``report.html`` into a run folder, replacing an earlier one in one step, and return its path.

    Args:
        folder: what ``vitrail train`` made; see :mod:`.runfolder`.
        dataset: the image set that the stored predictions are about, if it is at hand; else the recipe's data is
            opened again for the thumbnails.

    Raises :class:`DataError` if ``folder`` is no run folder.
    """
    run = read_run(Path(folder))
    notes: list[str] = []
    gallery = _gallery(run, dataset, notes)
    model, preprocess = _model(run, notes)
    metrics, answers = _measured(run)
    parts = [Section("curves", "Training", sections.curves(run)), Section("data", "Data", sections.data(run))]
    parts += answers
    if gallery is not None:
        parts.append(Section("predictions", "Best and worst", pictures.best_and_worst(gallery)))
    if model is not None and preprocess is not None:
        if gallery is not None:
            parts.append(Section("attention", "Where the model looked", pictures.attention(gallery, model, preprocess)))
        parts.append(Section("figures", "Inside the model", pictures.known_figures(model, gallery, preprocess)))
    parts.append(Section("recipe", "Recipe", sections.recipe(run)))
    parts.append(Section("next", "Next", sections.next_commands(run)))
    header = sections.header(run, metrics) + "".join(f'<p class="note">{text_of(note)}</p>' for note in notes)
    html = page(f"Vitrail: {run.folder.name}", header, parts, _footer(run))
    return _replace(run.folder / "report.html", html)


def _measured(run: Run) -> tuple[ClassificationMetrics | MultiLabelMetrics | None, list[Section]]:
    """Return the metrics of the predictions, and the sections that show them."""
    if run.predictions is None:
        return None, []
    if run.predictions.multi_label:
        numbers = several.measure(run.predictions)
        return numbers, [Section("classes", "Classes", several.per_class(run, numbers))]
    metrics = sections.measure(run.predictions, len(run.classes))
    return metrics, [
        Section("confusion", "Confusion matrix", sections.confusion(run, metrics)),
        Section("classes", "Classes", sections.per_class(run, metrics)),
        Section("calibration", "Calibration", sections.calibration(metrics)),
    ]


def _gallery(run: Run, dataset: Pictures | None, notes: list[str]) -> Gallery | None:
    if run.predictions is None:
        return None
    if dataset is None:
        try:
            dataset = _reopen(run, run.predictions.split)
        except (VitrailError, OSError) as error:
            notes.append(f"The images could not be opened again, so there are no thumbnails: {error}")
            return None
    if len(run.predictions.indices) and int(run.predictions.indices.max()) >= len(dataset):
        notes.append("The data has changed since this run, so there are no thumbnails.")
        return None
    return Gallery(dataset, run.predictions, run.classes)


def _reopen(run: Run, split: str) -> Pictures:
    from vitrail.data.sources import open_dataset

    data: dict[str, Any] = run.recipe.get("data") or {}
    keys = ("val_fraction", "test_fraction", "seed", "allow_empty", "labels")
    known = {k: data[k] for k in keys if isinstance(data.get(k), int | float | str) and data[k] != "auto"}
    splits = open_dataset(data["source"], **known)
    found = splits.test if split == "test" else splits.val
    if found is None:
        raise VitrailError(f"the data has no {split} part any more")
    return found


def _model(run: Run, notes: list[str]) -> tuple[nn.Module | None, Preprocess | None]:
    from vitrail.weights.folder import load_folder

    try:
        model, card, _ = load_folder(run.folder / "best")
    except VitrailError as error:
        notes.append(f"The best weights could not be read, so there are no maps of where the model looked: {error}")
        return None, None
    return model.eval(), Preprocess(card, card.input_size)


def _footer(run: Run) -> str:
    from vitrail import __version__

    made = f"Run started {run.environment['started']}." if run.environment.get("started") else ""
    return f'<p class="muted">{text_of(f"Made by Vitrail {__version__}. {made}".strip())}</p>'


def _replace(path: Path, text: str) -> Path:
    """Write a file so that a reader sees the old one or the new one, never half."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)
    return path
