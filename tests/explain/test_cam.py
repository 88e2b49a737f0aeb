"""Grad-CAM and the explaining of models without global attention."""

from __future__ import annotations

import pytest
import torch

from tests.peers import randomise
from vitrail.errors import UsageError
from vitrail.explain import attention_distances, attention_maps, deletion_insertion, draw_figures
from vitrail.explain.geometry import patch_layout
from vitrail.explain.maps import default_method
from vitrail.models import create_model, image_variants

from .models import pictures, tiny

SMALL = sorted(n for n in image_variants() if n.startswith("test_"))
GLOBAL = {n for n in SMALL if n.startswith(("test_vit", "test_deit", "test_hybrid", "test_igpt"))}
LINEAR = [n for n in SMALL if n.startswith(("test_resnet", "test_bit", "test_swin", "test_pvt_v2", "test_coatnet_rw"))]


def made(name):
    return randomise(create_model(name), seed=3)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_has_a_default_map_and_grad_cam(name):
    model, images = made(name), pictures(50, 67)
    layout = patch_layout(model, images)
    with torch.no_grad():
        features, logits = model.features(images), model(images)
    assert layout.grid == features.grid
    found = attention_maps(model, images)
    assert found.method == default_method(model, images) == ("rollout" if name in GLOBAL else "grad_cam")
    cam = attention_maps(model, images, method="grad_cam")
    for one in (found, cam):
        assert one.maps.shape == (2, *features.grid)
        assert (one.maps >= 0).all()
        assert not one.maps.requires_grad
        torch.testing.assert_close(one.logits, logits, rtol=1e-4, atol=1e-4)
    assert not any(part._forward_hooks for part in model.modules())
    alone = attention_maps(model, images[1:], method="grad_cam", target=cam.logits.argmax(1)[1:]).maps
    torch.testing.assert_close(alone, cam.maps[1:], rtol=1e-3, atol=1e-5)
    if cam.maps[0].numel() > 1:
        scores = [attention_maps(model, images, method="grad_cam", target=torch.full((2,), k)).maps for k in range(10)]
        assert torch.stack(scores).std(0).max() > 0


@pytest.mark.parametrize("name", LINEAR)
def test_where_the_head_is_linear_on_the_mean_it_is_the_class_activation_map(name):
    """Zhou et al. 2016, equation 2: the head's row of the class, times the map, negative parts cut off."""
    model, images = made(name), pictures(64, 96)
    cam = attention_maps(model, images, method="grad_cam", target=torch.tensor([4, 7]))
    with torch.no_grad():
        features = model.features(images)
        last = features.maps[max(features.maps)]
        cells = last.flatten(2).transpose(1, 2) if features.tokens is None else features.tokens
        rows = model.head.weight[torch.tensor([4, 7])]
    expected = (cells @ rows[:, :, None]).squeeze(2).relu() / cells.shape[1]
    torch.testing.assert_close(cam.maps.flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_a_vit_that_reads_its_class_token_is_explained_by_the_last_patches_it_reads():
    """What the last block makes of the patches has no gradient; the block before is taken, and nothing is zero."""
    model, images = tiny(), pictures()
    outputs = {}
    for i in (0, 1):
        model.blocks[i].register_forward_hook(lambda _, __, out, i=i: outputs.update({i: out}))
    cam = attention_maps(model, images, method="grad_cam")
    score = cam.logits.max(1).values
    assert (cam.maps.flatten(1).max(1).values > 0).all(), score
    kept = {i: out for i, out in outputs.items() if torch.is_tensor(out)}
    logits = model(images.clone().requires_grad_())
    slope = torch.autograd.grad(logits.max(1).values.sum(), outputs[0])[0][:, 1:]
    expected = (slope.mean(1, keepdim=True) * kept[0][:, 1:]).sum(2).relu().view(2, 4, 4)
    torch.testing.assert_close(cam.maps, expected.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["rollout", "class_token", "gradient"])
@pytest.mark.parametrize("name", sorted(set(SMALL) - GLOBAL))
def test_methods_of_attention_are_refused_with_what_works(name, method):
    with pytest.raises(UsageError, match=r"mend: --method grad-cam, .*method='grad_cam'"):
        attention_maps(made(name), pictures(32, 32), method=method)


def test_attention_distance_of_windows_is_refused():
    with pytest.raises(UsageError, match="windows and reduced keys"):
        attention_distances(made("test_swin"), pictures(32, 32))


@pytest.mark.parametrize("name", SMALL)
def test_grad_cam_works_in_inference_mode(name):
    """Pictures, classes, cached masks and even the weights may have been made there."""
    model, images = made(name), pictures(50, 67)
    target = torch.tensor([4, 7])
    expected = attention_maps(model, images, method="grad_cam", target=target)
    with torch.inference_mode():
        found = attention_maps(model, images.clone(), method="grad_cam", target=target.clone())
        alike = attention_maps(made(name), images.clone(), method="grad_cam", target=target.clone())
        assert torch.is_inference_mode_enabled()
    for one in (found, alike):
        torch.testing.assert_close(one.maps, expected.maps)
        torch.testing.assert_close(one.logits, expected.logits)
        assert not one.maps.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_zero_head_gives_an_empty_map():
    cam = attention_maps(create_model("test_vit").eval(), pictures(), method="grad_cam")
    assert not cam.maps.any()


def test_figures_that_do_not_apply_are_left_out_and_said(tmp_path):
    said = []
    paths = draw_figures(made("test_resnet"), tmp_path, images=pictures(64, 64), left_out=said)
    assert [p.name for p in paths] == ["filters.png"]
    assert [words.split()[0] for words in said] == ["positions.png", "attention_distance.svg"]


def test_faithfulness_of_a_model_with_cells():
    """Cells that reach beyond the image are deleted and inserted as far as the image goes."""
    model, images = made("test_resnet_small"), pictures(50, 67)
    maps = attention_maps(model, images, method="grad_cam").maps
    found = deletion_insertion(model, images, maps, steps=4, random_orders=2)
    assert found.gain.shape == (2,)
    assert torch.isfinite(found.gain).all()
