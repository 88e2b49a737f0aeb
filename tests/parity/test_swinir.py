"""SwinIR equals spandrel's, which is the authors', with the same weights, both ways: every published variant.

The networks' widths and depths are cut down where a test runs them, their kinds are not: window, head, connection,
range, channels and scale are those of the variant. Counts are those of the whole networks.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.peers import randomise, relative_difference, spandrel
from vitrail import models
from vitrail.errors import WeightsError
from vitrail.weights import export_weights, load_weights
from vitrail.weights.families.swinir import FAMILY

TOLERANCE = 1e-5
NAMES = sorted(n for n in models.variants_that("pictures") if not n.startswith("test_"))
SIZES = [(16, 24), (17, 30), (21, 40), (9, 11)]
COUNTS = {
    "swinir_classical_m_x2": 11_752_487,
    "swinir_classical_m_x3": 11_937_127,
    "swinir_classical_m_x4": 11_900_199,
    "swinir_classical_m_x8": 12_047_911,
    "swinir_light_x2": 910_152,
    "swinir_light_x3": 918_267,
    "swinir_light_x4": 929_628,
    "swinir_real_m_x4": 11_715_559,
    "swinir_real_m_x2": 11_678_631,
    "swinir_real_l_x4": 28_013_059,
    "swinir_gray_denoise": 11_497_681,
    "swinir_color_denoise": 11_504_163,
    "swinir_gray_jpeg": 11_485_585,
    "swinir_color_jpeg": 11_492_067,
}


def peer_class():
    return importlib.import_module(f"{spandrel.__name__}.architectures.SwinIR.__arch.SwinIR").SwinIR


def peer_of(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.meshgrid without its indexing
        return _peer_of(config)


def _peer_of(config):
    return peer_class()(
        img_size=config.img_size[0],
        in_chans=config.in_chans,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        upscale=config.upscale,
        img_range=config.img_range,
        upsampler="" if config.head == "residual" else config.head,
        resi_connection=config.connection,
    )


def filled(config):
    """Return the peer with random weights; its masks, which are buffers too, stay masks."""
    peer = peer_of(config)
    masks = {name: mask.clone() for name, mask in peer.named_buffers() if name.endswith("attn_mask")}
    randomise(peer)
    for name, mask in peer.named_buffers():
        if name in masks:
            mask.copy_(masks[name])
    return peer


def narrow(config):
    """Two groups of two blocks, four channels a head."""
    heads = config.num_heads[0]
    return replace(config, embed_dim=4 * heads, depths=(2, 2), num_heads=(heads,) * 2)


def pictures(config, size, batch=2):
    return torch.rand(batch, config.in_chans, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_equals_the_authors_network_and_back(name):
    config = narrow(models.config_of(name))
    peer = filled(config)
    ours = models.build(config).eval()
    report = load_weights(ours, peer.state_dict())
    assert report.layout == "original"
    assert report.matched == len(ours.state_dict())
    for size in SIZES:
        x = pictures(config, size)
        gap = relative_difference((ours(x) - x.mean()) * config.img_range, (peer(x) - x.mean()) * config.img_range)
        assert gap <= TOLERANCE, size
    theirs = peer.state_dict()
    written = export_weights(ours, "original")
    buffers = {n for n in theirs if n.endswith(("attn_mask", "relative_position_index"))}
    assert written.keys() == theirs.keys() - buffers
    assert all(torch.equal(written[n], theirs[n]) for n in written)


@torch.no_grad()
def test_the_whole_lightweight_network_equals_the_authors():
    config = models.config_of("swinir_light_x2")
    peer, ours = filled(config), models.build(config).eval()
    load_weights(ours, peer.state_dict())
    for size in [(35, 50), config.img_size]:  # at the size it was trained on, the peer takes the masks it has stored
        x = pictures(config, size, batch=1)
        assert relative_difference(ours(x), peer(x)) <= TOLERANCE


@pytest.mark.parametrize("name", COUNTS)
def test_every_variant_has_as_many_weights_as_the_published_one(name):
    with torch.device("meta"):
        model = models.build(models.config_of(name))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("wrapper", ["params", "params_ema"])
def test_published_files_are_read(tmp_path, wrapper):
    config = models.config_of("test_swinir_x4")
    peer = filled(config)
    path = tmp_path / "003_realSR_x4.pth"
    torch.save({wrapper: peer.state_dict()}, path)
    ours = models.build(config).eval()
    report = load_weights(ours, path)
    assert report.matched == len(ours.state_dict())
    assert any(name.endswith("attn_mask") for name in report.ignored)
    x = pictures(config, (10, 13))
    with torch.no_grad():
        assert relative_difference(ours(x), peer(x)) <= TOLERANCE


def test_a_file_of_another_network_is_refused_with_the_name_of_its_own(tmp_path):
    path = tmp_path / "light.safetensors"
    state = peer_of(models.config_of("swinir_light_x3")).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    with pytest.raises(WeightsError, match="swinir_light_x3"):
        load_weights(models.create_model("swinir_classical_m_x2"), path)


def test_weights_that_are_a_file_and_no_repository_say_where_it_is():
    with pytest.raises(WeightsError, match=r"002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2\.pth"):
        models.create_model("swinir_light_x2", pretrained=True)


def test_every_published_network_has_a_card():
    named = {card.name.partition(".")[0] for card in FAMILY.cards()}
    assert named == {n for n in NAMES if "nano" not in n and n != "swinir_light_denoise"}
    assert {card.licence for card in FAMILY.cards()} == {"apache-2.0"}
