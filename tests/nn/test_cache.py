"""Keys and values that were kept: growing, moving rows, and the quick step that reads them."""

import pytest
import torch
from torch import nn

from vitrail import models
from vitrail.nn import KVCache
from vitrail.nn.quick import quick_layers


def test_rows_move_as_by_indexing():
    generator = torch.Generator().manual_seed(0)
    cache, whole = KVCache(), (torch.empty(3, 2, 0, 4), torch.empty(3, 2, 0, 4))
    for choice in ([0, 1, 2], [2, 2, 0, 1, 1], [4, 0], [1, 0, 1, 0, 1, 0], [5], [0, 0, 0]):
        new = [torch.randn(len(whole[0]), 2, 3, 4, generator=generator) for _ in range(2)]
        whole = [torch.cat(pair, 2) for pair in zip(whole, new, strict=True)]
        found = cache.append(*new)
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
        rows = torch.tensor(choice)
        cache.select(rows)
        whole = [part[rows] for part in whole]
        assert all(torch.equal(a, b) for a, b in zip(cache.read(), whole, strict=True))


def test_gradients_pass_through_a_cache_whose_rows_move():
    cache, k = KVCache(), torch.randn(2, 1, 3, 4, requires_grad=True)
    cache.append(k, k)
    cache.select(torch.tensor([1, 1]))
    cache.read()[0].sum().backward()
    assert k.grad[1].eq(2).all()
    assert k.grad[0].eq(0).all()


def test_an_empty_cache_has_nothing_to_read():
    cache = KVCache()
    cache.select(torch.tensor([0]))
    with pytest.raises(ValueError, match="empty"):
        cache.read()


@pytest.mark.parametrize("name", ["test_transformer", "test_transformer_pre_norm", "test_transformer_lm"])
@torch.inference_mode()
def test_a_quick_step_is_a_step_of_the_layers(name):
    torch.manual_seed(0)
    model = models.create_model(name).eval()
    source, keep = torch.randint(4, 29, (2, 5)), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    begin = (source,) if name.endswith("lm") else (source, keep)
    quick, slow = model.begin(*begin), model.begin(*begin)
    assert quick.quick is not None
    slow.quick = None
    for _ in range(4):
        tokens = torch.randint(4, 29, (2,))
        torch.testing.assert_close(model.step(tokens, quick), model.step(tokens, slow))


@torch.no_grad()
def test_who_looks_inside_gets_the_layers():
    model = models.create_model("test_transformer").eval()

    def offered():
        return quick_layers(model.decoder, model.decoder.layers) is not None

    assert offered()
    model.decoder.layers[1].cross.tape = []
    assert not offered()
    model.decoder.layers[1].cross.tape = None
    handle = model.decoder.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not offered()
    handle.remove()
    model.train()
    assert not offered()
    model.eval()
    model.decoder.layers[0].mlp.fc1 = nn.Linear(16, 24)
    assert not offered()
