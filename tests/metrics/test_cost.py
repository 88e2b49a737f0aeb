"""Cost against the published tables and against counting by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vitrail.cli.cost import show_cost
from vitrail.explain import record
from vitrail.metrics.complexity import (
    msa_macs,
    patch_entries,
    pixel_entries,
    pooled_msa_macs,
    reduced_msa_macs,
    window_msa_macs,
)
from vitrail.metrics.cost import _on_meta, cost
from vitrail.models import create_model, image_variants

SMALL = sorted(n for n in image_variants() if n.startswith("test_"))


# architectures.md section 5 and 8: thousands of millions of multiply-adds at the size given
@pytest.mark.parametrize(
    ("name", "size", "params", "gmacs"),
    [
        ("vit_tiny_patch16_224", 224, 5_717_416, 1.26),
        ("vit_small_patch16_224", 224, 22_050_664, 4.61),
        ("vit_base_patch32_224", 224, 88_224_232, 4.41),
        ("vit_base_patch16_224", 224, 86_567_656, 17.58),
        ("vit_base_patch16_384", 384, 86_859_496, 55.5),
        ("vit_large_patch16_224", 224, 304_326_632, 61.6),
        ("deit_small_distilled_patch16_224", 224, 22_436_432, 4.63),
        ("vit_base_patch16_map_224", 224, 93_653_224, 17.71),
    ],
)
def test_published_figures(name: str, size: int, params: int, gmacs: float) -> None:
    found = cost(lambda: create_model(name), size)
    assert found.params == params
    assert found.gmacs == pytest.approx(gmacs, rel=0.006)
    assert found.gflops == 2 * found.gmacs


def test_counted_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.Flatten(), nn.Linear(4 * 2 * 3, 5))
    assert cost(model, (4, 6)).macs == 4 * 6 * 12 + 24 * 5


def test_a_built_model_is_left_untouched() -> None:
    model = create_model("test_vit").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = cost(model, (24, 40))
    assert found.img_size == (24, 40)
    assert found == cost(lambda: create_model("test_vit"), (24, 40))
    assert model.training
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in model.state_dict().items())


def test_the_arithmetic_of_the_lectures() -> None:
    assert pixel_entries(3, 224, 224) == 22_658_678_784
    assert patch_entries(224, 224, 16) == 38_416
    assert round(4 * patch_entries(224, 224, 16) / 1024) == 150


def test_global_attention_is_counted_as_its_closed_form() -> None:
    found = cost(lambda: create_model("vit_small_patch16_gap_224"), (224, 320), training=False)
    assert {found.macs_of(f"blocks.{i}.attn") for i in range(12)} == {msa_macs(14 * 20, 384)}
    assert {(call.entries, call.reach) for call in found.attention} == {(6 * patch_entries(224, 320, 16), 1.0)}


def test_windowed_attention_is_counted_as_its_closed_form() -> None:
    found = cost(lambda: create_model("swin_tiny_patch4_window7_224"), (224, 448), training=False)
    assert len(found.attention) == 12
    for call in found.attention:  # windows of 7 fill these maps: 56 x 112, 28 x 56, 14 x 28, 7 x 14
        assert (call.queries, call.keys, call.dim // call.heads) == (49, 49, 32)
        assert found.macs_of(call.name) == window_msa_macs(call.tokens, call.dim, 7)
    first = found.attention[0]
    assert (first.tokens, first.windows, first.reach) == (56 * 112, 128, 1 / 128)


@pytest.mark.parametrize(("name", "stages"), [("pvt_v2_b1", (8, 4, 2, 1)), ("pvt_v2_b2_li", ())])
def test_reduced_attention_is_counted_as_its_closed_form(name: str, stages: tuple[int, ...]) -> None:
    found = cost(lambda: create_model(name), (224, 448), training=False)
    for call in found.attention:
        block, stage = call.name.rpartition(".attn")[0], int(call.name.split(".")[1])
        macs = found.macs_of(block) - found.macs_of(f"{block}.mlp")
        form = (
            reduced_msa_macs(call.tokens, call.dim, stages[stage]) if stages else pooled_msa_macs(call.tokens, call.dim)
        )
        assert macs == form


def test_counted_memory_by_hand() -> None:
    model = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 10))
    found = cost(nn.Sequential(nn.Flatten(), model), (2, 5), in_chans=1)
    assert found.peak == 4 * (100 + 100)  # before and after the ReLU
    assert found.kept == 4 * (10 + 100)  # the input, and what the ReLU and the second layer share
    assert found.kept_once == 0


class Scaled(nn.Module):
    """A product of a scaled weight: the scaled one is kept once, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.mul(3).t()


