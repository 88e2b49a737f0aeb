"""What every network that finds objects keeps: this file finds them by itself; adding one adds no test code here."""

import dataclasses
import warnings

import pytest
import torch

from vitrail import models
from vitrail.nn.attention import Attention
from vitrail.nn.deformable import DeformableAttention
from vitrail.nn.detection import Answer, Detections, Noise
from vitrail.weights import export_weights, load_weights

from .every import images, randomise

NAMES = sorted(name for name in models.variants_that("boxes") if name.startswith("test_"))
SIZES = [(64, 64), (75, 107)]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def made(name):
    """A network with random weights, its reference points all over the image."""
    model = randomise(models.create_model(name)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "box_head" in parameter_name and parameter_name.endswith("2.weight"):
                parameter.mul_(0.3)
    return model


@pytest.fixture
def model(name):
    return made(name)


def padded(size=(75, 107), batch=3):
    """Return images of which the second is padded, with what they hold of the image."""
    x, keep = images(size, batch), torch.ones(batch, *size, dtype=torch.bool)
    keep[1, size[0] * 2 // 3 :] = False
    keep[1, :, size[1] // 2 :] = False
    return x * keep[:, None], keep


def noise_for(model, batch=3, groups=2, each=2):
    if not model.config.takes_noise:
        return None
    generator = torch.Generator().manual_seed(5)
    keep = torch.ones(batch, groups * each, dtype=torch.bool)
    keep[0, 1::2] = False
    boxes = 0.2 + 0.5 * torch.rand(batch, groups * each, 4, generator=generator)
    labels = torch.randint(model.config.num_classes, (batch, groups * each), generator=generator)
    return Noise(labels, boxes, keep, groups)


def tensors(found):
    parts = [found.logits, found.boxes_cxcywh01, *([] if found.masks is None else [found.masks])]
    for more in (found.proposals, found.noised):
        parts += [] if more is None else tensors(more)
    return parts


def same(one, other, **close):
    for a, b in zip(tensors(one), tensors(other), strict=True):
        torch.testing.assert_close(a, b, **(close or CLOSE))


@pytest.mark.parametrize("size", SIZES)
def test_an_answer_at_any_size(model, size):
    with torch.inference_mode():
        found = model(images(size))
    c = model.config
    assert isinstance(found, Detections)
    assert found.logits.shape == (1, 3, c.num_queries, c.num_classes + c.background)
    assert found.boxes_cxcywh01.shape == (1, 3, c.num_queries, 4)
    assert all(t.isfinite().all() for t in tensors(found))
    assert float(found.logits.std()) > 1e-3
    assert 0 <= float(found.boxes_cxcywh01.min()) < float(found.boxes_cxcywh01.max()) <= 1


def test_every_layer_speaks_in_training(model):
    model.train()
    found = model(images((64, 64)), None, noise_for(model))
    assert found.layers == model.config.decoder_layers
    assert (found.noised is not None) == model.config.takes_noise
    if found.noised is not None:
        assert found.noised.logits.shape == (found.layers, 3, 4, model.config.num_classes)


def test_every_parameter_gets_a_gradient(model):
    model.train()
    x, keep = padded()
    sum(t.square().sum() for t in tensors(model(x, keep, noise_for(model)))).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} got no gradient"
        assert parameter.grad.isfinite().all(), f"{parameter_name} got a gradient that is not finite"


def test_a_sample_does_not_depend_on_its_batch(model):
    x, keep = padded()
    with torch.inference_mode():
        together = model(x, keep)
        for i in range(3):
            alone = model(x[i : i + 1], keep[i : i + 1])
            torch.testing.assert_close(alone.logits, together.logits[:, i : i + 1], **CLOSE)
            torch.testing.assert_close(alone.boxes_cxcywh01, together.boxes_cxcywh01[:, i : i + 1], **CLOSE)


def test_nothing_padded_is_as_no_mask(model):
    x, whole = images((75, 107)), torch.ones(3, 75, 107, dtype=torch.bool)
    with torch.inference_mode():
        same(model(x, whole), model(x))


def test_what_lies_in_the_padding_is_not_read(name):
    """Cells that hold padding alone change nothing; the backbone must not carry them over, so pixels stay."""
    model = made(name)
    x, keep = padded((64, 128))
    kept = [m for m in model.modules() if isinstance(m, Attention | DeformableAttention)]
    for layer in kept:
        layer.tape = []
    with torch.inference_mode():
        model(x, keep)
    read = model.decoder[-1].cross.tape[0][1]  # (H, Q, S) of the padded image
    assert float(read.sum()) > 0
    if not isinstance(model.decoder[-1].cross, DeformableAttention):
        cells = read.shape[-1] // 2  # one row of the last map in two halves: 64 x 128 pixels are 2 x 4 cells
        assert cells == 4
        assert float(read.view(*read.shape[:2], 2, 4)[..., 2:].abs().max()) == 0


def test_noise_changes_no_answer(name):
    model = randomise(models.create_model(name, drop_rate=0.0)).train()
    noise = noise_for(model)
    if noise is None:
        with pytest.raises(ValueError, match="denoising"):
            model(images((64, 64)), None, Noise(*[torch.zeros(3, 2)] * 3, 1))
        return
    x, keep = padded()
    with torch.no_grad():
        plain, noisy = model(x, keep), model(x, keep, noise)
        torch.testing.assert_close(noisy.logits, plain.logits, **CLOSE)
        torch.testing.assert_close(noisy.boxes_cxcywh01, plain.boxes_cxcywh01, **CLOSE)
        moved = dataclasses.replace(noise, boxes_cxcywh01=noise.boxes_cxcywh01.clone())
        moved.boxes_cxcywh01[:, :2] *= 0.5  # the first group
        other = model(x, keep, moved).noised
        torch.testing.assert_close(other.logits[:, :, 2:], noisy.noised.logits[:, :, 2:], **CLOSE)
        assert not torch.allclose(other.logits[:, :, :2], noisy.noised.logits[:, :, :2], atol=1e-3)
        changed = dataclasses.replace(noise, labels=noise.labels.clone())
        changed.labels[0, 1] += 1  # a place of no object
        changed.labels[0, 1] %= model.config.num_classes
        same_kept = model(x, keep, changed).noised
        torch.testing.assert_close(same_kept.logits[:, 0, 0], noisy.noised.logits[:, 0, 0], **CLOSE)


def test_a_mask_that_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="keep"):
        model(images((64, 64)), torch.ones(3, 32, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep"):
        model(images((64, 64)), torch.ones(3, 64, 64))


def test_evaluation_is_deterministic_and_dropout_is_not(name):
    model = made(name)
    with torch.inference_mode():
        same(model(images((64, 64))), model(images((64, 64))), atol=0, rtol=0)
    if model.config.drop_rate:
        model.train()
        assert not torch.equal(model(images((64, 64))).logits, model(images((64, 64))).logits)


def test_config_and_weights_round_trip(model, name):
    rebuilt = models.build(models.config_from_dict(models.config_to_dict(model.config))).eval()
    assert rebuilt.config == model.config
    load_weights(rebuilt, export_weights(model, "vitrail"))
    with torch.inference_mode():
        same(rebuilt(images((64, 64))), model(images((64, 64))), atol=0, rtol=0)


def test_bf16_is_near_float32(model):
    x, keep = padded()
    with torch.inference_mode():
        exact = model(x, keep)
        rough = model.bfloat16()(x.bfloat16(), keep)
    assert rough.logits.dtype == torch.bfloat16
    assert rough.boxes_cxcywh01.dtype == torch.float32
    if not model.config.background and model.config.form.two_stage:
        return  # another order of the proposals is another answer
    assert float((rough.logits.float() - exact.logits).abs().max()) < 0.1 * float(exact.logits.abs().max())
    assert float((rough.boxes_cxcywh01 - exact.boxes_cxcywh01).abs().mean()) < 0.02


def test_a_step_in_bf16(model):
    model.bfloat16().train()
    x, keep = padded()
    sum(t.float().square().sum() for t in tensors(model(x.bfloat16(), keep, noise_for(model)))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_recorded_equals_fused(model):
    x, keep = padded()
    with torch.inference_mode():
        fused = model(x, keep)
        layers = [m for m in model.modules() if isinstance(m, Attention | DeformableAttention)]
        for layer in layers:
            layer.tape = []
        recorded = model(x, keep)
    same(recorded, fused)
    assert all(len(layer.tape) == 1 for layer in layers)


@pytest.mark.parametrize("name", ["test_detr", "test_deformable_detr_small"])
def test_other_backbones(name):
    """A pyramid, and a network with a single map."""
    for backbone in ("test_swin", "test_vit"):
        model = models.create_model(name, backbone=backbone).eval()
        with torch.inference_mode():
            assert model(images((64, 64))).logits.shape[:2] == (1, 3)


def test_other_channels_and_classes(name):
    model = models.create_model(name, in_chans=1, num_classes=3).eval()
    assert model(torch.randn(2, 1, 64, 64)).logits.shape[-1] == 3 + model.config.background


@pytest.mark.parametrize("name", ["test_detr", "test_deformable_detr_small"])
def test_compiles_whole_and_equals_eager(name):
    torch.compiler.reset()
    model = models.create_model(name, encoder_layers=1, decoder_layers=1).eval()
    x, keep = padded((64, 64))
    answer = Answer(model)
    with torch.inference_mode():
        compiled = torch.compile(answer, fullgraph=True, backend="aot_eager")(x, keep)
        for a, b in zip(compiled, answer(x, keep), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("name", ["test_detr", "test_deformable_detr_small"])
def test_exports_with_a_free_batch(name):
    model = models.create_model(name, encoder_layers=1, decoder_layers=1).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations inside the exporter
        program = torch.export.export(Answer(model), (images((64, 64)),), dynamic_shapes=({0: batch},))
    more = images((64, 64), batch=5, seed=3)
    with torch.inference_mode():
        for a, b in zip(program.module()(more), Answer(model)(more), strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
