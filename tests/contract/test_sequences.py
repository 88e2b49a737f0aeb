"""What every model of texts keeps: this file finds the models by itself; adding one adds no test code here."""

import inspect

import pytest
import torch

from vitrail import models

from .every import randomise, test_fresh_models_of_one_name_differ_in_every_layer  # noqa: F401

NAMES = sorted(name for name in models.text_variants() if name.startswith("test_"))
B, S, T = 3, 7, 9
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def kind(name):
    """Return "both" of an encoder with a decoder, "decoder" or "encoder" of one alone."""
    module = type(models.create_model(name))
    if not hasattr(module, "begin"):
        return "encoder"
    return "both" if "target" in inspect.signature(module.forward).parameters else "decoder"


KINDS = {name: kind(name) for name in NAMES}
DECODING = [name for name in NAMES if KINDS[name] != "encoder"]
READING = [name for name in NAMES if KINDS[name] != "decoder"]
STEPPING = pytest.mark.parametrize("name", DECODING)


def tokens(model, rows=B, length=T, seed=0):
    """Return ids (rows, length) that are no specials."""
    c = model.config
    special = {c.specials.pad, c.specials.bos, c.specials.eos}
    usual = torch.tensor([i for i in range(c.vocab_size) if i not in special])
    return usual[torch.randint(len(usual), (rows, length), generator=torch.Generator().manual_seed(seed))]


def texts(model, name, seed=0):
    """Return what ``forward`` takes, sources of different length among it."""
    target = tokens(model, seed=seed)
    if KINDS[name] == "decoder":
        return (target,)
    source, keep = tokens(model, length=S, seed=seed + 1), torch.ones(B, S, dtype=torch.bool)
    keep[1, 5:] = keep[2, 1:] = False
    source[~keep] = model.config.specials.pad
    if KINDS[name] == "encoder":
        return source, keep
    target[:, 0] = model.config.specials.bos
    return source, target, keep


def begun(model, name, given):
    """Return (state before the target, the target) of what ``forward`` takes."""
    if KINDS[name] == "both":
        return model.begin(given[0], given[2]), given[1]
    return model.begin(given[0][:, :0]), given[0]


def stepped(model, state, target):
    return torch.stack([model.step(target[:, t], state) for t in range(target.shape[1])], 1)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomise(models.create_model(name)).eval()


def test_logits_of_every_token(model, name):
    given = texts(model, name)
    with torch.inference_mode():
        logits = model(*given)
    assert logits.isfinite().all()
    assert float(logits.std()) > 1e-3
    if KINDS[name] != "encoder":
        assert logits.shape == (B, T, model.config.vocab_size)


@STEPPING
def test_later_tokens_change_nothing_earlier(model, name):
    given = texts(model, name)
    place = 1 if KINDS[name] == "both" else 0
    target = given[place]
    with torch.inference_mode():
        whole = model(*given)
        for t in (1, 4, T - 1):
            other = target.clone()
            other[:, t:] = tokens(model, length=T - t, seed=9)
            found = model(*(other if i == place else g for i, g in enumerate(given)))
            torch.testing.assert_close(found[:, :t], whole[:, :t], **CLOSE)
            assert not torch.allclose(found[:, t:], whole[:, t:], atol=1e-3)


@STEPPING
def test_steps_equal_the_whole(model, name):
    given = texts(model, name)
    with torch.inference_mode():
        state, target = begun(model, name, given)
        torch.testing.assert_close(stepped(model, state, target), model(*given), **CLOSE)


@pytest.mark.parametrize("name", [n for n in DECODING if KINDS[n] == "decoder"])
def test_a_beginning_is_read_at_once(model, name):
    (target,) = texts(model, name)
    with torch.inference_mode():
        state = model.begin(target[:, :4])
        torch.testing.assert_close(stepped(model, state, target[:, 4:]), model(target)[:, 4:], **CLOSE)


