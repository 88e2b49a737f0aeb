import pytest
import torch

from vitrail import models
from vitrail.errors import UsageError
from vitrail.explain import query_attention, record


@pytest.mark.parametrize("name", ["test_detr", "test_detr_masks", "test_deformable_detr", "test_deformable_detr_small"])
def test_a_map_of_what_a_query_attends_to(name):
    model = models.create_model(name).eval()
    images, keep = torch.randn(2, 3, 64, 128), torch.ones(2, 64, 128, dtype=torch.bool)
    keep[1, :, 64:] = False
    found = query_attention(model, images, keep, query=3)
    assert found.shape == ((2, 8, 16) if "deformable" in name else (2, 2, 4))
    assert model.decoder[-1].cross.tape is None
    total = found.sum((1, 2))
    assert bool((total <= 1 + 1e-4).all())
    assert bool((total > 0.05).all())
    if "deformable" not in name:
        assert float(found[1, :, 2:].abs().max()) == 0
        with record(model) as taped, torch.inference_mode():
            model(images, keep)
        weights = taped["decoder.1.cross"][0][:, :, 3].mean(1)
        torch.testing.assert_close(found, weights.view(2, 2, 4))


def test_a_recording_holds_deformable_attention_too():
    model = models.create_model("test_deformable_detr").eval()
    with record(model) as taped, torch.inference_mode():
        model(torch.randn(1, 3, 96, 96))
    assert taped["decoder.0.cross"][0].shape[:3] == (1, 4, 9)
    assert taped["encoder.0.attn"][0].shape[-1] == taped["decoder.0.cross"][0].shape[-1]


def test_what_has_no_queries_is_refused():
    with pytest.raises(UsageError, match="queries"):
        query_attention(models.create_model("test_vit"), torch.randn(1, 3, 32, 32))
    with pytest.raises(UsageError, match="from 0 to 8"):
        query_attention(models.create_model("test_detr").eval(), torch.randn(1, 3, 64, 64), query=9)
