"""The door to images with boxes: a path or a built-in name in, train, val and test out.

A source is COCO json, YOLO's ``data.yaml``, Pascal VOC's xml, parquet in the Hugging Face layout with a column
``objects``, or the built-in ``scenes``. It is read, judged (check.py), and split where a split is missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail.data import rng
from vitrail.data.imageset import printable
from vitrail.data.report import ERROR, INFO, WARNING, Finding
from vitrail.data.samples import SampleSplits
from vitrail.errors import DataError

from .check import judge
from .coco import is_coco, note_unlisted, read_coco
from .layout import BoxLayout
from .scenes import NAME, read_scenes
from .sets import DetectionSet

BUILTIN = (NAME,)


def is_detection(source: str) -> bool:
    """True if a source is unmistakably of images with boxes."""
    from .parquet import is_object_parquet
    from .voc import is_voc
    from .yolo import is_yolo

    return source in BUILTIN or is_coco(source) or is_yolo(source) or is_voc(source) or is_object_parquet(source)


def read_boxes(source: str, form: str = "xywh") -> BoxLayout:
    """Read a source of any known kind; ``form`` is what boxes of COCO json and parquet really are.

    Raises :class:`DataError` where it is none of them.
    """
    from .parquet import is_object_parquet, read_object_parquet
    from .voc import is_voc, read_voc
    from .yolo import is_yolo, read_yolo

    if source in BUILTIN:
        return read_scenes()
    if not os.path.exists(source):
        raise DataError(
            f"expected images with boxes at {printable(source)}, which does not exist; mend: check the path, or "
            f"--data {NAME} for the built-in set"
        )
    if is_coco(source):
        layout = read_coco(source, form)
        for split, part in layout.parts.items():
            note_unlisted(part, split, layout.odd)
        return layout
    if is_object_parquet(source):
        return read_object_parquet(source, form)
    if is_yolo(source):
        return read_yolo(source)
    if is_voc(source):
        return read_voc(source)
    raise DataError(
        f"expected images with boxes in {printable(source)}: COCO json (annotations/instances_train*.json, train.json, "
        "train/_annotations.coco.json), YOLO (data.yaml with labels/), Pascal VOC (Annotations/*.xml) or parquet with "
        "a column 'objects'; got none of them"
    )


def open_boxes(
    source: str,
    *,
    form: str = "xywh",
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    train_fraction: float = 1.0,
    seed: int = 0,
    max_broken: float = 0.01,
) -> SampleSplits:
    """Open images with boxes, ready to train on.

    Raises :class:`DataError` that names what is wrong, with file and annotation, where training would be in vain.
    """
    layout = read_boxes(source, form)
    findings = judge(layout, max_broken)
    errors = [finding for finding in findings if finding.severity == ERROR]
    if errors:
        raise DataError(f"{printable(source)} cannot be trained on:\n" + "\n".join(map(in_words, errors)))
    if "train" not in layout.parts:
        raise DataError(f"expected a train split in {printable(source)}, got only {', '.join(sorted(layout.parts))}")
    parts = {split: part.to_set(layout.classes) for split, part in layout.parts.items()}
    notes = [*layout.notes, *(in_words(finding) for finding in findings if finding.severity == WARNING)]
    notes += [f"{finding.what}" for finding in findings if finding.severity == INFO]
    train = parts["train"]
    for split, share in (("test", test_fraction), ("val", val_fraction)):
        if split not in parts and share > 0:
            train, parts[split] = held_out(train, share, seed)
            notes.append(f"{split}: {len(parts[split]):,} images were held out of train by chance (seed {seed})")
    if train_fraction < 1:
        whole = len(train)
        chosen = rng.permutation(seed + 1, 0, whole)[: max(1, round(train_fraction * whole))]
        train = train.subset(np.sort(chosen))
        notes.append(f"train: {len(train):,} of {whole:,} images, by chance (seed {seed})")
    return SampleSplits(train, parts["val"], parts.get("test"), layout.classes, notes)


def held_out(images: DetectionSet, share: float, seed: int) -> tuple[DetectionSet, DetectionSet]:
    """Hold a share of images out, by chance; at least one stays on each side."""
    count = len(images)
    if count < 2:
        raise DataError("expected at least two training images, to hold one of them out; mend: add a val split")
    chosen = rng.permutation(seed, 0, count)[: min(count - 1, max(1, round(share * count)))]
    held: NDArray[np.bool_] = np.zeros(count, dtype=bool)
    held[chosen] = True
    return images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))


def in_words(finding: Finding) -> str:
    """Return a finding as lines for people."""
    return "\n".join([f"- {finding.what}; mend: {finding.advice}", *_indented(finding.examples, finding.count)])


def _indented(examples: Sequence[str], count: int) -> list[str]:
    more = [f"    ... {count - len(examples):,} more"] if examples and count > len(examples) else []
    return [f"    {example}" for example in examples] + more
