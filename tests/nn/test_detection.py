import pytest
import torch
from torch import nn

from vitrail.nn.detection import Answer, Detections, Noise, seen_by


def noise(batch=2, count=6, groups=3):
    keep = torch.ones(batch, count, dtype=torch.bool)
    return Noise(torch.zeros(batch, count, dtype=torch.long), torch.rand(batch, count, 4), keep, groups)


def test_the_last_layer_is_the_answer():
    found = Detections(
        torch.randn(3, 2, 5, 4), torch.rand(3, 2, 5, 4), proposals=Detections(*[torch.rand(1, 2, 9, 4)] * 2)
    )
    last = found.last()
    assert (last.layers, found.layers) == (1, 3)
    assert torch.equal(last.logits[0], found.layer(-1)[0])
    assert torch.equal(last.boxes_cxcywh01[0], found.layer(2)[1])
    assert last.proposals is None


def test_in_float32_throughout():
    half = Detections(*[torch.rand(1, 2, 9, 4).bfloat16()] * 2)
    found = Detections(half.logits, half.boxes_cxcywh01, proposals=half, noised=half, masks=half.logits[0]).float()
    parts = (found, found.proposals, found.noised)
    assert {p.logits.dtype for p in parts} == {p.boxes_cxcywh01.dtype for p in parts} == {found.masks.dtype}
    assert found.masks.dtype == torch.float32


def test_groups_of_noise_see_themselves_and_the_matched_queries():
    seen = seen_by(noise(count=6, groups=3), 4, torch.device("cpu"))[0, 0]
    for i in range(10):
        for j in range(10):
            expected = j >= 6 or (i < 6 and i // 2 == j // 2)
            assert bool(seen[i, j]) == expected
    assert seen_by(None, 4, torch.device("cpu")) is None
    assert seen_by(noise(count=0, groups=1), 4, torch.device("cpu")).all()


def test_groups_must_divide():
    with pytest.raises(ValueError, match="groups"):
        noise(count=6, groups=4)


def test_the_answer_as_tensors():
    class Net(nn.Module):
        def forward(self, images, keep=None):
            return Detections(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4), masks=None if keep is None else keep)

    assert len(Answer(Net())(torch.ones(1))) == 2
    assert len(Answer(Net())(torch.ones(1), torch.ones(1))) == 3
