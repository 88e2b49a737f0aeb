"""Each layout of images with boxes is read to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrail.data.detection.masks import compressed, from_polygons, from_rle, mask_of, to_rle
from vitrail.data.detection.scenes import COUNTS, MOST, OVERLAP, read_scenes
from vitrail.data.detection.source import is_detection, open_boxes, read_boxes
from vitrail.data.detection.voc import read_voc
from vitrail.errors import DataError
from vitrail.training.baserecipe import task_of

from .boxed import NAMES, annotation, coco, picture, usual, write_coco

BOXES = [[2.5, 3, 10, 12], [20, 5, 15, 20]]


def check_first(layout: Any, split: str = "train", crowd: bool = True) -> None:
    """The first image of :func:`usual`, whatever it was read from."""
    part = layout.parts[split]
    assert layout.classes.names == tuple(NAMES.values())
    assert np.allclose(part.objects[0].xywh, BOXES)
    assert part.objects[0].labels.tolist() == [0, 1]
    if crowd:
        assert part.objects[2].crowd.tolist() == [True, False]
    assert [len(o) for o in part.objects][:2] == [2, 1]


@pytest.mark.parametrize(
    ("json_at", "images_at"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
        ("train.json", "train"),
        ("annotations_train.json", "images"),
        ("labels.json", "."),
    ],
)
def test_coco_is_found_in_the_usual_places(tmp_path: Path, json_at: str, images_at: str) -> None:
    path = tmp_path / json_at
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(4, usual())))
    for i in range(1, 5):
        picture(tmp_path / images_at / f"{i}.png", seed=i)
    assert is_detection(str(tmp_path))
    assert task_of(str(tmp_path)) == "detect"
    layout = read_boxes(str(tmp_path))
    check_first(layout)
    assert layout.classes.ids == (3, 7)
    assert "with holes" in layout.notes[0]
    assert layout.parts["train"].objects[3].xywh.shape == (0, 4)
    images = layout.parts["train"].to_set(layout.classes)
    assert images.read(0).image.shape == (3, 30, 40)
    assert images.ids == (10, 20, 30, 40)


def test_splits_of_one_folder_share_their_classes(tmp_path: Path) -> None:
    write_coco(write_coco(tmp_path), split="val")
    splits = open_boxes(str(tmp_path))
    assert (len(splits.train), len(splits.val), splits.test) == (4, 4, None)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "lion"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="'cat' and 'lion' for id 3"):
        open_boxes(str(tmp_path))


@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
def test_other_forms_of_boxes_come_out_alike(tmp_path: Path, form: str) -> None:
    rows = usual()
    for row in rows:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x, y, x + w, y + h] if form == "xyxy" else [x + w / 2, y + h / 2, w, h]
    check_first(read_boxes(str(write_coco(tmp_path, rows)), form))


def write_yolo(root: Path, yaml: str, first: str = "") -> None:
    (root / "data.yaml").write_text(yaml)
    (root / "labels" / "train").mkdir(parents=True)
    lines = {1: [(0, 7.5, 9, 10, 12), (1, 27.5, 15, 15, 20)], 2: [(0, 20, 15, 40, 30)], 3: [(0, 8.5, 10, 7, 8)]}
    for number in range(1, 5):
        picture(root / "images" / "train" / f"{number}.png", seed=number)
        rows = [f"{c} {x / 40} {y / 30} {w / 40} {h / 30}" for c, x, y, w, h in lines.get(number, [])]
        if rows:
            (root / "labels" / "train" / f"{number}.txt").write_text("\n".join([first, *rows] if first else rows))


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}"])
def test_yolo(tmp_path: Path, names: str) -> None:
    write_yolo(tmp_path, f"path: .\ntrain: images/train\nnames: {names}\n")
    layout = read_boxes(str(tmp_path))
    check_first(layout, crowd=False)
    assert layout.parts["train"].sizes[0].tolist() == [30, 40]
    assert [f.code for f in layout.odd.findings()] == ["no_labels"]


def test_yolo_lines_that_are_wrong_are_named(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train: images/train\nnames: [cat, dog]\n", first="5 0.5 0.5 0.1 0.1\n0 12 8 20 10\n0 0.5")
    found = {f.code: f for f in read_boxes(str(tmp_path)).odd.findings()}
    assert "1.png: line 1" in found["unknown_class"].examples[0]
    assert "line 2" in found["not_shares_error"].examples[0]
    assert "line 3" in found["bad_line"].examples[0]
    with pytest.raises(DataError, match="not shares"):
        open_boxes(str(tmp_path))


def test_yolo_outlines_become_boxes_and_masks(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train: images/train\nnames: [cat, dog]\n", first="1 0.25 0.2 0.5 0.2 0.5 0.6")
    objects = read_boxes(str(tmp_path)).parts["train"].objects[0]
    assert np.allclose(objects.xywh[0], [10, 6, 10, 12])
    assert mask_of(objects.shapes[0], (30, 40)).any()


def write_voc(root: Path, first: int = 1) -> None:
    for number in range(1, 4):
        picture(root / "JPEGImages" / f"{number}.jpg", seed=number)
    boxes = {
        1: [("cat", 2, 3, 12, 15, 0), ("dog", 20, 5, 35, 25, 0)],
        2: [("cat", 0, 0, 40, 30, 0)],
        3: [("dog", 1, 1, 21, 21, 1), ("cat", 5, 6, 12, 14, 0)],
    }
    (root / "Annotations").mkdir()
    for number, rows in boxes.items():
        objects = "".join(
            f"<object><name>{n}</name><difficult>{d}</difficult><bndbox>"
            f"<xmin>{a + first}</xmin><ymin>{b + first}</ymin>"
            f"<xmax>{c}</xmax><ymax>{e}</ymax></bndbox></object>"
            for n, a, b, c, e, d in rows
        )
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.jpg</filename><size><width>40</width><height>30</height></size>{objects}"
            "</annotation>"
        )


@pytest.mark.parametrize("first", [0, 1])
def test_pascal_voc_counts_pixels_from_one_unless_one_is_zero(tmp_path: Path, first: int) -> None:
    write_voc(tmp_path, first)
    layout = read_voc(str(tmp_path))
    objects = layout.parts["train"].objects
    assert np.allclose(objects[0].xywh, [[2, 3, 10, 12], [20, 5, 15, 20]])
    assert np.allclose(objects[1].xywh, [[0, 0, 40, 30]])
    assert objects[2].crowd.tolist() == [True, False]
    assert f"counted from {first}" in layout.notes[0]
    assert is_detection(str(tmp_path))


def test_pascal_voc_lists_are_its_splits(tmp_path: Path) -> None:
    write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n3\n")
    (lists / "val.txt").write_text("2\n")
    splits = open_boxes(str(tmp_path))
    assert (len(splits.train), len(splits.val)) == (2, 1)
    assert splits.train.name(1).endswith("3.jpg")


@pytest.mark.parametrize("lists", [True, False])
def test_parquet_with_objects(tmp_path: Path, lists: bool) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for number in range(1, 5):
        picture(tmp_path / "own" / f"{number}.png", seed=number)
        mine = [row for row in usual() if row["image_id"] == 10 * number]
        objects: Any = [{"id": r["id"], "bbox": r["bbox"], "category": {3: 0, 7: 1}[r["category_id"]]} for r in mine]
        if lists:
            objects = {key: [o[key] for o in objects] for key in ("id", "bbox", "category")}
        blob = (tmp_path / "own" / f"{number}.png").read_bytes()
        rows.append({"image_id": number, "image": {"bytes": blob, "path": f"{number}.png"}, "objects": objects})
    table = pa.Table.from_pylist(rows)
    feature = {"category": {"names": list(NAMES.values()), "_type": "ClassLabel"}}
    told = {"info": {"features": {"objects": feature if lists else [feature]}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    source = str(tmp_path / "set")
    assert task_of(source) == "detect"
    layout = read_boxes(source)
    check_first(layout, crowd=False)
    assert layout.parts["train"].sizes[0].tolist() == [30, 40]
    assert len(open_boxes(source, val_fraction=0.25).val) == 1


def test_nothing_of_the_kind_is_said_so(tmp_path: Path) -> None:
    assert not is_detection(str(tmp_path))
    with pytest.raises(DataError, match="got none of them"):
        read_boxes(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        read_boxes(str(tmp_path / "nowhere"))


def test_scenes_are_arithmetic_and_their_boxes_hold_the_ink() -> None:
    layout, again = read_scenes(), read_scenes()
    assert {s: len(p.ids) for s, p in layout.parts.items()} == COUNTS
    part = layout.parts["val"]
    for row in range(6):
        assert np.array_equal(part.store.read(row), again.parts["val"].store.read(row))
        height, width = part.sizes[row]
        corners = part.objects[row].xyxy
        assert 1 <= len(corners) <= MOST
        assert (corners >= 0).all()
        assert (corners <= [width, height, width, height]).all()
        for i, a in enumerate(corners):
            for b in corners[:i]:
                inner = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
                assert inner <= (OVERLAP + 0.02) * min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2]))
    digits = part.store
    size = tuple(part.sizes[0])
    for place in digits.placed[0]:  # type: ignore[attr-defined]
        left, top, right, bottom = digits.box(place)  # type: ignore[attr-defined]
        alpha = digits._alpha(place, size)[0].numpy()  # type: ignore[attr-defined]
        rows, columns = np.flatnonzero(alpha.max(1) > 0.05), np.flatnonzero(alpha.max(0) > 0.05)
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(edges) - [left, top, right, bottom]).max() <= 1 + 0.15 * place.side / 8
    digests = {p.to_set(layout.classes).subset(range(20)).digest() for p in layout.parts.values()}
    assert len(digests) == 3


def test_run_lengths_are_read_in_both_writings_and_written_back() -> None:
    mask = np.zeros((5, 4), dtype=bool)
    mask[1:4, 1:3] = True
    plain = to_rle(mask)
    assert plain == {"size": [5, 4], "counts": [6, 3, 2, 3, 6]}
    assert np.array_equal(from_rle(plain, (5, 4)), mask)
    # by hand, "common/maskApi": lengths 6 3 2 3 6; from the fourth on as differences: 6 3 2 0 4
    assert np.array_equal(from_rle({"size": [5, 4], "counts": "63204"}, (5, 4)), mask)
    with pytest.raises(DataError, match="size of its image"):
        from_rle(plain, (4, 5))


def test_polygons_fill_their_inside() -> None:
    mask = from_polygons([[10, 5, 30, 5, 30, 20, 10, 20]], (30, 40))
    assert mask[6:19, 11:29].all()
    assert abs(int(mask.sum()) - 300) <= 40  # the border is Pillow's to decide
    with pytest.raises(DataError, match="three points"):
        from_polygons([[1, 2, 3, 4]], (30, 40))


def test_annotations_without_an_image_are_left_out_and_named(tmp_path: Path) -> None:
    layout = read_boxes(str(write_coco(tmp_path, [*usual(), annotation(9, 999, [1, 1, 2, 2])])))
    assert "annotation 9: image_id 999" in layout.odd.lines("no_such_image")[0]


def test_masks_are_compressed_as_the_library_of_coco_does_it() -> None:
    from faster_coco_eval.core import mask as reference

    masks = np.random.default_rng(0).random((6, 37, 150)) < np.array([0.0, 0.02, 0.3, 0.7, 0.98, 1.0])[:, None, None]
    masks[2, :, 30:120] = True  # long runs: several characters a length
    for mask in masks:
        code = compressed(mask)
        assert code["counts"].encode() == reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert np.array_equal(from_rle(code, mask.shape), mask)
