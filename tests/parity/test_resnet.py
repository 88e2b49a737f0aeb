"""ResNet and BiT equal timm's and transformers' with the same weights, both ways; every variant has as many weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail import models
from vitrail.errors import WeightsError
from vitrail.models.bit import BiTConfig
from vitrail.models.resnet import ResNetConfig
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.families.bit import FAMILY as BIT_FAMILY
from vitrail.weights.families.resnet import FAMILY as RESNET_FAMILY

TOLERANCE = 1e-5
SIZES = [(64, 64), (50, 97)]

RESNET = ResNetConfig((64, 64), num_classes=7, depths=(1, 2, 1, 2), widths=(32, 64, 96, 128))
BASIC = replace(RESNET, block="basic", widths=(16, 24, 32, 48))
BIT = BiTConfig((64, 64), num_classes=7, depths=(1, 2, 1, 1), widths=(128, 256, 128, 256), stem_width=32)

CASES = {
    "bottleneck": RESNET,
    "basic": BASIC,
    "grey": replace(RESNET, in_chans=1),
    "dilated to 16": replace(RESNET, output_stride=16),
    "dilated to 8": replace(RESNET, output_stride=8),
    "basic, dilated to 16": replace(BASIC, output_stride=16),
    "no head": replace(RESNET, num_classes=0),
    "bit": BIT,
    "bit, dilated to 16": replace(BIT, output_stride=16),
    "bit, grey": replace(BIT, in_chans=1),
}


def family_of(config):
    return BIT_FAMILY if isinstance(config, BiTConfig) else RESNET_FAMILY


def timm_peer(config):
    if isinstance(config, BiTConfig):
        from functools import partial

        return randomise(
            timm.models.resnetv2.ResNetV2(
                layers=config.depths,
                channels=config.widths,
                stem_chs=config.stem_width,
                num_classes=config.num_classes,
                in_chans=config.in_chans,
                output_stride=config.output_stride,
                stem_type="fixed",
                conv_layer=partial(timm.layers.StdConv2d, eps=1e-8),
            )
        )
    name, arguments = RESNET_FAMILY.to_timm("", config)
    return randomise(timm.create_model(name, num_classes=config.num_classes, **arguments))


def hf_peer(config):
    t = transformers
    data = family_of(config).to_transformers(config, None)
    kind = data.pop("architectures")[0]
    data.pop("model_type")
    peer = getattr(t, kind)((t.BitConfig if isinstance(config, BiTConfig) else t.ResNetConfig)(**data))
    return randomise(peer)


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
        last = ours.features(x).maps[config.steps[-1].reach]
        assert relative_difference(last, peer.forward_features(x)) <= TOLERANCE, size
    written = export_weights(ours, "timm")
    peer.load_state_dict(written, strict=True)
    for name in theirs:
        assert torch.equal(written[name], theirs[name]), name


@pytest.mark.parametrize("case", ["bottleneck", "basic", "grey", "no head", "bit", "bit, grey"])
@torch.no_grad()
def test_equals_transformers_and_back(case, tmp_path):
    from safetensors.torch import load_file

    config = CASES[case]
    peer, ours = hf_peer(config), models.build(config).eval()
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert load_weights(ours, saved).layout == "transformers"
    for size in SIZES:
        x = images(config, *size)
        found = peer(x)
        theirs = found.logits if config.num_classes else found.pooler_output.flatten(1)
        assert relative_difference(ours(x), theirs) <= TOLERANCE, size
    written = export_weights(ours, "transformers")
    assert written.keys() == saved.keys()
    for name in saved:
        assert torch.equal(written[name], saved[name]), name
    assert load_weights(models.build(config), peer.state_dict()).layout == "transformers"  # names in memory


@torch.no_grad()
def test_gradients_and_statistics_equal_timm():
    """In training too: batch statistics, running statistics, gradients of every weight."""
    peer, ours = timm_peer(RESNET).train(), models.build(RESNET).train()
    load_weights(ours, peer.state_dict())
    x = images(RESNET, 64, 64)
    with torch.enable_grad():
        for model in (peer, ours):
            model(x).square().sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), by_our_names(peer, ours), strict=True):
        assert relative_difference(mine.grad, theirs.grad) <= 1e-4, name
    written = export_weights(ours, "timm")
    for name, tensor in peer.state_dict().items():
        if "running" in name:
            assert relative_difference(written[name], tensor) <= TOLERANCE, name


def by_our_names(peer, ours):
    """The peer's parameters in the order of ours."""
    from vitrail.weights.maps.resnet import TIMM

    theirs = dict(peer.named_parameters())
    for name, _ in ours.named_parameters():
        entry, numbers = TIMM.entry_of(name)
        yield theirs[entry.fill(numbers)[0]]


@torch.no_grad()
def test_bit_npz_as_timm_reads_it(tmp_path):
    """What we write under the original's names, timm's own reader takes; what it would hold, we read."""
    config = BIT
    ours, peer = randomise(models.build(config)), timm_peer(config)
    arrays = {name: tensor.numpy() for name, tensor in export_weights(ours, "original").items()}
    np.savez(tmp_path / "bit.npz", **arrays)
    peer.load_pretrained(str(tmp_path / "bit.npz"))
    x = images(config, 64, 96)
    assert relative_difference(ours(x), peer(x)) <= TOLERANCE
    other = models.build(config)
    assert load_weights(other, tmp_path / "bit.npz").title == "BiT .npz"
    for name, tensor in ours.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@torch.no_grad()
