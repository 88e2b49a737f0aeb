"""DETR and Deformable DETR against transformers: the same numbers from converted weights, with and without padding.

``auxiliary_loss`` stays False: with True, transformers 5 normalises what goes into the next decoder layer.
"""

import pytest
import torch

import vitrail
from tests.peers import randomise, relative_difference, transformers
from vitrail.weights import export_weights, load_weights
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
def test_names_in_memory(name):
    peer = PEERS[name]()
    first = peer.state_dict()
    import tempfile

    with tempfile.TemporaryDirectory() as path:
        ours, _, _ = load_folder(folder_of(peer, path))
    other = vitrail.models.build(ours.config)
    load_weights(other, first)
    require_same(peer, other)
