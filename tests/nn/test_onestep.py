"""The bare step gives the numbers of the blocks, and steps aside for whoever looks into them."""

from functools import partial

import pytest
import torch
from torch import nn

from vitrail.nn import Attention, FeedForward, onestep
from vitrail.nn.cache import caches
from vitrail.nn.lora import add_lora
from vitrail.nn.residual import PreNormBlock


def stack(norm=nn.RMSNorm, act="quick_gelu", bias=False, **options):
    torch.manual_seed(0)

    def block():
        attn = Attention(12, 3, qkv_bias=bias, proj_bias=bias, proj_drop=0.1)
        return PreNormBlock(attn, FeedForward(12, 20, act=act, bias=bias, drop=0.1), 12, eps=1e-5, norm=norm, **options)

    blocks = nn.ModuleList(block() for _ in range(2))
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, 0.1, 0.4)
    return blocks.eval()


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_equals_the_blocks(norm, act, bias):
    blocks, x = stack(norm, act, bias), torch.randn(3, 7, 12)
    whole = x
    for block in blocks:
        whole = block(whole, causal=True)
    read = caches(2)
    y = x[:, :2]
    for block, cache in zip(blocks, read, strict=True):
        y = block(y, causal=True, cache=cache)
    weights, memories = onestep.gather(blocks), [onestep.Memory(7, cache) for cache in read]
    found = torch.stack([onestep.step(x[:, i], weights, memories) for i in range(2, 7)], 1)
    torch.testing.assert_close(found, whole[:, 2:], atol=1e-5, rtol=1e-4)
    assert memories[0].length == 7
    nothing = [onestep.Memory(7, cache) for cache in caches(2)]
    torch.testing.assert_close(onestep.step(x[:, 0], weights, nothing), whole[:, 0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_steps_aside():
    assert onestep.gather(stack()) is not None
    assert onestep.gather(stack().train()) is None
    assert onestep.gather(stack(init_values=0.5)) is None
    hooked = stack()
    hooked[1].mlp.register_forward_hook(lambda *_: None)
    assert onestep.gather(hooked) is None
    taped = stack()
    taped[0].attn.tape = []
    assert onestep.gather(taped) is None
    adapted = nn.Sequential()
    adapted.blocks = stack()
    add_lora(adapted, rank=2, alpha=2.0, layers=("qkv",))
    assert onestep.gather(adapted.blocks) is None
    with torch.enable_grad():
        assert onestep.gather(stack()) is None
    assert onestep.gather([nn.Linear(2, 2)]) is None


def test_a_subclass_is_run_as_it_is():
    class Other(PreNormBlock):
        pass

    with torch.no_grad():
        made = Other(Attention(4, 2), FeedForward(4, 8), 4, eps=1e-5, norm=partial(nn.LayerNorm))
        assert onestep.gather([made.eval()]) is None
