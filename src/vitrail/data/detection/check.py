"""What is wrong with boxes, named with file and annotation before training starts, and what to do.

Limits: the headers of at most :data:`MOST_PROBED` images a split are read (evenly chosen); a finding shows five
examples, the full list (``vitrail data check --csv``) up to 10,000 lines of a kind.
n objects of an image; boxes ``xywh`` in pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitrail.classes import ClassMap
from vitrail.data.decode import BrokenImage, ImageInfo, probe_image
from vitrail.data.imageset import Store, too_many_broken
from vitrail.data.report import ERROR, INFO, WARNING, Finding

from .layout import BoxLayout, BoxPart, Odd
from .sets import Annotations

MOST_PROBED = 20_000
SUSPICIOUS = 0.1  # share of boxes that leave their image from which on another form is suspected
CONVINCING = 0.98  # share of boxes that make sense in another form from which on it is named
ROOM = 2.0  # pixels that a box may pass the border by: annotation tools round
SEVERITIES = (ERROR, WARNING, INFO)
TURNED = {5, 6, 7, 8}


def judge(layout: BoxLayout, max_broken: float = 0.01) -> list[Finding]:
    """Return everything odd about a layout, worst first.

    Missing images are taken out of its parts, and boxes of photographs that were annotated lying on their side are
    turned upright with them; nothing else is changed.
    """
    for split in layout.parts:
        layout.parts[split] = _images(layout.parts[split], split, layout.odd, max_broken)
        _boxes(layout.parts[split], split, layout.odd, layout.classes)
    _form(layout)
    _classes(layout)
    return sorted(layout.odd.findings(), key=lambda finding: SEVERITIES.index(finding.severity))


def probe(store: Store, row: int) -> ImageInfo:
    """Read the header of an image. Raises :class:`BrokenImage`."""
    path = store.path(row)
    return probe_image(store.blob(row) if path is None else path)


def _images(part: BoxPart, split: str, odd: Odd, max_broken: float) -> BoxPart:
    """Look at the images themselves: are they there, are they of the size the annotations speak of."""
    if not hasattr(part.store, "root"):
        return part  # pixels that cannot be missing: an array, a table
    count = len(part.ids)
    step = max(1, -(-count // MOST_PROBED))
    missing: set[int] = set()
    objects, sizes = list(part.objects), part.sizes.copy()
    for row in range(0, count, step):
        try:
            info = probe(part.store, int(part.rows[row]))
        except BrokenImage as error:
            if error.reason == "missing":
                missing.add(row)
            continue
        stored, upright, said = (info.height, info.width), info.upright, (int(sizes[row, 0]), int(sizes[row, 1]))
        name = f"{split}: {part.name(row)}"
        if said != upright and said == stored and info.orientation in TURNED:
            objects[row] = turned(objects[row], info.orientation, stored)
            sizes[row] = upright
            odd.add(
                "turned", INFO, "{n} photographs lie on their side (EXIF) and were annotated so",
                "none: boxes are turned upright with the pixels", name,
            )  # fmt: skip
        elif said[0] and said != upright:
            odd.add(
                "other_size", ERROR, "{n} images have another size than their annotations say",
                "annotate the images you have: boxes in pixels of another size lie elsewhere",
                f"{name}: {upright[1]} x {upright[0]} pixels, {said[1]} x {said[0]} in the annotations",
            )  # fmt: skip
    return _without(replace(part, objects=objects, sizes=sizes), missing, split, odd, max_broken)


def _without(part: BoxPart, missing: set[int], split: str, odd: Odd, max_broken: float) -> BoxPart:
    """Take missing images out; too many of them are an error."""
    if not missing:
        return part
    severity = ERROR if len(missing) > too_many_broken(max_broken, len(part.ids)) else WARNING
    for row in sorted(missing):
        odd.add(
            f"missing_{split}", severity, f"{{n}} images of {split} are not there",
            "fetch them, or correct file_name; a few are left out (data.max_broken)",
            f"{split}: {part.name(row)} (id {part.ids[row]}, {len(part.objects[row])} annotations)",
        )  # fmt: skip
    return part.take([row for row in range(len(part.ids)) if row not in missing])


def turned(objects: Annotations, orientation: int, stored: tuple[int, int]) -> Annotations:
    """Return objects of a stored image (H, W) as they lie once it is upright; outlines in polygons go along."""
    height, width = stored
    flip_x, flip_y = {5: (False, False), 6: (False, True), 7: (True, True), 8: (True, False)}[orientation]

    def point(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return (height - y if flip_y else y), (width - x if flip_x else x)

    corners = objects.xyxy
    xs, ys = zip(*(point(corners[:, a], corners[:, b]) for a, b in ((0, 1), (2, 3))), strict=True)
    left, right = np.minimum(*xs), np.maximum(*xs)
    top, bottom = np.minimum(*ys), np.maximum(*ys)
    shapes = []
    for shape in objects.shapes:
        if not isinstance(shape, list):
            shapes.append(None)
            continue
        polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in shape]
        shapes.append([np.stack(point(p[:, 0], p[:, 1]), 1).reshape(-1).tolist() for p in polygons])
    xywh = np.stack([left, top, right - left, bottom - top], 1)
    return replace(objects, xywh=xywh, shapes=tuple(shapes))


def _boxes(part: BoxPart, split: str, odd: Odd, classes: ClassMap) -> None:
    """Look at each box: has it an area, does it lie in its image, is it there twice."""
    for row, objects in enumerate(part.objects):
        if not len(objects):
            odd.add("no_objects", INFO, "{n} images have no object on them", "none, if that is so", "")
            continue
        size = part.sizes[row]
        flat = (objects.xywh[:, 2:] <= 0).any(1)
        far, over = np.zeros_like(flat), np.zeros_like(flat)
        if size.all():
            limit = size[[1, 0, 1, 0]].astype(np.float64)
            corners = objects.xyxy
            inside = np.clip(corners, 0, limit)
            far = ~flat & ((inside[:, 2:] - inside[:, :2]) <= 0).any(1)
            over = ~flat & ~far & (np.abs(corners - inside).max(1) > ROOM)
        seen: set[tuple[float, ...]] = set()
        where = f"{split}: {part.name(row)}"
        for i in range(len(objects)):
            line = f"{where}: annotation {objects.ids[i]}: box {_words(objects.xywh[i])} (left, top, width, height)"
            line += f" in {size[1]} x {size[0]} pixels" if size.all() else ""
            key = (float(objects.labels[i]), *objects.xywh[i].tolist())
            _judge_box(odd, line, flat=bool(flat[i]), far=bool(far[i]), over=bool(over[i]), twice=key in seen)
            seen.add(key)
            _judge_mask(odd, line, objects.shapes[i], size)


def _judge_box(odd: Odd, line: str, *, flat: bool, far: bool, over: bool, twice: bool) -> None:
    if flat:
        odd.add(
            "no_area", WARNING, "{n} boxes have no area; they are not trained on",
            "remove them, or correct width and height (right and bottom given instead?)", line,
        )  # fmt: skip
    if far:
        odd.add(
            "outside", WARNING, "{n} boxes lie outside their image; they are not trained on",
            "correct them: pixels of another size, or another image's", line,
        )  # fmt: skip
    if over:
        odd.add("over", INFO, "{n} boxes pass the border of their image", "none: they are cut off in training", line)
    if twice and not flat:
        odd.add("twice", WARNING, "{n} boxes are there twice, with the same class", "remove the second", line)


def _judge_mask(odd: Odd, line: str, shape: object, size: NDArray[np.int64]) -> None:
    if isinstance(shape, dict) and size.all() and list(shape.get("size", size)) != size.tolist():
        odd.add(
            "mask_size", ERROR, "{n} masks have another size than their image",
            "write run lengths of the image's height and width", f"{line}: mask of {shape['size']} (height, width)",
        )  # fmt: skip


def _words(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _form(layout: BoxLayout) -> None:
    """Suspect boxes that are written in another form than they are read in: many leave their images."""
    boxes, limits = [], []
    for part in layout.parts.values():
        for row, objects in enumerate(part.objects):
            if part.sizes[row].all():
                boxes.append(objects.xywh)
                limits.append(np.broadcast_to(part.sizes[row][[1, 0]].astype(np.float64), (len(objects), 2)))
    every = np.concatenate([np.zeros((0, 4)), *boxes])
    limit = np.concatenate([np.zeros((0, 2)), *limits])
    if not len(every):
        return
    first = _words(every[0])
    if np.abs(every).max() <= 1.5 and limit.min() > 16:
        layout.odd.add(
            "normalised", ERROR, "all {n} boxes lie between 0 and 1: shares of the image, not pixels",
            "multiply them by width and height of their image", f"the first is {first}", count=len(every),
        )  # fmt: skip
        return
    a, b = every[:, :2], every[:, 2:]
    odd_ones = ((a + b > limit + ROOM) | (b < 0)).any(1)
    if odd_ones.mean() < SUSPICIOUS:
        return
    corners = ((b > a) & (b <= limit + ROOM)).all(1).mean()
    centres = ((a - b / 2 >= -ROOM) & (a + b / 2 <= limit + ROOM)).all(1).mean()
    name, share = max((("xyxy", corners), ("cxcywh", centres)), key=lambda pair: pair[1])
    if share >= CONVINCING:
        form = "left, top, right, bottom" if name == "xyxy" else "centre, width, height"
        layout.odd.add(
            "other_form", ERROR,
            f"{100 * odd_ones.mean():.0f} % of the boxes leave their images if they are left, top, width, height, but "
            f"{100 * share:.0f} % make sense as {form}: {name} is given as xywh",
            f"--set data.boxes={name}, or correct the file", f"the first is {first}", count=int(odd_ones.sum()),
        )  # fmt: skip
    else:
        layout.odd.add(
            "astray", ERROR, "{n} boxes leave their images: more than one in ten",
            "look at the form of the boxes and the size of the images", f"the first is {first}",
            count=int(odd_ones.sum()),
        )  # fmt: skip


def _classes(layout: BoxLayout) -> None:
    """Look at the classes: is there anything to learn, and is all that is measured also trained on."""
    count = len(layout.classes)
    counts = {}
    for split, part in layout.parts.items():
        labels = np.concatenate([np.zeros(0, dtype=np.int64), *(o.labels[~o.crowd] for o in part.objects)])
        counts[split] = np.bincount(labels, minlength=count)
    train = counts.get("train", np.zeros(count, dtype=np.int64))
    if not train.sum():
        layout.odd.add(
            "nothing", ERROR, "there is not a single object to train on", "look at the annotations of train", ""
        )
    for split, found in counts.items():
        for label in np.flatnonzero((found > 0) & (train == 0)):
            layout.odd.add(
                f"only_in_{split}", WARNING, f"{{n}} classes have objects in {split} but none in train",
                "add training images of them: they cannot be learned", str(layout.classes.names[label]),
            )  # fmt: skip
    for label in np.flatnonzero(sum(counts.values()) == 0):
        layout.odd.add(
            "empty_class", INFO, "{n} classes have no object anywhere", "none: they stay in the model",
            str(layout.classes.names[label]),
        )  # fmt: skip
