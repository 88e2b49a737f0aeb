"""Every family: its folder is read back whole, by us and, where timm has the network, by timm."""

from __future__ import annotations

import json

import pytest
import torch

from tests.peers import randomise, relative_difference, timm
from vitrail.errors import WeightsError
from vitrail.models import create_model, image_variants, list_models, text_variants, variants
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.configs import name_of, to_timm
from vitrail.weights.families import Family, families, family_of
from vitrail.weights.maps import layouts

SMALL = sorted(n for n in image_variants() if n.startswith("test_"))
TEXT = sorted(n for n in text_variants() if n.startswith("test_"))


def made(name):
    return randomise(create_model(name), seed=4)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_folder_is_read_back_whole(tmp_path, name):
    model, images = made(name), torch.randn(2, 3, 50, 67)
    path = save_folder(tmp_path / "f", model, card=Card(name=name, input_size=(32, 32)))
    again, card, _ = load_folder(path)
    assert again.config == model.config
    assert card.name == name
    assert torch.equal(again.eval()(images), model(images))
    told = (path / "README.md").read_text()
    assert "made for 32 x 32 pixels" in told
    assert ("timm reads it too" in told) == (family_of(model.config).stored_layout == "timm")
    written = json.loads((path / "config.json").read_text())
    assert written["num_features"] == model.feature_channels[max(model.feature_channels)]


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_timm_builds_the_same_network_from_our_folder(tmp_path, name):
    model, images = made(name), torch.randn(2, 3, 32, 32)
    architecture, _ = to_timm(name, model.config)
    if architecture in (name, "vitrail"):  # our own name: timm refuses it (of its own test models it has other sizes)
        return
    path = save_folder(tmp_path / "f", model, card=Card(name=name, input_size=(32, 32)))
    peer = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    assert relative_difference(model(images), peer(images)) <= 1e-5


@pytest.mark.parametrize("name", SMALL + TEXT)
def test_every_layout_of_a_family_round_trips(name):
    model = made(name)
    for layout in layouts(model.config):
        try:
            written = export_weights(model, layout)
        except WeightsError:  # a layout without a place for a part of this model, which it names
            continue
        again = create_model(name)
        load_weights(again, written)
        for key, tensor in model.state_dict().items():
            if not key.endswith("num_batches_tracked") and key not in family_of(model.config).may_lack(model.config):
                assert torch.equal(again.state_dict()[key], tensor), (layout, key)


def test_every_model_file_has_a_family():
    assert {name for name, family in families().items() if type(family) is Family} == set()
    kinds = [kind for family in families().values() for kind in family.model_types]
    assert len(kinds) == len(set(kinds)), "two families read one model_type of transformers"


@pytest.mark.parametrize("name", list_models())
def test_a_variant_is_found_by_its_sizes_and_described(name):
    config = variants()[name]
    found = name_of(config)
    assert found == name or variants()[found] == config
    told = family_of(config).describe(config)
    if name in text_variants():
        assert str(config.embed_dim) in told
    else:
        assert told.endswith(f"made for {config.img_size[0]} x {config.img_size[1]} pixels")


def test_a_strange_config_has_no_family():
    with pytest.raises(WeightsError, match="Vitrail's own models"):
        family_of(Card())


@pytest.mark.parametrize("layout", ["timm", "transformers", "original"])
def test_swin_says_what_a_file_of_another_layout_holds(layout):
    written = export_weights(made("test_swin"), layout)
    with pytest.raises(WeightsError, match=r"width 16, depths 2-2-2, patch 2: create 'test_swin'"):
        load_weights(create_model("swin_tiny_patch4_window7_224"), written)


@pytest.mark.parametrize("layout", ["vitrail", "timm"])
def test_resnet_says_whose_widths_fit(layout):
    written = export_weights(create_model("resnet_pico_32"), layout)
    with pytest.raises(WeightsError, match=r"3, 3, 3 blocks, 16, 32, 64 channels wide: create 'resnet_pico_32'[.]"):
        load_weights(create_model("resnet_nano_32"), written)
    with pytest.raises(WeightsError, match=r"64, 128, 256, 512 channels wide: create 'resnet18'[.]"):
        load_weights(create_model("test_resnet"), export_weights(create_model("resnet18"), layout))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_backbone_of_maps_is_filled_too(name):
    model = made(name)
    backbone = create_model(name, features_only=True)
    report = load_weights(backbone, model.state_dict())
    single = len(model.feature_channels) == 1
    assert ("the layers of the pyramid are new" in str(report)) == single
    images = torch.randn(1, 3, 32, 32)
    maps, found = model.features(images).maps, backbone.backbone.eval().features(images).maps
    assert all(torch.equal(maps[stride], found[stride]) for stride in maps)
