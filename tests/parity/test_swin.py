"""Swin equals timm's and transformers' with the same weights, both ways; every variant has as many weights.

timm pads after the cyclic shift, so it is compared at sizes that windows fill, each with a model of its own: it decides
from the size it is made for which maps are shifted. At other sizes the reference is transformers' ``SwinBackbone``,
which equals the authors' detection code.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail import models
from vitrail.errors import WeightsError
from vitrail.models.swin import Numerics, SwinConfig
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.families.swin import FAMILY

TOLERANCE = 1e-5
SWIN = SwinConfig(
    (64, 64), 2, num_classes=7, embed_dim=16, depths=(2, 1, 2, 2), num_heads=(1, 2, 4, 8), window_size=4
)  # maps of 32, 16, 8 and 4 tokens a side: the last is one window
BACKBONE = replace(SWIN, num_classes=0, stage_norms=True, numerics=Numerics(always_shift=True))

CASES = {
    "classifier": SWIN,
    "always shifted": replace(SWIN, numerics=Numerics(always_shift=True)),
    "odd window": replace(SWIN, window_size=3, img_size=(48, 48)),
    "non-integer mlp_ratio": replace(SWIN, mlp_ratio=2.7),
    "grey": replace(SWIN, in_chans=1),
    "three stages": replace(SWIN, depths=(2, 2, 2), num_heads=(2, 2, 4), patch_size=4),
    "no head": replace(SWIN, num_classes=0),
}
ANY = [(64, 64), (66, 94), (70, 51), (50, 67), (97, 40), (17, 30), (2, 3)]


def images(config, height, width):
    return torch.randn(2, config.in_chans, height, width, generator=torch.Generator().manual_seed(2))


def timm_peer(config, size):
    name, arguments = FAMILY.to_timm("", replace(config, img_size=size))
    return randomise(timm.create_model(name, num_classes=config.num_classes, **arguments))


def sizes_for_timm(config):
    side = config.window_size * config.strides[-1]
    return [(side, side), (side, 2 * side), (2 * side, 3 * side)]


def hf_peer(config, **more):
    data = FAMILY.to_transformers(config, None) | more
    kind = data.pop("architectures")[0]
    data.pop("model_type")
    return randomise(getattr(transformers, kind)(transformers.SwinConfig(**data)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_timm_and_back(case):
    config = CASES[case]
    ours = models.build(config).eval()
    for size in sizes_for_timm(config):
        peer = timm_peer(config, size)
        report = load_weights(ours, peer.state_dict())
        assert report.layout == "timm"
        assert report.matched == len(ours.state_dict())
        assert not report.resized
        x = images(config, *size)
        assert relative_difference(ours(x), peer(x)) <= TOLERANCE, size
    theirs, written = peer.state_dict(), export_weights(ours, "timm")
    peer.load_state_dict(written, strict=True)
    assert all(torch.equal(written[n], t) for n, t in theirs.items())


@torch.no_grad()
def test_maps_equal_timm():
    peer = timm_peer(SWIN, (64, 128))
    ours = models.build(SWIN).eval()
    load_weights(ours, peer.state_dict())
    x = images(SWIN, 64, 128)
    found, theirs = ours.features(x), peer.forward_intermediates(x, norm=True, intermediates_only=True)
    assert list(found.maps) == [2, 4, 8, 16]
    for mine, other in zip(found.maps.values(), theirs, strict=True):
        assert relative_difference(mine, other) <= TOLERANCE
    assert found.grid == (4, 8)
    assert relative_difference(found.tokens, theirs[-1].flatten(2).transpose(1, 2)) <= TOLERANCE


HF = {n: c for n, c in CASES.items() if n != "always shifted"}


@pytest.mark.parametrize("in_memory", [False, True], ids=["hub", "memory"])
@pytest.mark.parametrize("case", HF)
@torch.no_grad()
def test_equals_transformers_and_back(case, in_memory, tmp_path):
    """Both classifiers agree wherever the last map is larger than a window along both sides, and at the native size."""
    config = HF[case]
    ours = models.build(config).eval()
    peer = hf_peer(config)
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    report = load_weights(ours, peer.state_dict() if in_memory else saved)
    assert report.layout == "transformers"
    assert ("memory" in report.title) == in_memory
    assert report.matched == len(ours.state_dict())
    side = config.window_size * config.strides[-1]
    for size in ((side + 10, side + 33), (2 * side, side + 2), (side, side)):  # its windows shrink for good: last
        x = images(config, *size)
        out = peer(x)
        theirs = out.logits if config.num_classes else out.pooler_output
        assert relative_difference(ours(x), theirs) <= TOLERANCE, size
    written = export_weights(ours, "transformers")
    assert written.keys() == saved.keys()
    assert all(torch.equal(written[n], saved[n]) for n in saved)


@pytest.mark.parametrize("size", ANY, ids=str)
@torch.no_grad()
def test_any_size_equals_the_backbone_of_transformers(size):
    """Patches, windows and squares that the image does not fill, and maps smaller than a window."""
    peer, ours = hf_peer(BACKBONE), models.build(BACKBONE).eval()
    load_weights(ours, peer.state_dict())
    x = images(BACKBONE, *size)
    found = ours.features(x)
    for mine, theirs in zip(found.maps.values(), peer(x).feature_maps, strict=True):
        assert relative_difference(mine, theirs) <= TOLERANCE
    assert relative_difference(ours(x), peer(x).feature_maps[-1].mean(dim=(2, 3))) <= TOLERANCE


@pytest.mark.parametrize("size", [(66, 94), (97, 128), (130, 70)], ids=str)
@torch.no_grad()
def test_classifiers_equal_the_backbone_where_maps_are_larger_than_windows(size):
    """Only a map that fits in one window along a side is treated otherwise."""
    plain = replace(BACKBONE, numerics=Numerics())
    peer, ours = hf_peer(BACKBONE), models.build(plain).eval()
    report = load_weights(ours, peer.state_dict())
    assert any("always_shift" in sentence for sentence in report.resized)
    x = images(BACKBONE, *size)
    theirs = peer(x).feature_maps
    for mine, other in zip(ours.features(x).maps.values(), theirs, strict=True):
        assert relative_difference(mine, other) <= TOLERANCE


@pytest.mark.parametrize("stages", [3, 4])
@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_backbones_there_and_back(layout, stages, tmp_path):
    config = replace(BACKBONE, depths=(1,) * stages, num_heads=(1, 2, 2, 2)[:stages])
    peer, ours = hf_peer(config), models.build(config)
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    report = load_weights(ours, saved)
    assert {n.partition(".")[0] for n in report.ignored} == {"swin"}  # the norm that it never uses
    written = export_weights(ours, layout)
    if layout == "transformers":
        assert written.keys() == saved.keys() - {*report.ignored}
    else:
        assert f"norm{stages - 1}.weight" in written
    segmenter = {f"backbone.{n}": t for n, t in written.items()} | {"decode_head.conv_seg.weight": torch.zeros(2, 3)}
    again = models.build(config)
    assert load_weights(again, segmenter).ignored == ["decode_head.conv_seg.weight"]
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in ours.state_dict().items())


def original(config):
    """Return a state dict as the authors' classifier has it, made of timm's, with the buffers of a real file."""
    theirs = timm_peer(config, config.img_size).state_dict()
    earlier = {re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", n): t for n, t in theirs.items()}
    named = {n.replace("head.fc.", "head."): t for n, t in earlier.items()}
    n = config.window_size**2
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(n, n, dtype=torch.int64)
    named["layers.0.blocks.1.attn_mask"] = torch.zeros(4, n, n)
    return named


def test_original_there_and_back():
    theirs, ours = original(SWIN), models.build(SWIN)
    report = load_weights(ours, theirs)
    assert report.layout == "original"
    assert len(report.ignored) == 2
    written = export_weights(ours, "original")
    assert written.keys() == theirs.keys() - {*report.ignored}
    assert all(torch.equal(t, theirs[n]) for n, t in written.items())


@torch.no_grad()
def test_a_classifier_becomes_a_backbone_with_fresh_norms():
    ours = models.build(BACKBONE)
    report = load_weights(ours, original(SWIN), new_head=True)
    assert {n.partition(".")[0] for n in report.new} == {"stage_norms"}


@pytest.mark.parametrize("window", [3, 6])
@torch.no_grad()
def test_windows_of_another_size(window):
    """Set at run time, at creation, or by the file: the same tables, resized as the authors resize them."""
    theirs = original(SWIN)
    loaded = models.build(replace(SWIN, window_size=window)).eval()
    report = load_weights(loaded, theirs)
    assert report.resized == [f"7 tables of relative positions: 4x4 -> {window}x{window}"]
    changed = models.build(SWIN).eval()
    load_weights(changed, theirs)
    changed.set_window(window)
    assert changed.config == loaded.config
    x = images(SWIN, 70, 50)
    assert torch.equal(loaded(x), changed(x))
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    table = theirs[name].t().reshape(1, -1, 7, 7)
    span = 2 * window - 1
    expected = torch.nn.functional.interpolate(table, (span, span), mode="bicubic")
    got = export_weights(changed, "original")[name].t().reshape(expected.shape)
    torch.testing.assert_close(got, expected)


def test_configs_of_timm_and_transformers_are_read():
    for name in ("swin_tiny_patch4_window7_224", "swin_base_patch4_window12_384"):
        config = models.variants()[name]
        architecture, arguments = FAMILY.to_timm(name, config)
        data = {"architecture": architecture, "num_classes": 1000, "model_args": arguments}
        assert FAMILY.from_timm(data, {}) == config
        assert (
            FAMILY.from_transformers(FAMILY.to_transformers(config, None), {"classifier.weight": (1000, 1)}) == config
        )
    norms = {"hidden_states_norms.stage2.weight": (32,)}
    assert FAMILY.from_transformers(FAMILY.to_transformers(BACKBONE, None), norms) == BACKBONE


def test_what_other_libraries_cannot_hold_is_said():
    data = {"architecture": "swin_tiny_patch4_window7_224", "model_args": {"window_size": [7, 7, 14, 7]}}
    with pytest.raises(WeightsError, match="one side for all windows"):
        FAMILY.from_timm(data, {})
    data["model_args"] = {"img_size": 128}
    with pytest.raises(WeightsError, match="shrinks the"):
        FAMILY.from_timm(data, {"layers.3.blocks.0.attn.relative_position_bias_table": (49, 24)})
    small = replace(SWIN, img_size=(32, 32))  # the last map is 2x2: timm would shrink its windows
    assert FAMILY.to_timm("", small)[0] == "vitrail"
    with pytest.raises(WeightsError, match="always shifts"):
        FAMILY.to_transformers(replace(SWIN, numerics=Numerics(always_shift=True)), None)
    with pytest.raises(WeightsError, match="layer_norm_eps"):
        FAMILY.from_transformers({"model_type": "swin", "layer_norm_eps": 1e-6}, {})


@torch.no_grad()
def test_folders_are_read_by_timm_and_ours_read_theirs(tmp_path):
    ours = randomise(models.create_model("test_swin", num_classes=7))
    card = Card(name="test_swin", input_size=(32, 32), num_classes=7)
    folder = save_folder(tmp_path / "ours", ours, card=card, classes=None)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(ours.config, 32, 32)
    assert relative_difference(ours.eval()(x), theirs(x)) <= TOLERANCE
    peer = hf_peer(BACKBONE)
    peer.save_pretrained(tmp_path / "theirs")
    read = load_folder(tmp_path / "theirs")[0].eval()
    assert read.config == BACKBONE
    again = load_folder(save_folder(tmp_path / "backbone", read, card=Card(), classes=None))[0].eval()
    assert again.config == BACKBONE
    x = images(BACKBONE, 40, 60)
    expected = peer(x).feature_maps[1]
    assert relative_difference(read.features(x).maps[4], expected) <= TOLERANCE
    assert relative_difference(again.features(x).maps[4], expected) <= TOLERANCE


FACTS = {  # architecture fact sheet
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
    "swin_base_patch4_window12_384": 87_903_584,
    "swin_large_patch4_window7_224": 196_532_476,
    "swin_large_patch4_window12_384": 196_735_516,
}


@pytest.mark.parametrize("name", models.list_models("swin_*"))
def test_counts(name):
    config = models.variants()[name]
    architecture, arguments = FAMILY.to_timm(name, config)
    with torch.device("meta"):
        ours = sum(p.numel() for p in models.build(config).parameters())
        peer = timm.create_model(architecture, num_classes=config.num_classes, **arguments)
    assert ours == sum(p.numel() for p in peer.parameters())
    assert ours == FACTS.get(name, ours)
    assert FAMILY.in_timm(name) == (name in FACTS)
