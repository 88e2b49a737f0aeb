import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.peers import randomise
from vitrail.errors import DataError, UsageError
from vitrail.explain import attention_maps
from vitrail.infer import Explanation, Predictor, load
from vitrail.models import create_model
from vitrail.weights import Card

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


@pytest.mark.parametrize("name", ["test_resnet", "test_swin", "test_pvt_v2", "test_coatnet"])
def test_models_without_global_attention_are_explained_by_their_last_map(name):
    torch.manual_seed(0)
    model = randomise(create_model(name, num_classes=3))
    predictor = Predictor(model, Card(input_size=(50, 70), crop_pct=1.0), img_size=(50, 70), device="cpu")
    found = predictor.explain(IMAGE)
    assert found.method == "grad_cam"
    assert found.map.shape == (60, 90)
    assert found.grid_map.shape == model.features(torch.zeros(1, 3, 50, 70)).grid
    x0, _, x1, _ = (round(v) for v in found.seen)
    assert (found.map[:, :x0] == 0).all()
    assert (found.map[:, x1:] == 0).all()
    assert found.box[2] >= found.seen[2]  # the last cells reach beyond what the model saw
    other = predictor.explain(IMAGE, method="grad_cam", target=(predictor.classes.names.index(found.label) + 1) % 3)
    assert other.label != found.label
    with pytest.raises(UsageError, match="grad-cam"):
        predictor.explain(IMAGE, method="rollout")


def test_a_map_is_drawn_where_its_cells_are():
    """Cells of 32 pixels over an input of 48: the second column begins at 32, though it ends beyond the picture."""
    one = Explanation(
        "x", "grad_cam", "a", 1.0, torch.tensor([[0.0, 1.0]]), None, None, (0, 0, 64, 32), (0, 0, 48, 32),
        torch.zeros(3, 32, 48, dtype=torch.uint8),
    )  # fmt: skip
    assert one.map.shape == (32, 48)
    assert one.map[:, :16].max() < 0.1
    assert one.map[16, 32] == pytest.approx(0.5, abs=0.1)
    assert one.overlay(most=48).shape == (32, 48, 3)
