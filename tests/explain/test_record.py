import pytest
import torch
from torch import nn

from vitrail.errors import UsageError
from vitrail.explain import record
from vitrail.models import create_model
from vitrail.nn.attention import Attention

from .models import POOLINGS, distilled, pictures, tiny


def tapes(model):
    return [m.tape for m in model.modules() if isinstance(m, Attention)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_recorded_output_equals_the_fused_one(pooling):
    model, images = tiny(pooling), pictures(24, 40)
    with torch.no_grad():
        fused = model(images)
        with record(model):
            recorded = model(images)
    torch.testing.assert_close(recorded, fused, rtol=1e-5, atol=1e-5)


def test_maps_come_with_names_shapes_and_rows_that_sum_to_one():
    model = tiny()
    with torch.no_grad(), record(model) as maps:
        model(pictures(16, 32))
        model(pictures(32, 32, count=1))
    assert list(maps) == ["blocks.0.attn", "blocks.1.attn"]
    for weights in maps.values():
        assert [tuple(w.shape) for w in weights] == [(2, 2, 9, 9), (1, 2, 17, 17)]
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 2, 9))


def test_attention_pooling_is_found_apart_from_the_layers():
    with torch.no_grad(), record(model := tiny("map")) as maps:
        model(pictures())
    assert [tuple(w.shape) for w in maps.square()] == [(2, 2, 16, 16)] * 2
    assert maps.pooling().shape == (2, 2, 1, 16)


def test_tapes_are_put_back_after_an_exception_and_when_nested():
    model, own, recordings = tiny(), [], []
    model.blocks[0].attn.tape = own

    def run():
        with record(model) as outer:
            model(pictures(8, 8))
            with record(model) as inner:
                model(pictures())
            model(pictures(8, 16))
            recordings.extend([outer, inner])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()
    outer, inner = recordings
    assert tapes(model) == [own, None]
    assert own == []
    assert [w.shape[-1] for w in outer["blocks.0.attn"]] == [2, 3]
    assert [w.shape[-1] for w in inner["blocks.0.attn"]] == [17]


def test_another_model_is_not_recorded():
    one, other = tiny(), tiny()
    with record(one) as maps:
        other(pictures())
    assert maps["blocks.0.attn"] == []


def test_maps_keep_their_gradient_history_only_where_gradients_are_on():
    model = distilled()
    with record(model) as maps:
        model(pictures())
        with torch.no_grad():
            model(pictures())
    assert [w.requires_grad for w in maps["blocks.1.attn"]] == [True, False]


def test_a_model_without_attention_is_refused():
    with pytest.raises(UsageError, match=r"Linear.*mend"), record(nn.Linear(2, 2)):
        pass
    with pytest.raises(UsageError, match=r"ResNet which has none$"), record(create_model("test_resnet")):
        pass
