"""The arithmetic of scale against what is counted, allocated and known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail.metrics.complexity import vit_macs
from vitrail.metrics.cost import cost
from vitrail.metrics.scale import (
    PEAK_FLOPS,
    SAVED,
    SHOWN,
    STATE,
    activation_bytes,
    all_reduce,
    checkpoint_bytes,
    gathered_bytes,
    goodput,
    images_per_s,
    mfu,
    state_bytes,
    traffic,
    train_flops,
    young_daly,
)
from vitrail.models import config_of, create_model
from vitrail.training.blocks import blocks_of
from vitrail.training.ema import Ema
from vitrail.training.optim import Masters
from vitrail.training.recipe import Recipe
from vitrail.training.sharding import BYTES as WHOLE


def closed_form(name: str) -> int:
    c = config_of(name)
    patches = (c.img_size[0] // c.patch_size) ** 2
    hidden = create_on_meta(name).blocks[0].mlp.fc1.out_features
    return vit_macs(
        patches + 1, c.embed_dim, c.depth, hidden, patches=patches, patch=c.patch_size, classes=c.num_classes
    )


def create_on_meta(name: str):
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_224"]
)
def test_the_closed_form_is_what_the_counter_counts(name):
    assert closed_form(name) == cost(lambda: create_model(name), config_of(name).img_size, training=False).macs


def test_three_forward_passes_are_what_torch_counts():
    """All but the gradient of the image; unwatched, the last block leaves out what no head reads."""
    model, image = create_on_meta("vit_tiny_patch16_224"), torch.empty(2, 3, 224, 224, device="meta")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as unwatched:
            model(image)
        for part in model.modules():
            part.register_forward_hook(lambda *_: None)
        with FlopCounterMode(display=False) as forward:
            model(image)
        with FlopCounterMode(display=False) as both:
            model(image).sum().backward()
    macs = closed_form("vit_tiny_patch16_224")
    assert unwatched.get_total_flops() < 2 * 2 * macs
    assert forward.get_total_flops() == 2 * 2 * macs
    embedding = 2 * 196 * 3 * 16**2 * 192
    assert both.get_total_flops() == train_flops(macs, 2) - 2 * embedding


def test_mfu_is_a_share_of_the_peak():
    macs = closed_form("vit_base_patch16_224")
    rate = images_per_s(0.4, macs, PEAK_FLOPS["H200"])
    assert rate == pytest.approx(3750, rel=0.01)
    assert mfu(rate, macs, PEAK_FLOPS["H200"]) == pytest.approx(0.4)


def test_bytes_a_parameter_are_those_the_masters_take():
    settings = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.999], "eps": 1e-8}
    recipe = Recipe.load({"optim": settings}, environment={})
    model = create_model("test_vit", embed_dim=128, num_heads=2)
    masters = Masters(model, recipe.optim, torch.bfloat16)
    ema = Ema(masters, 0.9, {})
    params = sum(p.numel() for p in model.parameters())
    kept = [*masters.weights, *(w.grad for w in masters.weights), *masters.moments().values(), *ema.buffers]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*kept, *model.parameters()]}
    now = sum(storages.values())
    assert now == pytest.approx(params * (sum(STATE.values()) - STATE["its gradient"]), rel=0.03)
    assert sum(STATE.values()) == WHOLE
    assert state_bytes(params) == params * WHOLE
    assert state_bytes(params, 8) == params * (WHOLE + SHOWN) / 8
    assert checkpoint_bytes(params) == SAVED * params


def test_recomputing_keeps_inputs_and_one_block():
    found = cost(lambda: create_model("vit_small_patch16_224"), 224)
    whole, less = activation_bytes(found), activation_bytes(found, recompute=True)
    assert whole == found.kept / 2
    block = max(layer.kept for layer in found.layers if layer.attention)
    rest = found.kept - 12 * block
    assert less == (rest + 12 * 4 * 197 * 384 + block) / 2
    assert less < whole / 4


def test_gathered_is_two_blocks_and_one_gradient():
    model = create_on_meta("test_vit")
    largest = max(sum(p.numel() for p in b.parameters()) for b in blocks_of(model).values())
    assert gathered_bytes(largest) == 10 * largest


def ring(size: int, n: int) -> int:
    """Count what a process of a ring sends to sum ``size`` bytes, step by step."""
    chunk = size // n
    return sum(chunk for _ in range(n - 1)) + sum(chunk for _ in range(n - 1))


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_a_ring_sends_what_its_steps_do(n):
    assert all_reduce(64_000, n) == ring(64_000, n)


def test_traffic_of_the_three_ways():
    params = 1_000_000
    assert traffic("ddp", params, 8).within == all_reduce(4 * params, 8)
    assert traffic("ddp", params, 16).between == all_reduce(4 * params, 16)
    assert traffic("fsdp", params, 8).within == 7 / 8 * (2 + 2 + 4) * params
    hybrid = traffic("hsdp", params, 32)
    assert hybrid.within == traffic("fsdp", params, 8).within
    assert hybrid.between == all_reduce(4 * params / 8, 4)
    assert hybrid.between < traffic("fsdp", params, 32).between / 8
    assert hybrid.seconds(1e9, 1e8) == hybrid.within / 1e9 + hybrid.between / 1e8
    assert traffic("ddp", params, 1).seconds(1, 1) == 0
    for how, count in (("hsdp", 8), ("hsdp", 12), ("zero", 8)):
        with pytest.raises(ValueError, match="expected"):
            traffic(how, params, count)


def test_the_best_interval_is_the_best():
    blocked, mtbf = 2.0, 50_000.0
    interval = young_daly(blocked, mtbf)
    here = goodput(interval, blocked, 300, mtbf)
    assert all(goodput(interval * k, blocked, 300, mtbf) < here for k in (0.5, 0.8, 1.25, 2))
    assert goodput(600, 2, 300, math.inf) == pytest.approx(1 - 2 / 600)
    assert goodput(600, 2, 300, 100) == 0
