"""What is wrong with boxes is named with file and annotation before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.data.detection.check import judge, turned
from vitrail.data.detection.sets import Annotations
from vitrail.data.detection.source import open_boxes, read_boxes
from vitrail.data.report import Finding
from vitrail.errors import DataError

from .boxed import annotation, coco, picture, usual, write_coco


def findings(root: Path) -> dict[str, Finding]:
    return {finding.code: finding for finding in judge(read_boxes(str(root)))}


def test_a_sound_set_has_nothing_wrong(tmp_path: Path) -> None:
    found = findings(write_coco(tmp_path))
    assert {code for code, f in found.items() if f.severity != "info"} == set()
    assert found["no_objects"].count == 1


@pytest.mark.parametrize(
    ("box", "code"), [([50, 5, 5, 5], "outside"), ([3, 3, 0, 8], "no_area"), ([3, 3, -4, 8], "no_area")]
)
def test_boxes_that_cannot_be_learned_are_named_and_left_out(tmp_path: Path, box: list[float], code: str) -> None:
    root = write_coco(tmp_path, [*usual() * 3, annotation(77, 20, box)])
    found = findings(root)[code]
    assert found.severity == "warning"
    assert "train: 2.png: annotation 77" in found.examples[0]
    splits = open_boxes(str(root), val_fraction=0.25)
    assert any("annotation 77" in note for note in splits.notes)


def test_a_box_over_the_border_is_noted(tmp_path: Path) -> None:
    found = findings(write_coco(tmp_path, [*usual() * 3, annotation(8, 10, [30, 5, 20, 5])]))["over"]
    assert (found.severity, found.count) == ("info", 1)


def test_a_box_that_is_there_twice_is_named(tmp_path: Path) -> None:
    found = findings(write_coco(tmp_path, [*usual(), annotation(8, 10, [2.5, 3, 10, 12])]))
    assert "annotation 8" in found["twice"].examples[0]


def written(form: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        w, h = rng.uniform(5, 20), rng.uniform(5, 15)
        x, y = rng.uniform(0, 40 - w), rng.uniform(0, 30 - h)
        box = {
            "xyxy": [x, y, x + w, y + h],
            "cxcywh": [x + w / 2, y + h / 2, w, h],
            "normalised": [x / 40, y / 30, w / 40, h / 30],
            "xywh": [x, y, w, h],
        }[form]
        rows.append(annotation(number + 1, 10 * (number % 4 + 1), [float(v) for v in box]))
    return rows


@pytest.mark.parametrize("form", ["xyxy", "cxcywh"])
def test_another_form_is_suspected_and_the_way_out_works(tmp_path: Path, form: str) -> None:
    root = str(write_coco(tmp_path, written(form)))
    with pytest.raises(DataError, match=f"{form} is given as xywh.*--set data.boxes={form}"):
        open_boxes(root)
    assert len(open_boxes(root, form=form, val_fraction=0.25).train) == 3


def test_shares_given_as_pixels_are_suspected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shares of the image, not pixels"):
        open_boxes(str(write_coco(tmp_path, written("normalised"))))


def test_right_boxes_are_not_suspected(tmp_path: Path) -> None:
    assert "other_form" not in findings(write_coco(tmp_path, written("xywh")))


def test_ids_that_are_no_category_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png: annotation 8: category_id 1") as caught:
        open_boxes(str(write_coco(tmp_path, [*usual(), annotation(8, 10, [1, 1, 5, 5], 1)])))
    assert "1 to 90 with holes" in str(caught.value)


def test_missing_images_are_an_error_unless_few(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (root / "train2017" / "3.png").unlink()
    assert findings(root)["missing_train"].severity == "warning"
    splits = open_boxes(str(root), val_fraction=0.34)
    assert len(splits.train) + len(splits.val) == 3
    (root / "train2017" / "2.png").unlink()
    with pytest.raises(DataError, match=r"train: 2\.png \(id 20, 1 annotations\)"):
        open_boxes(str(root))


def test_images_beside_the_json_are_noted(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    picture(root / "train2017" / "extra.png")
    assert "extra.png" in findings(root)["not_in_json"].examples[0]


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    picture(root / "train2017" / "2.png", 80, 60)
    with pytest.raises(DataError, match=r"2\.png: 80 x 60 pixels, 40 x 30 in the annotations"):
        open_boxes(str(root))


def test_masks_of_another_size_are_named(tmp_path: Path) -> None:
    bad = annotation(8, 10, [1, 1, 5, 5], segmentation={"size": [5, 4], "counts": [20]})
    assert findings(write_coco(tmp_path, [*usual(), bad]))["mask_size"].severity == "error"


def test_classes_without_training_objects_are_named(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [row for row in usual() if row["category_id"] == 3])
    write_coco(root, split="val")
    assert findings(root)["only_in_val"].examples == ("dog",)


def test_a_set_without_any_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a single object"):
        open_boxes(str(write_coco(tmp_path, [])))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_photograph_annotated_lying_is_turned_with_its_boxes(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[4:12, 6:26] = 255  # what the box is around, as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "train").mkdir()
    Image.fromarray(pixels).save(tmp_path / "train" / "1.png", exif=exif)
    content = coco(1, [annotation(1, 10, [6, 4, 20, 8])])
    (tmp_path / "train.json").write_text(json.dumps(content))
    layout = read_boxes(str(tmp_path))
    codes = {finding.code for finding in judge(layout)}
    assert "turned" in codes
    scene = layout.parts["train"].to_set(layout.classes).read(0)
    left, top, width, height = scene.objects.xywh[0].round().astype(int)
    inside = scene.image[0, top : top + height, left : left + width]
    assert (inside == 255).all()
    assert int((scene.image[0] == 255).sum()) == width * height


def test_outlines_are_turned_too() -> None:
    objects = Annotations.of([[6, 4, 20, 8]], [0], shapes=[[[6, 4, 26, 4, 26, 12]]])
    found = turned(objects, 6, (30, 40))
    points = np.reshape(found.shapes[0][0], (-1, 2))
    low, high = points.min(0), points.max(0)
    assert np.allclose(found.xyxy[0], [*low, *high])
