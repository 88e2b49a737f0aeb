"""What PVT and PVT v2 promise beyond the contract of every model."""

from dataclasses import replace

import pytest
import torch

from vitrail.models import build, create_model, variants
from vitrail.nn import Attention


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tapes(model, x):
    """Run ``model`` and return the attention weights of each layer."""
    layers = [m for m in model.modules() if isinstance(m, Attention)]
    for layer in layers:
        layer.tape = []
    model(x)
    return [layer.tape[0] for layer in layers]


@pytest.mark.parametrize("name", ["test_pvt", "test_pvt_v2", "test_pvt_v2_li"])
@pytest.mark.parametrize("size", [(200, 312), (225, 225), (448, 448), (20, 5)])
@torch.inference_mode()
def test_any_size_works(name, size):
    model = create_model(name).eval()
    found = model.features(torch.randn(1, 3, *size))
    assert list(found.maps) == [4, 8, 16, 32]
    assert model(torch.randn(1, 3, *size)).isfinite().all()


@torch.inference_mode()
def test_twice_the_native_size():
    """Stage 2 then has the grid stage 1 was made for; each stage resizes its own table all the same."""
    model = create_model("test_pvt").eval()
    stage = model.stages[1]
    stage.pos_embed.copy_(torch.randn_like(stage.pos_embed))
    assert stage.positions((8, 8)).shape == (1, 64, 16)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@torch.inference_mode()
def test_keys_are_fewer_than_queries():
    model = create_model("test_pvt_v2").eval()  # ratios 4, 2, 1, 1
    shapes = [tuple(weights.shape[-2:]) for weights in tapes(model, torch.randn(1, 3, 64, 64))]
    assert shapes == [(256, 16), (64, 16), (16, 16), (16, 16), (4, 4)]


@pytest.mark.parametrize("side", [64, 128])
@torch.inference_mode()
def test_the_linear_variant_reads_49_tokens_at_any_size(side):
    model = create_model("test_pvt_v2_li").eval()
    assert all(weights.shape[-1] == 49 for weights in tapes(model, torch.randn(1, 3, side, side)))


@torch.inference_mode()
def test_the_class_token_alone_is_what_the_head_reads():
    """Leaving out the last block's work on other tokens changes nothing; a hook gets all of it."""
    model = create_model("test_pvt").eval()
    x = torch.randn(2, 3, 40, 72)
    short = model(x)
    seen = []
    model.stages[-1].blocks[-1].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    torch.testing.assert_close(model(x), short)
    assert seen == [1 + 2]


@torch.inference_mode()
def test_without_class_token_the_head_reads_the_mean():
    config = replace(variants()["test_pvt"], class_token=False)
    model = build(config).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), model.head(model.features(x).tokens.mean(dim=1)))
    assert "cls_token" not in model.state_dict()


def test_a_backbone_for_dense_heads_has_no_final_norm():
    names = build(replace(variants()["test_pvt"], class_token=False, num_classes=0)).state_dict()
    assert not [n for n in names if n.startswith(("norm.", "head.", "cls_token"))]


def test_wrong_configs():
    with pytest.raises(ValueError, match="depths with 4 values"):
        replace(variants()["test_pvt_v2"], depths=(1, 2))
    with pytest.raises(ValueError, match="last stage"):
        replace(variants()["test_pvt"], sr_ratios=(8, 4, 2, 2))
