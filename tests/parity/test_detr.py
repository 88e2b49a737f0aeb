"""DETR and Deformable DETR against transformers: the same numbers from converted weights, with and without padding.

``auxiliary_loss`` stays False: with True, transformers 5 normalises what goes into the next decoder layer.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.peers import randomise, relative_difference, transformers
from vitrail import models
from vitrail.errors import WeightsError
from vitrail.weights import export_weights, load_weights
from vitrail.weights.configs import to_transformers
from vitrail.weights.folder import load_folder

CLOSE = 1e-5
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "num_labels": 7,
}


def resnet(stages):
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 1, 1], out_features=stages
    )


def batch(height=75, width=107):
    """Return two images of which the second is padded at the right and bottom, and where they are real."""
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    keep = torch.ones(2, height, width, dtype=torch.bool)
    keep[1, 50:] = False
    keep[1, :, 70:] = False
    return images * keep[:, None], keep


def detr(**changes):
    config = transformers.DetrConfig(
        backbone_config=resnet(STAGES), use_timm_backbone=False, num_queries=9, **{**SIZES, **changes}
    )
    return randomise(transformers.DetrForObjectDetection(config))


def timm_detr(kind=None, **changes):
    config = transformers.DetrConfig(
        use_timm_backbone=True,
        backbone="resnet18",
        use_pretrained_backbone=False,
        num_queries=9,
        **{**SIZES, **changes},
    )
    return randomise((kind or transformers.DetrForObjectDetection)(config))


def dc5():
    """timm dilates bottlenecks only; its smallest network of them."""
    config = transformers.DetrConfig(
        use_timm_backbone=True,
        backbone="resnet50",
        dilation=True,
        use_pretrained_backbone=False,
        num_queries=9,
        **SIZES,
    )
    return randomise(transformers.DetrForObjectDetection(config))


def deformable(**changes):
    config = transformers.DeformableDetrConfig(
        backbone_config=resnet(STAGES[1:]),
        use_timm_backbone=False,
        num_queries=9,
        two_stage_num_proposals=11,
        **{**SIZES, **changes},
    )
    peer = randomise(transformers.DeformableDetrForObjectDetection(config))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "sampling_offsets.bias" in name:
                parameter.mul_(6)  # points in other cells, some of them outside
    return peer


def folder_of(peer, path):
    peer.save_pretrained(path)
    return path


PEERS = {
    "detr": detr,
    "detr on timm": timm_detr,
    "deformable": deformable,
    "deformable, refined": lambda: deformable(with_box_refine=True),
    "deformable, two stages": lambda: deformable(with_box_refine=True, two_stage=True),
}


def run(peer, images, keep):
    with torch.inference_mode():
        return peer(pixel_values=images, pixel_mask=keep.long())


def require_same(peer, ours, padded=True):
    images, keep = batch()
    keep = keep if padded else torch.ones_like(keep)
    theirs = run(peer, images, keep)
    with torch.inference_mode():
        found = ours.eval()(images, keep)
    logits, boxes = found.layer(-1)
    assert relative_difference(logits, theirs.logits) < CLOSE
    assert relative_difference(boxes, theirs.pred_boxes) < CLOSE
    assert float(logits.std()) > 0.05
    assert float(boxes.std()) > 0.02
    if found.masks is not None:
        assert relative_difference(found.masks, theirs.pred_masks) < CLOSE


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_a_folder_of_transformers(name, padded, tmp_path):
    peer = PEERS[name]()
    ours, _, _ = load_folder(folder_of(peer, tmp_path / "peer"))
    require_same(peer, ours, padded)


def test_dc5(tmp_path):
    peer = dc5()
    ours, _, _ = load_folder(folder_of(peer, tmp_path / "peer"))
    assert ours.config.backbone.output_stride == 16
    require_same(peer, ours)


@pytest.mark.parametrize("native", [True, False])
def test_masks(native, tmp_path):
    kind = transformers.DetrForSegmentation
    if native:
        config = transformers.DetrConfig(
            backbone_config=resnet(STAGES), use_timm_backbone=False, num_queries=9, **SIZES
        )
        peer = randomise(kind(config))
    else:
        peer = timm_detr(kind)
    ours, _, _ = load_folder(folder_of(peer, tmp_path / "peer"))
    require_same(peer, ours)


@pytest.mark.parametrize("name", PEERS)
def test_both_ways(name, tmp_path):
    """What transformers holds in memory is read too; what we write, transformers opens."""
    peer = PEERS[name]()
    ours, _, _ = load_folder(folder_of(peer, tmp_path / "peer"))
    other = models.build(ours.config)
    load_weights(other, peer.state_dict())
    require_same(peer, other)
    (tmp_path / "ours").mkdir()
    save_file(export_weights(ours, "transformers"), tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "ours" / "config.json").write_text(json.dumps(to_transformers(ours.config, None)))
    require_same(type(peer).from_pretrained(tmp_path / "ours").eval(), ours)


@pytest.mark.parametrize("name", ["test_detr", "test_detr_masks", "test_deformable_detr_two_stage"])
def test_the_authors_names(name):
    ours, other = (models.create_model(name) for _ in range(2))
    file = export_weights(ours, "original")
    start = "detr." if "masks" in name else ""
    assert f"{start}backbone.0.body.layer1.0.conv1.weight" in file
    assert f"{start}transformer.decoder.layers.1.self_attn.in_proj_weight" in file
    assert load_weights(other, file).layout == "original"
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_authors_files_repeat_a_shared_head():
    ours, other = (models.create_model("test_deformable_detr", decoder_layers=6) for _ in range(2))
    file = export_weights(ours, "original")
    assert torch.equal(file["class_embed.5.weight"], file["class_embed.0.weight"])
    load_weights(other, file)
    assert torch.equal(ours.heads[0].weight, other.heads[0].weight)


def test_the_authors_files_hold_refining_heads_twice():
    ours, other = (models.create_model("test_deformable_detr_refine") for _ in range(2))
    file = export_weights(ours, "original")
    file |= {f"transformer.decoder.{n}": t for n, t in file.items() if n.startswith("bbox_embed.")}
    load_weights(other, file)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True))


def test_norms_of_the_authors_decoder_stand_in_another_order():
    """Their ``norm1`` follows the reading of the maps, which is the second thing a layer does."""
    ours = models.create_model("test_deformable_detr_refine")
    file = export_weights(ours, "original")
    assert file["transformer.decoder.layers.0.norm1.weight"].data_ptr() == ours.decoder[0].norm2.weight.data_ptr()


def test_a_new_head_for_other_classes(tmp_path):
    folder = folder_of(deformable(with_box_refine=True, two_stage=True), tmp_path / "peer")
    ours, _, _ = load_folder(folder, num_classes=3)
    assert ours.heads[0].weight.shape[0] == 3
    with pytest.raises(WeightsError, match="classes"):
        load_weights(models.build(ours.config), folder)
