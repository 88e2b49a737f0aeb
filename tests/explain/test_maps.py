import pytest
import torch
from torch import nn

from vitrail.errors import UsageError
from vitrail.explain import METHODS, attention_maps, record, rollout
from vitrail.explain.maps import scale01

from .models import POOLINGS, distilled, pictures, tiny

MODELS = {**{p: lambda p=p: tiny(p) for p in POOLINGS}, "distilled": distilled}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_maps_have_the_grid_of_the_image_and_logits_of_the_model(make, method):
    model, images = make(), pictures(24, 40)
    found = attention_maps(model, images, method=method)
    assert found.maps.shape == (2, 3, 5)
    assert found.grid == (3, 5)
    assert (found.maps >= 0).all()
    assert found.maps.std() > 0
    assert not found.maps.requires_grad
    torch.testing.assert_close(found.logits, model(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_an_image_is_explained_alike_alone_and_in_a_batch(make, method):
    model, images = make(), pictures()
    both = attention_maps(model, images, method=method).maps[1:]
    torch.testing.assert_close(both, attention_maps(model, images[1:], method=method).maps, rtol=1e-3, atol=1e-5)


def recorded(model, images):
    with torch.no_grad(), record(model) as maps:
        model(images)
    return maps


def test_class_token_reads_its_row_of_the_last_layer():
    model, images = tiny(), pictures(16, 32)
    found = attention_maps(model, images, method="class_token")
    last = recorded(model, images).square()[-1]
    torch.testing.assert_close(found.per_head.flatten(2), last[:, :, 0, 1:])
    torch.testing.assert_close(found.maps, found.per_head.mean(1))


def test_distilled_reads_both_tokens():
    model, images = distilled(), pictures(16, 32)
    last = recorded(model, images).square()[-1]
    per_head = attention_maps(model, images, method="class_token").per_head
    torch.testing.assert_close(per_head.flatten(2), (last[:, :, 0, 2:] + last[:, :, 1, 2:]) / 2)


def test_mean_pooling_reads_what_each_patch_receives():
    model, images = tiny("avg"), pictures(16, 32)
    last = recorded(model, images).square()[-1]
    per_head = attention_maps(model, images, method="class_token").per_head
    torch.testing.assert_close(per_head.flatten(2), last[:, :, 1:, 1:].mean(2))


def test_attention_pooling_is_its_own_readout():
    model, images = tiny("map"), pictures(16, 32)
    maps = recorded(model, images)
    found = attention_maps(model, images, method="class_token")
    torch.testing.assert_close(found.per_head.flatten(2), maps.pooling()[:, :, 0])
    rolled = maps.pooling().mean(1) @ rollout(maps.square())
    torch.testing.assert_close(attention_maps(model, images).maps.flatten(1), rolled[:, 0])


def test_gradient_relevance_depends_on_the_class_and_leaves_no_gradient_behind():
    model, images = tiny(), pictures()
    one = attention_maps(model, images, method="gradient", target=torch.tensor([0, 0]))
    other = attention_maps(model, images, method="gradient", target=torch.tensor([3, 3]))
    assert not torch.allclose(one.maps, other.maps)
    assert all(p.grad is None for p in model.parameters())


def test_gradient_relevance_equals_its_equation_written_out():
    model, images = tiny(), pictures(count=1)
    with record(model) as maps:
        logits = model(images)
    layers = maps.square()
    gradients = torch.autograd.grad(logits[0, 4], layers)
    total = torch.eye(17)
    for layer, gradient in zip(layers, gradients, strict=True):
        mean = torch.stack([(layer[0, h] * gradient[0, h]).relu() for h in range(2)]).mean(0)
        total = total + mean @ total
    found = attention_maps(model, images, method="gradient", target=torch.tensor([4]))
    torch.testing.assert_close(found.maps.flatten(), total[0, 1:].detach())


def test_frozen_models_are_explained_by_gradient_too():
    model = tiny().requires_grad_(False)
    assert attention_maps(model, pictures(), method="gradient").maps.std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "roll_out"}, "Did you mean 'rollout'"),
        ({"target": torch.tensor([0, 0])}, "no effect"),
        ({"method": "class_token", "discard_ratio": 0.5}, "no effect"),
        ({"method": "gradient", "target": torch.tensor([0])}, "one target"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        attention_maps(tiny(), pictures(), **options)


def test_training_mode_is_refused():
    with pytest.raises(UsageError, match="eval"):
        attention_maps(tiny().train(), pictures())


def test_a_model_of_windows_is_refused():
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny()
            self.patch_embed, self.num_prefix_tokens = self.inner.patch_embed, 1

        def forward(self, images):
            return self.inner(images[..., :8, :8])

    with pytest.raises(UsageError, match="attention of all patches to all patches"):
        attention_maps(Windowed().eval(), pictures(), method="rollout")


def test_scaling_spans_zero_to_one_and_a_flat_map_is_zero():
    maps = torch.stack([torch.tensor([[1.0, 3.0], [2.0, 5.0]]), torch.full((2, 2), 7.0)])
    scaled = scale01(maps)
    torch.testing.assert_close(scaled[0], torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
    assert (scaled[1] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_the_same_in_inference_mode(method):
    model, images = tiny(), pictures()
    expected = attention_maps(model, images, method=method)
    with torch.inference_mode():
        found = attention_maps(model, images.clone(), method=method)
    torch.testing.assert_close(found.maps, expected.maps)
