"""Pascal VOC's layout: an xml an image, boxes as corners in pixels.

Source: Everingham et al. 2010, IJCV 88, and the development kit: ``Annotations/*.xml``, ``JPEGImages/``,
``ImageSets/Main/train.txt``; Roboflow's form: xml beside the images of ``train/``, ``valid/``, ``test/``. Pixels are
counted from 1, both ends included; where any corner is 0 the files count from 0, as many tools write them. Objects
marked ``difficult`` are treated as crowds: not trained on, neither right nor wrong when found.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from vitrail.data.decode import EXTENSIONS
from vitrail.data.imageset import FileStore, printable
from vitrail.data.layout import SPLITS, class_map, split_word
from vitrail.data.report import ERROR
from vitrail.errors import DataError

from .layout import BoxLayout, BoxPart, Odd
from .sets import Annotations

_Raw = tuple[list[tuple[str, tuple[float, ...], bool]], tuple[int, int], str]


def is_voc(source: str) -> bool:
    """True if a folder holds such xml in the usual places."""
    return bool(_find(source))


def _find(source: str) -> dict[str, list[Path]]:
    """Return split -> xml files; {} where there are none."""
    root = Path(source)
    if not root.is_dir():
        return {}
    folder = root / "Annotations"
    if folder.is_dir():
        every = {path.stem: path for path in sorted(folder.glob("*.xml"))}
        return _by_lists(root / "ImageSets" / "Main", every) if every else {}
    found: dict[str, list[Path]] = {}
    for below in sorted(p for p in root.iterdir() if p.is_dir()):
        split, files = split_word(below.name), sorted(below.glob("*.xml"))
        if split is not None and files:
            found[split] = files
    beside = sorted(root.glob("*.xml"))
    return found or ({"train": beside} if beside and _is_annotation(beside[0]) else {})


def _by_lists(folder: Path, every: dict[str, Path]) -> dict[str, list[Path]]:
    found = {}
    for split in SPLITS:
        listing = folder / f"{split}.txt"
        if listing.is_file():
            stems = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
            found[split] = [every[stem] for stem in stems if stem in every]
    return {split: files for split, files in found.items() if files} or {"train": list(every.values())}


def _is_annotation(path: Path) -> bool:
    try:
        return ElementTree.parse(path).getroot().tag == "annotation"
    except (ElementTree.ParseError, OSError):
        return False


def read_voc(source: str) -> BoxLayout:
    """Read Pascal VOC's layout. Raises :class:`DataError` naming the xml that cannot be read."""
    files, odd = _find(source), Odd()
    raw = {split: [_read(path) for path in paths] for split, paths in files.items()}
    classes = class_map(name for rows in raw.values() for objects, _, _ in rows for name, _, _ in objects)
    index = {source_id: i for i, source_id in enumerate(classes.ids)}
    corners = [c for rows in raw.values() for objects, _, _ in rows for _, c, _ in objects]
    first = 0 if any(min(c[:2]) < 1 for c in corners) else 1
    parts = {}
    for split, rows in raw.items():
        names = [_image(Path(source), path, row[2], split, odd) for path, row in zip(files[split], rows, strict=True)]
        objects = [_objects(row[0], index, first) for row in rows]
        sizes = np.array([row[1] for row in rows], dtype=np.int64).reshape(-1, 2)
        stems = tuple(path.stem for path in files[split])
        parts[split] = BoxPart(FileStore(source, names), stems, sizes, objects)
    layout = BoxLayout("Pascal VOC", source, parts, classes, odd)
    layout.notes.append(f"pixels are counted from {first}" + ("" if first else ": a corner is 0"))
    hard = sum(d for rows in raw.values() for objects, _, _ in rows for _, _, d in objects)
    if hard:
        layout.notes.append(f"{hard:,} objects marked difficult are not trained on, and neither right nor wrong")
    return layout


def _read(path: Path) -> _Raw:
    """Objects (name, corners, difficult), size (H, W), and the image's name of one xml."""
    try:
        root = ElementTree.parse(path).getroot()
        size = root.find("size")
        height, width = (0, 0) if size is None else (int(size.findtext(k) or 0) for k in ("height", "width"))
        objects = []
        for one in root.iter("object"):
            box = one.find("bndbox")
            if box is None:
                raise ValueError("an object without bndbox")
            corners = tuple(float(box.findtext(k) or "nothing") for k in ("xmin", "ymin", "xmax", "ymax"))
            objects.append(((one.findtext("name") or "").strip(), corners, one.findtext("difficult") == "1"))
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError(f"expected an annotation in Pascal VOC's xml in {printable(str(path))}: {error}") from None
    return objects, (height, width), root.findtext("filename") or path.stem


def _image(root: Path, path: Path, told: str, split: str, odd: Odd) -> str:
    """The image of an xml, relative to the root: by its stem in the usual folders, or by the name in the xml."""
    folders = (path.parent, root / "JPEGImages", root / "images", root)
    suffixes: Sequence[str] = (Path(told).suffix, *EXTENSIONS)
    for folder in folders:
        for name in (Path(told).name, *(path.stem + suffix for suffix in suffixes if suffix)):
            if (folder / name).is_file():
                return os.path.relpath(folder / name, root)
    odd.add(
        "no_image", ERROR, "{n} xml files have no image", "add the images, or remove the xml",
        f"{split}: {printable(str(path))}",
    )  # fmt: skip
    return os.path.relpath(path.with_suffix(Path(told).suffix or ".jpg"), root)


def _objects(rows: list[tuple[str, tuple[float, ...], bool]], index: dict[str | int, int], first: int) -> Annotations:
    boxes = [(x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first) for _, (x1, y1, x2, y2), _ in rows]
    return Annotations.of(boxes, [index[name] for name, _, _ in rows], crowd=[hard for _, _, hard in rows])