@STEPPING
def test_select_reorders_repeats_and_drops_rows(model, name):
    given = texts(model, name)
    with torch.inference_mode():
        state, target = begun(model, name, given)
        rows = torch.arange(B)
        choices = ([0, 0, 1, 1, 2, 2], [1, 0, 2, 3, 5, 4], [0, 1, 1, 5], [3, 0], [1])
        parts = {"both": 3, "decoder": 1}[KINDS[name]]
        for t in range(T):
            if t < len(choices):
                chosen = torch.tensor(choices[t])
                state.select(chosen)
                rows = rows[chosen]
            found = model.step(target[rows, t], state)
            expected = model(*(g[rows] for g in given[:parts]))[:, t]
            torch.testing.assert_close(found, expected, **CLOSE)


@STEPPING
def test_select_before_the_first_step(model, name):
    given = texts(model, name)
    rows = torch.tensor([2, 2, 0])
    with torch.inference_mode():
        state, target = begun(model, name, given)
        state.select(rows)
        torch.testing.assert_close(stepped(model, state, target[rows]), model(*given)[rows], **CLOSE)


@pytest.mark.parametrize("name", READING)
def test_padding_changes_nothing(model, name):
    """More padding, other tokens in it, and a sample by itself without any: the same logits."""
    given = list(texts(model, name))
    keep = given[-1]
    with torch.inference_mode():
        whole = model(*given)
        more = [torch.nn.functional.pad(given[0], (0, 3), value=5), *given[1:-1]]
        longer = model(*more, torch.nn.functional.pad(keep, (0, 3)))
        alone = []
        for i in range(B):
            length = int(keep[i].sum())
            alone.append(model(given[0][i : i + 1, :length], *(g[i : i + 1] for g in given[1:-1])))
    for i, single in enumerate(alone):
        cut = whole[i : i + 1] if single.ndim == 2 else whole[i : i + 1, : single.shape[1]]
        torch.testing.assert_close(single, cut, **CLOSE)
        far = longer[i : i + 1] if single.ndim == 2 else longer[i : i + 1, : single.shape[1]]
        torch.testing.assert_close(far, cut, **CLOSE)


def test_a_sample_does_not_depend_on_its_batch(model, name):
    given = texts(model, name)
    with torch.inference_mode():
        together = model(*given)
        alone = torch.cat([model(*(g[i : i + 1] for g in given)) for i in range(B)])
    torch.testing.assert_close(alone, together, **CLOSE)


def test_every_parameter_gets_a_gradient(model, name):
    model.train()
    out = model(*texts(model, name))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weights).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} got no gradient"
        assert parameter.grad.isfinite().all(), f"{parameter_name} got a gradient that is not finite"
        assert parameter.grad.any(), f"{parameter_name} got a gradient of zeros"


def test_evaluation_is_deterministic(name):
    model = randomise(models.create_model(name, drop_rate=0.2)).eval()
    given = texts(model, name)
    with torch.inference_mode():
        assert torch.equal(model(*given), model(*given))
        model.train()
        assert not torch.equal(model(*given), model(*given)), "drop_rate changes nothing in training"


def test_state_dict_round_trip(model, name):
    other = models.create_model(name).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    given = texts(model, name)
    with torch.inference_mode():
        assert torch.equal(other(*given), model(*given))


def test_no_tensor_is_stored_twice(model):
    stored = list(model.state_dict().values())
    assert len({tensor.data_ptr() for tensor in stored}) == len(stored)


def test_config_round_trip(model):
    data = models.config_to_dict(model.config)
    rebuilt = models.build(models.config_from_dict(data))
    assert rebuilt.config == model.config
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_bf16_is_near_float32(model, name):
    given = texts(model, name)
    with torch.inference_mode():
        exact = model(*given)
        rough = model.bfloat16()(*given)
        assert rough.dtype == torch.bfloat16
        assert float((rough.float() - exact).abs().max()) < 0.1 * float(exact.abs().max()) + 0.02
        if KINDS[name] != "encoder":
            state, target = begun(model, name, given)
            steps = stepped(model, state, target).float()
            assert float((steps - exact).abs().max()) < 0.1 * float(exact.abs().max()) + 0.02


def test_another_vocabulary(name):
    model = models.create_model(name, vocab_size=37).eval()
    given = texts(model, name)
    assert model(*given).shape[-1] == (getattr(model.config, "num_classes", 0) or 37)
