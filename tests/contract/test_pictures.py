"""What every network that restores pictures keeps: this file finds them by itself."""

import pytest
import torch

from tests.contract.every import randomise
from vitrail import models
from vitrail.errors import UsageError
from vitrail.nn.attention import Attention
from vitrail.weights import Card, load_folder, save_folder

NAMES = sorted(n for n in models.variants_that("pictures") if n.startswith("test_"))
SIZES = [(16, 16), (20, 12), (25, 33), (5, 9), (3, 2), (1, 1), (1, 40)]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomise(models.create_model(name)).eval()


def pictures(model, size=(16, 16), batch=3):
    channels = model.config.in_chans
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_of_any_size_gives_one_of_scaled_size(model, size):
    x = pictures(model, size)
    with torch.inference_mode():
        y = model(x)
    s = model.config.upscale
    assert y.shape == (3, model.config.in_chans, s * size[0], s * size[1])
    assert y.isfinite().all()


def test_every_parameter_gets_a_gradient(model):
    model.train()
    model(pictures(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_evaluation_is_deterministic_and_drop_path_is_not(name):
    model = randomise(models.create_model(name, drop_path_rate=0.5)).eval()
    x = pictures(model)
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
        assert not torch.equal(model.train()(x), model(x))


def test_a_picture_does_not_depend_on_its_batch(model):
    x = pictures(model, (20, 12))
    with torch.inference_mode():
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


def test_config_and_weights_come_back_from_a_folder(model, tmp_path):
    data = models.config_to_dict(model.config)
    assert models.config_from_dict(data) == model.config
    save_folder(tmp_path / "net", model, card=Card(name="x", mean=(0.0,) * 3, std=(1.0,) * 3))
    other, _, classes = load_folder(tmp_path / "net")
    assert classes is None
    with torch.inference_mode():
        assert torch.equal(other.eval()(pictures(model)), model(pictures(model)))


def test_bf16_is_near_float32(model):
    x = pictures(model)
    with torch.inference_mode():
        exact = model(x)
        rough = model.bfloat16()(x.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


def test_recorded_equals_fused(model):
    x = pictures(model, (20, 12))
    with torch.inference_mode():
        fused = model(x)
        layers = [m for m in model.modules() if isinstance(m, Attention)]
        for layer in layers:
            layer.tape = []
        recorded = model(x)
    torch.testing.assert_close(recorded, fused, atol=1e-5, rtol=1e-4)
    assert all(len(layer.tape) == 1 for layer in layers)


def test_other_channels_are_refused(model):
    with pytest.raises(ValueError, match="expected pictures"):
        model(torch.rand(1, 2, 16, 16))


def test_they_are_no_classifiers(name):
    assert models.answers(models.config_of(name)) == "pictures"
    assert name not in models.image_variants()
    with pytest.raises(UsageError, match="feature maps"):
        models.create_model(name, backbone="x") if hasattr(models.config_of(name), "backbone") else _as_backbone(name)


def _as_backbone(name):
    models._backbone(None, name)
