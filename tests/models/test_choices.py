"""What a config refuses: misspelt choices, values of another type, numbers no network can be made of."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vitrail import create_model
from vitrail.errors import UsageError
from vitrail.models import configure, variants
from vitrail.models.coatnet import CoAtNetForm
from vitrail.models.swin import Numerics


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("coatnet_0", {"form": {"pool": "maxx"}}, r"form\.pool to be 'max', 'avg' or 'max3', got 'maxx'.*mean 'max'"),
        ("coatnet_0", {"form": {"positions": "tabel"}}, r"form\.positions to be 'table' or 'logs'.*mean 'table'"),
        ("coatnet_0", {"form": {"conv": {"stride": "depth"}}}, r"conv\.stride .* got 'depth'.*mean 'depthwise'"),
        ("coatnet_0", {"form": CoAtNetForm(pool="maxx")}, r"form\.pool to be .* got 'maxx'"),
        ("resnet18", {"block": "bottlneck"}, "block to be 'basic' or 'bottleneck'.*mean 'bottleneck'"),
        ("resnet18", {"stem": "smal"}, "stem to be 'large' or 'small'.*mean 'small'"),
        ("test_hybrid", {"numerics": {"std_form": "var"}}, r"std_form to be 'variance' or 'deviation'"),
        ("test_vit", {"numerics": {"pos_resize": "bicub"}}, r"pos_resize .* got 'bicub'.*mean 'bicubic'"),
        ("test_vit", {"numerics": {"init": "jaxx"}}, "init to be 'jax' or 'trunc_normal'"),
        ("test_vit", {"global_pool": None}, "global_pool to be 'token', 'avg', 'gap' or 'map', got None"),
    ],
)
def test_a_misspelt_choice_is_an_error(name, keywords, words):
    with pytest.raises(UsageError, match=words):
        create_model(name, **keywords)


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("test_swin", {"window_size": (7, 7)}, r"window_size to be a whole number, got \(7, 7\)"),
        ("test_swin", {"num_heads": 3}, "num_heads to be a list of whole numbers, got 3"),
        ("test_swin", {"numerics": None}, "numerics to be a group of settings"),
        ("test_swin", {"stage_norms": 1}, "stage_norms to be True or False"),
        ("test_pvt", {"mlp_ratios": ("4",) * 4}, "mlp_ratios to be a list of numbers"),
        ("test_vit", {"depth": True}, "depth to be a whole number, got True"),
        ("test_vit", {"numerics": Numerics()}, "numerics to be a group of settings"),
        ("test_vit", {"representation_size": 2.5}, "representation_size to be a whole number or None, got 2.5"),
        ("test_vit", {"img_size": 2.5}, "positive int"),
        ("test_vit", {"img_size": True}, "positive int"),
        ("test_coatnet", {"stem_widths": (8, 8, 8)}, "stem_widths to be a list of 2 values"),
        ("test_hybrid", {"stages": (1, 2)}, "stages to be a list of pairs of whole numbers"),
    ],
)
def test_a_value_of_another_type_is_an_error(name, keywords, words):
    with pytest.raises(UsageError, match=words):
        create_model(name, **keywords)


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("coatnet_femto_32", {"head_dim": 128}, "stages of attention of a multiple of head_dim=128 channels, got 64"),
        ("coatnet_femto_32", {"head_dim": 48}, "multiple of head_dim=48"),
        ("coatnet_femto_32", {"head_dim": 0}, "head_dim of at least 1, got 0"),
        ("test_coatnet_rw", {"widths": (8, 16, 32, 32), "head_dim": 32}, "multiple of head_dim=32 channels, got 16"),
        ("coatnet_femto_32", {"strides": (2, 2, 1, 4)}, r"strides of 1 or 2.* got \(2, 2, 1, 4\)"),
        ("coatnet_femto_32", {"kinds": "CCT"}, "widths with 3 values"),
        ("resnet_pico_32", {"output_stride": 8}, "output_stride=8 has no effect: .* 4 pixels"),
        ("test_bit", {"output_stride": 4}, "output_stride of 8, 16 or 32"),
        ("test_resnet", {"depths": (1, 1)}, "widths with 2 values"),
        ("test_bit", {"num_groups": 7}, "num_groups"),
        ("test_vit", {"depth": 0}, "depth of at least 1"),
        ("test_vit", {"num_heads": 5}, "num_heads that divide the width of 32, got 5"),
        ("test_vit", {"img_size": 4}, "at least one patch"),
        ("test_swin", {"num_heads": (1, 2)}, "num_heads with 3 values"),
        ("test_swin", {"num_heads": (3, 2, 4)}, "num_heads that divide the width of 16, got 3"),
        ("test_swin", {"window_size": 0}, "window_size of at least 1"),
        ("test_pvt", {"num_heads": (1, 2, 3, 5)}, "num_heads that divide"),
        ("test_pvt", {"sr_ratios": (0, 2, 1, 1)}, "sr_ratios of at least 1"),
        ("test_pvt_v2", {"patch_size": 4}, "odd patch_size"),
        ("test_hybrid", {"stages": ((0, 32), (2, 64))}, "stages of at least 1"),
    ],
)
def test_numbers_that_make_no_network(name, keywords, words):
    with pytest.raises(UsageError, match=words):
        create_model(name, **keywords)


def test_a_hybrid_speaks_of_pixels():
    with pytest.raises(UsageError, match=r"at least one patch \(16x16 pixels\), got 12x20"):
        create_model("test_hybrid_stem", img_size=(12, 20))
    with pytest.raises(ValueError, match=r"at least one patch \(32x32 pixels\), got 20x20"):
        create_model("vit_tiny_r_s16_p8_224", img_size=32, depth=1)(torch.zeros(1, 3, 20, 20))


@pytest.mark.parametrize("name", ["swin", "pvt", "pvt_v2", "resnet", "bit", "coatnet"])
def test_no_stage_is_empty(name):
    config = variants()[f"test_{name}"]
    with pytest.raises(UsageError, match=r"depths of at least 1, got \(1, 0"):
        create_model(f"test_{name}", depths=(1, 0, *config.depths[2:]))


def test_every_variant_is_of_the_types_it_says():
    for config in variants().values():
        own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        assert configure(config, own) == config


@pytest.mark.parametrize("pretrained", [False, "weights.safetensors"])
def test_a_hub_name_takes_no_other_weights(pretrained):
    with pytest.raises(UsageError, match=r"pretrained=.* has no effect on hf-hub:org/name"):
        create_model("hf-hub:org/name", pretrained)
