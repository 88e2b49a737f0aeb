"""UPerNet and SegFormer equal transformers' with the same weights, both ways; Semantic FPN equals its description.

transformers has no Semantic FPN: its reference here is written anew from the papers and mmseg's published settings, on
torchvision's FPN. mmseg's names are checked by a file made from transformers' names.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.peers import randomise, relative_difference, torchvision, transformers
from vitrail import models
from vitrail.errors import WeightsError
from vitrail.models.pvt import PVTConfig
from vitrail.models.pvt_v2 import Numerics, PVTv2Config
from vitrail.models.segmenter import SegmenterConfig
from vitrail.models.swin import SwinConfig
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.families.segmenter import FAMILY, TORCH_EPS

TOLERANCE = 1e-5
SIZES = [(64, 64), (67, 94), (97, 70)]
SWIN = SwinConfig((64, 64), 2, embed_dim=16, depths=(2, 1, 2, 2), num_heads=(1, 2, 4, 8), window_size=4)
UPERNET = SegmenterConfig(SWIN, channels=24, auxiliary=12, img_size=(64, 64), num_classes=7)
MIT = PVTv2Config(
    embed_dims=(8, 16, 24, 32),
    depths=(1, 2, 1, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 4, 4),
    numerics=Numerics(TORCH_EPS, TORCH_EPS),
)
SEGFORMER = SegmenterConfig(MIT, "segformer", 20, img_size=(64, 64), num_classes=7)


def images(height, width, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(2))


def hf_peer(config):
    data = FAMILY.to_transformers(config, None)
    kind = data.pop("architectures")[0]
    if data.pop("model_type") == "segformer":
        return randomise(getattr(transformers, kind)(transformers.SegformerConfig(**data)))
    inner = {k: v for k, v in data.pop("backbone_config").items() if k not in ("architectures", "model_type")}
    return randomise(
        getattr(transformers, kind)(
            transformers.UperNetConfig(backbone_config=transformers.SwinConfig(**inner), **data)
        )
    )


CASES = {
    "upernet": UPERNET,
    "upernet, three grids": replace(UPERNET, pool_scales=(1, 3, 5), auxiliary=None),
    "upernet, three stages": replace(
        UPERNET, backbone=replace(SWIN, depths=(1, 2, 1), num_heads=(2, 2, 4)), auxiliary=None
    ),
    "upernet, grey": replace(UPERNET, in_chans=1),
    "segformer": SEGFORMER,
    "segformer, grey": replace(SEGFORMER, in_chans=1),
}


@pytest.mark.parametrize("in_memory", [False, True], ids=["hub", "memory"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_transformers_and_back(case, in_memory, tmp_path):
    config = CASES[case]
    ours, peer = models.build(config).eval(), hf_peer(config)
    peer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    report = load_weights(ours, peer.state_dict() if in_memory else saved)
    assert report.layout == "transformers"
    assert ("memory" in report.title) == in_memory
    assert not report.new
    assert not report.resized
    for size in SIZES:
        x = images(*size, config.in_chans)
        theirs = peer(x)
        whole = theirs.logits
        mine, auxiliary = ours.training_logits(x)
        if config.head == "upernet":
            mine = F.interpolate(mine, size=size, mode="bilinear")
        assert relative_difference(mine, whole) <= TOLERANCE, size
        if auxiliary is not None:
            maps = peer.backbone(x).feature_maps
            assert relative_difference(auxiliary, peer.auxiliary_head(maps)) <= TOLERANCE
    written = export_weights(ours, "transformers")
    assert written.keys() == saved.keys() - {n for n in saved if n.startswith("backbone.swin.layernorm")}
    assert all(torch.equal(written[n], saved[n]) for n in written)


@pytest.mark.parametrize("case", ["upernet", "segformer"])
@torch.no_grad()
def test_a_folder_of_transformers_is_read_whole(case, tmp_path):
    config = CASES[case]
    peer = hf_peer(config)
    peer.save_pretrained(tmp_path)
    ours, card, _ = load_folder(tmp_path)
    assert card.num_classes == 7
    assert replace(ours.config, img_size=config.img_size, backbone=config.backbone) == config
    x = images(67, 94)
    mine = ours.eval()(x)
    theirs = peer(x).logits
    mine = F.interpolate(mine, size=theirs.shape[2:], mode="bilinear")
    assert relative_difference(mine, theirs) <= TOLERANCE


@pytest.mark.parametrize("case", ["upernet", "segformer"])
@torch.no_grad()
def test_published_files_of_mmseg_and_authors(case):
    """The same tensors under mmseg's names for UPerNet, and under the authors' for SegFormer."""
    config = CASES[case]
    ours, again = models.build(config).eval(), models.build(config).eval()
    randomise(ours)
    written = export_weights(ours, "original")
    expected = (
        "decode_head.psp_modules.0.1.bn.running_mean"
        if case == "upernet"
        else "decode_head.linear_fuse.bn.running_mean"
    )
    assert expected in written
    assert all(n.startswith(("backbone.", "decode_head.", "auxiliary_head.")) for n in written)
    report = load_weights(again, written)
    assert report.layout == "original"
    x = images(50, 67)
    assert torch.equal(again(x), ours(x))


def test_mmseg_names_are_those_of_transformers_with_the_known_changes():
    """What the fact sheet lists: ``bn`` for ``batch_norm``, ``conv_seg`` for ``classifier``."""
    ours = models.build(UPERNET)
    heads = {n for n in export_weights(ours, "transformers") if not n.startswith("backbone.")}
    mm = {n for n in export_weights(ours, "original") if not n.startswith("backbone.")}
    assert {re.sub(r"\.classifier\.", ".conv_seg.", n.replace(".batch_norm.", ".bn.")) for n in heads} == mm


class Reference(nn.Module):
    """Semantic FPN as mmseg publishes it: FPN of biased convolutions without norms, scale heads, sum, classifier."""

    def __init__(self, widths, neck, channels, classes):
        super().__init__()
        self.fpn = torchvision.ops.FeaturePyramidNetwork(widths, neck)
        self.heads = nn.ModuleList()
        for level in range(len(widths)):
            convs = nn.ModuleList()
            for i in range(max(1, level)):
                convs.append(nn.Conv2d(channels if i else neck, channels, 3, padding=1, bias=False))
                convs.append(nn.BatchNorm2d(channels))
            self.heads.append(convs)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        names = {str(i): x for i, x in enumerate(maps)}
        total = 0
        for level, (x, head) in enumerate(zip(self.fpn(names).values(), self.heads, strict=True)):
            for i in range(0, len(head), 2):
                x = F.relu(head[i + 1](head[i](x)))
                if level:
                    x = F.interpolate(x, size=[2 * s for s in x.shape[2:]], mode="bilinear", align_corners=False)
            total = total + F.interpolate(x, size=maps[0].shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(total)

    def named(self):
        """Return the tensors under mmseg's names."""
        found = {}
        for name, tensor in self.state_dict().items():
            name = re.sub(r"fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv.", name)
            name = re.sub(r"fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv.", name)
            name = name.replace("classifier.", "decode_head.conv_seg.")
            hit = re.fullmatch(r"heads\.(\d)\.(\d)\.(.+)", name)
            if hit:  # an upsampling stands after each convolution, but for the finest level
                level, i = int(hit[1]), int(hit[2])
                place = (i // 2) * (2 if level else 1)
                name = f"decode_head.scale_heads.{level}.{place}.{'bn' if i % 2 else 'conv'}.{hit[3]}"
            found[name] = tensor
        return found


PVT = PVTConfig(
    (64, 64), embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 3, 4), sr_ratios=(4, 2, 1, 1)
)


