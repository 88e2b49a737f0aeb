"""PVT equals transformers' with the same weights at its native size; other sizes equal the same tables, resized.

transformers' PVT runs at no other size than the one it was made for, timm has none, and the original code stops at
exactly twice that size; see the fact sheet's list of peers' faults.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.peers import randomise, relative_difference, transformers
from vitrail.errors import WeightsError
from vitrail.models import build, list_models, variants
from vitrail.models.pvt import Numerics, PVTConfig
from vitrail.nn import resize_positions
from vitrail.weights import export_weights, load_weights
from vitrail.weights.configs import from_transformers, to_transformers

TOLERANCE = 1e-5
PLAIN = PVTConfig(
    img_size=(64, 64),
    num_classes=7,
    embed_dims=(8, 16, 24, 32),
    depths=(2, 1, 2, 2),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    sr_ratios=(8, 4, 2, 1),
    numerics=Numerics(embed_eps=1e-6),
)
CASES = {
    "plain": PLAIN,
    "other size": replace(PLAIN, img_size=(96, 96)),
    "border left over": replace(PLAIN, img_size=(100, 100), sr_ratios=(4, 5, 4, 1)),
    "grey": replace(PLAIN, in_chans=1),
    "no head": replace(PLAIN, num_classes=0),
}
COUNTS = {"pvt_tiny": 13_229_288, "pvt_small": 24_485_864, "pvt_medium": 44_208_104, "pvt_large": 61_369_320}


def images(config, size=None):
    return torch.randn(2, config.in_chans, *(size or config.img_size), generator=torch.Generator().manual_seed(2))


def hf_peer(config):
    t = transformers
    data = to_transformers(config, None)
    make = {"PvtForImageClassification": t.PvtForImageClassification, "PvtModel": t.PvtModel}
    return randomise(make[data["architectures"][0]](t.PvtConfig(**data)), seed=1)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_transformers(case):
    config = CASES[case]
    peer, ours = hf_peer(config), build(config).eval()
    report = load_weights(ours, peer.state_dict())
    assert report.layout == "transformers"
    assert report.matched == len(ours.state_dict())
    assert report.resized == []
    x = images(config)
    found = peer(x)
    theirs = found.logits if config.num_classes else found.last_hidden_state[:, 0]
    assert relative_difference(ours(x), theirs) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_to_transformers_and_back(case, tmp_path):
    from safetensors.torch import load_file

    config = CASES[case]
    peer, ours = hf_peer(config), build(config)
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    load_weights(ours, saved)
    written = export_weights(ours, "transformers")
    assert written.keys() == saved.keys()
    assert all(torch.equal(written[name], saved[name]) for name in saved)
    again = from_transformers(peer.config.to_dict(), {k: tuple(v.shape) for k, v in saved.items()})
    assert again == config


@pytest.mark.parametrize("size", [(128, 128), (96, 64), (72, 110)])  # the first is twice the native size
@torch.no_grad()
def test_other_sizes_equal_a_peer_with_resized_tables(size):
    """At (128, 128) and a native 64, stage 2 has as many positions as stage 1 was made for."""
    native = hf_peer(PLAIN)
    ours = build(PLAIN).eval()
    load_weights(ours, native.state_dict())
    other = build(replace(PLAIN, img_size=size)).eval()
    report = load_weights(other, native.state_dict())
    assert len(report.resized) == 4
    x = images(PLAIN, size)
    assert relative_difference(ours(x), other(x)) <= TOLERANCE
    if size[0] == size[1]:  # what transformers can be made for
        peer = hf_peer(replace(PLAIN, img_size=size))
        peer.load_state_dict(export_weights(other, "transformers"))
        assert relative_difference(ours(x), peer(x).logits) <= TOLERANCE


def test_resizing_keeps_the_class_tokens_row():
    file = hf_peer(PLAIN).state_dict()
    model = build(replace(PLAIN, img_size=(128, 96)))
    load_weights(model, file)
    table = file["pvt.encoder.patch_embeddings.3.position_embeddings"]
    found = model.stages[3].pos_embed
    assert torch.equal(found[:, :1], table[:, :1])
    torch.testing.assert_close(found[:, 1:], resize_positions(table[:, 1:], (2, 2), (4, 3), "bilinear"))


def test_original_names():
    model = build(PLAIN)
    file = export_weights(model, "original")
    assert {"pos_embed4", "cls_token", "block3.1.attn.kv.weight", "patch_embed2.norm.bias"} <= file.keys()
    other = build(PLAIN)
    assert load_weights(other, file).layout == "original"
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@torch.no_grad()
def test_the_backbone_of_a_detector():
    """Its file has no class token, no final norm, but a row of positions for the class token."""
    model = randomise(build(PLAIN))
    classifier = export_weights(model, "original")
    left_out = ("cls_token", "norm.", "head.")
    detector = {f"backbone.{k}": v for k, v in classifier.items() if not k.startswith(left_out)}
    detector["neck.fpn_convs.0.conv.bias"] = torch.zeros(4)
    bare = replace(PLAIN, num_classes=0, class_token=False)
    first, second = build(bare).eval(), build(bare).eval()
    assert load_weights(first, detector).ignored == ["neck.fpn_convs.0.conv.bias"]
    assert "cls_token" in load_weights(second, classifier).ignored
    x = images(PLAIN, (72, 110))
    found = first.features(x)
    assert all(torch.equal(found.maps[k], second.features(x).maps[k]) for k in found.maps)
    for stride in (4, 8, 16):  # below the stage that the class token joins
        torch.testing.assert_close(found.maps[stride], model.features(x).maps[stride])
    written = export_weights(first, "original")
    assert {f"backbone.{k}" for k in written} == detector.keys() - {"neck.fpn_convs.0.conv.bias"}
    assert written["pos_embed4"].shape == classifier["pos_embed4"].shape
    with pytest.raises(WeightsError, match="class token"):
        export_weights(first, "transformers")


def test_a_table_without_a_grid():
    file = export_weights(build(PLAIN), "original")
    file["pos_embed2"] = torch.zeros(1, 11, 16)
    with pytest.raises(WeightsError, match="11 rows"):
        load_weights(build(PLAIN), file)


def test_every_variant_is_counted():
    assert {n for n in list_models() if isinstance(variants()[n], PVTConfig)} == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_variant(name):
    config = variants()[name]
    with torch.device("meta"):
        peer = transformers.PvtForImageClassification(transformers.PvtConfig(**to_transformers(config, None)))
        assert sum(p.numel() for p in build(config).parameters()) == peer.num_parameters() == COUNTS[name]
