"""The heart: every form of attention equals the textbook formula, and every path equals every other."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitrail.nn import Attention, KVCache, attend
from vitrail.nn import attention as module

B, H, N, M, D = 2, 3, 5, 7, 4
C = H * D


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def qkv(n=N, m=M, dtype=torch.float32):
    return tuple(torch.randn(B, H, length, D, dtype=dtype) for length in (n, m, m))


def textbook(q, k, v, mask=None):
    """Row by row, key by key, in float64; a row without keys gives zeros."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(B) for h in range(H) for i in range(q.shape[2])):
        scores = [float(q[b, h, i].double() @ k[b, h, j].double()) / math.sqrt(D) for j in range(k.shape[2])]
        if mask is not None:
            scores = [s + float(mask[b, h, i, j]) for j, s in enumerate(scores)]
        weights = [math.exp(s) for s in scores]
        if sum(weights) > 0:
            out[b, h, i] = sum(w / sum(weights) * v[b, h, j].double() for j, w in enumerate(weights))
    return out.float()


def as_mask(keep):
    return torch.zeros(keep.shape).masked_fill(~keep, float("-inf")).expand(B, H, *keep.shape[-2:])


@pytest.mark.parametrize("tape", [None, []], ids=["fused", "recorded"])
class TestAttend:
    def test_plain(self, tape):
        q, k, v = qkv()
        torch.testing.assert_close(attend(q, k, v, tape=tape), textbook(q, k, v))

    def test_bias(self, tape):
        q, k, v = qkv()
        bias = torch.randn(1, H, N, M)
        torch.testing.assert_close(attend(q, k, v, bias=bias, tape=tape), textbook(q, k, v, bias.expand(B, -1, -1, -1)))

    def test_keep_of_keys_and_an_empty_row(self, tape):
        q, k, v = qkv()
        keep = torch.rand(B, M) > 0.4
        keep[1] = False
        out = attend(q, k, v, keep=keep, tape=tape)
        torch.testing.assert_close(out, textbook(q, k, v, as_mask(keep[:, None, None].expand(B, 1, N, M))))
        assert not out[1].any()

    def test_keep_per_query_with_bias(self, tape):
        q, k, v = qkv()
        keep, bias = torch.rand(B, N, M) > 0.5, torch.randn(B, H, N, M)
        keep[0, 2] = False
        out = attend(q, k, v, keep=keep, bias=bias, tape=tape)
        torch.testing.assert_close(out, textbook(q, k, v, bias + as_mask(keep[:, None])))
        assert not out[0, :, 2].any()

    def test_bias_of_minus_infinity_everywhere_gives_zeros(self, tape):
        q, k, v = qkv()
        bias = torch.zeros(B, H, N, M)
        bias[:, :, 1] = float("-inf")
        out = attend(q, k, v, bias=bias, tape=tape)
        torch.testing.assert_close(out, textbook(q, k, v, bias))
        assert not out[:, :, 1].any()

    @pytest.mark.parametrize("n", [1, 3, M])
    def test_causal_aligns_the_last_query_with_the_last_key(self, tape, n):
        q, k, v = qkv(n=n)
        seen = torch.ones(n, M, dtype=torch.bool).tril(M - n)
        torch.testing.assert_close(attend(q, k, v, causal=True, tape=tape), textbook(q, k, v, as_mask(seen)))

    def test_causal_with_padding(self, tape):
        q, k, v = qkv(n=M)
        keep = torch.rand(B, M) > 0.3
        seen = torch.ones(M, M, dtype=torch.bool).tril() & keep[:, None, None]
        expected = textbook(q, k, v, as_mask(seen))
        torch.testing.assert_close(attend(q, k, v, causal=True, keep=keep, tape=tape), expected)

    def test_scale(self, tape):
        q, k, v = qkv()
        torch.testing.assert_close(attend(q, k, v, scale=1.0, tape=tape), textbook(q * math.sqrt(D), k, v))

    def test_gradients_stay_finite_beside_an_empty_row(self, tape):
        q, k, v = (t.requires_grad_() for t in qkv())
        keep = torch.ones(B, M, dtype=torch.bool)
        keep[0] = False
        attend(q, k, v, keep=keep, bias=torch.randn(B, H, N, M), tape=tape).sum().backward()
        assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))
        assert not v.grad[0].any()


def test_recorded_rows_sum_to_one_and_empty_rows_to_zero():
    q, k, v = qkv()
    keep = torch.ones(B, N, M, dtype=torch.bool)
    keep[0, 1] = False
    tape = []
    attend(q, k, v, keep=keep, tape=tape)
    expected = torch.ones(B, H, N)
    expected[0, :, 1] = 0
    torch.testing.assert_close(tape[0].sum(-1), expected)


def test_plain_products_in_bf16_equal_the_fused_kernel(monkeypatch):
    q, k, v = (t.bfloat16() for t in qkv(n=64, m=64))
    products = attend(q, k, v)
    monkeypatch.setattr(module, "MOST_WEIGHTS", 0)
    fused = attend(q, k, v)
    torch.testing.assert_close(products, fused, atol=2e-2, rtol=2e-2)


