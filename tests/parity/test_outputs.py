"""Ours equals timm's and transformers' with the same weights, at the native size and at a non-square one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail.models import build
from vitrail.models.deit import DeiTConfig
from vitrail.models.vit import Numerics, ViTConfig
from vitrail.weights import export_weights, load_weights

TOLERANCE = 1e-5
BICUBIC = Numerics(norm_eps=1e-12, pos_resize="bicubic")

VIT = ViTConfig((32, 32), 8, num_classes=7, embed_dim=48, depth=3, num_heads=3)
DEIT = DeiTConfig((32, 32), 8, num_classes=7, embed_dim=48, depth=3, num_heads=3)

TIMM = {  # name -> our config, what timm's constructor needs besides the sizes
    "token": (VIT, {}),
    "avg": (replace(VIT, global_pool="avg"), {"global_pool": "avg"}),
    "avg without class token": (
        replace(VIT, global_pool="avg", class_token=False),
        {"global_pool": "avg", "class_token": False},
    ),
    "gap": (
        replace(VIT, global_pool="gap", class_token=False),
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
    ),
    "map": (replace(VIT, global_pool="map", class_token=False), {"global_pool": "map", "class_token": False}),
    "map with class token": (
        replace(VIT, global_pool="map"),
        {"global_pool": "map"},
    ),
    "no_embed_class": (replace(VIT, pos_embed="learn_patches"), {"no_embed_class": True}),
    "deit3": (
        replace(VIT, pos_embed="learn_patches", init_values=1e-6),
        {"no_embed_class": True, "init_values": 1e-6},
    ),
    "tanh GELU": (replace(VIT, numerics=Numerics(gelu="tanh")), {"act_layer": "gelu_tanh"}),
    "non-integer mlp_ratio": (replace(VIT, mlp_ratio=48 / 11), {"mlp_ratio": 48 / 11}),
    "patch 14": (replace(VIT, patch_size=14, img_size=(56, 56)), {}),
    "patch 16": (replace(VIT, patch_size=16, img_size=(64, 64)), {}),
    "patch 32": (replace(VIT, patch_size=32, img_size=(96, 96)), {}),
    "grey": (replace(VIT, in_chans=1), {}),
    "non-square": (replace(VIT, img_size=(24, 40)), {}),
    "no head": (replace(VIT, num_classes=0), {}),
    "distilled": (DEIT, {}),
}


def timm_peer(config, extra):
    make = timm.models.vision_transformer.VisionTransformer
    if isinstance(config, DeiTConfig):
        make = timm.models.deit.VisionTransformerDistilled
    peer = make(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        **{"mlp_ratio": config.mlp_ratio, "dynamic_img_size": True} | extra,
    )
    return randomise(peer, seed=1)


def images(config, height, width):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, config.in_chans, height, width, generator=generator)


def sizes(config):
    """The native size, a non-square one, and one that no whole number of patches fills."""
    (h, w), p = config.img_size, config.patch_size
    return [(h, w), (h + p, 2 * w), (2 * h - p, w - p)]


@pytest.mark.parametrize("case", TIMM)
@torch.no_grad()
def test_equals_timm(case):
    config, extra = TIMM[case]
    peer, ours = timm_peer(config, extra), build(config).eval()
    report = load_weights(ours, peer.state_dict())
    assert report.matched == len(ours.state_dict())
    for height, width in sizes(config):
        x = images(config, height, width)
        assert relative_difference(ours(x), peer(x)) <= TOLERANCE, f"{height}x{width}"


@pytest.mark.parametrize("case", TIMM)
def test_to_timm_and_back(case):
    config, extra = TIMM[case]
    peer, ours = timm_peer(config, extra), build(config)
    theirs = peer.state_dict()
    load_weights(ours, theirs)
    written = export_weights(ours, "timm")
    assert written.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(written[name], theirs[name]), name


@torch.no_grad()
def test_distilled_heads_equal_timm_in_training():
    peer, ours = timm_peer(DEIT, {}), build(DEIT)
    load_weights(ours, peer.state_dict())
    peer.train()
    peer.set_distilled_training(True)
    x = images(DEIT, 32, 32)
    for mine, theirs in zip(ours(x), peer(x), strict=True):
        assert relative_difference(mine, theirs) <= TOLERANCE


@torch.no_grad()
def test_features_equal_timm():
    peer, ours = timm_peer(VIT, {}), build(VIT).eval()
    load_weights(ours, peer.state_dict())
    x = images(VIT, 40, 64)
    found = ours.features(x)
    assert found.grid == (5, 8)
    assert relative_difference(found.tokens, peer.forward_features(x)[:, 1:]) <= TOLERANCE


def hf_sizes(config):
    return {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_dim,
        "image_size": config.img_size[0],
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "num_labels": config.num_classes,
        "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[config.numerics.gelu],
        "layer_norm_eps": config.numerics.norm_eps,
    }


HF = {
    "vit": replace(VIT, numerics=BICUBIC),
    "vit tanh GELU": replace(VIT, numerics=replace(BICUBIC, gelu="tanh")),
    "vit patch 14": replace(VIT, patch_size=14, img_size=(56, 56), numerics=BICUBIC),
    "vit patch 16": replace(VIT, patch_size=16, img_size=(64, 64), numerics=BICUBIC),
    "vit patch 32": replace(VIT, patch_size=32, img_size=(96, 96), numerics=BICUBIC),
    "vit grey": replace(VIT, in_chans=1, numerics=BICUBIC),
    "vit non-integer ratio": replace(VIT, mlp_ratio=48 / 11, numerics=BICUBIC),
    "distilled": replace(DEIT, numerics=BICUBIC),
}


def hf_peer(config):
    t = transformers
    if isinstance(config, DeiTConfig):
        return randomise(t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**hf_sizes(config))), seed=1)
    return randomise(t.ViTForImageClassification(t.ViTConfig(**hf_sizes(config))), seed=1)


@pytest.mark.parametrize("case", HF)
@torch.no_grad()
def test_equals_transformers(case):
    config = HF[case]
    peer, ours = hf_peer(config), build(config).eval()
    report = load_weights(ours, peer.state_dict())
    assert report.layout == "transformers"
    assert report.matched == len(ours.state_dict())
    for height, width in sizes(config):
        x = images(config, height, width)
        theirs = peer(x, interpolate_pos_encoding=True).logits
        assert relative_difference(ours(x), theirs) <= TOLERANCE, f"{height}x{width}"


@pytest.mark.parametrize("case", HF)
def test_to_transformers_and_back(case, tmp_path):
    """What we write is what transformers saves: names, shapes and values of its own Hub files."""
    from safetensors.torch import load_file

    config = HF[case]
    peer, ours = hf_peer(config), build(config)
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    report = load_weights(ours, saved)
    assert "Hub names" in report.title
    written = export_weights(ours, "transformers")
    assert written.keys() == saved.keys()
    for name in saved:
        assert torch.equal(written[name], saved[name]), name


@torch.no_grad()
def test_pooler_is_the_hidden_layer_of_the_head():
    """ViTModel's pooler and our pre_logits are one layer; the head behind it is new."""
    config = replace(VIT, representation_size=48, numerics=BICUBIC)
    peer = randomise(transformers.ViTModel(transformers.ViTConfig(**hf_sizes(config))), seed=1)
    ours = build(config).eval()
    report = load_weights(ours, peer.state_dict(), new_head=True)
    assert report.new == ["head.weight", "head.bias"]
    x = images(config, 40, 24)
    hidden = ours.pre_logits(ours.pool(ours.encode(x)[0]))
    assert relative_difference(hidden, peer(x, interpolate_pos_encoding=True).pooler_output) <= TOLERANCE


@torch.no_grad()
def test_features_of_headless_models_equal_transformers():
    config = replace(VIT, num_classes=0, numerics=BICUBIC)
    t = transformers
    peer = randomise(t.ViTModel(t.ViTConfig(**hf_sizes(config)), add_pooling_layer=False), seed=1)
    ours = build(config).eval()
    assert load_weights(ours, peer.state_dict()).ignored == []
    x = images(config, 40, 24)
    assert relative_difference(ours(x), peer(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]) <= TOLERANCE


@torch.no_grad()
def test_the_comparison_sees_every_parameter():
    """Each tensor, changed alone, moves the output by far more than the tolerance; key biases cannot, by algebra."""
    config, extra = TIMM["map with class token"]
    peer, ours = timm_peer(config, extra), build(config).eval()
    x = images(config, 32, 32)
    theirs = peer(x)
    for name in ours.state_dict():
        load_weights(ours, peer.state_dict())
        tensor = ours.state_dict()[name]
        if name.endswith("qkv.bias"):
            width = len(tensor) // 3
            tensor[:width] += 0.5
        else:
            tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
        assert relative_difference(ours(x), theirs) > 10 * TOLERANCE, name
