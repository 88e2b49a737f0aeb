"""COCO's json: images, annotations, categories; boxes as [left, top, width, height] in pixels.

Source: cocodataset.org, "Data format"; the folders people have: ``annotations/instances_train2017.json`` beside
``train2017/``; Roboflow's ``train/_annotations.coco.json`` beside its images; ``train.json`` beside ``train/``; one
json with one folder of images.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.classes import ClassMap
from vitrail.data.imageset import FileStore, printable
from vitrail.data.layout import SPLITS, listed, split_of_file, split_word
from vitrail.data.report import ERROR, INFO, WARNING
from vitrail.errors import DataError

from .layout import BoxLayout, BoxPart, Odd
from .sets import Annotations

KEYS = ("images", "annotations", "categories")
FORMS = ("xywh", "xyxy", "cxcywh")
_LOOKED_AT = 1 << 16  # bytes at both ends of a json that tell what it is
_PROBES = 20  # files looked for, to choose the folder of the images


def is_coco(source: str) -> bool:
    """True if the path is such a json, or a folder that has some in the usual places."""
    return bool(find_jsons(source))


def find_jsons(source: str) -> dict[str, str]:
    """Return split -> json; {} where there is none. A json that is no split's own is all train."""
    if os.path.isfile(source):
        return {"train": source} if source.lower().endswith(".json") and _looks_like_coco(source) else {}
    if not os.path.isdir(source):
        return {}
    found: dict[str, str] = {}
    for path in _candidates(source):
        stem = Path(path).stem.removeprefix("instances_")
        roboflow = Path(path).name.endswith(".coco.json")
        split = split_word(Path(path).parent.name) if roboflow else _split_of(stem)
        if split is not None and split not in found and _looks_like_coco(path):
            found[split] = path
    if not found:
        singles = [p for p in _candidates(source) if _looks_like_coco(p)]
        found = {"train": singles[0]} if len(singles) == 1 else {}
    return {split: found[split] for split in SPLITS if split in found}


def _split_of(stem: str) -> str | None:
    """Return the split a file's name speaks of: at its start, or after its last underscore; years are no matter."""
    plain = re.sub(r"\d{4}$", "", stem)
    return split_of_file(plain) or split_word(plain.rsplit("_", 1)[-1])


def _candidates(source: str) -> list[str]:
    patterns = ("annotations/instances_*.json", "*/*.coco.json", "annotations/*.json", "*.json", "*.coco.json")
    found = [path for pattern in patterns for path in sorted(glob.glob(os.path.join(glob.escape(source), pattern)))]
    others = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
    return [path for path in dict.fromkeys(found) if not Path(path).name.startswith(others)]


def _looks_like_coco(path: str) -> bool:
    """Tell by the two ends of a file whether it has images and boxes, without reading all of it."""
    try:
        with open(path, "rb") as file:
            ends = file.read(_LOOKED_AT)
            size = os.fstat(file.fileno()).st_size
            if size > _LOOKED_AT:
                file.seek(max(_LOOKED_AT, size - _LOOKED_AT))
                ends += file.read()
    except OSError:
        return False
    whole = size <= 2 * _LOOKED_AT
    seen = [f'"{key}"'.encode() in ends for key in KEYS]
    return ends.lstrip()[:1] == b"{" and (all(seen) if whole else any(seen))


def read_coco(source: str, form: str = "xywh") -> BoxLayout:
    """Read COCO json; ``form`` is what its boxes really are, one of :data:`FORMS`.

    Raises :class:`DataError` for what is no such json, and where a category has two names.
    """
    jsons = find_jsons(source)
    if "train" not in jsons:
        raise DataError(
            f"expected COCO json for train in {printable(source)}, got it for {listed(sorted(jsons)) or 'no split'}"
        )
    contents = {split: _load(path) for split, path in jsons.items()}
    classes = _classes(jsons, contents)
    odd = Odd()
    parts = {split: _part(jsons[split], source, contents[split], classes, form, odd) for split in jsons}
    layout = BoxLayout("COCO json", source, parts, classes, odd)
    numbers = [i for i in classes.ids if isinstance(i, int)]
    if numbers and max(numbers) - min(numbers) + 1 > len(numbers):
        layout.notes.append(
            f"{len(numbers)} classes have ids between {min(numbers)} and {max(numbers)}, with holes: the model counts "
            "them 0 to " + f"{len(numbers) - 1}, results are written with the file's ids"
        )
    return layout