def test_torchvision_file_is_read(tmp_path):
    from tests.peers import torchvision

    block = torchvision.models.resnet.BasicBlock
    peer = randomise(torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=7))
    ours = models.create_model("resnet18", num_classes=7, depths=(1, 1, 1, 1)).eval()
    torch.save(peer.state_dict(), tmp_path / "resnet.pth")
    load_weights(ours, tmp_path / "resnet.pth")
    x = images(ours.config, 64, 96)
    assert relative_difference(ours(x), peer(x)) <= TOLERANCE
    peer.load_state_dict(export_weights(ours, "original"), strict=True)


@pytest.mark.parametrize("eps", [1e-10, 1e-8])
@torch.no_grad()
def test_the_std_eps_is_a_number_of_the_card(eps):
    """BiT's own code has 1e-10; on kernels as small as these the difference shows."""
    config = replace(BIT, numerics=replace(BIT.numerics, std_eps=eps))
    ours, peer = models.build(config).eval(), timm_peer(config)
    for module in peer.modules():
        if isinstance(module, timm.layers.StdConv2d):
            module.eps = eps
            module.weight.mul_(1e-3)
    load_weights(ours, peer.state_dict())
    x = images(config, 64, 64)
    assert relative_difference(ours(x), peer(x)) <= TOLERANCE


COUNTS = {  # fact sheet, sections 6 and 7
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_50x3_bit": 217_319_080,
    "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_101x3_bit": 387_934_888,
    "resnetv2_152x2_bit": 236_335_208,
    "resnetv2_152x4_bit": 936_533_224,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_equal_the_papers(name):
    with torch.device("meta"):
        model = models.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_the_papers_network_for_cifar():
    """ResNet-20: 0.27M parameters (table 6), here with projections where the paper pads with zeros."""
    with torch.device("meta"):
        model = models.create_model("resnet_pico_32", num_classes=10)
        nano = models.create_model("resnet_nano_32", num_classes=10)
    projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert sum(p.numel() for p in model.parameters()) - projections == 269_722
    assert 1.0e6 < sum(p.numel() for p in nano.parameters()) < 1.3e6


def test_what_transformers_lacks_is_refused():
    for config in (
        replace(RESNET, output_stride=16),
        models.config_of("resnet_nano_32"),
        replace(BIT, output_stride=16),
    ):
        with pytest.raises(WeightsError, match="'timm' layout"):
            export_weights(models.build(config), "transformers")


@pytest.mark.parametrize("case", ["bottleneck", "basic", "dilated to 16", "bit"])
def test_configs_come_back(case):
    """What we write as another library's config.json gives our config again."""
    config = CASES[case]
    family, shapes = family_of(config), {"classifier.1.weight": (7, 128)}
    if config.output_stride == 32:
        data = family.to_transformers(config, None)
        assert replace(family.from_transformers(data, shapes), img_size=config.img_size) == config
    if isinstance(config, BiTConfig):
        return
    name, arguments = family.to_timm("", config)
    data = {"architecture": name, "num_classes": 7, "model_args": arguments}
    assert replace(family.from_timm(data, {}), img_size=config.img_size) == config


def test_forms_we_lack_are_refused():
    data = RESNET_FAMILY.to_transformers(RESNET, None)
    with pytest.raises(WeightsError, match="downsample_in_bottleneck"):
        RESNET_FAMILY.from_transformers(data | {"downsample_in_bottleneck": True}, {})
    data = BIT_FAMILY.to_transformers(BIT, None)
    with pytest.raises(WeightsError, match="layer_type"):
        BIT_FAMILY.from_transformers(data | {"layer_type": "bottleneck"}, {})
    with pytest.raises(WeightsError, match="avg_down"):
        RESNET_FAMILY.from_timm({"architecture": "resnet50", "model_args": {"avg_down": True}}, {})


@torch.no_grad()
def test_folders_are_read_by_timm_and_ours_read_theirs(tmp_path):
    for config in (RESNET, BASIC):
        ours = randomise(models.build(config))
        folder = save_folder(tmp_path / config.block, ours, card=Card(input_size=(64, 64)))
        x = images(config, 64, 64)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert relative_difference(ours(x), theirs(x)) <= TOLERANCE
    for config in (RESNET, BASIC, BIT):
        peer, at = hf_peer(config), tmp_path / f"hf-{id(config)}"
        peer.save_pretrained(at)
        read = load_folder(at)[0].eval()
        assert replace(read.config, img_size=config.img_size) == config
        again = load_folder(save_folder(tmp_path / f"own-{id(config)}", read, card=Card()))[0].eval()
        assert again.config == read.config
        x = images(config, 50, 66)
        for model in (read, again):
            assert relative_difference(model(x), peer(x).logits) <= TOLERANCE