@pytest.mark.parametrize("backbone", [PVT, replace(MIT, numerics=Numerics())], ids=["pvt", "pvt_v2"])
@torch.no_grad()
def test_semantic_fpn_equals_its_description(backbone):
    config = SegmenterConfig(backbone, "fpn", 20, 28, img_size=(64, 64), num_classes=7)
    ours = randomise(models.build(config)).eval()
    reference = randomise(Reference([8, 16, 24, 32], 28, 20, 7), seed=5)
    own = {n: t for n, t in export_weights(ours, "original").items() if n.startswith("backbone.")}
    report = load_weights(ours, {**own, **reference.named()})
    assert report.layout == "original"
    assert "FPNHead" in report.title
    for size in SIZES:
        x = images(*size)
        maps = [ours.backbone.backbone.features(x).maps[stride] for stride in (4, 8, 16, 32)]
        assert relative_difference(ours(x), reference(maps)) <= TOLERANCE, size
    written = export_weights(ours, "original")
    assert all(torch.equal(written[n], t) for n, t in reference.named().items() if not n.endswith("tracked"))


PARAMETERS = {
    # transformers' counts of 150 classes, less a norm of 2 x 8C that it never uses (fact sheet, section 17)
    "upernet_swin_tiny": 59_943_398 - 2 * 768,
    "upernet_swin_small": 81_261_302 - 2 * 768,
    "upernet_swin_base": 121_281_764 - 2 * 1024,
    "upernet_swin_base_window12": 121_417_124 - 2 * 1024,
    "upernet_swin_large": 233_763_008 - 2 * 1536,
    "upernet_swin_large_window12": 233_966_048 - 2 * 1536,
    "segformer_b0": 3_752_694,
    "segformer_b5": 84_708_694,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_variants_have_as_many_weights_as_published(name):
    with torch.device("meta"):
        model = models.create_model(name, num_classes=150)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@torch.no_grad()
def test_windows_and_positions_of_another_size_are_fitted(tmp_path):
    """A backbone's tables are resized by its own family, within the whole network."""
    ours = randomise(models.build(UPERNET))
    wider = models.build(replace(UPERNET, backbone=replace(SWIN, window_size=5)))
    report = load_weights(wider, export_weights(ours, "transformers"))
    assert any("7x7 -> 9x9" in words or "relative positions" in words for words in report.resized)
    config = SegmenterConfig(PVT, "fpn", 20, 28, img_size=(64, 64), num_classes=7)
    folder = save_folder(tmp_path / "f", randomise(models.build(config)), card=Card(input_size=(64, 64)))
    other = models.build(replace(config, img_size=(96, 64)))
    report = load_weights(other, folder)
    assert sum("pos_embed" in words for words in report.resized) == 4


def test_what_transformers_lacks_is_said():
    with pytest.raises(WeightsError, match="transformers has no Semantic FPN on PVTv2"):
        FAMILY.to_transformers(SegmenterConfig(MIT, "fpn"), None)
    with pytest.raises(WeightsError, match="'resnet'"):
        FAMILY.from_transformers({"model_type": "upernet", "backbone_config": {"model_type": "resnet"}}, {})