def test_dropout_keeps_the_mean():
    q, k = torch.zeros(1, 1, 400, D), torch.zeros(1, 1, 50, D)
    for tape in (None, []):
        out = attend(q, k, torch.ones(1, 1, 50, D), dropout_p=0.5, tape=tape)
        assert abs(float(out.mean()) - 1) < 0.05
        assert float(out.std()) > 0.01


def test_clear_errors():
    q, k, v = qkv(n=M + 1)
    with pytest.raises(ValueError, match="at most 7 queries"):
        attend(q, k, v, causal=True)
    with pytest.raises(ValueError, match="expected keep to be bool"):
        attend(q, k, v, keep=torch.ones(B, M))
    with pytest.raises(ValueError, match="num_heads to divide"):
        Attention(10, 3)


def reference(attn: Attention) -> nn.MultiheadAttention:
    peer = nn.MultiheadAttention(C, H, batch_first=True)
    peer.in_proj_weight.data, peer.in_proj_bias.data = attn.qkv.weight.data, attn.qkv.bias.data
    peer.out_proj.weight.data, peer.out_proj.bias.data = attn.proj.weight.data, attn.proj.bias.data
    return peer.eval()


class TestModule:
    def test_self_and_cross_equal_torch(self):
        attn = Attention(C, H).eval()
        peer = reference(attn)
        x, memory = torch.randn(B, N, C), torch.randn(B, M, C)
        torch.testing.assert_close(attn(x), peer(x, x, x)[0])
        torch.testing.assert_close(attn(x, memory), peer(x, memory, memory)[0])

    def test_positions_on_queries_and_keys_only(self):
        """DETR: positions are added to queries and keys, not to values."""
        attn = Attention(C, H).eval()
        peer = reference(attn)
        x, pos, memory, mpos = (torch.randn(B, n, C) for n in (N, N, M, M))
        q = x + pos
        torch.testing.assert_close(attn(q, x, keys=q), peer(q, q, x)[0])
        torch.testing.assert_close(attn(q, memory, keys=memory + mpos), peer(q, memory + mpos, memory)[0])

    def test_bias_may_be_a_function_of_the_queries(self):
        attn = Attention(C, H).eval()
        x, table = torch.randn(B, N, C), torch.randn(D, N)
        q = attn.qkv(x)[..., :C].view(B, N, H, D).transpose(1, 2)
        torch.testing.assert_close(attn(x, bias=lambda q: q @ table), attn(x, bias=q @ table))

    def test_narrow_attention_without_bias(self):
        attn = Attention(C, 2, inner_dim=6, qkv_bias=False)
        assert attn.qkv.bias is None
        assert attn.qkv.weight.shape == (18, C)
        assert attn(torch.randn(B, N, C)).shape == (B, N, C)
        assert attn(torch.randn(B, N, C), torch.randn(B, M, C)).shape == (B, N, C)

    @pytest.mark.parametrize("steps", [[1] * 6, [3, 1, 2], [6]])
    def test_cached_equals_uncached(self, steps):
        attn = Attention(C, H).eval()
        x = torch.randn(B, 6, C)
        cache = KVCache()
        parts = [attn(part, causal=True, cache=cache) for part in x.split(steps, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), attn(x, causal=True))
        assert cache.length == 6

    def test_cross_attention_projects_its_memory_once(self):
        attn = Attention(C, H).eval()
        x, memory, cache = torch.randn(B, N, C), torch.randn(B, M, C), KVCache()
        first = attn(x, memory, cache=cache)
        again = attn(x, torch.full_like(memory, float("nan")), cache=cache)  # not read any more
        torch.testing.assert_close(first, again)

    def test_cache_selects_beams(self):
        cache = KVCache()
        k, v = torch.randn(B, H, 2, D), torch.randn(B, H, 2, D)
        cache.append(k, v)
        cache.select(torch.tensor([1, 1, 0]))
        torch.testing.assert_close(cache.read()[0], k[[1, 1, 0]])
        with pytest.raises(ValueError, match="got an empty one"):
            KVCache().read()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_recorded_equals_fused(self, dtype):
        attn = Attention(C, H).eval().to(dtype)
        x = torch.randn(B, N, C, dtype=dtype)
        fused = attn(x)
        attn.tape = []
        torch.testing.assert_close(attn(x), fused)
        assert attn.tape[0].shape == (B, H, N, N)

    def test_dropout_acts_in_training_only(self):
        attn = Attention(C, H, attn_drop=0.5, proj_drop=0.5)
        x = torch.randn(B, N, C)
        assert not torch.equal(attn(x), attn(x))
        assert torch.equal(attn.eval()(x), attn(x))


def test_zero_rate_means_the_plain_kernel():
    q, k, v = qkv()
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_query_reads_a_long_cache_as_it_lies(dtype):
    q, store = torch.randn(2, 3, 1, 8).to(dtype), torch.randn(2, 2, 3, 300, 8).to(dtype)
    k, v = store[0, :, :, :250], store[1, :, :, :250]
    torch.testing.assert_close(attend(q, k, v), attend(q, k.contiguous(), v.contiguous()), atol=2e-2, rtol=1e-2)
    if dtype == torch.float32:
        torch.testing.assert_close(attend(q, k, v), attend(q, k, v, tape=[]), atol=1e-6, rtol=1e-5)
