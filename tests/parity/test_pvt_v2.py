"""PVT v2 equals timm's and transformers' with the same weights, both ways; counts of every variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail.models import build, list_models, variants
from vitrail.models.pvt_v2 import Numerics, PVTv2Config
from vitrail.weights import export_weights, load_weights
from vitrail.weights.configs import from_transformers, to_timm, to_transformers

TOLERANCE = 1e-5
SIZES = ((64, 64), (96, 40), (75, 66))  # native, not square, no multiple of the stride; some leave SR a border

PLAIN = PVTv2Config(
    img_size=(64, 64),
    num_classes=7,
    embed_dims=(8, 16, 24, 32),
    depths=(2, 1, 2, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    sr_ratios=(8, 4, 2, 1),
)
CASES = {
    "plain": PLAIN,
    "linear": replace(PLAIN, linear=True),
    "thin mlp": replace(PLAIN, mlp_ratios=(2, 2, 2, 2)),
    "other ratios": replace(PLAIN, sr_ratios=(4, 2, 1, 1)),
    "grey": replace(PLAIN, in_chans=1),
    "no head": replace(PLAIN, num_classes=0),
}
COUNTS = {
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b1": 14_009_000,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b2_li": 22_553_512,
    "pvt_v2_b3": 45_238_696,
    "pvt_v2_b4": 62_556_072,
    "pvt_v2_b5": 81_956_008,
}


def images(config, size):
    return torch.randn(2, config.in_chans, *size, generator=torch.Generator().manual_seed(2))


def timm_peer(config):
    _, arguments = to_timm("", config)
    return randomise(timm.create_model("pvt_v2_b0", num_classes=config.num_classes, **arguments), seed=1)


def hf_peer(config):
    t = transformers
    data = to_transformers(config, None)
    make = {"PvtV2ForImageClassification": t.PvtV2ForImageClassification, "PvtV2Model": t.PvtV2Model}
    return randomise(make[data["architectures"][0]](t.PvtV2Config(**data)), seed=1)


def with_one_eps(config):
    return replace(config, numerics=Numerics(embed_eps=1e-6))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_timm(case):
    config = CASES[case]
    peer, ours = timm_peer(config), build(config).eval()
    report = load_weights(ours, peer.state_dict())
    assert (report.matched, report.ignored) == (len(ours.state_dict()), [])
    for size in SIZES:
        x = images(config, size)
        assert relative_difference(ours(x), peer(x)) <= TOLERANCE, size


@pytest.mark.parametrize("case", CASES)
def test_to_timm_and_back(case):
    config = CASES[case]
    peer, ours = timm_peer(config), build(config)
    theirs = peer.state_dict()
    load_weights(ours, theirs)
    written = export_weights(ours, "timm")
    timm_peer(config).load_state_dict(written, strict=True)
    assert all(torch.equal(written[name], theirs[name]) for name in theirs)


@torch.no_grad()
def test_features_equal_timm():
    peer, ours = timm_peer(PLAIN), build(PLAIN).eval()
    load_weights(ours, peer.state_dict())
    x = images(PLAIN, (96, 40))
    found = ours.features(x)
    theirs = peer.forward_intermediates(x, intermediates_only=True)
    for ours_map, peer_map in zip(found.maps.values(), theirs, strict=True):
        assert relative_difference(ours_map, peer_map) <= TOLERANCE
    assert {stride: m.shape[1] for stride, m in found.maps.items()} == ours.feature_channels
    assert found.grid == (3, 2)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_transformers(case):
    config = with_one_eps(CASES[case])
    peer, ours = hf_peer(config), build(config).eval()
    report = load_weights(ours, peer.state_dict())
    assert report.layout == "transformers"
    assert report.matched == len(ours.state_dict())
    for size in SIZES:
        x = images(config, size)
        found = peer(x)
        theirs = found.logits if config.num_classes else found.last_hidden_state.mean(dim=(2, 3))
        assert relative_difference(ours(x), theirs) <= TOLERANCE, size


@pytest.mark.parametrize("case", CASES)
def test_to_transformers_and_back(case, tmp_path):
    from safetensors.torch import load_file

    config = with_one_eps(CASES[case])
    peer, ours = hf_peer(config), build(config)
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    load_weights(ours, saved)
    written = export_weights(ours, "transformers")
    assert written.keys() == saved.keys()
    assert all(torch.equal(written[name], saved[name]) for name in saved)
    again = from_transformers(peer.config.to_dict(), {k: tuple(v.shape) for k, v in saved.items()})
    assert again == config


def test_a_small_first_stride_goes_to_transformers():
    config = with_one_eps(replace(PLAIN, patch_size=3, stride=2))
    peer, ours = hf_peer(config), build(config).eval()
    load_weights(ours, peer.state_dict())
    x = images(config, (33, 40))
    assert relative_difference(ours(x), peer(x).logits) <= TOLERANCE
    assert list(ours.feature_channels) == [2, 4, 8, 16]


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_original_names_and_the_backbone_of_a_detector(prefix):
    config = replace(PLAIN, num_classes=7 if not prefix else 0)
    model = build(config)
    file = {prefix + k: v for k, v in export_weights(model, "original").items()}
    assert f"{prefix}patch_embed1.proj.weight" in file
    assert f"{prefix}block3.1.mlp.dwconv.dwconv.bias" in file
    if prefix:
        file |= {
            "neck.lateral_convs.0.conv.weight": torch.zeros(4, 8, 1, 1),
            "bbox_head.retina_cls.bias": torch.ones(3),
        }
    other = build(config)
    report = load_weights(other, file)
    assert report.layout == "original"
    assert len(report.ignored) == (2 if prefix else 0)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_variant(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(variants()[name]).parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", list_models("pvt_v2_*"))
def test_counts_equal_transformers(name):
    config = variants()[name]
    with torch.device("meta"):
        peer = transformers.PvtV2ForImageClassification(transformers.PvtV2Config(**to_transformers(config, None)))
        assert sum(p.numel() for p in build(config).parameters()) == peer.num_parameters()
