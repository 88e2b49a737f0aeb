"""What holds of every network that reads images, whatever it answers: tests that other files here import.

They ask for the fixtures ``model`` and ``name`` of the file that imports them.
"""

import torch
from torch import nn

from vitrail import models
from vitrail.nn import Attention


def randomise(model: nn.Module) -> nn.Module:
    """Fill every parameter, so that no zero or one of a fresh model hides a fault."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim > 1 and "pos" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(parameter + 0.2 * noise)
    for name, buffer in model.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * noise)
        elif name.endswith("running_var"):
            buffer.copy_(1 + 0.5 * noise.tanh())
    return model


def images(size=(32, 32), batch=3, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_state_dict_round_trip(model, name):
    other = models.create_model(name).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(other(images()), model(images()))


def test_config_round_trip(model):
    data = models.config_to_dict(model.config)
    rebuilt = models.build(models.config_from_dict(data))
    assert rebuilt.config == model.config
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_bf16_is_near_float32(model):
    with torch.inference_mode():
        exact = model(images())
        rough = model.bfloat16()(images().bfloat16())
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


def test_recorded_equals_fused(model):
    with torch.inference_mode():
        fused = model(images((40, 24)))
        layers = [m for m in model.modules() if isinstance(m, Attention)]
        for layer in layers:
            layer.tape = []
        recorded = model(images((40, 24)))
    torch.testing.assert_close(recorded, fused, atol=1e-5, rtol=1e-4)
    assert all(len(layer.tape) == 1 for layer in layers)


def test_fresh_models_of_one_name_differ_in_every_layer(name):
    """Layers are built one by one, never copied: no two weight matrices of one shape are the same."""
    seen: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for parameter_name, parameter in models.create_model(name).named_parameters():
        if parameter.ndim > 1 and parameter.any():
            for other in seen.setdefault(tuple(parameter.shape), []):
                assert not torch.equal(parameter, other), f"{parameter_name} is a copy of another layer"
            seen[tuple(parameter.shape)].append(parameter)
