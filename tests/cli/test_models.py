"""`vitrail models`."""

from __future__ import annotations

import dataclasses

import pytest

from vitrail.cli.models import count
from vitrail.metrics.complexity import pooled_msa_macs, reduced_msa_macs
from vitrail.metrics.cost import cost
from vitrail.models import build, config_of, list_models


def test_the_table_has_every_model_that_matches(vitrail):
    ran = vitrail("models", "deit_*224")
    names = [line.split()[0] for line in ran.out.splitlines() if line.startswith("deit")]
    assert names == list_models("deit_*224")
    row = next(line for line in ran.out.splitlines() if line.startswith("deit_small_patch16_224")).split()
    assert row[1:3] == ["22.1", "M"]
    assert "224x224" in row


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_map_224",
        "resnet34",
        "resnetv2_50x1_bit",
        "pvt_small",
        "swin_small_patch4_window7_224",
        "vit_small_r26_s32_224",
        "pvt_v2_b2_li",
        "coatnet_0_rw_224",
        "coatnet_rmlp_nano_rw_224",
        "coatnet_nano_32",
    ],
)
def test_the_short_way_of_counting_gives_the_true_cost(name):
    config = config_of(name)
    whole = cost(lambda: build(config), config.img_size, training=False)
    assert count(config, config.img_size) == (whole.params, whole.macs)


def test_a_table_has_columns_only_where_they_mean_something(vitrail):
    heads = vitrail("models", "resnet*").out.splitlines()[0].split()
    assert heads == ["model", "parameters", "GFLOPs", "image", "width", "depth"]
    assert "3-4-6-3" in vitrail("models", "pvt*").out
    assert "448 x 448" in vitrail("models", "resnet18", "--img-size", "448").out


def test_cost_by_layer(vitrail):
    ran = vitrail("models", "vit_tiny_patch16_224", "--cost")
    assert "blocks.0 to 11, each" in ran.out
    assert "22,658,678,784" in ran.out
    assert "38,416, 150 KiB" in ran.out
    assert "that is what it does" in ran.out
    ran = vitrail("models", "pvt_v2_b0", "--cost", "--img-size", "64x96", "--json")
    found = ran.json["models"][0]
    assert found["img_size"] == [64, 96]
    calls = [call for layer in found["layers"] for call in layer["attention"]]
    assert sum(call["entries"] for call in calls) == found["attention_entries"] > 0
    assert found["peak_bytes"] < found["kept_bytes"]
    assert "attention" not in vitrail("models", "resnet18", "--cost", "--img-size", "32").out.partition("layer ")[0]


def arithmetic(vitrail, name, size):
    return vitrail("models", name, "--cost", "--img-size", size).out.partition("The arithmetic of attention")[2]


def test_windows_are_set_against_the_map_before_its_padding(vitrail):
    said = arithmetic(vitrail, "swin_tiny_patch4_window7_224", "200x312")
    whole = (4 * 3900 * 96**2 + 2 * 3900**2 * 96) / 1e6
    assert f"hw = 3900, C = 96: all to all 4hwC^2 + 2(hw)^2C = {whole:,.1f} M" in said
    assert "pads its map to whole windows, 4704 tokens" in said
    assert "(12 x 19)^2" in said
    small = arithmetic(vitrail, "swin_tiny_patch4_window7_224", "64")
    assert "hw = 4, C = 768" in small
    assert "pads its map to whole windows, 49 tokens" in small
    assert "that is what it does" not in small
    fitting = arithmetic(vitrail, "swin_tiny_patch4_window7_224", "224")
    assert "hw = 49, C = 768" in fitting
    assert "that is what it does" in fitting
    assert "pads" not in fitting


def test_attention_of_all_to_all_on_another_width_is_called_so(vitrail):
    said = arithmetic(vitrail, "coatnet_0_rw_224", "224")
    assert "all to all here too" in said
    assert "since its output is wider" in said
    said = arithmetic(vitrail, "coatnet_0_224", "224")
    assert "145.1 M; all to all here too, 101.8 M, since q, k and v are made of 192 channels" in said


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_v2_b2_li", "pvt_tiny"])
def test_reduced_attention_counts_with_its_reduction(vitrail, name):
    tokens, dim = 56 * 56, config_of(name).embed_dims[0]
    macs = pooled_msa_macs(tokens, dim) if name.endswith("li") else reduced_msa_macs(tokens, dim, 8)
    assert f"here {macs / 1e6:,.1f} M" in arithmetic(vitrail, name, "224")


def test_no_patches_are_told_of_pictures_smaller_than_one(vitrail):
    assert "16 x 16" not in arithmetic(vitrail, "test_vit", "12x40")


@pytest.mark.parametrize("more", [[], ["--cost"]])
def test_a_size_too_small_is_a_usage_error(vitrail, more):
    ran = vitrail("models", "swin_tiny_patch4_window7_224", "--img-size", "2", *more)
    assert ran.code == 2
    assert (
        "swin_tiny_patch4_window7_224 cannot be counted at --img-size 2x2: expected an image of at least 4x4" in ran.err
    )
    assert "fault of Vitrail" not in ran.err


def test_a_model_that_cannot_take_the_size_leaves_the_table_alone(vitrail):
    ran = vitrail("models", "swin_*_patch*_32", "--img-size", "2")
    assert (ran.code, ran.err) == (0, "")
    ran = vitrail("models", "swin_nano*", "--img-size", "2")
    assert ran.code == 0
    first, last = (next(n for n in list_models("swin_nano*") if f"patch{p}" in n) for p in (2, 4))
    assert ran.out.splitlines()[2].startswith(first)
    assert f"left out: {last} cannot" in ran.out
    found = vitrail("models", "swin_nano*", "--img-size", "2", "--json").json
    assert [model["name"] for model in found["models"]] == [first]
    assert list(found["left_out"]) == [last]
    assert vitrail("models", "swin_t*", "--img-size", "2").code == 2


def test_cost_is_of_one_model(vitrail):
    ran = vitrail("models", "vit_*", "--cost")
    assert ran.code == 2
    assert "one model" in ran.err


def test_one_model_in_detail(vitrail):
    ran = vitrail("models", "vit_base_patch16_224")
    assert ran.code == 0
    assert "86,567,656" in ran.out
    assert "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k" in ran.out
    for field in dataclasses.fields(config_of("vit_base_patch16_224")):
        assert field.name in ran.out


def test_json_holds_what_the_table_shows(vitrail):
    found = vitrail("models", "vit_pico*", "--json").json["models"]
    assert [model["name"] for model in found] == list_models("vit_pico*")
    assert all(model["params"] > 0 and model["gflops"] > 0 for model in found)


@pytest.mark.parametrize("pattern", ["vit_bse_patch16_224", "swim_*"])
def test_an_unknown_name_is_a_weights_error(vitrail, pattern):
    ran = vitrail("models", pattern)
    assert ran.code == 4
    assert pattern in ran.err
