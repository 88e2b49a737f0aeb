"""Adapters: nothing changes at first, only they learn, merged equals unmerged; on every family with linear layers."""

import copy

import pytest
import torch
from torch import nn

from vitrail import models
from vitrail.nn import Attention, Linear, LoraLinear, add_lora, merge_lora
from vitrail.nn.lora import adapters, merged
from vitrail.weights import export_weights, load_weights

NAMES = sorted(name for name in models.image_variants() if name.startswith("test_"))
ADAPTABLE = [name for name in NAMES if not name.startswith(("test_resnet", "test_bit"))]
ALL = ("qkv", "proj", "fc1", "fc2")


def images(size=(32, 32)):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))


def network(name, **more):
    torch.manual_seed(0)
    model = models.create_model(name, **more).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def stir(model):
    """Let the adapters add something."""
    generator = torch.Generator().manual_seed(3)
    for _, adapter in adapters(model):
        nn.init.normal_(adapter.lora_b, std=0.3, generator=generator)


@pytest.mark.parametrize("name", ADAPTABLE)
def test_nothing_changes_until_it_learns_and_merging_changes_nothing(name):
    model = network(name)
    plain, keys = copy.deepcopy(model), list(model.state_dict())
    made = add_lora(model, rank=3, alpha=6.0, layers=ALL)
    assert made
    with torch.no_grad():  # without gradients some layers take other kernels and shortcuts
        before = plain(images((40, 24)))
        torch.testing.assert_close(model(images((40, 24))), before, atol=1e-5, rtol=1e-5)
        stir(model)
        changed = model(images((40, 24)))
        assert float((changed - before).abs().max()) > 1e-3
        merge_lora(model)
        torch.testing.assert_close(model(images((40, 24))), changed, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == keys
    assert all(p.requires_grad for p in model.parameters())
    assert not [m for m in model.modules() if isinstance(m, LoraLinear)]


@pytest.mark.parametrize("name", ADAPTABLE)
def test_only_adapters_and_the_head_learn(name):
    model = network(name).train()
    made = add_lora(model, rank=2, layers=("qkv",))
    stir(model)
    out = model(images())
    sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    expected = {f"{path}.{part}" for path in made for part in ("lora_a", "lora_b")}
    assert learning == expected | {n for n, _ in model.named_parameters() if n.startswith("head")}


def test_q_k_and_v_have_adapters_of_their_own():
    """Against three separate layers: part p sees its own A only."""
    layer = Linear(8, 12)
    fused = LoraLinear(layer, 2, 4.0, parts=3)
    nn.init.normal_(fused.lora_b)
    x = torch.randn(5, 7, 8)
    parts = []
    for p in range(3):
        one = Linear(8, 4)
        one.weight, one.bias = (nn.Parameter(t[4 * p : 4 * p + 4]) for t in (layer.weight, layer.bias))
        one = LoraLinear(one, 2, 4.0)
        one.lora_a.data = fused.lora_a.data[2 * p : 2 * p + 2]
        one.lora_b.data = fused.lora_b.data[4 * p : 4 * p + 4]
        parts.append(one(x))
    torch.testing.assert_close(fused(x), torch.cat(parts, -1))
    torch.testing.assert_close(fused.merged()(x), fused(x), atol=1e-6, rtol=1e-6)


def test_cross_attention_reads_the_adapted_rows():
    torch.manual_seed(0)
    layer = Attention(8, 2)
    layer.qkv = LoraLinear(layer.qkv, 2, 2.0, parts=3)
    nn.init.normal_(layer.qkv.lora_b)
    plain = merge_lora(copy.deepcopy(layer))
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x, context), plain(x, context), atol=1e-6, rtol=1e-5)


def test_exported_weights_are_those_of_the_merged_model():
    model = network("test_vit")
    add_lora(model, rank=2, layers=ALL)
    stir(model)
    tensors, other = export_weights(model, "timm"), models.create_model("test_vit").eval()
    load_weights(other, tensors)
    torch.testing.assert_close(other(images()), model(images()), atol=1e-5, rtol=1e-5)
    assert next(adapters(model), None) is not None, "the model itself keeps its adapters"


def test_a_copy_is_made_only_of_what_has_adapters():
    plain = network("test_vit")
    assert merged(plain) is plain


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("test_vit", {"layers": ("qvk",)}, r"\(fc1, fc2, proj, qkv\), got 'qvk'"),
        ("test_vit", {"layers": ()}, "got none"),
        ("test_vit", {"rank": 0}, "rank from 1"),
        ("test_resnet", {}, "linear layers to adapt"),
    ],
)
def test_what_cannot_be_meant_is_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        add_lora(network(name), **options)


def test_adapters_are_not_stacked():
    model = network("test_vit")
    add_lora(model)
    with pytest.raises(ValueError, match="merge_lora first"):
        add_lora(model)
