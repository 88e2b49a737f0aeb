"""Every variant has exactly as many parameters as its peer, or as its paper says where no peer has it."""

from __future__ import annotations

import pytest
import torch

from tests.peers import timm
from vitrail.models import build, list_models, variants
from vitrail.weights.configs import in_timm, to_timm
from vitrail.weights.families import family_of

FACTS = {  # architecture fact sheet: published, or arithmetic that was checked
    "vit_enormous_patch14_224": 3_807_214_312,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "vit_huge_patch14_224": 632_045_800,
    "vit_large_patch14_224": 304_203_752,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch32_224": 306_535_400,
    "vit_base_patch8_224": 86_576_872,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch32_224": 88_224_232,
    "vit_small_patch8_224": 22_055_272,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "vit_tiny_patch16_224": 5_717_416,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
}


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


def ours(config) -> int:
    """Parameters, and a fixed position table, which timm holds as a parameter."""
    with torch.device("meta"):
        model = build(config)
    fixed = model.pos_embed.numel() if getattr(config, "pos_embed", None) == "sincos2d" else 0
    return count(model) + fixed


@pytest.mark.parametrize("name", list_models())
def test_counts_equal_timm(name):
    """By timm's own model of that name; sizes that timm lacks are built from its class, where it has one."""
    config = variants()[name]
    if family_of(config).stored_layout != "timm":
        pytest.skip("timm lacks this family: counted in its own tests")
    architecture, arguments = to_timm(name, config)
    if not timm.is_model(architecture):
        pytest.skip("timm's class cannot express it: counted in its family's tests")
    with torch.device("meta"):
        if in_timm(name):
            peer = timm.create_model(name, num_classes=config.num_classes)  # all else is timm's own idea of that name
        else:
            peer = timm.create_model(architecture, num_classes=config.num_classes, **arguments)
    assert ours(config) == count(peer)


@pytest.mark.parametrize("name", FACTS)
def test_counts_equal_the_papers(name):
    assert ours(variants()[name]) == FACTS[name]


def test_the_pre_training_head_of_imagenet_21k():
    from dataclasses import replace

    config = replace(variants()["vit_base_patch16_224"], num_classes=21_843, representation_size=768)
    assert ours(config) == 103_186_515


def test_the_list_of_timm_names_is_true():
    """``in_timm`` is written down so that saving needs no timm; here it is checked against timm."""
    known = {n for n in timm.list_models() if not n.startswith("test_")}
    assert {n for n in variants() if in_timm(n)} == {n for n in variants() if n in known}