def test_what_is_kept_once_by_hand() -> None:
    found = cost(nn.Sequential(nn.Flatten(), nn.Linear(10, 10), Scaled()), (2, 5), in_chans=1)
    assert [(layer.name, layer.kept, layer.kept_once) for layer in found.layers] == [("1", 40, 0), ("2", 40, 200)]
    assert (found.kept, found.kept_once) == (80, 200)


def test_standardised_kernels_are_kept_once_not_by_image() -> None:
    model = _on_meta(lambda: create_model("resnetv2_50x1_bit"))
    found = cost(model, 96)
    kernels = sum(4 * part.weight.numel() for part in model.modules() if isinstance(part, nn.Conv2d))
    assert kernels <= found.kept_once < 1.01 * kernels  # and their statistics
    assert found.kept < 15e6
    assert all(layer.kept_once == 0 for layer in cost(lambda: create_model("test_vit"), 32).layers)


@pytest.mark.parametrize(("name", "size"), [("test_hybrid", 96), ("test_resnet", 32)])
def test_one_image_alone_says_nothing_of_a_batch(name: str, size: int) -> None:
    """One image spares a hybrid copies that batches make; batch norm refuses one image with a map of one cell."""
    found = cost(lambda: create_model(name), size)
    assert 0 < found.kept_once < found.kept
    assert all(layer.kept >= 0 and layer.kept_once >= 0 for layer in found.layers)


def test_the_command_shows_both_parts(capsys: pytest.CaptureFixture[str]) -> None:
    data, found = show_cost("test_bit", (32, 32)), cost(lambda: create_model("test_bit"), 32)
    assert (data["kept_bytes"], data["kept_once_bytes"]) == (found.kept, found.kept_once)
    assert [layer["kept_once_bytes"] for layer in data["layers"]] == [layer.kept_once for layer in found.layers]
    out = capsys.readouterr().out
    assert "training keeps 65.3 kB and, once a batch, 63.9 kB" in out
    heads = next(line for line in out.splitlines() if line.lstrip().startswith("layer")).split()
    assert heads[3:5] == ["kept", "once"]
    show_cost("test_vit", (32, 32))
    assert "once a batch" not in capsys.readouterr().out


class Fused(TorchFunctionMode):
    """Attention by the fused kernel, which CPUs have only for biases without gradient; else they keep its weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            kwargs["attn_mask"] = kwargs["attn_mask"].detach()
        return func(*args, **kwargs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_memory_and_attention_are_those_of_a_real_run(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps on a CPU, and the shapes that are recorded, are what was counted."""
    monkeypatch.setattr("vitrail.nn.attention.MOST_WEIGHTS", 0)
    monkeypatch.setattr("vitrail.nn.attention.SHORT", 2**16)  # copies that only a CPU makes, of many tokens
    model, image = create_model(name), torch.randn(batch, 3, 50, 67)
    found = cost(model, (50, 67))
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # all alive, so that no two share an address

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return t

    for part in model.modules():  # what is watched is computed in full
        part.register_forward_hook(lambda *_: None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), Fused():
        logits = model(image)
    real = sum(storage.nbytes() for storage in kept.values())
    assert batch * found.kept + found.kept_once == pytest.approx(real, rel=0.01), logits
    if found.attention and batch == 1:
        with record(model.eval()) as recording, torch.no_grad():
            model(image)
        shapes = {n: tuple(maps[0].shape) for n, maps in recording.items() if maps}
        shapes = {n: (math.prod(shape[:-3]), *shape[-3:]) for n, shape in shapes.items()}
        assert shapes == {c.name: (c.windows, c.heads, c.queries, c.keys) for c in found.attention}


def test_layers_add_up() -> None:
    found = cost(lambda: create_model("test_vit"), 32)
    assert [layer.name for layer in found.layers] == ["", "patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    assert sum(layer.params for layer in found.layers) == found.params
    assert sum(layer.macs for layer in found.layers) == found.macs == found.macs_of("")
    assert sum(found.macs_of(layer.name) for layer in found.layers if layer.name) == found.macs
    assert found.macs_of("blocks") == found.macs_of("blocks.0") + found.macs_of("blocks.1") > 0


@pytest.mark.parametrize("name", ["test_vit", "test_swin", "test_bit"])
def test_images_have_the_channels_of_the_config(name: str) -> None:
    model = create_model(name, in_chans=1)
    found, said = cost(model, 32), cost(model, 32, in_chans=1)
    assert found.layers == said.layers
    assert found.modules == said.modules
    assert cost(lambda: create_model(name, in_chans=5), 32).macs > found.macs
