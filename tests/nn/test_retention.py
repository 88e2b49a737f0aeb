"""Retention: one sum in three orders, against the sum written out, with a carried state and with left-out tokens."""

import math
from itertools import pairwise

import pytest
import torch

from vitrail.nn.retention import Places, Retention, log_decays, rotation_angles

FORMS = ("parallel", "recurrent", "chunkwise")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def layer(dtype=torch.float64, normaliser="none", chunk_size=8, eps=1e-6):
    torch.manual_seed(0)
    made = Retention(16, 4, value_dim=24, chunk_size=chunk_size, normaliser=normaliser, eps=eps).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) / parameter[0].numel() ** 0.5)
    return made.requires_grad_(False)


def tokens(length, batch=3, dtype=torch.float64, seed=1):
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def in_parts(made, x, cuts, keep=None, forms=FORMS):
    """Read ``x`` piece by piece with a memory, each piece in another form."""
    memory, outs = made.new_memory(), []
    for i, (start, end) in enumerate(pairwise([0, *cuts, x.shape[1]])):
        kept = None if keep is None else keep[:, start:end]
        outs.append(made(x[:, start:end], memory, keep=kept, form=forms[i % len(forms)]))
    return torch.cat(outs, 1), memory


def written_out(made, x):
    """The definition, term by term, with complex numbers for the rotation."""
    heads, width = made.num_heads, made.width
    q, k = (p(x).view(*x.shape[:2], heads, width // 2, 2) for p in (made.q, made.k))
    q, k = torch.view_as_complex(q.contiguous()), torch.view_as_complex(k.contiguous())
    v = made.v(x).view(*x.shape[:2], heads, -1)
    theta = [10000 ** -(j / max(width // 2 - 1, 1)) for j in range(width // 2)]
    out = torch.zeros_like(v)
    for h in range(heads):
        gamma = 1 - 2.0 ** (-5 - h)
        for n in range(x.shape[1]):
            for m in range(n + 1):
                turn = torch.tensor(
                    [complex(math.cos(t * (n - m)), math.sin(t * (n - m))) for t in theta], dtype=q.dtype
                )
                score = (q[:, n, h] * turn * k[:, m, h].conj()).real.sum(-1) / width**0.5
                out[:, n, h] += (gamma ** (n - m) * score)[:, None] * v[:, m, h]
            out[:, n, h] /= sum(gamma**i for i in range(n + 1)) ** 0.5
    normed = out / (out.square().mean(-1, keepdim=True) + made.norm.eps).sqrt()
    return made.proj(torch.nn.functional.silu(made.gate(x)) * normed.flatten(2))


@pytest.mark.parametrize("form", FORMS)
def test_is_the_sum_of_the_paper(form):
    made, x = layer(), tokens(11)
    torch.testing.assert_close(made(x, form=form), written_out(made, x), atol=1e-10, rtol=0)


def test_decays_and_angles_are_the_authors():
    assert log_decays(3).exp().tolist() == pytest.approx([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128], abs=1e-15)
    assert bool((log_decays(70) < 0).all()), "a head that forgets nothing at all"
    angles = rotation_angles(8)
    assert angles[0] == 1.0
    assert float(angles[-1]) == pytest.approx(1e-4, abs=1e-18)
    with pytest.raises(ValueError, match="even width"):
        Retention(12, 4, value_dim=24)
    with pytest.raises(ValueError, match="num_heads"):
        Retention(16, 4, value_dim=26)


@pytest.mark.parametrize("normaliser", ["none", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 8, 21, 40])
def test_three_forms_agree(length, dtype, normaliser):
    made, x = layer(dtype, normaliser), tokens(length, dtype=dtype)
    parallel, recurrent, chunkwise = (made(x, form=form) for form in FORMS)
    torch.testing.assert_close(recurrent, parallel, atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(chunkwise, parallel, atol=TOLERANCE[dtype], rtol=0)
    assert torch.equal(made(x), {1: recurrent, 21: chunkwise, 40: chunkwise}.get(length, parallel))


@pytest.mark.parametrize("normaliser", ["none", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("forms", [FORMS, FORMS[1:], FORMS[2:]])
def test_a_carried_state_changes_nothing(dtype, forms, normaliser):
    made, x = layer(dtype, normaliser), tokens(37, dtype=dtype)
    whole = made(x, form="parallel")
    for cuts in ((1,), (13, 14, 30), (8, 16, 17, 36)):
        parts, memory = in_parts(made, x, cuts, forms=forms)
        torch.testing.assert_close(parts, whole, atol=TOLERANCE[dtype], rtol=0)
        assert memory.count.tolist() == [37] * 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_left_out_are_as_if_they_were_not_there(dtype, form):
    made, x = layer(dtype), tokens(29, dtype=dtype)
    keep = torch.rand(3, 29, generator=torch.Generator().manual_seed(4)) > 0.3
    keep[0, :9] = False
    keep[1, 20:] = False
    together = made(x, keep=keep, form=form)
    assert together.isfinite().all()
    split, memory = in_parts(made, x, (7, 8, 20), keep)
    torch.testing.assert_close(split[keep], together[keep], atol=TOLERANCE[dtype], rtol=0)
    for row in range(3):
        alone, own = in_parts(made, x[row : row + 1, keep[row]], ())
        torch.testing.assert_close(alone[0], together[row, keep[row]], atol=TOLERANCE[dtype], rtol=0)
        torch.testing.assert_close(own.matrix[0], memory.matrix[row], atol=TOLERANCE[dtype], rtol=0)
        assert own.count[0] == memory.count[row] == keep[row].sum()


def test_no_token_sees_a_later_one():
    made, x = layer(), tokens(12)
    changed = x.clone()
    changed[:, 7:] += 1
    for form in FORMS:
        apart = (made(changed, form=form) - made(x, form=form)).abs().amax((0, 2))
        assert not apart[:7].any()
        assert bool((apart[7:] > 1e-3).all())


def test_a_state_selects_rows_and_keeps_its_size():
    made, x = layer(), tokens(20)
    _, memory = in_parts(made, x, ())
    size = memory.nbytes
    rows = torch.tensor([2, 0, 0])
    memory.select(rows)
    more = tokens(5, seed=7)[rows]
    continued = made(more, memory)
    torch.testing.assert_close(continued, made(torch.cat([x[rows], more], 1))[:, 20:], atol=1e-10, rtol=0)
    assert memory.nbytes == size
    empty = made.new_memory()
    empty.select(rows)
    assert empty.nbytes == 0


@pytest.mark.parametrize("form", FORMS)
def test_no_digits_are_lost_far_into_a_text(form):
    """In float32, the last of 4,200 tokens are as near to float64 as the first."""
    x = tokens(4200, batch=1)
    with torch.inference_mode():
        exact = layer()(x, form="chunkwise")
        rough = layer(torch.float32, chunk_size=64)(x.float(), form=form).double()
    error = (rough - exact).abs().amax(-1)[0]
    assert float(error.max()) < 1e-5
    assert float(error[-200:].mean()) < 3 * float(error[:200].mean()) + 1e-6


def test_bf16_keeps_its_sum_in_float32():
    made, x = layer().bfloat16(), tokens(300, dtype=torch.bfloat16)
    exact = layer()(x.double())
    for form in FORMS:
        memory = made.new_memory()
        out = made(x, memory, form=form)
        assert out.dtype == torch.bfloat16
        assert memory.matrix.dtype == torch.float32
        assert float((out.double() - exact).abs().mean()) < 0.02 * float(exact.abs().mean()) + 0.01


def test_normalisers_differ_only_beside_eps():
    x = tokens(18)
    plain, signed, absolute = (
        layer(normaliser=n, eps=1e-30)(x, form="parallel") for n in ("none", "signed", "absolute")
    )
    torch.testing.assert_close(signed, plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(absolute, plain, atol=1e-10, rtol=0)
    plain, signed, absolute = (
        layer(normaliser=n, eps=1e-2)(x, form="parallel") for n in ("none", "signed", "absolute")
    )
    assert float((signed - plain).abs().max()) > 1e-4
    assert float((absolute - signed).abs().max()) > 1e-4


def test_gradients_are_those_of_the_sum_in_every_form():
    made, x = layer().requires_grad_(True), tokens(19)
    found = []
    for form in FORMS:
        made.zero_grad()
        made(x, form=form).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in made.parameters()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(two, one, atol=1e-8, rtol=1e-8)


def test_layers_share_their_places():
    made, x = layer(), tokens(21)
    keep = torch.ones(3, 21, dtype=torch.bool)
    keep[0, 3] = False
    shared = made.places(x, keep=keep)
    for form in FORMS:
        assert torch.equal(made(x, places=shared, form=form), made(x, keep=keep, form=form))


def test_says_what_is_wrong():
    made, x = layer(), tokens(5)
    with pytest.raises(ValueError, match="bool of shape"):
        made(x, keep=torch.ones(3, 5))
    with pytest.raises(ValueError, match="bool of shape"):
        Places(x, 4, 4, keep=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected a form of auto, parallel"):
        made(x, form="serial")
