"""What every network that segments keeps: this file finds them by what they answer; adding one adds no test here."""

import warnings

import pytest
import torch

from vitrail import models
from vitrail.errors import UsageError

from .every import (  # noqa: F401 - tests that hold here too
    images,
    randomise,
    test_bf16_is_near_float32,
    test_config_round_trip,
    test_fresh_models_of_one_name_differ_in_every_layer,
    test_recorded_equals_fused,
    test_state_dict_round_trip,
)

NAMES = sorted(name for name in models.variants_that("masks") if name.startswith("test_"))
SIZES = [(32, 32), (40, 24), (50, 67)]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomise(models.create_model(name)).eval()


@pytest.mark.parametrize("size", [*SIZES, (129, 200)])
def test_finite_at_any_size(model, size):
    with torch.inference_mode():
        logits = model(images(size))
    stride = min(model.feature_channels)
    assert logits.shape[:2] == (3, model.config.num_classes)
    assert all(abs(side - whole / stride) < 2 for side, whole in zip(logits.shape[2:], size, strict=True))
    assert logits.isfinite().all()
    assert float(logits.std()) > 1e-3


def test_every_parameter_gets_a_gradient(model):
    logits, auxiliary = model.train().training_logits(images())
    (logits.square().sum() + (0 if auxiliary is None else auxiliary.square().sum())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), f"{name} got a gradient that is not finite"
        assert parameter.grad.any(), f"{name} got a gradient of zeros"


def test_training_logits_are_the_answer_in_evaluation(model):
    with torch.inference_mode():
        logits, auxiliary = model.training_logits(images((40, 24)))
        assert torch.equal(logits, model(images((40, 24))))
    assert (auxiliary is None) == (model.config.auxiliary is None)


def test_evaluation_is_deterministic(name):
    model = randomise(models.create_model(name, drop_rate=0.5)).eval()
    with torch.inference_mode():
        assert torch.equal(model(images()), model(images()))
        assert not torch.equal(model.train()(images()), model(images())), "drop_rate changes nothing in training"


def test_a_sample_does_not_depend_on_its_batch(model):
    x = images((40, 24))
    with torch.inference_mode():
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


def test_gradients_and_none_give_one_answer(model):
    """Without gradients batch norms fold into convolutions: the numbers agree."""
    x = images((50, 67))
    with torch.inference_mode():
        folded = model(x)
    torch.testing.assert_close(model(x).detach(), folded, atol=1e-4, rtol=1e-4)


def test_other_channels_and_classes(name):
    model = models.create_model(name, in_chans=5, num_classes=7).eval()
    assert model(torch.randn(2, 5, 32, 32)).shape[1] == 7
    with pytest.raises(UsageError, match="num_classes of at least 1"):
        models.create_model(name, num_classes=0)


def test_compiles_whole_and_equals_eager(model):
    torch.compiler.reset()
    with torch.inference_mode():
        eager = model(images((40, 24)))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images((40, 24)))
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


def test_exports_with_a_free_batch(model):
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations inside the exporter
        program = torch.export.export(model, (images((40, 24)),), dynamic_shapes=({0: batch},))
    more = images((40, 24), batch=5, seed=3)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(more), model(more), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_pvt", "test_swin", "test_pvt_v2", "test_coatnet", "test_vit"]
)
@pytest.mark.parametrize("head", ["upernet", "fpn", "segformer"])
def test_any_head_on_any_backbone(backbone, head):
    model = models.create_model("test_segmenter", backbone=backbone, head=head).train()
    logits, _ = model.training_logits(images((48, 40)))
    logits.square().sum().backward()
    assert logits.shape[:2] == (3, 5)


def test_a_linear_head_needs_one_map():
    with pytest.raises(UsageError, match="backbone of one map"):
        models.create_model("test_segmenter", head="linear")
