"""The segmenter: any image, whole or in windows, files that can be trained on, explanations that ask for a pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vitrail
from tests.contract.every import randomise
from vitrail.classes import ClassMap
from vitrail.data.decode import read_values
from vitrail.errors import UsageError, WeightsError
from vitrail.explain.pixels import pixel_activation
from vitrail.infer.segmentation import class_colors
from vitrail.infer.segmenter import Segmenter
from vitrail.models import create_model
from vitrail.weights import Card, save_folder

NAMES = ClassMap(("sky", "road", "tree", "car", "sign"), (0, 1, 2, 4, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = randomise(create_model("test_segmenter_fpn"))
    card = Card(name="test_segmenter_fpn", input_size=(32, 32))
    return save_folder(tmp_path_factory.mktemp("m") / "f", model, card=card, classes=NAMES, extra={"short_side": None})


@pytest.fixture
def segmenter(folder):
    return vitrail.load(folder)


def picture(height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_whole_image_is_what_the_network_says(segmenter):
    image = picture()
    found = segmenter(image, how="whole")
    pixels = segmenter._prepared(torch.from_numpy(image).permute(2, 0, 1))
    with torch.inference_mode():
        logits = F.interpolate(segmenter.model(pixels[None]), size=(40, 56), mode="bilinear", align_corners=False)[0]
    assert (torch.from_numpy(found.labels).long() == logits.argmax(0)).float().mean() > 0.999
    assert found.scores.shape == (40, 56)
    assert sum(found.shares().values()) == pytest.approx(1)
    assert isinstance(segmenter, Segmenter)


@pytest.mark.parametrize("size", [(40, 56), (130, 70), (9, 13)])
def test_any_size_and_windows(segmenter, size):
    image = picture(*size)
    auto, windows = segmenter(image), segmenter(image, how="windows", overlap=0.5)
    assert auto.labels.shape == windows.labels.shape == size
    assert set(auto.shares()) <= set(NAMES.names)
    large = size[0] * size[1] > 4 * 32 * 32
    assert not large or np.array_equal(auto.labels, segmenter(image, how="windows").labels)


def test_many_images_and_faults(segmenter, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    first, second = segmenter(tmp_path)
    assert first.ok
    assert second.reason == "not_an_image"
    assert second.to_json()["error"]["reason"] == "not_an_image"
    with pytest.raises(vitrail.errors.DataError, match=r"b\.png"):
        second.plot()
    json.dumps(first.to_json())


def test_masks_hold_the_values_of_the_data_set(segmenter, tmp_path):
    found = segmenter(picture())
    path = found.save_mask(tmp_path / "mask.png")
    values, coloured = read_values(path)
    assert not coloured
    assert np.array_equal(values, np.array(NAMES.ids)[found.labels])
    with Image.open(path) as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask.convert("RGB")), found.colored())
    drawn = found.plot(tmp_path / "overlay.png")
    assert drawn.size[0] > 640
    assert found.overlay().shape == (40, 56, 3)
    assert len(np.unique(class_colors(60), axis=0)) == 60


def test_a_short_side_is_kept_with_the_weights(folder, tmp_path):
    model = vitrail.load(folder).model
    card = Card(name="test_segmenter_fpn", input_size=(32, 32))
    own = save_folder(tmp_path / "g", model, card=card, classes=NAMES, extra={"short_side": 32})
    small = vitrail.load(own)
    assert small._prepared(torch.zeros(3, 90, 120, dtype=torch.uint8)).shape == (3, 32, 43)
    assert small(picture(90, 120)).labels.shape == (90, 120)
    assert small(picture(90, 320), how="windows").labels.shape == (90, 320)


def test_grad_cam_is_the_gradient_of_the_chosen_pixels(segmenter):
    """Where the logits are linear in the deepest map, the map is what the definition gives, worked out by hand."""
    image = picture()
    found = segmenter.explain(image, at=(10, 30))
    assert found.grid_map.shape == (2, 2)
    assert "at 10,30" in found.label
    assert found.map.shape == (40, 56)
    pixels = segmenter._prepared(torch.from_numpy(image).permute(2, 0, 1))[None]
    model = segmenter.model
    with torch.no_grad():
        maps = model.backbone(pixels)
    chosen = torch.zeros(model.head(model.decode(maps)).shape[2:], dtype=torch.bool)
    chosen[5, 3] = True
    given = pixel_activation(model, pixels, chosen, 2)
    last = maps[-1].clone().requires_grad_()
    model.head(model.decode([*maps[:-1], last]))[0, 2, 5, 3].backward()
    expected = (last.grad.mean((2, 3), keepdim=True) * last).sum(1).relu()[0].detach()
    torch.testing.assert_close(given, expected)


def test_what_explain_refuses(segmenter):
    with pytest.raises(UsageError, match="inside the image of 56 x 40"):
        segmenter.explain(picture(), at=(56, 3))
    with pytest.raises(UsageError, match="one image"):
        segmenter.explain([picture(), picture()])
    with pytest.raises(UsageError, match="unknown class"):
        segmenter.explain(picture(), target="cat")
    found = segmenter.explain(picture(), target=next(iter(segmenter(picture()).shares())))
    assert found.grid_map.max() <= 1


def test_options_are_checked(segmenter, folder):
    with pytest.raises(UsageError, match="way to answer"):
        segmenter(picture(), how="somehow")
    with pytest.raises(UsageError, match="overlap"):
        segmenter(picture(), overlap=1.0)
    with pytest.raises(WeightsError):
        vitrail.load(folder.parent / "none")
    assert vitrail.load(folder, img_size=64).window == (64, 64)
