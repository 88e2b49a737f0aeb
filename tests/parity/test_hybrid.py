"""Hybrid ViTs equal timm's with the same weights, both ways, and through the original's ``.npz``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.peers import randomise, relative_difference, timm
from vitrail import models
from vitrail.models.hybrid import HybridConfig
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.families.hybrid import FAMILY

TOLERANCE = 1e-5
SIZES = [(64, 64), (96, 80), (75, 61)]

STAGES = HybridConfig(
    (64, 64), 8, num_classes=7, embed_dim=48, depth=2, num_heads=3, stages=((1, 128), (2, 256)), stem_width=32
)
CASES = {
    "1x1 patches": STAGES,
    "2x2 patches": replace(STAGES, patch_size=16),
    "stem alone": replace(STAGES, stages=(), patch_size=16),
    "grey, no head": replace(STAGES, in_chans=1, num_classes=0),
}


def timm_peer(config):
    conv = partial(timm.layers.StdConv2dSame, eps=1e-8)
    shared = {"stem_type": "same", "preact": False, "conv_layer": conv}
    if config.stages:
        backbone = timm.models.resnetv2.ResNetV2(
            layers=[d for d, _ in config.stages],
            channels=[w for _, w in config.stages],
            stem_chs=config.stem_width,
            num_classes=0,
            global_pool="",
            in_chans=config.in_chans,
            **shared,
        )
    else:
        backbone = timm.models.resnetv2.create_resnetv2_stem(config.in_chans, config.stem_width, **shared)
    return randomise(
        timm.models.vision_transformer.VisionTransformer(
            img_size=config.img_size,
            patch_size=config.patch_size // config.map_stride,
            in_chans=config.in_chans,
            num_classes=config.num_classes,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            embed_layer=partial(timm.layers.HybridEmbed, backbone=backbone),
            dynamic_img_size=True,
        )
    )


def images(config, height, width):
    return torch.randn(2, config.in_chans, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_timm_and_back(case):
    config = CASES[case]
    peer, ours = timm_peer(config), models.build(config).eval()
    theirs = peer.state_dict()
    load_weights(ours, theirs)
    for size in SIZES:
        x = images(config, *size)
        assert relative_difference(ours(x), peer(x)) <= TOLERANCE, size
    found = ours.features(x)
    assert relative_difference(found.tokens, peer.forward_features(x)[:, 1:]) <= TOLERANCE
    written = export_weights(ours, "timm")
    peer.load_state_dict(written, strict=True)
    for name in theirs:
        assert torch.equal(written[name], theirs[name]), name


@pytest.mark.parametrize("case", ["1x1 patches", "stem alone"])
@torch.no_grad()
def test_npz_as_timm_reads_it(case, tmp_path):
    """What we write under the original's names, timm's own reader takes; we read it back, norms of (1, 1, 1, C) too."""
    config = CASES[case]
    ours, peer = randomise(models.build(config)), timm_peer(config)
    arrays = {name: tensor.numpy() for name, tensor in export_weights(ours, "original").items()}
    arrays["gn_root/scale"] = arrays["gn_root/scale"][None, None, None]
    np.savez(tmp_path / "r.npz", **arrays)
    peer.load_pretrained(str(tmp_path / "r.npz"))
    x = images(config, *config.img_size)
    assert relative_difference(ours(x), peer(x)) <= TOLERANCE
    other = models.build(config)
    assert "hybrid" in load_weights(other, tmp_path / "r.npz").title
    for name, tensor in ours.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


FACTS = {  # fact sheet, section 6
    "vit_tiny_r_s16_p8_224": 6_337_704,
    "vit_small_r26_s32_224": 36_431_912,
    "vit_small_r26_s32_384": 36_468_392,
    "vit_base_r26_s32_224": 101_383_976,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_base_r50_s16_384": 98_950_952,
    "vit_large_r50_s32_224": 328_994_856,
    "vit_large_r50_s32_384": 329_092_136,
}


@pytest.mark.parametrize("name", FACTS)
def test_counts_equal_the_papers(name):
    with torch.device("meta"):
        model = models.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == FACTS[name]


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_384", "vit_base_r50_s16_224"])
def test_configs_come_back(name):
    """What we write as timm's config.json gives our config again; a wider transformer too."""
    shapes = {"cls_token": (1, 1, 1)}
    for config in (models.config_of(name), replace(models.config_of(name), depth=5, num_classes=3)):
        architecture, arguments = FAMILY.to_timm(name, config)
        data = {"architecture": architecture, "num_classes": config.num_classes, "model_args": arguments}
        assert FAMILY.from_timm(data, shapes) == config


def test_a_patch_must_be_whole_cells():
    with pytest.raises(ValueError, match="multiple of 8"):
        replace(STAGES, patch_size=12)


@torch.no_grad()
def test_a_folder_is_read_by_timm(tmp_path):
    """timm builds other transformers behind a network that one of its variants has."""
    config = replace(models.config_of("vit_tiny_r_s16_p8_224"), img_size=(64, 64), embed_dim=48, depth=2, num_classes=7)
    ours = randomise(models.build(config))
    folder = save_folder(tmp_path / "ours", ours, card=Card(input_size=(64, 64)))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(config, 64, 64)
    assert relative_difference(ours(x), theirs(x)) <= TOLERANCE
    assert load_folder(folder)[0].config == config
