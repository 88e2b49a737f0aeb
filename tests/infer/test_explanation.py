import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.errors import DataError, UsageError
from vitrail.explain import attention_maps
from vitrail.infer import load

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize("method", ["rollout", "class_token", "gradient"])
def test_the_map_lies_over_the_image_and_spans_zero_to_one(predictor, method):
    found = predictor.explain(IMAGE, method=method)
    assert found.map.shape == (60, 90)
    assert found.map.dtype == np.float32
    assert found.map.min() >= 0
    assert found.map.max() == pytest.approx(1, abs=0.15)
    assert (found.grid_map.min(), found.grid_map.max()) == (0, 1)
    x0, _, x1, _ = (round(v) for v in found.box)
    assert 0 < x0 < x1 < 90
    assert (found.map[:, :x0] == 0).all()
    assert (found.map[:, x1:] == 0).all()
    result = predictor(IMAGE)
    assert (found.label, found.score) == (result.label, pytest.approx(result.score, abs=1e-5))


def test_it_is_the_map_of_the_library_on_the_evaluation_crop(predictor):
    found = predictor.explain(IMAGE, method="class_token")
    crop = predictor.preprocess.crop(torch.from_numpy(IMAGE).permute(2, 0, 1))
    batch = predictor.preprocess.batch([crop], predictor.device, torch.float32)
    maps = attention_maps(predictor.model, batch, method="class_token").maps[0]
    torch.testing.assert_close(found.grid_map, (maps - maps.min()) / (maps.max() - maps.min()))


def test_one_head_is_shown_alone(predictor):
    found = predictor.explain(IMAGE, method="class_token", head=1)
    assert found.per_head.shape == (2, 4, 4)
    torch.testing.assert_close(found.grid_map, found.per_head[1])


def test_a_non_square_input_has_a_non_square_grid(folder):
    found = load(folder, device="cpu", img_size=(16, 40)).explain(IMAGE)
    assert found.grid_map.shape == (2, 5)


def test_gradient_explains_the_class_asked_for(predictor):
    by_name = predictor.explain(IMAGE, method="gradient", target="eel")
    by_index = predictor.explain(IMAGE, method="gradient", target=4)
    assert by_name.label == "eel"
    torch.testing.assert_close(by_name.grid_map, by_index.grid_map)


def test_pictures_are_drawn_and_saved(predictor, tmp_path):
    found = predictor.explain(IMAGE, method="class_token")
    assert _saved(found.plot, tmp_path / "map.png")[0] > 2 * 480
    assert _saved(found.plot_heads, tmp_path / "heads.png")[0] > 3 * 240
    assert found.overlay(most=90).shape == (60, 90, 3)
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema"] == 1
    assert data["grid"] == [4, 4]
    assert np.shape(data["map"]) == (4, 4)


def _saved(draw, path):
    drawn = draw(path)
    with Image.open(path) as image:
        assert image.size == drawn.size
    return drawn.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": 0}, "no effect"),
        ({"method": "class_token", "head": 2}, r"0\.\.1"),
        ({"target": "eel"}, "no effect"),
        ({"method": "gradient", "target": "eal"}, "Did you mean 'eel'"),
        ({"method": "gradient", "target": 5}, r"0\.\.4"),
        ({"method": "gradcam"}, "expected an explanation method"),
    ],
)
def test_options_without_effect_are_refused(predictor, options, message):
    with pytest.raises(UsageError, match=message):
        predictor.explain(IMAGE, **options)


def test_one_image_at_a_time_and_broken_ones_raise(predictor, tmp_path):
    with pytest.raises(UsageError, match="one image"):
        predictor.explain([IMAGE])
    (tmp_path / "x.jpg").write_bytes(b"text")
    with pytest.raises(DataError):
        predictor.explain(tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="fuses the heads"):
        predictor.explain(IMAGE).plot_heads()
