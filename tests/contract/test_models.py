"""What every architecture keeps: this file finds the models by itself; adding one adds no test code here."""

import inspect
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitrail import models
from vitrail.errors import UsageError
from vitrail.nn import Features
from vitrail.weights import load_weights

from .every import (  # noqa: F401 - tests that hold here too
    images,
    randomise,
    test_bf16_is_near_float32,
    test_config_round_trip,
    test_fresh_models_of_one_name_differ_in_every_layer,
    test_recorded_equals_fused,
    test_state_dict_round_trip,
)

NAMES = sorted(name for name in models.image_variants() if name.startswith("test_"))
SIZES = [(32, 32), (40, 24), (50, 67)]
LARGE = [(200, 312), (225, 225), (448, 448)]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomise(models.create_model(name)).eval()


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def test_each_file_has_a_size_for_tests():
    for file in Path(models.__file__).parent.glob("*.py"):
        if file.stem != "__init__":
            module = inspect.importlib.import_module(f"vitrail.models.{file.stem}")
            assert any(key.startswith("test_") for key in module.VARIANTS), f"{file.name} has no test_ variant"
            assert module.MODELS, f"{file.name} names no module for its config"


@pytest.mark.parametrize("size", SIZES)
def test_finite_at_any_size(model, size):
    with torch.inference_mode():
        logits = model(images(size))
    assert logits.shape == (3, model.config.num_classes)
    assert logits.isfinite().all()
    assert float(logits.std()) > 1e-3


@pytest.mark.parametrize("size", LARGE)
def test_runs_far_from_the_size_it_was_made_for(model, size):
    most = getattr(model, "most_pixels", None)
    if most is not None and size[0] * size[1] > most:
        with pytest.raises(ValueError, match=f"at most {most} pixels"):
            model(images(size, batch=1))
        pytest.skip(f"{type(model).__name__} reads one token a pixel, {most} at most, and says so")
    with torch.inference_mode():
        assert model(images(size, batch=1)).isfinite().all()


def test_every_parameter_gets_a_gradient(model):
    model.train()
    sum(out.square().sum() for out in outputs(model(images()))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), f"{name} got a gradient that is not finite"
        assert parameter.grad.any(), f"{name} got a gradient of zeros"


def test_evaluation_is_deterministic(name):
    model = randomise(models.create_model(name, drop_rate=0.2, drop_path_rate=0.2)).eval()
    with torch.inference_mode():
        assert torch.equal(model(images()), model(images()))
        changed = [
            torch.equal(a, b) for a, b in zip(*(outputs(model.train()(images())) for _ in range(2)), strict=True)
        ]
    assert not any(changed), "drop_rate and drop_path_rate change nothing in training"


def test_a_sample_does_not_depend_on_its_batch(model):
    x = images((40, 24))
    with torch.inference_mode():
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_features_have_the_shapes_they_promise(model, size):
    with torch.inference_mode():
        features = model.features(images(size))
    assert isinstance(features, Features)
    if features.tokens is not None:
        assert features.tokens.shape[1] == features.grid[0] * features.grid[1]
    assert {s: found.shape[1] for s, found in features.maps.items()} == model.feature_channels
    for stride, found in features.maps.items():
        assert found.shape[0] == 3
        assert abs(found.shape[2] - size[0] / stride) < 1
        assert abs(found.shape[3] - size[1] / stride) < 1
        assert found.isfinite().all()


@pytest.mark.parametrize("size", [(64, 64), (50, 67)])
def test_gives_a_pyramid(name, size):
    pyramid = models.create_model(name, features_only=True).eval()
    with torch.inference_mode():
        maps = pyramid(images(size))
    assert len(maps) >= 3  # as many as the network for 32x32 images has stages; all others have four and more
    info = pyramid.feature_info
    assert [found.shape[1] for found in maps] == info.channels()
    assert info.reduction() == sorted(info.reduction())
    for found, stride in zip(maps, info.reduction(), strict=True):
        # half a patch that was dropped or filled up is a whole cell of a level twice as fine
        assert all(abs(side - whole / stride) < 2 for side, whole in zip(found.shape[2:], size, strict=True))


def test_gives_the_levels_asked_for(name):
    pyramid = models.create_model(name, features_only=True, out_indices=(0, -1)).eval()
    strides = pyramid.feature_info.reduction()
    assert len(pyramid(images((64, 64)))) == 2
    assert strides[0] < strides[1]
    with pytest.raises(UsageError, match="out_indices"):
        models.create_model(name, features_only=True, out_indices=(9,))


@pytest.mark.parametrize("keywords", [{}, {"num_classes": 3}])
def test_every_parameter_of_a_backbone_gets_a_gradient(name, keywords):
    """What no map reads is left out: distributed training refuses parameters without a gradient."""
    pyramid = models.create_model(name, features_only=True, **keywords)
    sum(found.square().sum() for found in pyramid(images())).backward()
    assert [n for n, parameter in pyramid.named_parameters() if parameter.grad is None] == []


def test_a_backbone_gives_the_maps_of_the_whole_model(name, tmp_path):
    """Weights are loaded before what no map reads is taken out."""
    whole = randomise(models.create_model(name)).eval()
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "model.safetensors")
    pyramid = models.create_model(name, tmp_path / "model.safetensors", features_only=True).eval()
    with torch.inference_mode():
        expected = whole.features(images((40, 24))).maps
        found = pyramid.backbone.features(images((40, 24))).maps
        assert all(torch.equal(found[stride], expected[stride]) for stride in expected)
    load_weights(pyramid.backbone, tmp_path / "model.safetensors")


def test_other_channels_classes_and_no_head(name):
    model = models.create_model(name, in_chans=5, num_classes=7).eval()
    x = torch.randn(2, 5, 32, 32)
    assert model(x).shape == (2, 7)
    bare = models.create_model(name, num_classes=0).eval()
    assert bare(images()).ndim == 2


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_compiles_whole_and_equals_eager(model, size):
    torch.compiler.reset()
    with torch.inference_mode():
        eager = model(images(size))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images(size))
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_exports_with_a_free_batch(model, size):
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations inside the exporter
        program = torch.export.export(model, (images(size),), dynamic_shapes=({0: batch},))
    more = images(size, batch=5, seed=3)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(more), model(more), atol=1e-5, rtol=1e-4)