def _load(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"expected json in {printable(path)}: {error}") from None
    lacking = [key for key in KEYS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise DataError(f"expected COCO json with lists {', '.join(KEYS)}, got {printable(path)} without {lacking[0]}")
    for key in KEYS[::2]:
        wrong = next((n for n, row in enumerate(content[key]) if not isinstance(row, dict) or "id" not in row), None)
        if wrong is not None:
            raise DataError(f"expected an id in each of {key}, got none in number {wrong} of {printable(path)}")
    return content


def _classes(jsons: Mapping[str, str], contents: Mapping[str, dict[str, Any]]) -> ClassMap:
    """Join the categories of the splits, by id, in the order of the ids."""
    names: dict[Any, str] = {}
    for split, content in contents.items():
        for category in content["categories"]:
            name = printable(str(category.get("name", category["id"])))
            known = names.setdefault(category["id"], name)
            if known != name:
                raise DataError(
                    f"expected one name a category, got {known!r} and {name!r} for id {category['id']} "
                    f"(the second in {printable(jsons[split])}); mend: give all splits the same categories"
                )
    ids = sorted(names, key=lambda i: (isinstance(i, str), i))
    return ClassMap(tuple(names[i] for i in ids), tuple(ids))


def _part(path: str, source: str, content: dict[str, Any], classes: ClassMap, form: str, odd: Odd) -> BoxPart:
    file = printable(os.path.relpath(path, source)) if os.path.isdir(source) else printable(os.path.basename(path))
    images = _images(content["images"], file, odd)
    names = [str(row.get("file_name", row["id"])) for row in images]
    root = images_folder(path, source, names)
    by_image = _by_image(content["annotations"], {row["id"] for row in images}, file, odd)
    known = {source_id: index for index, source_id in enumerate(classes.ids)}
    objects = [
        _objects(by_image.get(row["id"], []), known, form, f"{file}, {printable(name)}", odd)
        for row, name in zip(images, names, strict=True)
    ]
    sizes = np.array([[_whole(row.get("height")), _whole(row.get("width"))] for row in images], dtype=np.int64)
    return BoxPart(FileStore(root, names), tuple(row["id"] for row in images), sizes.reshape(-1, 2), objects)


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value > 0 else 0


def _images(rows: list[dict[str, Any]], file: str, odd: Odd) -> list[dict[str, Any]]:
    """Each image once, in the order of the ids."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if row["id"] in found:
            odd.add(
                "image_id_twice", ERROR, "{n} images have the id of another: their boxes cannot be told apart",
                "give each image an id of its own", f"{file}: id {row['id']}: {row.get('file_name')}",
            )  # fmt: skip
        found.setdefault(row["id"], row)
    # by id, as COCO's own evaluation goes through them: it matters where scores are equal
    return [found[i] for i in sorted(found, key=lambda i: (isinstance(i, str), i))]


def _by_image(rows: list[dict[str, Any]], images: set[Any], file: str, odd: Odd) -> dict[Any, list[dict[str, Any]]]:
    """Sort annotations by image; say which name none, and which ids occur twice."""
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    seen: set[Any] = set()
    for number, row in enumerate(rows):
        own = row.get("id", number + 1)
        if own in seen:
            odd.add(
                "annotation_id_twice", WARNING, "{n} annotations have the id of another",
                "give each an id of its own; both are used", f"{file}: annotation {own}",
            )  # fmt: skip
        seen.add(own)
        if row.get("image_id") not in images:
            odd.add(
                "no_such_image", WARNING, "{n} annotations are of images that the json does not list; they go unused",
                "add the images to the json, or remove the annotations",
                f"{file}: annotation {own}: image_id {row.get('image_id')!r}",
            )  # fmt: skip
            continue
        found[row["image_id"]].append({**row, "id": own})
    return found


def _objects(rows: list[dict[str, Any]], known: Mapping[Any, int], form: str, where: str, odd: Odd) -> Annotations:
    boxes, labels, crowd, area, ids, shapes = [], [], [], [], [], []
    for row in rows:
        label = known.get(row.get("category_id"))
        box = row.get("bbox")
        if label is None:
            odd.add(
                "unknown_class", ERROR, "{n} annotations have a category that the json does not list",
                "add it to categories, or correct the ids (COCO's own are 1 to 90 with holes: a list of 80 counts "
                "otherwise)", f"{where}: annotation {row['id']}: category_id {row.get('category_id')!r}",
            )  # fmt: skip
            continue
        if not _is_box(box):
            odd.add(
                "no_box", ERROR, "{n} annotations have no box of four numbers", "add it, or remove the annotation",
                f"{where}: annotation {row['id']}: bbox {box!r}",
            )  # fmt: skip
            continue
        assert box is not None
        boxes.append(to_xywh(box, form))
        labels.append(label)
        crowd.append(bool(row.get("iscrowd", 0)))
        area.append(float(row.get("area", boxes[-1][2] * boxes[-1][3])))
        ids.append(row["id"] if isinstance(row["id"], int) else len(ids) + 1)
        shapes.append(row.get("segmentation") or None)
    return Annotations.of(boxes, labels, crowd=crowd, area=area, ids=ids, shapes=shapes)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, Sequence)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in box)
    )


def to_xywh(box: Sequence[float], form: str) -> tuple[float, float, float, float]:
    """Return left, top, width, height of a box that is written in another form; unchanged numbers where it is not."""
    a, b, c, d = (float(v) for v in box)
    if form == "xywh":
        return a, b, c, d
    if form == "xyxy":
        return a, b, c - a, d - b
    return a - c / 2, b - d / 2, c, d


def images_folder(path: str, source: str, names: Sequence[str]) -> str:
    """Return the folder that the names of a json are relative to: of the usual ones, that which has most of them."""
    here, stem = os.path.dirname(path), Path(path).stem.removeprefix("instances_")
    root = source if os.path.isdir(source) else here
    split = _split_of(stem) or ""
    words = dict.fromkeys([stem, split, stem.rsplit("_", 1)[-1], "valid" if split == "val" else split, ""])
    bases = dict.fromkeys([here, root, os.path.dirname(here) or here])
    folders = [os.path.join(b, *p) for w in words for b in bases for p in ((w,), ("images", w), (w, "images"))]
    step = max(1, len(names) // _PROBES)
    probes = names[::step][:_PROBES]

    def present(folder: str) -> int:
        return sum(os.path.isfile(os.path.join(folder, name)) for name in probes) if os.path.isdir(folder) else -1

    return os.path.normpath(max(dict.fromkeys(folders), key=present))


def unlisted(part: BoxPart) -> list[str]:
    """Return image files beside those of a part that its json does not list."""
    from vitrail.data.decode import EXTENSIONS

    store = part.store
    if not isinstance(store, FileStore):
        return []
    listed_names = {os.path.normpath(name) for name in store.names}
    folders = {os.path.dirname(name) for name in listed_names}
    found = []
    for folder in sorted(folders):
        try:
            entries = sorted(os.listdir(os.path.join(store.root, folder)))
        except OSError:
            continue
        names = (os.path.normpath(os.path.join(folder, entry)) for entry in entries)
        found += [n for n in names if n not in listed_names and os.path.splitext(n)[1].lower() in EXTENSIONS]
    return found


def note_unlisted(part: BoxPart, split: str, odd: Odd) -> None:
    """Say which images are not used because the json does not list them."""
    for name in unlisted(part):
        odd.add(
            "not_in_json", INFO, "{n} image files are not in the json and are not used",
            "none, if they are not meant; list them without annotations if nothing is on them",
            f"{split}: {printable(name)}",
        )  # fmt: skip
