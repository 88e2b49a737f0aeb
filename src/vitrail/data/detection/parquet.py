"""Parquet in the Hugging Face layout with a column ``objects``: boxes and categories of each image.

Source: the `datasets` library's object detection sets (cppe-5 and its like): ``objects`` is a struct of lists, or a
list of structs, of ``bbox``, ``category`` (an int whose names stand in the metadata, or text) and perhaps ``id``,
``area``, ``iscrowd``; beside it ``image`` and perhaps ``image_id``, ``width``, ``height``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from vitrail.classes import ClassMap
from vitrail.data.decode import BrokenImage, probe_image
from vitrail.data.imageset import printable
from vitrail.data.layout import class_map, listed
from vitrail.data.parquet import ENDINGS, IMAGE_COLUMNS, TableStore, column_of, encoded_images, is_parquet
from vitrail.data.patterns import find_files
from vitrail.data.report import ERROR
from vitrail.errors import DataError, require_extra

from .coco import to_xywh
from .layout import BoxLayout, BoxPart, Odd
from .sets import Annotations

COLUMN = "objects"
CATEGORIES = ("category", "category_id", "label", "labels", "categories")
BOXES = ("bbox", "bboxes", "boxes", "box")


def is_object_parquet(source: str) -> bool:
    """True if a source is parquet whose first file has a column ``objects``."""
    if not os.path.exists(source) or not is_parquet(source):
        return False
    require_extra("pyarrow", "data", "reading parquet")
    import pyarrow.parquet as pq

    first = next(path for paths in find_files(source, ENDINGS).values() for path in paths)
    try:
        return COLUMN in pq.read_schema(first).names
    except (OSError, ValueError):
        return False


def read_object_parquet(source: str, form: str = "xywh") -> BoxLayout:
    """Read such parquet, all of it into memory; ``form`` is what its boxes really are.

    Raises :class:`DataError` naming the fields or the rows that are wrong.
    """
    shards = find_files(source, ENDINGS)
    tables = {split: _table(paths) for split, paths in shards.items()}
    names = next((n for t in tables.values() if (n := _names(t.schema)) is not None), None)
    rows = {split: [_plain(value) for value in table[COLUMN].to_pylist()] for split, table in tables.items()}
    if names is not None:
        classes = ClassMap(tuple(names), tuple(range(len(names))))
    else:
        found = class_map(str(c) for values in rows.values() for row in values for c in row["category"])
        whole = all(isinstance(c, int) for values in rows.values() for row in values for c in row["category"])
        classes = ClassMap(found.names, tuple(int(i) for i in found.ids) if whole else found.ids)
    odd = Odd()
    parts = {}
    for split, table in tables.items():
        column = column_of(shards[split][0], table.column_names, IMAGE_COLUMNS, "images")
        blobs, paths = encoded_images(table[column].chunks, column, shards[split][0])
        store = TableStore(split, os.path.dirname(shards[split][0]), blobs, paths, [0, len(table)])
        parts[split] = _part(store, table, rows[split], classes, form, split, odd)
    return BoxLayout("parquet with objects", source, parts, classes, odd)


def _table(paths: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.concat_tables([pq.read_table(path) for path in paths])


def _names(schema: Any) -> list[str] | None:
    """Return the class names of the column in the ``huggingface`` metadata, or None."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][COLUMN]
    except (KeyError, TypeError, ValueError):
        return None
    waiting = [feature]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("names"), list):
                return [str(name) for name in one["names"]]
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return None


def _plain(value: Any) -> dict[str, list[Any]]:
    """Return the objects of one image as lists of bbox, category, id, area, crowd."""
    if value is None:
        value = []
    if isinstance(value, list):
        keys = value[0].keys() if value else ()
        value = {key: [row[key] for row in value] for key in keys}
    boxes = next((value[key] for key in BOXES if value.get(key) is not None), [])
    category = next((value[key] for key in CATEGORIES if value.get(key) is not None), None)
    if category is None and len(boxes):
        raise DataError(f"expected a field of classes in {COLUMN} ({', '.join(CATEGORIES)}), got {listed(list(value))}")
    crowd = value.get("iscrowd") or value.get("is_crowd") or [0] * len(boxes)
    own = value.get("id") or list(range(1, len(boxes) + 1))
    area = value.get("area") or [None] * len(boxes)
    return {"bbox": boxes, "category": category or [], "crowd": crowd, "id": own, "area": area}


def _part(
    store: TableStore, table: Any, rows: list[dict[str, list[Any]]], classes: ClassMap, form: str, split: str, odd: Odd
) -> BoxPart:
    columns = {name: table[name].to_pylist() for name in ("image_id", "width", "height") if name in table.column_names}
    index = {source_id: i for i, source_id in enumerate(classes.ids)}
    sizes, objects = [], []
    for row, found in enumerate(rows):
        sizes.append(_size(store, row))
        objects.append(_objects(found, index, form, f"{split}: {printable(store.name(row))}", odd))
    ids = tuple(columns.get("image_id", range(len(rows))))
    ids = ids if len(set(ids)) == len(ids) else tuple(range(len(rows)))
    return BoxPart(store, ids, np.array(sizes, dtype=np.int64).reshape(-1, 2), objects)


def _size(store: TableStore, row: int) -> tuple[int, int]:
    """Height and width of an upright image; nothing where it cannot be read, which reading it will say."""
    try:
        return probe_image(store.blob(row)).upright
    except BrokenImage:
        return 0, 0


def _objects(found: dict[str, list[Any]], index: dict[str | int, int], form: str, where: str, odd: Odd) -> Annotations:
    boxes, labels, crowd, ids, area = [], [], [], [], []
    for number, (box, category) in enumerate(zip(found["bbox"], found["category"], strict=True)):
        label = index.get(category, index.get(str(category)))
        if label is None or box is None or len(box) != 4 or not np.isfinite(box).all():
            code, what = ("unknown_class", "a class that is not named") if label is None else ("no_box", "no box")
            odd.add(
                code, ERROR, f"{{n}} objects have {what}", "correct them",
                f"{where}: object {found['id'][number]}: category {category!r}, bbox {box!r}",
            )  # fmt: skip
            continue
        boxes.append(to_xywh(box, form))
        labels.append(label)
        crowd.append(bool(found["crowd"][number]))
        ids.append(found["id"][number])
        area.append(boxes[-1][2] * boxes[-1][3] if found["area"][number] is None else found["area"][number])
    return Annotations.of(boxes, labels, crowd=crowd, ids=ids, area=area)
