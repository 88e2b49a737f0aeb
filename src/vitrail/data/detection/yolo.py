"""YOLO's layout: ``data.yaml`` names the classes and the folders, a text file an image holds its boxes.

Source: docs.ultralytics.com, "Object Detection Datasets": a line is class, centre x, centre y, width, height as shares
of the image's sides; a line of a class and three or more points is an outline. Labels lie where ``images`` in the path
of an image is replaced by ``labels``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vitrail.classes import ClassMap
from vitrail.data.decode import EXTENSIONS, BrokenImage, probe_image
from vitrail.data.imageset import FileStore, printable
from vitrail.data.layout import SPLITS, split_word
from vitrail.data.report import ERROR, INFO, WARNING
from vitrail.errors import DataError

from .layout import BoxLayout, BoxPart, Odd
from .sets import Annotations

FILES = ("data.yaml", "data.yml", "dataset.yaml")
_ROOM = 1.01  # a share may pass 1 by a rounding


def is_yolo(source: str) -> bool:
    """True if the path is such a yaml, or a folder that has one."""
    return find_yaml(source) is not None


def find_yaml(source: str) -> Path | None:
    """Return the yaml that describes the data, or None."""
    path = Path(source)
    found = [path] if path.is_file() else [path / name for name in FILES]
    if path.is_dir():
        found += sorted(path.glob("*.yaml"))
    for one in found:
        if one.suffix in (".yaml", ".yml") and one.is_file() and isinstance(_content(one), dict):
            return one
    return None


def _content(path: Path) -> dict[str, Any] | None:
    """The yaml, if it names classes and training images."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) and "names" in found and "train" in found else None


def read_yolo(source: str) -> BoxLayout:
    """Read YOLO's layout. Raises :class:`DataError` for class names or folders that cannot be used."""
    path = find_yaml(source)
    assert path is not None, "asked for by is_yolo"
    content = _content(path)
    assert content is not None, "asked for by is_yolo"
    classes, odd = _names(path, content["names"]), Odd()
    root = _root(path, content.get("path"))
    parts = {}
    for word in content:
        split = split_word(str(word))
        if split is not None and content[word] and split not in parts:
            parts[split] = _part(root, path.parent, content[word], split, classes, odd)
    return BoxLayout("YOLO", source, {s: parts[s] for s in SPLITS if s in parts}, classes, odd)


def _names(path: Path, names: Any) -> ClassMap:
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        ids = sorted(names)
        return ClassMap(tuple(str(names[i]) for i in ids), tuple(ids))
    if isinstance(names, list) and names:
        return ClassMap(tuple(map(str, names)), tuple(range(len(names))))
    raise DataError(f"expected names as a list, or number: name, in {printable(str(path))}, got {names!r}")


def _root(path: Path, told: Any) -> Path:
    """The folder that paths in the yaml are relative to; one that does not exist here is that of the yaml."""
    if told is None:
        return path.parent
    for found in (path.parent / str(told), Path(str(told))):
        if found.is_dir():
            return found
    return path.parent


def _part(root: Path, beside: Path, told: Any, split: str, classes: ClassMap, odd: Odd) -> BoxPart:
    files: list[str] = []
    for one in told if isinstance(told, list) else [told]:
        files += _files(root, beside, str(one), split)
    known = {source_id: index for index, source_id in enumerate(classes.ids)}
    sizes, objects = [], []
    for name in files:
        try:
            size = probe_image(root / name).upright
        except BrokenImage:
            size = (0, 0)  # reading it will say why
        sizes.append(size)
        objects.append(_objects(_labels_of(root / name), size, known, f"{split}: {printable(name)}", odd))
    ids = tuple(Path(name).stem for name in files)
    if len(set(ids)) < len(ids):
        ids = tuple(files)
    return BoxPart(FileStore(str(root), files), ids, np.array(sizes, dtype=np.int64).reshape(-1, 2), objects)


def _files(root: Path, beside: Path, told: str, split: str) -> list[str]:
    """The images of a folder or of a text file that lists them, relative to the root."""
    # Roboflow writes ../train/images, meant from a folder that nobody has
    tried = [root / told, beside / told, root / told.removeprefix("../"), beside / told.removeprefix("../")]
    place = next((p for p in tried if p.exists()), None)
    if place is None:
        raise DataError(
            f"expected the images of {split} at {printable(str(tried[0]))}, which does not exist; mend: correct "
            f"{split} (and path) in the yaml"
        )
    if place.is_file():
        lines = place.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        paths = [place.parent / line.strip() for line in lines if line.strip()]
    else:
        paths = sorted(p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS)
    return [os.path.relpath(p, root) for p in paths]


def _labels_of(image: Path) -> Path:
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _objects(path: Path, size: tuple[int, int], known: dict[Any, int], where: str, odd: Odd) -> Annotations:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        odd.add("no_labels", INFO, "{n} images have no label file: nothing is on them", "none, if that is so", where)
        return Annotations.of([], [])
    except (OSError, UnicodeDecodeError) as error:
        odd.add("bad_labels", ERROR, "{n} label files cannot be read", "repair or remove them", f"{where}: {error}")
        return Annotations.of([], [])
    boxes, labels, ids, shapes = [], [], [], []
    height, width = size
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        at = f"{where}: line {number}: {line.strip()[:60]}"
        row = _row(line, known, at, odd)
        if row is None:
            continue
        label, (x, y, w, h), points = row
        boxes.append(((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))
        labels.append(label)
        ids.append(number)
        shapes.append(
            None if points is None else [(np.reshape(points, (-1, 2)) * [width, height]).reshape(-1).tolist()]
        )
    return Annotations.of(boxes, labels, ids=ids, shapes=shapes)


def _row(
    line: str, known: dict[Any, int], at: str, odd: Odd
) -> tuple[int, tuple[float, float, float, float], Sequence[float] | None] | None:
    """Read one line: class index, box in centre form, outline or None."""
    try:
        number, *values = (float(v) for v in line.split())
    except ValueError:
        number, values = -1.0, []
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        odd.add(
            "bad_line", ERROR, "{n} label lines are not class, centre x, centre y, width, height", "correct them", at
        )
        return None
    label = known.get(int(number)) if number == int(number) else None
    if label is None:
        odd.add(
            "unknown_class", ERROR, "{n} boxes have a class that data.yaml does not name",
            "add it to names, or correct the lines: classes count from 0", at,
        )  # fmt: skip
        return None
    if max(values) > _ROOM or min(values) < 1 - _ROOM:
        severity = ERROR if max(values) > 2 else WARNING
        odd.add(
            f"not_shares_{severity}", severity, "{n} boxes are not shares between 0 and 1"
            + (" but pixels" if severity == ERROR else ""), "divide them by width and height of their image", at,
        )  # fmt: skip
    if len(values) == 4:
        x, y, w, h = values
        return label, (x, y, w, h), None
    xs, ys = values[::2], values[1::2]
    centre = ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys))
    return label, centre, values
