"""Gradients through time: exact where theory is, the same by every road, and drawn with all that was measured."""

import pytest
import torch
from torch import nn

from vitrail.errors import UsageError
from vitrail.explain.through_time import (
    FUNCTIONS,
    RADII,
    draw_gradients,
    gradients_through_time,
    norms_to_states,
    open_gates,
    plain_states,
    study_gradients,
    unrolled_norms,
    with_radius,
)
from vitrail.models import create_model, text_variants
from vitrail.nn.recurrent import recurrence, run

T, B, C = 20, 3, 8


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(name, w, x=None):
    x = noise(B, T, C) if x is None else x
    return plain_states(FUNCTIONS[name], 0.3 * noise(C, C, seed=1), w, x.requires_grad_())


@pytest.mark.parametrize("radius", RADII)
def test_a_linear_network_of_orthogonal_weights_follows_the_power_of_its_radius(radius):
    turn = torch.linalg.qr(noise(C, C, seed=2))[0]
    weights = nn.functional.normalize(noise(B, C, seed=3), dim=-1)
    norms = norms_to_states(plain("identity", radius * turn), weights)
    expected = torch.tensor([radius ** (T - 1 - t) for t in range(T)], dtype=torch.float64)
    torch.testing.assert_close(norms, expected, rtol=1e-12, atol=0)


def test_a_linear_network_follows_the_products_of_its_weights():
    w, weights = with_radius(noise(C, C, seed=2), 1.1), noise(B, C, seed=3)
    norms = norms_to_states(plain("identity", w), weights)
    for t in range(T):
        arrives = weights @ torch.linalg.matrix_power(w, T - 1 - t)
        torch.testing.assert_close(norms[t], arrives.norm(dim=-1).mean(), rtol=1e-12, atol=0)


def test_the_radius_is_the_largest_eigenvalue():
    found = with_radius(noise(C, C, seed=4), 0.9)
    assert float(torch.linalg.eigvals(found).abs().max()) == pytest.approx(0.9, rel=1e-12)


@pytest.mark.parametrize(("name", "slope"), [("tanh", lambda s: 1 - s.square()), ("relu", lambda s: (s > 0).double())])
def test_a_plain_network_follows_the_products_of_its_jacobians(name, slope):
    w, weights = noise(C, C, seed=2) / C**0.5, noise(B, C, seed=3)
    states = plain(name, w)
    norms = norms_to_states(states, weights)
    arrives = weights
    for t in reversed(range(T)):
        torch.testing.assert_close(norms[t], arrives.norm(dim=-1).mean(), rtol=1e-10, atol=0)
        arrives = (arrives * slope(states[t].detach())) @ w


@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_layers_unrolled_equal_the_plain_equation(cell):
    torch.manual_seed(0)
    rnn = recurrence(cell, C, C).double()
    with torch.no_grad():
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()
    x, weights = noise(B, T, C), noise(B, C, seed=3)
    states = plain_states(FUNCTIONS[cell], rnn.weight_ih_l0, rnn.weight_hh_l0, x)
    torch.testing.assert_close(unrolled_norms(rnn, x, weights), norms_to_states(states, weights))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_open_gates_keep_what_closed_ones_lose(cell):
    x, weights = noise(B, T, C), noise(B, C, seed=3)
    found = []
    for bias in (0.0, 8.0):
        torch.manual_seed(0)
        rnn = recurrence(cell, C, C).double()
        open_gates(rnn, bias)
        norms = unrolled_norms(rnn, x, weights)
        found.append(float(norms[0] / norms[-1]))
    assert found[0] < 1e-3
    assert found[1] > 0.1


@pytest.mark.parametrize("name", ["test_gru_lm", "test_transformer_lm"])
def test_a_models_gradients_are_those_of_its_embeddings(name):
    """The hand-made way: the loss of the last token, differentiated by what the layers were given."""
    torch.manual_seed(1)
    model = create_model(name, drop_rate=0.3).double()
    tokens = torch.randint(4, 23, (B, T), generator=torch.Generator().manual_seed(2))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    norms = gradients_through_time(model, tokens)
    assert norms.shape == (T - 1,)
    assert (norms > 0).all()
    assert model.training
    assert all(part.training for part in model.modules())
    assert all(p.grad is None and torch.equal(p, before[key]) for key, p in model.named_parameters())
    model.eval()
    embedded = model.embed(tokens[:, :-1]).detach().requires_grad_()
    if name == "test_gru_lm":
        hidden = run(model.rnn, embedded)[0]
    else:
        place = model.place
        hidden = model.decoder(embedded * place.scale + place.positions(0, T - 1))
    loss = nn.functional.cross_entropy(model.head(hidden)[:, -1], tokens[:, -1], reduction="sum")
    (expected,) = torch.autograd.grad(loss, embedded)
    torch.testing.assert_close(norms, expected.norm(dim=-1).mean(0))


PREDICTING = [n for n in text_variants() if n.startswith("test_") and hasattr(create_model(n), "begin")]


@pytest.mark.parametrize("name", PREDICTING)
def test_every_sequence_model_can_be_measured(name):
    torch.manual_seed(1)
    model = create_model(name)
    source, target = torch.randint(4, 19, (B, 6)), torch.randint(4, 19, (B, 5))
    paired = "source" in type(model).forward.__annotations__
    norms = gradients_through_time(model, source, target) if paired else gradients_through_time(model, source)
    assert norms.shape == ((6,) if paired else (5,))
    assert norms.isfinite().all()
    assert norms.any()


def test_what_cannot_be_measured_says_why():
    with pytest.raises(UsageError, match="two steps and more"):
        gradients_through_time(create_model("test_gru_lm"), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(UsageError, match="at least 2 steps"):
        study_gradients(1)


def test_the_study_shows_vanishing_exploding_and_holding():
    found = study_gradients(40, width=16, rows=2)
    assert found == study_gradients(40, width=16, rows=2)
    linear, tanh = found.plain["identity"], found.plain["tanh"]
    for radius in RADII:
        assert linear[radius][39] == pytest.approx(radius**39, rel=1e-9)
        assert len(tanh[radius]) == 40
        assert tanh[radius][0] == 1.0
    assert tanh[0.5][39] < 1e-9
    assert tanh[2.0][39] > 10
    assert found.models["RNN"][39] < 1e-6
    assert found.models["GRU"][39] < found.models["GRU open"][39] / 1e3
    assert found.models["Transformer"][39] > 1e-3
    svg = draw_gradients(found)
    assert svg.count("<svg") == 5
    assert all(name in svg for name in ("ρ = 0.5", "LSTM open", "Transformer"))
    assert "nan" not in svg
    assert found.to_dict()["plain"]["tanh"]["0.5"] == tanh[0.5]
