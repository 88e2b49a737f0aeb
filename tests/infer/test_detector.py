"""The detector: one door for images as people have them, typed answers, batch = single, files of COCO's form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError
from vitrail.infer.detector import Detector, fit_of, load_detector, results_to_coco
from vitrail.infer.looking import draw_looking, looking
from vitrail.models import create_model
from vitrail.nn.detection import Detections
from vitrail.weights import Card, save_folder

CLASSES = ClassMap(("cat", "dog", "bird"), (3, 7, 90))


def network(name="test_deformable_detr_small"):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, img_size=96)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    card = Card(name="test_deformable_detr_small", input_size=(96, 96))
    return save_folder(tmp_path_factory.mktemp("models") / "d", network(), card=card, classes=CLASSES)


@pytest.fixture(scope="module")
def detector(folder):
    return load_detector(folder, device="cpu", threshold=0.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(40, 60), (70, 30), (64, 64)], start=1):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


def test_load_gives_a_detector(folder):
    assert isinstance(vitrail.load(folder, device="cpu"), Detector)


def test_answers_are_in_pixels_of_the_image_best_first(detector, pictures):
    results = detector(pictures)
    assert [r.size for r in results] == [(40, 60), (70, 30), (64, 64)]
    for result in results:
        height, width = result.size
        assert len(result) == 9  # a query answers with one class
        assert (np.diff(result.scores) <= 0).all()
        assert (result.boxes_xyxy >= 0).all()
        assert (result.boxes_xyxy <= [width, height, width, height]).all()


def test_a_batch_answers_as_each_image_alone(detector, pictures):
    together = detector(sorted(pictures.glob("*.png")))
    for path, batched in zip(sorted(pictures.glob("*.png")), together, strict=True):
        alone = detector(path)
        np.testing.assert_allclose(alone.scores, batched.scores, atol=1e-4)
        np.testing.assert_allclose(np.sort(alone.boxes_xyxy, 0), np.sort(batched.boxes_xyxy, 0), atol=0.02)


def test_a_threshold_leaves_out_and_json_is_plain(detector, pictures):
    result = detector(pictures / "1.png")
    middle = float(np.median(result.scores))
    fewer = result.above(middle)
    assert 0 < len(fewer) < len(result)
    told = json.loads(json.dumps(fewer.to_json()))
    assert told["size"] == [40, 60]
    assert {o["label"] for o in told["objects"]} <= set(CLASSES.names)
    assert all(o["score"] >= middle - 1e-6 for o in told["objects"])


def test_what_cannot_be_read_is_an_answer_too(detector, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    results = detector([tmp_path / "bad.png", pictures / "1.png"])
    assert [r.ok for r in results] == [False, True]
    assert results[0].to_json()["error"]["reason"] == "not_an_image"
    with pytest.raises(DataError, match="expected an image to draw"):
        results[0].plot()


def test_a_picture_is_drawn_at_the_size_of_the_image_or_larger(detector, pictures, tmp_path):
    drawn = detector(pictures / "2.png").above(0.0).plot(tmp_path / "drawn.png")
    assert drawn.height % 70 == 0
    assert (tmp_path / "drawn.png").stat().st_size > 0
    plain = Image.open(pictures / "2.png").resize(drawn.size, Image.Resampling.BOX)
    assert np.any(np.asarray(drawn) != np.asarray(plain))


def test_results_are_written_with_the_ids_of_the_data(detector, pictures, tmp_path):
    results = detector(pictures)
    rows = results_to_coco(results, detector.classes, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == rows
    assert {row["category_id"] for row in rows} <= {3, 7, 90}
    assert {row["image_id"] for row in rows} == {1, 2, 3}
    x, y, w, h = rows[0]["bbox"]
    np.testing.assert_allclose([x, y, x + w, y + h], results[0].boxes_xyxy[0], atol=1e-4)


@pytest.mark.parametrize("name", ["test_deformable_detr_small", "test_deformable_detr", "test_detr"])
def test_where_a_query_looked_is_a_map_over_the_image(name, pictures, tmp_path):
    own = Detector(network(name), Card(name=name, input_size=(96, 96)), device="cpu")
    pixels = torch.from_numpy(np.array(Image.open(pictures / "1.png"))).permute(2, 0, 1)
    told = looking(own, pixels)
    assert told["heat"].ndim == 2
    assert float(told["heat"].max()) == 1.0
    left, top, right, bottom = told["box_xyxy"]
    at = ((left + right) / 2, (top + bottom) / 2)
    again = draw_looking(own, pixels, at, tmp_path / "looked.png")
    assert again["query"] == told["query"]
    assert (tmp_path / "looked.png").is_file()
    with pytest.raises(UsageError, match="a pixel that a box holds"):
        looking(own, pixels, (5000.0, 5000.0))


def test_masks_come_at_the_size_of_the_image(pictures):
    own = Detector(
        network("test_detr_masks"), Card(name="test_detr_masks", input_size=(96, 96)), device="cpu", threshold=0.0
    )
    result = own(pictures / "2.png")
    assert result.masks.shape == (len(result), 70, 30)
    assert result.plot().height >= 70


@pytest.mark.parametrize("nms", [None, 0.3])
def test_a_mask_is_that_of_the_query_that_gave_the_box(nms):
    """A network whose masks say which query they are of: row by row the mask and the box are of one query."""

    class Told(torch.nn.Module):
        config = network("test_detr_masks").config

        def forward(self, images, keep):
            torch.manual_seed(3)
            boxes = torch.rand(6, 4) * 0.1 + torch.tensor([0.4, 0.4, 0.3, 0.3])
            masks = torch.full((6, 6, 8), -1.0)
            masks[torch.arange(6), :, torch.arange(6)] = 1.0  # a column of its own
            logits = torch.randn(6, self.config.num_classes + 1)
            return Detections(logits[None, None], boxes[None, None], masks=masks[None])

    model = Told()
    own = Detector(model, Card(name="test_detr_masks", input_size=(60, 80)), device="cpu", threshold=0.0, nms=nms)
    found = own(torch.zeros(3, 60, 80))
    said = model(None, None)
    assert 0 < len(found) <= 6
    for box, mask in zip(found.boxes_xyxy, found.masks, strict=True):
        query = int(np.flatnonzero(mask.any(0)).mean() // 10)
        centre = said.boxes_cxcywh01[0, 0, query, :2].numpy() * [80, 60]
        np.testing.assert_allclose([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], centre, atol=1e-3)


def test_options_are_checked():
    card = Card(name="test_detr", input_size=(96, 96))
    with pytest.raises(UsageError, match="threshold between 0 and 1"):
        Detector(network("test_detr"), card, threshold=2.0)
    with pytest.raises(UsageError, match="batch size"):
        Detector(network("test_detr"), card, batch_size=0)
    plain, several = network("test_detr").config, network().config
    assert fit_of((800, 1333), plain).target((480, 640)) == (800, 1067)
    assert fit_of(320, several).target((480, 640)) == (256, 320)


def test_a_network_with_masks_may_find_nothing():
    torch.manual_seed(0)
    model = create_model("test_detr_masks")
    torch.nn.init.constant_(model.head.bias[-1:], 50.0)  # "no object" everywhere
    card = Card(name="test_detr_masks", input_size=(64, 64))
    found = Detector(model, card, device="cpu")(torch.rand(3, 50, 70))
    assert (found.boxes_xyxy.shape, found.masks.shape) == ((0, 4), (0, 50, 70))


def test_a_file_of_one_size_brings_images_to_the_size_its_run_brings_them_to():
    model = network("test_deformable_detr_small")
    model.size = (96, 96)
    own = Detector(model, Card(name="test", input_size=(96, 96)), device="cpu")
    for size in ((120, 96), (50, 200), (96, 96), (10, 300)):
        assert own.target(size) == fit_of((96, 96), model.config).target(size)
        images, keep = own.inputs([torch.zeros(3, *size, dtype=torch.uint8)])
        assert images.shape == (1, 3, 96, 96)
        assert keep is None or int(keep.sum()) == own.target(size)[0] * own.target(size)[1]
